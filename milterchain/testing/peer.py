"""What both scripted servers are made of: a listening socket, connections that record, faults.

Reading and answering are separate: what comes in is recorded at once, even while an answer waits for an
event or never comes. Nothing here has a timer except `wait_for`; a server lives until its `async with` block
ends, which breaks all connections.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from milterchain.testing.faults import Close, Fault, Garbage, Late, Reset, Silence, StopReading

__all__ = ["PATIENCE", "Peer", "ScriptedServer", "break_connection", "refusing_address"]

PATIENCE = 10.0
"""Seconds that `wait_for` waits: longer than anything on loopback takes, shorter than a test's own limit."""

_READ_SIZE = 256 * 1024
_LINGER_NOT = struct.pack("ii", 1, 0)


class Hangup(Exception):  # noqa: N818 - no error: the conversation is over
    """The connection is gone; what was scripted further does not happen."""


def break_connection(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST; on a unix socket, which knows none, by a plain close."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.family != socket.AF_UNIX:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    writer.transport.abort()


class Peer:
    """One connection of a scripted server.

    Attributes:
        reads: the bytes of each read, in order; what was written at once arrives at once on loopback, as long
            as this side is not busy.
        closed: whether the connection is over.
        closed_by_peer: whether the other side ended it.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, changed: Callable[[], None]
    ):
        self.reads: list[bytes] = []
        self.closed = False
        self.closed_by_peer = False
        self._reader = reader
        self._writer = writer
        self._changed = changed
        self._news = asyncio.Event()
        self._gone = asyncio.Event()
        self._resume_at: asyncio.Event | None = None

    def received(self, data: bytes) -> None:
        """Record one read; subclasses parse it."""
        self.reads.append(data)

    async def read_all(self) -> None:
        """Read and record until the peer closes."""
        while True:
            if self._resume_at is not None:
                await self._resume_at.wait()
                self._resume_at = None
            try:
                data = await self._reader.read(_READ_SIZE)
            except OSError:
                data = b""
            if not data:
                break
            self.received(data)
            self._tell()
        if not self.closed:
            self.closed = self.closed_by_peer = True
            self._gone.set()
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._changed()

    async def news(self) -> None:
        """Wait until something was read.

        Raises:
            Hangup: the peer has closed instead.
        """
        if self.closed:
            raise Hangup
        self._news.clear()
        await self._news.wait()

    async def send(self, data: bytes) -> None:
        """Write, and wait until the transport has taken it."""
        if self._writer.is_closing():
            raise Hangup  # uvloop's transports raise RuntimeError
        self._writer.write(data)
        try:
            await self._writer.drain()
        except OSError:
            raise Hangup from None

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Let the peer begin TLS.

        Raises:
            Hangup: it did not.
        """
        try:
            await self._writer.start_tls(context)
        except OSError:
            raise Hangup from None

    async def commit(self, fault: Fault) -> None:
        """Do what a script says is to go wrong.

        Raises:
            Hangup: the connection is over now.
        """
        match fault:
            case Close():
                self._end()
                raise Hangup
            case Reset():
                break_connection(self._writer)
                self._end()
                raise Hangup
            case Silence():
                pass
            case Garbage(data):
                await self.send(data)
            case Late(event):
                await self._until(event)
            case StopReading(event):
                self._resume_at = event

    async def _until(self, event: asyncio.Event) -> None:
        """Wait for the event, or for the peer to go away (Hangup)."""
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(either.wait()) for either in (event, self._gone)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if not event.is_set():
            raise Hangup

    def _end(self) -> None:
        self.closed = True
        self._writer.close()
        self._tell()


P = TypeVar("P", bound=Peer)


class ScriptedServer(ABC, Generic[P]):
    """A server on a real socket, as an async context manager.

    Attributes:
        connections: one object for each connection that was made, in order.
    """

    def __init__(
        self,
        *,
        unix_path: str | Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._context = tls
        self.connections: list[P] = []
        self._unix_path = None if unix_path is None else str(unix_path)
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._errors: list[Exception] = []

    @abstractmethod
    def _peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> P:
        """Make the object for a new connection."""

    @abstractmethod
    async def _converse(self, peer: P) -> None:
        """Follow the script until the connection is over."""

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`, or the path of the unix socket."""
        return self._unix_path or f"{self._host}:{self.port}"

    @property
    def port(self) -> int:
        """The TCP port, 0 for a unix socket."""
        return self._port

    def changed(self) -> None:
        """Something was recorded: let `wait_for` look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait_for(self, condition: Callable[[], object], *, within: float = PATIENCE) -> None:
        """Wait until a condition on what was recorded holds.

        Raises:
            AssertionError: it does not hold in time; the text shows what was recorded.
        """
        try:
            async with asyncio.timeout(within):
                while not condition():
                    future = asyncio.get_running_loop().create_future()
                    self._waiting.append(future)
                    await future
        except TimeoutError:
            raise AssertionError(f"not within {within} s; recorded: {self.connections!r}") from None

    async def wait_closed(self, index: int = 0, *, within: float = PATIENCE) -> P:
        """Wait until the connection with this index was made and is over; return it."""
        await self.wait_for(
            lambda: len(self.connections) > index and self.connections[index].closed, within=within
        )
        return self.connections[index]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """Listen; after `stop`, again at the same address."""
        if self._unix_path is not None:
            self._server = await asyncio.start_unix_server(self._handle, self._unix_path)
        else:
            self._server = await asyncio.start_server(self._handle, self._host, self._port, ssl=self._context)
            self._port = self._server.sockets[0].getsockname()[1]

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
        if error is None and self._errors:
            raise ExceptionGroup("the script failed", self._errors)

    async def stop(self) -> None:
        """Listen no more and break all connections, as a daemon that dies does. May be called twice."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            if self._unix_path is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._unix_path)  # noqa: PTH108 - no blocking Path methods in a coroutine
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        peer = self._peer(reader, writer)
        self.connections.append(peer)
        self.changed()
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(peer.read_all())
                with contextlib.suppress(Hangup):
                    await self._converse(peer)
                reading.cancel()
        except* Hangup:
            pass
        except* asyncio.CancelledError:
            pass  # by stop; streams of Python 3.11 would report it as an error
        except* Exception as group_error:  # noqa: BLE001 - kept for the end of the test
            self._errors += group_error.exceptions
        finally:
            peer.closed = True
            writer.close()
            self.changed()


@contextlib.contextmanager
def refusing_address(host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """A host and port where connections are refused for as long as the block runs: bound, never listening."""
    with socket.socket() as holder:
        holder.bind((host, 0))
        yield host, holder.getsockname()[1]
