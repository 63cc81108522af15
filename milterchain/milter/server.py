"""`MilterServer`: listens for MTAs and serves each with a filter of its own.

::

    listeners = ["inet:127.0.0.1:8890", Listener("unix:/run/my/milter.sock", mode=0o660)]
    async with MilterServer(MyFilter, listeners):
        await stop.wait()

`close` breaks all connections; `shutdown` first lets the messages that are open come to their end.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from milterchain.errors import MilterConnectError
from milterchain.milter.endpoint import Endpoint, parse_endpoint
from milterchain.milter.filter import Milter
from milterchain.milter.server_session import ServerOptions, ServerSession
from milterchain.milter.server_sockets import UnixSocketFile

__all__ = ["Listener", "MilterServer", "ServerOptions"]

_READ_AHEAD = 128 * 1024
"""Bytes of one connection that wait in memory, twice at most, while its filter works."""
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Listener:
    """Where to listen.

    Attributes:
        endpoint: an address; port 0 lets the system choose.
        mode: the permissions of a unix socket; None leaves them to the umask.
    """

    endpoint: str | Endpoint
    mode: int | None = None


class MilterServer:
    """The filter side of the milter protocol, as an async context manager.

    Args:
        factory: makes a `Milter` for each SMTP session; a subclass of `Milter` is one.
        listeners: where to listen; all of them, or none if one fails.
        options: limits.

    Attributes:
        endpoints: where it listens, with the ports that the system chose.
    """

    def __init__(
        self,
        factory: Callable[[], Milter],
        listeners: Sequence[str | Endpoint | Listener],
        *,
        options: ServerOptions | None = None,
    ) -> None:
        self.endpoints: tuple[Endpoint, ...] = ()
        self._factory = factory
        self._listeners = [item if isinstance(item, Listener) else Listener(item) for item in listeners]
        self._options = options or ServerOptions()
        self._servers: list[asyncio.Server] = []
        self._files: list[UnixSocketFile] = []
        self._sessions: dict[asyncio.Task[None], ServerSession] = {}
        self._closing = False

    @property
    def connections(self) -> int:
        """How many MTAs are connected."""
        return len(self._sessions)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
                endpoint = parse_endpoint(endpoint) if isinstance(endpoint, str) else endpoint
                try:
                    endpoints.append(await self._listen(endpoint, listener.mode))
                except OSError as error:
                    reason = error.strerror or str(error)
                    raise MilterConnectError(f"cannot listen on {endpoint}: {reason}") from error
        except BaseException:
            self._stop_listening()
            raise
        self.endpoints = tuple(endpoints)

    async def shutdown(self, deadline: float) -> None:
        """Listen no more, let open messages come to their end, then close; `deadline` is in seconds."""
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

    async def _listen(self, endpoint: Endpoint, mode: int | None) -> Endpoint:
        self._closing = False
        if endpoint.path is not None:
            file = UnixSocketFile(endpoint.path, mode)
            self._files.append(file)
            server = await asyncio.start_unix_server(
                self._serve, sock=file.socket, limit=_READ_AHEAD, backlog=_BACKLOG
            )
            self._servers.append(server)
            return endpoint
        family = socket.AF_INET6 if endpoint.family == "inet6" else socket.AF_UNSPEC
        server = await asyncio.start_server(
            self._serve, endpoint.host, endpoint.port, family=family, limit=_READ_AHEAD, backlog=_BACKLOG
        )
        self._servers.append(server)
        return replace(endpoint, port=server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing or len(self._sessions) >= self._options.connections:
            writer.transport.abort()
            return
        session = ServerSession(self._factory, self._options, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._sessions[task] = session
        try:
            await session.run()
        except asyncio.CancelledError:
            # The end of the task by `stop`; streams of Python 3.11 and 3.12 would report it as an error.
            pass
        finally:
            del self._sessions[task]
