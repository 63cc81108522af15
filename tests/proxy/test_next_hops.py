"""What a configuration says about next hops, and what is wrong with the files that it names."""

from pathlib import Path
from typing import Any

import pytest

from milterchain.config import Config, parse
from milterchain.errors import ConfigurationError
from milterchain.proxy.next_hops import build_next_hops
from milterchain.smtp.client_auth import Credentials

AUTHORITY = Path(__file__).parents[1] / "certificates" / "authority.pem"


def config(directory: Path, **relay: Any) -> Config:
    return parse({"relay": {"next_hop": ["discard:"], **relay}}, "test", directory)


async def test_the_defaults(tmp_path: Path) -> None:
    options = build_next_hops(config(tmp_path)).options
    assert (options.identity, options.credentials) == ("auto", None)
    assert options.client.tls is not None
    assert options.client.tls.opportunistic


async def test_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"pass w\xc3\xb6rd\r\nremark\n")
    auth = {"user": "me", "password_file": "password"}
    made = config(tmp_path, tls="verify", tls_ca_file=str(AUTHORITY), auth=auth, client_identity="none")
    options = build_next_hops(made).options
    assert options.client.tls is not None
    assert (options.client.tls.level, options.identity) == ("verify", "none")
    assert options.credentials == Credentials(user=b"me", password="pass wörd".encode())
    assert "pass" not in repr(options.credentials).replace("password", "")
    assert build_next_hops(config(tmp_path, tls="none")).options.client.tls is None


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot be read: No such file"),
        (b"", "its first line is no password"),
        (b"\nx", "its first line is no password"),
        (b"x" * 1001, "its first line is no password"),
    ],
)
async def test_password_files(tmp_path: Path, content: bytes | None, line: str) -> None:
    if content is not None:
        (tmp_path / "password").write_bytes(content)
    made = config(tmp_path, auth={"user": "me", "password_file": "password"})
    with pytest.raises(ConfigurationError) as error:
        build_next_hops(made)
    (mistake,) = error.value.mistakes
    assert mistake.startswith(f"relay.auth.password_file: {tmp_path / 'password'}: {line}")


@pytest.mark.parametrize("content", [None, b"no certificate\n"])
async def test_authority_files(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(ConfigurationError) as error:
        build_next_hops(config(tmp_path, tls="verify", tls_ca_file="ca.pem"))
    (mistake,) = error.value.mistakes
    assert mistake.startswith(f"relay.tls_ca_file: {tmp_path / 'ca.pem'}: ")
