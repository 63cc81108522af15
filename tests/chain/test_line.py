"""The line by itself: what waits, what is dropped, who is told."""

import asyncio

from milterchain.chain.line import Line, Step
from milterchain.chain.picture import Phase, Picture
from milterchain.chain.verdict import CONTINUE, Kind, Verdict
from milterchain.milter.messages import Abort, Connect, Data, Helo, Rcpt

NO = Verdict(kind=Kind.REJECT)


class Owner:
    """Runs steps: DATA at once, everything else waits for `settle`."""

    def __init__(self):
        self.line = Line(self.run)
        self.ran = []

    def run(self, step):
        self.ran.append(step.event)
        if step.event == Data():
            return NO
        self.line.waiting = step
        return None


async def test_in_order_and_one_at_a_time():
    owner = Owner()
    assert owner.line.submit(Step(Data())).verdict is NO
    first = owner.line.submit(Step(Helo(b"a")))
    second = owner.line.submit(Step(Data()))
    third = owner.line.submit(Step(Helo(b"b")))
    assert owner.ran == [Data(), Helo(b"a")]
    assert len(owner.line.steps) == 2
    owner.line.settle(CONTINUE)
    assert (first.verdict, second.verdict) == (CONTINUE, NO)
    assert owner.line.waiting.event == Helo(b"b")
    owner.line.settle(NO)
    assert third.verdict is NO
    owner.line.settle(NO)
    assert owner.line.waiting is None


async def test_those_who_wait_for_the_end_are_told():
    owner = Owner()
    await owner.line.drained()
    owner.line.submit(Step(Helo(b"a")))
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(owner.line.drained()) for _ in range(2)]
        gone = group.create_task(owner.line.drained())
        await asyncio.sleep(0)
        gone.cancel()
        owner.line.settle(CONTINUE)
    assert all(wait.done() for wait in waits)


async def test_what_belongs_to_a_message_is_dropped():
    owner = Owner()
    owner.line.submit(Step(Helo(b"a")))
    events = [Rcpt(b"r"), Helo(b"b"), Data(), Abort(), Connect(hostname=b"h")]
    answers = [owner.line.submit(Step(event)) for event in events]
    owner.line.forget_message()
    assert [answer.verdict is not None for answer in answers] == [True, False, True, False, False]
    assert len(owner.line.steps) == 3


def test_who_waits_for_a_verdict_is_told():
    owner = Owner()
    told = []
    answer = owner.line.submit(Step(Helo(b"a")))
    answer.tell(lambda: told.append(answer.verdict))
    owner.line.submit(Step(Helo(b"b")))
    owner.line.settle(NO)
    owner.line.settle(CONTINUE)
    assert told == [NO]


def test_a_step_that_makes_room_for_itself():
    answers = []

    def run(step):
        answers.append(step)
        if len(answers) > 1:
            return NO
        line.cut_in([Step(Data()), step])
        return None

    line = Line(run)
    assert line.submit(Step(None)).verdict is NO
    assert [step.event for step in answers] == [None, Data(), None]


async def test_cutting_in():
    owner = Owner()
    owner.line.submit(Step(Helo(b"a")))
    owner.line.submit(Step(Data()))
    owner.line.cut_in([Step(Helo(b"b")), Step(Helo(b"c"))])
    owner.line.settle(CONTINUE)
    owner.line.settle(CONTINUE)
    owner.line.settle(CONTINUE)
    assert owner.ran == [Helo(b"a"), Helo(b"b"), Helo(b"c"), Data()]


def test_pictures():
    picture = Picture()
    assert not picture.stale(())
    picture.done(NO)
    assert picture.phase is Phase.NONE
    picture = Picture(begun=True)
    assert picture.open
    for recipient in (1, 2):
        picture.accepted(recipient)
    assert not picture.stale({1, 2, 3})
    assert picture.stale({1})
    picture.done(NO, 2)
    assert (picture.phase, picture.final) == (Phase.DONE, NO)
    assert picture.stale({1})
    assert not picture.stale({2})
    picture.end()
    assert (picture.phase, picture.open) == (Phase.NONE, False)
    picture = Picture(begun=True)
    picture.done(NO)
    assert not picture.stale(())
