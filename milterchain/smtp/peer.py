"""Who is at the other end of a connection, and for whom it speaks with a PROXY header."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address, ip_network
from typing import Any

from milterchain.smtp.handler import SessionInfo
from milterchain.smtp.options import Listener
from milterchain.smtp.proxy_header import ProxyHeader

__all__ = ["counted_as", "proxied_info", "session_info"]

IPV6_CLIENT_PREFIX = 64
"""One IPv6 client has at least so many bits of addresses to itself (RFC 6177)."""


def counted_as(info: SessionInfo) -> str:
    """What the limits of one client count by."""
    if info.family == "6":
        return str(ip_network((info.address, IPV6_CLIENT_PREFIX), strict=False))
    return info.address


def session_info(transport: asyncio.BaseTransport, listener: Listener) -> SessionInfo:
    """What the transport knows of its peer."""
    get: Callable[[str], Any] = transport.get_extra_info
    if listener.path is not None:
        return SessionInfo(
            listener=listener.name,
            family="L",
            address=listener.path,
            local_address=listener.path,
            auth=listener.auth,
            daemon_name=listener.daemon_name,
        )
    peer, local = get("peername"), get("sockname")
    if not peer or not local:
        return SessionInfo(
            listener=listener.name,
            family="U",
            address="",
            auth=listener.auth,
            daemon_name=listener.daemon_name,
        )
    address, local_address = _plain(peer[0]), _plain(local[0])
    return SessionInfo(
        listener=listener.name,
        family="6" if ":" in address else "4",
        address=address,
        port=peer[1],
        local_address=local_address,
        local_port=local[1],
        auth=listener.auth,
        daemon_name=listener.daemon_name,
    )


def proxied_info(info: SessionInfo, header: ProxyHeader) -> SessionInfo:
    """The client that a load balancer speaks for."""
    if header.local:
        return info
    return replace(
        info,
        family="6" if ":" in header.address else "4",
        address=header.address,
        port=header.port,
        local_address=header.local_address,
        local_port=header.local_port,
        peer=info.address,
    )


def _plain(address: str) -> str:
    """An IPv4-mapped address as IPv4, and no IPv6 zone: milters know neither."""
    if ":" not in address:
        return address
    parsed = IPv6Address(address.partition("%")[0])
    return str(parsed.ipv4_mapped or parsed)
