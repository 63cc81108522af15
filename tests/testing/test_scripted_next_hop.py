"""The scripted next hop against smtplib and raw bytes."""

import asyncio
import smtplib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from milterchain.mail.replies import Reply
from milterchain.testing import Close, Garbage, HalfLine, InTurn, Late, Reset, ScriptedNextHop, Silence

ENVELOPE = b"EHLO c\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n"


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def reply(self) -> str:
        """One reply, its lines joined by LF."""
        lines = []
        async with asyncio.timeout(5):
            while True:
                line = (await self.reader.readline()).decode()
                lines.append(line.rstrip("\r\n"))
                if line[3:4] != "-":
                    return "\n".join(lines)

    async def ask(self, data: bytes) -> str:
        self.writer.write(data)
        return await self.reply()


@asynccontextmanager
async def connected(hop: ScriptedNextHop) -> AsyncIterator[Client]:
    if hop.port:
        reader, writer = await asyncio.open_connection("127.0.0.1", hop.port)
    else:
        reader, writer = await asyncio.open_unix_connection(hop.address)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def send_with_smtplib(port: int, body: str) -> dict[str, tuple[int, bytes]]:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=5) as client:
        return client.sendmail("a@x.test", ["b@x.test", "bad@x.test"], body, ["body=8bitmime"])


async def test_a_message_by_smtplib():
    script = {"RCPT": lambda argument: "550 5.1.1 no\n550 5.1.1 really" if b"bad@" in argument else None}
    async with ScriptedNextHop(script) as hop:
        assert hop.next_hop == f"smtp:127.0.0.1:{hop.port}"
        refused = await asyncio.to_thread(send_with_smtplib, hop.port, "Subject: x\r\n\r\n.dot\r\n..\r\n")
        session = await hop.wait_closed()
    assert refused == {"bad@x.test": (550, b"5.1.1 no\n5.1.1 really")}
    assert session.verbs == "EHLO MAIL RCPT RCPT DATA . QUIT"
    (message,) = hop.messages
    assert hop.accepted == session.messages == [message]
    assert message.sender == b"a@x.test"
    assert message.mail.lower() == b"mail from:<a@x.test> size=24 body=8bitmime"
    assert message.recipients == (b"b@x.test",)
    assert message.data == b"Subject: x\r\n\r\n.dot\r\n..\r\n"
    assert message.raw == b"Subject: x\r\n\r\n..dot\r\n...\r\n"
    assert message.code == 250
    assert session.violations == []


async def test_pipelined_session_on_a_unix_socket(tmp_path):
    async with ScriptedNextHop(unix_path=tmp_path / "s") as hop, connected(hop) as client:
        assert await client.reply() == "220 next-hop.test ESMTP"
        assert (await client.ask(b"EHLO c\r\n")).endswith("\n250 ENHANCEDSTATUSCODES")
        assert await client.ask(b"MAIL FROM:<>\r\nRCPT TO:<b@x>\r\nDATA\r\n") == "250 2.0.0 Ok"
        assert [await client.reply() for _ in range(2)] == ["250 2.0.0 Ok", "354 go ahead"]
        assert await client.ask(b".\r\nNOOP\r\n") == "250 2.0.0 Ok: queued as 1"
        assert await client.reply() == "250 2.0.0 Ok"
        assert await client.ask(b"QUIT\r\n") == "221 2.0.0 bye"
        session = await hop.wait_closed()
        assert session.verbs == "EHLO MAIL RCPT DATA . NOOP QUIT"
        assert session.reads[1] == b"MAIL FROM:<>\r\nRCPT TO:<b@x>\r\nDATA\r\n"
        assert session.violations == []
        assert (hop.messages[0].sender, hop.messages[0].data) == (b"", b"")
        assert repr(session).startswith("<HopSession closed 'EHLO MAIL")


async def test_data_byte_by_byte():
    async with ScriptedNextHop() as hop, connected(hop) as client:
        await client.reply()
        client.writer.write(ENVELOPE)
        assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "250", "354"]
        for byte in b"..a\r\n\r\n..b\r\n.\r\n":
            client.writer.write(bytes((byte,)))
            await client.writer.drain()
        assert await client.reply() == "250 2.0.0 Ok: queued as 1"
        assert hop.messages[0].data == b".a\r\n\r\n.b\r\n"


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        (b"MAIL FROM:<a@x>\r\n", "503 5.5.1 bad sequence of commands"),
        (b"EHLO c\r\nMAIL FROM:<a@x>\r\nMAIL FROM:<a@x>\r\n", "503 5.5.1 bad sequence of commands"),
        (b"RCPT TO:<a@x>\r\n", "503 5.5.1 need MAIL first"),
        (b"EHLO c\r\nMAIL FROM:<a@x>\r\nRSET\r\nDATA\r\n", "503 5.5.1 need MAIL first"),
        (b"EHLO c\r\nMAIL FROM:<a@x>\r\nEHLO c\r\nDATA\r\n", "503 5.5.1 need MAIL first"),
        (b"EHLO c\r\nMAIL FROM:<a@x>\r\nDATA\r\n", "554 5.5.1 no valid recipients"),
        (b"HELO c\r\n", "250 next-hop.test"),
        (b"XFORWARD NAME=x\r\n", "250 2.0.0 Ok"),
        (b"XCLIENT NAME=x\r\n", "220 next-hop.test ESMTP"),
        (b"EHLO c\r\nXCLIENT NAME=x\r\nMAIL FROM:<>\r\n", "503 5.5.1 bad sequence of commands"),
        (b"WHAT\r\n", "500 5.5.2 command not recognized"),
        (b"\r\n", "500 5.5.2 command not recognized"),
    ],
)
async def test_own_replies(lines, reply):
    async with (
        ScriptedNextHop(keywords=["PIPELINING", "XCLIENT NAME", "XFORWARD NAME"]) as hop,
        connected(hop) as client,
    ):
        await client.reply()
        last = ""
        for line in lines.splitlines(keepends=True):
            last = await client.ask(line)
        assert last == reply
        assert hop.connections[0].violations == []


async def test_xclient_is_unknown_unless_offered():
    async with ScriptedNextHop() as hop, connected(hop) as client:
        await client.reply()
        assert (await client.ask(b"XCLIENT NAME=x\r\n"))[:3] == "500"
        assert (await client.ask(b"XFORWARD NAME=x\r\n"))[:3] == "500"


@pytest.mark.parametrize(
    ("keywords", "sent", "violations"),
    [
        ([], b"NOOP\r\nRSET\r\n", ["bytes after NOOP, before its reply"]),
        (["PIPELINING"], b"RSET\r\nRSET\r\n", []),
        (["PIPELINING"], b"EHLO c\r\nRSET\r\n", ["bytes after EHLO, before its reply"]),
        (["PIPELINING"], b"RSET\nRSET\r\n", ["bare LF after b'RSET\\n'"]),
    ],
)
async def test_violations_of_pipelining(keywords, sent, violations):
    async with ScriptedNextHop(keywords=keywords) as hop, connected(hop) as client:
        await client.reply()
        await client.ask(sent)
        await client.reply()
        assert hop.connections[0].violations == violations


async def test_violations_in_data():
    async with ScriptedNextHop() as hop, connected(hop) as client:
        await client.reply()
        client.writer.write(ENVELOPE)
        for _ in range(4):
            await client.reply()
        await client.ask(b"a\nb\rc\r\n.d\r\n.\r\n")
        assert hop.connections[0].violations[1:] == [
            "bare CR or LF in the data at 1",
            "bare CR or LF in the data at 3",
            "no dot-stuffing at 7",
        ]
        assert hop.messages[0].data == b"a\nb\rc\r\nd\r\n"


async def test_replies_in_turn_by_function_and_as_values():
    script = {
        "MAIL": InTurn("451 4.3.0 later", None),
        "RCPT": lambda argument: Reply.of(250, "for " + argument.decode()),
        ".": InTurn("552 5.3.4 too big", b"250 raw\r\n"),
    }
    async with ScriptedNextHop(script) as hop, connected(hop) as client:
        await client.reply()
        await client.ask(b"EHLO c\r\n")
        assert await client.ask(b"MAIL FROM:<a@x>\r\n") == "451 4.3.0 later"
        for reply in ("552 5.3.4 too big", "250 raw"):
            assert await client.ask(b"MAIL FROM:<a@x>\r\n") == "250 2.0.0 Ok"
            assert await client.ask(b"RCPT TO:<b@x>\r\n") == "250 for TO:<b@x>"
            assert await client.ask(b"DATA\r\n") == "354 go ahead"
            assert await client.ask(b"x\r\n.\r\n") == reply
        assert [message.code for message in hop.messages] == [552, 250]
        assert hop.accepted == hop.messages[1:]


async def test_scripts_by_connection_and_greetings():
    scripts = [{"CONNECT": "421 4.3.2 closing"}, {"CONNECT": "554 no"}, {}]
    async with ScriptedNextHop(scripts) as hop:
        for greeting in ("421 4.3.2 closing", "554 no", "220 next-hop.test ESMTP"):
            async with connected(hop) as client:
                assert await client.reply() == greeting
                if greeting.startswith("421"):
                    assert await client.reader.read() == b""


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (Close(), b""),
        (["250 ok", Close()], b"250 ok\r\n"),
        ([HalfLine("250 2.0.0 Ok"), Close()], b"250 2."),
        ([Garbage(b"junk"), Close()], b"junk"),
        ("421 4.3.2 bye", b"421 4.3.2 bye\r\n"),
    ],
)
@pytest.mark.parametrize("verb", ["EHLO", "."])
async def test_faults(verb, answer, read):
    async with ScriptedNextHop({verb: answer}) as hop, connected(hop) as client:
        await client.reply()
        if verb == ".":
            client.writer.write(ENVELOPE)
            for _ in range(4):
                await client.reply()
        client.writer.write(b"EHLO c\r\n" if verb == "EHLO" else b"x\r\n.\r\n")
        assert await client.reader.read() == read
        await hop.wait_closed()
        assert len(hop.messages) == (verb == ".")


async def test_reset_after_the_final_dot():
    async with ScriptedNextHop({".": Reset()}) as hop, connected(hop) as client:
        await client.reply()
        client.writer.write(ENVELOPE)
        for _ in range(4):
            await client.reply()
        client.writer.write(b"x\r\n.\r\n")
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
        assert hop.messages[0].code is None
        assert not hop.accepted


async def test_late_and_silence():
    go = asyncio.Event()
    script = {"NOOP": [Late(go), "250 at last"], "RSET": Silence()}
    async with ScriptedNextHop(script) as hop, connected(hop) as client:
        await client.reply()
        client.writer.write(b"RSET\r\nNOOP\r\n")
        await hop.wait_for(lambda: hop.connections[0].verbs == "RSET NOOP")
        go.set()
        assert await client.reply() == "250 at last"


async def test_what_came_before_a_hangup_is_recorded():
    async with ScriptedNextHop() as hop:
        async with connected(hop) as client:
            await client.reply()
            client.writer.write(b"RSET\r\nQUIT\r\n")
            await client.writer.drain()
            client.writer.close()
            await client.writer.wait_closed()
        await hop.wait_for(lambda: hop.connections[0].verbs == "RSET QUIT")
