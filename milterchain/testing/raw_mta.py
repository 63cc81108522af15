"""The MTA's side, message by message, against a filter on a real socket.

Says what it is told to, right or wrong, and shows what comes back::

    async with RawMta(endpoint) as mta:
        await mta.negotiate()
        assert await mta.ask(Mail(b"<a@x.test>")) == Continue()
        *edits, verdict = await mta.answers(EndOfMessage())
"""

import asyncio
import contextlib
import struct
from typing import Self

from milterchain.milter.endpoint import Endpoint, parse_endpoint
from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, Action, Protocol
from milterchain.milter.messages import (
    AnyCommand,
    AnyResponse,
    Modification,
    OptNeg,
    Progress,
    Quarantine,
    decode_response,
)
from milterchain.testing.peer import PATIENCE, break_connection

__all__ = ["RawMta"]

_LENGTH = struct.Struct("!I")


class RawMta:
    """One connection to a filter, as an async context manager.

    Every wait for an answer ends with a `TimeoutError` after `PATIENCE` seconds.
    """

    def __init__(self, endpoint: str | Endpoint) -> None:
        self._endpoint = parse_endpoint(endpoint) if isinstance(endpoint, str) else endpoint
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        if self._endpoint.path is not None:
            connecting = asyncio.open_unix_connection(self._endpoint.path)
        else:
            connecting = asyncio.open_connection(self._endpoint.host, self._endpoint.port)
        self._reader, self._writer = await connecting
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def negotiate(
        self, *, version: int = 6, actions: Action = ALL_ACTIONS, protocol: Protocol = ALL_PROTOCOL
    ) -> OptNeg:
        """Offer, and return the filter's answer."""
        answer = await self.ask(OptNeg(version=version, actions=actions, protocol=protocol))
        assert isinstance(answer, OptNeg)
        return answer

    def send(self, *messages: AnyCommand | bytes) -> None:
        """Send messages, or bytes as they are, in one write."""
        self._writer.write(b"".join(map(_packet, messages)))

    async def receive(self) -> AnyResponse:
        """The next packet.

        Raises:
            asyncio.IncompleteReadError: the filter closed the connection.
        """
        async with asyncio.timeout(PATIENCE):
            (length,) = _LENGTH.unpack(await self._reader.readexactly(4))
            packet = await self._reader.readexactly(length)
        return decode_response(packet[0], packet[1:])

    async def ask(self, *messages: AnyCommand | bytes) -> AnyResponse:
        """Send, and return the next packet."""
        self.send(*messages)
        return await self.receive()

    async def answers(self, *messages: AnyCommand | bytes) -> list[AnyResponse]:
        """Send, and return the packets up to the first final reply."""
        self.send(*messages)
        received = [await self.receive()]
        while isinstance(received[-1], Modification | Quarantine | Progress):
            received.append(await self.receive())
        return received

    async def reset(self) -> None:
        """Break the connection as an MTA that dies does: RST on TCP."""
        break_connection(self._writer)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def closed(self) -> bytes:
        """Wait until the filter closes the connection; return what came before."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read()


def _packet(message: AnyCommand | bytes) -> bytes:
    if isinstance(message, bytes):
        return message
    payload = message.encode()
    return _LENGTH.pack(len(payload) + 1) + bytes((message.code,)) + payload
