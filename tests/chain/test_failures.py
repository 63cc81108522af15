"""Whatever a milter does wrong, wherever: its default action is the answer, and the others go on."""

import asyncio
from types import SimpleNamespace

import pytest

from milterchain.chain.settings import DefaultAction
from milterchain.chain.verdict import Kind
from milterchain.errors import MilterConnectError
from milterchain.milter.client import MilterSession
from milterchain.milter.flags import Command
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    AddRecipient,
    ConnFail,
    Continue,
    OptNeg,
    Progress,
    Quarantine,
    ReplaceBody,
    ReplyCode,
)
from milterchain.testing.faults import Close, Garbage, InTurn, Late, Reset, Silence
from milterchain.testing.peer import refusing_address
from milterchain.testing.scripted_milter import HalfPacket, packet

STAGES = {
    "open": None,
    "C": Command.CONNECT,
    "H": Command.HELO,
    "M": Command.MAIL,
    "R1": Command.RCPT,
    "T": Command.DATA,
    "L": Command.HEADER,
    "N": Command.END_OF_HEADERS,
    "B": Command.BODY,
    "E": Command.END_OF_MESSAGE,
}
STEPS = "C H M R1 T E M R1 T E"
FAULTS = {
    "close": [Close()],
    "reset": [Reset()],
    "garbage": [Garbage()],
    "half a packet": [HalfPacket(ReplyCode(b"550 never heard")), Close()],
    "silence": [Silence()],
    "an edit out of place": [AddHeader(b"X", b"1"), Garbage()],
    "conn_fail": [ConnFail()],
}
TEXTS = {
    DefaultAction.ACCEPT: "c",
    DefaultAction.QUARANTINE: "c",
    DefaultAction.REJECT: "550 5.5.0 Service unavailable",
    DefaultAction.TEMPFAIL: "451 4.7.1 Service unavailable - try again later",
    DefaultAction.SHUTDOWN: "421 4.7.1 Service unavailable - try again later",
}
MISCONFIGURED = {
    DefaultAction.ACCEPT: "c",
    DefaultAction.QUARANTINE: "c",
    DefaultAction.REJECT: "451 4.3.5 Server configuration problem - try again later",
    DefaultAction.TEMPFAIL: "451 4.3.5 Server configuration problem - try again later",
    DefaultAction.SHUTDOWN: "421 4.3.5 Server configuration problem - try again later",
}
IMPATIENT = {"command_timeout": 0.2, "content_timeout": 0.2, "connect_timeout": 0.2}


async def fails_at(lab, stage, items, action, expected, **more):
    """Play until a milter fails, and go on with the session; it is the second of three."""
    command = STAGES[stage]
    await lab.milter()
    if command is None:
        await lab.milter(negotiate=items)
    else:
        await lab.milter({command: items})
    await lab.milter()
    session = await lab.session({}, {"default_action": action, **more})
    step = {"open": "C", "L": "E", "N": "E", "B": "E"}.get(stage, stage)
    before = STEPS[: STEPS.index(step)]
    heard = await lab.play(session, f"{before} {step}")
    assert heard == ["c"] * len(before.split()) + [expected]
    return session


@pytest.mark.parametrize("action", DefaultAction)
@pytest.mark.parametrize("stage", STAGES)
async def test_each_stage_and_action(lab, stage, action):
    expected = TEXTS[action]
    session = await fails_at(lab, stage, [Close()], action, expected)
    if action in {DefaultAction.ACCEPT, DefaultAction.QUARANTINE}:
        rest = STEPS[STEPS.index({"open": "C", "L": "E", "N": "E", "B": "E"}.get(stage, stage)) :]
        await lab.play(session, rest[2:])
        held = lab.outcome.quarantine
        assert held == (None if action is DefaultAction.ACCEPT else ("m1", b"default_action"))
        for milter in (lab.milters[0], lab.milters[2]):
            assert milter.connections[0].codes == "OCHMRTLLLNBEMRTLLLNBE"
            assert milter.connections[0].violations == []
    else:
        assert await lab.play(session, "M") == [expected]
    assert len(lab.milters[1].connections) == 1


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        (stage, fault)
        for stage in STAGES
        for fault in FAULTS
        if (stage, fault) != ("E", "an edit out of place")  # that is where edits belong
    ],
)
async def test_each_stage_and_fault(lab, stage, fault):
    more = IMPATIENT if fault == "silence" else {}
    await fails_at(lab, stage, FAULTS[fault], "reject", TEXTS[DefaultAction.REJECT], **more)


@pytest.mark.parametrize("stage", STAGES)
async def test_cut_off_at_any_byte(lab, stage):
    """Half a refusal refuses nothing, half of the edits change nothing: the default action counts."""
    said = {
        "open": [lab.wants()],
        "E": [AddHeader(b"X", b"1"), ReplaceBody(b"new"), AddRecipient(b"<x@b.test>"), Accept()],
    }.get(stage, [ReplyCode(b"550 5.7.1 never heard")])
    whole = b"".join(map(packet, said))
    cuts = [[whole[:size], Close()] for size in range(1, len(whole))]
    command, left = STAGES[stage], iter(cuts)
    if command is None:
        await lab.milter(negotiate=InTurn(*cuts))
    else:
        await lab.milter({command: lambda _: next(left)})
    for _ in cuts:
        session = await lab.session({"default_action": "accept"})
        assert await lab.play(session, "C H M R1 T E Q") == [*"cccccc", ""]
        assert b"".join(lab.outcome.message.chunks()) == lab.raw
        assert lab.outcome.envelope == lab.envelope
    assert len(lab.milters[0].connections) == len(cuts)


@pytest.mark.parametrize("action", DefaultAction)
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "open"])
async def test_a_reply_that_no_server_may_send(lab, stage, action):
    await fails_at(lab, stage, [ReplyCode(b"250 fine")], action, MISCONFIGURED[action])


@pytest.mark.parametrize("action", DefaultAction)
async def test_nobody_there(lab, action):
    with refusing_address() as (host, port):
        chain = lab.chain()
        settings = lab.settings(f"inet:{host}:{port}", "down", default_action=action)
        chain = type(chain)([settings], hostname=b"mx.test")
        session = chain.session(lab.client)
        assert await lab.play(session, "C") == [TEXTS[action]]
        await session.close()


async def test_a_milter_that_is_restarted_is_found(lab, monkeypatch):
    milter = await lab.milter()
    session = await lab.session()
    await milter.stop()
    refused = []

    async def back_after_a_refusal(endpoint, options):
        try:
            return await MilterSession.open(endpoint, options)
        except MilterConnectError as error:
            refused.append(error)
            await milter.start()
            raise

    opener = SimpleNamespace(open=back_after_a_refusal)
    monkeypatch.setattr("milterchain.chain.opening.MilterSession", opener)
    assert await lab.play(session, "C") == ["c"]
    assert len(refused) == 1


async def test_a_milter_that_answers_with_a_newer_version(lab):
    answer = OptNeg(version=7, actions=lab.wants().actions, protocol=lab.wants().protocol)
    await lab.milter(negotiate=answer)
    session = await lab.session({"default_action": "reject"})
    assert await lab.play(session, "C") == ["550 5.5.0 Service unavailable"]


async def test_lost_between_events(lab):
    milter = await lab.milter({Command.HELO: [Continue(), Close()]})
    session = await lab.session({"default_action": "reject"})
    await lab.play(session, "C H")
    await milter.wait_closed()
    assert await lab.play(session, "M") == ["550 5.5.0 Service unavailable"]


async def test_a_late_packet_is_not_taken_for_the_next_reply(lab):
    """rspamd may send ACCEPT and then a modification."""
    milter = await lab.milter({Command.END_OF_MESSAGE: InTurn([Continue(), AddHeader(b"X", b"1")])})
    session = await lab.session({"default_action": "reject"})
    assert (await lab.play(session, "C H M R1 T E"))[-1] == "c"
    await milter.wait_closed()
    assert await lab.play(session, "M") == ["550 5.5.0 Service unavailable"]


@pytest.mark.parametrize("fault", [[ReplyCode(b"999 what")], [Close()], [Reset()], [Garbage()], [Silence()]])
async def test_quarantine_then_failure_keeps_the_hold(lab, fault):
    await lab.milter({Command.END_OF_MESSAGE: [Quarantine(b"virus"), *fault]})
    session = await lab.session({"default_action": "accept", **IMPATIENT})
    assert (await lab.play(session, "C H M R1 T E"))[-1] == "c"
    assert lab.outcome.quarantine == ("m0", b"virus")
    await lab.play(session, "M R1 T E")
    assert lab.outcome.quarantine is None


async def test_the_failure_of_one_does_not_hide_the_refusal_of_another(lab):
    await lab.milter({Command.MAIL: Close()})
    await lab.milter({Command.MAIL: ReplyCode(b"550 5.1.8 bad sender")})
    session = await lab.session({"default_action": "accept"})
    assert (await lab.play(session, "C H M"))[-1] == "550 5.1.8 bad sender"


async def test_the_session_after_starts_afresh(lab):
    await lab.milter([{Command.CONNECT: Close()}, {}])
    for expected in ("451 4.7.1 Service unavailable - try again later", "c"):
        session = await lab.session()
        assert await lab.play(session, "C") == [expected]


@pytest.mark.parametrize("steps", ["", "C", "C H", "C H M", "C H M R1", "C H M R1 T", "C H M R1 T E"])
async def test_close_at_any_point(lab, steps):
    milter = await lab.milter()
    session = await lab.session()
    await lab.play(session, steps)
    await session.close()
    await session.close()
    if steps:
        connection = await milter.wait_closed()
        assert connection.codes.endswith("Q")
        assert connection.violations == []


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        ("C", "C"),
        ("H", "C H"),
        ("M", "C H M"),
        ("R1", "C H M R1"),
        ("T", "C H M R1 T"),
        ("E", "C H M R1 T E"),
    ],
)
async def test_close_while_another_method_runs(lab, stage, steps, monkeypatch):
    """No message passes a chain that was closed."""
    monkeypatch.setattr("milterchain.chain.session.CLOSE_TIMEOUT", 0.05)
    slow = await lab.milter({STAGES[stage]: Silence()})
    session = await lab.session({"default_action": "accept"})
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lab.play(session, steps))
        await slow.wait_for(lambda: slow.connections and slow.connections[0].codes.endswith(stage[0]))
        await session.close()
    assert task.result()[-1] == TEXTS[DefaultAction.TEMPFAIL]
    await slow.wait_closed()


@pytest.mark.parametrize("stage", ["C", "H", "M", "R1", "T", "E"])
async def test_cancelled_at_any_point(lab, stage, monkeypatch):
    monkeypatch.setattr("milterchain.chain.session.CLOSE_TIMEOUT", 0.05)
    slow = await lab.milter({STAGES[stage]: Silence()})
    other = await lab.milter()
    session = await lab.session()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lab.play(session, STEPS))
        await slow.wait_for(lambda: slow.connections and slow.connections[0].codes.endswith(stage[0]))
        task.cancel()
    await session.close()
    await slow.wait_closed()
    await other.wait_closed()


async def test_closed_while_opening(lab):
    milter = await lab.milter(negotiate=Silence())
    session = await lab.session({"default_action": "accept"})
    async with asyncio.TaskGroup() as group:
        task = group.create_task(session.connect())
        await milter.wait_for(lambda: milter.connections and milter.connections[0].codes == "O")
        await session.close()
        task.cancel()
    assert task.cancelled()


async def test_slow_opening_of_one_does_not_delay_a_refusal_before_it(lab):
    await lab.milter({Command.CONNECT: ReplyCode(b"554 no")})
    silent = await lab.milter(negotiate=Silence())
    session = await lab.session()
    async with asyncio.timeout(5):
        verdict = await session.connect()
    assert verdict.kind is Kind.REJECT
    assert session.standing is verdict
    await session.close()
    await silent.wait_for(lambda: all(connection.closed for connection in silent.connections))


async def test_an_opening_that_ends_after_close(lab):
    gate = asyncio.Event()
    milter = await lab.milter(negotiate=[Late(gate), lab.wants()])
    session = await lab.session({"default_action": "accept"})
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lab.play(session, "C"))
        await milter.wait_for(lambda: milter.connections and milter.connections[0].codes == "O")
        await session.close()
        gate.set()
    assert task.result() == [TEXTS[DefaultAction.TEMPFAIL]]
    assert (await milter.wait_closed()).codes == "O"


async def test_a_last_word_that_comes_after_close(lab):
    gate = asyncio.Event()
    milter = await lab.milter({Command.CONNECT: [Late(gate), Accept()]})
    session = await lab.session()
    async with asyncio.TaskGroup() as group:
        group.create_task(lab.play(session, "C"))
        await milter.wait_for(lambda: milter.connections and milter.connections[0].codes == "OC")
        closing = group.create_task(session.close())
        await asyncio.sleep(0)
        assert not closing.done()
        gate.set()
    assert (await milter.wait_closed()).codes == "OCQ"
    assert await lab.play(session, "M") == [TEXTS[DefaultAction.TEMPFAIL]]


async def test_progress_without_end_at_connect(lab, monkeypatch):
    monkeypatch.setattr("milterchain.chain.session.EVENT_TIMEOUT", 0.2)
    await lab.milter({Command.CONNECT: [Progress(), Silence()]})
    session = await lab.session({"default_action": "reject"})
    assert await lab.play(session, "C") == [TEXTS[DefaultAction.REJECT]]
