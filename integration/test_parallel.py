"""Milters are asked side by side: two that take 300 ms for MAIL cost about 300 ms, not 600."""

import time

import pytest

from integration.services.filters import Filter, build_noop, start_noop
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run
from integration.services.proxy import Proxy, milter_table, start_proxy
from integration.services.sink import start_sink
from integration.services.smtp import Client

SLEEP = 0.3


@pytest.fixture(scope="module")
def slow_filters(run: Run, nameserver: str) -> list[Filter]:
    del nameserver
    program = build_noop(run)
    return [start_noop(run, program, f"slow{n}", "-m", str(round(SLEEP * 1000))) for n in range(2)]


@pytest.fixture(scope="module")
def proxy(run: Run, slow_filters: list[Filter]) -> Proxy:
    hop = start_postfix(run, "next-hop", relay_to=start_sink(run).address)
    tables = [milter_table(each.name, each.address) for each in slow_filters]
    return start_proxy(run, next_hop=f"smtp:{hop.address}", milters=tables)


@pytest.fixture(scope="module")
def postfix(run: Run, slow_filters: list[Filter]) -> Postfix:
    return start_postfix(run, "peer", relay_to="127.0.0.1:9", milters=[f.address for f in slow_filters])


def _seconds_of_mail(address: str) -> float:
    with Client(address) as client:
        began = time.perf_counter()
        assert client.command(b"MAIL FROM:<sender@example.test>").code == 250
        took = time.perf_counter() - began
        client.quit()
    return took


def test_two_slow_milters_take_as_long_as_one(proxy: Proxy) -> None:
    took = min(_seconds_of_mail(proxy.address) for _ in range(3))
    assert SLEEP * 0.95 <= took < SLEEP * 1.6


def test_postfix_takes_as_long_as_both(postfix: Postfix) -> None:
    assert _seconds_of_mail(postfix.address) >= SLEEP * 1.9
