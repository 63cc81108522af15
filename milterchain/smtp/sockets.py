"""Sockets to listen on."""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["Address", "UnixSocketFile", "tcp_socket", "unix_socket"]

Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
"""As `getaddrinfo` returns it."""


class UnixSocketFile:
    """The file of a Unix socket, which outlives the socket unless somebody removes it."""

    __slots__ = ("_made", "_path")

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._made = self._path.stat()

    def remove(self) -> None:
        """Remove it, unless it is gone, or another process has put its own there since."""
        with suppress(OSError):
            if os.path.samestat(self._path.stat(), self._made):
                self._path.unlink()


def tcp_socket(family: int, address: Address, *, reuse_port: bool) -> socket.socket:
    """A bound socket whose connections have TCP_NODELAY set."""
    # asyncio does so only if the listener was made with this protocol number. Without it each group of
    # pipelined replies waits 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # "[::]" leaves "0.0.0.0" to a listener of its own.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def unix_socket(path: str, mode: int | None) -> socket.socket:
    """A bound socket; one that a dead process has left behind is removed."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(Path(path).stat().st_mode) and not _answers(path):
            Path(path).unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(path)
        if mode is not None:
            Path(path).chmod(mode)
    except OSError:
        sock.close()
        raise
    return sock


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        return True
