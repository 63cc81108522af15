"""What the engine needs to know of each milter, as plain values.

Where these values come from (a file, flags, a test) is not the engine's business.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from milterchain.chain.conditions import Conditions
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.flags import Stage
from milterchain.milter.negotiation import MAX_VERSION, MIN_VERSION

__all__ = [
    "MESSAGE_SIZE",
    "DefaultAction",
    "HeaderIndex",
    "MilterSettings",
    "OnRejectedRecipient",
    "Pipeline",
]

MESSAGE_SIZE = 50 * 2**20
"""Octets; the usual limit of the front end."""

HeaderIndex: TypeAlias = Literal["postfix", "sendmail"]
OnRejectedRecipient: TypeAlias = Literal["replay", "keep"]
Pipeline: TypeAlias = Literal["auto", "on", "off"]


class DefaultAction(enum.StrEnum):
    """What stands in for the verdict of a milter that failed, until the SMTP session ends."""

    ACCEPT = "accept"
    REJECT = "reject"
    TEMPFAIL = "tempfail"
    QUARANTINE = "quarantine"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class MilterSettings:
    """One milter of a chain.

    Attributes:
        name: as it appears in verdicts, logs and metrics; no two milters of a chain share it.
        endpoint: where it listens.
        default_action: the verdict when it fails.
        connect_timeout: seconds for connection and option negotiation together.
        command_timeout: seconds for each reply up to DATA.
        content_timeout: seconds for each reply to headers, body and end of message.
        version: the highest protocol version offered.
        header_index: whether the instances of a header are renumbered at once after one was deleted (as
            Postfix does) or only for the next milter (as Sendmail does).
        on_rejected_recipient: whether a milter that accepted a recipient which another one refused is told
            the envelope again without it.
        pipeline: whether content is sent without waiting for each reply; "auto" is on where it is safe.
        reuse: whether a connection serves one SMTP session after the other (SMFIC_QUIT_NC).
        message_size: octets of the largest message that comes in. What a milter may send back, such as a new
            body in one packet, is bounded by it.
        observed: whether it is only watched: it hears all, and nothing that it says or does has an effect.
        conditions: what it is asked about.
        macros: names that are sent on top of the usual ones, by stage. What the milter itself asks for at a
            stage replaces both.
    """

    name: str
    endpoint: Endpoint
    default_action: DefaultAction = DefaultAction.TEMPFAIL
    connect_timeout: float = 30.0
    command_timeout: float = 30.0
    content_timeout: float = 300.0
    version: int = 6
    header_index: HeaderIndex = "postfix"
    on_rejected_recipient: OnRejectedRecipient = "replay"
    pipeline: Pipeline = "auto"
    reuse: bool = False
    message_size: int = MESSAGE_SIZE
    observed: bool = False
    conditions: Conditions = field(default_factory=Conditions)
    macros: Mapping[Stage, tuple[bytes, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not MIN_VERSION <= self.version <= MAX_VERSION:
            raise ValueError(f"no milter protocol version {self.version}: {MIN_VERSION} to {MAX_VERSION}")
        for timeout in (self.connect_timeout, self.command_timeout, self.content_timeout):
            if not timeout > 0:
                raise ValueError(f"a timeout of {timeout} seconds")
