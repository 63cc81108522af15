"""The reply reader: whole, byte by byte, with a tail, split anywhere, and hostile."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import NextHopProtocolError
from milterchain.mail.replies import Reply
from milterchain.smtp.client_replies import ReplyReader

CASES = [
    (b"250 Ok\r\n", Reply.of(250, "Ok")),
    (b"250 2.1.0 Ok\r\n", Reply.of(250, "2.1.0 Ok")),
    (b"250\r\n", Reply.of(250, "")),
    (b"250 \r\n", Reply.of(250, "")),
    (b"250-\r\n250\r\n", Reply.of(250, "", "")),
    (b"220 mx.example.org ESMTP\n", Reply.of(220, "mx.example.org ESMTP")),
    (b"250-mx\r\n250-SIZE 10240000\r\n250 DSN\r\n", Reply.of(250, "mx", "SIZE 10240000", "DSN")),
    (b"250-mx\n250 DSN\r\n", Reply.of(250, "mx", "DSN")),
    (b"250--\r\n250 - 250-x\r\n", Reply.of(250, "-", "- 250-x")),
    (b"354 go\r\n", Reply.of(354, "go")),
    (b"599 x\r\n", Reply.of(599, "x")),
    (b"550 a\rb\x00c\r\n", Reply(550, (b"a?b?c",))),
    (b"550 \xc3\xa9\xff\r\n", Reply(550, (b"\xc3\xa9\xff",))),
]

ILLEGAL = [
    b"\r\n",
    b"hello\r\n",
    b"25\r\n",
    b"2500 x\r\n",
    b"250x\r\n",
    b"250\tx\r\n",
    b" 250 x\r\n",
    b"150 x\r\n",
    b"600 x\r\n",
    b"\xb2\xb3\xb4 x\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 400 Bad Request\r\n",
    b"* OK IMAP\r\n",
    b"250-a\r\n251 b\r\n",
    b"250-a\r\nb\r\n",
    b"\x00\x00\x00\x0dO\n",
]


def read(reader: ReplyReader, parts: Iterable[bytes]) -> list[Reply]:
    replies = []
    for part in parts:
        reader.feed(part)
        while (reply := reader.next_reply()) is not None:
            replies.append(reply)
    return replies


def single(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize(("data", "reply"), CASES)
def test_a_reply_is_read_whole_byte_by_byte_and_with_a_tail(data: bytes, reply: Reply) -> None:
    reader = ReplyReader()
    assert reader.idle
    assert read(reader, [data]) == [reply]
    assert reader.idle
    assert read(reader, single(data)) == [reply]
    assert read(reader, [data + b"221 by"]) == [reply]
    assert not reader.idle
    assert read(reader, [b"e\r\n" + data]) == [Reply.of(221, "bye"), reply]


@pytest.mark.parametrize("data", ILLEGAL)
@pytest.mark.parametrize("split", [lambda data: [data], single], ids=["whole", "bytes"])
def test_what_is_no_reply_is_an_error_for_ever(data: bytes, split) -> None:
    reader = ReplyReader()
    with pytest.raises(NextHopProtocolError) as first:
        read(reader, split(data))
    with pytest.raises(NextHopProtocolError) as second:
        read(reader, [b"250 Ok\r\n"])
    assert second.value is first.value


def test_the_error_quotes_what_was_met_without_control_characters() -> None:
    with pytest.raises(NextHopProtocolError, match=r"^no SMTP reply: 'SSH-2\.0-x\\x1b\[m'$"):
        read(ReplyReader(), [b"SSH-2.0-x\x1b[m\r\n"])


def test_replies_before_the_illegal_line_are_delivered_first() -> None:
    reader = ReplyReader()
    reader.feed(b"250 a\r\n250 b\r\ngarbage\r\n")
    assert reader.next_reply() == Reply.of(250, "a")
    assert reader.next_reply() == Reply.of(250, "b")
    with pytest.raises(NextHopProtocolError, match="garbage"):
        reader.next_reply()


@pytest.mark.parametrize("split", [lambda data: [data], single], ids=["whole", "bytes"])
def test_the_length_of_a_line_is_limited(split) -> None:
    line = b"250 " + b"x" * 14 + b"\r\n"
    assert read(ReplyReader(max_line=20), split(line)) == [Reply(250, (b"x" * 14,))]
    for data in (b"250 " + b"x" * 18 + b"\r\n", b"250 " + b"x" * 30):
        with pytest.raises(NextHopProtocolError, match="more than 20 octets"):
            read(ReplyReader(max_line=20), split(data))


def test_the_number_of_lines_is_limited() -> None:
    assert len(read(ReplyReader(max_lines=3), [b"250-a\r\n250-b\r\n250 c\r\n"])[0].lines) == 3
    with pytest.raises(NextHopProtocolError, match="more than 3 lines"):
        read(ReplyReader(max_lines=3), [b"250-a\r\n" * 3])


TEXT = st.binary(max_size=20).filter(lambda text: not set(text) & set(b"\r\n"))
REPLIES = st.builds(Reply, st.integers(200, 599), st.lists(TEXT, min_size=1, max_size=4).map(tuple))


@given(st.lists(REPLIES, max_size=5), st.lists(st.integers(1, 30), max_size=30))
def test_encoded_replies_come_back_however_they_are_split(replies: list[Reply], sizes: list[int]) -> None:
    data = b"".join(reply.encode() for reply in replies)
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    assert read(ReplyReader(), [*parts, data]) == replies


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_no_bytes_raise_anything_else(parts: list[bytes]) -> None:
    reader = ReplyReader(max_line=16, max_lines=3)
    try:
        read(reader, parts)
    except NextHopProtocolError:
        return
    assert len(reader._buffer) <= 16
