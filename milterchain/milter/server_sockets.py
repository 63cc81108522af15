"""Unix sockets to listen on: stale files, permissions, removal."""

import contextlib
import errno
import socket
import stat
from pathlib import Path

__all__ = ["UnixSocketFile"]


class UnixSocketFile:
    """A unix socket bound to a path.

    A socket file that a dead server left there is replaced; anything else there is an error.

    Args:
        path: where.
        mode: the permissions; None leaves them to the umask.

    Attributes:
        socket: bound, not yet listening: nobody can connect before the permissions are right.

    Raises:
        OSError: the system refuses, a server listens there, or the file is no socket.
    """

    def __init__(self, path: str, mode: int | None = None) -> None:
        self._path = Path(path)
        self._make_way()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.bind(path)
            if mode is not None:
                self._path.chmod(mode)
            self._inode = self._path.stat().st_ino
        except BaseException:
            self.socket.close()
            raise

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
