"""A TCP relay in front of the next hop that can cut it off at any moment but one.

An SMTP server that dies after it took responsibility for a message and before its `250` got through
leaves the sender in doubt: the sender has to say 4xx, and yet the message may be delivered (RFC 1047).
No relay can do better, so a test that demands "what was told 4xx did not arrive" has to keep out of
that one window, and only there.  The gate does: it lets a final dot pass only while it is open, and
before a cut it waits until each final dot that did pass has its answer delivered.  Everything else may
be torn at any byte: greeting, commands, content, and, seen from the sender, also the time after its
own final dot, which then never reached the server.
"""

import asyncio
import random
from typing import Self

END = b"\r\n.\r\n"
ANSWER_TIMEOUT = 30.0
"""Seconds in which the next hop has to answer the final dots that it got."""


class _Pair:
    """One connection through the gate."""

    def __init__(self, gate: "Gate"):
        self.gate = gate
        self.client: asyncio.Transport | None = None
        self.server: asyncio.Transport | None = None
        self.held = bytearray()
        self.content = False
        # A final dot has passed, its answer has not.
        self.awaiting = False
        self._tail = b""
        self._line = b""
        self._left = gate.allowance()

    def from_client(self, data: bytes) -> None:
        """Forward, or hold while the gate is closed or the server not yet connected."""
        self.held += data
        self.flush()

    def flush(self) -> None:
        """Forward what is held, if that is allowed now."""
        if self.server is None or not self.gate.open or not self.held:
            return
        data = bytes(self.held)
        self.held.clear()
        if self._left is None or self.awaiting:
            self._watch(data)
            self.server.write(data)
            return
        data, rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        dot_passed = self._watch(data)
        self.server.write(data)
        if dot_passed:
            # From here on this connection is not cut any more.
            self._left = None
            self.held += rest
            self.flush()
        elif rest:
            self.gate.cuts += 1
            self.abort()

    def _watch(self, data: bytes) -> bool:
        if not self.content:
            return False
        seen = self._tail + data
        if END in seen:
            self.content, self.awaiting = False, True
        self._tail = seen[-len(END) + 1 :]
        return self.awaiting

    def from_server(self, data: bytes) -> None:
        """Forward, and notice where content begins and where it is answered."""
        *lines, self._line = (self._line + data).split(b"\r\n")
        for line in lines:
            if line.startswith(b"354"):
                # An empty message has no line before its final dot.
                self.content, self._tail = True, b"\r\n"
            elif self.awaiting and line[3:4] == b" ":
                self.awaiting = False
                self.gate.answered.set()
        if self.client is not None:
            self.client.write(data)

    def abort(self) -> None:
        """Tear both directions."""
        self.gate.pairs.discard(self)
        self.awaiting = False
        self.gate.answered.set()
        if self.server is not None:
            self.server.abort()
        if self.client is not None:
            # Not abort(): an answer that was written must still be readable.
            self.client.close()


class _ClientSide(asyncio.Protocol):
    def __init__(self, gate: "Gate"):
        self._pair = _Pair(gate)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._pair.gate.closed:
            transport.abort()  # accepted just before the end
            return
        self._pair.gate.transports.add(transport)
        self._pair.client = transport
        self._pair.gate.pairs.add(self._pair)
        self._pair.gate.connect(self._pair)

    def data_received(self, data: bytes) -> None:
        self._pair.from_client(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._pair.gate.transports.discard(self._pair.client)
        if self._pair.server is not None:
            self._pair.server.close()
        self._pair.gate.pairs.discard(self._pair)


class _ServerSide(asyncio.Protocol):
    def __init__(self, pair: _Pair):
        self._pair = pair

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._pair.gate.transports.add(transport)
        self._pair.server = transport
        self._pair.flush()

    def data_received(self, data: bytes) -> None:
        self._pair.from_server(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._pair.gate.transports.discard(self._pair.server)
        self._pair.abort()


class Gate:
    """The relay.

    Attributes:
        address: where it listens, as `HOST:PORT`.
        cuts: connections torn one by one.
    """

    def __init__(self, target: str, address: str, *, seed: int, cut_one_in: int):
        self.address = address
        self.cuts = 0
        self.open = True
        self.closed = False
        self.pairs: set[_Pair] = set()
        self.transports: set[asyncio.Transport | None] = set()
        self.answered = asyncio.Event()
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._chance = random.Random(f"{seed}/gate")
        self._cut_one_in = cut_one_in
        self._server: asyncio.Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True
        self._stop_listening()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for transport in list(self.transports):
            if transport is not None:
                transport.abort()
        # Closed only when the loop has told them so; one that the loop outlives is a warning.
        while self.transports:  # noqa: ASYNC110 - each turn of the loop closes some
            await asyncio.sleep(0)

    async def listen(self) -> None:
        """Take connections (again)."""
        host, _, port = self.address.rpartition(":")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _ClientSide(self), host, int(port), backlog=512, reuse_address=True
        )
        self.open = True

    def allowance(self) -> int | None:
        """How many bytes a new connection may send before it is cut; None: no cut."""
        if self._chance.randrange(self._cut_one_in):
            return None
        return int(self._chance.expovariate(1 / 20_000))

    def connect(self, pair: _Pair) -> None:
        """Open the server's side of a connection."""
        task = asyncio.get_running_loop().create_task(self._connect(pair))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, pair: _Pair) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _ServerSide(pair), *self._target)
        except OSError:
            pair.abort()

    async def close_for_cut(self) -> None:
        """Let no more bytes pass to the server, and wait until every final dot that passed is answered."""
        self.open = False
        async with asyncio.timeout(ANSWER_TIMEOUT):
            while any(pair.awaiting for pair in self.pairs):
                self.answered.clear()
                await self.answered.wait()

    def cut(self) -> None:
        """Tear all connections and refuse new ones, until `listen`."""
        self._stop_listening()
        for pair in list(self.pairs):
            pair.abort()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
