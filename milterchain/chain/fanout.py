"""One event, many milters: all are told at once, the first refusal in configured order is the answer.

Nobody waits longer than it takes to know: once a milter refuses, those after it in the configuration are not
waited for. Those before it are, however slow, or the answer would depend on who is faster today.
"""

import asyncio
from collections.abc import Iterable, Sequence

from milterchain.chain.line import Step
from milterchain.chain.member import Member
from milterchain.chain.plan import EVENT_TIMEOUT
from milterchain.chain.verdict import CONTINUE, Verdict
from milterchain.errors import MilterTimeoutError

__all__ = ["decide", "drain"]


async def decide(answers: Sequence[tuple[Member, Step]], deadline: float | None = None) -> Verdict:
    """The verdict on one event.

    Args:
        answers: each member's, in configured order.
        deadline: the loop time at which those who have not answered are given up.
    """
    for index, (_, answer) in enumerate(answers):
        if answer.verdict is None:
            return await _Decision(answers[index:]).by(deadline)
        if answer.verdict.decides:
            return answer.verdict
    return CONTINUE


class _Decision:
    """A verdict that depends on answers to come."""

    __slots__ = ("_answers", "_future", "_loop")

    def __init__(self, answers: Sequence[tuple[Member, Step]]) -> None:
        self._answers = answers
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Verdict] = self._loop.create_future()

    async def by(self, deadline: float | None) -> Verdict:
        """Wait for it; at the deadline those who have not answered are given up."""
        self._look()
        if deadline is None:
            deadline = self._loop.time() + EVENT_TIMEOUT
        timer = self._loop.call_at(deadline, self._give_up)
        try:
            return await self._future
        finally:
            timer.cancel()

    def _look(self) -> None:
        # Whoever stands first without a verdict is the one to wait for, whatever those behind have said.
        verdict = CONTINUE
        for _, answer in self._answers:
            if answer.verdict is None:
                answer.tell(self._look)
                return
            if answer.verdict.decides:
                verdict = answer.verdict
                break
        if not self._future.done():
            self._future.set_result(verdict)

    def _give_up(self) -> None:
        for member, answer in self._answers:
            if answer.verdict is None and not self._future.done():
                member.give_up(MilterTimeoutError("no verdict in time"))


async def drain(members: Iterable[Member], deadline: float) -> None:
    """Wait until no member owes a reply; those that still do at the deadline are given up."""
    for member in members:
        if member.busy:
            try:
                async with asyncio.timeout_at(deadline):
                    await member.drained()
            except TimeoutError:
                member.give_up(MilterTimeoutError("no verdict in time"))
