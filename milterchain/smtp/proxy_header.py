"""The PROXY protocol, versions 1 and 2: whom a load balancer speaks for. No I/O.

`parse_proxy_header` looks at what has come in so far, and answers the header with its length, or None if it
is not complete yet. What can no longer become a header raises SMTPSyntaxError.

The header decides who may relay, so nothing is guessed (as in Postfix, haproxy_srvr.c): one that names no
TCP client (`UNKNOWN`, UNSPEC, UDP, Unix sockets) is refused, because the balancer's own address, which would
stand in for the client's, may be one that is trusted. Only LOCAL, by which a balancer speaks for itself (its
health checks), leaves the addresses as the socket has them. TLVs are skipped.
"""

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from milterchain.errors import SMTPSyntaxError

__all__ = ["MAX_HEADER", "ProxyHeader", "parse_proxy_header"]

MAX_HEADER: Final = 4096
"""Octets of a header: room for the TLVs of a balancer that tells all it knows of a TLS session."""

_MAX_V1: Final = 107
"""Octets of the longest header of version 1, its line end included."""
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = len(_SIGNATURE) + 4
_V1: Final = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ([0-9]{1,5}) ([0-9]{1,5})\r\n")
_LOCAL, _PROXY = 0x20, 0x21
_ADDRESSES: Final = {0x11: struct.Struct("!4s4sHH"), 0x21: struct.Struct("!16s16sHH")}
"""By family and transport: TCP over IPv4, TCP over IPv6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyHeader:
    """What a header says.

    Attributes:
        length: its octets.
        local: it speaks for the balancer itself; the rest is empty.
        address: the client's IP address, an IPv4-mapped one as IPv4.
        port: the client's.
        local_address: the address that the client connected to.
        local_port: its port.
    """

    length: int
    local: bool = False
    address: str = ""
    port: int = 0
    local_address: str = ""
    local_port: int = 0


def parse_proxy_header(data: bytes | bytearray) -> ProxyHeader | None:
    """Read the header at the beginning of `data`; None if more is needed.

    Raises:
        SMTPSyntaxError: there is no header that could be used.
    """
    start = bytes(data[:MAX_HEADER])
    if _begins(start, _SIGNATURE):
        return _version_2(start)
    if _begins(start, b"PROXY TCP"):
        return _version_1(start)
    raise SMTPSyntaxError("no PROXY header of a TCP connection")


def _begins(data: bytes, prefix: bytes) -> bool:
    return prefix.startswith(data[: len(prefix)])


def _version_1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\n", 0, _MAX_V1)
    if end < 0:
        if len(data) >= _MAX_V1:
            raise SMTPSyntaxError("a PROXY header without an end")
        return None
    match = _V1.fullmatch(data[: end + 1])
    if match is None:
        raise SMTPSyntaxError("bad syntax of a PROXY header")
    kind = IPv4Address if match[1] == b"4" else IPv6Address
    source_port, target_port = int(match[4]), int(match[5])
    if max(source_port, target_port) > 65535:
        raise SMTPSyntaxError("bad port in a PROXY header")
    try:
        source, target = kind(match[2].decode()), kind(match[3].decode())
    except ValueError:
        raise SMTPSyntaxError("bad address in a PROXY header") from None
    return _header(end + 1, source, target, source_port, target_port)


def _version_2(data: bytes) -> ProxyHeader | None:
    if len(data) < _FIXED:
        return None
    command, family, size = struct.unpack_from("!BBH", data, len(_SIGNATURE))
    length = _FIXED + size
    if command not in {_LOCAL, _PROXY}:
        raise SMTPSyntaxError(f"command {command:#04x} in a PROXY header")
    if length > MAX_HEADER:
        raise SMTPSyntaxError("a PROXY header that is too long")
    addresses = _ADDRESSES.get(family)
    if command == _PROXY and (addresses is None or size < addresses.size):
        raise SMTPSyntaxError(f"family {family:#04x} with {size} octets in a PROXY header")
    if len(data) < length:
        return None
    if command == _LOCAL or addresses is None:
        return ProxyHeader(length=length, local=True)
    source, target, source_port, target_port = addresses.unpack_from(data, _FIXED)
    kind = IPv4Address if family == 0x11 else IPv6Address
    return _header(length, kind(source), kind(target), source_port, target_port)


def _header(
    length: int,
    source: IPv4Address | IPv6Address,
    target: IPv4Address | IPv6Address,
    port: int,
    local_port: int,
) -> ProxyHeader:
    return ProxyHeader(
        length=length, address=_plain(source), port=port, local_address=_plain(target), local_port=local_port
    )


def _plain(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
