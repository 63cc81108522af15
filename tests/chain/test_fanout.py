"""Who is waited for, and who is not: order decides, speed never does."""

import asyncio

import pytest

from milterchain.chain import fanout
from milterchain.chain.verdict import CONTINUE, Kind
from milterchain.mail.envelope import Path
from milterchain.milter.flags import Command, Protocol
from milterchain.milter.messages import Accept, Continue, Discard, Progress, Rcpt, Reject, TempFail
from milterchain.testing.faults import InTurn, Late, Silence

R, M, T, H, C = Command.RCPT, Command.MAIL, Command.DATA, Command.HELO, Command.CONNECT
NO = "550 5.7.1 Command rejected"
LATER = "451 4.7.1 Service unavailable - try again later"


@pytest.mark.parametrize(
    ("event", "before"), [(C, ""), (H, "C "), (M, "C H "), (R, "C H M "), (T, "C H M R1 ")]
)
async def test_a_later_milter_does_not_delay_the_decision_of_an_earlier_one(lab, event, before):
    never = asyncio.Event()
    await lab.milter({event: Reject()})
    slow = await lab.milter({event: [Late(never), Continue()]})
    session = await lab.session()
    letter = {C: "C", H: "H", M: "M", R: "R9", T: "T"}[event]
    async with asyncio.timeout(5):
        assert (await lab.play(session, before + letter))[-1] == NO
    if event is not C:  # it may not even be connected
        await slow.wait_for(lambda: slow.connections[0].codes[-1] == letter[0])
    never.set()
    await session.close()


@pytest.mark.parametrize("event", [C, H, M, R, T])
async def test_an_earlier_slow_milter_is_waited_for(lab, event):
    gate = asyncio.Event()
    slow = await lab.milter({event: [Late(gate), TempFail()]})
    fast = await lab.milter({event: Reject()})
    session = await lab.session()
    steps = "C H M R1 T"[: "C H M R1 T".index(chr(event)) + 1].replace("R", "R1").replace("R11", "R1")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lab.play(session, steps))
        await fast.wait_for(lambda: fast.connections and chr(event) in fast.connections[0].codes)
        await slow.wait_for(lambda: slow.connections and chr(event) in slow.connections[0].codes)
        assert not task.done()
        gate.set()
    assert task.result()[-1] == LATER


async def test_all_are_told_at_once(lab):
    gate = asyncio.Event()
    for _ in range(3):
        await lab.milter({M: [Late(gate), Continue()]})
    session = await lab.greeted()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lab.play(session, "M"))
        for milter in lab.milters:
            await milter.wait_for(lambda milter=milter: milter.connections[0].codes.endswith("M"))
        assert not task.done()
        gate.set()
    assert task.result() == ["c"]


async def test_all_are_connected_side_by_side(lab):
    gate = asyncio.Event()
    slow = [await lab.milter({C: [Late(gate), Continue()]}) for _ in range(3)]
    session = await lab.session()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(session.connect())
        for milter in slow:
            await milter.wait_for(
                lambda milter=milter: milter.connections and milter.connections[0].codes == "OC"
            )
        assert not task.done()
        gate.set()
    assert task.result() == CONTINUE


async def test_a_slow_reply_is_drained_before_the_next_packet(lab):
    gate = asyncio.Event()
    await lab.milter({R: InTurn(Reject(), Reject(), Continue())})
    slow = await lab.milter({R: InTurn([Late(gate), Continue()], Continue())})
    session = await lab.greeted()
    assert await lab.play(session, "M R1 R2") == ["c", NO, NO]
    await slow.wait_for(lambda: slow.connections[0].of(Rcpt))
    assert len(slow.connections[0].of(Rcpt)) == 1
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lab.play(session, "R3 T E"))
        gate.set()
    assert task.result() == ["c", "c", "c"]
    assert slow.connections[0].codes == "OCHMRRRAMRTLLLNBE"
    assert slow.connections[0].violations == []


@pytest.mark.parametrize(
    ("late", "codes"),
    [
        # libmilter would drop what follows without a reply: it must not be sent
        (Accept(), "OCHMRMRTLLLNBEQ"),
        (Discard(), "OCHMRAMRTLLLNBEQ"),
        (Reject(), "OCHMRRTLLLNBEQ"),
    ],
)
async def test_a_late_verdict_counts_for_its_milter(lab, late, codes):
    gate = asyncio.Event()
    await lab.milter({R: InTurn(Reject(), Continue())})
    slow = await lab.milter({R: InTurn([Late(gate), late], Continue())}, drops_after_verdict=True)
    session = await lab.greeted()
    assert await lab.play(session, "M R1") == ["c", NO]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lab.play(session, "R2 T E Q"))
        await asyncio.sleep(0)
        gate.set()
    assert task.result() == ["c", "c", "c", ""]
    connection = await slow.wait_closed()
    assert connection.codes == codes


async def test_a_message_that_is_over_is_not_told_to_a_slow_milter(lab):
    gate = asyncio.Event()
    await lab.milter({R: Reject()})
    slow = await lab.milter({R: InTurn([Late(gate), Continue()], Continue())})
    session = await lab.greeted()
    await lab.play(session, "M R1 R2 R3 A")
    gate.set()
    await session.close()
    connection = await slow.wait_closed()
    assert connection.codes == "OCHMRAQ"


async def test_progress_without_end(lab, monkeypatch):
    monkeypatch.setattr(fanout, "EVENT_TIMEOUT", 0.2)
    await lab.milter({M: [Progress(), Silence()]}, negotiate=lab.wants())
    await lab.milter({M: [Progress(), Silence()]})
    await lab.milter()
    session = await lab.greeted({"default_action": "accept"}, {"default_action": "reject"})
    verdict = await session.mail(lab.sender, b"Q1")
    assert str(verdict.reply) == "550 5.5.0 Service unavailable"
    assert verdict.milter == "m1"


async def test_progress_without_end_and_default_accept(lab, monkeypatch):
    monkeypatch.setattr(fanout, "EVENT_TIMEOUT", 0.2)
    await lab.milter({M: [Progress(), Silence()]})
    await lab.milter()
    await lab.milter(negotiate=lab.wants(Protocol.NO_REPLY_MAIL))
    session = await lab.greeted({"default_action": "accept"})
    assert await lab.play(session, "M") == ["c"]
    assert await lab.play(session, "R1") == ["c"]


async def test_a_milter_that_stays_behind_is_waited_for(lab, monkeypatch):
    monkeypatch.setattr("milterchain.chain.member.MAX_LENGTH", 3)
    gate = asyncio.Event()
    slow = await lab.milter(
        {R: InTurn([Late(gate), Continue()], Continue())}, negotiate=lab.wants(Protocol.RCPT_REJECTED)
    )
    session = await lab.greeted()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lab.play(session, "M X1 X2 X3 X4 X5 R6"))
        await slow.wait_for(lambda: slow.connections[0].of(Rcpt))
        assert not task.done()
        gate.set()
    assert task.result()[-1] == "c"
    assert len(slow.connections[0].of(Rcpt)) == 6


async def test_who_stays_behind_for_too_long_is_given_up(lab, monkeypatch):
    monkeypatch.setattr("milterchain.chain.member.MAX_LENGTH", 2)
    monkeypatch.setattr("milterchain.chain.session.EVENT_TIMEOUT", 0.05)
    await lab.milter({R: Silence()}, negotiate=lab.wants(Protocol.RCPT_REJECTED))
    session = await lab.greeted()
    assert (await lab.play(session, "M X1 X2 X3 X4 R6"))[-1] == LATER


async def test_cancelled_while_waiting(lab):
    gate = asyncio.Event()
    slow = await lab.milter({R: [Late(gate), Accept()]})
    session = await lab.greeted()
    await session.mail(lab.sender, b"Q1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await session.rcpt(Path(b"<r1@b.test>"))
    session.abort()
    gate.set()
    assert (await session.mail(lab.sender, b"Q2")).kind is Kind.CONTINUE
    await session.close()
    assert (await slow.wait_closed()).codes == "OCHMRMAQ"
