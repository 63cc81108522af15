"""The scripted milter against raw bytes on a plain socket connection."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, Action, Command, Protocol
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    AnyCommand,
    Body,
    Connect,
    Continue,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    Mail,
    OptNeg,
    Quit,
    Rcpt,
    Reject,
    ReplyCode,
    Unknown,
)
from milterchain.testing import (
    Close,
    Garbage,
    HalfPacket,
    InTurn,
    Late,
    Reset,
    ScriptedMilter,
    Silence,
    StopReading,
    refusing_address,
)

OFFER = OptNeg(version=6, actions=ALL_ACTIONS, protocol=ALL_PROTOCOL)
CONTINUE = b"\0\0\0\1c"


def packets(*messages: AnyCommand) -> bytes:
    frames = []
    for message in messages:
        payload = message.encode()
        frames.append(struct.pack("!IB", len(payload) + 1, message.code) + payload)
    return b"".join(frames)


class Mta:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *messages: AnyCommand) -> None:
        self.writer.write(packets(*messages))

    async def reply(self) -> bytes:
        async with asyncio.timeout(5):
            head = await self.reader.readexactly(4)
            return head + await self.reader.readexactly(struct.unpack("!I", head)[0])

    async def ask(self, *messages: AnyCommand) -> bytes:
        self.send(*messages)
        return await self.reply()


@asynccontextmanager
async def connected(milter: ScriptedMilter, offer: OptNeg | None = OFFER) -> AsyncIterator[Mta]:
    kind, _, rest = milter.endpoint.partition(":")
    if kind == "unix":
        reader, writer = await asyncio.open_unix_connection(rest)
    else:
        host, _, port = rest.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    mta = Mta(reader, writer)
    try:
        if offer is not None:
            await mta.ask(offer)
        yield mta
    finally:
        writer.transport.abort()


async def test_a_whole_dialogue_over_tcp():
    script = {
        Command.RCPT: InTurn(Continue(), ReplyCode(b"550 5.1.1 no")),
        Command.END_OF_MESSAGE: [AddHeader(b"X", b"1"), Accept()],
    }
    async with ScriptedMilter(script) as milter, connected(milter, None) as mta:
        assert await mta.ask(OFFER) == b"\0\0\0\x0dO" + struct.pack("!III", 6, 0x1FF, 0)
        assert await mta.ask(Macros(ord("C"), ((b"j", b"mx"),)), Connect(hostname=b"h")) == CONTINUE
        assert await mta.ask(Helo(b"h")) == CONTINUE
        assert await mta.ask(Mail(b"<a@x>")) == CONTINUE
        assert await mta.ask(Rcpt(b"<b@x>")) == CONTINUE
        assert await mta.ask(Rcpt(b"<c@x>")) == b"\0\0\0\x0ey550 5.1.1 no\0"
        assert await mta.ask(Data()) == CONTINUE
        mta.send(Header(b"A", b"b"), EndOfHeaders(), Body(b"hello"), EndOfMessage())
        assert [await mta.reply() for _ in range(3)] == [CONTINUE] * 3
        assert await mta.reply() == b"\0\0\0\5hX\x001\0"
        assert await mta.reply() == b"\0\0\0\1a"
        mta.send(Abort(), Quit())
        assert await mta.reader.read() == b""

        connection = await milter.wait_closed()
        assert connection.codes == "OCHMRRTLNBEAQ"
        assert connection.codes_with_macros == "ODCCHMRRTLNBEAQ"
        assert connection.of(Rcpt) == [Rcpt(b"<b@x>"), Rcpt(b"<c@x>")]
        assert connection.macros(Command.CONNECT) == {b"j": b"mx"}
        assert connection.batches[1] == (Macros(ord("C"), ((b"j", b"mx"),)), Connect(hostname=b"h"))
        assert connection.violations == []
        assert "OCHM" in repr(connection)


async def test_unix_socket_and_byte_by_byte(tmp_path):
    async with ScriptedMilter(unix_path=tmp_path / "m") as milter:
        assert milter.endpoint == f"unix:{tmp_path}/m" == f"unix:{milter.address}"
        async with connected(milter) as mta:
            for byte in packets(Helo(b"x"), Mail(b"<>")):
                mta.writer.write(bytes((byte,)))
                await mta.writer.drain()
            assert [await mta.reply() for _ in range(2)] == [CONTINUE] * 2
    assert milter.connections[0].codes == "OHM"
    assert not (tmp_path / "m").exists()


async def test_ipv6_endpoint():
    async with ScriptedMilter(host="::1") as milter, connected(milter):
        assert milter.endpoint == f"inet6:[::1]:{milter.port}"


async def test_no_reply_and_declined_commands():
    answer = OptNeg(version=6, actions=Action(0), protocol=Protocol.NO_REPLY_HEADER | Protocol.NO_HELO)
    async with ScriptedMilter(negotiate=answer) as milter, connected(milter, None) as mta:
        assert await mta.ask(OFFER) == b"\0\0\0\x0dO" + answer.encode()
        assert await mta.ask(Header(b"a", b"b"), Helo(b"x"), EndOfHeaders()) == CONTINUE
        mta.send(Quit())
        connection = await milter.wait_closed()
        assert connection.violations == ["HELO although it was declined"]
        assert connection.agreed == answer


async def test_replies_anyway():
    answer = OptNeg(version=6, actions=Action(0), protocol=Protocol.NO_REPLY_HEADER)
    async with ScriptedMilter(negotiate=answer, replies_anyway=True) as milter, connected(milter) as mta:
        assert await mta.ask(Header(b"a", b"b")) == CONTINUE


async def test_version_2_knows_neither_data_nor_unknown():
    answer = OptNeg(version=2, actions=Action(0), protocol=Protocol(0))
    async with ScriptedMilter(negotiate=answer) as milter, connected(milter) as mta:
        assert await mta.ask(Data(), Unknown(b"x"), Helo(b"x")) == CONTINUE
        assert milter.connections[0].violations == ["DATA in version 2", "UNKNOWN in version 2"]


async def test_before_negotiation_and_packets_that_are_none():
    async with ScriptedMilter() as milter, connected(milter, None) as mta:
        assert await mta.ask(Helo(b"x")) == CONTINUE
        mta.writer.write(b"\0\0\0\1\x01" + b"\0\0\0\0x" + b"")
        await milter.wait_for(lambda: len(milter.connections[0].violations) == 3)
        first, second, third = milter.connections[0].violations
        assert first == "HELO before the option negotiation"
        assert second.startswith("b'\\x01'")
        assert third == "packet of length 0"


async def test_negotiation_by_connection_and_scripts_by_connection():
    negotiate = InTurn([Close()], OptNeg(version=6, actions=Action(0), protocol=Protocol(0)))
    scripts = [{}, {Command.HELO: Reject()}, {Command.HELO: lambda helo: ReplyCode(b"550 " + helo.text)}]
    async with ScriptedMilter(scripts, negotiate=negotiate) as milter:
        async with connected(milter, None) as mta:
            mta.send(OFFER)
            assert await mta.reader.read() == b""
        async with connected(milter) as mta:
            assert await mta.ask(Helo(b"x")) == b"\0\0\0\1r"
        async with connected(milter) as mta:
            assert await mta.ask(Helo(b"x")) == b"\0\0\0\7y550 x\0"


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (Close(), b""),
        ([Continue(), Close()], CONTINUE),
        ([HalfPacket(ReplyCode(b"550 x")), Close()], b"\0\0\0\7y5"),
        ([Garbage(b"junk"), Close()], b"junk"),
        ([b"\0\0\0", b"\1c", Close()], CONTINUE),
    ],
)
async def test_faults(answer, read):
    async with ScriptedMilter({Command.HELO: answer}) as milter, connected(milter) as mta:
        mta.send(Helo(b"x"))
        assert await mta.reader.read() == read
        assert (await milter.wait_closed()).closed_by_peer is False


async def test_reset():
    async with ScriptedMilter({Command.HELO: Reset()}) as milter, connected(milter) as mta:
        mta.send(Helo(b"x"))
        with pytest.raises(ConnectionResetError):
            await mta.reader.read()


async def test_reset_on_a_unix_socket_closes(tmp_path):
    script = {Command.HELO: Reset()}
    async with ScriptedMilter(script, unix_path=tmp_path / "m") as milter, connected(milter) as mta:
        mta.send(Helo(b"x"))
        assert await mta.reader.read() == b""


async def test_silence_records_what_comes_later():
    async with ScriptedMilter({Command.HELO: Silence()}) as milter:
        async with connected(milter) as mta:
            assert await mta.ask(Helo(b"x"), Mail(b"<>")) == CONTINUE
        assert (await milter.wait_closed()).closed_by_peer is True


async def test_late_answers_when_told():
    go = asyncio.Event()
    async with ScriptedMilter({Command.HELO: [Late(go), Accept()]}) as milter, connected(milter) as mta:
        mta.send(Helo(b"x"))
        await milter.wait_for(lambda: milter.connections[0].codes == "OH")
        assert not milter.connections[0].closed
        go.set()
        assert await mta.reply() == b"\0\0\0\1a"


async def test_late_ends_when_the_peer_goes():
    async with ScriptedMilter({Command.HELO: [Late(asyncio.Event()), Accept()]}) as milter:
        async with connected(milter) as mta:
            mta.send(Helo(b"x"))
            await milter.wait_for(lambda: milter.connections[0].codes == "OH")
        assert (await milter.wait_closed()).closed_by_peer is True


async def test_stop_reading():
    go = asyncio.Event()
    script = {Command.HELO: [StopReading(go), Continue()]}
    async with ScriptedMilter(script) as milter, connected(milter) as mta:
        assert await mta.ask(Helo(b"x")) == CONTINUE
        mta.writer.transport.set_write_buffer_limits(high=0)
        mta.send(*[Body(b"x" * 65535)] * 400)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await mta.writer.drain()
        assert len(milter.connections[0].of(Body)) < 400
        go.set()
        await mta.writer.drain()
        await milter.wait_for(lambda: len(milter.connections[0].of(Body)) == 400)


@pytest.mark.parametrize(
    ("commands", "replies"),
    [
        ([Mail(b"<>"), EndOfHeaders(), Body(b"x"), EndOfMessage()], b"ca"),
        ([Mail(b"<>"), EndOfHeaders(), Body(b"x"), Abort(), Mail(b"<>")], b"cac"),
        ([Rcpt(b"<>"), Rcpt(b"<>")], b"rr"),
        ([Unknown(b"x"), Data()], b"rc"),
    ],
)
async def test_drops_after_verdict(commands, replies):
    script = {
        Command.END_OF_HEADERS: Accept(),
        Command.RCPT: Reject(),
        Command.UNKNOWN: Reject(),
        Command.QUIT: [Close()],
    }
    async with ScriptedMilter(script, drops_after_verdict=True) as milter, connected(milter) as mta:
        mta.send(*commands, Quit())
        assert await mta.reader.read() == b"".join(b"\0\0\0\1" + bytes((code,)) for code in replies)


async def test_a_banner_is_no_milter():
    async with ScriptedMilter(banner=b"220 hello\r\n") as milter, connected(milter, None) as mta:
        assert await mta.reader.readline() == b"220 hello\r\n"


async def test_stop_and_start_again_at_the_same_port():
    async with ScriptedMilter() as milter:
        endpoint = milter.endpoint
        async with connected(milter) as mta:
            await milter.stop()
            assert await mta.reader.read() == b""
        await milter.start()
        assert milter.endpoint == endpoint
        async with connected(milter) as mta:
            assert await mta.ask(Helo(b"x")) == CONTINUE


async def test_wait_for_says_what_was_recorded():
    async with ScriptedMilter() as milter, connected(milter):
        with pytest.raises(AssertionError, match="MilterConnection open 'O'"):
            await milter.wait_for(lambda: False, within=0.01)


async def test_a_broken_script_is_reported():
    def broken(_command):
        raise ZeroDivisionError

    async def run() -> None:
        async with ScriptedMilter({Command.HELO: broken}) as milter, connected(milter) as mta:
            mta.send(Helo(b"x"))
            await milter.wait_closed()

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert caught.group_contains(ZeroDivisionError)


def test_in_turn_needs_an_answer():
    with pytest.raises(ValueError, match="at least one"):
        InTurn()


async def test_refusing_address():
    with refusing_address() as (host, port), pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, port)
