"""Nothing that clients, milters or the next hop say becomes a command, a header or a reply of its own.

Each case puts a line end of some kind, and a command after it, into one place: an address, a parameter,
a HELO name, a value of XCLIENT or XFORWARD, a login, a reply or an edit of a milter, a reply of the next
hop. Whatever is answered: the next hop sees well-formed commands only and no recipient but those who were
named, no header begins that nobody added, the milters' packets stay whole, and the client gets one reply
for each command.
"""

import asyncio
import base64
import itertools
import re
import struct
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milterchain.config import parse
from milterchain.milter.flags import Command
from milterchain.milter.messages import Accept, Continue
from milterchain.proxy.app import App
from milterchain.testing import ScriptedMilter, ScriptedNextHop
from milterchain.testing.scripted_next_hop import KEYWORDS

PATIENCE = 10.0
EVIL = b"RCPT TO:<evil@example.net>"
IN_HEADERS = b"X-Injected: yes"

LINE_ENDS = {
    "CRLF": b"\r\n",
    "LF": b"\n",
    "CR": b"\r",
    "CRCRLF": b"\r\r\n",
    "LFCR": b"\n\r",
    "CRLFCRLF": b"\r\n\r\n",
    "dot": b"\r\n.\r\n",
    "LF dot": b"\n.\n",
    "bracket": b">\r\n",
    "NUL": b"\0",
    "NUL CRLF": b"\0\r\n",
    "VT": b"\x0b",
    "FF": b"\x0c",
    "NEL": "\x85".encode(),
    "LS": "\u2028".encode(),
    "C1": b"\x85",
    "high": b"\x8d\x8a",
    "tab": b"\t",
    "blank": b" ",
    "xtext": b"+0D+0A",
    "escape": b"\\\r\n",
    "fold": b"\r\n ",
    "quote": b'"\r\n',
    "comment": b")\r\n",
    "overlong": b"\xc0\x8d\xc0\x8a",
    "ESC": b"\x1b[2K",
    "DEL": b"\x7f",
}

FROM_CLIENT = {
    "HELO": b"HELO a%b",
    "EHLO": b"EHLO a%b",
    "EHLO literal": b"EHLO [192.0.2.1%b]",
    "sender": b"MAIL FROM:<a%b@example.org>",
    "sender's domain": b"MAIL FROM:<a@example.org%b>",
    "quoted sender": b'MAIL FROM:<"a%b"@example.org>',
    "bare sender": b"MAIL FROM:a@example.org%b",
    "sender's route": b"MAIL FROM:<@x%b:a@example.org>",
    "after sender": b"MAIL FROM:<a@example.org>%b",
    "SIZE": b"MAIL FROM:<a@example.org> SIZE=1%b",
    "BODY": b"MAIL FROM:<a@example.org> BODY=7BIT%b",
    "RET": b"MAIL FROM:<a@example.org> RET=FULL%b",
    "ENVID": b"MAIL FROM:<a@example.org> ENVID=a%b",
    "UTF-8 sender": b"MAIL FROM:<a%b@example.org> SMTPUTF8",
    "recipient": b"RCPT TO:<b%b@example.net>",
    "recipient's domain": b"RCPT TO:<b@example.net%b>",
    "quoted recipient": b'RCPT TO:<"b%b"@example.net>',
    "bare recipient": b"RCPT TO:b@example.net%b",
    "after recipient": b"RCPT TO:<b@example.net>%b",
    "ORCPT": b"RCPT TO:<b@example.net> ORCPT=rfc822;b%b",
    "ORCPT's type": b"RCPT TO:<b@example.net> ORCPT=rfc822%b;b@example.net",
    "NOTIFY": b"RCPT TO:<b@example.net> NOTIFY=NEVER%b",
    "unknown": b"HLEP a%b",
    "VRFY": b"VRFY a%b",
    "NOOP": b"NOOP a%b",
}
"""Commands of a client; the line end is none that ends a command."""

DECODED = {
    **{
        f"XCLIENT {name}": (b"XCLIENT ADDR=192.0.2.7 %b=%%b" % name.encode()).replace(
            b" ADDR=%b", b" ADDR=%b"
        )
        for name in ("NAME", "REVERSE_NAME", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT")
    },
    "XCLIENT ADDR": b"XCLIENT ADDR=%b",
    **{
        f"XFORWARD {name}": b"XFORWARD %b=%%b" % name.encode()
        for name in ("NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE")
    },
    "AUTH": b"AUTH PLAIN %b",
}
"""Commands whose value is decoded, so that it may hold any octet."""

REPLIES = (Command.CONNECT, Command.HELO, Command.MAIL, Command.RCPT, Command.DATA, Command.HEADER,
           Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE, Command.UNKNOWN)  # fmt: skip

INDEX = struct.pack("!I", 1)
EDITS = {
    "add: name": b"hX-A%b\0a\0",
    "add: value": b"hX-A\0a%b\0",
    "insert: name": b"i" + INDEX + b"X-A%b\0a\0",
    "insert: value": b"i" + INDEX + b"X-A\0a%b\0",
    "change: name": b"m" + INDEX + b"Subject%b\0a\0",
    "change: value": b"m" + INDEX + b"Subject\0a%b\0",
    "recipient": b"+<c%b@example.net>\0",
    "recipient without brackets": b"+c@example.net%b\0",
    "recipient with more": b"+<c@example.net>%b\0",
    "quoted recipient": b'+<"c%b"@example.net>\0',
    "recipient, args": b"2<c@example.net>\0NOTIFY=NEVER%b\0",
    "recipient, ORCPT": b"2<c@example.net>\0ORCPT=rfc822;c%b\0",
    "delete": b"-<b@example.net>%b\0",
    "sender": b"e<s%b@example.net>\0",
    "sender with more": b"e<s@example.net>%b\0",
    "sender, args": b"e<s@example.net>\0ENVID=a%b\0",
    "body": b"bnew%b",
    "quarantine": b"qwhy%b\0",
}
"""Packets of a milter; their formatting leaves a NUL as the milter puts it."""

DISPLAYED = EDITS["recipient without brackets"]

TOKENS = (
    *LINE_ENDS.values(),
    EVIL,
    IN_HEADERS,
    b"DATA",
    b"QUIT",
    b"250 fine",
    b"<",
    b">",
    b"@",
    b"=",
    b"%",
    b":",
)
"""What hypothesis puts together."""

REPLY_LINE = re.compile(rb"[2-5][0-9][0-9][ -][\t -~\x80-\xff]*\r\n")
COMMAND = re.compile(
    rb"(?:EHLO [!-~]+|MAIL FROM:<[^\x00-\x1f\x7f]*>(?: [!-~\x80-\xff]+)*|DATA|RSET|QUIT|NOOP|\."
    rb"|RCPT TO:<[^\x00-\x1f\x7f]+>(?: [!-~\x80-\xff]+)*|X(?:CLIENT|FORWARD)(?: [A-Z_]+=[!-~]+)+)"
)
"""What the next hop may hear."""

RECIPIENT = re.compile(
    rb'RCPT TO:<(?:"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])*"|[^"<>@\x00-\x20\x7f]+)'
    rb'(?:@[^"<>@\x00-\x20\x7f]+)?>(?: .*)?'
)
"""One address, as a whole: what looks like a command may stand in it within quotation marks."""


def packet(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload)) + payload


def edited(place: bytes, text: bytes) -> bytes:
    # Before brackets stands a display name: then those brackets hold the address, and by right.
    return packet(place.replace(b"%b", text.translate(None, b"<>") if place == DISPLAYED else text))


@dataclass(slots=True)
class Said:
    """A client; it checks that each reply is one, and writes them down."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: list[bytes]
    over: bool = field(default=False)

    async def reply(self) -> int:
        """The code of the next reply; 0 at the end."""
        async with asyncio.timeout(PATIENCE):
            while line := await self.reader.readline():
                assert REPLY_LINE.fullmatch(line), line
                self.heard.append(line)
                if line[3:4] == b" ":
                    self.over = self.over or line[:3] in {b"421", b"521"}
                    return int(line[:3])
        self.over = True
        return 0

    async def say(self, *commands: bytes) -> int:
        code = 0
        for command in commands:
            if self.over:
                return 0
            self.writer.write(command + b"\r\n")
            code = await self.reply()
        return code

    async def send(self, message: bytes) -> int:
        code = await self.say(b"DATA")
        return await self.say(message + b".") if code == 354 else code

    async def leave(self) -> None:
        """Replies too many would stand before the one to QUIT."""
        if not self.over:
            assert await self.say(b"QUIT") == 221
        async with asyncio.timeout(PATIENCE):
            assert await self.reader.read() == b""


@dataclass(slots=True)
class Scene:
    """A proxy between clients, a milter and a next hop, all of which write down what they hear."""

    hop: ScriptedNextHop
    milter: ScriptedMilter
    app: App
    stack: AsyncExitStack
    heard: list[bytes] = field(default_factory=list)

    async def client(self) -> Said:
        address = self.app.addresses[0]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        self.stack.callback(writer.close)
        said = Said(reader, writer, self.heard)
        assert await said.reply() in {220, 421, 450, 550, 554}
        return said

    def check(self) -> None:
        """Nothing got through."""
        for session in self.hop.connections:
            assert not session.violations
            for command in session.commands:
                assert COMMAND.fullmatch(command), command
                assert not command.startswith(EVIL), command
                assert not command.startswith(b"RCPT") or RECIPIENT.fullmatch(command), command
        for message in self.hop.messages:
            head, _, _ = message.data.partition(b"\r\n\r\n")
            assert not re.search(rb"(?:\A|[\r\n])X-Injected", head), head
            assert b"\0" not in head
        for connection in self.milter.connections:
            assert not connection.violations


@asynccontextmanager
async def scene(script: Mapping[Command, Any], directory: Path, **tables: Any) -> AsyncIterator[Scene]:
    """Start everything. The next hop is told of clients by XFORWARD, or by XCLIENT if that is asked for."""
    identity = tables.pop("identity", "xforward")
    keywords = (
        *KEYWORDS,
        "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE",
        "XCLIENT NAME ADDR PORT PROTO HELO LOGIN REVERSE_NAME DESTADDR DESTPORT",
    )
    async with AsyncExitStack() as stack:
        hop = await stack.enter_async_context(ScriptedNextHop(tables.pop("replies", {}), keywords=keywords))
        milter = await stack.enter_async_context(ScriptedMilter(script))
        document = {
            "hostname": "mx.test",
            "listen": [{"address": "127.0.0.1:0", "xclient_from": ["127.0.0.1"], **tables.pop("listen", {})}],
            "milter": [{"name": "m", "address": milter.endpoint}],
            "access": {"relay_domains": ["example.net"]},
            "limits": {"connections_per_client": 1000},
            "breaker": {"failures": 1_000_000},
            "dns": {"lookup": False},
            "log": {"level": "error"},
            "relay": {"next_hop": [hop.next_hop], "client_identity": identity},
            **tables,
        }
        app = App(parse(document, "test", directory))
        await stack.enter_async_context(app)
        yield Scene(hop, milter, app, stack)


async def converse(scene: Scene, command: bytes) -> None:
    """A session with this command in its place, and a message before and after it."""
    client = await scene.client()
    await client.say(b"EHLO client.example")
    verb = command[:4].upper()
    if verb == b"RCPT":
        await client.say(b"MAIL FROM:<a@example.org> SMTPUTF8", b"RCPT TO:<b@example.net>", command)
    elif verb == b"MAIL":
        if await client.say(command) != 250:
            await client.say(b"MAIL FROM:<a@example.org>")
        await client.say(b"RCPT TO:<b@example.net>")
    else:
        code = await client.say(command)
        if verb == b"XCLI" and code == 220:
            await client.say(b"EHLO client.example")
        await client.say(b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.net>")
    await client.send(b"Subject: hi\r\n\r\nHello\r\n")
    await client.leave()


@pytest.mark.parametrize("identity", ["xforward", "xclient"])
@pytest.mark.parametrize("place", FROM_CLIENT)
async def test_what_a_client_types(place: str, identity: str, tmp_path: Path) -> None:
    async with scene({}, tmp_path, identity=identity) as made:
        for line_end in LINE_ENDS.values():
            if b"\n" not in line_end:
                await converse(made, FROM_CLIENT[place] % (line_end + EVIL))
                await converse(made, FROM_CLIENT[place] % line_end)
        made.check()
        assert made.hop.accepted


@pytest.mark.parametrize("identity", ["xforward", "xclient"])
@pytest.mark.parametrize("place", DECODED)
async def test_what_is_decoded(place: str, identity: str, tmp_path: Path) -> None:
    listen = {"auth": {"backend": "next-hop", "allow_plaintext": True}}
    async with scene({}, tmp_path, identity=identity, listen=listen) as made:
        for line_end, text in itertools.product(LINE_ENDS.values(), (EVIL, IN_HEADERS)):
            value = b"a" + line_end + text
            if place == "AUTH":
                coded = base64.b64encode(b"\0%b\0%b" % (value, value))
            else:
                coded = b"".join(b"+%02X" % octet for octet in value)
            await converse(made, DECODED[place] % coded)
        made.check()
        assert made.hop.accepted


@pytest.mark.parametrize("stage", REPLIES, ids=lambda stage: stage.name)
async def test_what_a_milter_replies(stage: Command, tmp_path: Path) -> None:
    reply = b""
    async with scene({stage: lambda _: reply}, tmp_path) as made:
        for code, line_end in itertools.product((b"550 5.7.1 no", b"450-4.7.1 later"), LINE_ENDS.values()):
            for text in (EVIL, code.replace(b"-", b" ") + b"\r\n250 fine"):
                reply = packet(b"y" + code + line_end + text + b"\0")
                await converse(made, b"HLEP")
        made.check()
        assert stage is Command.UNKNOWN or not made.hop.accepted
        # To a line that is no command the answer is 500 in any case.
        assert any(b"5.7.1 no" in line for line in made.heard) or stage is Command.UNKNOWN
        assert any(b"4.7.1 later" in line for line in made.heard)


@pytest.mark.parametrize("place", EDITS)
@pytest.mark.parametrize("action", ["header", "hold"])
async def test_what_a_milter_edits(place: str, action: str, tmp_path: Path) -> None:
    edit = b""
    script = {Command.END_OF_MESSAGE: lambda _: [edit, Accept()]}
    async with scene(script, tmp_path, quarantine={"action": action}) as made:
        for line_end, text in itertools.product(LINE_ENDS.values(), (EVIL, IN_HEADERS)):
            edit = edited(EDITS[place], line_end + text)
            await converse(made, b"NOOP")
        made.check()
        judged = any(b"4.1.3 Bad address of an added recipient" in line for line in made.heard)
        assert judged or made.hop.accepted or list((tmp_path / "quarantine").iterdir())


async def test_what_a_client_says_in_the_proxy_header(tmp_path: Path) -> None:
    listen = {"xclient_from": [], "proxy_protocol_from": ["127.0.0.1"]}
    async with scene({}, tmp_path, listen=listen) as made:
        address = made.app.addresses[0]
        for line_end in LINE_ENDS.values():
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"PROXY TCP4 192.0.2.7%b%b 127.0.0.1 1 25\r\n" % (line_end, EVIL))
            async with asyncio.timeout(PATIENCE):
                assert (await reader.read()).startswith(b"421 ")
            writer.close()
        made.check()


@pytest.mark.parametrize("verb", ["XCLIENT", "MAIL", "RCPT", "DATA", "."])
async def test_what_the_next_hop_replies(verb: str, tmp_path: Path) -> None:
    reply = b""
    async with scene({}, tmp_path, identity="xclient", replies={verb: lambda _: reply}) as made:
        for line_end in LINE_ENDS.values():
            reply = b"550 5.1.1 no" + line_end + b"250 2.0.0 fine\r\n"
            await converse(made, b"NOOP")
        made.check()
        assert not made.hop.accepted
        assert any(b"5.1.1 no" in line for line in made.heard)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([*FROM_CLIENT.values(), *DECODED.values(), *EDITS.values()]),
    st.lists(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=4)), min_size=1, max_size=6).map(b"".join),
)
def test_anything_anywhere(place: bytes, text: bytes) -> None:
    async def play(directory: Path) -> None:
        milter: Mapping[Command, Any] = {}
        command = b"NOOP"
        if place in EDITS.values():
            milter = {Command.END_OF_MESSAGE: [edited(place, text), Continue()]}
        elif place in DECODED.values():
            command = place % b"".join(b"+%02X" % octet for octet in text)
        else:
            command = place % text.replace(b"\n", b"\r")
        async with scene(milter, directory, quarantine={"action": "header"}) as made:
            await converse(made, command)
            made.check()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(play(Path(directory)))
