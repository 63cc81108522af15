"""What a milter believes of the present message."""

import enum
from collections.abc import Container

from milterchain.chain.verdict import CONTINUE, Verdict

__all__ = ["Phase", "Picture"]


class Phase(enum.Enum):
    """How a milter stands to a message."""

    NONE = enum.auto()
    """There is no message."""
    ACTIVE = enum.auto()
    DONE = enum.auto()
    """It has said its last word, and hears no more of this message."""


class Picture:
    """What a milter was told, and what it said.

    Attributes:
        phase: how it stands to the message.
        open: whether the milter itself has a message in hand, so that it must hear of an abort. A milter that
            discards at RCPT is done with the message, but holds on to it.
        final: its last word.
    """

    __slots__ = ("_accepted", "_final_at", "final", "open", "phase")

    def __init__(self, *, begun: bool = False) -> None:
        self.phase = Phase.ACTIVE if begun else Phase.NONE
        self.open = begun
        self.final = CONTINUE
        self._accepted: set[int] = set()
        self._final_at: int | None = None

    def accepted(self, recipient: int) -> None:
        """The milter knows this recipient and has nothing against it."""
        self._accepted.add(recipient)

    def done(self, verdict: Verdict, recipient: int | None = None) -> None:
        """The milter has said its last word, perhaps at a recipient."""
        if self.phase is Phase.ACTIVE:
            self.phase = Phase.DONE
            self.final = verdict
            self._final_at = recipient

    def end(self) -> None:
        """The message is over."""
        self.phase = Phase.NONE
        self.open = False

    def stale(self, recipients: Container[int]) -> bool:
        """Whether it is not true any more, with these recipients left.

        So it is if the milter counts on a recipient that is gone, or said its last word because of one.
        """
        if self.phase is Phase.DONE:
            return self._final_at is not None and self._final_at not in recipients
        return self.phase is Phase.ACTIVE and any(number not in recipients for number in self._accepted)
