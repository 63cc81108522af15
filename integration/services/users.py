"""A file of users, made with the command that makes them: `milterchain hash-password`."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from integration.services.process import Run


def make_users_file(run: Run, *users: tuple[str, str], name: str = "users") -> Path:
    """Hash the passwords, and return the file.

    Args:
        run: that owns it.
        users: logins and passwords.
        name: of its directory.
    """
    path = run.place(name) / "users"
    path.write_bytes(b"".join(_line(login, password) for login, password in users))
    return path


def _line(login: str, password: str) -> bytes:
    command: Sequence[str] = (sys.executable, "-m", "milterchain", "hash-password", login)
    return subprocess.run(command, input=f"{password}\n".encode(), capture_output=True, check=True).stdout
