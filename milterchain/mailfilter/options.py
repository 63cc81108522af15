"""How a `MailFilter` runs its function: when, with what at hand, and what happens if it fails.

What is not needed is not asked for: deciding early and without the body saves the MTA the sending.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from milterchain.mail.body import MEMORY_THRESHOLD, SpoolSettings
from milterchain.mail.headers import MAX_HEADER_BYTES, MAX_HEADERS
from milterchain.mailfilter.validation import Validator
from milterchain.milter.flags import ALL_ACTIONS, Action, Stage

__all__ = [
    "BodyOptions",
    "DecideAt",
    "FilterOptions",
    "HeaderOptions",
    "OnError",
    "TooLarge",
]

MAX_BODY = 100 * 2**20
"""Octets of a body: more than MTAs take by default (Postfix: 10 MiB)."""
MAX_RECIPIENTS = 10_000
"""Recipients of one message; Postfix takes 1000 by default."""
TIME_LIMIT = 540.0
"""Seconds for a decision: SMTP clients wait 10 minutes after the final dot (RFC 5321 4.5.3.2.6)."""


class DecideAt(enum.IntEnum):
    """The point of the SMTP dialogue at which the function runs; in the order of the dialogue.

    Whatever the point, changes to the message are made at its end. A decision at CONNECT or HELO is for all
    messages of the SMTP session, and so are its changes; HELO may be said again (after STARTTLS, say), and
    is decided on again.
    """

    CONNECT = 0
    """Who is connected is known."""
    HELO = 1
    """And how it greets, and whether it talks TLS."""
    MAIL = 2
    """And the sender, and who has logged in."""
    DATA = 3
    """And all recipients. With MTAs of milter protocol 2 and 3 it is the end of the headers."""
    END_OF_HEADERS = 4
    """And all headers."""
    END_OF_MESSAGE = 5
    """And the body."""


class OnError(enum.Enum):
    """What the MTA is told when the function raises, takes too long, or asks for what cannot be done."""

    CLOSE = "close"
    """Nothing: the connection is closed, and the MTA does what it is configured to do with a dead filter.

    A function can have that without failing: it raises `CloseConnectionError`.
    """
    ACCEPT = "accept"
    TEMPFAIL = "tempfail"
    REJECT = "reject"


class TooLarge(enum.Enum):
    """What becomes of a message with more headers or a larger body than the filter takes."""

    REJECT = "reject"
    """It is refused with 552 5.3.4."""
    CLEAR = "clear"
    """The function sees none of it: no headers, or an empty body."""
    TRUNCATE = "truncate"
    """The function sees the beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyOptions:
    """Limits of the body.

    Attributes:
        memory: octets that are kept in memory; larger bodies go to a file.
        max_size: octets that are taken at all.
        too_large: what becomes of a larger one. A function that replaces the body should not be given a part
            of it.
        directory: where the files are made; None for the system's default.

    Raises:
        ValueError: a limit is negative.
    """

    memory: int = MEMORY_THRESHOLD
    max_size: int = MAX_BODY
    too_large: TooLarge = TooLarge.REJECT
    directory: str | None = None

    def __post_init__(self) -> None:
        _check_limits(memory=self.memory, max_size=self.max_size)

    @property
    def spool(self) -> SpoolSettings:
        """Where bodies are kept."""
        return SpoolSettings(threshold=self.memory, directory=self.directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderOptions:
    """Limits of the headers.

    Attributes:
        max_count: headers that are taken.
        max_size: octets of all names and values.
        too_large: what becomes of a message with more.

    Raises:
        ValueError: a limit is negative.
    """

    max_count: int = MAX_HEADERS
    max_size: int = MAX_HEADER_BYTES
    too_large: TooLarge = TooLarge.REJECT

    def __post_init__(self) -> None:
        _check_limits(max_count=self.max_count, max_size=self.max_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions:
    """Options of a `MailFilter`.

    Attributes:
        decide_at: when the function runs.
        on_error: what happens if it, or the validator, fails.
        body: limits of the body; None if the function does not need it: the MTA does not send it then.
        headers: limits of the headers.
        validate_recipient: decides on each recipient as it is named (`RecipientCheck` to `Decision`), so that
            one can be refused and the others not. Only ACCEPT, REJECT, TEMPFAIL and `custom` concern
            recipients; anything else is an error.
        actions: what the function may want to do. What the MTA does not offer is left out; using it is an
            error, handled by `on_error`.
        macros: macros to ask for besides those that the transaction needs, for `Transaction.macro`.
        max_recipients: recipients of one message; with more it is told to try again later (452 4.5.3). So it
            is if they are longer than SMTP allows, all together.
        time_limit: seconds that a decision may take, however much progress is told; `math.inf` is no limit.

    Raises:
        ValueError: no recipient or no time is allowed.
    """

    decide_at: DecideAt = DecideAt.END_OF_MESSAGE
    on_error: OnError = OnError.TEMPFAIL
    body: BodyOptions | None = field(default_factory=BodyOptions)
    headers: HeaderOptions = field(default_factory=HeaderOptions)
    validate_recipient: Validator | None = None
    actions: Action = ALL_ACTIONS
    macros: Mapping[Stage, Sequence[bytes]] = field(default_factory=dict)
    max_recipients: int = MAX_RECIPIENTS
    time_limit: float = TIME_LIMIT

    def __post_init__(self) -> None:
        if self.max_recipients < 1:
            raise ValueError(f"max_recipients: {self.max_recipients}, 1 is the least")
        if not self.time_limit > 0:  # not a number is not above 0 either
            raise ValueError(f"time_limit: {self.time_limit} s, a limit of time is longer than 0")

    @property
    def takes_body(self) -> bool:
        """Whether bodies are collected."""
        return self.body is not None and self.decide_at is DecideAt.END_OF_MESSAGE


def _check_limits(**limits: int) -> None:
    for name, limit in limits.items():
        if limit < 0:
            raise ValueError(f"{name}: {limit}, a limit cannot be negative")
