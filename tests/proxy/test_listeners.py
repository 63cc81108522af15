"""What the configuration of listeners becomes, and one line for each file that cannot be used."""

from pathlib import Path
from typing import Any

import pytest

from milterchain.config import parse
from milterchain.errors import ConfigurationError
from milterchain.proxy.app import App
from milterchain.proxy.listeners import build_listeners

CERTIFICATES = Path(__file__).parents[1] / "certificates"
PAIR = {"certificate": str(CERTIFICATES / "server.pem"), "key": str(CERTIFICATES / "server.key")}


def listeners(*tables: dict[str, Any], base: Path = CERTIFICATES) -> Any:
    addressed = [{"address": f"127.0.0.1:{number}", **table} for number, table in enumerate(tables, 2001)]
    return build_listeners(parse({"listen": addressed}, "test", base).listen)


def test_every_key_arrives(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("")
    tls = {
        **PAIR,
        "mode": "implicit",
        "required": True,
        "minimum_version": "1.3",
        "ciphers": "HIGH",
        "client_certificates": "request",
        "client_ca": str(CERTIFICATES / "authority.pem"),
    }
    auth = {"backend": "file", "path": "users", "allow_plaintext": True, "required": True}
    plain, unix, secured, submission = listeners(
        {"name": "plain"},
        {"address": "unix:x"},
        {"tls": tls, "auth": auth},
        {"tls": PAIR, "auth": {"backend": "next-hop"}},
        base=tmp_path,
    )
    assert (plain.name, plain.host, plain.port, plain.tls, plain.auth) == (
        "plain",
        "127.0.0.1",
        2001,
        None,
        None,
    )
    assert unix.path == str(tmp_path / "x")
    settings = secured.tls.settings
    assert (settings.implicit, settings.required, settings.minimum_version) == (True, True, "1.3")
    assert (settings.ciphers, settings.client_certificates) == ("HIGH", "request")
    assert settings.client_ca == CERTIFICATES / "authority.pem"
    assert (secured.auth.allow_plaintext, secured.auth.required) == (True, True)
    assert secured.auth.verify is not None
    assert (submission.tls.settings.implicit, submission.auth.required) == (False, False)
    assert submission.auth.verify is None


def test_mistakes_in_files(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ann")
    with pytest.raises(ConfigurationError) as caught:
        listeners(
            {"tls": {**PAIR, "certificate": "none.pem"}},
            {},
            {"tls": {**PAIR, "key": str(CERTIFICATES / "renewed.key")}},
            {"tls": {**PAIR, "ciphers": "NONSENSE"}},
            {"auth": {"backend": "file", "path": "users", "allow_plaintext": True}},
            {"auth": {"backend": "file", "path": "nobody", "allow_plaintext": True}},
            base=tmp_path,
        )
    pair = f"{PAIR['certificate']} and {CERTIFICATES / 'renewed.key'}"
    assert caught.value.mistakes == (
        f"listen[1].tls: {tmp_path}/none.pem: No such file or directory",
        f"listen[3].tls: {pair}: the key does not belong to the certificate",
        "listen[4].tls: 'NONSENSE' has no cipher that OpenSSL knows",
        f"listen[5].auth: {tmp_path}/users: line 1 is not LOGIN:HASH",
        f"listen[6].auth: {tmp_path}/nobody: No such file or directory",
    )


def test_an_app_says_so_before_it_starts(tmp_path: Path) -> None:
    document = {"listen": [{"tls": {"certificate": "none.pem"}}], "relay": {"next_hop": ["discard:"]}}
    with pytest.raises(ConfigurationError, match="No such file"):
        App(parse(document, "test", tmp_path))
