"""What a server's connection stands on: a reader, one timer for all deadlines, quick acknowledgements."""

import asyncio
import socket
import sys
from collections.abc import Callable, Iterable
from typing import SupportsIndex, cast

__all__ = ["Deadline", "Reader", "quick_acknowledger"]


class Reader(asyncio.StreamReader):
    """A reader that hands on what came as it came, and tells at once when the peer has left.

    Only `receive` reads from it: the other methods of `asyncio.StreamReader` copy everything twice.

    Args:
        limit: the bytes that may wait; the peer is read no further while there are more.
        loop: that the connection belongs to.

    Attributes:
        left: whether the peer has closed or broken the connection; unread data may still be there.
        on_left: called then, also while nobody reads.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, loop)
        self.left = False
        self.on_left: Callable[[], None] | None = None
        self._most = limit
        self._home = loop
        self._pieces: list[bytes] = []
        self._amount = 0
        self._source: asyncio.ReadTransport | None = None
        self._held_up = False
        self._reading: asyncio.Future[None] | None = None

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """The connection is made."""
        super().set_transport(transport)
        self._source = cast("asyncio.ReadTransport", transport)

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """The peer sent something."""
        data = bytes(data)
        self._pieces.append(data)
        self._amount += len(data)
        self._wake()
        if self._amount > self._most and not self._held_up and self._source is not None:
            self._held_up = True
            self._source.pause_reading()

    def feed_eof(self) -> None:
        """The peer has closed the connection."""
        super().feed_eof()
        self._leave()

    def set_exception(self, exc: Exception) -> None:
        """The connection broke."""
        super().set_exception(exc)
        self._leave()

    async def receive(self) -> bytes:
        """All that came since, at least a byte; none at the end.

        Raises:
            OSError: the connection broke.
        """
        if not self._pieces and not self.left:
            self._reading = self._home.create_future()
            try:
                await self._reading
            finally:
                self._reading = None
        pieces = self._pieces
        if not pieces:
            error = self.exception()
            if error is not None:
                raise error
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._amount = 0
        if self._held_up:
            self._held_up = False
            if self._source is not None and not self.left:
                self._source.resume_reading()
        return data

    def _leave(self) -> None:
        self.left = True
        self._wake()
        if self.on_left is not None:
            self.on_left()

    def _wake(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)


class Deadline:
    """One timer for many deadlines: moving it costs nothing, the timer looks again when it fires."""

    __slots__ = ("_expired", "_handle", "_loop", "_when")

    def __init__(self, expired: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._expired = expired
        self._when = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Call `expired` in so many seconds, and not at the time that was set before."""
        self._when = self._loop.time() + seconds
        if self._handle is not None and self._handle.when() > self._when:
            self.stop()
        if self._handle is None:
            self._handle = self._loop.call_at(self._when, self._look)

    def _look(self) -> None:
        if self._loop.time() >= self._when:
            self._handle = None
            self._expired()
        else:
            self._handle = self._loop.call_at(self._when, self._look)

    def stop(self) -> None:
        """Never call `expired`."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def quick_acknowledger(writer: asyncio.StreamWriter) -> Callable[[], None]:
    """What acknowledges at once what was read, for MTAs that write macros and command in two pieces.

    To be called after each read that is not answered: a reply carries the acknowledgement with it, and one of
    its own costs more than the rest of an event. Linux forgets the option, so setting it once is not enough.
    """
    raw: socket.socket | None = writer.get_extra_info("socket")
    if sys.platform != "linux" or raw is None or raw.family == socket.AF_UNIX:
        return lambda: None
    return lambda: raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
