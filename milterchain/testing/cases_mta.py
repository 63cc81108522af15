"""The MTA that scenarios are played with, and the place to which it delivers."""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from milterchain.testing.scripted_next_hop import ScriptedNextHop

__all__ = ["Arrival", "HopOutbox", "Mta", "MtaTraits", "Outbox"]


class Arrival(NamedTuple):
    """A message that the MTA delivered.

    Attributes:
        sender: path with brackets, and the parameters of MAIL.
        recipients: likewise for RCPT.
        content: the message after dot-unstuffing.
    """

    sender: bytes
    recipients: tuple[bytes, ...]
    content: bytes


class Outbox(Protocol):
    """Where the MTA delivers to, and what is on the way there."""

    async def arrivals(self) -> Sequence[Arrival]:
        """All that arrived so far, oldest first."""

    async def settle(self) -> None:
        """Wait until no accepted message is on its way any more; deferred ones would be for ever."""

    async def held(self) -> int:
        """How many messages the MTA keeps in quarantine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MtaTraits:
    """What decides which scenarios are meant for an MTA.

    Attributes:
        name: by which scenarios select it, such as `postfix`.
        like: more names that select it: those of MTAs that it behaves like.
        tags: what it can do: `tls`, `auth`, `utf8`, …; scenarios that need more are not for it.
    """

    name: str
    like: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """All names that select it."""
        return self.like | {self.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mta(MtaTraits):
    """A running MTA.

    Attributes:
        address: where it takes SMTP, as `HOST:PORT`.
        outbox: where it delivers to.
        filter_address: where it expects its filter, such as `inet:127.0.0.1:8890`; empty if the filter under
            test runs already, and the scenarios' own `filter` lines are to be ignored.
        tls: what the client needs for STARTTLS, by the name of the certificate that it shows; the empty name
            is for none.
        hostname: what the MTA calls itself in its Received header.
    """

    address: str
    outbox: Outbox
    filter_address: str = ""
    tls: Mapping[str, ssl.SSLContext] = field(default_factory=dict)
    hostname: str = "localhost"


class HopOutbox:
    """A `ScriptedNextHop` to which an MTA without a queue delivers."""

    def __init__(self, hop: ScriptedNextHop) -> None:
        self._hop = hop

    async def arrivals(self) -> list[Arrival]:
        """All that arrived so far, oldest first."""
        return [
            Arrival(_path(message.mail), tuple(map(_path, message.rcpts)), message.data)
            for message in self._hop.accepted
        ]

    async def settle(self) -> None:
        """Nothing is ever on its way."""

    async def held(self) -> int:
        """Nothing is ever held."""
        return 0


def _path(command: bytes) -> bytes:
    return command.partition(b":")[2].strip()
