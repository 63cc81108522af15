"""How long a client waits for milters when it comes, and when one joins later."""

import asyncio
import time

from milterchain.chain import greeting
from milterchain.chain.conditions import Conditions, domains
from milterchain.milter.flags import Command
from milterchain.milter.messages import Reject
from milterchain.testing.faults import Silence

REJECTED = "550 5.7.1 Command rejected"


async def test_observed_milters_open_beside_the_others(lab, monkeypatch):
    monkeypatch.setattr(greeting, "OBSERVED_OPENING", 0.3)
    for _ in range(3):
        await lab.milter(negotiate=[Silence()])
    await lab.milter()
    session = await lab.session(*[{"observed": True}] * 3)
    began = time.monotonic()
    assert await lab.play(session, "C") == ["c"]
    assert 0.25 < time.monotonic() - began < 5
    assert lab.milters[3].connections[0].codes == "OC"


async def test_a_refusal_does_not_wait_for_observed_milters(lab):
    await lab.milter(negotiate=[Silence()])
    await lab.milter({Command.CONNECT: Reject()})
    session = await lab.session({"observed": True})
    async with asyncio.timeout(greeting.OBSERVED_OPENING - 1):
        assert await lab.play(session, "C") == [REJECTED]


async def test_late_milters_are_opened_side_by_side(lab):
    late = {"conditions": Conditions(senders=domains(["a.test"])), "connect_timeout": 0.3}
    for _ in range(3):
        await lab.milter(negotiate=[Silence()])
    session = await lab.session(*[{**late, "default_action": "accept"}] * 3)
    assert await lab.play(session, "C H") == ["c", "c"]
    began = time.monotonic()
    assert await lab.play(session, "M") == ["c"]
    assert time.monotonic() - began < 0.8
