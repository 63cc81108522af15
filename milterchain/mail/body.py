"""The body of a message: immutable bytes, in memory while they are few, else in a file without a name.

`BodyWriter` takes pieces and makes a `Body`. Any number of readers may go through the same body at once, each
at its own place, without holding more than one piece. The file has no name: a crash leaves nothing behind.

Who makes a body closes it; messages that differ only in their headers share one. A body that was forgotten
closes its file when it is garbage collected. Files are read and written synchronously: they are small enough
for the page cache, and a thread per piece would cost more than the copy.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from typing import Self

__all__ = ["Body", "BodyWriter", "SpoolSettings"]

MEMORY_THRESHOLD = 2**20
"""Octets of a body that are kept in memory: most mail is smaller, and 100 such sessions are bearable."""
WRITE_SIZE = 2**18
"""Octets that are collected before they are written to the file."""
_PIECE = 4096
"""Octets from which on a piece is kept as it came; shorter ones are put together, or they would cost more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSettings:
    """Where bodies are kept.

    Attributes:
        threshold: a body of more octets goes to a file.
        directory: where that file is made; None for the system's default.
    """

    threshold: int = MEMORY_THRESHOLD
    directory: str | None = None


class Body:
    """An immutable body. Made by `Body.of` or a `BodyWriter`."""

    __slots__ = ("_file", "_pieces", "_size")

    def __init__(self, data: bytes, file: FileIO | None = None, size: int | None = None) -> None:
        self._pieces = [data]
        self._file = file
        self._size = len(data) if size is None else size

    @classmethod
    def of(cls, data: bytes) -> Self:
        """A body in memory."""
        return cls(data)

    @classmethod
    def of_pieces(cls, pieces: list[bytes], size: int) -> Self:
        """A body in memory, from pieces that make `size` octets: put together when somebody reads it."""
        body = cls(b"", None, size)
        body._pieces = pieces
        return body

    def __len__(self) -> int:
        """Its size in octets."""
        return self._size

    def __bytes__(self) -> bytes:
        """All of it; for bodies that are known to be small."""
        return self.read(0, self._size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Body of {self._size} octets {'in a file' if self._file else 'in memory'}>"

    @property
    def in_memory(self) -> bool:
        """Whether no file is behind it."""
        return self._file is None

    @property
    def ends_with_newline(self) -> bool:
        """Whether the last line is complete; an empty body has no last line, which is complete, too."""
        return self._size == 0 or self.read(max(self._size - 2, 0), 2) == b"\r\n"

    def head(self, size: int) -> bytes:
        """The first `size` octets, or fewer if there are no more."""
        return self.read(0, min(size, self._size))

    def chunks(self, size: int) -> Iterator[bytes]:
        """Go through the body in pieces of exactly `size` octets; the last one may be shorter.

        Raises:
            ValueError: the body was closed.
            OSError: the file cannot be read.
        """
        if self._file is None and self._size <= size:
            if self._size:
                yield self._data()
            return
        for start in range(0, self._size, size):
            yield self.read(start, min(size, self._size - start))

    def close(self) -> None:
        """Give back the file, for every message that shares this body. May be called again."""
        if self._file is not None:
            self._file.close()

    def read(self, start: int, size: int) -> bytes:
        """`size` octets from `start` on; both lie inside the body.

        Raises:
            ValueError: the body was closed.
            OSError: the file cannot be read.
        """
        if self._file is None:
            return self._data()[start : start + size]
        data = os.pread(self._file.fileno(), size, start)
        if len(data) != size:
            raise OSError(f"the body's file ends {size - len(data)} octets too early")
        return data

    def _data(self) -> bytes:
        """All of what is in memory."""
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]


class BodyWriter:
    """Collects a body.

    After an OSError (no space left, say) only `close` makes sense.
    """

    __slots__ = ("_file", "_limit", "_pieces", "_settings", "_size", "_tail", "_waiting")

    def __init__(self, settings: SpoolSettings | None = None) -> None:
        self._settings = settings or SpoolSettings()
        self._limit = self._settings.threshold
        self._pieces: list[bytes] = []
        self._tail = bytearray()
        self._waiting = 0
        self._file: FileIO | None = None
        self._size = 0

    def __len__(self) -> int:
        """Octets written so far."""
        return self._size

    def __del__(self) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Append a piece.

        Raises:
            OSError: it cannot be written to the file.
        """
        size = len(data)
        if size < _PIECE and self._size:
            self._tail += data
            if len(self._tail) >= _PIECE:
                self._settle()
        else:
            self._settle()
            self._pieces.append(bytes(data))
        self._size += size
        self._waiting += size
        if self._waiting > self._limit:
            self._flush()

    def finish(self) -> Body:
        """The body. The writer is of no use afterwards; the file, if any, is the body's.

        Raises:
            OSError: the rest cannot be written to the file.
        """
        if self._file is None:
            self._settle()
            return Body.of_pieces(self._pieces, self._size)
        self._flush()
        file, self._file = self._file, None
        return Body(b"", file, self._size)

    def close(self) -> None:
        """Throw away what was collected. May be called again, and after `finish`."""
        self._pieces, self._tail, self._waiting = [], bytearray(), 0
        if self._file is not None:
            self._file.close()

    def _settle(self) -> None:
        """Make a piece of what was put together."""
        if self._tail:
            self._pieces.append(bytes(self._tail))
            self._tail = bytearray()

    def _flush(self) -> None:
        if self._file is None:
            directory = self._settings.directory
            self._file = tempfile.TemporaryFile(buffering=0, dir=directory)  # noqa: SIM115 - outlives this
            self._limit = min(self._limit, WRITE_SIZE)
        self._settle()
        for piece in self._pieces:
            view = memoryview(piece)
            while view:
                view = view[self._file.write(view) :]
        self._pieces, self._waiting = [], 0
