"""How logs, metrics and `trace` watch a chain.

Methods are called synchronously, between two packets: they must be quick and must not raise. A chain without
an observer measures nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from milterchain.chain.verdict import Verdict
from milterchain.errors import MilterError
from milterchain.mail.envelope import Envelope
from milterchain.mail.message import Message
from milterchain.milter.flags import Command
from milterchain.milter.messages import Modification

__all__ = ["Observation", "Observer", "Snapshot"]


class Snapshot(NamedTuple):
    """A message with its envelope at one point of the chain."""

    message: Message
    envelope: Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a milter would have done if it were not only observed.

    Attributes:
        event: what it answered; END_OF_MESSAGE for all of the content.
        verdict: what it said.
        edits: what it wanted changed.
        quarantine: why it wanted the message held, None if it did not.
        leading_space: whether header values in edits came with the blank after the colon.
    """

    event: Command
    verdict: Verdict
    edits: Sequence[Modification] = ()
    quarantine: bytes | None = None
    leading_space: bool = False


class Observer(Protocol):
    """What wants to know."""

    def on_event(self, milter: str, event: Command, verdict: Verdict, seconds: float) -> None:
        """A milter answered.

        Args:
            milter: its name.
            event: what it answered; `OPTNEG` is the opening of its connection. Of the content only the end
                is reported: END_OF_MESSAGE, or where a verdict came before that.
            verdict: what it said.
            seconds: from sending to the answer.
        """

    def on_fault(self, milter: str, event: Command, error: MilterError, verdict: Verdict) -> None:
        """A milter failed; `verdict` stands in for it until the SMTP session ends."""

    def on_edits(
        self,
        milter: str,
        before: Snapshot,
        after: Snapshot,
        edits: Sequence[Modification],
        warnings: Sequence[str],
    ) -> None:
        """A milter's modifications were applied, except those that the warnings name.

        Both messages may be read during this call only.
        """

    def on_observed(self, milter: str, observation: Observation) -> None:
        """A milter that is only observed said something that would have had an effect, or ended a message."""
