"""The file of users: lines, changes, mistakes."""

import os
from pathlib import Path

import pytest

from milterchain.proxy import users as users_module
from milterchain.proxy.passwords import PasswordHash
from milterchain.proxy.users import UsersFile, parse_users
from milterchain.smtp.sasl import Credentials

SECRET = PasswordHash.make(b"secret")
OTHER = PasswordHash.make("schlüssel".encode())


def credentials(login: bytes, password: bytes) -> Credentials:
    return Credentials(mechanism="PLAIN", login=login, password=password)


async def test_who_is_known(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(f"# comment\n\nann:{SECRET}\r\njörg@example.org:{OTHER}\n", encoding="utf-8")
    users = UsersFile(path)
    for login, password, known in (
        (b"ann", b"secret", True),
        (b"ann", b"wrong", False),
        (b"Ann", b"secret", False),
        (b"bob", b"secret", False),
        (b"bob", b"", False),
        (b"\xff", b"secret", False),
        ("jörg@example.org".encode(), "schlüssel".encode(), True),
        ("jörg@example.org".encode(), b"secret", False),
    ):
        assert await users.verify(credentials(login, password)) is known


async def test_a_change_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "users"
    path.write_text(f"ann:{SECRET}\n")
    users = UsersFile(path)

    def replace(text: str) -> None:
        new = tmp_path / "new"
        new.write_text(text)
        os.utime(new, (1, 1))
        new.rename(path)

    replace(f"bob:{SECRET}\n")
    assert await users.verify(credentials(b"bob", b"secret"))
    assert not await users.verify(credentials(b"ann", b"secret"))
    replace("no hash")
    for _ in range(2):
        assert await users.verify(credentials(b"bob", b"secret"))
    assert caplog.text.count("the old users stay in force") == 1
    path.unlink()
    assert await users.verify(credentials(b"bob", b"secret"))


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("ann", "users: line 1 is not LOGIN:HASH"),
        (f":{SECRET}", "users: line 1 is not LOGIN:HASH"),
        ("\nann:secret", "users: line 2: the hash of ann is no scrypt hash; `milterchain hash-password`"),
        (f"ann:{SECRET}\nann:{SECRET}", "users: line 2: ann stands in an earlier line, too"),
    ],
    ids=["no hash", "no login", "no scrypt hash", "twice"],
)
def test_mistakes(text: str, mistake: str) -> None:
    with pytest.raises(ValueError, match=mistake):
        parse_users(text, "users")


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        UsersFile(tmp_path / "users")
    (tmp_path / "users").write_bytes(b"ann\xff:")
    with pytest.raises(ValueError, match="byte 3 is not UTF-8"):
        UsersFile(tmp_path / "users")
    monkeypatch.setattr(users_module, "MAX_FILE", 3)
    with pytest.raises(ValueError, match="is too large"):
        UsersFile(tmp_path / "users")
