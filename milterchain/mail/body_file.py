"""A body, or a whole message, as a binary file: to seek in and to hand to libraries that read files.

The file reads what the body keeps, in memory or spooled, and copies nothing. Every file has a place of its
own; closing one closes no body.
"""

import io
from typing import TYPE_CHECKING

from milterchain.mail.body import Body

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer  # collections.abc.Buffer is newer than Python 3.11

__all__ = ["open_body"]

_READ_AHEAD = 2**16
"""Octets that are read at once, however little is asked for: one system call each where a file is behind."""


def open_body(body: Body, *, head: bytes = b"") -> io.BufferedReader:
    """Open a body for reading.

    Args:
        body: what is read; it must not be closed before the file.
        head: bytes before the body: headers and the empty line, for instance.

    Returns:
        A seekable binary file. Reading it raises ValueError once the body was closed, and OSError if the
        body's own file cannot be read.
    """
    return io.BufferedReader(_BodyFile(head, body), _READ_AHEAD)


class _BodyFile(io.RawIOBase):
    def __init__(self, head: bytes, body: Body) -> None:
        super().__init__()
        self._head = head
        self._body = body
        self._place = 0
        self._size = len(head) + len(body)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative place {start + offset}")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        if self._place < len(self._head):
            data = self._head[self._place : self._place + len(view)]
        else:
            start = self._place - len(self._head)
            data = self._body.read(start, max(min(len(view), len(self._body) - start), 0))
        view[: len(data)] = data
        self._place += len(data)
        return len(data)
