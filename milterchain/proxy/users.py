"""The file of users: who may log in, with what password.

One user a line, `LOGIN:HASH`, as `milterchain hash-password` prints it; empty lines, and lines that begin
with `#`, are skipped. Logins are compared octet by octet. A file that has changed is read again at the next
login; if it cannot be used then, what was known before stays in force and the log says why.

A login that nobody has takes as long as a wrong password, so that nobody learns who has an account.
"""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from milterchain.proxy.passwords import PasswordHash
from milterchain.smtp.sasl import Credentials

__all__ = ["UsersFile", "parse_users"]

THREADS: Final = 2
"""Logins that are checked at the same time: each takes a core, and mail should go on meanwhile."""
MAX_FILE: Final = 16 * 2**20

_logger = logging.getLogger(__name__)


class UsersFile:
    """A file of users.

    Args:
        path: where it is.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is wrong; the text names it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._look()
        self._users = _read(path)
        self._nobody = PasswordHash.of_nobody()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="login")

    async def verify(self, credentials: Credentials) -> bool:
        """Whether there is such a user, with such a password."""
        self._renew()
        known = self._users.get(credentials.login)
        fits = await asyncio.get_running_loop().run_in_executor(
            self._threads, (known or self._nobody).fits, credentials.password
        )
        return fits and known is not None

    def _look(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _renew(self) -> None:
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._users = _read(self._path)
        except (OSError, ValueError) as error:
            _logger.warning("the old users stay in force: %s", error)


def parse_users(text: str, where: str) -> dict[bytes, PasswordHash]:
    """Read what a file of users says.

    Args:
        text: the file.
        where: what a mistake begins with.

    Raises:
        ValueError: a line is wrong.
    """
    users: dict[bytes, PasswordHash] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        login, colon, written = line.strip().partition(":")
        if not login or not colon:
            raise ValueError(f"{where}: line {number} is not LOGIN:HASH")
        if login.encode() in users:
            raise ValueError(f"{where}: line {number}: {login} stands in an earlier line, too")
        try:
            users[login.encode()] = PasswordHash.parse(written)
        except ValueError as error:
            raise ValueError(f"{where}: line {number}: the hash of {login} {error}") from None
    return users


def _read(path: Path) -> Mapping[bytes, PasswordHash]:
    with path.open("rb") as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise ValueError(f"{path}: is too large; {MAX_FILE} bytes are allowed")
    try:
        return parse_users(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None
