"""Unix sockets to listen on: stale files, permissions, removal."""

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
from collections.abc import Callable
from pathlib import Path

__all__ = ["UnixSocketFile"]


class UnixSocketFile:
    """A unix socket bound to a path.

    A socket file that a dead server left there is replaced; anything else there is an error.

    Args:
        path: where.
        mode: the permissions; None leaves them to the umask.
        owner: the user, by name or number; None leaves it to the system.
        group: the group, likewise.

    Attributes:
        socket: bound, not yet listening: nobody can connect before the permissions are right.

    Raises:
        OSError: the system refuses, a server listens there, or the file is no socket.
    """

    def __init__(
        self,
        path: str,
        mode: int | None = None,
        owner: str | int | None = None,
        group: str | int | None = None,
    ) -> None:
        self._path = Path(path)
        self._make_way()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.bind(path)
            self._inode = self._path.stat().st_ino
            try:
                self._own(owner, group)
                if mode is not None:
                    self._path.chmod(mode)
            except BaseException:
                self.remove()
                raise
        except BaseException:
            self.socket.close()
            raise

    def _own(self, owner: str | int | None, group: str | int | None) -> None:
        if owner is None and group is None:
            return
        try:
            os.chown(self._path, _number(owner, _user), _number(group, _group))
        except KeyError as error:
            raise OSError(errno.EINVAL, f"no such user or group: {error.args[0]}", str(self._path)) from error

    def _make_way(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.stat().st_mode):
                raise FileExistsError(errno.EEXIST, "the file exists and is no socket", str(self._path))
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)  # a full backlog answers too: somebody listens
                code = probe.connect_ex(str(self._path))
            if code != errno.ECONNREFUSED:
                raise OSError(errno.EADDRINUSE, "another server listens there", str(self._path))
            self._path.unlink()

    def remove(self) -> None:
        """Remove the file, unless somebody else has put another in its place."""
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


def _user(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _group(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _number(name: str | int | None, find: Callable[[str], int]) -> int:
    """A user's or group's number; -1 changes nothing (chown)."""
    if name is None:
        return -1
    if isinstance(name, int) or (name.isascii() and name.isdigit()):
        return int(name)
    return find(name)
