"""How a server makes its filters: one object for each SMTP session."""

from collections.abc import Callable
from typing import TypeAlias

from milterchain.milter.filter import Milter
from milterchain.milter.messages import OptNeg
from milterchain.milter.negotiation import Negotiated
from milterchain.milter.server_options import NegotiationOptions

__all__ = ["DynamicFactory", "Factory", "MilterMaker"]

Factory: TypeAlias = Callable[[], Milter]
"""Makes a filter for an SMTP session; a subclass of `Milter` is one."""
DynamicFactory: TypeAlias = Callable[[Negotiated], Milter]
"""Makes a filter for what was negotiated."""


_ANSWERS = 64
"""How many answers are remembered: one, where MTAs and filters are of one kind."""


class MilterMaker:
    """Makes and counts the filters of one server, and answers offers as they want it.

    Args:
        options: what the server negotiates.
        plain: a factory without arguments; or
        dynamic: one that sees what was negotiated.

    Attributes:
        made: how many filters were made.
    """

    def __init__(
        self,
        options: NegotiationOptions,
        *,
        plain: Factory | None = None,
        dynamic: DynamicFactory | None = None,
    ) -> None:
        self.made = 0
        self._options = options
        self._plain = plain
        self._dynamic = dynamic
        self._answers: dict[tuple[OptNeg, type[Milter]], tuple[tuple[object, ...], OptNeg]] = {}

    def first(self) -> Milter | None:
        """The filter, if it has to be made to know what it wants."""
        return None if self._plain is None else self._count(self._plain())

    def answer(self, offer: OptNeg, milter: Milter | None) -> OptNeg:
        """The answer to an MTA.

        Args:
            offer: what the MTA sent.
            milter: what `first` made.

        Raises:
            NegotiationError: the MTA lacks something.
        """
        kind = self._dynamic
        asked: Milter | type[Milter] | None = milter
        if milter is None and isinstance(kind, type) and issubclass(kind, Milter):
            asked = kind
        if asked is None or self._options.callback is not None or offer.macros:
            return self._options.answer(offer, asked)
        # MTAs offer the same in each session, and filters of a class want the same.
        key = (offer, asked if isinstance(asked, type) else type(asked))
        wishes = (asked.actions, asked.optional_actions, asked.protocol, asked.wanted_macros)
        known = self._answers.get(key)
        if known is not None and known[0] == wishes:
            return known[1]
        answer = self._options.answer(offer, asked)
        if len(self._answers) >= _ANSWERS:
            self._answers.clear()
        self._answers[key] = (wishes, answer)
        return answer

    def make(self, negotiated: Negotiated) -> Milter:
        """A filter for a session."""
        if self._plain is not None:
            return self._count(self._plain())
        assert self._dynamic is not None
        return self._count(self._dynamic(negotiated))

    def _count(self, milter: Milter) -> Milter:
        self.made += 1
        return milter
