"""A milter that keeps failing is left alone, and tried again by one session."""

import asyncio

import pytest

from milterchain.chain.breaker import FIRST_REST, PROBE_TIME, Breaker, BreakerChange, BreakerOptions
from milterchain.errors import LocalProtocolError, MilterClosedError, MilterRestingError
from milterchain.milter.flags import Command
from milterchain.testing.faults import Close

LATER = "451 4.7.1 Service unavailable - try again later"
ERROR = MilterClosedError("gone")


class Clock:
    """The loop's clock, set by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        loop = asyncio.get_running_loop()
        monkeypatch.setattr("milterchain.chain.breaker.asyncio.get_running_loop", lambda: self)
        self.loop = loop

    def time(self):
        return self.now


@pytest.fixture
async def clock(monkeypatch):
    return Clock(monkeypatch)


def make(**options):
    told: list[BreakerChange] = []
    return Breaker("m", BreakerOptions(**options), told.append), told


@pytest.mark.usefixtures("clock")
async def test_it_opens_after_failures_in_a_row():
    breaker, told = make(failures=3, rest=10)
    for _ in range(2):
        breaker.enter()
        breaker.failed(ERROR, in_content=False)
    breaker.worked(in_content=False)
    for _ in range(2):
        breaker.failed(ERROR, in_content=False)
        breaker.enter()
    assert told == []
    breaker.failed(ERROR, in_content=False)
    assert told == [BreakerChange(milter="m", rest=FIRST_REST, failures=3, error="gone")]
    assert breaker.resting
    with pytest.raises(MilterRestingError, match="after 3 failures in a row"):
        breaker.enter()


async def test_one_may_try_when_the_time_is_over(clock):
    breaker, told = make(failures=1, rest=10)
    breaker.failed(ERROR, in_content=False)
    clock.now += FIRST_REST
    breaker.enter()
    for _ in range(3):
        with pytest.raises(MilterRestingError):
            breaker.enter()
    breaker.failed(ERROR, in_content=False)
    clock.now += 2 * FIRST_REST - 0.1
    with pytest.raises(MilterRestingError):
        breaker.enter()
    clock.now += 0.1
    breaker.enter()
    breaker.worked(in_content=False)
    breaker.enter()
    breaker.enter()
    assert [change.rest for change in told] == [FIRST_REST, 2 * FIRST_REST, 0]


@pytest.mark.parametrize(("most", "rests"), [(10, [1, 2, 4, 8, 10, 10]), (0.2, [0.2, 0.2])])
async def test_each_rest_is_longer_until_it_works_again(clock, most, rests):
    breaker, told = make(failures=1, rest=most)
    for _ in range(2):
        for rest in rests:
            breaker.enter()
            breaker.failed(ERROR, in_content=False)
            clock.now += rest
        breaker.enter()
        breaker.worked(in_content=False)
    assert [change.rest for change in told] == [*rests, 0, *rests, 0]


async def test_one_that_tries_for_ever_does_not_keep_it_away(clock):
    breaker, _ = make(failures=1, rest=10)
    breaker.failed(ERROR, in_content=False)
    clock.now += 10
    breaker.enter()
    clock.now += PROBE_TIME
    breaker.enter()


@pytest.mark.usefixtures("clock")
async def test_what_failed_messages_must_pass_one():
    breaker, told = make(failures=2, rest=10)
    breaker.failed(ERROR, in_content=True)
    breaker.worked(in_content=False)
    breaker.failed(ERROR, in_content=True)
    assert len(told) == 1
    breaker.worked(in_content=False)
    assert breaker.resting
    breaker.worked(in_content=True)
    assert not breaker.resting


@pytest.mark.usefixtures("clock")
async def test_faults_of_ours_do_not_count():
    breaker, told = make(failures=1, rest=10)
    breaker.failed(LocalProtocolError("x"), in_content=False)
    breaker.failed(MilterRestingError("x"), in_content=False)
    breaker.worked(in_content=True)
    assert told == []


@pytest.mark.usefixtures("clock")
async def test_sessions_that_fail_late_say_nothing_new():
    breaker, told = make(failures=2, rest=10)
    for _ in range(10):
        breaker.failed(ERROR, in_content=False)
    assert len(told) == 1


async def sessions(lab, chain, count):
    heard = []
    for _ in range(count):
        session = chain.session(lab.client)
        heard.append((await lab.play(session, "C H M"))[-1])
        await session.close()
    return heard


@pytest.mark.parametrize("at", [Command.CONNECT, Command.MAIL], ids=str)
async def test_its_default_action_applies_meanwhile(lab, at):
    milter = await lab.milter({at: lambda _: Close()})
    told = []
    chain = lab.chain(breaker=BreakerOptions(failures=3, rest=0.2), on_breaker=told.append)
    assert await sessions(lab, chain, 6) == [LATER] * 6
    assert len(milter.connections) == 3
    assert len(told) == 1


async def test_it_is_back(lab):
    milter = await lab.milter()
    await milter.stop()
    told = []
    chain = lab.chain(breaker=BreakerOptions(failures=2, rest=0.2), on_breaker=told.append)
    assert await sessions(lab, chain, 3) == [LATER] * 3
    await milter.start()
    assert await sessions(lab, chain, 1) == [LATER]
    assert milter.connections == []
    async with asyncio.timeout(10):
        while await sessions(lab, chain, 1) != ["c"]:
            pass
    assert await sessions(lab, chain, 3) == ["c"] * 3
    assert [bool(change.rest) for change in told] == [True, False]


async def test_messages_that_fail_open_it_though_sessions_without_one_go_well(lab):
    await lab.milter({Command.END_OF_MESSAGE: Close()})
    told = []
    chain = lab.chain(breaker=BreakerOptions(failures=2, rest=60), on_breaker=told.append)
    for _ in range(2):
        assert await sessions(lab, chain, 1) == ["c"]
        session = chain.session(lab.client)
        assert (await lab.play(session, "C H M R1 T E"))[-1] == LATER
        await session.close()
    assert len(told) == 1
    assert await sessions(lab, chain, 1) == [LATER]


async def test_without_options_every_session_tries(lab):
    milter = await lab.milter({Command.CONNECT: Close()})
    assert await sessions(lab, lab.chain(), 10) == [LATER] * 10
    assert len(milter.connections) == 10
