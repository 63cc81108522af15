"""One event, many milters: all are told at once, the first refusal in configured order is the answer.

Nobody waits longer than it takes to know: once a milter refuses, those after it in the configuration are not
waited for. Those before it are, however slow, or the answer would depend on who is faster today.
"""

import asyncio
from collections.abc import Iterable, Sequence

from milterchain.chain.line import Answer
from milterchain.chain.member import Member
from milterchain.chain.verdict import CONTINUE, Verdict
from milterchain.errors import MilterTimeoutError

__all__ = ["EVENT_TIMEOUT", "decide", "drain"]

EVENT_TIMEOUT = 280.0
"""Seconds for one event, however often a milter says that it is still working: SMTP clients wait five minutes
for the answer to MAIL and RCPT (RFC 5321 4.5.3.2)."""


async def decide(answers: Sequence[tuple[Member, Answer]], deadline: float | None = None) -> Verdict:
    """The verdict on one event.

    Args:
        answers: each member's, in configured order.
        deadline: the loop time at which those who have not answered are given up.
    """
    for index, (_, answer) in enumerate(answers):
        if not isinstance(answer, Verdict):
            return await _wait(answers[index:], deadline)
        if answer.decides:
            return answer
    return CONTINUE


async def _wait(answers: Sequence[tuple[Member, Answer]], deadline: float | None) -> Verdict:
    if deadline is None:
        deadline = asyncio.get_running_loop().time() + EVENT_TIMEOUT
    try:
        async with asyncio.timeout_at(deadline):
            for _, answer in answers:
                # Not shielded: if this task is cancelled, the member does without its future.
                verdict = answer if isinstance(answer, Verdict) else await answer
                if verdict.decides:
                    return verdict
    except TimeoutError:
        return _out_of_time(answers)
    return CONTINUE


def _out_of_time(answers: Sequence[tuple[Member, Answer]]) -> Verdict:
    for member, answer in answers:
        if isinstance(answer, Verdict):
            verdict = answer
        elif answer.done() and not answer.cancelled():
            verdict = answer.result()
        else:
            member.give_up(MilterTimeoutError("no verdict in time, only signs of progress"))
            verdict = member.standing
        if verdict.decides:
            return verdict
    return CONTINUE


async def drain(members: Iterable[Member], deadline: float) -> None:
    """Wait until no member owes a reply; those that still do at the deadline are given up."""
    for member in members:
        if member.busy:
            try:
                async with asyncio.timeout_at(deadline):
                    await member.drained()
            except TimeoutError:
                member.give_up(MilterTimeoutError("no verdict in time, only signs of progress"))
