"""Introducing a client to milters: connections are opened, and CONNECT and HELO told, all at the same time.

Nobody waits long for a milter that is only observed: it has `OBSERVED_OPENING` seconds to open, and is not
waited for after that.
"""

import asyncio
import itertools
from collections.abc import Sequence

from milterchain.chain.briefing import Briefing
from milterchain.chain.fanout import decide
from milterchain.chain.member import Member
from milterchain.chain.observed import watch
from milterchain.chain.verdict import CONTINUE, Kind, Verdict, combine
from milterchain.errors import MilterTimeoutError

__all__ = ["OBSERVED_OPENING", "greet", "introduce"]

OBSERVED_OPENING = 5.0
"""Seconds that a client may have to wait because a milter that is only observed does not open."""


async def greet(members: Sequence[Member], greetings: Sequence[Briefing], deadline: float) -> Verdict:
    """Open the milters at the begin of a session; the verdict on the client.

    A refusal is not held up by milters that follow: they are not opened any more.
    """
    observed = [member for member in members if member.plan.observed]
    if not observed:
        return await _greet(members, greetings, deadline)
    enforced = [member for member in members if not member.plan.observed]
    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(_watch(member, greetings)) for member in observed]
        verdict = await _greet(enforced, greetings, deadline) if enforced else CONTINUE
        if verdict.decides:
            for task in watching:
                task.cancel()
    return verdict


async def introduce(members: Sequence[Member], greetings: Sequence[Briefing], deadline: float) -> None:
    """Open milters in the middle of a session. A refusal is each milter's own, and stops no other."""
    async with asyncio.TaskGroup() as group:
        for member in members:
            if member.plan.observed:
                group.create_task(_watch(member, greetings))
            else:
                member.resume()
                group.create_task(_one(member, greetings, deadline))


async def _greet(members: Sequence[Member], greetings: Sequence[Briefing], deadline: float) -> Verdict:
    resumed = [member.resume() for member in members]
    if not all(resumed):
        return await _side_by_side(members, greetings, deadline)
    verdict = CONTINUE
    for greeting in greetings:
        verdict = await decide([(member, member.event(greeting)) for member in members], deadline)
        if verdict.decides:
            break
    # Whoever stands behind a refusal could not change the answer.
    before = itertools.takewhile(lambda member: member.name != verdict.milter, members)
    lost = [member for member in before if member.lost]
    if not lost:
        return verdict
    return combine([await _side_by_side(lost, greetings, deadline), verdict])


async def _side_by_side(members: Sequence[Member], greetings: Sequence[Briefing], deadline: float) -> Verdict:
    """Let each member open, if it has no connection, and hear of the client, none waiting for another."""
    if len(members) == 1:
        return combine([await _one(members[0], greetings, deadline)])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_one(member, greetings, deadline)) for member in members]
        for task in tasks:
            verdict = await task
            if verdict.decides:
                for other in tasks:
                    other.cancel()
                return verdict
    return CONTINUE


async def _one(member: Member, greetings: Sequence[Briefing], deadline: float) -> Verdict:
    while True:
        verdict = await member.open()
        for greeting in greetings:
            if verdict.kind is not Kind.CONTINUE or member.lost:
                break
            verdict = await decide([(member, member.event(greeting))], deadline)
        if not member.lost:
            return verdict


async def _watch(member: Member, greetings: Sequence[Briefing]) -> None:
    try:
        async with asyncio.timeout(OBSERVED_OPENING):
            await member.open()
    except TimeoutError:
        member.give_up(MilterTimeoutError(f"did not open within {OBSERVED_OPENING:g} s; it is only observed"))
    for greeting in greetings:
        watch(member, member.event(greeting))
