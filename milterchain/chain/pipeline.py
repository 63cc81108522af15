"""The content of a message through all milters, one after the other.

Each milter gets what those before it have made of the message. Its edits are collected and applied together,
only if its last word lets the message pass: nothing of a milter that failed or refused is ever seen by
anybody. A verdict that decides ends the matter, and the milters that follow never see the message.

Envelope edits make the envelope that is relayed; milters that follow are not told of them, as in Postfix and
Sendmail.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from milterchain.chain.content import Heard, Parcel
from milterchain.chain.fanout import drain
from milterchain.chain.member import Member
from milterchain.chain.observed import show_content
from milterchain.chain.observer import Observer, Snapshot
from milterchain.chain.plan import MilterPlan
from milterchain.chain.values import content_values
from milterchain.chain.verdict import CONTINUE, Verdict, deferred
from milterchain.mail.body import SpoolSettings
from milterchain.mail.edits import apply_edits, apply_envelope_edits
from milterchain.mail.envelope import Envelope
from milterchain.mail.message import Message
from milterchain.milter.messages import Modification

__all__ = ["ContentOutcome", "Hold", "MemberReport", "run_content"]


class Hold(NamedTuple):
    """Who wants a message to be held, and why."""

    milter: str
    reason: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReport:
    """What one milter did with a message.

    Attributes:
        milter: its name.
        verdict: its last word on the content.
        edits: those that were asked for, in order; none unless they were applied.
        warnings: one line for each edit that could not be applied.
    """

    milter: str
    verdict: Verdict
    edits: Sequence[Modification] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentOutcome:
    """What became of a message.

    Attributes:
        verdict: CONTINUE to relay it, DISCARD to say so and not to, else the refusal.
        message: what is to be relayed, and what came in unless the verdict is CONTINUE. If its body is not
            that of the message that came in, closing it is the caller's business, too.
        envelope: where it is to be relayed; likewise.
        quarantine: set if it is to be held instead; the first milter that wants so counts.
        unusable: recipients that milters wanted to add and that are no addresses. The message may have lost
            its true recipient: whether it passes is for the front end to say.
        reports: one for each milter that was asked, in order.
    """

    verdict: Verdict
    message: Message
    envelope: Envelope
    quarantine: Hold | None = None
    unusable: tuple[bytes, ...] = ()
    reports: tuple[MemberReport, ...] = ()


class _Run:
    """One message on its way."""

    def __init__(
        self,
        message: Message,
        envelope: Envelope,
        *,
        observer: Observer | None,
        spool: SpoolSettings | None,
    ) -> None:
        self.original = Snapshot(message, envelope)
        self.now = self.original
        self.hold: Hold | None = None
        self.reports: list[MemberReport] = []
        self._unusable: tuple[bytes, ...] = ()
        self._observer = observer
        self._spool = spool
        self._parcel: Parcel | None = None

    def parcel(self, values: Mapping[bytes, bytes]) -> Parcel:
        """The message as it is now, for the next milter."""
        if self._parcel is None:
            known = {**values, **content_values(self.now.message, self.original.envelope)}
            self._parcel = Parcel(self.now.message, known)
        return self._parcel

    def edit(self, plan: MilterPlan, heard: Heard) -> tuple[str, ...]:
        """Apply one milter's edits, all of them or none.

        Raises:
            OSError: no room for a new body.
        """
        before = self.now
        message, warnings = apply_edits(
            before.message,
            heard.edits,
            header_index=plan.settings.header_index,
            leading_space=heard.leading_space,
            spool=self._spool,
        )
        envelope, more, unusable = apply_envelope_edits(before.envelope, heard.edits)
        self._unusable += unusable
        self.now = Snapshot(message, envelope)
        self._parcel = None
        if self._observer is not None:
            self._observer.on_edits(plan.settings.name, before, self.now, heard.edits, warnings + more)
        if before.message.body not in {message.body, self.original.message.body}:
            before.message.close()
        return warnings + more

    def outcome(self, verdict: Verdict) -> ContentOutcome:
        passes = not verdict.decides
        if not passes:
            self.forget()
        return ContentOutcome(
            verdict=verdict,
            message=self.now.message,
            envelope=self.now.envelope,
            quarantine=self.hold if passes else None,
            unusable=self._unusable if passes else (),
            reports=tuple(self.reports),
        )

    def forget(self) -> None:
        """Go back to what came in."""
        if self.now.message.body is not self.original.message.body:
            self.now.message.close()
        self.now = self.original


async def run_content(
    members: Sequence[Member],
    message: Message,
    envelope: Envelope,
    values: Mapping[bytes, bytes],
    *,
    deadline: float,
    observer: Observer | None = None,
    spool: SpoolSettings | None = None,
) -> ContentOutcome:
    """Pass a message through the chain.

    Args:
        members: in configured order.
        message: as it came in.
        envelope: as it stands after all refusals.
        values: the macros known so far.
        deadline: the loop time for all members together.
        observer: is told of edits.
        spool: where large new bodies go.

    Raises:
        OSError: the message cannot be read, or a new body not be written.
    """
    run = _Run(message, envelope, observer=observer, spool=spool)
    loop = asyncio.get_running_loop()
    try:
        for member in members:
            if member.plan.observed:
                await show_content(member, run.parcel(values), deadline)
                continue
            if loop.time() >= deadline:
                return run.outcome(deferred(member.name))
            await drain((member,), deadline)
            heard = await member.content(run.parcel(values), deadline)
            reason = heard.quarantine if heard.quarantine is not None else heard.verdict.quarantine
            if reason is not None and run.hold is None:
                run.hold = Hold(milter=member.name, reason=reason)
            warnings: tuple[str, ...] = ()
            if heard.edits and not heard.verdict.decides:
                warnings = run.edit(member.plan, heard)
            run.reports.append(
                MemberReport(milter=member.name, verdict=heard.verdict, edits=heard.edits, warnings=warnings)
            )
            if heard.verdict.decides:
                return run.outcome(heard.verdict)
        return run.outcome(CONTINUE)
    except BaseException:
        run.forget()
        raise
