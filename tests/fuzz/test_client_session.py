"""`MilterSession` on real sockets, against milters that say anything, in any pieces, or nothing."""

import asyncio
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milterchain.errors import MilterError, RemoteProtocolError
from milterchain.milter.client import ClientOptions, Content, MilterSession
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.flags import ALL_ACTIONS, Command, Protocol, Response
from milterchain.milter.framing import encode_packet
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    AnyCommand,
    AnyResponse,
    Connect,
    Data,
    Helo,
    Mail,
    OptNeg,
    Progress,
    QuitNewConnection,
    Rcpt,
    Reject,
    ReplaceBody,
    Reply,
    Skip,
)
from milterchain.testing.faults import Close, Fault, Reset
from milterchain.testing.peer import PATIENCE, Peer, ScriptedServer

FUZZ = settings.get_profile("fuzz-sockets")

MAX_REPLY = 300
READ = 256 * 1024
"""What asyncio reads at once."""
OPTIONS = ClientOptions(
    connect_timeout=0.1,
    command_timeout=0.1,
    content_timeout=0.1,
    total_timeout=0.3,
    max_reply=MAX_REPLY,
    max_edits=20,
    max_edit_bytes=5000,
)
CONTENT = Content(
    headers=[(b"Subject", b" fuzz"), (b"X", b"\ta\n b")],
    body=lambda size: [b"x" * size, b"rest"],
    body_size=70_000,
)
CONTINUE = encode_packet(Response.CONTINUE)
END_OF_MESSAGE = encode_packet(Command.END_OF_MESSAGE)
SILENT = Protocol(sum(bit for bit in Protocol if (bit.name or "").startswith("NO_REPLY")))
PROTOCOL = st.sets(st.sampled_from(list(Protocol))).map(lambda bits: Protocol(sum(bits) & 0x1FFFFF))


class Watched(MilterSession):
    """Notes the most bytes that waited."""

    most = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.most = max(self.most, self._connection.unread)


def packet(message: AnyResponse) -> bytes:
    return encode_packet(message.code, message.encode())


USUAL_ANSWERS = st.sampled_from(
    [
        *[[CONTINUE]] * 8,
        [CONTINUE[:3], CONTINUE[3:]],
        [packet(Progress()), CONTINUE],
        [packet(AddHeader(b"A", b"b")), packet(ReplaceBody(b"x")), CONTINUE],
        [packet(Skip())],
        [packet(Accept())],
        [packet(Reject())],
    ]
)
ANY_ANSWERS = st.one_of(
    st.lists(st.from_type(AnyResponse).map(packet), max_size=3),
    st.lists(st.builds(encode_packet, st.integers(0, 255), st.binary(max_size=20)), max_size=2),
    st.lists(st.binary(max_size=12), max_size=2),
    st.sampled_from([[CONTINUE + CONTINUE], [b"\0"], [b"\0" * 4], [Close()], [Reset()]]),
)
"""What a milter says when it has read something: in so many writes, and in which way it leaves."""
OPTNEGS = st.builds(OptNeg, version=st.just(6), actions=st.just(ALL_ACTIONS), protocol=PROTOCOL)
USUAL_STEPS = [Connect(hostname=b"h"), Helo(b"h"), *["message"] * 4, Abort(), QuitNewConnection()]
STEPS = st.one_of(
    st.sampled_from([*USUAL_STEPS, Mail(b"<>"), Rcpt(b"<>"), Data(), "stream", "content"]),
    st.from_type(AnyCommand),
)


class AnyMilter(ScriptedServer[Peer]):
    """Says the next thing each time that it has read something; when it has no more, Continue or nothing."""

    def __init__(self, said: list[list[bytes | Fault]], then: list[bytes]) -> None:
        super().__init__()
        self.said = iter(said)
        self.then = then

    def _peer(self, reader, writer):
        return Peer(reader, writer, self.changed)

    async def _converse(self, peer):
        while True:
            await peer.news()
            for item in next(self.said, self.then):
                if isinstance(item, Fault):
                    await peer.commit(item)
                else:
                    await peer.send(item)
                await asyncio.sleep(0)


async def play(session: MilterSession, steps: list[AnyCommand | str]) -> None:
    """Do what an MTA would, and what it should not; only the documented errors may come."""
    for step in steps:
        with suppress(MilterError):
            if step == "message":
                await play(session, [Mail(b"<>"), Rcpt(b"<>"), Data(), "stream"])
            elif isinstance(step, str):
                result = await session.content(CONTENT, pipelined=step == "stream")
                assert isinstance(result.reply, Reply)
            elif step.code in {Command.ABORT, Command.QUIT, Command.QUIT_NEW_CONNECTION}:
                session.send(step)
            elif (future := session.command(step)) is not None:
                assert isinstance(await future, Reply)


async def converse(said, then, steps) -> None:
    async with asyncio.timeout(PATIENCE), AnyMilter(said, then) as milter:
        try:
            session = await Watched.open(Endpoint(host="127.0.0.1", port=milter.port), OPTIONS)
        except MilterError:
            return
        await play(session, steps)
        with suppress(MilterError):
            await session.quit()
        session.close()
        await session.wait_closed()
        assert session.failure is None or isinstance(session.failure, MilterError)
        assert session.most <= MAX_REPLY + READ
        future = session.command(Helo(b"h")) if session.negotiated.replies(Command.HELO) else None
        with pytest.raises(MilterError):
            await (future or session.content(CONTENT, pipelined=False))


@FUZZ
@given(
    optneg=OPTNEGS,
    usual=st.lists(USUAL_ANSWERS, max_size=20),
    answers=st.lists(ANY_ANSWERS, max_size=3),
    then=st.sampled_from([[CONTINUE], [CONTINUE], [CONTINUE], []]),
    first=st.lists(st.sampled_from(USUAL_STEPS), max_size=4),
    steps=st.lists(STEPS, max_size=6),
)
def test_any_milter(optneg, usual, answers, then, first, steps):
    asyncio.run(
        converse([[packet(optneg)], *usual, *answers], then, [Connect(hostname=b"h"), *first, *steps])
    )


@FUZZ
@given(optneg=ANY_ANSWERS)
def test_any_answer_to_the_offer(optneg):
    asyncio.run(converse([optneg], [], [Connect(hostname=b"h")]))


class Flood(AnyMilter):
    """Says the same for ever, as fast as it is taken, from the end of the message on."""

    async def _converse(self, peer):
        await peer.news()
        await peer.send(packet(OptNeg(version=6, actions=ALL_ACTIONS, protocol=SILENT)))
        while not peer.reads[-1].endswith(END_OF_MESSAGE):
            await peer.news()
        while True:
            await peer.send(self.then[0] * 1000)


@pytest.mark.parametrize(
    "said",
    [
        packet(Progress()),
        packet(AddHeader(b"A", b"b")),
        packet(ReplaceBody(b"x" * MAX_REPLY)),
        packet(Accept()),
        CONTINUE,
        struct.pack("!I", MAX_REPLY) + b"b" + b"x" * 100,
        b"\0\0\0",
    ],
    ids=["progress", "edits", "body", "accept", "continue", "cut off", "length"],
)
@pytest.mark.parametrize("pipelined", [False, True])
async def test_a_milter_that_never_ends_is_left(said, pipelined):
    async with asyncio.timeout(PATIENCE), Flood([], [said]) as milter:
        session = await Watched.open(Endpoint(host="127.0.0.1", port=milter.port), OPTIONS)
        for step in (Connect(hostname=b"h"), Mail(b"<>"), Rcpt(b"<>"), Data()):
            session.command(step)
        if said in {CONTINUE, packet(Accept())}:
            await session.content(CONTENT, pipelined=pipelined)
            await session.wait_closed()
            assert isinstance(session.failure, RemoteProtocolError)
        else:
            with pytest.raises(MilterError):
                await session.content(CONTENT, pipelined=pipelined)
            await session.wait_closed()
    assert session.failure is not None
    assert session.most <= MAX_REPLY + READ
