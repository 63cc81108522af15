"""What a server's connection stands on: a reader, one timer for all deadlines, quick acknowledgements."""

import asyncio
import socket
import sys
from collections.abc import Callable

__all__ = ["Deadline", "Reader", "quick_acknowledger"]


class Reader(asyncio.StreamReader):
    """A reader that tells at once when the peer has left, also while nobody reads.

    Attributes:
        left: whether the peer has closed or broken the connection; unread data may still be there.
        on_left: called then.
    """

    left = False
    on_left: Callable[[], None] | None = None

    def feed_eof(self) -> None:
        """The peer has closed the connection."""
        super().feed_eof()
        self._leave()

    def set_exception(self, exc: Exception) -> None:
        """The connection broke."""
        super().set_exception(exc)
        self._leave()

    def _leave(self) -> None:
        self.left = True
        if self.on_left is not None:
            self.on_left()


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
    """What acknowledges at once what is read next, for MTAs that write macros and command in two pieces.

    Linux forgets the option after a while, so it is set before each read.
    """
    raw: socket.socket | None = writer.get_extra_info("socket")
    if sys.platform != "linux" or raw is None or raw.family == socket.AF_UNIX:
        return lambda: None
    return lambda: raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
