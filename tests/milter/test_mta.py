"""The client for MTAs against scripted milters on real sockets, and against our own filter server."""

import asyncio
import contextlib
import io
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milterchain.errors import (
    LocalProtocolError,
    MilterClosedError,
    MilterConnectError,
    MilterError,
    MilterTimeoutError,
    RemoteProtocolError,
)
from milterchain.milter.answers import Answer, MessageAnswer
from milterchain.milter.client import Content
from milterchain.milter.endpoint import Endpoint, parse_endpoint
from milterchain.milter.flags import (
    ALL_ACTIONS,
    DATA_SIZE_1M,
    DATA_SIZE_64K,
    DATA_SIZE_256K,
    Action,
    Command,
    Family,
    Protocol,
    Stage,
)
from milterchain.milter.macro_bag import MacroBag
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    Body,
    Connect,
    Continue,
    Discard,
    Header,
    Macros,
    Mail,
    OptNeg,
    Progress,
    Quarantine,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
    Unknown,
)
from milterchain.milter.mta import MtaClient, MtaOptions, MtaSession
from milterchain.testing import Close, InTurn, Late, ScriptedMilter, Silence, StopReading, refusing_address

QUICK = MtaOptions(command_timeout=0.2, content_timeout=0.2)
HEADERS = [(b"From", b" a@b"), (b"Subject", b" hello\r\n\tworld\r\n")]


def agreeing(protocol=0, *, version=6, macros=None):
    return OptNeg(version=version, actions=ALL_ACTIONS, protocol=Protocol(protocol), macros=macros or {})


async def envelope(session: MtaSession) -> None:
    await session.connect(b"client.test", Family.INET, 4711, b"192.0.2.7")
    await session.helo(b"client.test")
    await session.mail(b"<a@b>", [b"SIZE=10"])
    await session.rcpt(b"<c@d>")
    await session.data()


async def whole(session: MtaSession) -> None:
    """A message, and something after it."""
    await envelope(session)
    await session.headers(HEADERS)
    await session.body_from(b"x")
    await until(lambda: session.closed)
    await session.mail(b"<a@b>")


async def until(condition):
    """Wait for what no future announces."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# Whole sessions


@pytest.mark.parametrize("kind", ["inet", "inet6", "unix"])
async def test_a_whole_session(kind, tmp_path):
    where = {"inet": {}, "inet6": {"host": "::1"}, "unix": {"unix_path": tmp_path / "milter"}}[kind]
    edits = [AddHeader(b"X", b"1"), ReplaceBody(b"new\r\n"), Quarantine(b"odd")]
    script = {
        Command.UNKNOWN: ReplyCode(b"502 5.5.1 what?"),
        Command.END_OF_MESSAGE: [edits[0], Progress(), *edits[1:], Accept()],
    }
    async with ScriptedMilter(script, **where) as milter:
        client = MtaClient(milter.endpoint)
        assert str(client) == milter.endpoint
        async with client.session() as session:
            assert session.negotiated.version == 6
            await session.connect(b"client.test", Family.INET, 4711, b"192.0.2.7")
            assert str(await session.unknown(b"HELP")) == "reply_code code=502 status=5.5.1 text=what?"
            assert await session.helo(b"client.test") == Answer(event=Command.HELO, reply=Continue())
            await session.mail(b"<a@b>", [b"SIZE=10"])
            await session.rcpt(b"<c@d>")
            await session.data()
            assert await session.headers(HEADERS) == MessageAnswer(
                event=Command.END_OF_HEADERS, reply=Continue()
            )
            await session.body(b"hi\r\n")
            assert await session.end_of_message() == MessageAnswer(
                event=Command.END_OF_MESSAGE,
                reply=Accept(),
                modifications=tuple(edits[:2]),
                quarantine=b"odd",
            )
            # The next message of the same session.
            await session.mail(b"<>")
            await session.rcpt(b"<c@d>")
            await session.end_of_headers()
            assert (await session.body_from(io.BytesIO(b"more\r\n"))).modifications == tuple(edits[:2])
        assert session.closed
        connection = await milter.wait_closed()
    assert connection.codes == "OCUHMRTLLNBEMRNBEQ"
    assert connection.violations == []
    assert connection.of(Connect)[0].address == b"192.0.2.7"
    assert connection.of(Mail) == [Mail(b"<a@b>", (b"SIZE=10",)), Mail(b"<>")]
    assert connection.of(Unknown) == [Unknown(b"HELP")]
    assert connection.of(Header) == [Header(b"From", b"a@b"), Header(b"Subject", b"hello\n\tworld")]


async def test_a_message_at_once():
    content = Content(headers=[(b"A", b" b")], body=lambda _: [b"text"], body_size=4)
    script = {Command.END_OF_MESSAGE: [AddHeader(b"X", b"1"), Accept()]}
    async with ScriptedMilter(script) as milter:
        async with MtaClient(milter.endpoint).session({b"i": b"4Zk"}) as session:
            await envelope(session)
            assert await session.message(content, pipelined=True) == MessageAnswer(
                event=Command.END_OF_MESSAGE, reply=Accept(), modifications=(AddHeader(b"X", b"1"),)
            )
        connection = await milter.wait_closed()
    assert connection.codes == "OCHMRTLNBEQ"
    assert connection.macros(Command.END_OF_HEADERS) == connection.macros(Command.END_OF_MESSAGE)
    assert connection.macros(Command.END_OF_MESSAGE) == {b"i": b"4Zk"}


# Answers

WORDS = [
    (Reject(), b"550 5.7.1 Command rejected\r\n"),
    (TempFail(), b"451 4.7.1 Service unavailable - try again later\r\n"),
    (Shutdown(), b"421 4.7.0 Server closing connection\r\n"),
    (ReplyCode(b"550 5.1.1 no 100%% user"), b"550 5.1.1 no 100% user\r\n"),
    (ReplyCode(b"450-one\r\n450 two"), b"450-one\r\n450 two\r\n"),
    (ReplyCode(b"550-5.7.1 a\r\n550 5.7.1 b"), b"550-5.7.1 a\r\n550 5.7.1 b\r\n"),
    (Discard(), None),
    (Accept(), None),
]


@pytest.mark.parametrize(("reply", "smtp"), WORDS)
async def test_what_the_client_hears(reply, smtp):
    async with (
        ScriptedMilter({Command.RCPT: reply}) as milter,
        MtaClient(milter.endpoint).session() as session,
    ):
        await session.connect(b"client.test")
        await session.mail(b"<a@b>")
        answer = await session.rcpt(b"<c@d>")
        assert (answer.reply, answer.smtp, answer.stops) == (reply, smtp, True)


async def test_what_stops_nothing_is_not_heard():
    answer = Answer(event=Command.MAIL, reply=Continue(), asked=False)
    assert (answer.stops, answer.smtp, answer.refusal, str(answer)) == (False, None, None, "continue")
    assert not Answer(event=Command.BODY, reply=Skip()).stops


@pytest.mark.parametrize("command", [Command.MAIL, Command.HEADER, Command.END_OF_MESSAGE])
async def test_a_text_that_is_no_reply_ends_the_session(command):
    async with (
        ScriptedMilter({command: ReplyCode(b"300 what")}) as milter,
        MtaClient(milter.endpoint).session() as session,
    ):
        with pytest.raises(RemoteProtocolError, match=f"{command.name} was answered by no SMTP reply"):
            await whole(session)
        assert session.closed
        with pytest.raises(RemoteProtocolError, match="no SMTP reply"):
            await session.mail(b"<a@b>")
        with pytest.raises(RemoteProtocolError, match="no SMTP reply"):
            await session.end_of_headers()


async def test_what_was_declined_answers_itself():
    declined = Protocol.NO_HELO | Protocol.NO_RCPT | Protocol.NO_HEADERS | Protocol.NO_BODY
    silent = Protocol.NO_REPLY_MAIL | Protocol.NO_REPLY_END_OF_HEADERS
    async with ScriptedMilter(negotiate=agreeing(declined | silent)) as milter:
        async with MtaClient(milter.endpoint).session({b"rcpt_addr": b"c@d"}) as session:
            asked = [
                await session.connect(b"client.test"),
                await session.helo(b"client.test"),
                await session.mail(b"<a@b>"),
                await session.rcpt(b"<c@d>"),
                await session.data(),
                await session.header(b"A", b" b"),
                await session.end_of_headers(),
                await session.body(b"text"),
                await session.body_from(b"text"),
            ]
        connection = await milter.wait_closed()
    assert [answer.asked for answer in asked] == [True, *[False] * 3, True, *[False] * 3, True]
    assert {answer.reply for answer in asked} == {Continue()}
    assert connection.codes_with_macros == "OCMDRTNEQ"
    assert connection.violations == []


STOPS = [
    (Command.HEADER, "OCHMRTLQ"),
    (Command.END_OF_HEADERS, "OCHMRTLLNQ"),
    (Command.BODY, "OCHMRTLLNBQ"),
]


@pytest.mark.parametrize(("command", "codes"), STOPS)
async def test_a_verdict_stops_the_content(command, codes):
    script = {command: Reject()}
    async with ScriptedMilter(script) as milter:
        async with MtaClient(milter.endpoint).session() as session:
            await envelope(session)
            answer = await session.headers(HEADERS)
            if not answer.stops:
                answer = await session.body_from([b"x" * DATA_SIZE_64K, b"y"])
            assert answer == MessageAnswer(event=command, reply=Reject())
            with pytest.raises(LocalProtocolError, match="END_OF_MESSAGE is not possible now"):
                await session.end_of_message()
        connection = await milter.wait_closed()
    assert connection.codes == codes


async def test_a_verdict_in_a_cut_chunk():
    async with ScriptedMilter({Command.BODY: InTurn(Continue(), Accept())}) as milter:
        async with MtaClient(milter.endpoint).session() as session:
            await envelope(session)
            await session.headers(HEADERS)
            assert (await session.body(bytes(3 * DATA_SIZE_64K))).reply == Accept()
        connection = await milter.wait_closed()
    assert connection.codes == "OCHMRTLLNBBQ"


async def test_skipping():
    script = {
        Command.RCPT: InTurn(Continue(), Skip(), Continue()),
        Command.HEADER: Skip(),
        Command.BODY: Skip(),
    }
    async with ScriptedMilter(script, negotiate=agreeing(Protocol.SKIP)) as milter:
        async with MtaClient(milter.endpoint).session() as session:
            await session.connect(b"client.test")
            await session.mail(b"<a@b>")
            answers = [await session.rcpt(b"<%d@d>" % number) for number in range(3)]
            assert [answer.asked for answer in answers] == [True, True, False]
            assert session.skipped is Command.RCPT
            await session.data()
            assert session.skipped is None
            await session.headers(HEADERS)
            assert session.skipped is None
            assert await session.body(bytes(2 * DATA_SIZE_64K)) == MessageAnswer(
                event=Command.BODY, reply=Skip()
            )
            assert not (await session.body(b"more")).asked
            assert (await session.body_from(b"more")).reply == Continue()
            # The next message begins anew.
            await session.mail(b"<a@b>")
            assert (await session.rcpt(b"<c@d>")).asked
            await session.end_of_headers()
            source = iter([bytes(DATA_SIZE_64K), b"two", b"three"])
            await session.body_from(source)
            assert next(source) == b"two"
        connection = await milter.wait_closed()
    assert connection.codes == "OCMRRTLNBEMRNBEQ"


async def test_the_order_is_checked():
    async with ScriptedMilter() as milter:
        async with MtaClient(milter.endpoint).session() as session:
            for early in (session.mail(b"<a@b>"), session.data(), session.end_of_message()):
                with pytest.raises(LocalProtocolError, match="is not possible now"):
                    await early
            await envelope(session)
            with pytest.raises(LocalProtocolError, match="NUL"):
                await session.header(b"A", b" \0")
            with pytest.raises(LocalProtocolError, match="65535 are the most"):
                await session.header(b"A", bytes(DATA_SIZE_64K).replace(b"\0", b"x"))
            with pytest.raises(LocalProtocolError, match="NUL"):
                await session.header(b"A", b" b", {b"x": b"\0"})
            await session.headers(HEADERS)
            with pytest.raises(LocalProtocolError, match="is not possible now"):
                await session.header(b"A", b" b")
            assert (await session.body_from(b"")).reply == Continue()
        connection = await milter.wait_closed()
    assert connection.codes == "OCHMRTLLNEQ"


async def test_one_piece_at_a_time():
    event = asyncio.Event()
    async with (
        ScriptedMilter({Command.END_OF_HEADERS: [Late(event), Continue()]}) as milter,
        MtaClient(milter.endpoint).session() as session,
    ):
        await envelope(session)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(session.end_of_headers())
            await until(lambda: milter.connections[0].codes.endswith("N"))
            with pytest.raises(LocalProtocolError, match="before the replies"):
                await session.body(b"x")
            event.set()
        assert (await first).reply == Continue()
        assert (await session.body_from(b"x")).reply == Continue()


# Macros


async def test_macros_go_with_their_events():
    macros = MacroBag({b"j": b"mx", b"{client_addr}": b"192.0.2.7", b"unused": b"1"})
    async with ScriptedMilter() as milter:
        async with MtaClient(milter.endpoint).session(macros) as session:
            assert session.macros is macros
            await session.connect(b"client.test")
            macros[b"mail_addr"] = b"a@b"
            await session.mail(b"<a@b>")
            macros[b"i"] = b"4Zk"
            await session.rcpt(b"<c@d>")
            await session.header(b"A", b" b", {b"x": b"1", b"long": b"2"})
            await session.end_of_headers()
            await session.body_from(b"x")
            macros.discard(b"mail_addr", b"i")
            await session.mail(b"<>")
            await session.unknown(b"HELP", {b"{y}": b"1"})
            await session.abort({b"z": b"1"})
        connection = await milter.wait_closed()
    assert connection.codes_with_macros == "ODCCDMMDRRDLLDNNBDEEDMMDUUDAAQ"
    assert [message.values for message in connection.of(Macros)] == [
        ((b"j", b"mx"), (b"{client_addr}", b"192.0.2.7")),
        ((b"{mail_addr}", b"a@b"),),
        ((b"i", b"4Zk"),),
        ((b"x", b"1"), (b"{long}", b"2")),
        ((b"i", b"4Zk"),),
        ((b"i", b"4Zk"),),
        (),
        ((b"y", b"1"),),
        ((b"z", b"1"),),
    ]


async def test_macros_of_one_recipient_are_not_those_of_the_next():
    """Filters keep what they were told of a command until they are told anew."""
    async with ScriptedMilter() as milter:
        async with MtaClient(milter.endpoint).session() as session:
            await session.connect(b"client.test")
            await session.mail(b"<a@a.test>")
            session.macros[b"rcpt_addr"] = b"b@b.test"
            await session.rcpt(b"<b@b.test>")
            session.macros.discard(b"rcpt_addr")
            await session.rcpt(b"<c@b.test>")
            await session.rcpt(b"<d@b.test>")
        connection = await milter.wait_closed()
    assert connection.codes_with_macros == "OCMDRRDRRRAQ"
    assert connection.macros(Command.RCPT) == {}


async def test_whose_list_of_macros_counts():
    options = MtaOptions(macros={Stage.CONNECT: [b"v", b"custom"], Stage.HELO: (), Stage.MAIL: [b"i"]})
    requested = {Stage.MAIL: (b"{j}", b"none"), Stage.HELO: ()}
    values = {b"v": b"1", b"custom": b"2", b"tls_version": b"3", b"i": b"4", b"j": b"5", b"auth_type": b"6"}
    async with ScriptedMilter(negotiate=agreeing(macros=requested)) as milter:
        async with MtaClient(milter.endpoint, options).session(values) as session:
            await envelope(session)
            names = {stage: session.macro_names(stage) for stage in Stage}
        connection = await milter.wait_closed()
    assert (names[Stage.CONNECT], names[Stage.HELO]) == ((b"v", b"custom"), ())
    assert (names[Stage.MAIL], names[Stage.RCPT][:1]) == ((b"j", b"none"), (b"i",))
    assert connection.codes_with_macros == "ODCCHDMMDRRDTTAQ"
    assert connection.macros(Command.CONNECT) == {b"v": b"1", b"{custom}": b"2"}
    assert connection.macros(Command.MAIL) == {b"{j}": b"5"}
    assert connection.macros(Command.RCPT) == {b"i": b"4"}


# The end


async def test_an_open_message_is_aborted_before_the_end():
    async with ScriptedMilter() as milter:
        async with MtaClient(milter.endpoint).session() as session:
            await envelope(session)
            await session.abort()
            await session.mail(b"<a@b>")
        await session.close()  # does no harm
        connection = await milter.wait_closed()
    assert connection.codes == "OCHMRTAMAQ"


RESETS = [
    ("a message that passed", Continue(), False, True),
    ("an open message", Continue(), True, True),
    ("a message that was accepted", Accept(), False, False),
    ("a message that was refused", Reject(), False, False),
]


@pytest.mark.parametrize(("_name", "verdict", "is_open", "reused"), RESETS)
async def test_reset_uses_the_connection_again_where_libmilter_can(_name, verdict, is_open, reused):
    async with ScriptedMilter({Command.END_OF_MESSAGE: verdict}) as milter:
        async with MtaClient(milter.endpoint).session({b"j": b"old"}) as session:
            await envelope(session)
            await session.headers(HEADERS)
            if not is_open:
                await session.body_from(b"x")
            assert await session.reset({b"j": b"new"}) is reused
            await envelope(session)
        await milter.wait_closed(0 if reused else 1)
        codes = [connection.codes for connection in milter.connections]
    first = "OCHMRTLLN" + ("A" if is_open else "BE")
    assert codes == [f"{first}KCHMRTAQ"] if reused else [f"{first}Q", "OCHMRTAQ"]
    assert milter.connections[-1].macros(Command.CONNECT) == {b"j": b"new"}


@pytest.mark.parametrize("steps", ["", "C", "CH", "CHMA_", "CHU"])
async def test_other_resets_make_a_new_connection(steps):
    actions = {
        "C": lambda session: session.connect(b"client.test"),
        "H": lambda session: session.helo(b"client.test"),
        "M": lambda session: session.mail(b"<a@b>"),
        "A": lambda session: session.abort(),
        "_": lambda session: session.helo(b"again"),
        "U": lambda session: session.unknown(b"HELP"),
    }
    async with ScriptedMilter() as milter:
        async with MtaClient(milter.endpoint).session() as session:
            for step in steps:
                await actions[step](session)
            assert not await session.reset()
            await session.connect(b"client.test")
        await milter.wait_closed(1)
    assert "K" not in milter.connections[0].codes


async def test_reset_after_aborts():
    async with ScriptedMilter() as milter, MtaClient(milter.endpoint).session() as session:
        await session.connect(b"client.test")
        await session.mail(b"<a@b>")
        await session.abort()
        await session.abort()
        assert await session.reset()
        await session.abort()
        assert not await session.reset()


async def test_reset_when_the_milter_is_gone():
    script = [{Command.MAIL: Close()}, {}]
    async with ScriptedMilter(script) as milter, MtaClient(milter.endpoint).session() as session:
        await session.connect(b"client.test")
        with pytest.raises(MilterClosedError):
            await session.mail(b"<a@b>")
        assert not await session.reset()
        await session.connect(b"client.test")
        assert (await session.mail(b"<a@b>")).reply == Continue()


# Failures

FAILURES = [
    (Silence(), MilterTimeoutError),
    (Close(), MilterClosedError),
    (b"\0\0\0\1?", RemoteProtocolError),
    ([Continue(), Continue()], RemoteProtocolError),
]


@pytest.mark.parametrize("at", [Command.HELO, Command.HEADER, Command.BODY, Command.END_OF_MESSAGE])
@pytest.mark.parametrize(("fault", "error"), FAILURES)
async def test_failures_are_errors_of_ours(at, fault, error):
    if isinstance(fault, list) and at is Command.END_OF_MESSAGE:
        fault = [Continue(), Quarantine(b"late")]
    async with (
        ScriptedMilter({at: fault}) as milter,
        MtaClient(milter.endpoint, QUICK if fault == Silence() else None).session() as session,
    ):
        with pytest.raises(error):
            await whole(session)
        assert session.closed


async def test_nobody_there():
    with refusing_address() as (host, port), pytest.raises(MilterConnectError, match="ECONNREFUSED"):
        await MtaClient(Endpoint(host=host, port=port)).open()
    with pytest.raises(ValueError, match="no milter address"):
        MtaClient("nonsense")


async def test_cancelled_before_a_reply():
    """Nobody waits for the reply any more, not even the end of the session."""
    async with (
        ScriptedMilter({Command.RCPT: Silence()}) as milter,
        MtaClient(milter.endpoint).session() as session,
    ):
        await session.connect(b"client.test")
        await session.mail(b"<a@b>")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await session.rcpt(b"<c@d>")
        assert session.closed
        with pytest.raises(MilterClosedError, match="given up before the reply to RCPT came"):
            await session.data()
    assert milter.connections[0].codes == "OCMR"


async def test_cancelled_in_a_piece():
    async with (
        ScriptedMilter({Command.END_OF_HEADERS: Silence()}) as milter,
        MtaClient(milter.endpoint).session() as session,
    ):
        await envelope(session)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await session.end_of_headers()
        assert session.closed
        with pytest.raises(MilterClosedError, match="given up in the middle"):
            await session.end_of_message()


async def test_a_milter_that_does_not_read():
    options = MtaOptions(content_timeout=0.2)
    script = {Command.END_OF_HEADERS: [Continue(), StopReading(asyncio.Event())]}
    async with (
        ScriptedMilter(script, negotiate=agreeing(Protocol.NO_REPLY_BODY)) as milter,
        MtaClient(milter.endpoint, options).session() as session,
    ):
        await envelope(session)
        await session.end_of_headers()
        with pytest.raises(MilterTimeoutError):
            await session.body_from(bytes(DATA_SIZE_64K) for _ in range(1000))


# Sizes and dialers

SIZES = [
    (DATA_SIZE_1M, None, DATA_SIZE_1M),
    (DATA_SIZE_1M, DATA_SIZE_256K, DATA_SIZE_256K),
    (DATA_SIZE_1M, DATA_SIZE_64K, DATA_SIZE_64K),
    (DATA_SIZE_1M, 1, DATA_SIZE_64K),
    (DATA_SIZE_256K, DATA_SIZE_1M, DATA_SIZE_256K),
    (DATA_SIZE_64K, None, DATA_SIZE_64K),
]


@pytest.mark.parametrize(("offered", "used", "sent"), SIZES)
async def test_offered_and_used_sizes(offered, used, sent):
    bits = Protocol.DATA_SIZE_1M | Protocol.DATA_SIZE_256K
    options = MtaOptions(max_data=offered, used_data=used)
    async with ScriptedMilter(negotiate=agreeing(bits)) as milter:
        async with MtaClient(milter.endpoint, options).session() as session:
            assert session.negotiated.max_data == sent
            await envelope(session)
            await session.end_of_headers()
            await session.body_from(bytes(sent + 1))
        connection = await milter.wait_closed()
    assert [len(body.chunk) for body in connection.of(Body)] == [sent, 1]


async def test_a_dialer_makes_the_connection():
    asked = []
    async with ScriptedMilter() as milter:

        async def dial(endpoint, factory):
            asked.append(endpoint)
            return await asyncio.get_running_loop().create_connection(
                factory, "127.0.0.1", parse_endpoint(milter.endpoint).port, local_addr=("127.0.0.2", 0)
            )

        where = Endpoint(host="filter.example", port=1)
        async with MtaClient(where, MtaOptions(dialer=dial)).session() as session:
            assert (await session.connect(b"client.test")).reply == Continue()
        assert asked == [where]


async def test_a_dialer_may_take_another_way(tmp_path):
    async def dial(endpoint, factory):  # noqa: ARG001
        return await Endpoint(path=str(tmp_path / "milter.sock")).connect(factory)

    client = MtaClient("inet:filter.example:1", MtaOptions(dialer=dial))
    async with ScriptedMilter(unix_path=tmp_path / "milter.sock"), client.session() as session:
        assert not (await session.connect(b"client.test")).stops


async def test_what_a_dialer_may_raise():
    async def dial(endpoint, factory):  # noqa: ARG001
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(MilterConnectError, match=r"inet:filter.example:1: .*Name or service"):
        await MtaClient("inet:filter.example:1", MtaOptions(dialer=dial)).open()

    async def dawdle(endpoint, factory):  # noqa: ARG001
        await asyncio.Event().wait()

    options = MtaOptions(dialer=dawdle, connect_timeout=0.05)
    with pytest.raises(MilterTimeoutError, match="no connection within"):
        await MtaClient("inet:filter.example:1", options).open()


# Anything

STEPS = {
    "connect": lambda session: session.connect(b"client.test"),
    "helo": lambda session: session.helo(b"client.test"),
    "mail": lambda session: session.mail(b"<a@b>"),
    "rcpt": lambda session: session.rcpt(b"<c@d>"),
    "data": lambda session: session.data(),
    "header": lambda session: session.header(b"A", b" b"),
    "headers": lambda session: session.headers(HEADERS),
    "end of headers": lambda session: session.end_of_headers(),
    "body": lambda session: session.body(b"text"),
    "end of message": lambda session: session.end_of_message(),
    "body from": lambda session: session.body_from(b"text"),
    "unknown": lambda session: session.unknown(b"HELP"),
    "abort": lambda session: session.abort(),
    "reset": lambda session: session.reset(),
}
REPLIES = st.sampled_from(
    [
        Continue(),
        Accept(),
        Reject(),
        TempFail(),
        Discard(),
        Skip(),
        ReplyCode(b"550 no"),
        Close(),
        b"\0\0\0\1c" * 2,
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.sampled_from(list(STEPS)), max_size=14),
    script=st.dictionaries(
        st.sampled_from(
            [
                Command.CONNECT,
                Command.MAIL,
                Command.RCPT,
                Command.HEADER,
                Command.BODY,
                Command.END_OF_MESSAGE,
            ]
        ),
        REPLIES,
    ),
    protocol=st.integers(0, 0x1FFFFF),
)
async def test_any_order_has_only_documented_errors(steps, script, protocol):
    async with ScriptedMilter(script, negotiate=agreeing(protocol)) as milter:
        async with asyncio.timeout(30), MtaClient(milter.endpoint).session() as session:
            for step in steps:
                with contextlib.suppress(MilterError):
                    await STEPS[step](session)
        assert all(connection.violations == [] for connection in milter.connections)


def test_options_can_be_keys():
    assert len({MtaOptions(), MtaOptions(macros={Stage.MAIL: [b"i"]}), MtaOptions(version=2)}) == 3
    assert MtaOptions(actions=Action(0)).offer().actions == Action(0)
