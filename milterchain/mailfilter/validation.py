"""The decision on one recipient, made when it is named."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from milterchain.mailfilter.decision import Decision
from milterchain.mailfilter.parties import Recipient, Sender
from milterchain.mailfilter.session_facts import MTA, Connection, Helo

__all__ = ["RecipientCheck", "Validator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientCheck:
    """What a validator decides on.

    Attributes:
        mta: the mail server that asks.
        connection: the client's connection to it.
        helo: the client's greeting and TLS session.
        sender: of the message.
        recipient: the one in question.
    """

    mta: MTA
    connection: Connection
    helo: Helo
    sender: Sender
    recipient: Recipient


Validator: TypeAlias = Callable[[RecipientCheck], Awaitable[Decision]]
"""Decides on one recipient: ACCEPT takes it, everything else refuses this one only."""
