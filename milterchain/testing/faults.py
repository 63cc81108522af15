"""What a scripted peer can do wrong, and how an answer is chosen by occurrence.

Faults stand in a script where an answer stands, or among the items of an answer:
`[AddHeader(b"X", b"1"), Close()]` sends a packet and then closes. They are values;
`milterchain.testing.peer` acts on them.
"""

import asyncio
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Close", "Fault", "Garbage", "InTurn", "Late", "Reset", "Silence", "StopReading"]

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection in an orderly way (FIN)."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Break the connection (RST). On a unix socket, which knows no RST, this is a plain close."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Answer nothing; later commands are recorded and answered as usual."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """Send bytes that are no answer in any protocol.

    Attributes:
        data: what is sent. As a milter's packet length the default is beyond every limit.
    """

    data: bytes = b"\xff\xfe\xfd\xfc garbage \x00\xff"


@dataclass(frozen=True, slots=True)
class Late:
    """Wait until the test sets `event`, then go on with the items that follow.

    Commands that come in the meantime are recorded; when the peer closes the wait ends too.
    """

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class StopReading:
    """Read no more until the test sets `event`, so that the peer feels back-pressure."""

    event: asyncio.Event


Fault: TypeAlias = Close | Reset | Silence | Garbage | Late | StopReading
"""What a script may put in place of an answer."""


class InTurn(Generic[A]):
    """One answer for each occurrence of a command: the first, the second, …; the last one is repeated."""

    def __init__(self, *answers: A) -> None:
        if not answers:
            raise ValueError("InTurn needs at least one answer")
        self.answers = answers

    def at(self, occurrence: int) -> A:
        """The answer for an occurrence, counted from 0."""
        return self.answers[min(occurrence, len(self.answers) - 1)]
