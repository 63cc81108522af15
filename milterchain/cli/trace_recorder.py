"""What the milters of a trace say and change, kept as it comes.

A milter that is told the envelope again, because another one has refused a recipient that it had accepted,
answers that at the stage `replay`. One that is only observed changes nothing; what it would have changed is
worked out on the message as it stands at its place.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from milterchain.chain.observer import Observation, Snapshot
from milterchain.chain.verdict import Kind, Verdict
from milterchain.cli.trace_view import Change, Event
from milterchain.errors import MilterError
from milterchain.mail.diff import EnvelopeDiff, MessageDiff, diff_envelopes, diff_messages
from milterchain.mail.edits import HeaderIndex, apply_edits, apply_envelope_edits
from milterchain.mail.message import Message
from milterchain.milter.flags import Command
from milterchain.milter.messages import Modification
from milterchain.proxy.logs import text

__all__ = ["Recorder"]

_NAMES = {
    Command.OPTNEG: "open",
    Command.HEADER: "headers",
    Command.END_OF_HEADERS: "end of headers",
    Command.BODY: "body",
    Command.END_OF_MESSAGE: "message",
}
"""Stages whose name is not the command's in lower case."""

_ENVELOPE = frozenset({Command.MAIL, Command.RCPT})
_AFTER_ENVELOPE = frozenset({"data", "message"})
_REPLAY = "replay"


class Recorder:
    """An observer that keeps everything.

    Args:
        milters: how each counts headers, by name, in configured order.
        strangers: milters with recipients that they are not meant for.
        tell: hears of each stage when it begins.
    """

    def __init__(
        self,
        milters: Mapping[str, HeaderIndex],
        strangers: AbstractSet[tuple[str, str]] = frozenset(),
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.changes: list[Change] = []
        self._strangers = strangers
        self._tell = tell
        self._header_index = milters
        self._order = {name: index for index, name in enumerate(milters)}
        self._now: Snapshot | None = None
        self._recipient: str | None = None
        self._stages: list[tuple[str, str | None]] = []
        self._events: list[Event] = []

    @property
    def stages(self) -> tuple[tuple[str, str | None], ...]:
        """The stages that were gone through, in order, each `rcpt` with its recipient."""
        return tuple(self._stages)

    @property
    def events(self) -> tuple[Event, ...]:
        """All answers, by stage as they came, and by milter as configured."""
        return tuple(
            sorted(
                self._events,
                key=lambda event: (
                    self._stages.index((event.stage, event.recipient)),
                    self._order[event.milter],
                ),
            )
        )

    def enter(self, stage: str, recipient: str | None = None) -> None:
        """What is asked next."""
        self._recipient = recipient
        self._stages.append((stage, recipient))
        self._tell(stage if recipient is None else f"{stage} <{recipient}>")

    def begin(self, content: Snapshot) -> None:
        """The message that the first milter sees."""
        self._now = content

    def on_event(self, milter: str, event: Command, verdict: Verdict, seconds: float) -> None:
        """Keep an answer."""
        self._add(milter, event, verdict, seconds=seconds)

    def on_fault(self, milter: str, event: Command, error: MilterError, verdict: Verdict) -> None:
        """Keep a failure."""
        self._add(milter, event, verdict, error=str(error))

    def on_edits(
        self,
        milter: str,
        before: Snapshot,
        after: Snapshot,
        edits: Sequence[Modification],  # noqa: ARG002 - what they did is what counts
        warnings: Sequence[str],
    ) -> None:
        """Keep what changed."""
        self._now = after
        self.changes.append(_change(milter, before, after, warnings))

    def on_observed(self, milter: str, observation: Observation) -> None:
        """Keep what would have changed; what it said before the content is among the answers."""
        if observation.event is not Command.END_OF_MESSAGE:
            return
        would = []
        verdict = observation.verdict
        if verdict.kind not in {Kind.CONTINUE, Kind.ACCEPT}:
            would.append(f"{verdict.kind.name.lower()}: {verdict.reply}" if verdict.reply else "discard")
        if observation.quarantine is not None:
            would.append(f"quarantine: {text(observation.quarantine)}")
        change = self._would_change(milter, observation)
        if would or change.effective:
            self.changes.append(replace(change, observed=True, would=tuple(would)))

    def _would_change(self, milter: str, observation: Observation) -> Change:
        before = self._now
        if before is None or not observation.edits:
            return Change(milter=milter, envelope=EnvelopeDiff(), message=MessageDiff())
        message, warnings = apply_edits(
            before.message,
            observation.edits,
            header_index=self._header_index[milter],
            leading_space=observation.leading_space,
        )
        try:
            envelope, more, _ = apply_envelope_edits(before.envelope, observation.edits)
            return _change(milter, before, Snapshot(message, envelope), warnings + more)
        finally:
            if message.body is not before.message.body:
                message.close()

    def _add(
        self,
        milter: str,
        event: Command,
        verdict: Verdict,
        *,
        seconds: float | None = None,
        error: str | None = None,
    ) -> None:
        answer = Event(
            stage=_NAMES.get(event, event.name.lower()),
            recipient=self._recipient if event is Command.RCPT else None,
            milter=milter,
            verdict=verdict.kind.name.lower(),
            reply=str(verdict.reply) if verdict.reply else None,
            seconds=seconds,
            error=error,
        )
        if event in _ENVELOPE and self._stages[-1][0] in _AFTER_ENVELOPE:
            self._add_replay(replace(answer, stage=_REPLAY, recipient=None))
            return
        if (answer.stage, answer.recipient) not in self._stages:
            self._stages.append((answer.stage, answer.recipient))
        if answer.recipient is not None:
            self._put_back(answer)
        self._events.append(answer)

    def _put_back(self, answer: Event) -> None:
        """What the milter has said at this recipient is about one before: nobody had waited for it."""
        said = {event.recipient: place for place, event in enumerate(self._events) if _same(event, answer)}
        place = said.get(answer.recipient)
        before = [recipient for stage, recipient in self._stages if stage == answer.stage]
        missing = [
            recipient
            for recipient in before
            if recipient not in said and (answer.milter, recipient) not in self._strangers
        ]
        if place is not None and missing:
            self._events[place] = replace(self._events[place], recipient=missing[0])

    def _add_replay(self, answer: Event) -> None:
        """Make one answer of those to a whole envelope: the last one, and the time of all."""
        if (_REPLAY, None) not in self._stages:
            self._stages.insert(len(self._stages) - 1, (_REPLAY, None))
        for place, event in enumerate(self._events):
            if (event.stage, event.milter) == (_REPLAY, answer.milter):
                if answer.seconds is not None and event.seconds is not None:
                    answer = replace(answer, seconds=event.seconds + answer.seconds)
                self._events[place] = answer
                return
        self._events.append(answer)


def _same(event: Event, answer: Event) -> bool:
    return (event.milter, event.stage) == (answer.milter, answer.stage)


def _change(milter: str, before: Snapshot, after: Snapshot, warnings: Sequence[str]) -> Change:
    return Change(
        milter=milter,
        envelope=diff_envelopes(before.envelope, after.envelope),
        message=_without_own(before.message, after.message),
        warnings=tuple(warnings),
    )


def _without_own(before: Message, after: Message) -> MessageDiff:
    """Compare, and count headers as the user's file has them: without our Received header."""
    own = [
        next(place for place, header in enumerate(message.headers) if header.own)
        for message in (before, after)
    ]
    diff = diff_messages(before, after)
    headers = (
        replace(change, position=change.position - (change.position > own[change.kind != "removed"]))
        for change in diff.headers
    )
    return replace(diff, headers=tuple(headers))
