"""A milter that follows a script, on a real socket, and records what the MTA side sent.

Dialogues are data::

    script = {
        Command.RCPT: InTurn(Continue(), ReplyCode(b"550 5.1.1 no such user")),
        Command.END_OF_MESSAGE: [AddHeader(b"X-Seen", b"yes"), Accept()],
    }
    async with ScriptedMilter(script) as milter:
        ...  # let the code under test talk to milter.endpoint
        connection = await milter.wait_closed()
        assert connection.codes == "OCHMRRLLNBEQ"
        assert milter.connections[0].of(Rcpt) == [Rcpt(b"<a@x.test>"), Rcpt(b"<b@x.test>")]

Commands that are not in the script are answered with `default`. Where a message object stands, raw bytes or a
fault (`milterchain.testing.faults`, `HalfPacket`) may stand too, or a function of the command.

It shares only the message values with the rest of the package: framing, negotiation and the order of commands
are its own, so that tests hold the real implementation against a second one.
"""

import asyncio
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from milterchain.errors import LocalProtocolError
from milterchain.milter.flags import Action, Command, Protocol
from milterchain.milter.messages import (
    Accept,
    AnyCommand,
    AnyResponse,
    Continue,
    Discard,
    Macros,
    OptNeg,
    Reject,
    ReplyCode,
    TempFail,
    decode_command,
)
from milterchain.testing.faults import Fault, InTurn
from milterchain.testing.peer import Hangup, Peer, ScriptedServer

__all__ = ["Answer", "HalfPacket", "Item", "MilterConnection", "Script", "ScriptedMilter"]

_LENGTH = struct.Struct("!I")
_MAX_PACKET = 64 * 1024 * 1024
"""Larger lengths are no packets of a sane peer, and would make the record wait for ever."""


@dataclass(frozen=True, slots=True)
class HalfPacket:
    """Send the first half of a packet and leave it at that."""

    message: AnyResponse


Item: TypeAlias = AnyResponse | bytes | HalfPacket | Fault
Answer: TypeAlias = "Item | Sequence[Item] | Callable[[AnyCommand], Answer] | InTurn[Answer]"
"""What a command gets: one thing, several, a function's result, or one each time it comes in a connection."""
Script: TypeAlias = Mapping[Command, Answer]

M = TypeVar("M")

_FINAL = (Accept, Reject, TempFail, Discard, ReplyCode)
_SILENT = {Command.MACRO, Command.ABORT, Command.QUIT, Command.QUIT_NEW_CONNECTION}
_MESSAGE_STARTS = {Command.CONNECT, Command.HELO, Command.MAIL, *_SILENT} - {Command.MACRO}
_PER_RECIPIENT = (Reject, TempFail, ReplyCode)

_DECLINED_BY: Mapping[Command, Protocol] = {
    Command.CONNECT: Protocol.NO_CONNECT,
    Command.HELO: Protocol.NO_HELO,
    Command.MAIL: Protocol.NO_MAIL,
    Command.RCPT: Protocol.NO_RCPT,
    Command.DATA: Protocol.NO_DATA,
    Command.HEADER: Protocol.NO_HEADERS,
    Command.END_OF_HEADERS: Protocol.NO_END_OF_HEADERS,
    Command.BODY: Protocol.NO_BODY,
    Command.UNKNOWN: Protocol.NO_UNKNOWN,
}
_UNANSWERED_BY: Mapping[Command, Protocol] = {
    Command.CONNECT: Protocol.NO_REPLY_CONNECT,
    Command.HELO: Protocol.NO_REPLY_HELO,
    Command.MAIL: Protocol.NO_REPLY_MAIL,
    Command.RCPT: Protocol.NO_REPLY_RCPT,
    Command.DATA: Protocol.NO_REPLY_DATA,
    Command.HEADER: Protocol.NO_REPLY_HEADER,
    Command.END_OF_HEADERS: Protocol.NO_REPLY_END_OF_HEADERS,
    Command.BODY: Protocol.NO_REPLY_BODY,
    Command.UNKNOWN: Protocol.NO_REPLY_UNKNOWN,
}
_SINCE: Mapping[Command, int] = {Command.UNKNOWN: 3, Command.DATA: 4}


def packet(message: AnyResponse) -> bytes:
    """The bytes of a response on the wire."""
    payload = message.encode()
    return _LENGTH.pack(len(payload) + 1) + bytes((message.code,)) + payload


class MilterConnection(Peer):
    """What one MTA connection sent.

    Attributes:
        commands: every packet as a message object, macros included, in order.
        batches: the same, grouped by the read that completed them.
        violations: what no MTA may do, in words: undecodable packets, commands that were declined. Empty in a
            correct dialogue.
        agreed: what was negotiated, None before.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, changed: Callable[[], None]
    ):
        super().__init__(reader, writer, changed)
        self.commands: list[AnyCommand] = []
        self.batches: list[tuple[AnyCommand, ...]] = []
        self.violations: list[str] = []
        self.agreed: OptNeg | None = None
        self._buffer = bytearray()
        self._answered = 0
        self._occurrences: Counter[int] = Counter()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<MilterConnection {state} {self.codes!r} violations={self.violations}>"

    @property
    def codes(self) -> str:
        """The command letters in order, without macros: `"OCHMRTLNBEQ"`."""
        return "".join(chr(command.code) for command in self.commands if not isinstance(command, Macros))

    @property
    def codes_with_macros(self) -> str:
        """The command letters in order, macros as `D` and the letter of the command that they belong to."""
        return "".join(
            f"D{chr(command.stage)}" if isinstance(command, Macros) else chr(command.code)
            for command in self.commands
        )

    def of(self, kind: type[M]) -> list[M]:
        """The commands of one type, in order."""
        return [command for command in self.commands if isinstance(command, kind)]

    def macros(self, stage: Command, occurrence: int = -1) -> dict[bytes, bytes]:
        """The macros that were sent for a stage: the last time, or at the n-th occurrence from 0."""
        return dict([sent for sent in self.of(Macros) if sent.stage == stage][occurrence].values)

    def received(self, data: bytes) -> None:
        """Record one read."""
        super().received(data)
        self._buffer += data
        batch: list[AnyCommand] = []
        while len(self._buffer) >= 5:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if not 1 <= length <= _MAX_PACKET:
                self.violations.append(f"packet of length {length}")
                self._buffer.clear()
            elif len(self._buffer) < 4 + length:
                break
            else:
                code, payload = self._buffer[4], bytes(self._buffer[5 : 4 + length])
                del self._buffer[: 4 + length]
                try:
                    batch.append(decode_command(code, payload))
                except LocalProtocolError as error:
                    self.violations.append(f"{bytes((code,))!r}: {error}")
        self.commands += batch
        if batch:
            self.batches.append(tuple(batch))

    async def next_command(self) -> tuple[AnyCommand, int]:
        """The next command that was not handled, and how many of its kind came before it."""
        while len(self.commands) <= self._answered:
            await self.news()
        command = self.commands[self._answered]
        self._answered += 1
        occurrence = self._occurrences[command.code]
        self._occurrences[command.code] += 1
        return command, occurrence


class ScriptedMilter(ScriptedServer[MilterConnection]):
    """A scripted filter side.

    Args:
        script: what each command gets; a sequence of scripts is used up one for each connection, the last
            is repeated.
        negotiate: the answer to the option negotiation: an `OptNeg` is sent as it stands, raw bytes and
            faults too; `InTurn` counts connections. None agrees to all actions offered, wants everything and
            replies to everything.
        default: the answer to commands that are not in the script.
        replies_anyway: answer even what the negotiated NO_REPLY_* bits exclude, as rude filters do.
        drops_after_verdict: as libmilter does when MAIL was wanted, drop the rest of a message without any
            reply after its final verdict.
        banner: bytes sent as soon as a client connects, which no milter does.
        unix_path: listen there instead of on a TCP port.
        host: the address to listen on.
        port: 0 for any free one.

    Attributes:
        connections: a `MilterConnection` for each connection, in order.
    """

    def __init__(
        self,
        script: Script | Sequence[Script] = {},  # noqa: B006 - never written to
        *,
        negotiate: "Answer | None" = None,
        default: Answer = Continue(),  # noqa: B008 - a frozen value
        replies_anyway: bool = False,
        drops_after_verdict: bool = False,
        banner: bytes = b"",
        unix_path: str | Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__(unix_path=unix_path, host=host, port=port)
        self._scripts = [script] if isinstance(script, Mapping) else list(script) or [{}]
        self._negotiate = negotiate
        self._default = default
        self._replies_anyway = replies_anyway
        self._drops_after_verdict = drops_after_verdict
        self._banner = banner

    @property
    def endpoint(self) -> str:
        """The address as milterchain and Postfix write it: `inet:127.0.0.1:PORT` or `unix:/PATH`."""
        if self._unix_path is not None:
            return f"unix:{self._unix_path}"
        return f"inet6:[{self._host}]:{self.port}" if ":" in self._host else f"inet:{self._host}:{self.port}"

    def _peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> MilterConnection:
        return MilterConnection(reader, writer, self.changed)

    async def _converse(self, peer: MilterConnection) -> None:
        nth = self.connections.index(peer)
        script = self._scripts[min(nth, len(self._scripts) - 1)]
        if self._banner:
            await peer.send(self._banner)
        over = False
        while True:
            command, occurrence = await peer.next_command()
            if isinstance(command, OptNeg):
                await self._agree(peer, command, nth)
                continue
            code = Command(command.code)
            if code in _MESSAGE_STARTS:
                over = False
            if over or not self._due(peer, code):
                continue
            if code in _SILENT and code not in script:
                if code is Command.QUIT:
                    raise Hangup
                continue
            for item in _resolve(script.get(code, self._default), command, occurrence):
                await self._play(peer, item)
                over = over or (self._drops_after_verdict and _ends_message(code, item))

    def _due(self, peer: MilterConnection, code: Command) -> bool:
        """Whether this command gets an answer; notes those that should not have been sent."""
        agreed = peer.agreed
        if agreed is None:
            peer.violations.append(f"{code.name} before the option negotiation")
            return True
        if agreed.version < _SINCE.get(code, 2):
            peer.violations.append(f"{code.name} in version {agreed.version}")
            return False
        if agreed.protocol & _DECLINED_BY.get(code, Protocol(0)):
            peer.violations.append(f"{code.name} although it was declined")
            return False
        return self._replies_anyway or not agreed.protocol & _UNANSWERED_BY.get(code, Protocol(0))

    async def _agree(self, peer: MilterConnection, offer: OptNeg, nth: int) -> None:
        answer: Answer = self._negotiate if self._negotiate is not None else _agreeable(offer)
        for item in _resolve(answer, offer, nth):
            if isinstance(item, OptNeg):
                peer.agreed = item
            await self._play(peer, item)
        if peer.agreed is None:
            peer.agreed = _agreeable(offer)

    @staticmethod
    async def _play(peer: MilterConnection, item: Item) -> None:
        if isinstance(item, bytes):
            await peer.send(item)
        elif isinstance(item, HalfPacket):
            whole = packet(item.message)
            await peer.send(whole[: (len(whole) + 1) // 2])
        elif isinstance(item, Fault):
            await peer.commit(item)
        else:
            await peer.send(packet(item))


def _agreeable(offer: OptNeg) -> OptNeg:
    return OptNeg(version=min(offer.version, 6), actions=Action(offer.actions & 0x1FF), protocol=Protocol(0))


def _resolve(answer: Answer, command: AnyCommand, occurrence: int) -> Sequence[Item]:
    while True:
        if isinstance(answer, InTurn):
            answer = answer.at(occurrence)
        elif isinstance(answer, Sequence) and not isinstance(answer, bytes):
            return answer
        elif callable(answer):
            answer = answer(command)
        else:
            return [answer]


def _ends_message(code: Command, item: Item) -> bool:
    """Whether libmilter would go back to waiting for the next message after this reply."""
    if code is Command.UNKNOWN or not isinstance(item, _FINAL):
        return False
    return not (code is Command.RCPT and isinstance(item, _PER_RECIPIENT))
