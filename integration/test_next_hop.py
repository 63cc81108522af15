"""Towards real next hops: TLS, our own login, XCLIENT and XFORWARD with Postfix; LMTP with Dovecot."""

import shlex
import sys

import pytest

from integration.corpus import head
from integration.readme import blocks, filled
from integration.services.dovecot import Dovecot, start_dovecot
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run, answers, free_port
from integration.services.proxy import LAUNCH, Proxy, run_proxy, start_proxy
from integration.services.secured import Secured, secured
from integration.services.sink import Sink, start_sink
from integration.services.smtp import Client, Outcome
from integration.services.tls import CERTIFICATES, make_certificates
from integration.services.witness import start_witness

SECTION = "As a relay to a smarthost"
KNOWN, STRANGER = "127.0.0.5", "127.0.0.6"
"""Addresses on this machine. Postfix relays for the first one only, milterchain for neither."""
NOBODY = '["192.0.2.0/24"]'

TLS = {
    "smtpd_tls_security_level": "may",
    "smtpd_tls_cert_file": str(CERTIFICATES / "server.pem"),
    "smtpd_tls_key_file": str(CERTIFICATES / "server.key"),
    "smtpd_tls_received_header": "yes",
}
VERIFY = f'tls = "verify"\ntls_ca_file = "{CERTIFICATES / "authority.pem"}"\n'


@pytest.fixture(scope="module")
def sink(run: Run, nameserver: str) -> Sink:
    del nameserver
    return start_sink(run)


def _postfix(run: Run, sink: Sink, name: str, **settings: str) -> Postfix:
    return start_postfix(
        run, name, relay_to=sink.address, settings={**TLS, "mynetworks": f"{KNOWN}/32", **settings}
    )


def _send(
    proxy: Proxy, recipient: str, *, source: str | None = None, helo: str = "client.example.test"
) -> Outcome:
    with Client(proxy.address, source=source, helo=b"EHLO " + helo.encode()) as client:
        content = head(recipient) + b"\r\nbody\r\n"
        outcome = client.send(b"<a@example.com>", [f"<{recipient}>".encode()], content)
        client.quit()
    return outcome


@pytest.fixture(scope="module")
def identified(run: Run, sink: Sink) -> tuple[Proxy, Postfix]:
    """A Postfix that decides by the client's address, as XCLIENT tells it."""
    (line,) = blocks("xclient.cf")
    postfix = start_postfix(
        run,
        "postfix-xclient",
        relay_to=sink.address,
        settings={**TLS, "mynetworks": f"{KNOWN}/32"},
        smtpd_options=[line.split()[1]],
    )
    proxy = start_proxy(
        run,
        name="proxy-xclient",
        next_hop=f"smtp:{postfix.address}",
        trusted_networks=NOBODY,
        relay=VERIFY,
    )
    return proxy, postfix


def test_postfix_relays_for_whom_it_knows(identified: tuple[Proxy, Postfix], sink: Sink) -> None:
    proxy, postfix = identified
    assert _send(proxy, "known@example.net", source=KNOWN, helo="known.example.test").accepted
    received = sink.content(sink.wait_for_mail_to("known@example.net"))
    postfix_s = received[: received.index(b"(milterchain)")]
    assert b"from known.example.test (unknown [127.0.0.5])" in postfix_s
    assert b"(using TLSv1.3 with cipher" in postfix_s
    postfix.logged(f"client=unknown[{KNOWN}]")


def test_postfix_refuses_strangers_in_its_own_words(identified: tuple[Proxy, Postfix]) -> None:
    proxy, postfix = identified
    (answer,) = _send(proxy, "other@example.net", source=STRANGER, helo="stranger.example.test").rcpt
    assert answer.code == 454
    assert b"<other@example.net>: Relay access denied" in answer.text
    postfix.logged(f"from unknown[{STRANGER}]", "Relay access denied", "helo=<stranger.example.test>")


def test_several_messages_in_one_session(identified: tuple[Proxy, Postfix], sink: Sink) -> None:
    proxy, _ = identified
    with Client(proxy.address, source=KNOWN) as client:
        for number in range(3):
            recipient = f"<several{number}@example.net>".encode()
            assert client.send(b"<a@example.com>", [recipient], head("several") + b"\r\nx\r\n").accepted
        client.quit()
    for number in range(3):
        sink.wait_for_mail_to(f"several{number}@example.net")


def test_xforward_is_for_the_log(run: Run, sink: Sink) -> None:
    postfix = _postfix(
        run,
        sink,
        "postfix-xforward",
        mynetworks="127.0.0.1/32",
        smtpd_authorized_xforward_hosts="127.0.0.1",
    )
    proxy = start_proxy(
        run,
        name="proxy-xforward",
        next_hop=f"smtp:{postfix.address}",
        trusted_networks=f'["{KNOWN}"]',
        relay=VERIFY.replace("verify", "encrypt"),
    )
    assert _send(proxy, "forwarded@example.net", source=KNOWN).accepted
    line = postfix.logged(f"orig_client=unknown[{KNOWN}]")
    received = sink.content(sink.wait_for_mail_to("forwarded@example.net"))
    queue_id = line.partition("orig_queue_id=")[2].partition(",")[0]
    assert queue_id
    assert f" id {queue_id}".encode() in received
    (answer,) = _send(proxy, "forwarded@example.net", source=STRANGER).rcpt
    assert (answer.code, answer.text) == (554, b"5.7.1 <forwarded@example.net>: Relay access denied")


@pytest.fixture(scope="module")
def login(run: Run) -> Secured:
    """Settings of a Postfix that knows two users."""
    users = [(user, "correct horse") for user in ("me", "example.org")]
    return secured(run, make_certificates(run), users)


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_smarthost_wants_a_login(run: Run, sink: Sink, login: Secured, scheme: str) -> None:
    settings = {
        **login["settings"],
        **TLS,
        "mynetworks": "",
        "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
        "smtpd_tls_auth_only": "yes",
    }
    postfix = start_postfix(
        run,
        f"postfix-{scheme}",
        relay_to=sink.address,
        settings=settings,
        files=login["files"],
        smtpd_options=["smtpd_tls_wrappermode=yes"] if scheme == "smtps" else [],
    )
    password = run.place(f"password-{scheme}") / "password"
    for number, (text, accepted) in enumerate([("correct horse", True), ("wrong", False)]):
        password.write_text(text + "\n")
        proxy = start_proxy(
            run,
            name=f"proxy-{scheme}-{number}",
            next_hop=f"{scheme}:{postfix.address}",
            relay=VERIFY + f'auth = {{ user = "me", password_file = "{password}" }}\n',
        )
        outcome = _send(proxy, f"{scheme}{number}@example.net")
        if accepted:
            assert outcome.accepted
            sink.wait_for_mail_to(f"{scheme}{number}@example.net")
            postfix.logged("sasl_method=PLAIN", "sasl_username=me")
        else:
            assert outcome.rcpt[0].code == 451


def _by_the_smarthost(run: Run, sink: Sink, login: Secured, name: str) -> tuple[Proxy, Postfix]:
    """The README's login at a smarthost of this name, which takes nothing without it."""
    example = next(block for block in blocks("toml", SECTION) if "smarthost" in block)
    smarthost = start_postfix(
        run,
        f"smarthost-{name}",
        relay_to=sink.address,
        settings={
            **login["settings"],
            **TLS,
            "mynetworks": "",
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
            "smtpd_tls_security_level": "encrypt",
        },
        files=login["files"],
    )
    password = run.place(f"password-{name}") / "password"
    password.write_text("correct horse\n")
    address = f"127.0.0.1:{free_port()}"
    places = {
        "smtp:smarthost.example.net:587": f"smtp:{name}:{smarthost.port}",
        "/etc/milterchain/password": password,
    }
    proxy = run_proxy(
        run,
        filled(example, places),
        address,
        name=f"proxy-{name}",
        flags=("--listen", address),
        env={"SSL_CERT_FILE": str(CERTIFICATES / "authority.pem")},
    )
    return proxy, smarthost


def test_the_smarthost_of_the_readme(run: Run, sink: Sink, login: Secured) -> None:
    """Behind a Postfix with the README's line."""
    proxy, smarthost = _by_the_smarthost(run, sink, login, "localhost")
    (line,) = blocks("relayhost.cf", SECTION)
    host, _, port = proxy.address.rpartition(":")
    key, _, value = filled(line, {"[127.0.0.1]:2525": f"[{host}]:{port}"}).partition(" = ")
    postfix = start_postfix(run, "sender", relay_to="127.0.0.1:1", settings={key: value})
    with Client(postfix.address) as client:
        content = head("smarthost") + b"\r\nbody\r\n"
        assert client.send(b"<a@example.org>", [b"<anybody@example.net>"], content).accepted
        client.quit()
    received = sink.content(sink.wait_for_mail_to("anybody@example.net"))
    assert received.index(b"by mx.example.test (Postfix) with ESMTPSA") < received.index(b"(milterchain)")
    smarthost.logged("sasl_method=PLAIN", "sasl_username=example.org")


def test_a_smarthost_of_another_name_learns_no_password(run: Run, sink: Sink, login: Secured) -> None:
    """The same machine under a name that is not in its certificate."""
    proxy, smarthost = _by_the_smarthost(run, sink, login, "mx.example.test")
    (answer,) = _send(proxy, "anybody@example.net").rcpt
    assert answer.code == 451
    assert "auth=" not in smarthost.logged("disconnect from", "starttls=0/1")


def test_the_next_hops_of_the_readme(run: Run, sink: Sink) -> None:
    example = next(block for block in blocks("toml", SECTION) if "mx2" in block)
    places = {"mx1.example.org:25": f"127.0.0.1:{free_port()}", "mx2.example.org:25": sink.address}
    address = f"127.0.0.1:{free_port()}"
    proxy = run_proxy(run, filled(example, places), address, name="proxy-hops", flags=("--listen", address))
    assert _send(proxy, "second@example.net").accepted
    sink.wait_for_mail_to("second@example.net")


def test_the_flags_of_the_readme(run: Run, sink: Sink) -> None:
    (line,) = blocks("flags", SECTION)
    milters = [start_witness(run, name) for name in ("first", "second")]
    address = f"127.0.0.1:{free_port()}"
    places = {
        "127.0.0.1:2525": address,
        "inet:127.0.0.1:8891": milters[0].address,
        "inet:127.0.0.1:11332": milters[1].address,
        "192.0.2.25:25": sink.address,
    }
    name, *flags = shlex.split(filled(line, places))
    assert name == "milterchain"
    service = run.spawn("flags", (sys.executable, "-c", LAUNCH, *flags))
    service.wait_ready(lambda: answers(f"inet:{address}"))
    with Client(address) as client:
        content = head("flags") + b"\r\nbody\r\n"
        assert client.send(b"<a@example.com>", [b"<flags@example.net>"], content).accepted
        client.quit()
    sink.wait_for_mail_to("flags@example.net")
    for milter in milters:
        assert [event["address"] for event in milter.events("rcpt")] == ["<flags@example.net>"]


def test_a_smarthost_with_the_wrong_certificate_gets_nothing(run: Run, sink: Sink) -> None:
    postfix = _postfix(
        run,
        sink,
        "postfix-other",
        smtpd_tls_cert_file=str(CERTIFICATES / "other.pem"),
        smtpd_tls_key_file=str(CERTIFICATES / "other.key"),
    )
    proxy = start_proxy(run, name="proxy-other", next_hop=f"smtp:{postfix.address}", relay=VERIFY)
    (answer,) = _send(proxy, "nobody@example.net").rcpt
    assert answer.code == 451


@pytest.fixture(scope="module")
def dovecot(run: Run) -> Dovecot:
    return start_dovecot(run, ("ann", "bob"))


def test_dovecot_by_lmtp(run: Run, dovecot: Dovecot) -> None:
    proxy = start_proxy(run, name="proxy-lmtp", next_hop=f"lmtp:unix:{dovecot.socket}")
    with Client(proxy.address) as client:
        recipients = [b"<nobody@example.test>", b"<ann@example.test>", b"<bob@example.test>"]
        content = head("lmtp") + b"\r\n.dot\r\nbody\r\n"
        outcome = client.send(b"<a@example.com>", recipients, content)
        assert [answer.code for answer in outcome.rcpt] == [550, 250, 452]
        assert outcome.accepted
        assert client.send(b"<a@example.com>", recipients[2:], content).accepted
        client.quit()
    for user in ("ann", "bob"):
        (message,) = dovecot.messages(user)
        assert message.replace(b"\r\n", b"\n").endswith(content.replace(b"\r\n", b"\n"))
        assert b"(milterchain)" in message
