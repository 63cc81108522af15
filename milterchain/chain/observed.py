"""Milters that are only observed: they hear all that others hear, and nothing that they say has an effect.

What they would have done is told to the observer and counted: each verdict that is not to go on, and at the
end of each message verdict, edits and whether the message was to be held.

Nobody waits for what they say before the content, unless they are very far behind. There they have
`OBSERVED_CONTENT` seconds in all, the time for what they still owe included, and never more than half of what
the message has left: others have to be asked, too. One that is late has failed, for this session, and costs
nothing more.
"""

import asyncio

from milterchain.chain.briefing import Event
from milterchain.chain.content import Parcel
from milterchain.chain.fanout import drain
from milterchain.chain.line import Step
from milterchain.chain.member import Member
from milterchain.chain.observer import Observation
from milterchain.chain.verdict import Kind
from milterchain.milter.flags import Command

__all__ = ["OBSERVED_CONTENT", "OBSERVED_LAG", "show_content", "watch"]

OBSERVED_CONTENT = 20.0
"""Seconds: what scanners need for large messages, and little of what the client waits."""

OBSERVED_LAG = 1.0
"""Seconds for one that is a hundred events behind to catch up."""


def watch(member: Member, step: Step) -> None:
    """Tell what comes of an event before the content, when it is there."""
    if not step.packet:
        return  # it was not told

    def tell() -> None:
        assert step.verdict is not None
        if step.verdict.kind is not Kind.CONTINUE and isinstance(step.event, Event):
            _tell(member, Observation(event=step.event.code, verdict=step.verdict))

    if step.verdict is None:
        step.tell(tell)
    else:
        tell()


async def show_content(member: Member, parcel: Parcel, deadline: float) -> None:
    """Show a message to an observed milter, and tell what it would have made of it.

    Raises:
        OSError: the message cannot be read.
    """
    loop = asyncio.get_running_loop()
    now = loop.time()
    limit = now + min(OBSERVED_CONTENT, (deadline - now) / 2)
    await drain((member,), limit)
    takes_part = member.in_message
    heard = await member.content(parcel, limit)
    if not takes_part or heard.failed:
        return
    observation = Observation(
        event=Command.END_OF_MESSAGE,
        verdict=heard.verdict,
        edits=heard.edits,
        quarantine=heard.quarantine,
        leading_space=heard.leading_space,
    )
    _tell(member, observation)


def _tell(member: Member, observation: Observation) -> None:
    counts = member.plan.counts
    counts[observation.verdict.kind.name.lower()] += 1
    counts["edits"] += len(observation.edits)
    counts["quarantine"] += observation.quarantine is not None
    if member.observer is not None:
        member.observer.on_observed(member.name, observation)
