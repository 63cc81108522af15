"""Where a milter listens, in the spellings of Postfix and of Sendmail."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

__all__ = ["Dialer", "Endpoint", "parse_endpoint"]

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05
"""Seconds between attempts while the backlog of a unix socket is full."""

_P = TypeVar("_P", bound=asyncio.BaseProtocol)
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
_FORMS = "inet:HOST:PORT, inet6:HOST:PORT, unix:/PATH, local:/PATH, inet:PORT@HOST or inet6:PORT@HOST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address: a path, or a host and a port.

    Attributes:
        path: of a unix socket, None for TCP.
        host: a name or an address without brackets.
        port: 1 to 65535; 0 only where it is listened on (the system chooses).
        family: `inet` takes whatever the name resolves to, `inet6` IPv6 only.
    """

    path: str | None = None
    host: str = ""
    port: int = 0
    family: str = "inet"

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.family}:{host}:{self.port}"

    async def connect(self, factory: Callable[[], _P]) -> tuple[asyncio.Transport, _P]:
        """Connect.

        Raises:
            OSError: as the system says.
        """
        loop = asyncio.get_running_loop()
        if self.path is not None:
            unix = await _connect_unix(self.path)
            try:
                return await loop.create_unix_connection(factory, sock=unix)
            except BaseException:
                unix.close()
                raise
        family = socket.AF_INET6 if self.family == "inet6" else socket.AF_UNSPEC
        try:
            return await loop.create_connection(factory, self.host, self.port, family=family)
        except ValueError:  # of the codec for host names, which knows no OSError
            raise OSError(f"{self.host!r} is no host name") from None


Dialer: TypeAlias = Callable[[Endpoint, Callable[[], asyncio.BaseProtocol]], Awaitable[object]]
"""Makes a connection to an endpoint, with the protocol that the function makes, as `Endpoint.connect` does:
over TLS, from a certain source address, through a tunnel. Gives up when it is cancelled. The endpoint's kind,
path or host, is also the kind of the socket."""


async def _connect_unix(path: str) -> socket.socket:
    """Connect to a unix socket, and wait while its backlog is full.

    A full backlog is EAGAIN on a socket that does not block. asyncio takes that for a connection under way
    (which unix sockets do not have) and uvloop for a failure; a blocking MTA waits, and so does this. The
    kernel tells nobody when there is room again.
    """
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unix.setblocking(False)
        pause = _FIRST_PAUSE
        while True:
            try:
                unix.connect(path)
            except BlockingIOError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                return unix
    except BaseException:
        unix.close()
        raise


def parse_endpoint(text: str, *, listening: bool = False) -> Endpoint:
    """Read an address.

    Args:
        text: the address.
        listening: whether it is to be listened on: then port 0, which the system replaces, is one, too.

    Raises:
        ValueError: it is none; the text says why and what is allowed.
    """
    kind, _, rest = text.partition(":")
    if kind in {"unix", "local"}:
        if not rest.startswith("/"):
            raise ValueError(f"{text!r}: the path of a unix socket begins with /")
        return Endpoint(path=rest)
    if kind not in _FAMILIES:
        raise ValueError(f"{text!r} is no milter address; write {_FORMS}")
    if "@" in rest:
        port, _, host = rest.partition("@")
    else:
        host, _, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host:
        missing = "port" if port and not port.isdigit() else "host"
        raise ValueError(f"{text!r} names no {missing}; write {_FORMS}")
    least = 0 if listening else 1
    if not (port.isascii() and port.isdigit()) or not least <= int(port) <= 0xFFFF:
        raise ValueError(f"{text!r}: the port is a number from {least} to 65535")
    return Endpoint(host=host, port=int(port), family=kind)
