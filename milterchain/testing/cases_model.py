"""Scenarios of `milterchain.testing.cases` as values; the language itself is described there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Generic, NamedTuple, TypeAlias, TypeVar

__all__ = [
    "EVERYWHERE",
    "Action",
    "Arrives",
    "Case",
    "CaseFilter",
    "Closed",
    "Command",
    "Connect",
    "Content",
    "Decision",
    "Drop",
    "ExpectedReply",
    "HasHeader",
    "Option",
    "Pattern",
    "Selected",
    "Selector",
    "StartTls",
    "Step",
    "TextLine",
    "select",
]

T = TypeVar("T")


class Decision(StrEnum):
    """What a filter decided, as the client and the next hop notice it."""

    ACCEPT = "accept"
    REJECT = "reject"
    TEMPFAIL = "tempfail"
    DISCARD = "discard"
    QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class Selector:
    """The MTAs that a line is meant for.

    Attributes:
        wanted: one of these names must be the MTA's; empty means every MTA.
        unwanted: none of these may be.
    """

    wanted: frozenset[str] = frozenset()
    unwanted: frozenset[str] = frozenset()

    def fits(self, names: frozenset[str]) -> bool:
        """Whether an MTA with these names is meant."""
        return not (self.unwanted & names) and (not self.wanted or bool(self.wanted & names))


EVERYWHERE = Selector()


class Selected(NamedTuple, Generic[T]):
    """A value that holds for some MTAs."""

    value: T
    selector: Selector = EVERYWHERE


def select(items: tuple[Selected[T], ...], names: frozenset[str]) -> tuple[T, ...]:
    """The values that hold for an MTA with these names."""
    return tuple(item.value for item in items if item.selector.fits(names))


@dataclass(frozen=True, slots=True)
class Pattern:
    """Bytes with gaps that anything fills, an asterisk each in the language.

    Attributes:
        pieces: what stands around the gaps, in order; one piece is a text without gaps.
    """

    pieces: tuple[bytes, ...]

    def matches(self, text: bytes) -> bool:
        """Whether the whole text fits."""
        return re.fullmatch(b".*".join(map(re.escape, self.pieces)), text, re.DOTALL) is not None

    def __str__(self) -> str:
        return "*".join(piece.decode("utf-8", "backslashreplace") for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class ExpectedReply:
    """One line of an SMTP reply.

    Attributes:
        code: three digits, or a digit and `xx`.
        more: whether another line follows.
        text: what comes after code and separator; None accepts every text.
    """

    code: str
    more: bool = False
    text: Pattern | None = None

    def __str__(self) -> str:
        mark = "-" if self.more else " "
        return self.code if self.text is None else f"{self.code}{mark}{self.text}"


class Option(NamedTuple):
    """One line below `filter`."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class CaseFilter:
    """The filter under test.

    Attributes:
        name: by which the runner finds what starts it.
        options: in the order of the file; a key may be there several times.
    """

    name: str
    options: tuple[Option, ...] = ()

    def get(self, key: str, default: str = "") -> str:
        """The value of the first option with this key."""
        return next(iter(self.all(key)), default)

    def all(self, key: str) -> tuple[str, ...]:
        """The values of all options with this key."""
        return tuple(option.value for option in self.options if option.key == key)


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of a message.

    Attributes:
        text: without its line end; None stands for the Received header that the MTA itself adds.
        times: how often it is repeated.
    """

    text: bytes | None
    times: int = 1


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection, and read the greeting."""


@dataclass(frozen=True, slots=True)
class Command:
    """Send a line and read the reply."""

    text: bytes

    @property
    def verb(self) -> bytes:
        """Its first word in upper case."""
        return self.text.partition(b" ")[0].upper()


@dataclass(frozen=True, slots=True)
class Content:
    """Send a message and the final dot, and read the reply; dots are stuffed."""

    lines: tuple[TextLine, ...]

    def pieces(self) -> Iterator[bytes]:
        """The message, as it is before dot-stuffing."""
        for line in self.lines:
            yield ((line.text or b"") + b"\r\n") * line.times


@dataclass(frozen=True, slots=True)
class StartTls:
    """Begin TLS, after the reply to STARTTLS.

    Attributes:
        certificate: the name of what the client shows; empty for none.
    """

    certificate: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """Break the connection off, without QUIT."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Wait until the server has closed the connection."""


Action: TypeAlias = Connect | Command | Content | StartTls | Drop | Closed


class HasHeader(NamedTuple):
    """A header that must be there; continuation lines of its value are separated by LF."""

    name: bytes
    value: Pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrives:
    """What must arrive at the next hop; what is empty is not looked at.

    Attributes:
        line: of the file.
        selector: the MTAs of the whole block.
        senders: paths, one for an MTA.
        recipients: paths; all of them, in any order.
        has: headers that must be there.
        lacks: names of headers that must not be there.
        text: the whole message.
    """

    line: int = field(compare=False)
    selector: Selector = EVERYWHERE
    senders: tuple[Selected[bytes], ...] = ()
    recipients: tuple[Selected[bytes], ...] = ()
    has: tuple[Selected[HasHeader], ...] = ()
    lacks: tuple[Selected[bytes], ...] = ()
    text: tuple[Selected[TextLine], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that the client does, and what is expected of it.

    Attributes:
        line: of the file.
        replies: the lines of the reply; none means a positive reply, if no decision says otherwise.
        decisions: at most one for an MTA.
        arrives: at most one for an MTA.
    """

    line: int = field(compare=False)
    action: Action
    replies: tuple[Selected[ExpectedReply], ...] = ()
    decisions: tuple[Selected[Decision], ...] = ()
    arrives: tuple[Arrives, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One scenario.

    Attributes:
        name: unique in its file.
        path: of the file.
        line: of the file.
        mtas: those for which it is meant.
        needs: tags of what the MTA must be able to do.
        filter: under test; None if the scenario does not say.
    """

    name: str
    path: Path = field(compare=False)
    line: int = field(compare=False)
    steps: tuple[Step, ...]
    mtas: Selector = EVERYWHERE
    needs: frozenset[str] = frozenset()
    filter: CaseFilter | None = None
