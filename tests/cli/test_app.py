"""Usage and configuration mistakes: exit code 2, one line each, on standard error."""

from pathlib import Path
from typing import Any

import pytest

from milterchain import __version__


async def test_version_and_help(command: Any) -> None:
    assert await command("--version") == (0, f"milterchain {__version__}\n", "")
    code, out, _ = await command("--help")
    assert code == 0
    for name in ("run", "check", "trace", "log-milter", "milter-check", "hash-password", "quarantine"):
        assert f"  {name} " in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["run", "--bogus"],
        ["run", "-c"],
        ["trace"],
        ["check", "extra"],
        ["trace", "/nonexistent/message.eml"],
        ["trace", "--client-addr", "nowhere", __file__],
        ["trace", "--milter", "inet:127.0.0.1:1", "--to", "Bob <bob@example.org>", __file__],
    ],
    ids=" ".join,
)
async def test_usage_mistakes(command: Any, arguments: list[str]) -> None:
    code, out, err = await command(*arguments)
    assert code == 2
    assert out == ""
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["run", "check", "trace"])
async def test_configuration_mistakes(command: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / "milterchain.toml"
    path.write_text('lisen = 1\n[log]\nlevel = "loud"\n')
    message = [str(path)] if name == "trace" else []
    code, out, err = await command(name, "-c", path, *message)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"{path}: log.level: 'loud' is not one of debug, info, warning, error",
        f"{path}: lisen: there is no such key; did you mean listen?",
    ]


async def test_mistakes_in_flags(command: Any) -> None:
    code, out, err = await command("run", "--listen", "here", "--milter", "there", "--next-hop", "where")
    assert (code, out) == (2, "")
    assert [line.split(":")[1] for line in err.splitlines()] == [
        " listen[1].address",
        " milter[1].address",
        " relay.next_hop[1]",
    ]


async def test_a_missing_file(command: Any, tmp_path: Path) -> None:
    code, _, err = await command("check", "-c", tmp_path / "none.toml")
    assert (code, err) == (2, f"{tmp_path}/none.toml: cannot be read: No such file or directory\n")
