"""The names of clients, asked from a DNS server of our own on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.nameserver
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest

from milterchain.proxy import lookup
from milterchain.proxy.lookup import DNSLookup, Server
from milterchain.smtp.handler import UNKNOWN_NAMES, ClientNames
from milterchain.smtp.identity import LOCAL_NAMES

ADDRESS = "192.0.2.7"
PTR = "7.2.0.192.in-addr.arpa."
ADDRESS6 = "2001:db8::7"
PTR6 = "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."
GOOD = ClientNames(name=b"c.example", ptr=b"c.example", resolve=b"OK")
FORGED = ClientNames(name=b"unknown", ptr=b"c.example", resolve=b"FORGED")
TEMP = ClientNames(name=b"unknown", ptr=b"c.example", resolve=b"TEMP")

Zone = dict[tuple[str, str], list[str] | str]


class Names(asyncio.DatagramProtocol):
    """A DNS server: records by name and type, or an error code, or `silence`."""

    def __init__(self, zone: Zone, ttl: int) -> None:
        self.zone = zone
        self.ttl = ttl
        self.asked: list[tuple[str, str]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The loops do not make it a subclass of DatagramTransport.
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        key = (question.name.to_text(), dns.rdatatype.to_text(question.rdtype))
        self.asked.append(key)
        found = self.zone.get(key, "NXDOMAIN")
        if found == "silence":
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if isinstance(found, str):
            answer.set_rcode(dns.rcode.from_text(found))
        else:
            alias = self.zone.get((key[0], "CNAME"))
            name = key[0]
            if alias:
                answer.answer.append(dns.rrset.from_text(name, self.ttl, "IN", "CNAME", alias[0]))
                name = alias[0]
            if found:
                answer.answer.append(dns.rrset.from_text(name, self.ttl, "IN", key[1], *found))
        self.transport.sendto(answer.to_wire(), addr)


@asynccontextmanager
async def names(zone: Zone, ttl: int = 600) -> AsyncIterator[tuple[Names, Server]]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: Names(zone, ttl), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server, Server(*transport.get_extra_info("sockname"))
    finally:
        transport.close()


@pytest.mark.parametrize(
    ("address", "zone", "expected"),
    [
        (ADDRESS, {(PTR, "PTR"): ["c.example."], ("c.example.", "A"): [ADDRESS]}, GOOD),
        (ADDRESS, {(PTR, "PTR"): ["c.example."], ("c.example.", "A"): ["192.0.2.8", ADDRESS]}, GOOD),
        (ADDRESS6, {(PTR6, "PTR"): ["c.example."], ("c.example.", "AAAA"): [ADDRESS6]}, GOOD),
        (
            ADDRESS,
            {
                (PTR, "CNAME"): ["7.a.example."],
                (PTR, "PTR"): ["c.example."],
                ("c.example.", "A"): [ADDRESS],
            },
            GOOD,
        ),
        (ADDRESS, {}, UNKNOWN_NAMES),
        (ADDRESS, {(PTR, "PTR"): []}, UNKNOWN_NAMES),
        (ADDRESS, {(PTR, "PTR"): ["a\\032b.example."]}, UNKNOWN_NAMES),
        (ADDRESS, {(PTR, "PTR"): ["a\\010\\013.example."]}, UNKNOWN_NAMES),
        (ADDRESS, {(PTR, "PTR"): ["192.0.2.7."]}, UNKNOWN_NAMES),
        (ADDRESS, {(PTR, "PTR"): ["."]}, UNKNOWN_NAMES),
        (ADDRESS, {(PTR, "PTR"): ["c.example."], ("c.example.", "A"): ["192.0.2.8"]}, FORGED),
        (ADDRESS, {(PTR, "PTR"): ["c.example."]}, FORGED),
        (ADDRESS, {(PTR, "PTR"): ["c.example."], ("c.example.", "AAAA"): [ADDRESS6]}, FORGED),
        (ADDRESS, {(PTR, "PTR"): "SERVFAIL"}, ClientNames(name=b"unknown", ptr=b"unknown", resolve=b"TEMP")),
        (ADDRESS, {(PTR, "PTR"): "REFUSED"}, ClientNames(name=b"unknown", ptr=b"unknown", resolve=b"TEMP")),
        (ADDRESS, {(PTR, "PTR"): ["c.example."], ("c.example.", "A"): "SERVFAIL"}, TEMP),
    ],
)
async def test_what_is_found(address: str, zone: Zone, expected: ClientNames) -> None:
    async with names(zone) as (_, server):
        assert await DNSLookup([server], 3)(address) == expected


@pytest.mark.parametrize(
    "zone", [{(PTR, "PTR"): "silence"}, {(PTR, "PTR"): ["c.example."], ("c.example.", "A"): "silence"}]
)
async def test_a_server_that_is_silent(zone: Zone) -> None:
    async with names(zone) as (_, server), asyncio.timeout(5):
        assert (await DNSLookup([server], 0.1)(ADDRESS)).resolve == b"TEMP"


async def test_a_second_server_is_asked_in_time() -> None:
    zone: Zone = {(PTR, "PTR"): ["c.example."], ("c.example.", "A"): [ADDRESS]}
    async with (
        names({(PTR, "PTR"): "silence", ("c.example.", "A"): "silence"}) as (_, silent),
        names(zone) as (_, good),
    ):
        assert (await DNSLookup([silent, good], 0.4)(ADDRESS)).ptr == b"c.example"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1"])
async def test_nobody_is_asked_about_this_host(address: str) -> None:
    async with names({}) as (asked, server):
        assert await DNSLookup([server], 1)(address) == LOCAL_NAMES
        assert not asked.asked


@pytest.mark.parametrize(
    ("zone", "ttl", "age"),
    [
        ({(PTR, "PTR"): ["c.example."], ("c.example.", "A"): [ADDRESS]}, 600, 600),
        ({(PTR, "PTR"): ["c.example."], ("c.example.", "A"): [ADDRESS]}, 0, lookup.MIN_AGE),
        ({(PTR, "PTR"): ["c.example."], ("c.example.", "A"): [ADDRESS]}, 10**6, lookup.MAX_AGE),
        ({}, 600, lookup.NEGATIVE_AGE),
        ({(PTR, "PTR"): ["c.example."]}, 600, lookup.NEGATIVE_AGE),
        ({(PTR, "PTR"): "SERVFAIL"}, 600, lookup.TEMPORARY_AGE),
    ],
)
async def test_what_was_found_is_kept(zone: Zone, ttl: int, age: float) -> None:
    now = 1000.0
    async with names(zone, ttl) as (asked, server):
        look_up = DNSLookup([server], 3, clock=lambda: now)
        first = await look_up(ADDRESS)
        count = len(asked.asked)
        now += age - 1
        assert await look_up(ADDRESS) == first
        assert len(asked.asked) == count
        now += 1
        assert await look_up(ADDRESS) == first
        assert len(asked.asked) > count


async def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "CACHED", 2)
    async with names({}) as (asked, server):
        look_up = DNSLookup([server], 3)
        for last in (1, 2, 1, 3, 1, 2):
            await look_up(f"192.0.2.{last}")
        assert [name.split(".")[0] for name, _ in asked.asked] == ["1", "2", "3", "2"]


async def test_the_servers_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    async with names({(PTR, "PTR"): ["c.example."], ("c.example.", "A"): [ADDRESS]}) as (_, server):
        configured = []

        def read(resolver: object, path: str) -> None:
            configured.append(path)
            resolver.nameservers = [dns.nameserver.Do53Nameserver(server.address, server.port)]  # type: ignore[attr-defined]

        monkeypatch.setattr(dns.asyncresolver.Resolver, "read_resolv_conf", read)
        assert await DNSLookup([], 3)(ADDRESS) == GOOD
        assert configured == ["/etc/resolv.conf"]


def test_a_system_without_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.asyncresolver.Resolver, "read_resolv_conf", read)
    with pytest.raises(OSError, match="no DNS server is configured"):
        DNSLookup([], 3)
