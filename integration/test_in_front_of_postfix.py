"""What the README says about standing in front of Postfix, with its own files but for ports and paths."""

import subprocess
import sys

import pytest

from integration.corpus import head
from integration.readme import blocks, filled
from integration.services.filters import (
    GTUBE,
    Filter,
    make_key,
    start_opendkim,
    start_opendmarc,
    start_rspamd,
)
from integration.services.postfix import start_postfix
from integration.services.process import Run, free_port
from integration.services.proxy import LAUNCH, Proxy, run_proxy
from integration.services.sink import Sink, start_sink
from integration.services.smtp import Client, Outcome

SECTION = "In front of Postfix"
NAMES = ("opendkim", "opendmarc", "rspamd")
OUTSIDE = "127.0.0.6"
"""An address on this machine that is nobody's: neither milterchain nor Postfix trusts it."""


@pytest.fixture(scope="module")
def sink(run: Run, nameserver: str) -> Sink:
    del nameserver
    return start_sink(run)


@pytest.fixture(scope="module")
def filters(run: Run, nameserver: str) -> dict[str, Filter]:
    """Those of the example, by the addresses that they have there."""
    return {
        "unix:/run/opendkim/opendkim.sock": start_opendkim(run, make_key(run), mode="v", unix=True),
        "inet:127.0.0.1:8893": start_opendmarc(run),
        "inet:127.0.0.1:11332": start_rspamd(run, nameserver),
    }


@pytest.fixture(scope="module")
def proxy(run: Run, sink: Sink, filters: dict[str, Filter]) -> Proxy:
    (services,) = blocks("master.cf", SECTION)
    (setting,) = blocks("main.cf", SECTION)
    key, _, value = setting.partition(" = ")
    return _in_front(run, sink, filters, "postfix", services, {key: value}, trusted="127.0.0.1/32")


@pytest.fixture(scope="module")
def identified(run: Run, sink: Sink, filters: dict[str, Filter]) -> Proxy:
    """The same with XCLIENT, and Postfix's own rules for recipients, of which there are none by default."""
    (services,) = blocks("master.cf", SECTION)
    (option,) = blocks("xclient.cf", SECTION)
    lines = services.splitlines()
    kept = [line for line in lines if "-o smtpd_recipient_restrictions=" not in line]
    assert len(kept) == len(lines) - 1
    services = "\n".join([*kept, f"    {option}"])
    settings = {"mynetworks": "127.0.0.1/32", "smtpd_recipient_restrictions": ""}
    return _in_front(run, sink, filters, "postfix-told", services, settings, trusted="203.0.113.0/24")


def _in_front(
    run: Run,
    sink: Sink,
    filters: dict[str, Filter],
    name: str,
    services: str,
    settings: dict[str, str],
    *,
    trusted: str,
) -> Proxy:
    known = run.place(f"{name}-known") / "recipients"
    known.write_text("/^known@/ yes\n")
    behind = f"127.0.0.1:{free_port()}"
    start_postfix(
        run,
        name,
        relay_to=sink.address,
        # Nobody answers there: what comes from milterchain asks no milter again.
        milters=["inet:127.0.0.1:1"],
        settings={
            "relay_domains": "example.org",
            "relay_recipient_maps": f"regexp:{known}",
            **settings,
        },
        services=filled(services, {"127.0.0.1:10025": behind}),
    )
    (example,) = blocks("toml", SECTION)
    address = f"127.0.0.1:{free_port()}"
    places = {
        "0.0.0.0:25": address,
        "127.0.0.1:10025": behind,
        "127.0.0.0/8": trusted,
        **{place: each.address for place, each in filters.items()},
    }
    return run_proxy(run, filled(example, places), address, name=f"proxy-{name}")


def _send(proxy: Proxy, recipient: bytes, source: str = OUTSIDE, body: bytes = b"body\r\n") -> Outcome:
    # A domain without a policy that somebody else's mail would break.
    content = head("front").replace(b"sender@example.test", b"a@lenient.test") + b"\r\n" + body
    with Client(proxy.address, source=source) as client:
        outcome = client.send(b"<a@lenient.test>", [recipient], content)
        client.quit()
    return outcome


def test_check_finds_all_of_them(run: Run, proxy: Proxy) -> None:
    command = (*run.prefix, sys.executable, "-c", LAUNCH, "check", "-c", str(proxy.config))
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    rows = [line.split()[:3] for line in done.stdout.splitlines()[1:]]
    assert [row[1:] for row in rows if row[1] == "milter"] == [["milter", name] for name in NAMES]
    assert ["ok", "next", "hop"] in rows
    assert {row[0] for row in rows} == {"ok"}


def test_mail_for_us_comes_in(proxy: Proxy, sink: Sink) -> None:
    assert _send(proxy, b"<known@example.org>").accepted
    received = sink.wait_for_mail_to("known@example.org")
    assert received.recipients[0].startswith("<known@example.org>")
    content = sink.content(received)
    assert b"; dkim=none" in content
    assert b"; dmarc=pass (p=none dis=none) header.from=lenient.test" in content
    assert b"by mx.example.org (milterchain) with ESMTP id " in content


def test_spam_does_not(proxy: Proxy) -> None:
    outcome = _send(proxy, b"<known@example.org>", body=GTUBE)
    assert outcome.end is not None
    assert (outcome.end.code, outcome.end.text) == (554, b"5.7.1 Gtube pattern")


def test_unknown_recipients_are_refused_in_the_words_of_postfix(proxy: Proxy) -> None:
    answer = _send(proxy, b"<nobody@example.org>").rcpt[0]
    assert answer.code == 550
    assert b"5.1.1 <nobody@example.org>: Recipient address rejected: User unknown" in answer.text


def test_strangers_cannot_relay(proxy: Proxy) -> None:
    answer = _send(proxy, b"<b@example.net>").rcpt[0]
    assert (answer.code, answer.text) == (554, b"5.7.1 <b@example.net>: Relay access denied")


def test_trusted_networks_can(proxy: Proxy, sink: Sink) -> None:
    assert _send(proxy, b"<trusted@example.net>", "127.0.0.1").accepted
    sink.wait_for_mail_to("trusted@example.net")


def test_a_postfix_that_is_told_of_clients(identified: Proxy, sink: Sink) -> None:
    assert _send(identified, b"<known@example.org>").accepted
    sink.wait_for_mail_to("known@example.org")
    (unknown,) = _send(identified, b"<nobody@example.org>").rcpt
    assert b"User unknown" in unknown.text
    (relayed,) = _send(identified, b"<b@example.net>").rcpt
    assert (relayed.code, relayed.text) == (554, b"5.7.1 <b@example.net>: Relay access denied")
    assert _send(identified, b"<ours@example.net>", "127.0.0.1").accepted
    sink.wait_for_mail_to("ours@example.net")
