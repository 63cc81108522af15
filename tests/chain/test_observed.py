"""Milters that are only observed: nothing that they say or fail to do has an effect."""

import asyncio

import pytest

from milterchain.chain import greeting, observed
from milterchain.chain.verdict import Kind
from milterchain.milter.flags import Command
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    AddRecipient,
    ChangeSender,
    Continue,
    Discard,
    Quarantine,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    TempFail,
)
from milterchain.testing.faults import Close, Garbage, Late, Reset, Silence
from milterchain.testing.scripted_milter import HalfPacket

STAGES = [
    *(Command.CONNECT, Command.HELO, Command.MAIL, Command.RCPT, Command.DATA),
    *(Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE, Command.UNKNOWN),
]
WATCHED = {"observed": True, "default_action": "reject"}
SECRET = ReplyCode(b"550 5.7.1 secret")


class Notes:
    """An observer that keeps observations and faults."""

    def __init__(self):
        self.seen = []
        self.faults = []

    def on_event(self, *_):
        pass

    def on_edits(self, milter, *_):
        assert milter != "m1"

    def on_fault(self, milter, event, _, verdict):
        assert not verdict.decides
        assert verdict.quarantine is None
        self.faults.append((milter, event))

    def on_observed(self, _, observation):
        self.seen.append(observation)


async def over(lab, session):
    """End a session, and wait until the milters have heard so."""
    await session.close()
    for milter in lab.milters:
        if milter.connections:
            await milter.wait_closed(len(milter.connections) - 1)


async def play(lab, script, **options):
    """Three milters, the second only observed; everything goes as if it were not there."""
    await lab.milter()
    await lab.milter(script, **options)
    await lab.milter()
    notes = Notes()
    session = await lab.session({}, WATCHED, observer=notes)
    assert await lab.play(session, "C H U M R1 R2 T E M R1 T E") == ["c"] * 12
    assert b"".join(lab.outcome.message.chunks()) == lab.raw
    assert lab.outcome.envelope == lab.envelope
    assert lab.outcome.quarantine is None
    await over(lab, session)
    for milter in (lab.milters[0], lab.milters[2]):
        assert milter.connections[0].codes == "OCHUMRRTLLLNBEMRTLLLNBEQ"
        assert milter.connections[0].violations == []
    for connection in lab.milters[1].connections:
        assert connection.violations == []
    return notes


@pytest.mark.parametrize("answer", [Reject(), TempFail(), SECRET, Shutdown(), Discard(), Accept()], ids=str)
@pytest.mark.parametrize("stage", STAGES, ids=str)
async def test_no_verdict_has_an_effect(lab, stage, answer):
    notes = await play(lab, {stage: answer})
    assert notes.faults == []
    said = [each for each in notes.seen if each.verdict.kind is not Kind.CONTINUE]
    nothing = stage in {Command.CONNECT, Command.HELO, Command.UNKNOWN} and answer == Discard()
    assert bool(said) == (not nothing)
    if answer == SECRET:
        assert {str(each.verdict.reply) for each in said} == {"550 5.7.1 secret"}


EDITS = [
    AddHeader(b"X", b"1"),
    ReplaceBody(b"new"),
    AddRecipient(b"<x@b.test>"),
    ChangeSender(b"<>"),
    Quarantine(b"virus"),
]


async def test_no_edit_has_an_effect(lab):
    notes = await play(lab, {Command.END_OF_MESSAGE: [*EDITS, Continue()]})
    assert len(notes.seen) == 2
    for observation in notes.seen:
        assert list(observation.edits) == EDITS[:-1]
        assert observation.quarantine == b"virus"
        assert observation.verdict.kind is Kind.CONTINUE


@pytest.mark.parametrize(
    "fault",
    [[Close()], [Reset()], [Garbage()], [HalfPacket(SECRET), Close()], [Quarantine(b"x"), Close()]],
    ids=str,
)
@pytest.mark.parametrize("stage", STAGES, ids=str)
async def test_no_fault_has_an_effect(lab, stage, fault):
    notes = await play(lab, {stage: fault})
    assert len(notes.faults) == 1
    assert len(lab.milters[1].connections) == 1


async def test_nobody_there(lab):
    notes = await play(lab, {}, negotiate=[Close()])
    assert notes.faults == [("m1", Command.OPTNEG)]


@pytest.mark.parametrize("stage", [None, *STAGES], ids=str)
async def test_silence_costs_little(lab, stage, monkeypatch):
    monkeypatch.setattr(greeting, "OBSERVED_OPENING", 0.2)
    monkeypatch.setattr(observed, "OBSERVED_CONTENT", 0.2)
    async with asyncio.timeout(10):
        script = {} if stage is None else {stage: Silence()}
        options = {"negotiate": [Silence()]} if stage is None else {}
        notes = await play(lab, script, **options)
    # The end of the session may come before the patience with a line that is no command.
    assert len(notes.faults) == 1


@pytest.mark.parametrize("stage", [Command.DATA, Command.END_OF_MESSAGE])
async def test_silence_leaves_time_for_the_others(lab, stage):
    """Also where all milters together have little."""
    await lab.milter({stage: Silence()})
    await lab.milter({stage: Silence()})
    await lab.milter({Command.END_OF_MESSAGE: [AddHeader(b"X-Third", b"1"), Accept()]})
    session = await lab.greeted(WATCHED, WATCHED, message_timeout=2.0)
    outcome = await lab.send(session)
    assert outcome.verdict.kind is Kind.CONTINUE
    assert b"X-Third: 1" in outcome.message.headers.raw


async def test_nobody_waits_for_it_before_the_content(lab):
    go = asyncio.Event()
    await lab.milter({Command.RCPT: [Late(go), Reject()]})
    notes = Notes()
    session = await lab.session({"observed": True}, observer=notes)
    async with asyncio.timeout(5):
        assert await lab.play(session, "C H M R1 R2 R3 T") == ["c"] * 7
    assert notes.seen == []
    go.set()
    assert await lab.play(session, "E") == ["c"]
    assert [each.event for each in notes.seen] == [Command.RCPT] * 3 + [Command.END_OF_MESSAGE]
    assert lab.milters[0].connections[0].codes == "OCHMRRRTLLLNBE"


async def test_one_that_lags_too_far_behind_is_given_up(lab, monkeypatch):
    monkeypatch.setattr("milterchain.chain.session.OBSERVED_LAG", 0.2)
    await lab.milter({Command.RCPT: Silence()})
    notes = Notes()
    session = await lab.session({"observed": True}, observer=notes)
    async with asyncio.timeout(5):
        assert await lab.play(session, "C H M " + "R1 " * 150 + "T E") == ["c"] * 155
    assert notes.faults == [("m0", Command.RCPT)]


async def test_it_sees_what_those_before_it_have_made(lab):
    await lab.milter({Command.END_OF_MESSAGE: [AddHeader(b"X", b"1"), Continue()]})
    await lab.milter()
    session = await lab.greeted({}, {"observed": True})
    await lab.send(session)
    names = [
        header.name for header in lab.milters[1].connections[0].commands if header.code == Command.HEADER
    ]
    assert names[-1] == b"X"


async def test_a_refusal_by_others_is_theirs(lab):
    await lab.milter({Command.RCPT: Reject()})
    await lab.milter({Command.RCPT: SECRET})
    session = await lab.session({"observed": True})
    assert await lab.play(session, "C H M R1") == ["c", "c", "c", "550 5.7.1 secret"]


async def test_it_is_counted(lab):
    await lab.milter({Command.MAIL: Continue(), Command.END_OF_MESSAGE: [*EDITS, Reject()]})
    await lab.milter()
    chain = lab.chain({"observed": True})
    session = chain.session(lab.client)
    assert await lab.play(session, "C H M R1 T E M R1 T E Q") == [*"cccccccccc", ""]
    assert chain.observed == {"m0": {"reject": 2, "edits": 0, "quarantine": 0}}
