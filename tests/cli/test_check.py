"""`milterchain check`: a row for each milter and next hop, and the exit code."""

import errno
import ssl
from pathlib import Path
from typing import Any

import pytest

from milterchain.milter.flags import Action, Protocol
from milterchain.milter.messages import OptNeg
from milterchain.testing import ScriptedMilter, ScriptedNextHop, refusing_address
from milterchain.testing.scripted_next_hop import KEYWORDS


def write(directory: Path, *lines: str) -> Path:
    path = directory / "milterchain.toml"
    path.write_text("\n".join(lines))
    return path


async def test_all_is_well(command: Any, tmp_path: Path) -> None:
    answer = OptNeg(
        version=6,
        actions=Action.ADD_HEADERS | Action.QUARANTINE,
        protocol=Protocol.NO_BODY | Protocol.NO_REPLY_HELO | Protocol.SKIP,
    )
    async with (
        ScriptedMilter(negotiate=answer) as milter,
        ScriptedMilter(unix_path=tmp_path / "m.sock") as other,
        ScriptedNextHop(keywords=(*KEYWORDS, "CHUNKING", "BINARYMIME")) as hop,
    ):
        path = write(
            tmp_path,
            f'[[milter]]\nname = "one"\naddress = "{milter.endpoint}"',
            '[[milter]]\nname = "two"\naddress = "unix:m.sock"',
            f'[relay]\nnext_hop = ["{hop.next_hop}", "discard:", "maildir:mail"]',
        )
        code, out, err = await command("check", "-c", path)
    assert (code, err) == (0, "")
    title, one, two, breaker, smtp, discard, maildir = out.splitlines()
    assert title.split() == ["What", "Name", "Address", "Version", "Time", "Details"]
    assert one.split()[:5] == ["ok", "milter", "one", milter.endpoint, "6"]
    assert one.endswith("  may add headers, quarantine; not sent: body; no answer to: helo; knows: skip")
    assert two.split()[:4] == ["ok", "milter", "two", other.endpoint]
    assert breaker.split()[:3] == ["ok", "breaker", f"{tmp_path}/breaker"]
    assert breaker.endswith("  leaves a milter alone after 5 failures in a row, for 10 s at most")
    assert smtp.split()[:4] == ["ok", "next", "hop", hop.next_hop]
    assert "next-hop.test" in smtp
    assert "offers SMTPUTF8, DSN, BINARYMIME, SIZE 52428800" in smtp
    assert discard.startswith("ok")
    assert maildir.startswith("ok")
    # It says QUIT, and nothing of a message.
    assert (await milter.wait_closed()).codes == "OQ"
    assert hop.connections[0].verbs == "EHLO QUIT"


async def test_what_fails_says_why(command: Any, tmp_path: Path) -> None:
    with refusing_address() as (host, port):
        path = write(
            tmp_path,
            f'[[milter]]\nname = "refuses"\naddress = "inet:{host}:{port}"',
            '[[milter]]\nname = "missing"\naddress = "unix:none.sock"',
            f'[relay]\nnext_hop = ["smtp:{host}:{port}"]',
        )
        code, out, _ = await command("check", "-c", path)
    assert code == 1
    _, refuses, missing, breaker, hop = out.splitlines()
    assert breaker.startswith("ok ")
    assert all(line.startswith("FAILED") for line in (refuses, missing, hop))
    assert errno.errorcode[errno.ECONNREFUSED] in refuses
    assert errno.errorcode[errno.ENOENT] in missing
    assert f"{tmp_path}/none.sock" in missing


@pytest.mark.parametrize(
    ("keywords", "shown"),
    [
        (("XCLIENT ADDR", "XFORWARD ADDR"), "told of clients by XCLIENT"),
        (("XFORWARD ADDR",), "told of clients by XFORWARD"),
    ],
)
async def test_what_a_next_hop_is_told(command: Any, keywords: tuple[str, ...], shown: str) -> None:
    async with ScriptedNextHop(keywords=keywords) as hop:
        code, out, _ = await command("check", "--next-hop", hop.next_hop)
    assert code == 0
    assert out.splitlines()[-1].endswith(f"; {shown}")


async def test_how_a_next_hop_is_reached(command: Any, tmp_path: Path) -> None:
    files = Path(__file__).parents[1] / "certificates"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files / "server.pem", files / "server.key")
    (tmp_path / "password").write_text("secret\n")
    script = {"AUTH": "235 2.7.0 ok"}
    async with ScriptedNextHop(script, tls=context, implicit_tls=True, keywords=("AUTH PLAIN",)) as hop:
        for level, shown in (("verify", "TLS, verified"), ("may", "TLS, not verified")):
            path = write(
                tmp_path,
                f'[relay]\nnext_hop = ["{hop.next_hop}"]\ntls = "{level}"',
                f'tls_ca_file = "{files / "authority.pem"}"',
                'auth = { user = "me", password_file = "password" }',
            )
            code, out, _ = await command("check", "-c", path)
            assert code == 0
            assert out.splitlines()[-1].endswith(f"; {shown}; logged in")


async def test_a_quarantine_that_cannot_be_used(command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = write(tmp_path, '[quarantine]\ndirectory = "file/held"', '[relay]\nnext_hop = ["discard:"]')
    code, out, _ = await command("check", "-c", path)
    assert code == 1
    row = out.splitlines()[2]
    assert row.startswith("FAILED")
    assert f"{tmp_path}/file is no directory" in row
    path.write_text(path.read_text().replace("file/held", "fine/held"))
    code, out, _ = await command("check", "-c", path)
    assert (code, len(out.splitlines())) == (0, 2)
    assert not (tmp_path / "fine").exists()


async def test_the_breaker(command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with ScriptedMilter() as milter:
        path = write(
            tmp_path,
            f'[[milter]]\naddress = "{milter.endpoint}"',
            '[relay]\nnext_hop = ["discard:"]',
            '[breaker]\nfailures = 3\nrest = "1m"\ndirectory = "file/breaker"',
        )
        code, out, _ = await command("check", "-c", path)
    assert code == 0
    assert out.splitlines()[2].endswith(
        "  leaves a milter alone after 3 failures in a row, for 60 s at most; check cannot be told of that:"
        f" {tmp_path}/file is no directory that this user may write to"
    )


async def test_what_is_no_milter_is_named(command: Any) -> None:
    async with ScriptedMilter(banner=b"220 mail.example ESMTP\r\n") as milter, ScriptedNextHop() as hop:
        code, out, _ = await command("check", "--milter", milter.endpoint, "--next-hop", hop.next_hop)
    assert code == 1
    assert "SMTP" in out


async def test_flags_take_the_place_of_what_the_file_says(command: Any, tmp_path: Path) -> None:
    path = write(tmp_path, '[[milter]]\naddress = "unix:none.sock"', "[relay]\nreceived = false")
    async with ScriptedMilter() as milter:
        code, out, _ = await command(
            "check", "-c", path, "--milter", milter.endpoint, "--next-hop", "discard:"
        )
    assert code == 0
    assert len(out.splitlines()) == 4


@pytest.mark.parametrize("name", ["m", "a-milter-with-a-name-that-takes-some-room", ""])
async def test_a_narrow_terminal_breaks_no_word(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Details are folded first; where that is not enough, they go below."""
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setattr("milterchain.cli.output._width", lambda _: 80)
    monkeypatch.setenv("TERM", "dumb")
    answer = OptNeg(version=6, actions=Action.ADD_HEADERS | Action.QUARANTINE, protocol=Protocol.SKIP)
    async with ScriptedMilter(negotiate=answer) as milter:
        path = write(
            tmp_path,
            f'[[milter]]\nname = "{name or milter.endpoint}"\naddress = "{milter.endpoint}"',
            '[relay]\nnext_hop = ["discard:"]',
        )
        code, out, _ = await command("check", "-c", path)
    assert code == 0
    words = out.split()
    assert all(
        word in words
        for word in (name or milter.endpoint, milter.endpoint, "headers,", "quarantine;", "skip")
    )
    assert all(len(line) <= 80 for line in out.splitlines())


async def test_files_of_listeners(command: Any, tmp_path: Path) -> None:
    path = write(
        tmp_path, '[[listen]]\ntls = { certificate = "none.pem" }', '[relay]\nnext_hop = ["discard:"]'
    )
    code, out, err = await command("check", "-c", path)
    assert (code, out) == (2, "")
    assert err == f"listen[1].tls: {tmp_path}/none.pem: No such file or directory\n"
