import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.replies import MAX_REPLY_LINES, Reply, parse_reply


@pytest.mark.parametrize(
    ("reply", "wire"),
    [
        (Reply.of(250, "2.0.0 Ok"), b"250 2.0.0 Ok\r\n"),
        (Reply.of(550, "5.7.1 No", "5.7.1 never"), b"550-5.7.1 No\r\n550 5.7.1 never\r\n"),
        (Reply.of(250, ""), b"250 \r\n"),
        (Reply.of(250, "grüß"), "250 grüß\r\n".encode()),
        (Reply(250, (b"a\r\n250 evil", b"tab\tstays\x7f")), b"250-a??250 evil\r\n250 tab\tstays?\r\n"),
        (Reply(450, (b"fine", b"\0")), b"450-fine\r\n450 ?\r\n"),
    ],
)
def test_encode(reply, wire):
    assert reply.encode() == wire


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"5.7.1 No", b"5.7.1"),
        (b"4.123.999", b"4.123.999"),
        (b"No 5.7.1", None),
        (b"3.0.0 No", None),
        (b"5.7.1234 No", None),
        (b"5.7.1No", None),
        (b"", None),
    ],
)
def test_status(line, status):
    assert Reply(550, (line,)).status == status


@pytest.mark.parametrize(
    ("code", "positive", "temporary", "permanent", "closes"),
    [
        (220, True, False, False, False),
        (354, True, False, False, False),
        (421, False, True, False, True),
        (451, False, True, False, False),
        (521, False, False, True, True),
        (599, False, False, True, False),
    ],
)
def test_kind(code, positive, temporary, permanent, closes):
    reply = Reply.of(code, "text")
    assert (reply.positive, reply.temporary, reply.permanent) == (positive, temporary, permanent)
    assert reply.closes is closes


@pytest.mark.parametrize("code", [0, 199, 600, -1])
def test_code_out_of_range(code):
    with pytest.raises(ValueError, match="no SMTP reply code"):
        Reply.of(code, "text")


def test_no_lines():
    with pytest.raises(ValueError, match="at least one line"):
        Reply(250, ())


def test_str():
    assert str(Reply(550, (b"5.7.1 No", b"\xff"))) == "550 5.7.1 No / \\xff"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"250 2.0.0 Ok\r\n", Reply.of(250, "2.0.0 Ok")),
        (b"550-5.7.1 No\r\n550 5.7.1 never\r\n", Reply.of(550, "5.7.1 No", "5.7.1 never")),
        (b"550-No\n550 never", Reply.of(550, "No", "never")),
        (b"250", Reply.of(250, "")),
        (b"250 \r\n", Reply.of(250, "")),
        (b"250-\r\n250\r\n", Reply.of(250, "", "")),
        (b"354  two  blanks \r\n", Reply.of(354, " two  blanks ")),
        (b"250 a\rb\r\n", Reply.of(250, "a?b")),
    ],
)
def test_parse(data, expected):
    assert parse_reply(data) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no line 1 of 1"),
        (b"\r\n", "no line 1 of 1"),
        (b"Ok", "no line 1 of 1"),
        (b"150 early", "no line 1 of 1"),
        (b"600 late", "no line 1 of 1"),
        (b"250Ok", "no line 1 of 1"),
        (b"250-more", "no line 1 of 1"),
        (b"250 a\n250 b", "no line 1 of 2"),
        (b"250-a\n\n250 b", "no line 2 of 3"),
        (b"250-a\n250 b\n\n", "no line 2 of 3"),
        (b"250-a\n251 b", r"codes \[250, 251\] in one reply"),
        (b"250-a\n" * MAX_REPLY_LINES + b"250 b", "129 lines"),
    ],
)
def test_what_is_no_reply(data, message):
    with pytest.raises(ValueError, match=message):
        parse_reply(data)


@given(st.integers(200, 599), st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_encode_and_back(code, lines):
    reply = Reply(code, tuple(lines))
    assert parse_reply(reply.encode()) == reply
