"""An SMTP or LMTP server that follows a script, on a real socket, and records what the client sent.

Without a script it is a correct server that takes everything::

    replies = {
        "RCPT": lambda argument: "550 5.1.1 no such user" if b"bad@" in argument else None,
        ".": InTurn("451 4.3.0 try again", "250 2.0.0 Ok"),
    }
    async with ScriptedNextHop(replies) as hop:
        ...  # relay something to hop.next_hop
        (message,) = hop.accepted
        assert message.recipients == (b"good@x.test",)
        assert hop.connections[0].verbs == "EHLO MAIL RCPT RCPT DATA . QUIT"

A script maps a verb, "CONNECT" (the greeting) or "." (the end of the data, or the last chunk) to what is
answered: a reply as text (lines separated by LF), a `Reply`, raw bytes, a fault (`HalfLine`, or one of
`milterchain.testing.faults`), several of those, one for each occurrence (`InTurn`), or a function of the
argument (of the data for "."). None is the server's own reply. The state of the transaction follows the
replies that were sent.
"""

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from milterchain.mail.replies import Reply
from milterchain.testing.faults import Fault, InTurn
from milterchain.testing.peer import Hangup, Peer, ScriptedServer

__all__ = [
    "HalfLine",
    "HopAnswer",
    "HopItem",
    "HopScript",
    "HopSession",
    "ReceivedMessage",
    "ScriptedNextHop",
]

KEYWORDS = (
    "PIPELINING",
    "SIZE 52428800",
    "8BITMIME",
    "SMTPUTF8",
    "DSN",
    "ENHANCEDSTATUSCODES",
)
"""What it offers by default: what Postfix offers, as far as a relay cares."""

_ALONE = {"EHLO", "HELO", "LHLO", "STARTTLS", "DATA", "VRFY", "EXPN", "QUIT", "NOOP", "XCLIENT"}
"""Commands that must be the last of a pipelined group (RFC 2920 3.1; XCLIENT starts over)."""
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_UNSTUFFED = re.compile(rb"(?:\A|(?<=\r\n))\.(?!\.)")
_STUFFED = re.compile(rb"(?:\A|(?<=\r\n))\.")
_IN_BRACKETS = re.compile(rb"<(.*)>")


@dataclass(frozen=True, slots=True)
class HalfLine:
    """Send a reply without its last half and without a line end."""

    text: str


HopItem: TypeAlias = str | bytes | Reply | HalfLine | Fault
HopAnswer: TypeAlias = (
    "HopItem | Sequence[HopItem] | Callable[[bytes], HopAnswer | None] | InTurn[HopAnswer | None]"
)
HopScript: TypeAlias = Mapping[str, "HopAnswer | None"]


@dataclass(slots=True, kw_only=True)
class ReceivedMessage:
    """A message whose final dot was read.

    Attributes:
        mail: the MAIL command as it came, without CRLF.
        rcpts: the RCPT commands that were answered positively.
        raw: the data as it came, without the final dot's line.
        data: the same with dot-stuffing undone.
        code: of the reply to the final dot, None while there is none; the highest of several in LMTP.
        chunked: it came by BDAT, so that `raw` and `data` are the same.
    """

    mail: bytes
    rcpts: tuple[bytes, ...]
    raw: bytes
    data: bytes
    code: int | None = None
    chunked: bool = False

    @property
    def sender(self) -> bytes:
        """The address in MAIL, without brackets."""
        return _address(self.mail)

    @property
    def recipients(self) -> tuple[bytes, ...]:
        """The addresses in the accepted RCPTs, without brackets."""
        return tuple(_address(line) for line in self.rcpts)

    @property
    def accepted(self) -> bool:
        """Whether the client was told that it is ours now."""
        return self.code is not None and self.code < 300


def _address(line: bytes) -> bytes:
    found = _IN_BRACKETS.search(line)
    return found[1] if found else line


class HopSession(Peer):
    """What one client connection sent.

    Attributes:
        commands: every command line without its line end, in order; `b"."` where data ended.
        messages: those whose final dot was read.
        violations: what no SMTP client may do, in words; empty in a correct session.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, changed: Callable[[], None]
    ):
        super().__init__(reader, writer, changed)
        self.commands: list[bytes] = []
        self.messages: list[ReceivedMessage] = []
        self.violations: list[str] = []
        self.greeted = False
        self.mail: bytes | None = None
        self.rcpts: list[bytes] = []
        self.chunks = b""
        self._buffer = bytearray()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<HopSession {state} {self.verbs!r} violations={self.violations}>"

    @property
    def verbs(self) -> str:
        """The verbs in order, `.` where data ended: `"EHLO MAIL RCPT DATA . QUIT"`."""
        return " ".join(_verb(line) for line in self.commands)

    @property
    def pending(self) -> bool:
        """Whether bytes have come that were not looked at yet."""
        return bool(self._buffer)

    def received(self, data: bytes) -> None:
        """Record one read."""
        super().received(data)
        self._buffer += data

    async def line(self) -> bytes:
        """The next command line, without its line end."""
        while (end := self._buffer.find(b"\n")) < 0:
            await self.news()
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        if not line.endswith(b"\r\n"):
            self.violations.append(f"bare LF after {line!r}")
        line = line.rstrip(b"\r\n")
        self.commands.append(line)
        return line

    async def data(self) -> bytes:
        """The data up to the final dot, as they came."""
        searched = 0
        # The line end before the final dot is DATA's own when there is no data at all.
        end = -2
        while not self._buffer.startswith(b".\r\n"):
            end = self._buffer.find(b"\r\n.\r\n", searched)
            if end >= 0:
                break
            searched = max(0, len(self._buffer) - 4)
            end = -2
            await self.news()
        raw = bytes(self._buffer[: end + 2])
        del self._buffer[: end + 5]
        self.commands.append(b".")
        return raw

    async def chunk(self, size: int) -> bytes:
        """The octets of a chunk."""
        while len(self._buffer) < size:
            await self.news()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def reset(self) -> None:
        """The transaction is over."""
        self.mail = None
        self.rcpts = []
        self.chunks = b""


class ScriptedNextHop(ScriptedServer[HopSession]):
    """A scripted SMTP server.

    Args:
        script: what each verb gets; a sequence of scripts is used up one for each connection, the last is
            repeated. `InTurn` counts within a connection, at "CONNECT" it counts connections.
        keywords: what EHLO offers. Without PIPELINING, pipelined commands are noted as violations.
        name: the host name in the greeting.
        tls: begin TLS after STARTTLS; to be offered by `keywords`.
        implicit_tls: begin it before the greeting instead.
        lmtp: speak LMTP: after the data, "." is answered once for each recipient.
        unix_path: listen there instead of on a TCP port.
        host: the address to listen on.
        port: 0 for any free one.

    Attributes:
        connections: a `HopSession` for each connection, in order.
        messages: every message whose final dot was read, of all sessions, in the order of the dots.
    """

    def __init__(
        self,
        script: HopScript | Sequence[HopScript] = {},  # noqa: B006 - never written to
        *,
        keywords: Sequence[str] = KEYWORDS,
        name: str = "next-hop.test",
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        lmtp: bool = False,
        unix_path: str | Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__(unix_path=unix_path, host=host, port=port, tls=tls if implicit_tls else None)
        self._tls = tls
        self._implicit_tls = implicit_tls
        self._lmtp = lmtp
        self.messages: list[ReceivedMessage] = []
        self._scripts = [script] if isinstance(script, Mapping) else list(script) or [{}]
        self._keywords = tuple(keywords)
        self._offered = {keyword.split()[0].upper() for keyword in keywords}
        self._name = name

    @property
    def next_hop(self) -> str:
        """The address as milterchain's configuration writes it: `smtp:127.0.0.1:PORT`."""
        if self._lmtp:
            return f"lmtp:{self.address}" if self.port else f"lmtp:unix:{self.address}"
        return f"{'smtps' if self._implicit_tls else 'smtp'}:{self.address}"

    @property
    def accepted(self) -> list[ReceivedMessage]:
        """The messages whose final dot was answered positively."""
        return [message for message in self.messages if message.accepted]

    def _peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> HopSession:
        return HopSession(reader, writer, self.changed)

    async def _converse(self, peer: HopSession) -> None:
        nth = self.connections.index(peer)
        script = self._scripts[min(nth, len(self._scripts) - 1)]
        await self._answer(peer, script.get("CONNECT"), b"", nth, f"220 {self._name} ESMTP")
        counts: Counter[str] = Counter()
        while True:
            line = await peer.line()
            self.changed()
            verb = _verb(line)
            if verb == "BDAT" and "CHUNKING" in self._offered:
                counts["."] += await self._take_chunk(peer, script, line.upper().split()[1:], counts["."])
                continue
            if peer.pending and (verb in _ALONE or "PIPELINING" not in self._offered):
                peer.violations.append(f"bytes after {verb}, before its reply")
            argument = line[len(verb) :].strip()
            code = await self._answer(peer, script.get(verb), argument, counts[verb], self._reply(peer, verb))
            counts[verb] += 1
            if code is None:
                continue
            if verb == "DATA" and code == 354:
                counts["."] += await self._take(peer, script, counts["."])
            elif verb == "STARTTLS" and code == 220 and self._tls is not None:
                await peer.start_tls(self._tls)
            elif 200 <= code < 300:
                self._advance(peer, verb, line)

    async def _take(self, peer: HopSession, script: HopScript, occurrence: int) -> int:
        """Take the data and answer; how many answers that were."""
        raw = await peer.data()
        peer.violations += [f"bare CR or LF in the data at {found.start()}" for found in _BARE.finditer(raw)]
        peer.violations += [f"no dot-stuffing at {found.start()}" for found in _UNSTUFFED.finditer(raw)]
        message = ReceivedMessage(
            mail=peer.mail or b"", rcpts=tuple(peer.rcpts), raw=raw, data=_STUFFED.sub(b"", raw)
        )
        return await self._judge(peer, script, message, occurrence)

    async def _take_chunk(
        self, peer: HopSession, script: HopScript, words: Sequence[bytes], occurrence: int
    ) -> int:
        """Take a chunk and answer it; how many answers to whole messages that were."""
        peer.chunks += await peer.chunk(int(words[0]))
        if peer.mail is None or not peer.rcpts:
            await self._answer(peer, None, b"", 0, "503 5.5.1 need RCPT first")
            return 0
        if words[1:] != [b"LAST"]:
            await self._answer(peer, script.get("BDAT"), words[0], 0, "250 2.0.0 Ok")
            return 0
        message = ReceivedMessage(
            mail=peer.mail, rcpts=tuple(peer.rcpts), raw=peer.chunks, data=peer.chunks, chunked=True
        )
        return await self._judge(peer, script, message, occurrence)

    async def _judge(
        self, peer: HopSession, script: HopScript, message: ReceivedMessage, occurrence: int
    ) -> int:
        """Note a message and answer it; how many answers that were."""
        peer.messages.append(message)
        self.messages.append(message)
        peer.reset()
        self.changed()
        default = f"250 2.0.0 Ok: queued as {len(self.messages)}"
        answers = len(message.rcpts) if self._lmtp else 1
        for number in range(occurrence, occurrence + answers):
            code = await self._answer(peer, script.get("."), message.data, number, default)
            message.code = code if code is None else max(code, message.code or 0)
        self.changed()
        return answers

    def _reply(self, peer: HopSession, verb: str) -> str:  # noqa: C901, PLR0911, PLR0912 - one for each verb
        """The reply of a server that takes everything, in the right order."""
        match verb:
            case "EHLO" | "HELO" if self._lmtp:
                return "500 5.5.1 this is LMTP"
            case "LHLO" if not self._lmtp:
                return "500 5.5.2 command not recognized"
            case "STARTTLS" if verb in self._offered:
                return "220 2.0.0 go ahead"
            case "EHLO" | "LHLO":
                return "\n".join((f"250 {self._name}", *(f"250 {keyword}" for keyword in self._keywords)))
            case "HELO":
                return f"250 {self._name}"
            case "MAIL" if not peer.greeted or peer.mail is not None:
                return "503 5.5.1 bad sequence of commands"
            case "RCPT" | "DATA" if peer.mail is None:
                return "503 5.5.1 need MAIL first"
            case "DATA" if not peer.rcpts:
                return "554 5.5.1 no valid recipients"
            case "DATA":
                return "354 go ahead"
            case "MAIL" | "RCPT" | "RSET" | "NOOP":
                return "250 2.0.0 Ok"
            case "QUIT":
                return "221 2.0.0 bye"
            case "XFORWARD" if verb in self._offered:
                return "250 2.0.0 Ok"
            case "XCLIENT" if verb in self._offered:
                return f"220 {self._name} ESMTP"
        return "500 5.5.2 command not recognized"

    @staticmethod
    def _advance(peer: HopSession, verb: str, line: bytes) -> None:
        match verb:
            case "EHLO" | "HELO" | "LHLO":
                peer.greeted = True
                peer.reset()
            case "XCLIENT" | "STARTTLS":
                peer.greeted = False
                peer.reset()
            case "MAIL":
                peer.mail = line
            case "RCPT":
                peer.rcpts.append(line)
            case "RSET":
                peer.reset()
            case "QUIT":
                raise Hangup

    @staticmethod
    async def _answer(
        peer: HopSession, answer: "HopAnswer | None", argument: bytes, occurrence: int, default: str
    ) -> int | None:
        """Send what is due; return the code of the last whole reply. 421 ends the connection."""
        code = None
        for item in _resolve(answer, argument, occurrence, default):
            if isinstance(item, HalfLine):
                await peer.send(item.text[: (len(item.text) + 1) // 2].encode())
            elif isinstance(item, Fault):
                await peer.commit(item)
            else:
                reply = _encode(item)
                await peer.send(reply)
                code = int(reply[:3]) if reply[:3].isdigit() else None
                if code == 421:
                    raise Hangup
        return code


def _verb(line: bytes) -> str:
    words = line.split(None, 1)
    return words[0].decode("latin-1").upper() if words else ""


def _resolve(answer: "HopAnswer | None", argument: bytes, occurrence: int, default: str) -> Sequence[HopItem]:
    while True:
        if answer is None:
            return [default]
        if isinstance(answer, InTurn):
            answer = answer.at(occurrence)
        elif isinstance(answer, Sequence) and not isinstance(answer, str | bytes):
            return answer
        elif callable(answer):
            answer = answer(argument)
        else:
            return [answer]


def _encode(item: str | bytes | Reply) -> bytes:
    """A reply's bytes; in text the dashes of a multi-line reply are put where they belong."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, Reply):
        return item.encode()
    *firsts, last = item.split("\n")
    return "".join([*(f"{line[:3]}-{line[4:]}\r\n" for line in firsts), f"{last}\r\n"]).encode()
