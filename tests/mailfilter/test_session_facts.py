import ipaddress

import pytest

from milterchain.mailfilter import MTA, Connection, Helo
from milterchain.milter.flags import Command, Family
from milterchain.milter.macros import MacroStore
from milterchain.milter.messages import Connect


def macros(**values: bytes) -> MacroStore:
    store = MacroStore()
    store.define(Command.CONNECT, [(name.encode(), value) for name, value in values.items()])
    return store


@pytest.mark.parametrize(
    ("version", "name", "sendmail"),
    [
        ("Postfix 3.7.11", "mx", False),
        ("8.17.1.9", "mx", True),
        ("8.17.1", "", True),
        ("", "mx", True),  # Postfix tells its version unasked
        ("", "", False),
        ("milterchain 0.1", "mx", False),
        ("12", "mx", False),
    ],
)
def test_sendmail_is_recognised(version, name, sendmail):
    mta = MTA.from_macros(macros(v=version.encode(), j=name.encode(), daemon_name=b"smtpd"))
    assert mta == MTA(version=version, name=name, daemon="smtpd")
    assert mta.is_sendmail is sendmail
    assert mta.header_index == ("sendmail" if sendmail else "postfix")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            Connect(hostname=b"c.test", family=Family.INET, port=25, address=b"192.0.2.1"),
            Connection(host="c.test", family=Family.INET, port=25, address="192.0.2.1"),
        ),
        (
            Connect(hostname=b"c.test", family=Family.INET6, port=25, address=b"IPv6:2001:db8::1"),
            Connection(host="c.test", family=Family.INET6, port=25, address="2001:db8::1"),
        ),
        (
            Connect(hostname=b"c.test", family=Family.INET6, port=25, address=b"2001:db8::1"),
            Connection(host="c.test", family=Family.INET6, port=25, address="2001:db8::1"),
        ),
        (
            Connect(hostname=b"localhost", family=Family.UNIX, address=b"/run/ipv6:"),
            Connection(host="localhost", family=Family.UNIX, address="/run/ipv6:"),
        ),
        (Connect(hostname=b"\xff"), Connection(host="\\xff")),
    ],
)
def test_who_is_connected(event, expected):
    assert Connection.from_milter(event, MacroStore()) == expected


@pytest.mark.parametrize(
    ("values", "interface", "local"),
    [
        ({"if_name": b"eth0", "if_addr": b"192.0.2.9"}, "eth0", "192.0.2.9"),
        ({"daemon_addr": b"192.0.2.8"}, "", "192.0.2.8"),
        ({}, "", ""),
    ],
)
def test_where_it_is_connected_to(values, interface, local):
    found = Connection.from_milter(Connect(hostname=b"c"), macros(**values))
    assert (found.interface, found.local_address) == (interface, local)


@pytest.mark.parametrize(
    ("address", "ip"),
    [
        ("192.0.2.1", ipaddress.IPv4Address("192.0.2.1")),
        ("2001:db8::1", ipaddress.IPv6Address("2001:db8::1")),
        ("/run/socket", None),
        ("", None),
    ],
)
def test_the_address_as_a_value(address, ip):
    assert Connection(address=address).ip == ip


def test_the_greeting_with_tls():
    given = macros(
        tls_version=b"TLSv1.3",
        cipher=b"TLS_AES_256_GCM_SHA384",
        cipher_bits=b"256",
        cert_subject=b"Joe",
        cert_issuer=b"CA",
    )
    helo = Helo.from_milter(b"c.test", given)
    assert helo == Helo(
        name="c.test",
        tls_version="TLSv1.3",
        cipher="TLS_AES_256_GCM_SHA384",
        cipher_bits=256,
        cert_subject="Joe",
        cert_issuer="CA",
    )
    assert helo.tls


@pytest.mark.parametrize("bits", [b"", b"many", b"-1", "\u0663".encode(), b"9" * 5000])
def test_the_greeting_without_tls_or_with_nonsense(bits):
    helo = Helo.from_milter(b"c.test", macros(cipher_bits=bits))
    assert helo == Helo(name="c.test")
    assert not helo.tls
