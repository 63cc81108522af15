"""The names of clients, from the DNS, by the rules of Postfix (smtpd_peer.c).

The name of an address counts only if that name has the address. What the macros say of it:

==========  ==============================================================
`OK`        the address has a name, and the name has the address
`FORGED`    the address has a name, but the name has other addresses, or none
`TEMP`      nobody knows: a server failed, or did not answer in time
`FAIL`      the address has no name, or one that is no host name
==========  ==============================================================

A look-up never takes longer than its deadline, and what was found is kept as long as the DNS says, within
bounds. Sessions that want the names of one address at the same time share one look-up; it goes on though one
of them ends. Addresses of the loopback network are `localhost`; nobody is asked about them.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Protocol

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdata
import dns.resolver
import dns.reversename

from milterchain.smtp.handler import UNKNOWN_NAMES, ClientNames
from milterchain.smtp.identity import LOCAL_NAMES, is_hostname

__all__ = ["DNSLookup", "Lookup", "Server"]

CACHED: Final = 10_000
"""Addresses whose names are kept: some megabytes."""
MAX_AGE: Final = 3600.0
MIN_AGE: Final = 5.0
"""Seconds for which names are kept at most and at least, whatever the DNS says."""
NEGATIVE_AGE: Final = 300.0
"""Seconds for which it is kept that there is no name."""
TEMPORARY_AGE: Final = 10.0
"""Seconds for which a failure is kept: each session of a client must not wait for a server that is away."""

_logger = logging.getLogger(__name__)

_TEMPORARY: Final = (dns.resolver.NoNameservers, dns.exception.Timeout, OSError)


class Lookup(Protocol):
    """Finds the names of an IP address; never raises, never takes long."""

    async def __call__(self, address: str) -> ClientNames:
        """Find them."""


@dataclass(frozen=True, slots=True)
class Server:
    """A DNS server."""

    address: str
    port: int = 53


class DNSLookup:
    """Asks DNS servers.

    Args:
        servers: to ask; none means those of the system.
        timeout: seconds for one client.
        clock: seconds, for tests.

    Raises:
        OSError: the system has no servers that could be asked.
    """

    def __init__(
        self, servers: Sequence[Server], timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=not servers)
        except dns.resolver.NoResolverConfiguration as error:
            raise OSError(f"no DNS server is configured: {error}") from error
        if servers:
            self._resolver.nameservers = [
                dns.nameserver.Do53Nameserver(server.address, server.port) for server in servers
            ]
        self._resolver.timeout = timeout / 2  # so that a second server, or try, has its turn
        self._timeout = timeout
        self._clock = clock
        self._known: OrderedDict[str, tuple[ClientNames, float]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[ClientNames]] = {}

    async def __call__(self, address: str) -> ClientNames:
        """Find the names of an IP address."""
        known = self._known.get(address)
        if known is not None and self._clock() < known[1]:
            self._known.move_to_end(address)
            return known[0]
        asking = self._asking.get(address)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._find(address))
            self._asking[address] = asking
        return await asyncio.shield(asking)

    async def _find(self, address: str) -> ClientNames:
        try:
            parsed = ip_address(address)
            names, age = (LOCAL_NAMES, MAX_AGE) if parsed.is_loopback else await self._ask(parsed)
        finally:
            del self._asking[address]
        self._known[address] = names, self._clock() + age
        self._known.move_to_end(address)
        if len(self._known) > CACHED:
            self._known.popitem(last=False)
        return names

    async def _ask(self, address: IPv4Address | IPv6Address) -> tuple[ClientNames, float]:
        """The names, and for how many seconds they hold."""
        names = UNKNOWN_NAMES
        try:
            # The resolver's own deadline does not hold for its pauses between two tries.
            async with asyncio.timeout(self._timeout):
                reverse = await self._query(dns.reversename.from_address(str(address)), "PTR")
                # The first one, as the libraries have it that mail servers ask.
                ptr = b"" if reverse is None else _text(next(iter(reverse)))
                if reverse is None or not is_hostname(ptr):
                    return UNKNOWN_NAMES, NEGATIVE_AGE
                names = ClientNames(name=UNKNOWN_NAMES.name, ptr=ptr, resolve=b"FORGED")
                kind = "A" if address.version == 4 else "AAAA"
                forward = await self._query(dns.name.from_text(f"{ptr.decode()}."), kind)
        except _TEMPORARY as error:
            why = str(error) or f"no answer within {self._timeout:g} s"
            _logger.info("the name of %s could not be looked up: %s", address, why)
            return replace(names, resolve=b"TEMP"), TEMPORARY_AGE
        if forward is None:
            return names, NEGATIVE_AGE
        if any(ip_address(found.to_text()) == address for found in forward):
            names = ClientNames(name=ptr, ptr=ptr, resolve=b"OK")
        return names, min(_age(reverse), _age(forward))

    async def _query(self, name: dns.name.Name, kind: str) -> dns.resolver.Answer | None:
        """The answer; None if there is none. Raises one of `_TEMPORARY` if nobody knows."""
        try:
            return await self._resolver.resolve(name, kind, search=False, lifetime=self._timeout)
        except _TEMPORARY:
            raise
        except dns.exception.DNSException:
            return None


def _text(record: dns.rdata.Rdata) -> bytes:
    return record.to_text().rstrip(".").encode("utf-8", "surrogateescape")


def _age(answer: dns.resolver.Answer) -> float:
    return min(max(answer.rrset.ttl if answer.rrset else 0.0, MIN_AGE), MAX_AGE)
