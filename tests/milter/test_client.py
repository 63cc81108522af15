"""Sessions against a scripted milter on real sockets, on both event loops."""

import asyncio
import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milterchain.errors import (
    LocalProtocolError,
    MilterClosedError,
    MilterConnectError,
    MilterError,
    MilterTimeoutError,
    NegotiationError,
    NotAMilterError,
    PacketTooLargeError,
    RemoteProtocolError,
)
from milterchain.milter import link
from milterchain.milter.client import ClientOptions, Content, MilterSession
from milterchain.milter.content import encode_macros
from milterchain.milter.endpoint import Endpoint, parse_endpoint
from milterchain.milter.flags import ALL_ACTIONS, DATA_SIZE_1M, Action, Command, Family, Protocol
from milterchain.milter.framing import encode_packet
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    Body,
    Connect,
    Continue,
    Data,
    Discard,
    EndOfMessage,
    Header,
    Helo,
    InsertHeader,
    Mail,
    OptNeg,
    Progress,
    Quarantine,
    Quit,
    QuitNewConnection,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
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

DEFAULT = ClientOptions()
QUICK = ClientOptions(connect_timeout=0.1, command_timeout=0.1, content_timeout=0.1, total_timeout=0.3)
CLIENT = Connect(hostname=b"client.test", family=Family.INET, port=4711, address=b"192.0.2.7")
HEADERS = [(b"From", b" a@b"), (b"Subject", b" hello"), (b"X", b"\ty")]
SMALL = Content(headers=HEADERS, body=lambda size: [bytes(size), b"end"], body_size=65538)


def large(chunks):
    return Content(headers=HEADERS, body=lambda size: [b"x" * size] * chunks, body_size=65535 * chunks)


def agreeing(protocol=0, *, version=6, actions=ALL_ACTIONS, macros=None):
    return OptNeg(version=version, actions=Action(actions), protocol=Protocol(protocol), macros=macros or {})


async def connected(milter, options=DEFAULT):
    return await MilterSession.open(parse_endpoint(milter.endpoint), options)


async def with_message(milter, options=DEFAULT):
    """A session on which DATA was answered."""
    session = await connected(milter, options)
    for command in (CLIENT, Helo(b"client.test"), Mail(b"<a@b>"), Rcpt(b"<c@d>"), Data()):
        reply = session.command(command)
        if reply is not None:
            await reply
    return session


async def until(condition):
    """Wait for what no future announces."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def ended(session):
    async with asyncio.timeout(5):
        await session.wait_closed()


# Opening


@pytest.mark.parametrize("kind", ["inet", "inet6", "unix"])
async def test_a_whole_session(kind, tmp_path):
    where = {"inet": {}, "inet6": {"host": "::1"}, "unix": {"unix_path": tmp_path / "milter"}}[kind]
    script = {Command.END_OF_MESSAGE: [AddHeader(b"X", b"1"), Accept()]}
    async with ScriptedMilter(script, **where) as milter:
        session = await with_message(milter)
        result = await session.content(SMALL, pipelined=True)
        assert (result.reply, result.edits) == (Accept(), (AddHeader(b"X", b"1"),))
        session.send(QuitNewConnection())
        assert await session.command(CLIENT) == Continue()
        await session.quit()
        connection = await milter.wait_closed()
        assert connection.codes == "OCHMRTLLLNBBEKCQ"
        assert connection.violations == []
        assert connection.closed_by_peer or connection.commands[-1] == Quit()
    assert session.failure is None
    assert session.closed


async def test_what_is_offered():
    options = ClientOptions(version=4, actions=Action.ADD_HEADERS, max_data=DATA_SIZE_1M)
    async with ScriptedMilter() as milter:
        session = await connected(milter, options)
        session.close()
        connection = await milter.wait_closed()
        assert connection.commands == [OptNeg(version=4, actions=Action(1), protocol=Protocol(0x37F))]
    assert session.negotiated.version == 4


async def test_macro_lists():
    answer = agreeing(macros={0: (b"j",), 3: (b"{rcpt_addr}", b"i")})
    async with ScriptedMilter(negotiate=answer) as milter:
        session = await connected(milter)
        assert session.negotiated.macros == answer.macros
        session.close()
        await ended(session)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (agreeing(version=7), NegotiationError, "version 7"),
        (agreeing(actions=0x3FF), NegotiationError, "actions 0x200"),
        (b"\0\0\0\5O\0\0\0\6", RemoteProtocolError, "of 4 bytes"),
        (Continue(), RemoteProtocolError, "CONTINUE in reply to OPTNEG"),
        (Close(), MilterClosedError, "when the reply to OPTNEG was due"),
        (Reset(), MilterClosedError, "the reply to OPTNEG"),
        (Silence(), MilterTimeoutError, "no answer to the option negotiation within 0.1 s"),
        (HalfPacket(agreeing()), MilterTimeoutError, "no answer to the option negotiation"),
        ([HalfPacket(agreeing()), Close()], MilterClosedError, r"\(9 bytes of a packet came\)"),
        (Garbage(), NotAMilterError, "no milter packet"),
        (b"UNKNOWN COMMAND\n", NotAMilterError, "clamd"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NotAMilterError, "an HTTP server"),
        (b"\0\xff\xff\xff", PacketTooLargeError, "packet of 16777215 bytes announced, 10001 are"),
    ],
)
async def test_faults_while_opening(answer, error, text):
    options = ClientOptions(connect_timeout=0.1, max_reply=10000)
    async with ScriptedMilter(negotiate=answer) as milter:
        with pytest.raises(error, match=text) as caught:
            await connected(milter, options)
        assert str(caught.value).startswith(f"{milter.endpoint}: ")
        await milter.wait_closed()


async def test_an_smtp_server():
    async with ScriptedMilter(banner=b"220 mx.test ESMTP\r\n") as milter:
        with pytest.raises(NotAMilterError, match=r"an SMTP or FTP server: b'220 mx.test ESMTP'"):
            await connected(milter)


async def test_nobody_listens():
    with refusing_address() as (host, port):
        endpoint = Endpoint(host=host, port=port)
        with pytest.raises(MilterConnectError) as caught:
            await MilterSession.open(endpoint)
    assert str(caught.value) == f"inet:127.0.0.1:{port}: Connection refused [ECONNREFUSED]"


async def test_no_such_path(tmp_path):
    path = tmp_path / "none"
    with pytest.raises(MilterConnectError) as caught:
        await MilterSession.open(Endpoint(path=str(path)))
    assert str(caught.value) == f"unix:{path}: No such file or directory [ENOENT]"


async def test_a_path_that_is_no_socket(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(MilterConnectError, match=r"\[ECONNREFUSED\]|\[ENOTSOCK\]"):
        await MilterSession.open(Endpoint(path=str(path)))


async def test_no_such_host():
    with pytest.raises(MilterConnectError, match=r"inet6:127\.0\.0\.1:9: "):
        await MilterSession.open(Endpoint(host="127.0.0.1", port=9, family="inet6"))


async def test_a_path_that_nobody_accepts_on(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        with pytest.raises(MilterTimeoutError, match=r"no connection within 0\.1 s"):
            await MilterSession.open(Endpoint(path=path), QUICK)


async def test_opening_is_cancelled():
    async with ScriptedMilter(negotiate=Silence()) as milter:
        task = asyncio.get_running_loop().create_task(connected(milter))
        await milter.wait_for(lambda: milter.connections and milter.connections[0].commands)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await milter.wait_closed()).closed_by_peer


async def test_without_quick_acknowledgements(monkeypatch):
    monkeypatch.setattr(link, "_TCP_QUICKACK", None)
    async with ScriptedMilter() as milter:
        session = await with_message(milter)
        assert (await session.content(SMALL, pipelined=True)).reply == Continue()
        await session.quit()


# Commands


async def test_macros_and_command_in_one_write():
    async with ScriptedMilter() as milter:
        session = await connected(milter)
        assert await session.command(CLIENT, [(b"j", b"mx"), (b"{if_name}", b"")]) == Continue()
        connection = milter.connections[0]
        assert connection.macros(Command.CONNECT) == {b"j": b"mx", b"{if_name}": b""}
        assert len(connection.batches[1]) == 2
        await session.quit()


@pytest.mark.parametrize(
    "reply",
    [Continue(), Accept(), Reject(), TempFail(), Discard(), Skip(), Shutdown(), ReplyCode(b"550 5.7.1 no")],
)
async def test_every_reply(reply):
    async with ScriptedMilter(default=reply) as milter:
        session = await connected(milter)
        assert await session.command(CLIENT) == reply
        assert await session.command(Helo(b"x")) == reply
        assert await session.command(Unknown(b"x")) == reply
        await session.quit()


async def test_what_is_declined_or_not_answered():
    protocol = Protocol.NO_HELO | Protocol.NO_REPLY_CONNECT | Protocol.NO_REPLY_RCPT
    async with ScriptedMilter(negotiate=agreeing(protocol)) as milter:
        session = await connected(milter)
        assert session.command(CLIENT, [(b"j", b"mx")]) is None
        assert session.command(Helo(b"x"), [(b"{cipher}", b"y")]) is None
        assert session.command(Helo(b"x")) is None
        assert await session.command(Mail(b"<>")) == Continue()
        assert session.command(Rcpt(b"<a>")) is None
        assert await session.command(Data()) == Continue()
        await session.quit()
        connection = await milter.wait_closed()
        assert connection.codes_with_macros == "ODCCDHMRTQ"
        assert connection.violations == []


@pytest.mark.parametrize(
    ("version", "codes"), [(2, "OCHMRLLLNBBEQ"), (3, "OCUHMRLLLNBBEQ"), (4, "OCUHMRTLLLNBBEQ")]
)
async def test_old_versions(version, codes):
    async with ScriptedMilter(negotiate=agreeing(version=version)) as milter:
        session = await connected(milter)
        for command in (CLIENT, Unknown(b"X"), Helo(b"x"), Mail(b"<>"), Rcpt(b"<a>"), Data()):
            reply = session.command(command, [(b"i", b"1")])
            if reply is not None:
                await reply
        await session.content(SMALL, pipelined=True)
        await session.quit()
        connection = await milter.wait_closed()
        assert connection.codes == codes
        assert ("DU" in connection.codes_with_macros) is (version > 2)
        assert ("DT" in connection.codes_with_macros) is (version > 3)


async def test_commands_wait_for_the_replies_before_them():
    event = asyncio.Event()
    script = {Command.RCPT: InTurn([Late(event), Continue()], Reject(), Continue())}
    async with ScriptedMilter(script) as milter:
        session = await connected(milter)
        await session.command(CLIENT)
        await session.command(Mail(b"<>"))
        replies = [session.command(Rcpt(address)) for address in (b"<1>", b"<2>", b"<3>")]
        session.send(Abort())
        mail = session.command(Mail(b"<x>"))
        connection = milter.connections[0]
        await milter.wait_for(lambda: connection.of(Rcpt))
        assert connection.codes == "OCMR"
        event.set()
        assert await asyncio.gather(*replies) == [Continue(), Reject(), Continue()]
        assert await mail == Continue()
        assert connection.codes == "OCMRRRAM"
        await session.quit()


async def test_a_reply_that_nobody_awaits_any_more_is_drained():
    event = asyncio.Event()
    async with ScriptedMilter({Command.MAIL: [Late(event), Reject()]}) as milter:
        session = await connected(milter)
        await session.command(CLIENT)
        mail = session.command(Mail(b"<>"))
        mail.cancel()
        helo = session.command(Helo(b"x"))
        await milter.wait_for(lambda: milter.connections[0].of(Mail))
        assert milter.connections[0].codes == "OCM"
        event.set()
        assert await helo == Continue()
        assert milter.connections[0].codes == "OCMH"
        await session.quit()


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (EndOfMessage(), "END_OF_MESSAGE is not sent with command"),
        (Header(b"a", b"b"), "HEADER is not sent with command"),
        (agreeing(), "OPTNEG is not sent with command"),
    ],
)
async def test_commands_that_have_another_way(command, text):
    async with ScriptedMilter() as milter:
        session = await connected(milter)
        with pytest.raises(LocalProtocolError, match=text):
            session.command(command)
        with pytest.raises(LocalProtocolError, match="is answered"):
            session.send(command)
        await session.quit()


async def test_commands_that_are_not_possible():
    async with ScriptedMilter(negotiate=agreeing(Protocol.NO_REPLY_RCPT)) as milter:
        session = await connected(milter)
        with pytest.raises(LocalProtocolError, match="MAIL is not possible now"):
            await session.command(Mail(b"<>"))
        with pytest.raises(LocalProtocolError, match="RCPT is not possible now"):
            session.command(Rcpt(b"<>"))
        with pytest.raises(LocalProtocolError, match="macros of 70004 bytes"):
            await session.command(CLIENT, [(b"i", b"x" * 70000)])
        connect = session.command(CLIENT)
        data = session.command(Data())
        assert await connect == Continue()
        with pytest.raises(LocalProtocolError, match="DATA is not possible now"):
            await data
        assert await session.command(Helo(b"x")) == Continue()
        await session.quit()


async def test_a_queued_command_without_reply_that_is_not_possible_ends_the_session():
    async with ScriptedMilter(negotiate=agreeing(Protocol.NO_REPLY_RCPT)) as milter:
        session = await connected(milter)
        connect = session.command(CLIENT)
        assert session.command(Rcpt(b"<>")) is None
        assert await connect == Continue()
        with pytest.raises(LocalProtocolError, match="RCPT is not possible now"):
            await session.command(Helo(b"x"))
        assert isinstance(session.failure, LocalProtocolError)


# Faults in the dialogue

FAULTS = [
    (Close(), MilterClosedError, "connection when the reply to HELO was due"),
    (Reset(), MilterClosedError, "connection when the reply to HELO was due"),
    (Silence(), MilterTimeoutError, "no answer in time when the reply to HELO was due"),
    (HalfPacket(ReplyCode(b"550 no")), MilterTimeoutError, r"\(6 bytes of a packet came\)"),
    ([HalfPacket(ReplyCode(b"550 no")), Close()], MilterClosedError, r"\(6 bytes of a packet came\)"),
    (Garbage(), PacketTooLargeError, "announced"),
    (b"\0\0\0\0", RemoteProtocolError, "length 0"),
    (b"\0\0\0\1Z", RemoteProtocolError, "unknown response"),
    (b"\0\0\0\1f", RemoteProtocolError, "CONN_FAIL in reply to HELO"),
    (AddHeader(b"X", b"1"), RemoteProtocolError, "ADD_HEADER in reply to HELO"),
    (Quarantine(b"x"), RemoteProtocolError, "QUARANTINE in reply to HELO"),
    (agreeing(), RemoteProtocolError, "OPTNEG in reply to HELO"),
]


@pytest.mark.parametrize(("fault", "error", "text"), FAULTS)
async def test_faults(fault, error, text):
    answer = agreeing(Protocol.NO_REPLY_UNKNOWN)
    async with ScriptedMilter({Command.HELO: fault}, negotiate=answer) as milter:
        session = await connected(milter, QUICK)
        await session.command(CLIENT)
        helo = session.command(Helo(b"x"))
        session.send(Abort())
        mail = session.command(Mail(b"<>"))
        with pytest.raises(error, match=text):
            await helo
        assert str(session.failure).startswith(f"{milter.endpoint}: ")
        assert session.closed
        for reply in (mail, session.command(Mail(b"<>"))):
            with pytest.raises(error, match=text):
                await reply
        with pytest.raises(error, match=text):
            await session.content(SMALL, pipelined=True)
        assert session.command(Unknown(b"x"), [(b"i", b"1")]) is None
        session.send(Abort())
        session.close()
        await ended(session)
        assert (await milter.wait_closed()).codes == "OCH"


@pytest.mark.parametrize("late", [Continue(), InsertHeader(0, b"X", b"1"), HalfPacket(Accept())])
async def test_bytes_that_nobody_asked_for(late):
    event = asyncio.Event()
    async with ScriptedMilter({Command.HELO: [Continue(), Late(event), late]}) as milter:
        session = await connected(milter)
        await session.command(CLIENT)
        assert await session.command(Helo(b"x")) == Continue()
        event.set()
        await until(lambda: session.failure or session._connection.unread)
        with pytest.raises(RemoteProtocolError, match="came unasked"):
            await session.command(Mail(b"<>"))
        assert (await milter.wait_closed()).codes == "OCH"


async def test_bytes_that_nobody_asked_for_before_a_command_without_reply():
    answer = agreeing(Protocol.NO_REPLY_HELO)
    async with ScriptedMilter({Command.CONNECT: [Continue(), b"\0"]}, negotiate=answer) as milter:
        for send in (
            lambda session: session.command(Helo(b"x")),
            lambda session: session.send(Abort()),
        ):
            session = await connected(milter)
            await session.command(CLIENT)
            await until(lambda session=session: session._connection.unread)
            assert send(session) is None
            assert "1 bytes came unasked" in str(session.failure)


async def test_the_milter_closes_between_commands():
    async with ScriptedMilter({Command.HELO: [Continue(), Close()]}) as milter:
        session = await connected(milter)
        await session.command(CLIENT)
        await session.command(Helo(b"x"))
        await ended(session)
        with pytest.raises(MilterClosedError, match=r"the connection$"):
            await session.command(Mail(b"<>"))


# Time


async def test_progress_starts_the_timer_again():
    events = [asyncio.Event() for _ in range(3)]
    waits = [item for event in events for item in (Late(event), Progress())]
    options = ClientOptions(command_timeout=0.2)
    async with ScriptedMilter({Command.HELO: [*waits, Accept()]}) as milter:
        session = await connected(milter, options)
        await session.command(CLIENT)
        started = time.monotonic()
        reply = session.command(Helo(b"x"))
        loop = asyncio.get_running_loop()
        for count, event in enumerate(events, 1):
            loop.call_later(0.1 * count, event.set)
        assert await reply == Accept()
        assert time.monotonic() - started > 0.25
        await session.quit()


def flood(peer_event):
    return [item for _ in range(100) for item in (Progress(), Late(peer_event))]


class Tick(asyncio.Event):
    """An event that comes again and again."""

    async def wait(self):
        await asyncio.sleep(0.02)
        return True

    def is_set(self):
        return True


async def test_progress_without_end_is_bounded():
    async with ScriptedMilter({Command.HELO: flood(Tick())}) as milter:
        session = await connected(milter, QUICK)
        await session.command(CLIENT)
        started = time.monotonic()
        with pytest.raises(MilterTimeoutError):
            await session.command(Helo(b"x"))
        assert 0.25 < time.monotonic() - started < 1


@pytest.mark.parametrize("pipelined", [True, False])
async def test_the_deadline_of_a_message(pipelined):
    async with ScriptedMilter({Command.END_OF_MESSAGE: flood(Tick())}) as milter:
        session = await with_message(milter)
        started = time.monotonic()
        deadline = asyncio.get_running_loop().time() + 0.15
        with pytest.raises(MilterTimeoutError, match="END_OF_MESSAGE"):
            await session.content(SMALL, pipelined=pipelined, deadline=deadline)
        assert 0.1 < time.monotonic() - started < 1


async def test_a_timer_serves_many_commands():
    """The handle of the first command fires while a later one is waiting, and goes on waiting."""
    event = asyncio.Event()
    options = ClientOptions(command_timeout=0.15)
    script = {Command.CONNECT: [Late(Tick()), Continue()], Command.HELO: [Late(event), Continue()]}
    async with ScriptedMilter(script) as milter:
        session = await connected(milter, options)
        for _ in range(5):
            await session.command(CLIENT)
            session.send(QuitNewConnection())
        await session.command(CLIENT)
        reply = session.command(Helo(b"x"))
        asyncio.get_running_loop().call_later(0.1, event.set)
        assert await reply == Continue()
        await until(lambda: session._timer is None)
        assert session.failure is None
        assert await session.command(Mail(b"<>")) == Continue()
        await session.quit()


# Content


@pytest.mark.parametrize("protocol", [0, Protocol.LEADING_SPACE])
@pytest.mark.parametrize("pipelined", [True, False])
async def test_content(protocol, pipelined):
    edits = (AddHeader(b"X", b"1"), ReplaceBody(b"new"), InsertHeader(1, b"Y", b"2"))
    script = {Command.END_OF_MESSAGE: [edits[0], Progress(), *edits[1:], Quarantine(b"why"), Continue()]}
    async with ScriptedMilter(script, negotiate=agreeing(protocol)) as milter:
        session = await with_message(milter)
        macros = {Command.END_OF_HEADERS: [(b"i", b"1")], Command.END_OF_MESSAGE: [(b"i", b"2")]}
        result = await session.content(SMALL, pipelined=pipelined, macros=macros)
        assert (result.reply, result.stage) == (Continue(), Command.END_OF_MESSAGE)
        assert (result.edits, result.quarantine) == (edits, b"why")
        assert await session.command(Mail(b"<>")) == Continue()
        await session.quit()
        connection = await milter.wait_closed()
        space = b" " if protocol else b""
        assert connection.codes_with_macros == "OCHMRTLLLDNNBBDEEMQ"
        assert connection.of(Header) == [
            Header(b"From", space + b"a@b"),
            Header(b"Subject", space + b"hello"),
            Header(b"X", b"\ty"),
        ]
        assert connection.of(Body) == [Body(bytes(65535)), Body(b"end")]
        assert connection.macros(Command.END_OF_HEADERS) == {b"i": b"1"}
        assert connection.macros(Command.END_OF_MESSAGE) == {b"i": b"2"}


async def test_a_small_message_is_one_write():
    content = Content(headers=HEADERS, body=lambda _: [b"body"], body_size=4)
    async with ScriptedMilter() as milter:
        session = await with_message(milter)
        await session.content(content, pipelined=True)
        assert [len(batch) for batch in milter.connections[0].batches] == [1, 1, 1, 1, 1, 1, 6]
        await session.quit()


VERDICTS = [Accept(), Reject(), TempFail(), Discard(), Shutdown(), ReplyCode(b"550 5.7.1 no")]
POINTS = [
    (command, nth)
    for command, count in ((Command.HEADER, 3), (Command.END_OF_HEADERS, 1), (Command.BODY, 2))
    for nth in range(count)
]


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize(("command", "nth"), POINTS)
async def test_every_verdict_at_every_point_means_the_same_in_one_stream(command, nth, verdict):
    script = {command: InTurn(*[Continue()] * nth, verdict, Continue())}
    async with ScriptedMilter(script, drops_after_verdict=True) as milter:
        results = []
        for pipelined in (False, True):
            session = await with_message(milter)
            results.append(await session.content(SMALL, pipelined=pipelined))
            assert session.failure is None
            assert session.closed is pipelined
            if not pipelined:
                assert await session.command(Mail(b"<>")) == Continue()
                await session.quit()
            await ended(session)
        assert results[0] == results[1]
        assert (results[0].reply, results[0].stage, results[0].edits) == (verdict, command, ())


REPLIES = st.lists(st.sampled_from([*[Continue()] * 8, Skip(), *VERDICTS]), min_size=6, max_size=6)
EDITS = st.lists(
    st.sampled_from([AddHeader(b"X", b"1"), ReplaceBody(b"x"), Quarantine(b"q"), Progress(), ReplaceBody()]),
    max_size=5,
)
DECLINED = st.sets(
    st.sampled_from([Protocol.NO_HEADERS, Protocol.NO_END_OF_HEADERS, Protocol.NO_BODY, *Protocol])
).map(lambda bits: Protocol(sum(bits)) & CONTENT_BITS)
CONTENT_BITS = Protocol(0)
for name in ("HEADER", "END_OF_HEADERS", "BODY"):
    CONTENT_BITS |= Protocol[f"NO_REPLY_{name}"]
    CONTENT_BITS |= Protocol["NO_HEADERS" if name == "HEADER" else f"NO_{name}"]


def until_skip(replies):
    """After SKIP a sane filter has no verdict on more of that type."""
    index = replies.index(Skip()) if Skip() in replies else len(replies)
    return InTurn(*replies[: index + 1], Continue())


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(REPLIES, REPLIES, REPLIES),
    st.tuples(EDITS, st.sampled_from([Continue(), *VERDICTS, Skip()])),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    DECLINED,
)
async def test_one_stream_means_the_same_as_one_by_one(replies, end, counts, protocol):
    headers, eoh, body = map(until_skip, replies)
    script = {
        Command.HEADER: headers,
        Command.END_OF_HEADERS: eoh,
        Command.BODY: body,
        Command.END_OF_MESSAGE: [*end[0], end[1]],
    }
    content = Content(
        headers=[(b"A", b" b")] * counts[0], body=lambda _: [b"x\r\n"] * counts[1], body_size=3 * counts[1]
    )
    async with ScriptedMilter(script, negotiate=agreeing(protocol), drops_after_verdict=True) as milter:
        results = []
        for index, pipelined in enumerate((False, True)):
            session = await with_message(milter)
            results.append(await session.content(content, pipelined=pipelined))
            assert session.failure is None
            session.close()
            assert (await milter.wait_closed(index)).violations == []
        assert results[0] == results[1]


@pytest.mark.parametrize("verdict", VERDICTS)
async def test_verdicts_at_the_end_leave_the_session_usable(verdict):
    async with ScriptedMilter({Command.END_OF_MESSAGE: [AddHeader(b"X", b"1"), verdict]}) as milter:
        for pipelined in (False, True):
            session = await with_message(milter)
            for _ in range(2):
                result = await session.content(SMALL, pipelined=pipelined)
                assert result.reply == verdict
                assert result.edits == (AddHeader(b"X", b"1"),)
                for command in (Mail(b"<>"), Rcpt(b"<a>"), Data()):
                    await session.command(command)
            await session.quit()


@pytest.mark.parametrize(
    ("command", "nth", "codes"),
    [
        (Command.HEADER, 0, "LNBBE"),
        (Command.HEADER, 1, "LLNBBE"),
        (Command.HEADER, 2, "LLLNBBE"),
        (Command.END_OF_HEADERS, 0, "LLLNBBE"),
        (Command.BODY, 0, "LLLNBE"),
        (Command.BODY, 1, "LLLNBBE"),
        (Command.END_OF_MESSAGE, 0, "LLLNBBE"),
    ],
)
async def test_skip(command, nth, codes):
    script = {command: InTurn(*[Continue()] * nth, Skip())}
    async with ScriptedMilter(script) as milter:
        for index, pipelined in enumerate((False, True)):
            session = await with_message(milter)
            result = await session.content(SMALL, pipelined=pipelined)
            assert (result.reply, result.stage) == (Continue(), Command.END_OF_MESSAGE)
            assert not session.closed
            await session.quit()
            sent = (await milter.wait_closed(index)).codes[6:-1]
            assert sent == ("LLLNBBE" if pipelined else codes)


async def test_skip_ends_a_long_body_in_a_stream():
    async with ScriptedMilter({Command.BODY: Skip()}) as milter:
        session = await with_message(milter)
        result = await session.content(large(2000), pipelined=True)
        assert result.reply == Continue()
        assert 1 <= len(milter.connections[0].of(Body)) < 2000
        await session.quit()


async def test_a_verdict_ends_a_long_stream():
    script = {Command.END_OF_HEADERS: ReplyCode(b"550 no")}
    async with ScriptedMilter(script, drops_after_verdict=True) as milter:
        session = await with_message(milter)
        result = await session.content(large(2000), pipelined=True)
        assert result.reply == ReplyCode(b"550 no")
        assert session.failure is None
        assert session.closed
        assert len((await milter.wait_closed()).of(Body)) < 2000


@pytest.mark.parametrize("pipelined", [True, False])
async def test_many_headers(pipelined):
    headers = [(b"Header-%d" % n, b" " + b"x" * 1000) for n in range(300)]
    content = Content(headers=headers, body=lambda _: [], body_size=0)
    async with ScriptedMilter({Command.HEADER: InTurn(*[Continue()] * 250, Skip())}) as milter:
        session = await with_message(milter)
        result = await session.content(content, pipelined=pipelined)
        assert result.reply == Continue()
        assert len(milter.connections[0].of(Header)) == (300 if pipelined else 251)
        await session.quit()


@pytest.mark.parametrize("pipelined", [True, False])
async def test_back_pressure(pipelined):
    event = asyncio.Event()
    answer = agreeing(Protocol.NO_REPLY_BODY)
    async with ScriptedMilter(
        {Command.END_OF_HEADERS: [StopReading(event), Continue()]}, negotiate=answer
    ) as milter:
        session = await with_message(milter)
        task = asyncio.get_running_loop().create_task(session.content(large(1000), pipelined=pipelined))
        await until(lambda: session.paused)
        assert session._transport.get_write_buffer_size() < 4 * 2**20
        event.set()
        assert (await task).reply == Continue()
        assert len(milter.connections[0].of(Body)) == 1000
        await session.quit()


@pytest.mark.parametrize("pipelined", [True, False])
async def test_a_milter_that_takes_no_more(pipelined):
    answer = agreeing(Protocol.NO_REPLY_BODY)
    script = {Command.END_OF_HEADERS: [StopReading(asyncio.Event()), Continue()]}
    async with ScriptedMilter(script, negotiate=answer) as milter:
        session = await with_message(milter, QUICK)
        with pytest.raises(MilterTimeoutError, match="no answer in time"):
            await session.content(large(1000), pipelined=pipelined)


CONTENT_FAULTS = [
    (Command.HEADER, Close(), MilterClosedError),
    (Command.END_OF_HEADERS, Reset(), MilterClosedError),
    (Command.BODY, Garbage(), PacketTooLargeError),
    (Command.BODY, AddHeader(b"X", b"1"), RemoteProtocolError),
    (Command.BODY, Silence(), MilterTimeoutError),
    (Command.END_OF_MESSAGE, [AddHeader(b"X", b"1"), Close()], MilterClosedError),
    (Command.END_OF_MESSAGE, [ReplaceBody(b"half"), HalfPacket(ReplaceBody(b"body"))], MilterTimeoutError),
    (Command.END_OF_MESSAGE, b"\0\0\0\1f", RemoteProtocolError),
    (Command.END_OF_MESSAGE, [AddHeader(b"X", b"1")] * 11, RemoteProtocolError),
    (Command.END_OF_MESSAGE, [ReplaceBody(bytes(1000))] * 10, RemoteProtocolError),
]


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize(("command", "fault", "error"), CONTENT_FAULTS)
async def test_faults_in_content(command, fault, error, pipelined):
    options = ClientOptions(command_timeout=0.1, content_timeout=0.1, max_edits=10, max_edit_bytes=10000)
    async with ScriptedMilter({command: fault}) as milter:
        session = await with_message(milter, options)
        with pytest.raises(error):
            await session.content(SMALL, pipelined=pipelined)
        assert isinstance(session.failure, error)
        with pytest.raises(error):
            await session.command(Mail(b"<>"))
        await ended(session)


async def test_the_body_breaks_while_it_is_read():
    def body(size):
        yield bytes(size)
        raise OSError("disk")

    async with ScriptedMilter() as milter:
        session = await with_message(milter)
        content = Content(headers=[], body=body, body_size=10**6)
        with pytest.raises(OSError, match="disk"):
            await session.content(content, pipelined=True)
        assert "given up in the middle" in str(session.failure)
        await milter.wait_closed()


async def test_a_header_that_cannot_be_sent():
    async with ScriptedMilter() as milter:
        session = await with_message(milter)
        content = Content(headers=[(b"A", b"x" * 70000)], body=lambda _: [], body_size=0)
        with pytest.raises(LocalProtocolError, match="header b'A' of 70003 bytes"):
            await session.content(content, pipelined=True)
        assert (await milter.wait_closed()).codes == "OCHMRT"


async def test_an_edit_after_the_verdict():
    """rspamd, with a custom spam_header and DKIM signing."""
    script = {Command.END_OF_MESSAGE: [b"\0\0\0\1a\0\0\0\x09i\0\0\0\1X\x001\0"]}
    async with ScriptedMilter(script) as milter:
        session = await with_message(milter)
        result = await session.content(SMALL, pipelined=True)
        assert (result.reply, result.edits) == (Accept(), ())
        with pytest.raises(RemoteProtocolError, match="INSERT_HEADER came unasked"):
            await session.command(Mail(b"<>"))


async def test_a_milter_that_closes_after_its_verdict():
    async with ScriptedMilter({Command.END_OF_MESSAGE: [Accept(), Close()]}) as milter:
        session = await with_message(milter)
        assert (await session.content(SMALL, pipelined=True)).reply == Accept()
        await ended(session)
        assert isinstance(session.failure, MilterClosedError)


@pytest.mark.parametrize("pipelined", [True, False])
async def test_content_waits_for_the_replies_before_it(pipelined):
    event = asyncio.Event()
    async with ScriptedMilter({Command.DATA: [Late(event), Continue()]}) as milter:
        session = await connected(milter)
        for command in (CLIENT, Mail(b"<>"), Rcpt(b"<a>")):
            await session.command(command)
        data = session.command(Data())
        task = asyncio.get_running_loop().create_task(session.content(SMALL, pipelined=pipelined))
        await milter.wait_for(lambda: milter.connections[0].of(Data))
        mail = session.command(Mail(b"<>"))
        assert milter.connections[0].codes == "OCMRT"
        event.set()
        assert (await task).reply == Continue()
        assert await data == await mail == Continue()
        assert milter.connections[0].codes == "OCMRTLLLNBBEM"
        await session.quit()


# Cancellation and closing


@pytest.mark.parametrize("command", [Command.HEADER, Command.BODY, Command.END_OF_MESSAGE])
@pytest.mark.parametrize("pipelined", [True, False])
async def test_content_is_cancelled(command, pipelined):
    async with ScriptedMilter({command: Silence()}) as milter:
        session = await with_message(milter)
        task = asyncio.get_running_loop().create_task(session.content(SMALL, pipelined=pipelined))
        await milter.wait_for(lambda: chr(command) in milter.connections[0].codes)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "given up in the middle of a message" in str(session.failure)
        with pytest.raises(MilterClosedError, match="given up"):
            await session.command(Mail(b"<>"))
        assert (await milter.wait_closed()).closed_by_peer


async def content_in_the_queue(milter):
    """A session, the reply to DATA that it waits for, and a task with the content that comes next."""
    session = await connected(milter)
    for command in (CLIENT, Mail(b"<>"), Rcpt(b"<a>")):
        await session.command(command)
    data = session.command(Data())
    task = asyncio.get_running_loop().create_task(session.content(SMALL, pipelined=True))
    await asyncio.sleep(0)
    return session, data, task


async def test_content_is_cancelled_before_its_turn():
    async with ScriptedMilter({Command.DATA: Silence()}) as milter:
        _, data, task = await content_in_the_queue(milter)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(MilterClosedError, match="given up"):
            await data


async def test_content_is_cancelled_when_its_turn_comes():
    """Both in the same round of the loop."""
    async with ScriptedMilter({Command.DATA: Silence()}) as milter:
        session, data, task = await content_in_the_queue(milter)
        task.cancel()
        session.data_received(b"\0\0\0\1c")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await data == Continue()
        assert "given up" in str(session.failure)


async def test_close_fails_what_is_awaited():
    async with ScriptedMilter({Command.HELO: Silence()}) as milter:
        session = await connected(milter)
        await session.command(CLIENT)
        replies = [session.command(Helo(b"x")), session.command(Mail(b"<>"))]
        session.close()
        session.close()
        replies.append(session.command(Data()))
        for reply in replies:
            with pytest.raises(MilterClosedError, match="the session is closed"):
                await reply
        with pytest.raises(MilterClosedError, match="the session is closed"):
            await session.content(SMALL, pipelined=True)
        session.send(Abort())
        await session.quit()
        assert session.failure is None
        assert (await milter.wait_closed()).closed_by_peer


async def test_close_while_content_is_under_way():
    async with ScriptedMilter({Command.END_OF_MESSAGE: Silence()}) as milter:
        session = await with_message(milter)
        task = asyncio.get_running_loop().create_task(session.content(SMALL, pipelined=True))
        await milter.wait_for(lambda: "E" in milter.connections[0].codes)
        session.close()
        with pytest.raises(MilterClosedError, match="the session is closed"):
            await task


async def test_quit_waits_for_the_replies_that_are_due():
    event = asyncio.Event()
    async with ScriptedMilter({Command.HELO: [Late(event), Continue()]}) as milter:
        session = await connected(milter)
        await session.command(CLIENT)
        helo = session.command(Helo(b"x"))
        task = asyncio.get_running_loop().create_task(session.quit())
        await milter.wait_for(lambda: milter.connections[0].of(Helo))
        assert not session.closed
        event.set()
        await task
        assert await helo == Continue()
        assert (await milter.wait_closed()).codes == "OCHQ"


async def test_closing_does_not_wait_for_ever_for_a_milter_that_takes_no_more():
    answer = agreeing(Protocol.NO_REPLY_BODY)
    script = {Command.END_OF_HEADERS: [StopReading(asyncio.Event()), Continue()]}
    options = ClientOptions(content_timeout=0.2)
    async with ScriptedMilter(script, negotiate=answer) as milter:
        session = await with_message(milter, options)
        task = asyncio.get_running_loop().create_task(session.content(large(1000), pipelined=True))
        await until(lambda: session.paused)
        session.close()
        with pytest.raises(MilterError):
            await task
        await ended(session)


async def test_waiting_for_a_session_that_never_was():
    session = MilterSession(Endpoint(path="/nowhere"))
    await session.wait_closed()
    session.close()
    assert session.closed


# Commands that are encoded already


async def test_requests_are_answered_in_turn():
    script = {Command.CONNECT: Continue(), Command.HELO: Reject()}
    answer = agreeing(Protocol.NO_MAIL | Protocol.NO_REPLY_RCPT)
    async with ScriptedMilter(script, negotiate=answer) as milter:
        session = await connected(milter)
        replies = []
        macros = encode_macros(Command.MAIL, [(b"i", b"Q")], 100)
        for command, due in [(CLIENT, True), (Helo(b"h"), True), (Mail(b"<>"), False), (Rcpt(b"<>"), False)]:
            packet = encode_packet(command.code, command.encode())
            assert session.request(command.code, packet, macros, replies.append) is due
        await until(lambda: len(replies) == 2)
        assert replies == [Continue(), Reject()]
        await session.quit()
        assert milter.connections[0].codes == "OCHRQ"
        with pytest.raises(MilterClosedError):
            session.request(Command.HELO, packet, b"", replies.append)


async def test_requests_that_are_too_long():
    async with ScriptedMilter() as milter:
        session = await connected(milter)
        long = encode_packet(Command.CONNECT, bytes(65536))
        for packet, macros in [(long, b""), (b"", long)]:
            with pytest.raises(LocalProtocolError, match="65535"):
                session.request(Command.CONNECT, packet, macros, None)
        content = Content(headers=HEADERS, body=lambda _: [], body_size=0)
        with pytest.raises(MilterError, match="macros of 65541 bytes"):
            await (await with_message(milter)).content(
                content, pipelined=True, macros={Command.END_OF_HEADERS: long}
            )


async def test_who_asked_is_told_what_failed():
    async with ScriptedMilter({Command.CONNECT: Close()}) as milter:
        session = await connected(milter)
        replies = []
        packet = encode_packet(Command.CONNECT, CLIENT.encode())
        assert session.request(Command.CONNECT, packet, b"", replies.append)
        assert session.request(Command.HELO, b"", b"", replies.append)
        await until(lambda: len(replies) == 2)
        assert [type(reply) for reply in replies] == [MilterClosedError] * 2


@pytest.mark.parametrize("pipelined", [True, False])
async def test_macros_that_are_encoded_already(pipelined):
    values = [(b"i", b"Q"), (b"{msg_id}", b"<1@x>")]
    stages = (Command.END_OF_HEADERS, Command.END_OF_MESSAGE)
    seen = []
    async with ScriptedMilter() as milter:
        for macros in (
            dict.fromkeys(stages, values),
            {stage: encode_macros(stage, values, 1000) for stage in stages},
        ):
            session = await with_message(milter)
            await session.content(SMALL, pipelined=pipelined, macros=macros)
            await session.quit()
            seen.append(milter.connections[-1].commands)
    assert seen[0] == seen[1]
