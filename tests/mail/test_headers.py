import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import HeaderLimitError, MilterchainError
from milterchain.mail.headers import (
    MAX_HEADER,
    VIRTUAL_RECEIVED,
    Header,
    HeaderLimits,
    Headers,
    split_message,
)

LIMITS = HeaderLimits()
LINES = st.lists(
    st.sampled_from(
        [
            b"A: 1",
            b"a:2",
            b"B :\t3",
            b" folded",
            b"\tfolded",
            b"",
            b" ",
            b"no header",
            b"no\xffheader: x",
            b"From joe Mon Jan 5",
            b">>From joe",
            b"From : joe",
            b">From\t: joe",
            b": no name",
            b"N\0UL: x\0",
            b"\0",
            b"\0 x",
            b"body\0",
        ]
    ),
    max_size=10,
).map(lambda lines: b"".join(line + b"\r\n" for line in lines))


def reference(data):
    """Line by line, as the rules are told: headers, separator, body."""
    headers, separator = [], b""
    lines = data.splitlines(keepends=True)
    while lines:
        line = lines[0].replace(b"\0", b"")
        if not any(name != b"X-Mailbox-Line" for _, name in headers):
            first = re.match(rb">*From (?![ \t]*:)", line)
            if first:
                headers.append((b"X-Mailbox-Line: " + line, b"X-Mailbox-Line"))
                lines.pop(0)
                continue
        name, colon, _ = line.partition(b":")
        name = name.rstrip(b" \t")
        if line.startswith((b" ", b"\t")):
            if not headers:
                break
            if headers[-1][1] == b"X-Mailbox-Line":
                separator = b"\r\n"
                break
            headers[-1] = (headers[-1][0] + line, headers[-1][1])
        elif colon and re.fullmatch(rb"[!-9;-~]+", name):
            headers.append((line, name))
        else:
            if line == b"\r\n":
                separator = b"\r\n"
                lines.pop(0)
            break
        lines.pop(0)
    return headers, separator, b"".join(lines)


@given(LINES)
def test_against_the_reference(data):
    headers, separator, rest = split_message(data, LIMITS)
    assert ([tuple(header[:2]) for header in headers], separator, rest) == reference(data)
    assert not any(header.own for header in headers)


@given(st.one_of(LINES, st.binary(max_size=60)))
def test_no_byte_is_lost(data):
    if b"From " in data:
        data = data.replace(b"From ", b"Form ")
    headers, separator, rest = split_message(data, LIMITS)
    head = data[: len(data) - len(rest)].replace(b"\0", b"")
    assert b"".join(header.raw for header in headers) + separator == head


@pytest.mark.parametrize(
    ("data", "raws", "separator", "rest"),
    [
        (b"", [], b"", b""),
        (b"\r\n", [], b"\r\n", b""),
        (b"\r\n\r\n", [], b"\r\n", b"\r\n"),
        (b"A: b\r\n", [b"A: b\r\n"], b"", b""),
        (b"A: b\r\n\r\n", [b"A: b\r\n"], b"\r\n", b""),
        (b"A: b\r\nbody\r\n", [b"A: b\r\n"], b"", b"body\r\n"),
        (b"A: b\r\nbody\r\n\r\nX: y\r\n\r\n", [b"A: b\r\n"], b"", b"body\r\n\r\nX: y\r\n\r\n"),
        (b" body\r\n", [], b"", b" body\r\n"),
        (b"body\r\n", [], b"", b"body\r\n"),
        (b"A: b\r\n \r\n c\r\n\r\nx", [b"A: b\r\n \r\n c\r\n"], b"\r\n", b"x"),
        (b"From a b\r\nA: b\r\n\r\n", [b"X-Mailbox-Line: From a b\r\n", b"A: b\r\n"], b"\r\n", b""),
        (b"From a b\r\n c\r\n", [b"X-Mailbox-Line: From a b\r\n"], b"\r\n", b" c\r\n"),
        (b"From a b\r\nc\r\n", [b"X-Mailbox-Line: From a b\r\n"], b"", b"c\r\n"),
        (b"A: b\r\nFrom a b\r\n", [b"A: b\r\n"], b"", b"From a b\r\n"),
        (b"From : a\r\n\r\n", [b"From : a\r\n"], b"\r\n", b""),
        (b"A: \0b\r\n\0\r\n\0body\r\n", [b"A: b\r\n"], b"\r\n", b"\0body\r\n"),
        (b"A: \0b\r\n\0bo\0dy\r\n", [b"A: b\r\n"], b"", b"\0bo\0dy\r\n"),
        (b"A: b\r\n\r\nbody\0", [b"A: b\r\n"], b"\r\n", b"body\0"),
    ],
)
def test_split(data, raws, separator, rest):
    headers, found_separator, found_rest = split_message(data, LIMITS)
    assert [header.raw for header in headers] == raws
    assert (found_separator, found_rest) == (separator, rest)


@pytest.mark.parametrize(
    ("raw", "name", "value"),
    [
        (b"Subject: x\r\n", b"Subject", b" x"),
        (b"S:  x \r\n", b"S", b"  x "),
        (b"X:\tv\r\n", b"X", b"\tv"),
        (b"X:\r\n", b"X", b""),
        (b"X \t: v\r\n", b"X", b" v"),
        (b"X: a\r\n\tb\r\n", b"X", b" a\n\tb"),
        (b"X: a:b\xff\r\n \r\n", b"X", b" a:b\xff\n "),
    ],
)
def test_header(raw, name, value):
    header = Header.parse(raw)
    assert (header.raw, header.name, header.value, header.own) == (raw, name, value, False)
    assert Header.parse(raw, own=True).own
    assert Headers([VIRTUAL_RECEIVED, header]).visible == [(name, value)]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"X: y",
        b"X: y\n",
        b"X: y\r\n\r\n",
        b"X: y\r\nZ: y\r\n",
        b"X: y\r\nz\r\n",
        b"X: y\rz\r\n",
        b"X: y\n z\r\n",
        b"X: \0\r\n",
        b" X: y\r\n",
        b": y\r\n",
    ],
)
def test_not_a_header(raw):
    with pytest.raises(ValueError, match="not one header"):
        Header.parse(raw)


def test_the_place_holder():
    assert VIRTUAL_RECEIVED.value == b""
    headers = Headers([VIRTUAL_RECEIVED])
    assert headers.raw == b""
    assert headers.visible == []
    assert len(headers) == 1


def test_headers_are_a_sequence():
    one, other = Header.parse(b"A: 1\r\n"), Header.parse(b"a: 2\r\n")
    headers = Headers([one, VIRTUAL_RECEIVED, other])
    assert list(headers) == [one, VIRTUAL_RECEIVED, other]
    assert headers[0] == one
    assert headers[1:] == (VIRTUAL_RECEIVED, other)
    assert headers.values(b"A") == [b" 1", b" 2"]
    assert headers.values(b"received") == []
    assert headers.raw == b"A: 1\r\na: 2\r\n"
    assert headers.raw is headers.raw
    assert headers.visible is headers.visible
    same = Headers(list(headers))
    assert headers == same
    assert hash(headers) == hash(same)
    assert headers != tuple(headers)
    assert repr(headers).startswith("Headers([Header(")


def test_with_own_keeps_its_place():
    one = Header.parse(b"A: 1\r\n")
    own = Header.parse(b"Received: us\r\n", own=True)
    headers = Headers([one, VIRTUAL_RECEIVED]).with_own(own)
    assert list(headers) == [one, own]
    assert headers.visible == [(b"A", b" 1")]
    assert headers.raw == b"A: 1\r\nReceived: us\r\n"


@pytest.mark.parametrize("items", [[], [VIRTUAL_RECEIVED] * 2, [Header(b"A: 1\r\n", b"A")]])
def test_exactly_one_is_our_own(items):
    with pytest.raises(ValueError, match="own headers"):
        Headers(items)


@pytest.mark.parametrize("tail", [b"\r\n", b"", b"body\r\n", b"\0\r\n"])
@pytest.mark.parametrize(
    ("limits", "data", "text"),
    [
        (HeaderLimits(total=9), b"A: 1\r\nB:\r\n", "headers of 10 octets, 9 are allowed"),
        (HeaderLimits(single=9), b"A: 1\r\nB: 345\r\n\t\r\n", "header B of 11 octets, 9 are allowed"),
        (HeaderLimits(count=2), b"A:\r\n" * 3, "3 headers, 2 are allowed"),
    ],
)
def test_limits(limits, data, text, tail):
    with pytest.raises(HeaderLimitError, match=text) as caught:
        split_message(data + tail, limits)
    assert isinstance(caught.value, MilterchainError)


@pytest.mark.parametrize("tail", [b"\r\n" + b"x" * 100, b"x" * 100])
def test_within_limits(tail):
    data = b"A: 1\r\nB: 1\r\n"
    headers, _, rest = split_message(data + tail, HeaderLimits(total=12, single=6, count=2))
    assert len(headers) == 2
    assert rest == b"x" * 100


def test_a_header_fits_a_packet():
    assert MAX_HEADER < 65535
