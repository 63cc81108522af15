"""The SMTP server: listens, admits connections within limits, and stops in good order.

::

    server = SMTPServer(factory, ServerOptions(hostname=b"mx.example.org"))
    bound = await server.start([Listener(host="127.0.0.1", port=2525)])
    ...
    await server.drain(timeout=30)

`drain` stops listening, closes idle sessions with 421, lets transactions under way come to their end,
and closes what is left when the time is over. `close` does the same without waiting for transactions.
"""

import asyncio
import errno
import logging
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Self

from milterchain.mail.replies import Reply
from milterchain.smtp import answers
from milterchain.smtp.handler import HandlerFactory, SessionInfo
from milterchain.smtp.options import Listener, ServerOptions
from milterchain.smtp.peer import counted_as
from milterchain.smtp.recent import RecentConnections
from milterchain.smtp.session import SMTPSession
from milterchain.smtp.sockets import UnixSocketFile, tcp_socket, unix_socket

__all__ = ["SMTPServer"]

BACKLOG = 1024
"""Connections that the system may hold for us: a burst that large should not see refusals."""
CLOSE_GRACE = 5.0
"""Seconds that sessions which were told to end have to take leave of milters and next hop."""
REFUSALS_TOLD = 60.0
"""Seconds between two lines in the log that tell of refused connections."""

_logger = logging.getLogger(__name__)


class SMTPServer:
    """All listeners and sessions of one configuration.

    Attributes:
        options: what is allowed.
        factory: makes the handler of each session.
        draining: no more connections are taken.
    """

    def __init__(self, factory: HandlerFactory, options: ServerOptions) -> None:
        self.options = options
        self.factory = factory
        self.draining = False
        self._servers: list[asyncio.Server] = []
        self._files: list[UnixSocketFile] = []
        self._sessions: dict[SMTPSession, str] = {}
        self._per_client: Counter[str] = Counter()
        self._recent = RecentConnections()
        self._lingering: set[SMTPSession] = set()
        self._refused = 0
        self._tell_from = 0.0
        self._empty = asyncio.Event()
        self._empty.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connections(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    async def start(self, listeners: Sequence[Listener], *, reuse_port: bool = False) -> tuple[Listener, ...]:
        """Listen. If one listener fails, none is left open.

        Args:
            listeners: where.
            reuse_port: let several processes share TCP ports (SO_REUSEPORT).

        Returns:
            The addresses that are bound: hosts as IP addresses, ports as the system chose them.

        Raises:
            OSError: an address cannot be had; the text names it.
        """
        bound: list[Listener] = []
        try:
            for listener in listeners:
                try:
                    bound += await self._listen(listener, reuse_port=reuse_port)
                except OSError as error:
                    raise OSError(error.errno, f"{listener}: {error.strerror or error}") from error
                except UnicodeError as error:
                    raise OSError(errno.EINVAL, f"{listener}: no host name") from error
        except OSError:
            self._stop_listening()
            raise
        return tuple(bound)

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - what happens then is the point
        """Stop: idle sessions at once, the others when their transaction is over or the time is up."""
        self._begin_to_stop()
        for session in list(self._sessions):
            session.drain()
        await self._wait_empty(timeout)
        await self.close()

    async def close(self) -> None:
        """Stop now: every session hears 421, whatever it is doing."""
        self._begin_to_stop()
        for session in list(self._sessions):
            session.end(answers.SHUTTING_DOWN)
        await self._wait_empty(CLOSE_GRACE)
        for session in [*self._sessions, *self._lingering]:
            session.abort()
        await self._wait_empty(CLOSE_GRACE)
        if self._sessions:
            _logger.error("%d sessions could not be ended", len(self._sessions))

    # What sessions call.

    def admit(self, session: SMTPSession, info: SessionInfo, *, for_others: bool = False) -> Reply | None:
        """Count a session in; a reply refuses it. Who speaks for others may have many."""
        if self.draining:
            return answers.SHUTTING_DOWN
        client = counted_as(info)
        options = self.options
        if len(self._sessions) + len(self._lingering) >= options.connections:
            return self._refuse("too many connections", options.connections, client)
        if not for_others and (refusal := self._too_many(client, info)) is not None:
            return refusal
        self._sessions[session] = client
        self._per_client[client] += 1
        self._recent.add(client)
        self._empty.clear()
        return None

    def readmit(self, session: SMTPSession, info: SessionInfo) -> Reply | None:
        """Count a session for the client that it turned out to be of; a reply refuses it."""
        client, before = counted_as(info), self._sessions[session]
        if client == before:
            return None
        if (refusal := self._too_many(client, info)) is not None:
            return refusal
        self._sessions[session] = client
        self._per_client[client] += 1
        self._recent.add(client)
        self._uncount(before)
        return None

    def count(self, session: SMTPSession) -> int:
        """How many sessions the client of this one has."""
        return self._per_client[self._sessions[session]]

    def rate(self, session: SMTPSession) -> int:
        """How often the client of this one has connected in the last minute."""
        return self._recent.of(self._sessions[session])

    def _too_many(self, client: str, info: SessionInfo) -> Reply | None:
        allowed = self.options.connections_per_client
        if self._per_client.get(client, 0) < allowed or self._is_unlimited(info):
            return None
        return self._refuse("too many connections of one client", allowed, client)

    def _uncount(self, client: str) -> None:
        self._per_client[client] -= 1
        if not self._per_client[client]:
            del self._per_client[client]

    def _refuse(self, why: str, limit: int, client: str) -> Reply:
        """Refuse a connection. The log hears of it, but a flood must not become a flood of lines."""
        self._refused += 1
        now = time.monotonic()
        if now >= self._tell_from:
            _logger.warning("%s: %d allowed; %d refused, %s last", why, limit, self._refused, client)
            self._refused = 0
            self._tell_from = now + REFUSALS_TOLD
        return answers.TOO_MANY_CONNECTIONS

    def forget(self, session: SMTPSession) -> None:
        """The session, which was admitted, is over; its connection may linger."""
        self._uncount(self._sessions.pop(session))
        if session.transport is not None:
            self._lingering.add(session)
        self._look_if_empty()

    def lost(self, session: SMTPSession) -> None:
        """The connection of the session is closed."""
        self._lingering.discard(session)
        self._look_if_empty()

    def _begin_to_stop(self) -> None:
        self._stop_listening()
        self.draining = True
        # They have heard all that we have to say.
        for session in list(self._lingering):
            session.abort()

    def _look_if_empty(self) -> None:
        if not self._sessions and not self._lingering:
            self._empty.set()

    def _is_unlimited(self, info: SessionInfo) -> bool:
        if info.family not in {"4", "6"}:
            return True
        address = ip_address(info.address)
        return any(address in network for network in self.options.unlimited_clients)

    async def _wait_empty(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()

    # Listening.

    async def _listen(self, listener: Listener, *, reuse_port: bool) -> list[Listener]:
        loop = asyncio.get_running_loop()
        make = partial(SMTPSession, self, listener, loop)
        if listener.path is not None:
            sock = unix_socket(listener.path, listener.mode)
            self._files.append(UnixSocketFile(listener.path))
            self._servers.append(await loop.create_unix_server(make, sock=sock, backlog=BACKLOG))
            return [listener]
        found = await loop.getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = []
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            sock = tcp_socket(family, address, reuse_port=reuse_port)
            self._servers.append(await loop.create_server(make, sock=sock, backlog=BACKLOG))
            host, port = sock.getsockname()[:2]
            bound.append(replace(listener, host=host, port=port))
        return bound

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()
        for file in self._files:
            file.remove()
        self._files.clear()
