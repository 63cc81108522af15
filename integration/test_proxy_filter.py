"""Between two Postfixes as an smtpd_proxy_filter, with the README's files but for ports; behind HAProxy."""

import smtplib
import ssl
from typing import NamedTuple

import pytest

from integration.corpus import head
from integration.readme import blocks, filled
from integration.services.filters import start_editor
from integration.services.haproxy import start_haproxy
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run, free_port
from integration.services.proxy import milter_table, run_proxy, start_proxy
from integration.services.sink import Sink, start_sink
from integration.services.smtp import TIMEOUT, Client, Outcome
from integration.services.tls import CERTIFICATES, PAIR
from integration.services.witness import Witness, start_witness

CLIENT = b"XCLIENT NAME=client.example.test ADDR=192.0.2.7 PORT=4711"
SECTION = "As a filter between two Postfixes"
RESTRICTIONS = [f"smtpd_{stage}_restrictions" for stage in ("client", "helo", "sender", "data", "relay")]
NOT_FROM_HERE = "check_client_access inline:{127.0.0.1=REJECT}, reject_unauth_destination"


class System(NamedTuple):
    """One Postfix before and behind milterchain with its milters, then the sink.

    Attributes:
        adjusting: where Postfix sends on only what is complete.
        behind: where it takes what comes back.
    """

    postfix: Postfix
    adjusting: str
    milter: Witness
    behind: str
    sink: Sink


@pytest.fixture(scope="module")
def system(run: Run) -> System:
    """Everything as the README has it, but for the ports."""
    before, behind = blocks("proxy-filter.cf", SECTION)
    (example,) = blocks("toml", SECTION)
    first, adjusting, second, between = (f"127.0.0.1:{free_port()}" for _ in range(4))
    sink = start_sink(run)
    milter = start_witness(run)
    places = {
        "127.0.0.1:10024": between,
        "127.0.0.1:10026": second,
        "inet:127.0.0.1:11332": milter.address,
    }
    judge = milter_table("judge", start_editor(run, "judge").address)
    run_proxy(run, f"{filled(example, places)}\n{judge}", between)
    # So that a client can come from elsewhere.
    identified = "    -o smtpd_authorized_xclient_hosts=127.0.0.1"
    services = [
        filled(before, {"smtp inet": f"{first} inet", "127.0.0.1:10024": between}),
        identified,
        filled(before, {"smtp inet": f"{adjusting} inet", "127.0.0.1:10024": between}),
        identified,
        "    -o smtpd_proxy_options=speed_adjust",
        filled(behind, {"127.0.0.1:10026": second}),
    ]
    postfix = start_postfix(
        run,
        "postfix",
        relay_to=sink.address,
        # Nobody answers there, and milterchain may do nothing: it is for the lines to change that.
        milters=["inet:127.0.0.1:1"],
        settings={
            "relay_domains": "example.org",
            "mynetworks": "",
            **dict.fromkeys(RESTRICTIONS, NOT_FROM_HERE),
        },
        services="\n".join(services),
    )
    return System(postfix, adjusting, milter, second, sink)


def send(
    system: System,
    recipient: bytes,
    *,
    helo: bytes = b"EHLO client.example.test",
    sender: bytes = b"<a@example.com>",
    adjusting: bool = False,
) -> Outcome:
    """Send as a client from elsewhere."""
    before = system.adjusting if adjusting else system.postfix.address
    with Client(before, helo=b"EHLO balancer.example.test") as client:
        assert client.command(CLIENT).code == 220
        assert client.command(helo).code == 250
        outcome = client.send(sender, [recipient], head("filtered") + b"\r\nbody\r\n")
        client.quit()
    return outcome


def test_the_milters_are_told_of_the_original_client(system: System) -> None:
    assert send(system, b"<one@example.org>").accepted
    system.sink.wait_for_mail_to("one@example.org")
    connect = next(event for event in system.milter.events("connect") if event["address"] == "192.0.2.7")
    assert (connect["hostname"], connect["port"]) == ("client.example.test", 4711)
    helos = [
        event["name"] for event in system.milter.events("helo") if event["session"] == connect["session"]
    ]
    assert helos == ["client.example.test"]


def test_the_postfix_behind_logs_the_original_client(system: System) -> None:
    assert send(system, b"<two@example.org>").accepted
    system.sink.wait_for_mail_to("two@example.org")
    system.postfix.logged("orig_client=client.example.test[192.0.2.7]")


def test_the_final_reply_is_that_of_the_postfix_behind(system: System) -> None:
    outcome = send(system, b"<three@example.org>", helo=b"HELO client.example.test")
    assert outcome.end is not None
    assert outcome.end.code == 250
    assert b"queued as" in outcome.end.text


@pytest.mark.parametrize("adjusting", [False, True], ids=["at-once", "speed-adjust"])
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "header", "body", "eom"])
@pytest.mark.parametrize(("verdict", "code"), [("reply5", 550), ("reply4", 450)])
def test_refusals_reach_the_client(
    system: System, stage: str, verdict: str, code: int, *, adjusting: bool
) -> None:
    sender = f"<verdict-judge-{stage}-{verdict}@example.com>".encode()
    outcome = send(system, b"<four@example.org>", sender=sender, adjusting=adjusting)
    answers = [outcome.mail, *outcome.rcpt, outcome.data, outcome.end]
    refusal = next(answer for answer in answers if answer is not None and answer.code >= 400)
    assert refusal.code == code
    assert refusal.lines[0].startswith(b"%d.7.9 not " % (code // 100))


def test_a_refused_helo_is_heard_with_the_recipient(system: System) -> None:
    outcome = send(system, b"<five@example.org>", helo=b"EHLO verdict-judge-helo-reply5.example.test")
    assert outcome.rcpt[0].code == 550


def test_what_the_postfix_before_has_announced_is_borne(system: System) -> None:
    recipient = "<six@example.org> NOTIFY=SUCCESS ORCPT=rfc822;six@example.org"
    sender = "<ä@example.com> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=abc"
    assert send(system, recipient.encode(), sender=sender.encode()).accepted


@pytest.mark.parametrize("mode", ["none", "starttls", "implicit"])
@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_behind_haproxy(run: Run, system: System, option: str, mode: str) -> None:
    name = f"{option}-{mode}"
    tls = "" if mode == "none" else f'tls = {{ {PAIR}, mode = "{mode}", required = true }}\n'
    proxy = start_proxy(
        run,
        name=f"milterchain-{name}",
        next_hop=f"smtp:{system.behind}",
        milters=[milter_table("witness", system.milter.address)],
        listen=f'proxy_protocol_from = ["127.0.0.1"]\n{tls}',
    )
    host, _, port = start_haproxy(run, server=proxy.address, option=option, name=name).rpartition(":")
    context = ssl.create_default_context(cafile=CERTIFICATES / "authority.pem")
    client = (
        smtplib.SMTP_SSL(host, int(port), timeout=TIMEOUT, context=context)
        if mode == "implicit"
        else smtplib.SMTP(host, int(port), timeout=TIMEOUT)
    )
    with client:
        if mode == "starttls":
            client.starttls(context=context)
        assert client.sock is not None
        here = client.sock.getsockname()[1]
        recipient = f"{name}@example.org"
        content = head("balanced") + b"\r\nx\r\n"
        client.sendmail("a@example.com", [recipient], content)
    received = system.sink.content(system.sink.wait_for_mail_to(recipient))
    assert (b"with ESMTPS id" in received) == (mode != "none")
    assert here in {event["port"] for event in system.milter.events("connect")}
