"""Plays a scenario with an MTA, and tells what was not as it should be."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeAlias

from milterchain.mail.replies import Reply
from milterchain.testing.cases_client import CaseClient, HangupError
from milterchain.testing.cases_message import differences
from milterchain.testing.cases_model import (
    Case,
    CaseFilter,
    Closed,
    Command,
    Connect,
    Content,
    Decision,
    Drop,
    ExpectedReply,
    StartTls,
    Step,
    select,
)
from milterchain.testing.cases_mta import Arrival, Mta, MtaTraits

__all__ = ["CASE_TIMEOUT", "CaseFailure", "FilterStarter", "run_case", "why_not"]

CASE_TIMEOUT = 60.0
"""Seconds for one scenario: more than any needs on loopback, less than what makes a test run hang."""

ARRIVAL_TIMEOUT = 30.0
"""Seconds in which an accepted message must have been delivered; on an idle machine it takes hundredths."""

_POLL = 0.01
"""Seconds between two looks at the outbox."""

FilterStarter: TypeAlias = Callable[[CaseFilter, str], AbstractAsyncContextManager[object]]
"""Makes the filter that a scenario asks for, listening at an address for as long as the context is open."""


class CaseFailure(AssertionError):  # noqa: N818 - what a failed assertion is called in tests
    """A scenario went otherwise than its file says."""


def why_not(case: Case, mta: MtaTraits) -> str:
    """Why a scenario is not meant for an MTA; empty if it is."""
    if not case.mtas.fits(mta.names):
        return f"not meant for {mta.name}"
    lacking = sorted(case.needs - mta.tags)
    return f"{mta.name} lacks {', '.join(lacking)}" if lacking else ""


async def run_case(
    case: Case,
    mta: Mta,
    filters: Mapping[str, FilterStarter] | None = None,
    *,
    timeout: float = CASE_TIMEOUT,  # noqa: ASYNC109 - of the whole, and told apart from others
) -> None:
    """Start the filter, play the scenario, and compare.

    Args:
        case: the scenario; see `why_not` for whether it is meant for this MTA.
        mta: to talk to. It must have nothing else to do.
        filters: what starts the filters, by the name in the scenario. Not needed for an MTA without
            `filter_address`.
        timeout: seconds for all of it.

    Raises:
        CaseFailure: something was not as expected; the text begins with FILE:LINE.
        ValueError: no such filter, or no such certificate.
    """
    run = _Run(case, mta)
    try:
        async with asyncio.timeout(timeout), AsyncExitStack() as stack:
            if case.filter is not None and mta.filter_address:
                starter = (filters or {}).get(case.filter.name)
                if starter is None:
                    raise ValueError(f"{case.path}:{case.line}: no filter is called {case.filter.name!r}")
                await stack.enter_async_context(starter(case.filter, mta.filter_address))
            stack.callback(run.drop)
            await run.play()
    except TimeoutError:
        raise run.failure(f"not at its end after {timeout:g} s") from None


class _Run:
    def __init__(self, case: Case, mta: Mta) -> None:
        self._case = case
        self._mta = mta
        self._names = mta.names
        self._step = case.steps[0]
        self._client: CaseClient | None = None
        self._data_refused = False
        self._arrived = 0
        self._held = 0

    async def play(self) -> None:
        self._arrived = len(await self._mta.outbox.arrivals())
        self._held = await self._mta.outbox.held()
        for step in self._case.steps:
            self._step = step
            try:
                await self._do(step)
            except HangupError as error:
                raise self.failure(str(error)) from error
        if self._client is not None:
            await self._client.quit()
        await self._nothing_more()

    def drop(self) -> None:
        if self._client is not None:
            self._client.drop()

    def failure(self, reason: str) -> CaseFailure:
        """What to raise; with the conversation so far."""
        transcript = self._client.transcript if self._client is not None else []
        where = f"{self._case.path}:{self._step.line}: {self._case.name!r} with {self._mta.name}: {reason}"
        return CaseFailure("\n".join([where, *("    " + line for line in transcript)]))

    async def _do(self, step: Step) -> None:
        if isinstance(step.action, Connect):
            if self._client is not None:
                await self._client.quit()
            self._client = await CaseClient.open(self._mta.address)
            self._check(step, await self._client.reply())
        elif self._client is None:
            raise self.failure("there is no connection")
        else:
            await self._talk(step, self._client)

    async def _talk(self, step: Step, client: CaseClient) -> None:
        action = step.action
        if isinstance(action, Command):
            await client.command(action.text)
            reply = await client.reply()
            self._data_refused = action.verb == b"DATA" and reply.code >= 400
            self._check(step, reply)
        elif isinstance(action, Content) and not self._data_refused:
            await client.content(action.pieces())
            self._check(step, await client.reply())
            await self._check_arrival(step)
        elif isinstance(action, StartTls):
            if action.certificate not in self._mta.tls:
                raise ValueError(f"{self._mta.name} has no TLS for certificate {action.certificate!r}")
            await client.start_tls(self._mta.tls[action.certificate])
        elif isinstance(action, Closed):
            if not await client.wait_closed():
                raise self.failure("the server said more instead of closing the connection")
            client.drop()
            self._client = None
        elif isinstance(action, Drop):
            client.drop()
            self._client = None

    def _decision(self, step: Step) -> Decision | None:
        decisions = select(step.decisions, self._names)
        return decisions[-1] if decisions else None

    def _check(self, step: Step, reply: Reply) -> None:
        """Compare a reply with what the step says of it."""
        expected = select(step.replies, self._names)
        decision = self._decision(step)
        if expected and not _same_reply(expected, reply):
            wanted = " | ".join(map(str, expected))
            raise self.failure(f"expected the reply {wanted}, got {_shown(reply)}")
        if decision is not None and reply.code // 100 not in _CLASSES[decision]:
            raise self.failure(f"expected {decision}, got {_shown(reply)}")
        if not expected and decision is None and reply.code >= 400:
            raise self.failure(f"expected a positive reply, got {_shown(reply)}")

    async def _check_arrival(self, step: Step) -> None:
        decision = self._decision(step)
        if decision is None:
            replies = select(step.replies, self._names)
            refused = bool(replies) and replies[-1].code[0] in "45"
            decision = Decision.REJECT if refused else Decision.ACCEPT
        if decision is Decision.QUARANTINE:
            self._held += 1
            await self._until_held()
        if decision is not Decision.ACCEPT:
            await self._nothing_more()
            return
        arrival = await self._next_arrival()
        blocks = [block for block in step.arrives if block.selector.fits(self._names)]
        if blocks and (found := differences(blocks[-1], self._names, arrival, self._mta.hostname)):
            raise self.failure("\n".join(["the message that arrived is not as expected:", *found]))

    async def _next_arrival(self) -> Arrival:
        async def arrived() -> bool:
            return len(await self._mta.outbox.arrivals()) > self._arrived

        await self._until(arrived, "the message was accepted and does not arrive")
        self._arrived += 1
        return (await self._mta.outbox.arrivals())[self._arrived - 1]

    async def _until_held(self) -> None:
        async def held() -> bool:
            return await self._mta.outbox.held() >= self._held

        await self._until(held, "the message is not held")

    async def _until(self, condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
        try:
            async with asyncio.timeout(ARRIVAL_TIMEOUT):
                while not await condition():  # noqa: ASYNC110 - another process does it
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise self.failure(otherwise) from None

    async def _nothing_more(self) -> None:
        await self._mta.outbox.settle()
        if (more := len(await self._mta.outbox.arrivals()) - self._arrived) > 0:
            raise self.failure(f"{more} more arrived than should have")
        if (held := await self._mta.outbox.held()) != self._held:
            raise self.failure(f"{held - self._held} more are held than should be")


_CLASSES = {
    Decision.ACCEPT: (2, 3),
    Decision.REJECT: (5,),
    Decision.TEMPFAIL: (4,),
    Decision.DISCARD: (2, 3),
    Decision.QUARANTINE: (2, 3),
}


def _same_reply(expected: tuple[ExpectedReply, ...], reply: Reply) -> bool:
    if expected[0].code.endswith("xx"):
        same_code = expected[0].code[0] == str(reply.code)[0]
    else:
        same_code = expected[0].code == str(reply.code)
    if len(expected) == 1 and expected[0].text is None:
        return same_code
    return (
        same_code
        and len(expected) == len(reply.lines)
        and all(
            line.text is None or line.text.matches(got)
            for line, got in zip(expected, reply.lines, strict=True)
        )
    )


def _shown(reply: Reply) -> str:
    return " | ".join(f"{reply.code} {line.decode('utf-8', 'backslashreplace')}" for line in reply.lines)
