"""`MilterServer` on real sockets: MTAs that say anything, filters that answer anything, and both at once."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milterchain.errors import MilterError
from milterchain.milter import connection
from milterchain.milter.client import ClientOptions, Content, MilterSession
from milterchain.milter.connection import MAX_COMMAND
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.filter import Milter
from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, Command, Protocol
from milterchain.milter.framing import PacketReader, encode_packet
from milterchain.milter.messages import (
    Abort,
    Accept,
    AnyCommand,
    Body,
    Connect,
    ConnFail,
    Continue,
    Data,
    Discard,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    Mail,
    OptNeg,
    QuitNewConnection,
    Rcpt,
    Reject,
    Reply,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
    Unknown,
    decode_response,
)
from milterchain.milter.server import MilterServer
from milterchain.milter.server_options import NegotiationOptions, ServerOptions
from milterchain.milter.state import FINAL
from milterchain.testing import RawMta
from milterchain.testing.peer import PATIENCE

FUZZ = settings.get_profile("fuzz-sockets")

OPTIONS = ServerOptions(
    negotiation_timeout=0.5, idle_timeout=0.5, handler_timeout=0.5, write_timeout=0.3, close_timeout=0.5
)
HASTY = replace(OPTIONS, negotiation_timeout=0.05, idle_timeout=0.05)
"""For MTAs that stop in the middle of a packet, one after the other."""
PATIENT = ServerOptions(negotiation_timeout=PATIENCE, idle_timeout=PATIENCE, handler_timeout=PATIENCE)
"""For MTAs that obey: no stall of the machine is to look like a failure."""
HERE = Endpoint(host="127.0.0.1")
READ_AHEAD = 1024 * 1024
"""Bytes that may wait besides one packet: what the server and asyncio read ahead, with room to spare."""
HELD_BACK = 1024 * 1024
"""Bytes that may wait to be written."""

OFFER = OptNeg(version=6, actions=ALL_ACTIONS, protocol=ALL_PROTOCOL)
MESSAGE = [Mail(b"<>"), Rcpt(b"<>"), Data(), Header(b"a", b"b"), EndOfHeaders(), Body(b"x"), EndOfMessage()]
EXPECTED = (
    "the filter failed",
    "the filter took more than",
    "the filter's answer is wrong",
    "connection closed: %s",
)
"""How begins what the server logs of filters and MTAs that misbehave."""

BEHAVIOURS = [
    *[None] * 20,
    *[Continue(), Skip(), Accept(), Reject(), TempFail(), Discard(), Shutdown(), ConnFail()],
    *[ReplyCode(b"550 5.7.1 no"), ReplyCode(b"nonsense"), OFFER, 42],
    *["raise", "progress", "edit", "edits", "yield", "cancelled"],
]
ORDERLY = [behaviour for behaviour in BEHAVIOURS if behaviour != "cancelled"]


class AnyFilter(Milter):
    """Does the next of the behaviours at each event."""

    actions = ALL_ACTIONS

    def __init__(self, behaviours, made):
        self.behaviours = list(behaviours)
        self.open = False
        self.begun = self.ended = 0
        made.append(self)

    async def do(self, *_):
        assert not self.ended
        what = self.behaviours[0]
        self.behaviours.append(self.behaviours.pop(0))
        match what:
            case "raise":
                raise ValueError("what the author did not think of")
            case "cancelled":
                raise asyncio.CancelledError
            case "progress":
                await self.progress()
            case "edit":
                await self.modifier.add_header(b"X", b"y")
            case "edits":
                await self.modifier.replace_body(b"x" * 500_000)
                await self.modifier.quarantine(b"why not")
            case "yield":
                await asyncio.sleep(0)
            case _:
                return what
        return None

    connect = helo = rcpt = data = header = end_of_headers = body = end_of_message = unknown = do

    async def new_connection(self):
        self.begun += 1

    async def mail(self, _sender, _args):
        assert not self.open
        self.open = True
        return await self.do()

    async def abort(self):
        self.open = False
        await self.do()

    async def close(self):
        self.ended += 1


@pytest.fixture(autouse=True)
def most_unread(monkeypatch):
    """The most bytes that waited in a connection to be events."""

    class Watched(PacketReader):
        most = 0

        def feed_from(self, view, size):
            super().feed_from(view, size)
            Watched.most = max(Watched.most, len(self.unread))

    monkeypatch.setattr(connection, "PacketReader", Watched)
    yield lambda: Watched.most
    assert Watched.most <= MAX_COMMAND + READ_AHEAD


def check(made, caplog):
    assert [each.ended for each in made] == [1] * len(made)
    assert all(each.begun <= 1 for each in made)
    bad = [
        record
        for record in caplog.records
        if record.levelno > logging.INFO and not record.msg.startswith(EXPECTED)
    ]
    assert [record.getMessage() for record in bad] == []


def packet(message: AnyCommand) -> bytes:
    return encode_packet(message.code, message.encode())


PIECES = st.one_of(
    st.sampled_from([*MESSAGE, Connect(hostname=b"h"), Abort(), QuitNewConnection(), Unknown(b"?")]).map(
        packet
    ),
    st.just(b"".join(map(packet, MESSAGE))),
    st.from_type(AnyCommand).map(packet),
    st.binary(max_size=12),
)
POLITE = [packet(OFFER), packet(Connect(hostname=b"h"))]


async def speak(mta: RawMta, pieces: list[bytes], cuts: list[int]) -> None:
    """Write in pieces of these sizes, and let the server read in between."""
    data = b"".join(pieces)
    for size in cuts:
        if mta._writer.is_closing():
            return
        mta.send(data[:size])
        data = data[size:]
        await asyncio.sleep(0)
    mta.send(data, b"\0\0\0\1Q\0\0\0\0")


@FUZZ
@given(
    polite=st.sampled_from([POLITE, POLITE, []]),
    pieces=st.lists(PIECES, max_size=12),
    cuts=st.lists(st.integers(1, 40), max_size=12),
    behaviours=st.lists(st.sampled_from(BEHAVIOURS), min_size=1, max_size=12),
    negotiation=st.builds(
        NegotiationOptions,
        protocol=st.none() | st.sets(st.sampled_from(list(Protocol))).map(sum).map(Protocol),
    ),
)
def test_any_mta(caplog, polite, pieces, cuts, behaviours, negotiation):
    made: list[AnyFilter] = []

    async def converse():
        async with (
            asyncio.timeout(PATIENCE),
            MilterServer(
                lambda: AnyFilter(behaviours, made), [HERE], options=HASTY, negotiation=negotiation
            ) as server,
            RawMta(server.endpoints[0]) as mta,
        ):
            await speak(mta, [*polite, *pieces], cuts)
            with suppress(ConnectionResetError):
                return await mta.closed()
        return b""

    caplog.clear()
    received = asyncio.run(converse())
    reader = PacketReader(MAX_COMMAND)
    reader.feed(received)
    final = [code for code, payload in reader if decode_response(code, payload) and code in FINAL]
    assert not reader.unread
    assert len(final) <= sum(map(len, pieces)) + 2
    check(made, caplog)


CONTENT = Content(
    headers=[(b"Subject", b" fuzz"), (b"X", b"\ta\n b")],
    body=lambda size: [b"x" * size, b"rest"],
    body_size=70_000,
)
STEPS = st.sampled_from(
    [
        *[Connect(hostname=b"h"), Helo(b"h"), Unknown(b"?"), Abort(), QuitNewConnection()],
        *["stream", "content"] * 4,
    ]
)
OBEYING = ClientOptions(command_timeout=PATIENCE, content_timeout=PATIENCE)


async def play(session: MilterSession, steps) -> None:
    for step in steps:
        if session.closed:
            return
        with suppress(MilterError):
            if isinstance(step, str):
                session.send(Abort())
                for command in (Mail(b"<>"), Rcpt(b"<>"), Data()):
                    reply = await (session.command(command, [(b"i", b"1")]) or nothing())
                    if not isinstance(reply, Continue | Skip):
                        break
                else:
                    await session.content(CONTENT, pipelined=step == "stream")
            elif step.code in {Command.ABORT, Command.QUIT_NEW_CONNECTION}:
                session.send(step)
                if step.code is Command.QUIT_NEW_CONNECTION:
                    await (session.command(Connect(hostname=b"h")) or nothing())
            else:
                assert isinstance(await (session.command(step) or nothing()), Reply)


async def nothing() -> Reply:
    return Continue()


@FUZZ
@given(
    steps=st.lists(STEPS, max_size=8),
    behaviours=st.lists(st.sampled_from(ORDERLY), min_size=1, max_size=12),
    negotiation=st.builds(
        NegotiationOptions,
        protocol=st.none() | st.sets(st.sampled_from(list(Protocol))).map(sum).map(Protocol),
    ),
)
def test_an_mta_that_obeys_is_never_surprised(caplog, steps, behaviours, negotiation):
    """Whatever a filter does: what the server says is what the protocol allows."""
    made: list[AnyFilter] = []

    async def converse():
        async with (
            asyncio.timeout(PATIENCE),
            MilterServer(
                lambda: AnyFilter(behaviours, made), [HERE], options=PATIENT, negotiation=negotiation
            ) as server,
        ):
            session = await MilterSession.open(server.endpoints[0], OBEYING)
            await play(session, [Connect(hostname=b"h"), *steps])
            with suppress(MilterError):
                await session.quit()
            await session.wait_closed()
            return session.failure

    caplog.clear()
    failure = asyncio.run(converse())
    assert failure is None, failure
    check(made, caplog)


EVERYTHING = NegotiationOptions(protocol=Protocol(0))
FLOOD = 2 * 1024 * 1024
CHATTER = 16 * 1024 * 1024
"""More than the buffers of both sides and of the system hold."""


class Chatty(Milter):
    """Has far more to say than anybody reads."""

    actions = ALL_ACTIONS

    async def header(self, _name, _value):
        return None

    async def end_of_message(self, modifier):
        for _ in range(CHATTER // 100_000):
            await modifier.replace_body(b"x" * 100_000)


FLOODS = {
    "macros": packet(Macros(ord("C"), tuple((b"{%d}" % n, b"x" * 100) for n in range(100)))),
    "ever new stages": b"".join(packet(Macros(stage, ((b"i", b"x" * 1000),))) for stage in range(256)),
    "aborts": packet(Abort()) * 1000,
    "headers": b"".join(map(packet, MESSAGE[:3])) + packet(Header(b"a", b"b")) * 1000,
    "messages": b"".join(map(packet, MESSAGE)),
    "bodies out of order": (MAX_COMMAND + 1).to_bytes(4, "big") + b"B" + b"x" * MAX_COMMAND,
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_an_mta_that_never_stops_and_never_reads(flood, most_unread):
    """It is not read faster than the filter works, and left when it does not take the replies."""
    sent = 0
    async with (
        asyncio.timeout(PATIENCE),
        MilterServer(Chatty, [HERE], options=OPTIONS, negotiation=EVERYTHING) as server,
        RawMta(server.endpoints[0]) as mta,
    ):
        mta.send(*POLITE)
        with suppress(OSError):
            while sent < FLOOD:
                mta.send(FLOODS[flood])
                sent += len(FLOODS[flood])
                for session in server._sessions.values():
                    assert session._writer.transport.get_write_buffer_size() <= HELD_BACK
                async with asyncio.timeout(2 * OPTIONS.write_timeout):
                    await mta._writer.drain()
        mta.send(b"\0\0\0\1Q")
        while server.connections:  # noqa: ASYNC110 - it is not to read a byte
            await asyncio.sleep(0.01)
        assert most_unread() > 0


async def test_an_mta_that_sends_nothing_but_a_piece_is_left():
    async def begin(piece: bytes) -> None:
        async with RawMta(server.endpoints[0]) as mta:
            mta.send(piece)
            await mta.closed()

    async with MilterServer(Chatty, [HERE], options=OPTIONS, negotiation=EVERYTHING) as server:
        async with asyncio.TaskGroup() as group:
            for piece in (b"", b"\0", packet(OFFER)[:-1], packet(OFFER) + b"\0\0\0\5H"):
                group.create_task(begin(piece))
        assert server.connections == 0


async def test_a_filter_that_has_more_to_say_than_is_read():
    async with (
        asyncio.timeout(PATIENCE),
        MilterServer(Chatty, [HERE], options=OPTIONS, negotiation=EVERYTHING) as server,
        RawMta(server.endpoints[0]) as mta,
    ):
        await mta.negotiate()
        mta._writer.transport.pause_reading()
        begun = asyncio.get_running_loop().time()
        mta.send(Connect(hostname=b"h"), *MESSAGE)
        assert server.connections == 1
        while server.connections:
            for session in server._sessions.values():
                assert session._writer.transport.get_write_buffer_size() <= HELD_BACK
            await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - begun >= OPTIONS.write_timeout


async def test_the_end_of_the_server_ends_everything():
    made: list[AnyFilter] = []
    server = MilterServer(lambda: AnyFilter(["yield"], made), [HERE], options=OPTIONS)
    await server.start()
    async with RawMta(server.endpoints[0]) as mta, asyncio.timeout(PATIENCE):
        assert isinstance(await mta.ask(*POLITE), OptNeg)
        mta.send(*MESSAGE * 100)
        await server.close()
    assert [each.ended for each in made] == [1]
    with pytest.raises(MilterError):
        await MilterSession.open(server.endpoints[0], OBEYING)
