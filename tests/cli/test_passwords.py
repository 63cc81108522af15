"""`milterchain hash-password`."""

import io
import subprocess
import sys
from typing import Any

import pytest

from milterchain.cli import passwords
from milterchain.proxy.users import parse_users


class Pipe(io.TextIOWrapper):
    def __init__(self, octets: bytes, *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(octets))
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("octets", [b"secret", b"secret\n", b"secret\r\nmore"])
async def test_from_a_pipe(command: Any, monkeypatch: pytest.MonkeyPatch, octets: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(octets))
    code, out, err = await command("hash-password", "ann@example.org")
    assert (code, err) == (0, "")
    (made,) = parse_users(out, "users").items()
    assert made[0] == b"ann@example.org"
    assert made[1].fits(b"secret")


async def test_at_a_terminal(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(b"", terminal=True))
    answers = iter(["schlüssel", "schlüssel", "one", "two"])
    monkeypatch.setattr(passwords, "getpass", lambda _: next(answers))
    _, out, _ = await command("hash-password", "ann")
    assert parse_users(out, "users")[b"ann"].fits("schlüssel".encode())
    assert await command("hash-password", "ann") == (2, "", "the passwords differ\n")


@pytest.mark.parametrize("octets", [b"", b"\n", b"a\0b\n"])
async def test_no_password(command: Any, monkeypatch: pytest.MonkeyPatch, octets: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(octets))
    code, out, err = await command("hash-password", "ann")
    assert (code, out) == (2, "")
    assert "at least one character" in err


@pytest.mark.parametrize("login", ["", "a:b", "#ann", " ann", "a\nb"])
async def test_no_login(command: Any, login: str) -> None:
    code, out, err = await command("hash-password", login)
    assert (code, out) == (2, "")
    assert "cannot be a login" in err


def test_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "milterchain", "hash-password", "ann"],
        input=b"secret\n",
        capture_output=True,
        check=True,
    )
    assert parse_users(done.stdout.decode(), "users")[b"ann"].fits(b"secret")
