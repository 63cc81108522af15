"""One milter in one SMTP session: what it has seen, what it said, and what it is still to hear.

A member takes events at any time. While a reply is due, events wait in a line; when the reply has come, its
verdict decides what of the line is still sent: after a final verdict libmilter drops events without a reply,
so an event sent too early would hang the session. Everything runs in the callbacks of the milter's replies;
there are no tasks.

A milter that fails is closed and not tried again in this session: its default action is the answer from then
on. But a connection that *we* closed, as a verdict came amid streamed content, is opened anew at the next
message, and a kept one that is gone before its first reply at once.
"""

import asyncio
import time
from collections.abc import Mapping

from milterchain.chain.briefing import Briefing, Event
from milterchain.chain.content import Heard, Parcel
from milterchain.chain.line import MAX_LENGTH, Line, Outcome, Step, Story
from milterchain.chain.observer import Observer
from milterchain.chain.picture import Phase, Picture
from milterchain.chain.plan import MilterPlan
from milterchain.chain.verdict import (
    CONTINUE,
    Fault,
    Kind,
    Scope,
    Verdict,
    deferred,
    fault_verdict,
    scope_of,
    verdict_of,
)
from milterchain.errors import (
    LocalProtocolError,
    MilterClosedError,
    MilterError,
    MilterTimeoutError,
    RemoteProtocolError,
)
from milterchain.milter.client import MilterSession
from milterchain.milter.flags import Command
from milterchain.milter.macros import MacroNames
from milterchain.milter.messages import (
    Abort,
    Connect,
    Continue,
    Data,
    Helo,
    Mail,
    Quit,
    Rcpt,
    Reply,
    Skip,
    Unknown,
)
from milterchain.milter.negotiation import Negotiated
from milterchain.milter.state import IDLE_AFTER

__all__ = ["Member"]

_EVENTS = (Connect, Helo, Mail, Rcpt, Data, Unknown)
_ABOUT_A_MESSAGE = (Rcpt, Data)


class Member:
    """A milter in a session. Made by the session, opened by `open`.

    Attributes:
        name: the milter's.
        negotiated: what it has agreed on when it was last opened.
        observer: hears of what it says.
        plan: how to tell it.
        standing: the answer to every event when there is no connection: the default action after a failure,
            the refusal after one at CONNECT or HELO, else Continue.
        must_reopen: whether the connection is to be opened anew at the next message.
        lost: whether the kept connection was gone: the milter has heard nothing, and is to be opened.
    """

    __slots__ = (
        "_at_end",
        "_closed",
        "_in_content",
        "_line",
        "_macro_names",
        "_picture",
        "_resumed",
        "_session",
        "_skipping",
        "lost",
        "must_reopen",
        "name",
        "negotiated",
        "observer",
        "plan",
        "standing",
    )

    def __init__(self, plan: MilterPlan, observer: Observer | None) -> None:
        self.name = plan.settings.name
        self.plan = plan
        self.negotiated: Negotiated | None = None
        self.standing = CONTINUE
        self.must_reopen = False
        self.lost = False
        self.observer = observer
        self._session: MilterSession | None = None
        self._resumed = False
        self._at_end = False
        self._closed = False
        self._in_content = False
        self._line = Line(self._run)
        self._macro_names: Mapping[int, MacroNames] = {}
        self._picture = Picture()
        self._skipping: Command | None = None

    @property
    def busy(self) -> bool:
        """Whether a reply is due."""
        return self._line.waiting is not None

    @property
    def behind(self) -> bool:
        """Whether so much waits in the line that no more should be added."""
        return len(self._line.steps) >= MAX_LENGTH

    @property
    def hears_refused(self) -> bool:
        """Whether the milter wants to hear of recipients that others refused (SMFIP_RCPT_REJ)."""
        return self._session is not None and self._session.negotiated.wants_rejected_recipients

    @property
    def in_message(self) -> bool:
        """Whether it is told of the present message, and has not said its last word on it."""
        return self._session is not None and self._picture.phase is Phase.ACTIVE

    async def drained(self) -> None:
        """Wait until no reply is due."""
        await self._line.drained()

    async def open(self) -> Verdict:
        """Connect to the milter and negotiate.

        Returns:
            Continue, or the default action's verdict in case of failure.
        """
        if self._session is not None:
            return CONTINUE
        self.must_reopen = self.lost = False
        started = time.monotonic() if self.observer is not None else 0.0
        try:
            session = await self.plan.open()
        except MilterError as error:
            return self._fail(error, Command.OPTNEG)
        if self._closed:
            session.close()
            return self.standing
        self._begin(session)
        if self.observer is not None:
            self.observer.on_event(self.name, Command.OPTNEG, CONTINUE, time.monotonic() - started)
        return CONTINUE

    def resume(self) -> bool:
        """Go on with a connection of an earlier SMTP session; False if there is none."""
        session = self.plan.kept()
        if session is not None:
            self.must_reopen = False
            self._resumed = True
            self._begin(session)
        return session is not None

    def _begin(self, session: MilterSession) -> None:
        self._session = session
        self._at_end = False
        self.negotiated = session.negotiated
        self._macro_names = self.plan.macro_names(session.negotiated)
        self._picture.end()

    def quit(self) -> None:
        """Say good-bye once the reply that is due has come."""
        self._closing()
        if self._in_content:
            self.drop()  # no good-bye in the middle of a message
            return
        self.abort()
        if self._session is not None and not self.busy:
            self.plan.worked(in_content=False)
        self._line.submit(Step(Quit()))

    def drop(self) -> None:
        """Close the connection, whatever is due."""
        self._closing()
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._line.settle(self.standing)

    def give_up(self, error: MilterError) -> None:
        """Treat the milter as failed: it has taken too long."""
        step = self._line.waiting
        event = step.event.code if step and isinstance(step.event, _EVENTS) else Command.OPTNEG
        self._line.settle(self._fail(error, event))

    def _closing(self) -> None:
        # Whoever still asks gets an answer that loses no mail.
        self._closed = True
        self.must_reopen = False
        self.standing = deferred(self.name)

    def _leave(self, session: MilterSession, standing: Verdict) -> None:
        """Part from the milter for the rest of the SMTP session."""
        self._end(session, Abort())
        self._end(session, Quit())
        if not self._closed:
            self.standing = standing

    def _fail(self, error: MilterError, event: Command, fault: Fault = Fault.SERVICE) -> Verdict:
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._picture.end()
        self._skipping = None
        if self._closed:
            return self.standing
        if self._resumed and isinstance(error, MilterClosedError):
            self._resumed = False
            self.lost = True
            return CONTINUE
        self.standing = fault_verdict(self.plan.failed(error, event), fault, self.name)
        if self.observer is not None:
            self.observer.on_fault(self.name, event, error, self.standing)
        return self.standing

    def _refuse(self, reply: Reply, event: Command, fault: Fault) -> Verdict:
        return self._fail(RemoteProtocolError(f"bad reply to {event.name}: {reply!r:.200}"), event, fault)

    # Events

    def event(self, briefing: Briefing, *, recipient: int | None = None, muted: bool = False) -> Step:
        """Tell the milter, at once or when it has answered what it was told before.

        Args:
            briefing: what happened.
            recipient: for RCPT, the recipient's number in this message.
            muted: whether the verdict is of no consequence: somebody else has refused already.
        """
        if self._session is None:
            return Step(briefing.event, verdict=self.standing)
        try:
            macros = briefing.macros.packet(self._macro_names.get(briefing.event.code, ()))
        except LocalProtocolError as error:
            self.give_up(error)
            return Step(briefing.event, verdict=self.standing)
        return self._line.submit(
            Step(briefing.event, briefing.packet, macros, recipient=recipient, muted=muted)
        )

    def abort(self) -> None:
        """End the message, if there is one; what is in the line for it is not sent any more."""
        self._line.forget_message()
        self._line.submit(Step(Abort()))

    def retell(self, story: Story) -> Step:
        """Tell the envelope again, if the milter knows one that is not true any more.

        Returns:
            With the verdict Continue if all is well; DISCARD if the milter discards the message; a temporary
            refusal if it refuses now what it accepted before.
        """
        return self._line.submit(Step(story))

    def _run(self, step: Step) -> Verdict | None:
        """Run one step; None if its verdict comes later."""
        event, session = step.event, self._session
        if session is None:
            return self.standing
        if isinstance(event, _EVENTS):
            return self._send(session, step, event) if self._due(step, event) else CONTINUE
        if event is None:
            assert step.outcome is not None
            return step.outcome.verdict
        return self._retell(step, event) if isinstance(event, Story) else self._end(session, event)

    def _due(self, step: Step, event: Event) -> bool:
        """Whether the milter is to hear this, as things stand now."""
        if step.outcome is not None and step.outcome.verdict.decides:
            return False
        if isinstance(event, Mail):
            self._picture = Picture(begun=True)
        elif isinstance(event, _ABOUT_A_MESSAGE):
            if self._picture.phase is not Phase.ACTIVE:
                return False
        elif isinstance(event, Unknown) and self._picture.phase is Phase.DONE:
            return False
        if self._skipping == event.code:
            return False
        self._skipping = None
        return True

    def _send(self, session: MilterSession, step: Step, event: Event) -> Verdict | None:
        self._at_end = False
        try:
            due = session.request(event.code, step.packet, step.macros, self._replied)
        except MilterError as error:
            return self._fail(error, event.code)
        if not due:
            if session.negotiated.wants(event.code):
                self._knows(step)
            return CONTINUE
        if self.observer is not None:
            step.started = time.monotonic()
        self._line.waiting = step
        return None

    def _knows(self, step: Step) -> None:
        if step.recipient is not None and not step.muted:
            self._picture.accepted(step.recipient)

    def _end(self, session: MilterSession, event: Abort | Quit) -> Verdict:
        if isinstance(event, Quit):
            self._session = None
            if not (self._at_end and self.plan.keep(session)):
                session.send(event)
        elif self._picture.open:
            self._skipping = None
            session.send(event)
        self._picture.end()
        return CONTINUE

    # Replies

    def _replied(self, reply: "Reply | MilterError") -> None:
        step, session = self._line.waiting, self._session
        if step is None or session is None:
            return  # given up already
        assert isinstance(step.event, _EVENTS)
        event = step.event.code
        if isinstance(reply, Continue):  # as a rule
            self._resumed = False
            self._observe(step, event, CONTINUE)
            self._knows(step)
            verdict = CONTINUE
        elif isinstance(reply, MilterError):
            verdict = self._fail(reply, event)
        else:
            self._resumed = False
            verdict = self._judge(session, step, event, reply)
        if step.outcome is not None:
            step.outcome.note(step.event, verdict, self.name, failed=self._session is None)
        self._line.settle(verdict)

    def _judge(self, session: MilterSession, step: Step, event: Command, reply: Reply) -> Verdict:
        """What a reply means, and what it changes."""
        verdict = verdict_of(reply, event, self.name)
        if isinstance(verdict, Fault):
            return self._refuse(reply, event, verdict)
        self._observe(step, event, verdict)
        if isinstance(reply, Skip):
            self._skipping = event
        if reply.code in IDLE_AFTER.get(event, ()):
            self._picture.open = False
        scope = scope_of(verdict, event)
        if scope is Scope.CONNECTION:
            self._leave(session, CONTINUE if verdict.kind is Kind.ACCEPT else verdict)
        elif scope is Scope.MESSAGE:
            self._picture.done(CONTINUE if step.muted else verdict, step.recipient)
        elif not verdict.decides:
            self._knows(step)
        return verdict

    def _observe(self, step: Step, event: Command, verdict: Verdict) -> None:
        if self.observer is not None and not step.muted:
            self.observer.on_event(self.name, event, verdict, time.monotonic() - step.started)

    # Telling again

    def _retell(self, step: Step, story: Story) -> Verdict | None:
        """Put the story at the head of the line, if there is need."""
        keep = self.plan.settings.on_rejected_recipient == "keep"
        if keep or not self._picture.stale(story.numbers):
            return self._picture.final if self._picture.final.kind is Kind.DISCARD else CONTINUE
        step.outcome = outcome = Outcome()
        steps = [Step(Abort(), outcome=outcome)]
        for briefing, recipient in story.briefings():
            try:
                macros = briefing.macros.packet(self._macro_names.get(briefing.event.code, ()))
            except LocalProtocolError as error:
                return self._fail(error, briefing.event.code)
            steps.append(Step(briefing.event, briefing.packet, macros, recipient=recipient, outcome=outcome))
        step.event = None
        self._line.cut_in([*steps, step])
        return None

    # Content

    async def content(self, parcel: Parcel, deadline: float) -> Heard:
        """Send the content and hear the milter's last word on the message. No reply may be due.

        Args:
            parcel: the message as the milters before this one have made it.
            deadline: the loop time at which the verdict must be there.

        Raises:
            OSError: the message cannot be read.
        """
        session = self._session
        if session is None:
            return Heard(verdict=self.standing)
        if not self.in_message:
            return Heard(verdict=CONTINUE)
        started = time.monotonic() if self.observer is not None else 0.0
        self._skipping = None
        self._in_content = True
        try:
            result = await parcel.send(session, self.plan, deadline)
        except MilterError as error:
            late = isinstance(error, MilterTimeoutError) and asyncio.get_running_loop().time() >= deadline
            verdict = self._fail(error, Command.END_OF_MESSAGE)
            # What it had to say about holding the message is no edit: it stands even if we go on without it.
            verdict = deferred(self.name) if late else verdict
            return Heard(verdict=verdict, quarantine=session.quarantine, failed=True)
        except BaseException:
            self.drop()
            raise
        finally:
            self._in_content = False
        judged = verdict_of(result.reply, result.stage, self.name)
        if isinstance(judged, Fault):
            verdict = self._refuse(result.reply, result.stage, judged)
            return Heard(verdict=verdict, quarantine=result.quarantine, failed=True)
        if self.observer is not None:
            self.observer.on_event(self.name, result.stage, judged, time.monotonic() - started)
        self._at_end = result.stage is Command.END_OF_MESSAGE and isinstance(result.reply, Continue)
        self.plan.worked(in_content=True)
        self._picture.open = False
        self._picture.done(judged)
        if scope_of(judged, result.stage) is Scope.CONNECTION:
            self._leave(session, judged)
        elif session.closed and session.failure is None:
            self._session = None
            self.must_reopen = not self._closed
        if judged.decides:
            return Heard(verdict=judged)
        return Heard(
            verdict=judged,
            edits=result.edits,
            quarantine=result.quarantine,
            leading_space=session.negotiated.leading_space,
        )
