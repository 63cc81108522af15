"""XCLIENT and XFORWARD: what is told of a client, and that no value can say more than it is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.chain.client import AuthInfo, ClientInfo
from milterchain.milter.flags import Family
from milterchain.proxy.identity import Identity, identity_of, xclient_command, xforward_commands, xtext

XCLIENT = b"NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT REVERSE_NAME"
XFORWARD = b"NAME ADDR PORT PROTO HELO IDENT SOURCE"

FULL = Identity(
    address="2001:db8::7",
    port=4711,
    name=b"mail.example.net",
    ptr=b"other.example.net",
    helo=b"me.example.net",
    esmtp=True,
    login=b"ann",
    local_address="192.0.2.1",
    local_port=25,
    queue_id=b"Q1",
)


def test_all_that_is_known() -> None:
    assert xclient_command(FULL, XCLIENT) == (
        b"XCLIENT NAME=mail.example.net REVERSE_NAME=other.example.net ADDR=IPV6:2001:db8::7 PORT=4711"
        b" PROTO=ESMTP HELO=me.example.net LOGIN=ann DESTADDR=192.0.2.1 DESTPORT=25"
    )
    assert xforward_commands(FULL, XFORWARD) == [
        (
            b"XFORWARD NAME=mail.example.net ADDR=IPV6:2001:db8::7 PORT=4711 PROTO=ESMTP HELO=me.example.net"
            b" IDENT=Q1 SOURCE=REMOTE"
        )
    ]


def test_what_is_not_known_is_not_ours_either() -> None:
    nobody = Identity(address="192.0.2.7", esmtp=False)
    assert xclient_command(nobody, XCLIENT) == (
        b"XCLIENT NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=[UNAVAILABLE] PROTO=SMTP"
        b" HELO=[UNAVAILABLE] LOGIN=[UNAVAILABLE] DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE]"
    )
    local = Identity(address="", temporary=True)
    assert xforward_commands(local, b"NAME ADDR SOURCE") == [
        b"XFORWARD NAME=[TEMPUNAVAIL] ADDR=[UNAVAILABLE] SOURCE=LOCAL"
    ]


@pytest.mark.parametrize("offered", [b"addr", b"ADDR X-OTHER", b"ADDR"])
def test_only_what_is_offered(offered: bytes) -> None:
    assert xclient_command(FULL, offered) == b"XCLIENT ADDR=IPV6:2001:db8::7"
    assert xforward_commands(FULL, b"") == []


def test_long_values() -> None:
    """What Postfix does not take is cut, and XFORWARD is said in commands that fit."""
    long = Identity(address="192.0.2.7", name=b"n" * 300, helo=b"h" * 300, queue_id=b"+" * 100)
    commands = xforward_commands(long, XFORWARD)
    assert all(len(command) <= 510 or command.count(b"=") == 1 for command in commands)
    assert len(commands) == 3
    words = b" ".join(commands).replace(b"XFORWARD ", b"").split()
    assert [word.partition(b"=")[0] for word in words] == XFORWARD.split()
    assert b"NAME=" + b"n" * 255 in words
    assert b"IDENT=" + b"+2B" * 100 in words


@given(st.binary())
def test_xtext(value: bytes) -> None:
    encoded = xtext(value)
    assert re.fullmatch(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*", encoded)
    assert re.sub(rb"\+(..)", lambda match: bytes([int(match[1], 16)]), encoded) == value


@given(name=st.binary(), helo=st.binary(), login=st.none() | st.binary(), queue_id=st.binary())
def test_no_value_can_add_a_word(name: bytes, helo: bytes, login: bytes | None, queue_id: bytes) -> None:
    client = Identity(address="192.0.2.7", name=name, ptr=name, helo=helo, login=login, queue_id=queue_id)
    for command in (xclient_command(client, XCLIENT), *xforward_commands(client, XFORWARD)):
        verb, *words = command.split(b" ")
        assert verb in {b"XCLIENT", b"XFORWARD"}
        assert all(re.fullmatch(rb"[A-Z_]+=[!-<>-~]+", word) for word in words)


def test_the_identity_of_a_client() -> None:
    client = ClientInfo(
        address="192.0.2.7",
        family=Family.INET,
        port=4711,
        resolve=b"TEMP",
        local_address="192.0.2.1",
        local_port=25,
        auth=AuthInfo(mechanism=b"PLAIN", identity=b"ann"),
    )
    identity = identity_of(client, b"me", esmtp=True, queue_id=b"Q1")
    assert identity == Identity(
        address="192.0.2.7",
        port=4711,
        temporary=True,
        helo=b"me",
        login=b"ann",
        local_address="192.0.2.1",
        local_port=25,
    )
    assert identity.queue_id == b"Q1"
    assert identity.without_login().login is None


@pytest.mark.parametrize("family", [Family.UNIX, Family.UNKNOWN])
def test_a_client_without_an_address(family: Family) -> None:
    client = ClientInfo(address="/run/smtp", family=family, local_address="/run/smtp")
    identity = identity_of(client, b"me", esmtp=False)
    assert (identity.address, identity.local_address, identity.esmtp) == ("", "", False)
