"""One event, many milters: all are told at once, the first refusal in configured order is the answer.

Nobody waits longer than it takes to know: once a milter refuses, those after it in the configuration are not
waited for. Those before it are, however slow, or the answer would depend on who is faster today.
"""

import asyncio
from collections.abc import Iterable, Sequence

from milterchain.chain.line import Answer, Step
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
    verdict = _decision(answers)
    if verdict is not None:
        return verdict
    loop = asyncio.get_running_loop()
    decision: asyncio.Future[Verdict] = loop.create_future()

    def look() -> None:
        verdict = _decision(answers)
        if verdict is not None and not decision.done():
            decision.set_result(verdict)

    def give_up() -> None:
        for member, answer in answers:
            if isinstance(answer, Step) and answer.verdict is None and not decision.done():
                member.give_up(MilterTimeoutError("no verdict in time, only signs of progress"))

    for _, answer in answers:
        if isinstance(answer, Step):
            answer.tell(look)
    timer = loop.call_at(loop.time() + EVENT_TIMEOUT if deadline is None else deadline, give_up)
    try:
        return await decision
    finally:
        timer.cancel()


def _decision(answers: Sequence[tuple[Member, Answer]]) -> Verdict | None:
    """The verdict as far as it can be known, None if it cannot yet."""
    for _, answer in answers:
        verdict = answer.verdict if isinstance(answer, Step) else answer
        if verdict is None or verdict.decides:
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
