"""Make the connection of an SMTP client."""

import asyncio
import os
import ssl
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from milterchain.errors import NextHopConnectError, NextHopTLSError
from milterchain.smtp.client_options import Address, ClientOptions
from milterchain.smtp.client_tls import tls_reason

__all__ = ["connect", "stays_here"]


async def connect(protocol: Callable[[], asyncio.Protocol], address: Address, options: ClientOptions) -> None:
    """Connect, within `connect_timeout` for all addresses of the host together.

    Raises:
        NextHopConnectError: no connection could be made; the text names the address.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(options.connect_timeout):
            if isinstance(address, str):
                await loop.create_unix_connection(protocol, address)
            else:
                tls = options.tls
                secure: dict[str, Any] = (
                    {"ssl": tls.context, "server_hostname": address[0]} if tls and tls.implicit else {}
                )
                await loop.create_connection(protocol, *address, **secure)
    except ssl.SSLError as error:
        raise NextHopTLSError(f"no TLS with {_show(address)}: {tls_reason(error)}") from error
    except TimeoutError as error:
        seconds = options.connect_timeout
        raise NextHopConnectError(f"no connection to {_show(address)} within {seconds:g} s") from error
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no resolver can be asked for
        raise NextHopConnectError(f"no connection to {_show(address)}: {_reason(error)}") from error


def stays_here(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer is on this machine for certain: what is said to it meets no network."""
    peer: Any = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return ip_address(peer[0].partition("%")[0]).is_loopback
    return isinstance(peer, str | bytes)  # the path of a Unix socket; None: it is gone already


def _show(address: Address) -> str:
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: Exception) -> str:
    # asyncio's own text repeats the address instead of saying what the error number means.
    number = getattr(error, "errno", None) or 0
    return f"[Errno {number}] {os.strerror(number)}" if number > 0 else str(error)
