"""Connections to one next hop that are kept for the next message.

A connection is kept only if nothing of its last client is bound to it and no transaction is open. The one
that was used last is taken first, so that the others grow old and go when few are needed. One that has died
in the meantime is not handed out if that is known; if it is not known yet, the first command finds out,
before anything can have been accepted.

There is no upper limit for connections in use: each belongs to one client session, and those are limited.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from milterchain.errors import NextHopLoginError, NextHopTimeoutError
from milterchain.proxy.nexthop import LMTPHop, SMTPHop
from milterchain.smtp.client import SMTPClient
from milterchain.smtp.client_auth import Credentials, authenticate
from milterchain.smtp.client_options import ClientOptions

__all__ = ["Pool", "PoolOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """What is kept, and for how long.

    Attributes:
        max_idle: connections that are kept without use.
        idle_timeout: how long each; well below the 300 s after which Postfix hangs up.
        lifetime: age from which on a connection is not kept any more, that a hop behind several addresses
            gets its turn (Postfix's `smtp_connection_reuse_time_limit`).
        open_timeout: for connection, greeting and EHLO of one connection together: a client waits for its
            RCPT meanwhile.
    """

    max_idle: int = 20
    idle_timeout: float = 30.0
    lifetime: float = 300.0
    open_timeout: float = 60.0


class Pool:
    """Connections to one next hop.

    Args:
        hop: whom they lead to.
        client: how it is spoken to.
        options: what is kept.
        credentials: our own login there.

    Attributes:
        hop: whom they lead to.
        features: what it offered at its last greeting; None before the first one.
    """

    def __init__(
        self,
        hop: SMTPHop | LMTPHop,
        client: ClientOptions,
        options: PoolOptions,
        credentials: Credentials | None = None,
    ) -> None:
        self.hop = hop
        self._credentials = credentials
        self.features: Mapping[bytes, bytes] | None = None
        self._client_options = client
        self._options = options
        self._idle: deque[tuple[float, SMTPClient]] = deque()
        self._leaving: set[SMTPClient] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def idle(self) -> int:
        """How many connections are kept."""
        return len(self._idle)

    def take(self) -> SMTPClient | None:
        """Take the kept connection that was used last, None if none is usable."""
        while self._idle:
            _, client = self._idle.pop()
            if client.usable:
                return client
        return None

    async def open(self) -> SMTPClient:
        """Open a new connection.

        Raises:
            NextHopError: that is not possible.
        """
        try:
            async with asyncio.timeout(self._options.open_timeout):
                client = await SMTPClient.open(self.hop.address, self._client_options)
                await self._log_in(client)
        except TimeoutError:
            raise NextHopTimeoutError(f"no session within {self._options.open_timeout:g} s") from None
        self.features = client.features
        return client

    async def _log_in(self, client: SMTPClient) -> None:
        if self._credentials is None:
            return
        try:
            reply = await authenticate(client, self._credentials)
        except BaseException:
            client.close()
            raise
        if not reply.positive:
            client.close()
            raise NextHopLoginError(f"refused our login: {reply}")

    def give(self, client: SMTPClient) -> None:
        """Give a connection back, after the last reply of its transaction."""
        now = asyncio.get_running_loop().time()
        if not client.usable:
            client.close()
        elif self._closed or now - client.opened_at > self._options.lifetime:
            self.leave(client)
        else:
            self._idle.append((now, client))
            if len(self._idle) > self._options.max_idle:
                self.leave(self._idle.popleft()[1])
            if self._timer is None:
                self._ring_in(self._options.idle_timeout)

    async def close(self) -> None:
        """Say QUIT on all kept connections, and wait for the ends. What is given back later is not kept."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle:
            self.leave(self._idle.popleft()[1])
        for client in tuple(self._leaving):
            await client.wait_closed()
            self._leaving.discard(client)

    def leave(self, client: SMTPClient) -> None:
        """Say QUIT on a connection that nobody may use any more."""
        self._leaving = {each for each in self._leaving if each.failure is None}
        self._leaving.add(client)
        client.quit()

    def _ring_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._sweep)

    def _sweep(self) -> None:
        """Let go of what was idle too long or has died; one timer serves all."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        kept: deque[tuple[float, SMTPClient]] = deque()
        for since, client in self._idle:
            if client.usable and now - since < self._options.idle_timeout:
                kept.append((since, client))
            else:
                self.leave(client)
        self._idle = kept
        if kept:
            self._ring_in(kept[0][0] + self._options.idle_timeout - now)
