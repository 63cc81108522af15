import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import HeaderLimitError
from milterchain.mail.body import Body, SpoolSettings
from milterchain.mail.canonical import canonical
from milterchain.mail.headers import Header, HeaderLimits
from milterchain.mail.message import Message, MessageBuilder, parse_message

PIECES = [
    b"A: 1\r\n",
    b"Long-Name : 2\r\n\tfolded\r\n",
    b"\r\n",
    b"body line\r\n",
    b" blank first\r\n",
    b"From joe Mon\r\n",
    b">From joe\r\n",
    b"Not a header\0\r\n",
    b"N\0ul: \0\r\n",
    b"\0\r\n",
    b"a:",
    b"longer than the limit",
]
MAIL = st.lists(st.sampled_from(PIECES), max_size=10).map(b"".join).map(canonical)
TIGHT = HeaderLimits(total=60, single=30, count=4)
SMALL = SpoolSettings(threshold=8)


def relayed(message):
    return b"".join(message.chunks())


def outcome(pieces, limits):
    """Everything there is to know about a message, or the reason why there is none."""
    try:
        with parse_message(pieces, limits=limits, spool=SMALL) as message:
            return tuple(message.headers), message.separator, bytes(message.body)
    except HeaderLimitError:
        return HeaderLimitError


def cut(data, places):
    edges = [0, *sorted(place for place in places if place <= len(data)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.one_of(MAIL, st.binary(max_size=80).map(canonical)), st.integers(1, 70))
def test_what_comes_in_goes_out(data, size):
    data = data.replace(b"\0", b"?").replace(b"From ", b"Form ")
    with parse_message(data) as message:
        assert relayed(message) == data
        assert message.size == len(data)
        chunks = list(message.chunks(size))
        assert b"".join(chunks) == data
        assert all(0 < len(chunk) <= size for chunk in chunks)


@given(MAIL)
def test_what_went_out_is_read_the_same(data):
    with parse_message(data) as message, parse_message(relayed(message)) as again:
        assert again.headers == message.headers
        assert bytes(again.body) == bytes(message.body)


@given(MAIL, st.lists(st.integers(0, 300), max_size=5))
def test_any_split_gives_what_the_whole_gives(data, places):
    whole = outcome(data, None)
    assert outcome(cut(data, places), None) == whole
    assert outcome([data[i : i + 1] for i in range(len(data))], None) == whole


@given(MAIL.filter(lambda data: b"\0" not in data), st.lists(st.integers(0, 300), max_size=5))
def test_limits_do_not_depend_on_the_split(data, places):
    whole = outcome(data, TIGHT)
    assert outcome(cut(data, places), TIGHT) == whole
    assert outcome([data[i : i + 1] for i in range(len(data))], TIGHT) == whole


def test_an_empty_message():
    with parse_message([]) as message:
        assert list(message.chunks()) == []
        assert message.size == 0
        assert message.milter_headers() == []


def test_milter_headers():
    message = parse_message(b"Received: other\r\nA : 1\r\n\tb\r\nX:\0\r\n\r\nbody\r\n")
    assert message.milter_headers() == [(b"Received", b" other"), (b"A", b" 1\n\tb"), (b"X", b"")]
    assert message.milter_headers() is message.milter_headers()
    with_own = message.with_own_received(b"Received: us\r\n")
    assert with_own.milter_headers() == message.milter_headers()


def test_a_small_message_is_one_piece():
    data = b"A: 1\r\n\r\nbody\r\n"
    assert list(parse_message(data).chunks()) == [data]
    assert list(parse_message(data).chunks(len(data))) == [data]
    assert list(parse_message(data).chunks(10)) == [b"A: 1\r\n\r\n", b"body\r\n"]


def test_own_received():
    message = parse_message(b"A: 1\r\n\r\nbody\r\n")
    with_own = message.with_own_received(b"Received: by us\r\n\tnow\r\n")
    assert relayed(with_own) == b"Received: by us\r\n\tnow\r\nA: 1\r\n\r\nbody\r\n"
    assert with_own.headers[0].own
    assert with_own.body is message.body
    assert relayed(with_own.with_own_received(None)) == relayed(message)
    with pytest.raises(ValueError, match="not one header"):
        message.with_own_received(b"Received: by us")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b" blank first\r\n", b"R: us\r\n\r\n blank first\r\n"),
        (b"body\r\n", b"R: us\r\n\r\nbody\r\n"),
        (b"A: 1\r\nbody\r\n", b"R: us\r\nA: 1\r\n\r\nbody\r\n"),
        (b"A: 1\r\n", b"R: us\r\nA: 1\r\n"),
        (b"", b"R: us\r\n"),
        (b"\r\n", b"R: us\r\n\r\n"),
    ],
)
def test_new_headers_are_kept_apart_from_the_body(data, expected):
    message = parse_message(data)
    assert relayed(message.with_own_received(b"R: us\r\n")) == expected
    assert relayed(message.with_own_received(None)) == data
    assert relayed(message.with_headers(message.headers)) == data


def test_a_new_body_has_a_separator():
    message = parse_message(b"A: 1\r\n")
    assert relayed(message.with_body(Body.of(b""))) == b"A: 1\r\n\r\n"
    assert relayed(message.with_body(Body.of(b"new\r\n"))) == b"A: 1\r\n\r\nnew\r\n"


def test_values_compare():
    message = parse_message(b"A: 1\r\n\r\nbody\r\n")
    assert message == Message(message.headers, b"\r\n", message.body)


def test_body_chunks_for_milters():
    line = b"x" * 78 + b"\r\n"
    with parse_message(b"A: 1\r\n\r\n" + line * 2000, spool=SpoolSettings(threshold=1000)) as message:
        sizes = [len(chunk) for chunk in message.body.chunks(65535)]
        assert sizes == [65535, 65535, 160000 - 2 * 65535]
        assert not message.body.in_memory


def test_closing_a_message_closes_its_file():
    before = len(list(Path("/dev/fd").iterdir()))
    with parse_message(b"A: 1\r\n\r\n" + b"x" * 100, spool=SMALL) as message:
        assert len(list(Path("/dev/fd").iterdir())) == before + 1
    message.close()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_builder_given_up_keeps_nothing():
    before = len(list(Path("/dev/fd").iterdir()))
    builder = MessageBuilder(spool=SMALL)
    builder.feed(b"A: 1\r\n\r\n" + b"x" * 100)
    builder.close()
    builder.close()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_feeding_goes_on_after_a_failure():
    builder = MessageBuilder(limits=TIGHT)
    builder.feed(b"A: " + b"x" * 100 + b"\r\n\r\n")
    assert builder.failure is not None
    for _ in range(100):
        builder.feed(b"x" * 1000)
    builder.feed(b"\r\n\r\n")
    with pytest.raises(HeaderLimitError):
        builder.finish()


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (b"Name: ", "more than 60 octets"),
        (b"Name", "more than 60 octets"),
        (b"A: 1\r\n ", "more than 60 octets"),
        (b"From joe ", "more than 60 octets"),
        (b"A: 1\r\n\0", "more than 60 octets"),
        (b"A:\r\n" * 5, "5 headers, 4 are allowed"),
    ],
)
def test_a_line_that_does_not_end_is_given_up(first, text):
    builder = MessageBuilder(limits=TIGHT)
    filler = b"\0" if first.endswith(b"\0") else b"x"
    builder.feed(first)
    for _ in range(TIGHT.total + TIGHT.single):
        builder.feed(filler)
    assert text in str(builder.failure)


@pytest.mark.parametrize("first", [b"Two words ", b"\xff", b"A: 1\r\nTwo words", b"A: 1\r\n:"])
def test_a_body_line_that_does_not_end_is_body(first):
    builder = MessageBuilder(limits=TIGHT, spool=SMALL)
    builder.feed(first)
    for _ in range(1000):
        builder.feed(b"x")
    with builder.finish() as message:
        assert not message.body.in_memory
        assert message.size == len(first) + 1000


def test_a_line_that_is_decided_after_the_limit():
    for end in (b" is none\r\n", b"\r\n"):
        with parse_message([b"x" * 61, end, b"body\r\n"], limits=TIGHT) as message:
            assert message.size == 61 + len(end) + 6
            assert len(message.headers) == 1


def test_a_body_without_headers_or_end_of_line_in_pieces():
    data = [b"word"] * 100
    assert outcome([b"".join(data[:10]), b" ", *data], TIGHT) == outcome(
        b"".join([*data[:10], b" ", *data]), TIGHT
    )


@pytest.mark.parametrize("chunk", [1, 100, 65536])
def test_a_large_header_section_in_pieces(chunk):
    head = b"".join(b"Name-%d: value\r\n" % number for number in range(300))
    data = head + b"\r\nbody\r\n"
    with parse_message([data[i : i + chunk] for i in range(0, len(data), chunk)]) as message:
        assert len(message.headers) == 301
        assert message.headers[300] == Header(b"Name-299: value\r\n", b"Name-299")
        assert relayed(message) == data
