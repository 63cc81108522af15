"""Why a milter has no answer at a stage of a trace, or at none.

Of the content a milter is asked once, however many answers it might give: all of that is the stage `message`.
"""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, TypeAlias

from milterchain.chain.client import ClientInfo
from milterchain.chain.conditions import Conditions
from milterchain.cli.options_in_words import why_silent
from milterchain.cli.trace_view import CONTENT, Event, Silence, SilenceReason
from milterchain.mail.envelope import Path
from milterchain.milter.flags import Command
from milterchain.milter.negotiation import Negotiated
from milterchain.proxy.logs import text

__all__ = ["Talk", "left_out", "not_meant"]

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


def left_out(
    conditions: Conditions,
    client: ClientInfo,
    sender: Path,
    recipients: Sequence[Path],
    *,
    authenticated: bool,
) -> str | None:
    """The key of the configuration for which a milter is not asked about a message; None if it is."""
    of_client = {
        "listeners": Conditions(listeners=conditions.listeners),
        "clients": Conditions(clients=conditions.clients),
        "not_clients": Conditions(not_clients=conditions.not_clients),
    }
    of_message = {
        "authenticated": Conditions(authenticated=conditions.authenticated),
        "sender_domains": Conditions(senders=conditions.senders),
    }
    unmet = [key for key, each in of_client.items() if not each.client(client)]
    unmet += [
        key for key, each in of_message.items() if not each.message(sender, authenticated=authenticated)
    ]
    if not any(map(conditions.recipient, recipients)):
        unmet.append("recipient_domains")
    return unmet[0] if unmet else None


def not_meant(conditions: Mapping[str, Conditions], recipients: Sequence[Path]) -> frozenset[tuple[str, str]]:
    """Milters, by name, with each recipient that their conditions exclude."""
    return frozenset(
        (name, text(path.bare))
        for name, each in conditions.items()
        for path in recipients
        if not each.recipient(path)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """All that was asked and answered.

    Attributes:
        negotiated: what each milter has agreed on that is meant for the message; None if it was never open.
        stages: those that were gone through, in order.
        strangers: milters with recipients that they are not meant for.
    """

    negotiated: Mapping[str, Negotiated | None]
    stages: Sequence[_Stage]
    events: Sequence[Event]
    strangers: AbstractSet[tuple[str, str]] = frozenset()

    def silences(self) -> Iterator[Silence]:
        """Each milter without an answer, by stage as they came, and by milter as configured."""
        for index, stage in enumerate(self.stages):
            if stage[0] not in _COMMANDS:
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
        if stage[1] is not None and (milter, stage[1]) in self.strangers:
            return "not meant"
        command, agreed = _COMMANDS[stage[0]], self.negotiated[milter]
        if agreed is not None and not agreed.replies(command):
            return why_silent(agreed, command)
        decided = any(event.verdict in _REFUSALS for event in self._at(stage))
        return "already decided" if decided else "not asked"
