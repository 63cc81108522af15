"""The whole system: TLS, AUTH and foreign clients, six filters, Postfix that learns of the clients, sink.

Every SMTP client here is on 127.0.0.1, which only example.test names in its SPF record, and says on
whose behalf it comes. So whatever a filter found out about the loopback address instead shows at once.
"""

import smtplib
import socket
import ssl
import struct
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import NamedTuple

import dkim  # type: ignore[import-untyped]
import pytest

from integration.corpus import head
from integration.services.filters import (
    AUTHSERV,
    DOMAIN,
    GTUBE,
    SELECTOR,
    Filter,
    SigningKey,
    make_key,
    start_clamav,
    start_opendkim,
    start_opendmarc,
    start_pyspf,
    start_rspamd,
    start_spamass,
)
from integration.services.names import start_names
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run, answers, free_port, wait_for
from integration.services.proxy import milter_table, start_proxy
from integration.services.sink import Sink, start_sink
from integration.services.tls import CERTIFICATES, PAIR
from integration.services.users import make_users_file

FRIEND = "192.0.2.7"
"""The one network that friend.test and lenient.test send from."""
FOREIGN = "198.51.100.23"
"""Nobody names it."""
EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
LISTENERS = ("smtp", "smtps")
"""Their names, by which rspamd signs its results: it takes them from the macro `{daemon_name}`."""
PROXY2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"
"""Signature, version 2, PROXY, TCP over IPv4."""


class System(NamedTuple):
    """Where things are.

    Attributes:
        open: the listener with STARTTLS and AUTH that takes XCLIENT.
        balanced: the listener with implicit TLS that takes PROXY headers.
    """

    open: str
    balanced: str
    postfix: Postfix
    sink: Sink


@pytest.fixture(scope="module")
def key(run: Run) -> SigningKey:
    return make_key(run)


@pytest.fixture(scope="module")
def nameserver(run: Run, key: SigningKey) -> str:
    """With the key, in strings that a TXT record can hold."""
    text = key.record.decode()
    strings = ",".join(text[start : start + 250] for start in range(0, len(text), 250))
    return start_names(run, f"--txt-record={SELECTOR}._domainkey.{DOMAIN},{strings}")


@pytest.fixture(scope="module")
def milters(run: Run, nameserver: str, key: SigningKey) -> list[str]:
    """Each before those that use its results; rspamd and OpenDKIM remove what others claim in our name."""

    def table(started: Filter, authenticated: str = "any") -> str:
        return milter_table(started.name, started.address, {"authenticated": f'"{authenticated}"'})

    return [
        table(start_clamav(run)),
        table(start_rspamd(run, nameserver)),
        table(start_opendkim(run, key, mode="v", name="opendkim-verify"), "never"),
        table(start_pyspf(run), "never"),
        table(start_opendmarc(run), "never"),
        table(start_spamass(run)),
        table(start_opendkim(run, key, name="opendkim-sign"), "only"),
    ]


@pytest.fixture(scope="module")
def users(run: Run) -> Path:
    return make_users_file(run, ("me", "correct horse"))


@pytest.fixture(scope="module")
def system(run: Run, milters: list[str], users: Path) -> System:
    sink = start_sink(run)
    postfix = start_postfix(
        run,
        "postfix",
        relay_to=sink.address,
        settings={
            "mynetworks": "",
            "relay_domains": "example.org",
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject_unauth_destination",
            "smtpd_authorized_xclient_hosts": "127.0.0.1",
        },
    )
    balanced = f"127.0.0.1:{free_port()}"
    proxy = start_proxy(
        run,
        next_hop=f"smtp:{postfix.address}",
        milters=milters,
        trusted_networks="[]",
        relay_domains='["example.org"]',
        relay='client_identity = "xclient"',
        listen='xclient_from = ["127.0.0.1"]\n'
        f'tls = {{ {PAIR} }}\nauth = {{ backend = "file", path = "{users}" }}\n',
        extra=f'[[listen]]\nname = "smtps"\naddress = "{balanced}"\nproxy_protocol_from = ["127.0.0.1"]\n'
        f'tls = {{ {PAIR}, mode = "implicit" }}\n',
    )
    wait_for(lambda: answers(f"inet:{balanced}"), "the second listener answers")
    return System(proxy.address, balanced, postfix, sink)


def _context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=CERTIFICATES / "authority.pem")


def by_xclient(system: System, address: str) -> smtplib.SMTP:
    """A session over STARTTLS on behalf of this address."""
    host, _, port = system.open.rpartition(":")
    client = smtplib.SMTP(host, int(port), "proxy.example.net", timeout=60)
    client.starttls(context=_context())
    client.ehlo()
    assert client.has_extn("xclient")
    assert client.docmd(f"XCLIENT NAME=client.example.net ADDR={address} PORT=4711")[0] == 220
    assert client.ehlo("client.example.net")[0] == 250
    return client


def by_proxy_header(system: System, address: str) -> smtplib.SMTP:
    """A session over implicit TLS, with a PROXY header of version 2 before the handshake."""
    host, _, port = system.balanced.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=60)
    ends = socket.inet_aton(address) + socket.inet_aton(host) + struct.pack("!HH", 4711, int(port))
    plain.sendall(PROXY2 + struct.pack("!H", len(ends)) + ends)
    client = smtplib.SMTP(local_hostname="client.example.net")
    client.sock = _context().wrap_socket(plain, server_hostname=host)
    assert client.getreply()[0] == 220
    assert client.ehlo()[0] == 250
    return client


def by_login(system: System, address: str) -> smtplib.SMTP:
    """A user's session from this address."""
    client = by_xclient(system, address)
    assert client.login("me", "correct horse")[0] == 235
    return client


Connect = Callable[[System, str], smtplib.SMTP]


@pytest.fixture(params=[by_xclient, by_proxy_header])
def connect(request: pytest.FixtureRequest) -> Connect:
    """A stranger's way in."""
    found: Connect = request.param
    return found


def written(sender: str, subject: str, body: bytes = b"body\r\n") -> bytes:
    """A plain message."""
    return head(subject).replace(b"sender@example.test", sender.encode()) + b"\r\n" + body


def infected() -> bytes:
    """A message with the EICAR file attached."""
    message = EmailMessage(policy=policy.SMTP)
    message["From"], message["To"], message["Subject"] = "a@friend.test", "b@example.org", "look at this"
    message.set_content("attached\n")
    message.add_attachment(EICAR, maintype="application", subtype="octet-stream", filename="eicar.com")
    return message.as_bytes()


def arrived(system: System, client: smtplib.SMTP, sender: str, recipient: str, content: bytes) -> bytes:
    """Hand it in, and return what comes out at the other end."""
    client.sendmail(sender, [recipient], content)
    return system.sink.content(system.sink.wait_for_mail_to(recipient))


def sent(system: System, by: Connect, address: str, sender: str, recipient: str, content: bytes) -> bytes:
    """The same in a session of its own."""
    with by(system, address) as client:
        return arrived(system, client, sender, recipient, content)


def refused(client: smtplib.SMTP, sender: str, recipient: str, content: bytes) -> tuple[int, bytes]:
    """Hand it in, and return the reply to the whole message."""
    with pytest.raises(smtplib.SMTPDataError) as caught:
        client.sendmail(sender, [recipient], content)
    reply = caught.value
    assert isinstance(reply.smtp_error, bytes)
    return reply.smtp_code, reply.smtp_error


def parsed(content: bytes) -> EmailMessage:
    return message_from_bytes(content, policy=policy.SMTP)


def results(content: bytes, *authorities: str) -> str:
    """What the filters found out, a line for each Authentication-Results of these names."""
    lines = [" ".join(str(value).split()) for value in parsed(content).get_all("Authentication-Results", [])]
    return "\n".join(line for line in lines if line.partition(";")[0] in (authorities or (AUTHSERV,)))


def lookup(key: SigningKey) -> Callable[..., bytes]:
    """For dkimpy, instead of the DNS."""

    def answer(name: bytes, timeout: int = 5) -> bytes:
        del timeout
        assert name.rstrip(b".") == f"{SELECTOR}._domainkey.{DOMAIN}".encode()
        return key.record

    return answer


def test_the_right_address_passes(system: System, connect: Connect) -> None:
    recipient = f"passed-{connect.__name__}@example.org"
    content = written("a@friend.test", recipient)
    content = sent(system, connect, FRIEND, "a@friend.test", recipient, content)
    found = results(content)
    assert f"spf=pass (sender SPF authorized) smtp.mailfrom=friend.test (client-ip={FRIEND};" in found
    assert "dmarc=pass (p=reject dis=none) header.from=friend.test" in found
    assert "dkim=none" in found
    by_rspamd = results(content, *LISTENERS)
    assert f"domain of a@friend.test designates {FRIEND} as permitted sender) smtp.mailfrom=" in by_rspamd
    assert "dmarc=pass (policy=reject) header.from=friend.test" in by_rspamd
    headers = parsed(content)
    assert headers["X-Virus-Status"] == "Clean"
    assert headers["X-Spam-Status"].startswith("No, score=0.0 ")
    assert (
        b"(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits))"
        b"\r\n\t(No client certificate requested)\r\n\tby mx.example.test (milterchain) with ESMTPS id "
    ) in content
    system.postfix.logged(f"[{FRIEND}]", ": client=")


def test_the_wrong_address_fails(system: System, connect: Connect) -> None:
    recipient = f"failed-{connect.__name__}@example.org"
    content = written("a@lenient.test", recipient)
    content = sent(system, connect, FOREIGN, "a@lenient.test", recipient, content)
    found = results(content)
    assert "spf=softfail " in found
    assert f"smtp.mailfrom=lenient.test (client-ip={FOREIGN};" in found
    assert "dmarc=fail (p=none dis=none) header.from=lenient.test" in found
    by_rspamd = results(content, *LISTENERS)
    assert f": {FOREIGN} is neither permitted nor denied by domain of a@lenient.test)" in by_rspamd


@pytest.mark.parametrize("sender", [f"a@{DOMAIN}", "a@friend.test"])
def test_nobody_sends_for_others(system: System, connect: Connect, sender: str) -> None:
    with connect(system, FOREIGN) as client:
        code, text = client.mail(sender)
        assert (code, text[:7]) == (550, b"5.7.23 ")
        assert FOREIGN.encode() in text


def test_nobody_writes_for_others(system: System, connect: Connect) -> None:
    recipient = f"spoofed-{connect.__name__}@example.org"
    with connect(system, FRIEND) as client:
        code, text = refused(client, "a@friend.test", recipient, written("a@evil.test", "spoofed"))
        assert (code, text) == (550, b"5.7.1 rejected by DMARC policy for evil.test")
        # The session is none the worse for it.
        next_content = written("a@friend.test", recipient)
        assert "dmarc=pass " in results(arrived(system, client, "a@friend.test", recipient, next_content))
    assert len(list(system.sink.to(recipient))) == 1


def test_results_in_our_name_are_ours(system: System, connect: Connect) -> None:
    recipient = f"forged-{connect.__name__}@example.org"
    forged = f"Authentication-Results: {AUTHSERV}; spf=pass smtp.mailfrom=lenient.test; dmarc=pass\r\n"
    content = forged.encode() + written("a@lenient.test", recipient)
    found = results(sent(system, connect, FOREIGN, "a@lenient.test", recipient, content))
    assert "spf=softfail " in found
    assert "spf=pass" not in found
    assert "dmarc=pass" not in found


@pytest.mark.parametrize("by", [by_xclient, by_proxy_header, by_login])
def test_a_virus_is_refused(system: System, by: Connect) -> None:
    recipient = f"infected-{by.__name__}@example.org"
    with by(system, FRIEND) as client:
        code, text = refused(client, "a@friend.test", recipient, infected())
        assert (code, text) == (550, b"5.7.1 Virus found: Lab.Eicar.MD5.UNOFFICIAL")
        arrived(system, client, "a@friend.test", recipient, written("a@friend.test", "clean"))
    (only,) = system.sink.to(recipient)
    assert b"\r\nSubject: clean\r\n" in system.sink.content(only)


@pytest.mark.parametrize(
    ("subject", "body", "code", "text"),
    [
        ("gtube", GTUBE, 554, b"5.7.1 Gtube pattern"),
        ("labbad", b"for rspamd\r\n", 554, b"5.7.1 Spam message rejected"),
        ("labjunk", b"for SpamAssassin\r\n", 550, b"5.7.1 Blocked by SpamAssassin"),
    ],
    ids=["gtube", "labbad", "labjunk"],
)
def test_obvious_spam_is_refused(
    system: System, connect: Connect, subject: str, body: bytes, code: int, text: bytes
) -> None:
    recipient = f"{subject}-{connect.__name__}@example.org"
    with connect(system, FRIEND) as client:
        content = written("a@friend.test", subject, body)
        assert refused(client, "a@friend.test", recipient, content) == (code, text)
        arrived(system, client, "a@friend.test", recipient, written("a@friend.test", "clean"))
    assert len(list(system.sink.to(recipient))) == 1


def test_spam_is_tagged(system: System, connect: Connect) -> None:
    recipient = f"tagged-{connect.__name__}@example.org"
    content = written("a@friend.test", "labspammy")
    headers = parsed(sent(system, connect, FRIEND, "a@friend.test", recipient, content))
    assert headers.get_all("X-Spam-Flag") == ["YES"]
    assert headers["X-Spam-Status"].startswith("Yes, score=7.0 required=5.0 tests=LAB_SPAMMY")
    assert headers["X-Spamd-Bar"].startswith("++++++")


def test_what_users_send_is_signed(system: System, key: SigningKey) -> None:
    recipient, sender = "anybody@example.net", f"me@{DOMAIN}"
    signed = sent(system, by_login, FOREIGN, sender, recipient, written(sender, "signed"))
    assert dkim.DKIM(signed).verify(dnsfunc=lookup(key))
    assert b" (milterchain) with ESMTPSA id " in signed
    # They send from wherever they are.
    assert not results(signed)
    system.postfix.logged(f"client=client.example.net[{FOREIGN}]", "sasl_username=me")

    # A mailing list somewhere else passes it back to us.
    returned = sent(system, by_xclient, FRIEND, "list@friend.test", "back@example.org", signed)
    found = results(returned)
    assert "dkim=pass (2048-bit key) header.d=example.test " in found
    assert f"smtp.mailfrom=friend.test (client-ip={FRIEND};" in found
    assert "dmarc=pass (p=reject dis=none) header.from=example.test" in found
    assert "dkim=pass header.d=example.test" in results(returned, *LISTENERS)
    assert dkim.DKIM(returned).verify(dnsfunc=lookup(key))

    with by_xclient(system, FRIEND) as client:
        changed = signed.replace(b"\r\n\r\nbody", b"\r\n\r\nother")
        answer = refused(client, "list@friend.test", "changed@example.org", changed)
        assert answer == (550, b"5.7.1 rejected by DMARC policy for example.test")


def test_a_stranger_becomes_a_user(system: System, key: SigningKey) -> None:
    """In one session: the filters for strangers saw the first message, the one for users the second."""
    sender = f"me@{DOMAIN}"
    with by_xclient(system, FRIEND) as client:
        content = written("a@friend.test", "first")
        first = arrived(system, client, "a@friend.test", "first@example.org", content)
        assert client.login("me", "correct horse")[0] == 235
        second = arrived(system, client, sender, "second@example.net", written(sender, "second"))
    assert "spf=pass " in results(first)
    assert b"\r\nDKIM-Signature:" not in first
    assert not results(second)
    assert dkim.DKIM(second).verify(dnsfunc=lookup(key))
    system.postfix.logged(f"client=client.example.net[{FRIEND}]", "sasl_username=me")


def test_strangers_do_not_relay(system: System, connect: Connect) -> None:
    with connect(system, FRIEND) as client:
        assert client.mail("a@friend.test")[0] == 250
        code, text = client.rcpt("anybody@example.net")
        assert (code, text[:6]) == (554, b"5.7.1 ")
