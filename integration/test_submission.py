"""Users hand in their mail: swaks, over TLS and with a login, to Postfix, which learns who they are."""

import subprocess
from pathlib import Path

import pytest

from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run
from integration.services.proxy import Proxy, start_proxy
from integration.services.secured import secured
from integration.services.sink import Sink, start_sink
from integration.services.tls import CERTIFICATES, PAIR, make_certificates
from integration.services.users import make_users_file

NOBODY = '["192.0.2.0/24"]'


@pytest.fixture(scope="module")
def sink(run: Run, nameserver: str) -> Sink:
    del nameserver
    return start_sink(run)


@pytest.fixture(scope="module")
def users(run: Run) -> Path:
    return make_users_file(run, ("me", "correct horse"))


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
    login = ["--auth", mechanism, "--auth-user", "me", "--auth-password", "correct horse"]
    done = _swaks(proxy, recipient, tls, *login)
    assert done.returncode == 0, done.stdout
    received = sink.content(sink.wait_for_mail_to(recipient))
    assert b"(using TLSv1.3 with cipher" in received
    assert b"with ESMTPSA id" in received
    postfix.logged("[127.0.0.1]", "sasl_username=me")


def test_strangers_and_wrong_passwords(by_file: tuple[Proxy, str, Postfix]) -> None:
    proxy, tls, _ = by_file
    assert (
        "<b@example.net>: Recipient address rejected: Access denied"
        in _swaks(proxy, "b@example.net", tls).stdout
    )
    login = ["--auth", "PLAIN", "--auth-user", "me", "--auth-password", "wrong"]
    assert "535 5.7.8 " in _swaks(proxy, "b@example.net", tls, *login).stdout


def test_the_next_hop_knows_the_users(run: Run, sink: Sink) -> None:
    login = secured(run, make_certificates(run), [("me", "correct horse")])
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
    done = _swaks(proxy, "asked@example.net", *credentials, "correct horse")
    assert done.returncode == 0, done.stdout
    sink.wait_for_mail_to("asked@example.net")
    postfix.logged("sasl_username=me")
    assert "535 5.7.8 " in _swaks(proxy, "asked@example.net", *credentials, "wrong").stdout
    assert "530 5.7.0 " in _swaks(proxy, "asked@example.net", "--tls").stdout
