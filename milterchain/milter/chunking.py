"""A body from wherever it is, in pieces of the size that travels."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from typing import Protocol, TypeAlias

__all__ = ["BinaryReader", "BodySource", "chunks"]


class BinaryReader(Protocol):
    """A binary file."""

    def read(self, size: int, /) -> bytes:
        """Up to so many bytes; none at the end."""


BodySource: TypeAlias = bytes | bytearray | memoryview | BinaryReader | Iterable[bytes] | AsyncIterable[bytes]
"""Where a body comes from. A file is read from its position on, and without a thread."""


async def chunks(source: BodySource, size: int) -> AsyncGenerator[bytes, None]:
    """Pieces of exactly `size` bytes, and the rest; none of nothing. To be closed if not read to its end."""
    buffer = bytearray()
    async with aclosing(_pieces(source, size)) as pieces:
        async for piece in pieces:
            buffer += piece
            start = 0
            while len(buffer) - start >= size:
                yield bytes(buffer[start : start + size])
                start += size
            del buffer[:start]
    if buffer:
        yield bytes(buffer)


async def _pieces(source: BodySource, size: int) -> AsyncGenerator[bytes | bytearray | memoryview, None]:
    if isinstance(source, bytes | bytearray | memoryview):
        yield source
    elif isinstance(source, AsyncIterable):
        async for piece in source:
            yield piece
    elif hasattr(source, "read"):
        while piece := source.read(size):
            yield piece
    else:
        for piece in source:
            yield piece
