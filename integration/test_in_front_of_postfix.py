"""What the README says about standing in front of Postfix, with exactly its lines."""

import tomllib

import pytest

from integration.corpus import head
from integration.readme import blocks
from integration.services.postfix import start_postfix
from integration.services.process import Run
from integration.services.proxy import Proxy, start_proxy
from integration.services.sink import Sink, start_sink
from integration.services.smtp import Client, Outcome

STRANGERS_ONLY = '["192.0.2.0/24"]'
"""Networks to trust, so that a client on this machine is a stranger."""


@pytest.fixture(scope="module")
def sink(run: Run) -> Sink:
    return start_sink(run)


OUTSIDE = "127.0.0.6"
"""An address on this machine that is not in the networks of the Postfix that is told of clients."""


def _options(block: str) -> list[str]:
    (line,) = blocks(block)
    options = [part.split()[0] for part in f" {line}".split(" -o ")[1:]]
    assert options
    return options


@pytest.fixture(scope="module")
def proxy(run: Run, sink: Sink) -> Proxy:
    settings = dict(line.split(" =", 1) for line in blocks("main.cf")[0].splitlines())
    return _in_front(run, sink, "postfix", settings, _options("master.cf"))


@pytest.fixture(scope="module")
def identified(run: Run, sink: Sink) -> Proxy:
    """The same with XCLIENT, and Postfix's own rules for recipients, of which there are none by default."""
    replaced = "smtpd_recipient_restrictions="
    kept = [option for option in _options("master.cf") if not option.startswith(replaced)]
    settings = {"mynetworks": "127.0.0.1/32", "smtpd_recipient_restrictions": ""}
    return _in_front(run, sink, "postfix-told", settings, [*kept, *_options("xclient.cf")])


def _in_front(run: Run, sink: Sink, name: str, settings: dict[str, str], options: list[str]) -> Proxy:
    known = run.place(f"{name}-known") / "recipients"
    known.write_text("/^known@/ yes\n")
    postfix = start_postfix(
        run,
        name,
        relay_to=sink.address,
        settings={
            **{key.strip(): value.strip() for key, value in settings.items()},
            "relay_domains": "example.org",
            "relay_recipient_maps": f"regexp:{known}",
        },
        smtpd_options=options,
    )
    example = tomllib.loads(next(block for block in blocks("toml") if "[[listen]]" in block))
    domains = str(example["access"]["relay_domains"]).replace("'", '"')
    return start_proxy(
        run,
        name=f"proxy-{name}",
        next_hop=f"smtp:{postfix.address}",
        trusted_networks=STRANGERS_ONLY,
        relay_domains=domains,
    )


def _send(proxy: Proxy, recipient: bytes, source: str | None = None) -> Outcome:
    with Client(proxy.address, source=source) as client:
        outcome = client.send(b"<a@example.com>", [recipient], head("front") + b"\r\nbody\r\n")
        client.quit()
    return outcome


def test_mail_for_us_comes_in(proxy: Proxy, sink: Sink) -> None:
    assert _send(proxy, b"<known@example.org>").accepted
    received = sink.wait_for_mail_to("known@example.org")
    assert received.recipients[0].startswith("<known@example.org>")


def test_unknown_recipients_are_refused_in_the_words_of_postfix(proxy: Proxy) -> None:
    answer = _send(proxy, b"<nobody@example.org>").rcpt[0]
    assert answer.code == 550
    assert b"5.1.1 <nobody@example.org>: Recipient address rejected: User unknown" in answer.text


def test_strangers_cannot_relay(proxy: Proxy) -> None:
    answer = _send(proxy, b"<b@example.net>").rcpt[0]
    assert (answer.code, answer.text) == (554, b"5.7.1 <b@example.net>: Relay access denied")


def test_a_postfix_that_is_told_of_clients(identified: Proxy, sink: Sink) -> None:
    assert _send(identified, b"<known@example.org>", OUTSIDE).accepted
    sink.wait_for_mail_to("known@example.org")
    (unknown,) = _send(identified, b"<nobody@example.org>", OUTSIDE).rcpt
    assert b"User unknown" in unknown.text
    (relayed,) = _send(identified, b"<b@example.net>", OUTSIDE).rcpt
    assert (relayed.code, relayed.text) == (554, b"5.7.1 <b@example.net>: Relay access denied")
    assert _send(identified, b"<ours@example.net>").accepted
    sink.wait_for_mail_to("ours@example.net")
