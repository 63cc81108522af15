"""PROXY headers: whole, byte by byte, with a tail, and hostile."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import SMTPSyntaxError
from milterchain.smtp.proxy_header import MAX_HEADER, ProxyHeader, parse_proxy_header

SIGNATURE = bytes.fromhex("0D0A0D0A000D0A515549540A")


def v2(command: int, family: int, payload: bytes = b"", size: int | None = None) -> bytes:
    length = len(payload) if size is None else size
    return SIGNATURE + struct.pack("!BBH", command, family, length) + payload


V4 = bytes([192, 0, 2, 7, 192, 0, 2, 25]) + struct.pack("!HH", 4711, 25)
V6 = bytes.fromhex("20010db800000000000000000000000720010db8000000000000000000000025") + struct.pack(
    "!HH", 4711, 25
)
MAPPED = bytes.fromhex("00000000000000000000ffffc000020700000000000000000000ffffc0000219") + struct.pack(
    "!HH", 4711, 25
)
CLIENT = ("192.0.2.7", 4711, "192.0.2.25", 25)
CLIENT6 = ("2001:db8::7", 4711, "2001:db8::25", 25)

GOOD = [
    (b"PROXY TCP4 192.0.2.7 192.0.2.25 4711 25\r\n", CLIENT),
    (b"PROXY TCP6 2001:db8::7 2001:DB8::25 4711 25\r\n", CLIENT6),
    (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.25 4711 25\r\n", CLIENT),
    (b"PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", ("255.255.255.255", 65535, "0.0.0.0", 0)),
    (v2(0x21, 0x11, V4), CLIENT),
    (v2(0x21, 0x21, V6), CLIENT6),
    (v2(0x21, 0x21, MAPPED), CLIENT),
    (v2(0x21, 0x11, V4 + b"\x04\x00\x03abc"), CLIENT),
    (v2(0x21, 0x11, V4 + bytes(MAX_HEADER - 16 - len(V4))), CLIENT),
    (v2(0x20, 0x00), None),
    (v2(0x20, 0x11, V4), None),
    (v2(0x20, 0x31, bytes(216)), None),
]

BAD = [
    b"EHLO client.example\r\n",
    b"\r\nEHLO client.example\r\n",
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN 192.0.2.7 192.0.2.25 4711 25\r\n",
    b"proxy TCP4 192.0.2.7 192.0.2.25 4711 25\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.25 4711 25\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.25 4711 25 \r\n",
    b"PROXY TCP4  192.0.2.7 192.0.2.25 4711 25\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.25 4711\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.25 65536 25\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.25 4711 65536\r\n",
    b"PROXY TCP4 192.0.2.256 192.0.2.25 4711 25\r\n",
    b"PROXY TCP4 192.0.2.07 192.0.2.25 4711 25\r\n",
    b"PROXY TCP4 2001:db8::7 2001:db8::25 4711 25\r\n",
    b"PROXY TCP6 192.0.2.7 192.0.2.25 4711 25\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 4711 25\r\n",
    b"PROXY TCP4 192.0.2.7\0 192.0.2.25 4711 25\r\n",
    b"PROXY TCP5 192.0.2.7 192.0.2.25 4711 25\r\n",
    b"PROXY TCP4 " + b"1" * 200,
    v2(0x11, 0x11, V4),
    v2(0x22, 0x11, V4),
    v2(0x21, 0x00),
    v2(0x21, 0x12, V4),
    v2(0x21, 0x22, V6),
    v2(0x21, 0x31, bytes(216)),
    v2(0x21, 0x11, V4[:11]),
    v2(0x21, 0x21, V6[:35]),
    v2(0x21, 0x11, V4, MAX_HEADER - 15),
    v2(0x20, 0x00, size=65535),
    SIGNATURE[:11] + b"X",
]


def expected(data: bytes, client: tuple[str, int, str, int] | None) -> ProxyHeader:
    if client is None:
        return ProxyHeader(length=len(data), local=True)
    address, port, local_address, local_port = client
    return ProxyHeader(
        length=len(data), address=address, port=port, local_address=local_address, local_port=local_port
    )


@pytest.mark.parametrize(("data", "client"), GOOD)
def test_a_header(data: bytes, client: tuple[str, int, str, int] | None) -> None:
    header = expected(data, client)
    assert parse_proxy_header(data) == header
    assert parse_proxy_header(bytearray(data) + b"EHLO client.example\r\n") == header
    assert [parse_proxy_header(data[:end]) for end in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize("data", BAD)
def test_no_header(data: bytes) -> None:
    with pytest.raises(SMTPSyntaxError):
        parse_proxy_header(data)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda rest: SIGNATURE + rest)))
def test_anything_is_a_header_or_refused_or_waited_for(data: bytes) -> None:
    try:
        header = parse_proxy_header(data)
    except SMTPSyntaxError:
        return
    assert header is None or header.length <= len(data)


@given(st.binary(max_size=120))
def test_what_is_refused_stays_refused(tail: bytes) -> None:
    """A header that was waited for never grows beyond its bound."""
    for start in (b"PROXY TCP4 ", SIGNATURE + b"\x21\x11"):
        data = start + tail
        for end in range(len(data)):
            try:
                parse_proxy_header(data[:end])
            except SMTPSyntaxError:
                with pytest.raises(SMTPSyntaxError):
                    parse_proxy_header(data)
                break
