"""Who may send where: what keeps this from being an open relay.

Clients in a trusted network, and those on a Unix socket, may send to anybody. All others may send to the
domains that are relayed for, and to `postmaster` without a domain, which RFC 5321 4.5.1 wants to be accepted.

A domain in `relay_domains` means exactly itself; with a leading dot it means its subdomains. Domains are
compared as A-labels, without case. Foreign clients may not route themselves: a local part with `@`, `%` or
`!` could mean another domain to the next hop.
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address

from milterchain.mail.addresses import DomainSet, is_routed, split_address
from milterchain.mail.envelope import Path
from milterchain.mail.replies import Reply

__all__ = ["AccessRule"]

_KNOWN = 1024
"""Addresses for which the answer is kept."""


class AccessRule:
    """The rule of one configuration.

    Args:
        trusted_networks: clients that may send to anybody.
        relay_domains: domains to which all may send.
    """

    def __init__(
        self, trusted_networks: Iterable[IPv4Network | IPv6Network], relay_domains: Iterable[str]
    ) -> None:
        self._networks = tuple(trusted_networks)
        self._domains = DomainSet(domain.encode("utf-8") for domain in relay_domains)
        # Reading an address costs more than all else here, and the same clients come again.
        self._holds = lru_cache(_KNOWN)(self._is_in_network)

    def trusts(self, family: str, address: str) -> bool:
        """Whether a client may send to anybody; asked once in a session."""
        return family == "L" or self._holds(address)

    def _is_in_network(self, address: str) -> bool:
        try:
            client = ip_address(address)
        except ValueError:
            return False
        return any(client.version == network.version and client in network for network in self._networks)

    def refuse(self, recipient: Path) -> Reply | None:
        """The reply to a recipient that a client which is not trusted may not send to."""
        if self._relayed(recipient.bare):
            return None
        return Reply(554, (b"5.7.1 %b: Relay access denied" % recipient.bracketed,))

    def _relayed(self, address: bytes) -> bool:
        local, domain = split_address(address)
        if not domain:
            return local.lower() == b"postmaster"
        return not is_routed(address) and self._domains.matches(domain)
