"""The names of clients, asked from a DNS server of our own on loopback."""

import asyncio
from typing import Any, NoReturn

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
async def test_what_is_found(dns_server: Any, address: str, zone: Zone, expected: ClientNames) -> None:
    async with dns_server(zone) as (_, server):
        assert await DNSLookup([server], 3)(address) == expected


@pytest.mark.parametrize(
    "zone", [{(PTR, "PTR"): "silence"}, {(PTR, "PTR"): ["c.example."], ("c.example.", "A"): "silence"}]
)
async def test_a_server_that_is_silent(dns_server: Any, zone: Zone) -> None:
    async with dns_server(zone) as (_, server), asyncio.timeout(5):
        assert (await DNSLookup([server], 0.1)(ADDRESS)).resolve == b"TEMP"


async def test_a_resolver_that_does_not_keep_its_deadline() -> None:
    look_up = DNSLookup([Server("127.0.0.1")], 0.05)

    async def resolve(*_: object, **__: object) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError

    look_up._resolver.resolve = resolve  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        assert (await look_up(ADDRESS)).resolve == b"TEMP"


async def test_those_who_ask_at_the_same_time_share_the_answer(dns_server: Any) -> None:
    zone: Zone = {(PTR, "PTR"): ["c.example."], ("c.example.", "A"): [ADDRESS]}
    async with dns_server(zone) as (asked, server), asyncio.timeout(5):
        look_up = DNSLookup([server], 3)
        async with asyncio.TaskGroup() as group:
            leaving, *others = [group.create_task(look_up(ADDRESS)) for _ in range(9)]
            await asyncio.sleep(0)
            leaving.cancel()
        assert [task.result() for task in others] == [GOOD] * 8
        assert asked.asked == [(PTR, "PTR"), ("c.example.", "A")]


async def test_a_look_up_goes_on_without_the_one_who_asked(dns_server: Any) -> None:
    zone: Zone = {(PTR, "PTR"): ["c.example."], ("c.example.", "A"): [ADDRESS]}
    async with dns_server(zone) as (asked, server), asyncio.timeout(5):
        look_up = DNSLookup([server], 3)
        async with asyncio.TaskGroup() as group:
            leaving = group.create_task(look_up(ADDRESS))
            await asyncio.sleep(0)
            leaving.cancel()
        assert await look_up(ADDRESS) == GOOD
        assert asked.asked == [(PTR, "PTR"), ("c.example.", "A")]


async def test_a_second_server_is_asked_in_time(dns_server: Any) -> None:
    zone: Zone = {(PTR, "PTR"): ["c.example."], ("c.example.", "A"): [ADDRESS]}
    async with (
        dns_server({(PTR, "PTR"): "silence", ("c.example.", "A"): "silence"}) as (_, silent),
        dns_server(zone) as (_, good),
    ):
        assert (await DNSLookup([silent, good], 0.4)(ADDRESS)).ptr == b"c.example"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1"])
async def test_nobody_is_asked_about_this_host(dns_server: Any, address: str) -> None:
    async with dns_server({}) as (asked, server):
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
async def test_what_was_found_is_kept(dns_server: Any, zone: Zone, ttl: int, age: float) -> None:
    now = 1000.0
    async with dns_server(zone, ttl) as (asked, server):
        look_up = DNSLookup([server], 3, clock=lambda: now)
        first = await look_up(ADDRESS)
        count = len(asked.asked)
        now += age - 1
        assert await look_up(ADDRESS) == first
        assert len(asked.asked) == count
        now += 1
        assert await look_up(ADDRESS) == first
        assert len(asked.asked) > count


async def test_the_oldest_are_forgotten(dns_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "CACHED", 2)
    async with dns_server({}) as (asked, server):
        look_up = DNSLookup([server], 3)
        for last in (1, 2, 1, 3, 1, 2):
            await look_up(f"192.0.2.{last}")
        assert [name.split(".")[0] for name, _ in asked.asked] == ["1", "2", "3", "2"]


async def test_the_servers_of_the_system(dns_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with dns_server({(PTR, "PTR"): ["c.example."], ("c.example.", "A"): [ADDRESS]}) as (_, server):
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
