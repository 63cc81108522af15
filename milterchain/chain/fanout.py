"""One event, many milters: all are told at once, the first refusal in configured order is the answer.

Nobody waits longer than it takes to know: once a milter refuses, those after it in the configuration are not
waited for. Those before it are, however slow, or the answer would depend on who is faster today.
"""

import asyncio
from collections.abc import Iterable, Sequence

from milterchain.chain.line import Step
from milterchain.chain.member import Member
from milterchain.chain.verdict import CONTINUE, Verdict
from milterchain.errors import MilterTimeoutError

__all__ = ["EVENT_TIMEOUT", "decide", "drain"]

EVENT_TIMEOUT = 280.0
"""Seconds for one event, however often a milter says that it is still working: SMTP clients wait five minutes
for the answer to MAIL and RCPT (RFC 5321 4.5.3.2)."""


async def decide(answers: Sequence[tuple[Member, Step]], deadline: float | None = None) -> Verdict:
    """The verdict on one event.

    Args:
        answers: each member's, in configured order.
        deadline: the loop time at which those who have not answered are given up.
    """
    for index, (_, answer) in enumerate(answers):
        if answer.verdict is None:
            return await _wait(answers[index:], deadline)
        if answer.verdict.decides:
            return answer.verdict
    return CONTINUE


async def _wait(answers: Sequence[tuple[Member, Step]], deadline: float | None) -> Verdict:
    loop = asyncio.get_running_loop()
    decision: asyncio.Future[Verdict] = loop.create_future()

    def look() -> None:
        # Whoever stands first without a verdict is the one to wait for, whatever those behind have said.
        verdict = CONTINUE
        for _, answer in answers:
            if answer.verdict is None:
                answer.tell(look)
                return
            if answer.verdict.decides:
                verdict = answer.verdict
                break
        if not decision.done():
            decision.set_result(verdict)

    def give_up() -> None:
        for member, answer in answers:
            if answer.verdict is None and not decision.done():
                member.give_up(MilterTimeoutError("no verdict in time, only signs of progress"))

    look()
    timer = loop.call_at(loop.time() + EVENT_TIMEOUT if deadline is None else deadline, give_up)
    try:
        return await decision
    finally:
        timer.cancel()


async def drain(members: Iterable[Member], deadline: float) -> None:
    """Wait until no member owes a reply; those that still do at the deadline are given up."""
    for member in members:
        if member.busy:
            try:
                async with asyncio.timeout_at(deadline):
                    await member.drained()
            except TimeoutError:
                member.give_up(MilterTimeoutError("no verdict in time, only signs of progress"))
