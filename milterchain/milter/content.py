"""The content of a message on its way to one milter: headers, end of headers, body, end of message.

Sent one by one, each piece after the reply to the former, or in one stream with back-pressure while replies
are read as they come. The outcome is the same, provided that the milter, after a SKIP, has no verdict on the
pieces of that type that were under way.

Packets are built straight from bytes here: a message has many headers, and a message object for each would
cost more than all the rest. The tests hold the result against `Connection.send`.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol, cast

from milterchain.errors import LocalProtocolError, RemoteProtocolError
from milterchain.milter.connection import Connection
from milterchain.milter.flags import Command, Response
from milterchain.milter.framing import OVERHEAD, encode_packet
from milterchain.milter.messages import (
    AnyResponse,
    Continue,
    Modification,
    Quarantine,
    ReplaceBody,
    Reply,
    Skip,
)
from milterchain.milter.negotiation import Negotiated
from milterchain.milter.state import FINAL

__all__ = [
    "Content",
    "ContentResult",
    "Exchange",
    "Link",
    "MacroValues",
    "Outcome",
    "encode_header",
    "encode_macros",
]

_FLUSH = 128 * 1024
"""Bytes that are collected before they are written: an ordinary message goes out in one write."""
_BREATH = 1024 * 1024
"""Bytes after which other sessions get a turn, however fast this milter takes them."""
_EDIT_OVERHEAD = 64
"""What an edit counts besides its payload, so that a million empty ones meet a limit."""

_END_OF_HEADERS = encode_packet(Command.END_OF_HEADERS)
_END_OF_MESSAGE = encode_packet(Command.END_OF_MESSAGE)

MacroValues = Mapping[Command, Sequence[tuple[bytes, bytes]] | bytes]
"""Names and values for a command, or their packet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a milter gets to see of a message; several may get the same.

    Attributes:
        headers: name, and everything after the colon untouched, folds as LF and what followed.
        body: gives the body in pieces of exactly that many bytes, the last one shorter.
        body_size: its length.
    """

    headers: Sequence[tuple[bytes, bytes]]
    body: Callable[[int], Iterable[bytes]]
    body_size: int
    _packets: dict[tuple[bool, int], Sequence[bytes]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def header_packets(self, *, leading_space: bool, limit: int) -> Sequence[bytes]:
        """The packets of the headers, made once for all milters that get the same ones.

        Args:
            leading_space: whether a space after the colon travels.
            limit: the longest payload.

        Raises:
            LocalProtocolError: too long, or a NUL inside.
        """
        form = leading_space, limit
        packets = self._packets.get(form)
        if packets is None:
            packets = [
                encode_header(name, value, leading_space=leading_space, limit=limit)
                for name, value in self.headers
            ]
            self._packets[form] = packets
        return packets


class ContentResult(NamedTuple):
    """What a milter said to a message.

    Attributes:
        reply: its verdict; Continue and Accept mean the same at the end of a message.
        stage: the command that it answered.
        edits: the modifications, in order; void unless the verdict is Continue or Accept.
        quarantine: the reason, if it wants the message held; the last one counts.
    """

    reply: Reply
    stage: Command
    edits: tuple[Modification, ...] = ()
    quarantine: bytes | None = None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Collects the responses to one message.

    Attributes:
        max_edits: the most modifications, pieces of a new body not counted.
        max_edit_bytes: the most that all of them together may be.
        result: set by the final verdict.
        quarantine: the reason, if the milter wants the message held; the last one counts.
        skipped: the commands of which the milter wants no more.
    """

    max_edits: int
    max_edit_bytes: int
    result: ContentResult | None = None
    quarantine: bytes | None = None
    skipped: set[int] = field(default_factory=set)
    _edits: list[Modification] = field(default_factory=list)
    _counted: int = 0
    _bytes: int = 0

    def over(self) -> bool:
        """Whether there is a verdict."""
        return self.result is not None

    def received(self, command: int, event: AnyResponse) -> None:
        """Take a response to a command.

        Raises:
            RemoteProtocolError: it wants more than the limits allow.
        """
        if event.code in FINAL:
            self._final(command, cast("Reply", event))
        elif isinstance(event, Quarantine):
            self.quarantine = event.text
        else:
            self._modification(cast("Modification", event))

    def _final(self, command: int, reply: Reply) -> None:
        if command == Command.END_OF_MESSAGE:
            if isinstance(reply, Skip):
                reply = Continue()
        elif reply.code == Response.CONTINUE:
            return
        elif reply.code == Response.SKIP:
            self.skipped.add(command)
            return
        self.result = ContentResult(
            reply=reply, stage=Command(command), edits=tuple(self._edits), quarantine=self.quarantine
        )

    def _modification(self, edit: Modification) -> None:
        if isinstance(edit, ReplaceBody):
            self._bytes += len(edit.chunk)
        else:
            self._bytes += len(edit.encode())
            self._counted += 1
            if self._counted > self.max_edits:
                raise RemoteProtocolError(f"more than {self.max_edits} modifications")
        self._bytes += _EDIT_OVERHEAD
        if self._bytes > self.max_edit_bytes:
            raise RemoteProtocolError(f"modifications of more than {self.max_edit_bytes} bytes")
        self._edits.append(edit)


class Link(Protocol):
    """What an exchange needs of the session that it belongs to."""

    @property
    def paused(self) -> bool:
        """Whether the peer does not take more for now."""

    def write(self, data: bytes) -> None:
        """Write and start the timer."""

    def check(self) -> None:
        """Raise what ended the connection, unless there is a verdict.

        Raises:
            MilterError: what ended it.
        """

    async def progress(self) -> None:
        """Wait for replies, or for the peer to take data; then `check`."""


def encode_header(name: bytes, value: bytes, *, leading_space: bool, limit: int) -> bytes:
    """The packet of one header.

    Args:
        name: as received.
        value: all that follows the colon.
        leading_space: whether a space after the colon travels.
        limit: the longest payload.

    Raises:
        LocalProtocolError: too long, or a NUL inside.
    """
    if not leading_space and value[:1] == b" ":
        value = value[1:]
    size = len(name) + len(value) + 2
    if size > limit:
        raise LocalProtocolError(f"header {name[:80]!r} of {size} bytes, {limit} are the most")
    if b"\0" in value or b"\0" in name:
        raise LocalProtocolError(f"NUL inside header {name[:80]!r}")
    return b"%bL%b\0%b\0" % ((size + 1).to_bytes(4, "big"), name, value)


def encode_macros(command: int, values: Sequence[tuple[bytes, bytes]], limit: int) -> bytes:
    """The packet of the macros for a command.

    Args:
        command: its code.
        values: name and value, in the spelling that travels. None at all is a packet, too.
        limit: the longest payload.

    Raises:
        LocalProtocolError: too long, or a NUL inside.
    """
    payload = b"%c%b" % (command, b"".join([b"%b\0%b\0" % pair for pair in values]))
    if payload.count(b"\0") != 2 * len(values):
        raise LocalProtocolError("NUL inside a macro")
    if len(payload) > limit:
        raise LocalProtocolError(f"macros of {len(payload)} bytes, {limit} are the most")
    return encode_packet(Command.MACRO, payload)


class Exchange:
    """Sends one message's content until its outcome is known."""

    __slots__ = ("_connection", "_link", "_negotiated", "_outcome", "_parts", "_pipelined", "_sent", "_size")

    def __init__(
        self, link: Link, connection: Connection, negotiated: Negotiated, outcome: Outcome, *, pipelined: bool
    ) -> None:
        self._link = link
        self._connection = connection
        self._negotiated = negotiated
        self._outcome = outcome
        self._pipelined = pipelined
        self._parts: list[bytes] = []
        self._size = 0
        self._sent = 0

    async def run(self, content: Content, macros: MacroValues = MappingProxyType({})) -> ContentResult:
        """Send, and wait for the verdict.

        Raises:
            LocalProtocolError: the content cannot be sent.
            MilterError: the connection failed.
        """
        outcome = self._outcome
        await self._send(content, macros)
        while outcome.result is None:
            await self._link.progress()
        return outcome.result

    async def _send(self, content: Content, macros: MacroValues) -> None:
        negotiated, outcome = self._negotiated, self._outcome
        if negotiated.wants(Command.HEADER):
            await self._headers(content)
        if outcome.over():
            return
        self._macros(Command.END_OF_HEADERS, macros)
        if negotiated.wants(Command.END_OF_HEADERS):
            await self._put(Command.END_OF_HEADERS, _END_OF_HEADERS)
        if negotiated.wants(Command.BODY) and content.body_size:
            for chunk in content.body(negotiated.max_data):
                if outcome.over() or Command.BODY in outcome.skipped:
                    break
                await self._put(Command.BODY, encode_packet(Command.BODY, chunk))
        if outcome.over():
            return
        self._macros(Command.END_OF_MESSAGE, macros)
        await self._put(Command.END_OF_MESSAGE, _END_OF_MESSAGE)
        if self._parts:
            await self._flush()

    async def _headers(self, content: Content) -> None:
        # All before the first write: nothing is half sent if one header cannot be sent at all.
        packets = content.header_packets(
            leading_space=self._negotiated.leading_space, limit=self._negotiated.max_data
        )
        size = sum(map(len, packets))
        if packets and size <= _FLUSH and (self._pipelined or not self._negotiated.replies(Command.HEADER)):
            self._connection.advance(Command.HEADER, len(packets))
            self._parts += packets
            self._size += size
            return
        for packet in packets:
            if self._outcome.over() or Command.HEADER in self._outcome.skipped:
                return
            await self._put(Command.HEADER, packet)

    def _macros(self, stage: Command, macros: MacroValues) -> None:
        values = macros.get(stage)
        if values:
            limit = self._negotiated.max_data
            packet = values if isinstance(values, bytes) else encode_macros(stage, values, limit)
            if len(packet) > limit + OVERHEAD:
                raise LocalProtocolError(f"macros of {len(packet)} bytes, {limit} are the most")
            self._parts.append(packet)
            self._size += len(packet)

    async def _put(self, command: Command, packet: bytes) -> None:
        self._connection.advance(command)
        self._parts.append(packet)
        self._size += len(packet)
        if not self._pipelined and self._negotiated.replies(command):
            await self._flush()
            while self._connection.outstanding and not self._outcome.over():
                await self._link.progress()
        elif self._size >= _FLUSH:
            await self._flush()

    async def _flush(self) -> None:
        self._link.write(b"".join(self._parts))
        self._parts.clear()
        self._sent += self._size
        self._size = 0
        if self._sent >= _BREATH:
            self._sent = 0
            await asyncio.sleep(0)
            self._link.check()
        while self._link.paused and not self._outcome.over():
            await self._link.progress()
