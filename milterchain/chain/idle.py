"""Connections to one milter that wait for the next SMTP session.

SMFIC_QUIT_NC ends a session for the milter and keeps its connection: the next session begins with CONNECT,
and what was negotiated still holds. That saves a connection, a negotiation and, in libmilter, a thread for
each session. Neither Postfix nor Sendmail does it, so few filters have ever met it: it is done only for
milters whose configuration says so.

libmilter (engine.c) takes SMFIC_QUIT_NC only after the end of a message that it answered with Continue; at
any other time it drops the packet, and the next CONNECT with it. So other connections are not kept.

A milter that goes away while its connection waits here is noticed as a rule. If it is not, the reply to
CONNECT fails to come; that is why CONNECT must have one.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from milterchain.milter.client import MilterSession
from milterchain.milter.flags import Command
from milterchain.milter.messages import Quit, QuitNewConnection

__all__ = ["IdleOptions", "IdleSessions"]

_QUIT = Quit()
_VERSION = 6
"""The version of the protocol that has SMFIC_QUIT_NC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleOptions:
    """How many connections wait, and for how long.

    Attributes:
        most: connections that are kept.
        idle_time: seconds that each waits at most.
        lifetime: seconds after which a connection is not kept any more, so that a milter that leaks, or that
            listens behind a balancer, gets a new one now and then.
    """

    most: int = 100
    idle_time: float = 30.0
    lifetime: float = 300.0


class IdleSessions:
    """The connections to one milter that no SMTP session uses."""

    __slots__ = ("_closed", "_options", "_sessions", "_timer")

    def __init__(self, options: IdleOptions | None = None) -> None:
        self._options = options if options is not None else IdleOptions()
        self._sessions: deque[tuple[float, MilterSession]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._sessions)

    def keep(self, session: MilterSession) -> bool:
        """End a session that has just answered the end of a message with Continue, and keep its connection.

        Returns:
            Whether it is kept; if not, it is still to be ended.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        negotiated = session.negotiated
        if (
            self._closed
            or session.closed
            or negotiated.version < _VERSION
            or not negotiated.replies(Command.CONNECT)
            or now - session.opened_at > self._options.lifetime
            or len(self._sessions) >= self._options.most
        ):
            return False
        session.send(QuitNewConnection())
        self._sessions.append((now, session))
        if self._timer is None:
            self._timer = loop.call_later(self._options.idle_time, self._sweep)
        return True

    def take(self) -> MilterSession | None:
        """The connection that was used last; None if none waits."""
        while self._sessions:
            _, session = self._sessions.pop()
            if not session.closed:
                return session
        return None

    async def close(self) -> None:
        """Close all, and keep none from now on. May be called again."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sessions = [session for _, session in self._sessions]
        self._sessions.clear()
        for session in sessions:
            session.send(_QUIT)
        for session in sessions:
            await session.wait_closed()

    def _sweep(self) -> None:
        """Close what has waited too long; one timer serves all."""
        loop = asyncio.get_running_loop()
        self._timer = None
        oldest = loop.time() - self._options.idle_time
        while self._sessions and (self._sessions[0][0] <= oldest or self._sessions[0][1].closed):
            self._sessions.popleft()[1].send(_QUIT)
        if self._sessions:
            self._timer = loop.call_at(self._sessions[0][0] + self._options.idle_time, self._sweep)
