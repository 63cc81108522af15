import io
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.milter.chunking import chunks


async def later(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


FORMS = {
    "bytes": b"".join,
    "bytearray": lambda pieces: bytearray(b"".join(pieces)),
    "memoryview": lambda pieces: memoryview(b"".join(pieces)),
    "file": lambda pieces: io.BytesIO(b"".join(pieces)),
    "iterable": iter,
    "async iterable": later,
}


@pytest.mark.parametrize("form", FORMS)
@given(pieces=st.lists(st.binary(max_size=9)), size=st.integers(1, 7))
async def test_pieces_of_one_size(form, pieces, size):
    found = [piece async for piece in chunks(FORMS[form](pieces), size)]
    assert b"".join(found) == b"".join(pieces)
    assert all(len(piece) == size for piece in found[:-1])
    assert all(0 < len(piece) <= size for piece in found[-1:])


async def test_a_file_is_read_from_where_it_is():
    file = io.BytesIO(b"skipped, read")
    file.seek(9)
    assert [piece async for piece in chunks(file, 3)] == [b"rea", b"d"]


async def test_no_more_is_read_than_was_asked_for():
    read: list[bytes] = []

    async def source() -> AsyncIterator[bytes]:
        for piece in (b"ab", b"cd", b"ef"):
            read.append(piece)
            yield piece

    found = chunks(source(), 2)
    assert await anext(found) == b"ab"
    await found.aclose()
    assert read == [b"ab"]
