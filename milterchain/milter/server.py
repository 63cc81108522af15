"""`MilterServer`: listens for MTAs and serves each with a filter of its own.

::

    listeners = ["inet:127.0.0.1:8890", Listener("unix:/run/my/milter.sock", mode=0o660)]
    async with MilterServer(MyFilter, listeners):
        await stop.wait()

`close` breaks all connections; `shutdown` first lets the SMTP sessions that are open come to their end.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from milterchain.errors import MilterConnectError
from milterchain.milter.endpoint import Endpoint, parse_endpoint
from milterchain.milter.filter import Milter
from milterchain.milter.server_factory import DynamicFactory, Factory, MilterMaker
from milterchain.milter.server_options import NegotiationOptions, ServerOptions
from milterchain.milter.server_session import ServerSession
from milterchain.milter.server_sockets import UnixSocketFile
from milterchain.milter.server_streams import Reader, Room

__all__ = ["Listener", "MilterServer"]

_log = logging.getLogger("milterchain.milter.server")

_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Listener:
    """Where to listen.

    Attributes:
        endpoint: an address; port 0 lets the system choose.
        mode: the permissions of a unix socket; None leaves them to the umask.
        owner: the user that a unix socket is to belong to, by name or number; None for that of the process.
        group: the group that a unix socket is to belong to, likewise.
    """

    endpoint: str | Endpoint
    mode: int | None = None
    owner: str | int | None = None
    group: str | int | None = None


class MilterServer:
    """The filter side of the milter protocol, as an async context manager.

    Args:
        factory: makes a `Milter` for each SMTP session; a subclass of `Milter` is one. See `dynamic` for
            factories that decide by what was negotiated.
        listeners: where to listen; all of them, or none if one fails.
        options: limits.
        negotiation: what to negotiate; what it does not say, the filters say.

    Attributes:
        endpoints: where it listens, with the ports that the system chose.
    """

    def __init__(
        self,
        factory: Factory,
        listeners: Sequence[str | Endpoint | Listener],
        *,
        options: ServerOptions | None = None,
        negotiation: NegotiationOptions | None = None,
    ) -> None:
        self.endpoints: tuple[Endpoint, ...] = ()
        self._maker = MilterMaker(negotiation or NegotiationOptions(), plain=factory)
        self._listeners = [item if isinstance(item, Listener) else Listener(item) for item in listeners]
        self._options = options or ServerOptions()
        self._servers: list[asyncio.Server] = []
        self._files: list[UnixSocketFile] = []
        self._sessions: dict[asyncio.Task[None], ServerSession] = {}
        self._room = Room()
        self._closing = False

    @classmethod
    def dynamic(
        cls,
        factory: DynamicFactory,
        listeners: Sequence[str | Endpoint | Listener],
        *,
        options: ServerOptions | None = None,
        negotiation: NegotiationOptions | None = None,
    ) -> Self:
        """A server whose factory sees what was negotiated.

        ::

            def make(negotiated: Negotiated) -> Milter:
                return Signer() if negotiated.leading_space else Unsupported()

        What to negotiate is known before there is a filter only if the factory is a subclass of `Milter`
        (whose constructor takes the `Negotiated`); otherwise `negotiation` says it, and what it does not say
        is: every event, and every action that the MTA offers.
        """
        server = cls(Milter, listeners, options=options)
        server._maker = MilterMaker(negotiation or NegotiationOptions(), dynamic=factory)
        return server

    @property
    def handlers_made(self) -> int:
        """How many filter objects were made: one for each SMTP session."""
        return self._maker.made

    @property
    def connections(self) -> int:
        """How many MTAs are connected."""
        return len(self._sessions)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen.

        Raises:
            MilterConnectError: an address cannot be listened on; names it, and why.
            ValueError: an address cannot be read.
        """
        endpoints = []
        try:
            for listener in self._listeners:
                endpoint = listener.endpoint
                if isinstance(endpoint, str):
                    endpoint = parse_endpoint(endpoint, listening=True)
                try:
                    endpoints.append(await self._listen(endpoint, listener))
                except OSError as error:
                    reason = error.strerror or str(error)
                    raise MilterConnectError(f"cannot listen on {endpoint}: {reason}") from error
        except BaseException:
            self._stop_listening()
            raise
        self.endpoints = tuple(endpoints)

    async def shutdown(self, deadline: float) -> None:
        """Listen no more, let SMTP sessions come to their end, then close.

        Each connection is left when the MTA says QUIT or QUIT_NC, or at once if it has no SMTP session;
        messages that are open, and others in the same session, are filtered until then.

        Args:
            deadline: seconds after which what is left is broken off, as by `close`.
        """
        self._stop_listening()
        for session in self._sessions.values():
            session.drain()
        if self._sessions:
            await asyncio.wait(self._sessions, timeout=deadline)
        await self.close()

    async def close(self) -> None:
        """Listen no more and break all connections; each filter's `close` is still called."""
        self._stop_listening()
        for session in self._sessions.values():
            session.stop()
        while self._sessions:
            await asyncio.wait(self._sessions)

    def _stop_listening(self) -> None:
        self._closing = True
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        files, self._files = self._files, []
        for file in files:
            file.remove()

    async def _listen(self, endpoint: Endpoint, listener: Listener) -> Endpoint:
        self._closing = False
        loop = asyncio.get_running_loop()
        if endpoint.path is not None:
            file = UnixSocketFile(endpoint.path, listener.mode, listener.owner, listener.group)
            self._files.append(file)
            made = partial(self._protocol, loop, tcp=False)
            server = await loop.create_unix_server(made, sock=file.socket, backlog=_BACKLOG)
            self._servers.append(server)
            return endpoint
        family = socket.AF_INET6 if endpoint.family == "inet6" else socket.AF_UNSPEC
        made = partial(self._protocol, loop, tcp=True)
        server = await loop.create_server(made, endpoint.host, endpoint.port, family=family, backlog=_BACKLOG)
        self._servers.append(server)
        return replace(endpoint, port=server.sockets[0].getsockname()[1])

    def _protocol(self, loop: asyncio.AbstractEventLoop, *, tcp: bool) -> Reader:
        return Reader(self._room, self._serve, loop, tcp=tcp)

    def _serve(self, reader: Reader) -> None:
        full = len(self._sessions) >= self._options.connections
        if self._closing or full:
            if full:
                _log.warning("connection refused: there are %d", len(self._sessions))
            reader.writer.transport.abort()
            return
        session = ServerSession(self._maker, self._options, reader)
        task = asyncio.get_running_loop().create_task(session.run())
        self._sessions[task] = session
        task.add_done_callback(self._sessions.pop)
