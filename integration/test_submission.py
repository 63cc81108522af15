"""Users hand in their mail, over TLS and with a login, to Postfix, which learns who they are."""

import base64
import smtplib
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from integration.corpus import head
from integration.readme import blocks, filled
from integration.services.filters import make_key, start_opendkim
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run, free_port
from integration.services.proxy import Proxy, run_proxy, start_proxy
from integration.services.secured import Secured, secured
from integration.services.sink import Sink, start_sink
from integration.services.tls import CERTIFICATES, PAIR, make_certificates
from integration.services.users import make_users_file

NOBODY = '["192.0.2.0/24"]'
SECTION = "As a submission service"
PASSWORD = "correct horse"
STAGES = ("client", "helo", "sender", "recipient", "relay")


@pytest.fixture(scope="module")
def sink(run: Run, nameserver: str) -> Sink:
    del nameserver
    return start_sink(run)


@pytest.fixture(scope="module")
def users(run: Run) -> Path:
    return make_users_file(run, ("me", PASSWORD))


@pytest.fixture(scope="module")
def login(run: Run) -> Secured:
    """Settings of a Postfix that knows two users."""
    return secured(run, make_certificates(run), [("me", PASSWORD), ("known", PASSWORD)])


def _swaks(proxy: Proxy, recipient: str, *options: str) -> "subprocess.CompletedProcess[str]":
    command = ["swaks", "--server", proxy.address, "--from", "me@example.com", "--to", recipient]
    command += ["--tls-verify", "--tls-ca-path", str(CERTIFICATES / "authority.pem"), "--timeout", "20"]
    return subprocess.run([*command, *options], check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module", params=["starttls", "implicit"])
def by_file(request: pytest.FixtureRequest, run: Run, sink: Sink, users: Path) -> tuple[Proxy, str, Postfix]:
    """A listener with its own users, before a Postfix that relays for whoever has logged in."""
    mode: str = request.param
    postfix = start_postfix(
        run,
        f"postfix-{mode}",
        relay_to=sink.address,
        settings={
            "mynetworks": "",
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
            "smtpd_authorized_xclient_hosts": "127.0.0.1",
        },
    )
    proxy = start_proxy(
        run,
        name=f"proxy-{mode}",
        next_hop=f"smtp:{postfix.address}",
        trusted_networks=NOBODY,
        listen=f'tls = {{ {PAIR}, mode = "{mode}", required = true }}\n'
        f'auth = {{ backend = "file", path = "{users}" }}\n',
    )
    return proxy, "--tls" if mode == "starttls" else "--tls-on-connect", postfix


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_user_may_send_anywhere(by_file: tuple[Proxy, str, Postfix], sink: Sink, mechanism: str) -> None:
    proxy, tls, postfix = by_file
    recipient = f"{mechanism.lower()}{tls}@example.net"
    login = ["--auth", mechanism, "--auth-user", "me", "--auth-password", PASSWORD]
    done = _swaks(proxy, recipient, tls, *login)
    assert done.returncode == 0, done.stdout
    received = sink.content(sink.wait_for_mail_to(recipient))
    assert b"(using TLSv1.3 with cipher" in received
    assert b" (milterchain) with ESMTPSA id " in received
    postfix.logged("[127.0.0.1]", "sasl_username=me")


def test_strangers_and_wrong_passwords(by_file: tuple[Proxy, str, Postfix]) -> None:
    proxy, tls, _ = by_file
    assert (
        "<b@example.net>: Recipient address rejected: Access denied"
        in _swaks(proxy, "b@example.net", tls).stdout
    )
    login = ["--auth", "PLAIN", "--auth-user", "me", "--auth-password", "wrong"]
    assert "535 5.7.8 " in _swaks(proxy, "b@example.net", tls, *login).stdout


def test_the_next_hop_knows_the_users(run: Run, sink: Sink, login: Secured) -> None:
    postfix = start_postfix(
        run,
        "postfix-login",
        relay_to=sink.address,
        settings={
            **login["settings"],
            "mynetworks": "",
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
        },
        files=login["files"],
    )
    proxy = start_proxy(
        run,
        name="proxy-login",
        next_hop=f"smtp:{postfix.address}",
        trusted_networks=NOBODY,
        listen=f'tls = {{ {PAIR} }}\nauth = {{ backend = "next-hop", required = true }}\n',
    )
    credentials = ["--tls", "--auth", "LOGIN", "--auth-user", "me", "--auth-password"]
    done = _swaks(proxy, "asked@example.net", *credentials, PASSWORD)
    assert done.returncode == 0, done.stdout
    sink.wait_for_mail_to("asked@example.net")
    postfix.logged("sasl_username=me")
    assert "535 5.7.8 " in _swaks(proxy, "asked@example.net", *credentials, "wrong").stdout
    assert "530 5.7.0 " in _swaks(proxy, "asked@example.net", "--tls").stdout


class Service(NamedTuple):
    """The README's submission service; its users are `filed` and `known`, with the same password.

    Attributes:
        implicit: the port for TLS from the first octet.
        explicit: the port for STARTTLS.
    """

    implicit: int
    explicit: int
    postfix: Postfix


@pytest.fixture(scope="module")
def service(run: Run, sink: Sink, login: Secured) -> Service:
    """Everything as the README has it, but for ports and paths."""
    (lines,) = blocks("submission.cf", SECTION)
    (example,) = blocks("toml", SECTION)
    settings = {key: value for key, value in login["settings"].items() if key != "smtpd_sasl_auth_enable"}
    address = f"127.0.0.1:{free_port()}"
    postfix = start_postfix(
        run,
        "postfix-service",
        relay_to=sink.address,
        # Nobody answers there, and nobody may do anything: it is for the lines to change that.
        milters=["inet:127.0.0.1:1"],
        settings={
            **settings,
            "smtpd_tls_auth_only": "yes",
            "mynetworks": "",
            **{f"smtpd_{stage}_restrictions": "reject" for stage in STAGES},
        },
        services=filled(lines, {"127.0.0.1:10587": address}),
        files=login["files"],
    )
    implicit, explicit = free_port(), free_port()
    places = {
        "0.0.0.0:465": f"127.0.0.1:{implicit}",
        "0.0.0.0:587": f"127.0.0.1:{explicit}",
        "/etc/ssl/mx.pem": CERTIFICATES / "server.pem",
        "/etc/ssl/mx.key": CERTIFICATES / "server.key",
        "/etc/milterchain/users": make_users_file(run, ("filed", PASSWORD), name="users-service"),
        "unix:/run/opendkim/opendkim.sock": start_opendkim(run, make_key(run), unix=True).address,
        "127.0.0.1:10587": address,
    }
    run_proxy(run, filled(example, places), f"127.0.0.1:{explicit}", name="proxy-service")
    return Service(implicit, explicit, postfix)


def _session(service: Service, user: str) -> smtplib.SMTP:
    """A session on the port of that user, encrypted, from an address that nobody trusts."""
    context = ssl.create_default_context(cafile=CERTIFICATES / "authority.pem")
    where = {"timeout": 60, "source_address": ("127.0.0.7", 0)}
    if user == "filed":
        return smtplib.SMTP_SSL("127.0.0.1", service.implicit, context=context, **where)
    client = smtplib.SMTP("127.0.0.1", service.explicit, **where)
    client.starttls(context=context)
    return client


@pytest.mark.parametrize("user", ["filed", "known"])
def test_the_service_of_the_readme(service: Service, sink: Sink, user: str) -> None:
    recipient = f"{user}@example.net"
    with _session(service, user) as client:
        assert client.login(user, PASSWORD)[0] == 235
        client.sendmail(f"{user}@example.test", [recipient], head(user) + b"\r\nbody\r\n")
    content = sink.content(sink.wait_for_mail_to(recipient))
    assert b"by mx.example.org (milterchain) with ESMTPSA id " in content
    assert b"(using TLSv1.3 with cipher" in content
    assert b"\r\nDKIM-Signature: " in content
    service.postfix.logged("postfix/submission/smtpd", "client=", "[127.0.0.7]", f"sasl_username={user}")


@pytest.mark.parametrize(("user", "other"), [("filed", "known"), ("known", "filed")])
def test_the_service_is_for_its_users(service: Service, user: str, other: str) -> None:
    with _session(service, user) as client:
        client.ehlo()
        assert client.mail("a@example.test")[0] == 530
        for login, password in [(other, PASSWORD), (user, "wrong")]:
            plain = base64.b64encode(f"\0{login}\0{password}".encode()).decode()
            assert client.docmd("AUTH PLAIN", plain)[0] == 535
        assert client.mail("a@example.test")[0] == 530


def test_the_service_wants_tls(service: Service) -> None:
    with smtplib.SMTP("127.0.0.1", service.explicit, timeout=60) as client:
        assert client.ehlo()[0] == 250
        assert not client.has_extn("auth")
        assert client.mail("a@example.test")[0] == 530
        assert client.docmd("AUTH", "PLAIN AGtub3duAHB3")[0] in {503, 530, 538}
