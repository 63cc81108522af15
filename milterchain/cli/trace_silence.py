"""Why a milter has no answer at a stage of a trace.

Of the content a milter is asked once, however many answers it might give: all of that is the stage `message`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from milterchain.cli.options_in_words import why_silent
from milterchain.cli.trace_view import CONTENT, Event, Silence, SilenceReason
from milterchain.milter.flags import Command
from milterchain.milter.negotiation import Negotiated

__all__ = ["Talk"]

_Stage: TypeAlias = tuple[str, str | None]

_COMMANDS: Final[Mapping[str, Command]] = {
    "open": Command.OPTNEG,
    "connect": Command.CONNECT,
    "helo": Command.HELO,
    "mail": Command.MAIL,
    "rcpt": Command.RCPT,
    "data": Command.DATA,
    "message": Command.END_OF_MESSAGE,
}
_REFUSALS: Final = frozenset({"reject", "tempfail", "discard", "shutdown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """All that was asked and answered.

    Attributes:
        negotiated: what each milter has agreed on; None if it was never open.
        stages: those that were gone through, in order.
    """

    negotiated: Mapping[str, Negotiated | None]
    stages: Sequence[_Stage]
    events: Sequence[Event]

    def silences(self) -> Iterator[Silence]:
        """Each milter without an answer, by stage as they came, and by milter as configured."""
        for index, stage in enumerate(self.stages):
            if stage[0] in CONTENT:
                continue
            answered = {event.milter for event in self._at(stage)}
            for milter in self.negotiated:
                if milter not in answered:
                    reason = self._reason(index, milter)
                    yield Silence(stage=stage[0], recipient=stage[1], milter=milter, reason=reason)

    def _at(self, stage: _Stage) -> list[Event]:
        return [
            event
            for event in self.events
            if (event.stage, event.recipient) == stage or (stage[0] == "message" and event.stage in CONTENT)
        ]

    def _reason(self, index: int, milter: str) -> SilenceReason:
        before = [
            event for stage in self.stages[:index] for event in self._at(stage) if event.milter == milter
        ]
        if any(event.error is not None for event in before):
            return "failed before"
        if any(event.verdict == "accept" for event in before):
            return "accepted before"
        stage = self.stages[index]
        command, agreed = _COMMANDS[stage[0]], self.negotiated[milter]
        if agreed is not None and not agreed.replies(command):
            return why_silent(agreed, command)
        decided = any(event.verdict in _REFUSALS for event in self._at(stage))
        return "already decided" if decided else "not asked"
