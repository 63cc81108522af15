"""What a server's connection stands on: a reader, a writer, one timer for all deadlines.

An event costs little more than the system calls around it: bytes go from the socket to the session without a
turn of the event loop in between, through memory that all connections of a server share.
"""

import asyncio
import math
import socket
import sys
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, cast

__all__ = ["Deadline", "Reader", "Room", "Writer"]

_READ_AHEAD = 128 * 1024
"""Bytes of one connection that are read at once, and that wait, twice at most, while its filter works."""


class Room:
    """The memory that sockets are read into: what came is taken away before another one is read."""

    __slots__ = ("memory", "view")

    def __init__(self) -> None:
        self.memory = bytearray(_READ_AHEAD)
        self.view = memoryview(self.memory)


class Writer:
    """The outgoing half of a connection.

    Args:
        transport: of the connection.
        tcp: whether it is one of TCP.

    Attributes:
        transport: the same.
        paused: whether more is on its way than should be: `drain` would wait.
    """

    __slots__ = ("_flowing", "_raw", "_tcp", "lost", "paused", "transport")

    def __init__(self, transport: asyncio.Transport, *, tcp: bool) -> None:
        self.transport = transport
        self.paused = False
        self.lost = False
        self._flowing: asyncio.Event | None = None
        self._raw: socket.socket | None = None
        self._tcp = tcp and sys.platform == "linux"

    def pause(self) -> None:
        """The peer reads too slowly."""
        self.paused = True
        self._flowing = asyncio.Event()

    def resume(self) -> None:
        """The peer has read enough."""
        self.paused = False
        if self._flowing is not None:
            self._flowing.set()

    def lose(self) -> None:
        """The connection is over."""
        self.lost = True
        self.resume()

    async def drain(self) -> None:
        """Wait until the peer has read enough.

        Raises:
            ConnectionResetError: it will not.
        """
        while self.paused and self._flowing is not None:
            await self._flowing.wait()
        if self.lost:
            raise ConnectionResetError("connection lost")

    def acknowledge(self) -> None:
        """Acknowledge at once what was read, for MTAs that write macros and command in two pieces.

        To be called after each read that is not answered: a reply carries the acknowledgement with it, and
        one of its own costs more than the rest of an event. Linux forgets the option, so setting it once is
        not enough.
        """
        if not self._tcp:
            return
        raw = self._raw
        if raw is None:
            raw = self._raw = self.transport.get_extra_info("socket")
            self._tcp = raw is not None
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class Reader(asyncio.BufferedProtocol):
    """The incoming half of a connection; tells at once when the peer has left.

    It is also what its session's task awaits for more: a future in all but name (`asyncio.isfuture`), which
    lets the task go on at once, and not in the next turn of the event loop.

    Args:
        room: where to read to.
        on_made: called when there is a connection: it sets the callbacks, or aborts.
        loop: that the connection belongs to.
        tcp: whether it is one of TCP.

    Attributes:
        left: whether the peer has closed or broken the connection; unread data may still be there.
        waking: whether the session's task goes on because of what came just now.
        feed: takes what came: memory that will soon hold something else, and how much of it.
        on_left: called when the peer leaves, also while nobody reads.
        on_suspended: called when the session began to wait for something else than more data.
        writer: the other half.
    """

    _asyncio_future_blocking = False

    def __init__(
        self, room: Room, on_made: Callable[["Reader"], None], loop: asyncio.AbstractEventLoop, *, tcp: bool
    ) -> None:
        self.left = False
        self.waking = False
        self.feed: Callable[[memoryview, int], None] = _ignore
        self.on_left: Callable[[], None] | None = None
        self.on_suspended: Callable[[], None] | None = None
        self.writer: Writer
        self._on_made = on_made
        self._loop = loop
        self._tcp = tcp
        self._memory = room.memory
        self._view = room.view
        self._waiting = 0
        self._held_up = False
        self._error: Exception | None = None
        self._cancelled: str | None = None
        self._wakeup: Callable[[Reader], None] | None = None
        self._context: Context

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is made."""
        self.writer = Writer(cast("asyncio.Transport", transport), tcp=self._tcp)
        self._on_made(self)

    def get_buffer(self, _sizehint: int) -> bytearray:
        """Where to read to."""
        return self._memory

    def buffer_updated(self, nbytes: int) -> None:
        """The peer sent something."""
        self.feed(self._view, nbytes)
        self._waiting += nbytes
        if self._wakeup is not None:
            self._wake()
        if self._waiting > _READ_AHEAD and not self._held_up:
            self._held_up = True
            self.writer.transport.pause_reading()

    def eof_received(self) -> bool:
        """The peer has closed the connection; it may still read."""
        self._leave()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._error = exc
        self.writer.lose()
        self._leave()

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        self.writer.pause()

    def resume_writing(self) -> None:
        """The peer has read enough."""
        self.writer.resume()

    def leave_alone(self) -> None:
        """Forget the session: it is over."""
        self.feed, self.on_left, self.on_suspended = _ignore, None, None

    def _leave(self) -> None:
        self.left = True
        if self._wakeup is not None:
            self._wake()
        if self.on_left is not None:
            self.on_left()

    # What the session calls

    @property
    def awaited(self) -> bool:
        """Whether the session waits for more."""
        return self._wakeup is not None

    def proceed(self) -> bool:
        """Whether something came since the last call; False at the end. To be called when this was awaited.

        Raises:
            OSError: the connection broke.
        """
        if self._waiting:
            self._waiting = 0
            if self._held_up:
                self._held_up = False
                if not self.left:
                    self.writer.transport.resume_reading()
            return True
        if self._error is not None:
            raise self._error
        return False

    # What a task calls that awaits this object

    def __await__(self) -> Generator[Any, None, None]:
        # Any iterator will do, and these cost less than a generator.
        if self._waiting or self.left:
            return cast("Generator[Any, None, None]", iter(()))
        self._asyncio_future_blocking = True
        return cast("Generator[Any, None, None]", iter((self,)))

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """That the connection belongs to."""
        return self._loop

    def add_done_callback(self, callback: Callable[["Reader"], None], *, context: Context) -> None:
        """Have the task go on when something came."""
        self._wakeup = callback
        self._context = context

    def result(self) -> None:
        """Nothing, or the task's cancellation."""
        if self._cancelled is not None:
            message, self._cancelled = self._cancelled, None
            raise asyncio.CancelledError(message)

    def cancel(self, msg: str | None = None) -> bool:
        """Have the task go on with its cancellation."""
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is None:
            return False
        self._cancelled = msg or ""
        self._loop.call_soon(wakeup, self, context=self._context)
        return True

    def _wake(self) -> None:
        wakeup, self._wakeup = self._wakeup, None
        assert wakeup is not None
        self.waking = True
        self._context.run(wakeup, self)
        self.waking = False
        if self.on_suspended is not None and self._wakeup is None:
            self.on_suspended()


def _ignore(_view: memoryview, _size: int) -> None:
    """Of a connection that nobody serves."""


class Deadline:
    """One timer for many deadlines: moving it costs nothing, the timer looks again when it fires."""

    __slots__ = ("_expired", "_handle", "_looks", "_loop", "_when")

    def __init__(self, expired: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._expired = expired
        self._when = 0.0
        self._looks = math.inf
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Call `expired` in so many seconds, and not at the time that was set before."""
        self._when = self._loop.time() + seconds
        if self._when < self._looks:
            self._stop()
            self._arm()

    def _arm(self) -> None:
        self._looks = self._when
        self._handle = self._loop.call_at(self._when, self._look)

    def _look(self) -> None:
        if self._loop.time() >= self._when:
            self._handle, self._looks = None, math.inf
            self._expired()
        else:
            self._arm()

    def end(self) -> None:
        """Never call `expired`, and forget it: it leads back to who has this timer."""
        self._stop()
        self._expired = _nothing

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle, self._looks = None, math.inf


def _nothing() -> None:
    """Nobody waits for a deadline."""
