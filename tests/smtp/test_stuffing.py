"""Dot-stuffing in chunks against the rule of RFC 5321 4.5.2, written down line by line."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from milterchain.smtp.stuffing import _COALESCE, one_chunk, stuffed

CASES = [
    (b"", b".\r\n"),
    (b"a\r\n", b"a\r\n.\r\n"),
    (b"a", b"a\r\n.\r\n"),
    (b".", b"..\r\n.\r\n"),
    (b".\r\n", b"..\r\n.\r\n"),
    (b"..\r\n", b"...\r\n.\r\n"),
    (b"\r\n.\r\n", b"\r\n..\r\n.\r\n"),
    (b"\r\n", b"\r\n.\r\n"),
    (b"a\r\n.\r\nb\r\n", b"a\r\n..\r\nb\r\n.\r\n"),
    (b"a.\r\n.b.\r\n", b"a.\r\n..b.\r\n.\r\n"),
    (b"\r\n\r\n", b"\r\n\r\n.\r\n"),
    (b"a\r", b"a\r\r\n.\r\n"),
    (b"a\n", b"a\n\r\n.\r\n"),
    (b"\n.\n", b"\n..\n\r\n.\r\n"),
    (b"\n", b"\n\r\n.\r\n"),
]


def reference(content: bytes) -> bytes:
    content = re.sub(rb"(\A|\n)\.", rb"\1..", content)
    return content + (b".\r\n" if content.endswith(b"\r\n") or not content else b"\r\n.\r\n")


def split(content: bytes, sizes: list[int]) -> list[bytes]:
    parts = []
    for size in sizes:
        parts.append(content[:size])
        content = content[size:]
    return [*parts, content]


@pytest.mark.parametrize(("content", "wire"), CASES)
def test_dots_are_doubled_and_the_end_is_put_on(content: bytes, wire: bytes) -> None:
    assert reference(content) == wire
    assert b"".join(stuffed([content])) == wire
    assert b"".join(stuffed([content[i : i + 1] for i in range(len(content))])) == wire
    for cut in range(len(content) + 1):
        assert b"".join(stuffed([content[:cut], b"", content[cut:]])) == wire


@given(
    st.lists(st.sampled_from([b"\r\n", b".", b"a", b"\r", b"\n", b"..", b"\r\n.\r\n", b"xyz"])).map(b"".join),
    st.lists(st.integers(0, 4)),
)
@example(b"\r\n.", [2])
@example(b"\r\n.", [1])
def test_any_split_gives_what_the_whole_gives(content: bytes, sizes: list[int]) -> None:
    assert b"".join(stuffed(split(content, sizes))) == reference(content)


@given(st.lists(st.sampled_from([b"\r\n", b".", b"a"])).map(b"".join), st.lists(st.integers(0, 4)))
def test_only_the_last_line_is_a_single_dot(content: bytes, sizes: list[int]) -> None:
    *lines, dot, nothing = b"".join(stuffed(split(content, sizes))).split(b"\r\n")
    assert (dot, nothing) == (b".", b"")
    assert b"." not in lines


def test_a_small_content_is_one_piece_and_a_large_one_is_not_joined() -> None:
    assert len(list(stuffed([b"A: b\r\n", b"\r\n", b"text\r\n"]))) == 1
    chunk = b"x" * (_COALESCE - 2) + b"\r\n"
    pieces = list(stuffed([chunk] * 3))
    assert [len(piece) for piece in pieces] == [_COALESCE, _COALESCE, _COALESCE + 3]


def test_nothing_is_read_ahead_but_one_chunk() -> None:
    taken = 0

    def chunks():
        nonlocal taken
        for _ in range(10):
            taken += 1
            yield b"x" * _COALESCE

    pieces = stuffed(chunks())
    next(pieces)
    assert taken == 2


@pytest.mark.parametrize("pieces", [[], [b"a\r.\n"], [b"x" * 70_000, b"", b"y" * 70_000, b"z"]])
def test_one_chunk(pieces):
    content = b"".join(pieces)
    assert b"".join(one_chunk(iter(pieces), len(content))) == b"BDAT %d LAST\r\n" % len(content) + content


@pytest.mark.parametrize("size", [0, 3, 5])
def test_one_chunk_of_another_size(size):
    with pytest.raises(ValueError, match=r"too (many|few)"):
        b"".join(one_chunk([b"abcd"], size))
