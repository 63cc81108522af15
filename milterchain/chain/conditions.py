"""For which clients and messages a milter is asked at all.

What is known when a client connects (its address, the listener) decides at once: a milter that is not meant
is not even connected to. Whether the client has logged in, who sends and who receives is known later. Such a
milter is opened, and introduced to the client, when a message comes that it is meant for; a refusal of the
client that it gives then is its answer to that message, and to later ones that it is meant for.

A milter with a condition on recipients hears of those recipients only, and of no message without one of them.
So it makes no difference in which order they come, or which others there are.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from milterchain.chain.client import ClientInfo
from milterchain.mail.addresses import DomainSet, domain_of
from milterchain.mail.envelope import Path
from milterchain.milter.flags import Family

__all__ = ["Authenticated", "Conditions", "domains"]

Authenticated: TypeAlias = Literal["any", "only", "never"]
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def domains(names: Iterable[str]) -> DomainSet | None:
    """A set of domains; None if there are none, which is no condition."""
    names = tuple(names)
    return DomainSet(name.encode("utf-8") for name in names) if names else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """All of them must hold; what is empty or None is no condition.

    Attributes:
        clients: networks that the client must be in. A client on a Unix socket is in none.
        not_clients: networks that it must not be in.
        listeners: names of the listeners that it must have come to.
        authenticated: whether the client must, or must not, have logged in.
        senders: domains that the sender must be in. The null sender is in none.
        recipients: domains that a recipient must be in.
    """

    clients: tuple[Network, ...] = ()
    not_clients: tuple[Network, ...] = ()
    listeners: frozenset[bytes] = frozenset()
    authenticated: Authenticated = "any"
    senders: DomainSet | None = None
    recipients: DomainSet | None = None

    @property
    def late(self) -> bool:
        """Whether it takes a message to know."""
        return self.authenticated != "any" or self.senders is not None or self.recipients is not None

    def client(self, client: ClientInfo) -> bool:
        """Whether the milter is meant for messages of this client."""
        if self.listeners and client.listener not in self.listeners:
            return False
        if not self.clients and not self.not_clients:
            return True
        address = _address(client)
        if address is None:
            return not self.clients
        if self.clients and not _within(address, self.clients):
            return False
        return not _within(address, self.not_clients)

    def message(self, sender: Path, *, authenticated: bool) -> bool:
        """Whether it is meant for messages from this sender."""
        if self.authenticated != "any" and authenticated != (self.authenticated == "only"):
            return False
        return self.senders is None or self.senders.matches(domain_of(sender.address))

    def recipient(self, path: Path) -> bool:
        """Whether it is meant for messages to this recipient."""
        return self.recipients is None or self.recipients.matches(domain_of(path.address))


def _address(client: ClientInfo) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if client.family is Family.UNIX:
        return None
    try:
        address = ipaddress.ip_address(client.address)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
