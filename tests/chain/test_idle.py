"""Connections that outlive an SMTP session (SMFIC_QUIT_NC), where the configuration wants that."""

import asyncio

import pytest

from milterchain.chain.idle import IdleOptions, IdleSessions
from milterchain.chain.verdict import Kind
from milterchain.milter.client import Content, MilterSession
from milterchain.milter.endpoint import parse_endpoint
from milterchain.milter.flags import Command, Family, Protocol
from milterchain.milter.messages import Accept, Connect, Continue, Mail, Rcpt, Reject, ReplyCode, TempFail
from milterchain.testing import Close, InTurn, Late, ScriptedMilter, Silence

MESSAGE = "HMRTLLLNBE"
REUSE = {"reuse": True}
C, E = Command.CONNECT, Command.END_OF_MESSAGE
K = Command.QUIT_NEW_CONNECTION
LATER = "451 4.7.1 Service unavailable - try again later"
DIES = InTurn(Continue(), Close())
"""At its second session."""
REFUSES = InTurn(Continue(), ReplyCode(b"550 5.7.1 at last"))


async def whole_session(lab, chain) -> list[str]:
    """One SMTP session with one message."""
    session = chain.session(lab.client)
    try:
        return await lab.play(session, "C H M R1 T E Q")
    finally:
        await session.close()


@pytest.fixture
async def reusing(lab):
    """Make the chain of the milters that were started, all of them reused."""
    chains = []

    def make(*settings, **options):
        settings = settings or [REUSE] * len(lab.milters)
        chains.append(lab.chain(*settings, **options))
        return chains[-1]

    yield make
    for chain in chains:
        await chain.close()


async def test_one_connection_serves_many_sessions(lab, reusing):
    milters = [await lab.milter() for _ in range(3)]
    chain = reusing()
    for _ in range(4):
        assert await whole_session(lab, chain) == ["c"] * 6 + [""]
    await chain.close()
    for milter in milters:
        (connection,) = milter.connections
        assert connection.codes == "O" + f"C{MESSAGE}K" * 4 + "Q"
        assert connection.violations == []
        assert [client.port for client in connection.of(Connect)] == [4711] * 4
        assert connection.macros(C, 3)[b"j"] == b"mx.test"


async def test_without_the_setting_each_session_has_its_own(lab):
    milter = await lab.milter()
    chain = lab.chain()
    for _ in range(2):
        await whole_session(lab, chain)
    await milter.wait_closed(1)
    assert [connection.codes for connection in milter.connections] == [f"OC{MESSAGE}Q"] * 2


@pytest.mark.parametrize(
    ("steps", "script", "codes"),
    [
        ("C Q", {}, "OCQ"),
        ("C H Q", {}, "OCHQ"),
        ("C H M R1 Q", {}, "OCHMRAQ"),
        ("C H M R1 T E H Q", {}, "OCHMRTLLLNBEHQ"),
        ("C H M R1 T E M A Q", {}, "OCHMRTLLLNBEMAQ"),
        ("C H M R1 T E Q", {E: Accept()}, "OCHMRTLLLNBEQ"),
        ("C H M R1 T E Q", {E: Reject()}, "OCHMRTLLLNBEQ"),
        ("C H M R1 T E Q", {E: TempFail()}, "OCHMRTLLLNBEQ"),
        ("C H M R1 T E Q", {E: ReplyCode(b"550 5.7.1 no")}, "OCHMRTLLLNBEQ"),
        ("C H M R1 T E Q", {Command.MAIL: Accept()}, "OCHMQ"),
        ("C H M R1 T E A Q", {}, "OCHMRTLLLNBEK"),
        ("C H M R1 T E M R1 T E Q", {}, "OCHMRTLLLNBEMRTLLLNBEK"),
    ],
)
async def test_kept_only_where_libmilter_takes_it(lab, reusing, steps, script, codes):
    milter = await lab.milter(script)
    chain = reusing()
    session = chain.session(lab.client)
    await lab.play(session, steps)
    if codes.endswith("K"):
        await milter.wait_for(lambda: milter.connections[0].codes == codes)
        await chain.close()
        codes += "Q"
    assert (await milter.wait_closed()).codes == codes


async def test_an_old_milter_is_not_kept(lab, reusing):
    milter = await lab.milter(negotiate=lab.wants(version=2))
    await whole_session(lab, reusing())
    assert (await milter.wait_closed()).codes.endswith("EQ")


async def test_a_milter_that_does_not_answer_connect_is_not_kept(lab, reusing):
    milter = await lab.milter(negotiate=lab.wants(Protocol.NO_REPLY_CONNECT))
    await whole_session(lab, reusing())
    assert (await milter.wait_closed()).codes.endswith("EQ")


async def test_a_milter_that_has_gone_is_opened_again(lab, reusing):
    first = await lab.milter([{K: Close()}, {}])
    second = await lab.milter()
    chain = reusing()
    await whole_session(lab, chain)
    await first.wait_closed()
    assert await whole_session(lab, chain) == ["c"] * 6 + [""]
    assert [connection.codes[:2] for connection in first.connections] == ["OC", "OC"]
    assert len(second.connections) == 1


async def test_a_milter_that_goes_at_connect_is_opened_again(lab, reusing):
    """The kernel took CONNECT, and the milter never read it: nobody has heard of the client."""
    milters = [await lab.milter([{C: DIES}, {}]), await lab.milter()]
    chain = reusing()
    await whole_session(lab, chain)
    assert await whole_session(lab, chain) == ["c"] * 6 + [""]
    assert milters[0].connections[0].codes == f"OC{MESSAGE}KC"
    assert milters[0].connections[1].codes.startswith(f"OC{MESSAGE}")
    assert len(milters[1].connections) == 1


async def test_a_new_connection_that_is_lost_is_a_failure(lab, reusing):
    await lab.milter({C: Close()})
    session = reusing().session(lab.client)
    assert (await session.connect()).kind is not Kind.CONTINUE
    await session.close()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([{C: DIES}, {}], {}, "c"),
        ([{C: DIES}, {}], {C: REFUSES}, "550 5.7.1 at last"),
        ([{C: DIES}, {C: ReplyCode(b"550 5.7.1 reopened")}], {C: REFUSES}, "550 5.7.1 reopened"),
        ({C: REFUSES}, [{C: DIES}, {C: ReplyCode(b"550 5.7.1 reopened")}], "550 5.7.1 at last"),
        ([{C: DIES}, {C: Close()}], {}, LATER),
    ],
)
async def test_the_first_refusal_in_configured_order(lab, reusing, first, second, expected):
    await lab.milter(first)
    await lab.milter(second)
    chain = reusing()
    await whole_session(lab, chain)
    session = chain.session(lab.client)
    assert await lab.play(session, "C Q") == [expected, ""]
    await session.close()


async def test_those_behind_a_refusal_are_not_waited_for(lab, reusing):
    """What is gone would have to be opened again, and that may take its time."""
    gone = asyncio.Event()
    late = [Late(gone), ReplyCode(b"550 5.7.1 at last")]
    await lab.milter({C: InTurn(Continue(), late)})
    away = await lab.milter({C: DIES}, negotiate=InTurn(lab.wants(), Silence()))
    chain = reusing()
    await whole_session(lab, chain)
    session = chain.session(lab.client)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        told = group.create_task(lab.play(session, "C Q"))
        await away.wait_closed()
        gone.set()
    assert told.result() == ["550 5.7.1 at last", ""]
    assert len(away.connections) == 1


async def test_bytes_that_come_unasked_while_it_waits(lab, reusing):
    """Read as the reply to CONNECT they would be believed."""
    milter = await lab.milter([{K: [Reject()]}, {}])
    chain = reusing()
    await whole_session(lab, chain)
    await milter.wait_closed()
    assert await whole_session(lab, chain) == ["c"] * 6 + [""]
    assert len(milter.connections) == 2


async def test_a_milter_that_was_restarted_with_other_options(lab, reusing):
    declines = lab.wants(Protocol.NO_HELO, Protocol.NO_HEADERS, version=4, macros={})
    milter = await lab.milter([{K: Close()}, {}], negotiate=InTurn(lab.wants(), declines))
    chain = reusing()
    await whole_session(lab, chain)
    await milter.wait_closed()
    assert await whole_session(lab, chain) == ["c"] * 6 + [""]
    again = await milter.wait_closed(1)
    assert (again.codes, again.violations) == ("OCMRTNBEQ", [])


@pytest.mark.parametrize("reply", [Accept(), Reject(), TempFail(), ReplyCode(b"550 5.7.1 no")])
async def test_a_final_reply_to_connect_ends_it(lab, reusing, reply):
    milter = await lab.milter({C: InTurn(Continue(), reply)})
    chain = reusing()
    await whole_session(lab, chain)
    session = chain.session(lab.client)
    await session.connect()
    await session.close()
    assert (await milter.wait_closed()).codes == f"OC{MESSAGE}KCQ"


async def test_one_that_does_not_answer_connect_has_failed(lab, reusing):
    """It has heard of the client: nobody tells how far it came."""
    milter = await lab.milter({C: InTurn(Continue(), Silence())})
    chain = reusing({**REUSE, "command_timeout": 0.1})
    await whole_session(lab, chain)
    session = chain.session(lab.client)
    assert await lab.play(session, "C H M") == [LATER] * 3
    await session.close()
    assert len(milter.connections) == 1


async def test_a_client_that_leaves_while_connect_is_under_way(lab, reusing):
    answer = asyncio.Event()
    kept = await lab.milter({C: InTurn(Continue(), [Late(answer), Continue()])})
    gone = await lab.milter({C: DIES}, negotiate=InTurn(lab.wants(), Silence()))
    chain = reusing()
    await whole_session(lab, chain)
    session = chain.session(lab.client)
    async with asyncio.TaskGroup() as group:
        connecting = group.create_task(session.connect())
        await gone.wait_closed()
        answer.set()
        await gone.wait_for(lambda: len(gone.connections) == 2)
        connecting.cancel()
    assert connecting.cancelled()
    await session.close()
    assert (await kept.wait_closed()).codes == f"OC{MESSAGE}KCQ"
    await gone.wait_closed(1)


async def test_a_client_that_leaves_before_the_answer_to_connect(lab, reusing):
    answer = asyncio.Event()
    milter = await lab.milter({C: InTurn(Continue(), [Late(answer), Continue()])})
    chain = reusing()
    await whole_session(lab, chain)
    session = chain.session(lab.client)
    async with asyncio.TaskGroup() as group:
        connecting = group.create_task(session.connect())
        await milter.wait_for(lambda: milter.connections[0].codes.endswith("KC"))
        connecting.cancel()
    assert connecting.cancelled()
    async with asyncio.TaskGroup() as group:
        group.create_task(session.close())
        answer.set()
    assert (await milter.wait_closed()).codes == f"OC{MESSAGE}KCQ"


async def test_a_message_that_needs_a_new_connection_takes_a_kept_one(lab, reusing):
    """A verdict amid streamed content closes the connection; the next message of the session goes on."""
    milter = await lab.milter([{Command.HEADER: Accept()}, {}], drops_after_verdict=True)
    chain = reusing({**REUSE, "pipeline": "on"})
    first, second = chain.session(lab.client), chain.session(lab.client)
    await lab.play(first, "C H M R1 T E")
    await milter.wait_closed()
    await lab.play(second, "C H M R1 T E Q")
    await milter.wait_for(lambda: milter.connections[1].codes.endswith("K"))
    assert await lab.play(first, "M R1 T E Q") == ["c"] * 4 + [""]
    assert len(milter.connections) == 2
    await milter.wait_for(lambda: milter.connections[1].codes == f"OC{MESSAGE}KC{MESSAGE}K")


async def test_sessions_outlive_the_chain(lab, reusing):
    milter = await lab.milter()
    chain = reusing()
    session = chain.session(lab.client)
    await lab.play(session, "C H M R1 T E")
    await chain.close()
    await session.close()
    assert (await milter.wait_closed()).codes == f"OC{MESSAGE}Q"


async def test_closed_after_a_while(lab):
    milter = await lab.milter()
    idle = IdleSessions(IdleOptions(idle_time=0.05))
    session = await after_a_message(milter)
    assert idle.keep(session)
    assert len(idle) == 1
    assert (await milter.wait_closed()).codes.endswith("KQ")
    assert idle.take() is None


@pytest.mark.parametrize("options", [IdleOptions(most=0), IdleOptions(lifetime=-1.0)])
async def test_limits(lab, options):
    milter = await lab.milter()
    session = await after_a_message(milter)
    assert not IdleSessions(options).keep(session)
    await session.quit()


async def test_nothing_is_kept_after_close(lab):
    milter = await lab.milter()
    idle = IdleSessions()
    await idle.close()
    session = await after_a_message(milter)
    assert not idle.keep(session)
    await session.quit()


async def test_the_last_one_first_and_no_dead_one(lab):
    milter = await lab.milter()
    idle = IdleSessions()
    sessions = [await after_a_message(milter) for _ in range(3)]
    for session in sessions:
        assert idle.keep(session)
    sessions[2].close()
    assert idle.take() is sessions[1]
    sessions[0].close()
    assert idle.take() is None
    await sessions[1].quit()
    await idle.close()


async def test_the_sweep_leaves_the_young(lab):
    milter = await lab.milter()
    idle = IdleSessions(IdleOptions(idle_time=0.6))
    sessions = [await after_a_message(milter) for _ in range(2)]
    assert idle.keep(sessions[0])
    older = asyncio.Event()
    asyncio.get_running_loop().call_later(0.4, older.set)
    await older.wait()
    assert idle.keep(sessions[1])
    await sessions[0].wait_closed()
    assert len(idle) == 1
    await sessions[1].wait_closed()
    assert len(idle) == 0


async def after_a_message(milter: ScriptedMilter) -> MilterSession:
    session = await MilterSession.open(parse_endpoint(milter.endpoint))
    for command in (
        Connect(hostname=b"client.test", family=Family.UNKNOWN),
        Mail(b"<a@a.test>"),
        Rcpt(b"<b@b.test>"),
    ):
        await session.command(command)
    result = await session.content(Content(headers=[], body=lambda _: [], body_size=0), pipelined=False)
    assert isinstance(result.reply, Continue)
    return session
