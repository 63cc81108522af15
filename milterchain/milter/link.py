"""The transport below a milter session: writing, acknowledging, deadlines, and how it ends.

Knows the state of the protocol only to say in errors what was awaited. What waits for replies is `client`'s.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import cast

from milterchain.errors import MilterClosedError, MilterError, MilterTimeoutError
from milterchain.milter.connection import Connection
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.flags import Command

__all__ = ["MilterLink", "reason"]

_TCP_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)


def reason(error: OSError) -> str:
    """What the system says, with the symbol of the number, by which administrators search."""
    if error.errno is None or error.errno not in errno.errorcode:
        return str(error)
    return f"{os.strerror(error.errno)} [{errno.errorcode[error.errno]}]"


class MilterLink(asyncio.Protocol):
    """One connection to a milter.

    Attributes:
        endpoint: where the milter listens.
        opened_at: the loop time at which the connection was made.
        closed: whether the session is over, for whatever reason: no command can be sent any more.
        failure: what ended the connection; None while it works and after an orderly end.
        paused: whether the peer does not take more data for now.
    """

    def __init__(
        self, endpoint: Endpoint, connection: Connection, timeout: float, total_timeout: float
    ) -> None:
        self.endpoint = endpoint
        self.opened_at = 0.0
        self.closed = False
        self.failure: MilterError | None = None
        self.paused = False
        self._connection = connection
        self._total_timeout = total_timeout
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._quickack: Callable[[int, int, int], object] | None = None
        self._gone = False
        self._going: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._timeout = timeout
        self._deadline: float | None = None
        self._total = 0.0

    def close(self) -> None:
        """Close without QUIT, after what was written; what awaits a reply fails."""
        if self.closed:
            return
        self.closed = True
        self._connection.close()
        self._release()
        if self._transport is not None:
            self._transport.close()
            self._limit(self._timeout)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed; it does not close it."""
        if self._transport is None or self._gone:
            return
        if self._going is None:
            self._going = self._loop.create_future()
        await asyncio.shield(self._going)

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self.opened_at = self._loop.time()
        if self.endpoint.path is not None:
            return
        tcp = transport.get_extra_info("socket")
        if tcp is not None and tcp.family in {socket.AF_INET, socket.AF_INET6}:  # dialers choose
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _TCP_QUICKACK is not None:
                self._quickack = tcp.setsockopt

    def eof_received(self) -> None:
        """See `asyncio.Protocol`."""
        self._fail(MilterClosedError(f"closed the connection{self._where()}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if not self.closed:
            why = f": {reason(exc)}" if isinstance(exc, OSError) else ""
            self._fail(MilterClosedError(f"lost the connection{self._where()}{why}"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._gone = True
        if self._going is not None:
            self._going.set_result(None)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.paused = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.paused = False
        self._wake()

    # Writing and time

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)
        if self._quickack is not None:
            self._acknowledge()

    def _acknowledge(self) -> None:
        # Not sticky: Linux falls back to delayed acknowledgements when data is sent. A milter that writes its
        # reply in two pieces (libmilter with edits) otherwise waits 40 ms for the first one's.
        if self._quickack is not None:
            self._quickack(socket.IPPROTO_TCP, cast("int", _TCP_QUICKACK), 1)

    def _limit(self, timeout: float, deadline: float | None = None) -> None:
        """Begin to wait."""
        now = self._loop.time()
        self._timeout = timeout
        self._total = now + self._total_timeout
        if deadline is not None and deadline < self._total:
            self._total = deadline
        self._wait_until(min(now + timeout, self._total))

    def _restart(self) -> None:
        """Start the timer again."""
        self._wait_until(min(self._loop.time() + self._timeout, self._total))

    def _wait_until(self, when: float) -> None:
        # One handle serves many waits: it looks at the deadline when it fires.
        self._deadline = when
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._expired)

    def _expired(self) -> None:
        self._timer = None
        deadline = self._deadline
        if deadline is None:
            return
        if self._loop.time() < deadline:
            self._timer_at = deadline
            self._timer = self._loop.call_at(deadline, self._expired)
        elif self.closed:
            self._abort()
        else:
            self._fail(MilterTimeoutError(f"no answer in time{self._where()}"))

    # The end

    def _where(self) -> str:
        awaited, unread = self._connection.awaited, self._connection.unread
        where = "" if awaited is None else f" when the reply to {Command(awaited).name} was due"
        return f"{where} ({unread} bytes of a packet came)" if unread else where

    def _end(self) -> MilterError:
        return self.failure or MilterClosedError(f"{self.endpoint}: the session is closed")

    def _fail(self, error: MilterError) -> None:
        """End the session by a fault."""
        if self.closed:
            return
        self.closed = True
        self.failure = type(error)(f"{self.endpoint}: {error}")
        self.failure.__cause__ = error.__cause__
        self._connection.close()
        self._release()
        self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # What `client` adds

    def _release(self) -> None:
        """Tell all who wait that the session is over."""
        raise NotImplementedError

    def _wake(self) -> None:
        """Wake a message's content, if one is under way."""
        raise NotImplementedError
