"""XCLIENT and XFORWARD, attribute by attribute."""

from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import SMTPSyntaxError
from milterchain.smtp.handler import UNKNOWN_NAMES, ClientNames, SessionInfo
from milterchain.smtp.identity import (
    LOCAL_NAMES,
    apply_xclient,
    apply_xforward,
    is_hostname,
    is_one_of,
)

PEER = SessionInfo(
    listener="smtp",
    family="4",
    address="127.0.0.1",
    port=4711,
    local_address="127.0.0.2",
    local_port=25,
    names=LOCAL_NAMES,
)
AFTER = replace(PEER, peer="127.0.0.1")
ELSEWHERE = replace(AFTER, address="192.0.2.7", port=0, names=None)
REAL = ClientNames(name=b"c.example", ptr=b"c.example", resolve=b"OK")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (b"ADDR=192.0.2.7", ELSEWHERE),
        (b"addr=192.0.2.7", ELSEWHERE),
        (b"ADDR=IPV6:2001:DB8::7", replace(ELSEWHERE, family="6", address="2001:db8::7")),
        (b"ADDR=ipv6:2001:db8::7", replace(ELSEWHERE, family="6", address="2001:db8::7")),
        (b"ADDR=2001:db8::7", replace(ELSEWHERE, family="6", address="2001:db8::7")),
        (b"ADDR=IPV6:::ffff:192.0.2.7", ELSEWHERE),
        (b"ADDR=[UNAVAILABLE]", replace(ELSEWHERE, family="U", address="", names=UNKNOWN_NAMES)),
        (b"ADDR=192.0.2.7 NAME=c.example", replace(ELSEWHERE, names=REAL)),
        (b"NAME=c.example  ADDR=192.0.2.7", replace(ELSEWHERE, names=REAL)),
        (b"ADDR=192.0.2.7 NAME=[UNAVAILABLE]", replace(ELSEWHERE, names=UNKNOWN_NAMES)),
        (b"ADDR=192.0.2.7 NAME=unknown", replace(ELSEWHERE, names=UNKNOWN_NAMES)),
        (
            b"ADDR=192.0.2.7 NAME=[TEMPUNAVAIL]",
            replace(ELSEWHERE, names=replace(UNKNOWN_NAMES, resolve=b"TEMP")),
        ),
        (
            b"ADDR=192.0.2.7 NAME=[unavailable] REVERSE_NAME=c.example",
            replace(ELSEWHERE, names=replace(UNKNOWN_NAMES, ptr=b"c.example")),
        ),
        (
            b"ADDR=192.0.2.7 REVERSE_NAME=other.example NAME=c.example",
            replace(ELSEWHERE, names=replace(REAL, ptr=b"other.example")),
        ),
        (
            b"ADDR=192.0.2.7 NAME=c.example REVERSE_NAME=[TEMPUNAVAIL]",
            replace(ELSEWHERE, names=replace(REAL, ptr=b"unknown")),
        ),
        (
            b"ADDR=192.0.2.7 REVERSE_NAME=c.example",
            replace(ELSEWHERE, names=replace(UNKNOWN_NAMES, ptr=REAL.ptr)),
        ),
        (b"NAME=c.example", replace(AFTER, names=REAL)),
        (b"PORT=65535", replace(AFTER, port=65535)),
        (b"PORT=[UNAVAILABLE]", replace(AFTER, port=0)),
        (b"PROTO=ESMTP HELO=h.example", replace(AFTER, esmtp=True, helo=b"h.example")),
        (b"PROTO=smtp HELO=[192.0.2.7]", replace(AFTER, helo=b"[192.0.2.7]")),
        (b"HELO=a+20b+3Cc+0D+0A+3E+2B", replace(AFTER, helo=b"a?b?c???+")),
        (b"HELO=[UNAVAILABLE] PROTO=[UNAVAILABLE]", AFTER),
        (b"HELO=" + b"a" * 255, replace(AFTER, helo=b"a" * 255)),
        (b"HELO=" + b"+2B" * 255, replace(AFTER, helo=b"+" * 255)),
        (b"LOGIN=ann+2Bx@example.org", replace(AFTER, login=b"ann+x@example.org")),
        (b"LOGIN=ann+20x", replace(AFTER, login=b"ann x")),
        (b"LOGIN=[UNAVAILABLE]", AFTER),
        (b"DESTADDR=192.0.2.25 DESTPORT=587", replace(AFTER, local_address="192.0.2.25", local_port=587)),
        (b"DESTADDR=IPV6:::1", replace(AFTER, local_address="::1", local_port=0)),
        (b"DESTADDR=[UNAVAILABLE]", replace(AFTER, local_address="", local_port=0)),
    ],
)
def test_xclient(argument: bytes, expected: SessionInfo) -> None:
    assert apply_xclient(PEER, argument) == expected


def test_xclient_forgets_greeting_and_login_but_not_who_speaks() -> None:
    first = apply_xclient(PEER, b"ADDR=192.0.2.7 HELO=h PROTO=ESMTP LOGIN=ann NAME=c.example")
    assert apply_xclient(first, b"PORT=1") == replace(ELSEWHERE, names=REAL, port=1)


BAD = [
    b"",
    b"ADDR",
    b"ADDR=",
    b"=x",
    b"ADDR=192.0.2.256",
    b"ADDR=192.0.2.7/32",
    b"ADDR=c.example",
    b"ADDR=IPV6:fe80::1%eth0",
    b"ADDR=IPV6:",
    b"ADDR=192.0.2.7 ADDR=192.0.2.8",
    b"ADDR=192.0.2.7 X=y",
    b"ADDR=\xb2",
    b"NAME=a..b",
    b"NAME=-a",
    b"NAME=a+20b",
    b"NAME=192.0.2.7",
    b"NAME=" + b"a." * 127 + b"aaaa",
    b"PORT=65536",
    b"PORT=-1",
    b"PORT=x",
    b"PORT=\xc2\xb2",
    b"PROTO=LMTP",
    b"HELO=" + b"a" * 256,
    b"HELO=a+",
    b"HELO=a+2",
    b"HELO=a+2x",
    b"ADDR=[TEMPUNAVAIL]",
]


@pytest.mark.parametrize(
    "argument",
    [
        *BAD,
        b"SOURCE=LOCAL",
        b"LOGIN=ann+0D+0A",
        b"LOGIN=+00",
        b"REVERSE_NAME=a b",
        b"DESTPORT=x",
        b"DESTADDR=x",
    ],
)
def test_xclient_refused(argument: bytes) -> None:
    with pytest.raises(SMTPSyntaxError) as caught:
        apply_xclient(PEER, argument)
    assert (caught.value.code, caught.value.status) == (501, "5.5.4")


@pytest.mark.parametrize("argument", [*BAD, b"LOGIN=ann", b"SOURCE=x", b"IDENT=a+0Ab", b"DESTADDR=192.0.2.1"])
def test_xforward_refused(argument: bytes) -> None:
    with pytest.raises(SMTPSyntaxError) as caught:
        apply_xforward(PEER, None, argument)
    assert (caught.value.code, caught.value.status) == (501, "5.5.4")


NOBODY = replace(AFTER, family="U", address="", port=0, names=UNKNOWN_NAMES)
FORWARDED = replace(NOBODY, family="4", address="192.0.2.7")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([b"ADDR=192.0.2.7"], FORWARDED),
        ([b"PROTO=ESMTP"], replace(NOBODY, esmtp=True)),
        (
            [
                b"NAME=c.example ADDR=IPV6:2001:db8::7 PORT=4711",
                b"PROTO=ESMTP HELO=h IDENT=4Zk SOURCE=REMOTE",
            ],
            replace(
                FORWARDED,
                family="6",
                address="2001:db8::7",
                port=4711,
                names=REAL,
                esmtp=True,
                helo=b"h",
                ident=b"4Zk",
            ),
        ),
        ([b"ADDR=192.0.2.8 NAME=c.example", b"ADDR=192.0.2.7 NAME=[UNAVAILABLE]"], FORWARDED),
        (
            [b"NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE]", b"SOURCE=LOCAL"],
            replace(FORWARDED, address="127.0.0.1", names=LOCAL_NAMES),
        ),
        ([b"ADDR=192.0.2.7 SOURCE=LOCAL"], FORWARDED),
    ],
)
def test_xforward(arguments: list[bytes], expected: SessionInfo) -> None:
    origin = None
    for argument in arguments:
        origin = apply_xforward(PEER, origin, argument)
    assert origin == expected


@given(st.binary(max_size=80))
def test_nothing_gets_through_that_could_end_a_word(data: bytes) -> None:
    for start in (b"", b"HELO=", b"NAME=", b"LOGIN=", b"ADDR="):
        try:
            info = apply_xclient(PEER, start + data)
        except SMTPSyntaxError:
            continue
        names = info.names or UNKNOWN_NAMES
        assert not set(info.helo) & set(b' \r\n\0()<>"\\;,@')
        assert not set((info.login or b"") + names.name + names.ptr) & set(b"\r\n\0")


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        (b"a", True),
        (b"a_b.example", True),
        (b"1.example", True),
        (b"xn--zck5b2b.example", True),
        (b"a" * 63 + b".example", True),
        (b"a" * 64 + b".example", False),
        (b"", False),
        (b".", False),
        (b"a.", False),
        (b"12.34", False),
        (b"::1", False),
        (b"a\n", False),
        ("ü.example".encode(), False),
    ],
)
def test_host_names(name: bytes, valid: bool) -> None:  # noqa: FBT001
    assert is_hostname(name) == valid


def test_who_is_in_a_network() -> None:
    networks = (ip_network("127.0.0.0/8"), ip_network("2001:db8::/32"))
    assert is_one_of(PEER, networks)
    assert not is_one_of(ELSEWHERE, networks)
    assert not is_one_of(PEER, ())
    assert not is_one_of(NOBODY, (ip_network("0.0.0.0/0"),))
    assert is_one_of(replace(PEER, family="6", address="2001:db8::7"), networks)
    assert is_one_of(replace(PEER, family="L", address="/run/socket"), networks)
    assert not is_one_of(replace(PEER, family="L", address="/run/socket"), networks[1:])
