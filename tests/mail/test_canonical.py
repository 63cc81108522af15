import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.canonical import Canonicaliser, HeaderCanonicaliser, canonical

HOSTILE = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a", b"\0", b"\xff", b" ", b"\r\n.\r\n"])
).map(b"".join)


def reference(data):
    """Character by character, as the rule is told."""
    out = bytearray()
    position = bare_cr = bare_lf = 0
    while position < len(data):
        byte = data[position : position + 1]
        if data.startswith(b"\r\n", position):
            out += b"\r\n"
            position += 1
        elif byte == b"\r":
            out += b" "
            bare_cr += 1
        elif byte == b"\n":
            out += b"\r\n"
            bare_lf += 1
        else:
            out += byte
        position += 1
    if out and not out.endswith(b"\r\n"):
        out += b"\r\n"
    return bytes(out), bare_cr, bare_lf


def feed(pieces):
    canonicaliser = Canonicaliser()
    out = b"".join([*map(canonicaliser.feed, pieces), canonicaliser.finish()])
    return out, canonicaliser.bare_cr, canonicaliser.bare_lf


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b""),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\nb\n", b"a\r\nb\r\n"),
        (b"a\rb", b"a b\r\n"),
        (b"\r", b" \r\n"),
        (b"\n", b"\r\n"),
        (b"\r\r\n", b" \r\n"),
        (b"a\rb\n", b"a b\r\n"),
        (b"a\r.\nMAIL\r\n", b"a .\r\nMAIL\r\n"),
        (b"\r\n\r", b"\r\n \r\n"),
        (b"\n\r", b"\r\n \r\n"),
        (b"a\n.\r\nMAIL", b"a\r\n.\r\nMAIL\r\n"),
        (b"\0\xff\r\n", b"\0\xff\r\n"),
    ],
)
def test_cases(data, expected):
    assert canonical(data) == expected
    assert reference(data)[0] == expected


def test_every_short_input():
    for size in range(7):
        for octets in itertools.product(b"\r\na.", repeat=size):
            assert feed([bytes(octets)]) == reference(bytes(octets))


@given(HOSTILE, st.data())
def test_any_split_gives_what_the_whole_gives(data, draw):
    expected = reference(data)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    edges = [0, *cuts, len(data)]
    assert feed([data]) == expected
    assert feed([data[a:b] for a, b in itertools.pairwise(edges)]) == expected
    assert feed([data[i : i + 1] for i in range(len(data))]) == expected


@given(HOSTILE)
def test_the_result_is_canonical(data):
    once = canonical(data)
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", once)
    assert canonical(once) == once


def test_a_clean_piece_is_not_copied():
    data = b"line\r\n" * 1000
    assert Canonicaliser().feed(data) is data


def test_finish_gives_its_end_once():
    canonicaliser = Canonicaliser()
    assert canonicaliser.feed(b"a\r") == b"a"
    assert canonicaliser.finish() == b" \r\n"
    assert canonicaliser.finish() == b""


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b""),
        (b"A: b\n\nx\ry\nz", b"A: b\r\n\r\nx\ry\nz"),
        (b"A: b\r\n\r\n\r", b"A: b\r\n\r\n\r"),
        (b"A: b\r\n\n\n", b"A: b\r\n\r\n\n"),
        (b"\nx\r", b"\r\nx\r"),
        (b"A: b\rc", b"A: b c\r\n"),
        (b"A: b\r\r\n\r\n\r", b"A: b \r\n\r\n\r"),
    ],
)
def test_headers_only(data, expected):
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        canonicaliser = HeaderCanonicaliser()
        assert b"".join(map(canonicaliser.feed, pieces)) + canonicaliser.finish() == expected
