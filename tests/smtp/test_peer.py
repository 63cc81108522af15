"""What handlers are told of the peer."""

import asyncio

import pytest

from milterchain.smtp.handler import SessionInfo
from milterchain.smtp.options import Listener
from milterchain.smtp.peer import counted_as, session_info

TCP = Listener(name="in", host="::", port=25)


@pytest.mark.parametrize(
    ("peer", "local", "expected"),
    [
        (("192.0.2.1", 4000), ("192.0.2.2", 25), ("4", "192.0.2.1", 4000, "192.0.2.2", 25)),
        (
            ("2001:db8::1", 4000, 0, 0),
            ("2001:DB8:0::2", 25, 0, 0),
            ("6", "2001:db8::1", 4000, "2001:db8::2", 25),
        ),
        (
            ("::ffff:192.0.2.1", 4, 0, 0),
            ("::ffff:192.0.2.2", 25, 0, 0),
            ("4", "192.0.2.1", 4, "192.0.2.2", 25),
        ),
        (("fe80::1%eth0", 4, 0, 2), ("fe80::2%eth0", 25, 0, 2), ("6", "fe80::1", 4, "fe80::2", 25)),
        (None, ("192.0.2.2", 25), ("U", "", 0, "", 0)),
        (("192.0.2.1", 4000), None, ("U", "", 0, "", 0)),
    ],
)
def test_tcp(peer, local, expected):
    info = session_info(asyncio.BaseTransport({"peername": peer, "sockname": local}), TCP)
    assert info.listener == "in"
    assert (info.family, info.address, info.port, info.local_address, info.local_port) == expected


def test_unix():
    info = session_info(asyncio.BaseTransport({"peername": ""}), Listener(path="/run/x"))
    assert (info.family, info.address, info.port) == ("L", "/run/x", 0)
    assert (info.local_address, info.local_port) == ("/run/x", 0)


def test_ipv6_clients_are_counted_by_prefix():
    def info(address):
        return SessionInfo(listener="smtp", family="6", address=address)

    assert counted_as(info("2001:db8::1")) == counted_as(info("2001:db8::2:3"))
    assert counted_as(info("2001:db8::1")) != counted_as(info("2001:db8:0:1::1"))


def test_ipv4_clients_are_counted_by_address():
    assert counted_as(SessionInfo(listener="smtp", family="4", address="192.0.2.1")) == "192.0.2.1"
