"""Messages in quarantine, with a real Postfix as next hop: held on disk and released, or held by Postfix."""

import subprocess
import sys
from pathlib import Path

import pytest

from integration.corpus import head
from integration.readme import blocks
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run, answers, free_port, wait_for
from integration.services.proxy import LAUNCH, Proxy, milter_table, start_proxy
from integration.services.sink import Sink, start_sink
from integration.services.smtp import Client, Outcome

FILTER = """
import asyncio, sys
from milterchain.mailfilter import ACCEPT, MailFilter, quarantine

async def decide(message):
    return quarantine("looks odd") if message.has_recipient("odd@example.net") else ACCEPT

async def main():
    async with MailFilter(decide, [sys.argv[1]]):
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def sink(run: Run) -> Sink:
    return start_sink(run)


@pytest.fixture(scope="module")
def milter(run: Run) -> str:
    address = f"inet:127.0.0.1:{free_port()}"
    run.spawn("filter", (sys.executable, "-c", FILTER, address)).wait_ready(lambda: answers(address))
    return milter_table("odd", address)


@pytest.fixture(scope="module")
def postfix(run: Run, sink: Sink) -> Postfix:
    return start_postfix(
        run,
        "postfix",
        relay_to=sink.address,
        settings={"header_checks": f"regexp:{run.directory}/postfix/hold_checks"},
        files={"hold_checks": blocks("hold_checks")[0] + "\n"},
    )


def send(proxy: Proxy, recipient: bytes) -> Outcome:
    with Client(proxy.address) as client:
        outcome = client.send(b"<a@example.com>", [recipient], head("quarantine") + b"\r\nbody\r\n")
        client.quit()
    return outcome


def quarantine(proxy: Proxy, *arguments: str) -> list[str]:
    done = subprocess.run(
        (sys.executable, "-c", LAUNCH, "quarantine", *arguments, "-c", str(proxy.config)),
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()


def test_held_and_released(run: Run, sink: Sink, milter: str, postfix: Postfix) -> None:
    proxy = start_proxy(run, next_hop=f"smtp:{postfix.address}", milters=[milter])
    assert send(proxy, b"<odd@example.net>").accepted
    (row,) = quarantine(proxy, "list")
    name = row.split()[0]
    assert "looks odd" in row
    assert quarantine(proxy, "show", name)[0] == f"id: {name}"
    assert send(proxy, b"<plain@example.net>").accepted
    sink.wait_for_mail_to("plain@example.net")
    (released,) = quarantine(proxy, "release", name)
    assert released.startswith(f"{name} released to smtp:")
    received = sink.wait_for_mail_to("odd@example.net")
    assert received.recipients[0].startswith("<odd@example.net>")
    assert quarantine(proxy, "list") == []


def test_held_by_postfix(run: Run, milter: str, postfix: Postfix) -> None:
    """With the rule of the README."""
    proxy = start_proxy(
        run,
        name="with-header",
        next_hop=f"smtp:{postfix.address}",
        milters=[milter],
        extra='[quarantine]\naction = "header"',
    )
    assert send(proxy, b"<odd@example.net>").accepted
    wait_for(lambda: len(held(postfix)) == 1, "Postfix holds the message", 30)
    assert quarantine(proxy, "list") == []


def held(postfix: Postfix) -> list[Path]:
    return [path for path in (postfix.queue / "hold").rglob("*") if path.is_file()]
