"""The README's snippets do what it says."""

import asyncio
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from milterchain.config import parse
from milterchain.milter import Command, Family, MacroBag, MilterServer, MtaClient
from milterchain.milter.messages import ChangeHeader, Reject
from milterchain.testing import ScriptedMilter

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks in that language, those in lists too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", README, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


@pytest.mark.parametrize("document", blocks("toml"))
def test_configurations_are_valid(document: str, tmp_path: Path) -> None:
    parse(tomllib.loads(document), "README.md", tmp_path)


def test_defaults_are_what_the_readme_says(tmp_path: Path) -> None:
    document = tomllib.loads(next(block for block in blocks("toml") if "[limits]" in block))
    milter = document["milter"][0]
    minimal = {"hostname": document["hostname"], "milter": [{"address": milter["address"]}]}
    shown = parse(document, "README.md", tmp_path)
    default = parse(minimal, "README.md", tmp_path)
    named = {"name": milter["name"], "macros": shown.milter[0].macros}
    assert shown == default.model_copy(update={"milter": (default.milter[0].model_copy(update=named),)})


def run_block(number: int, **names: Any) -> dict[str, Any]:
    """Run a Python block of the README as a module, and return what it defines."""
    exec(compile(blocks("python")[number], "README.md", "exec"), names)
    return names


MARKED = (ChangeHeader(1, b"Subject", b" [EXTERNAL] hello"),)


@pytest.mark.parametrize(
    ("recipient", "macros", "modifications", "reason"),
    [
        (b"<b@example.org>", {}, MARKED, None),
        (b"<b@example.org>", {b"auth_authen": b"ann"}, (), None),
        ("<spam-trap@スパム.example>".encode(), {}, (), b"train as spam"),
        (b"<spam-trap@xn--zck5b2b.EXAMPLE>", {}, (), b"train as spam"),
    ],
)
async def test_the_filter_marks_and_holds(
    recipient: bytes,
    macros: dict[bytes, bytes],
    modifications: tuple[ChangeHeader, ...],
    reason: bytes | None,
    tmp_path: Path,
) -> None:
    readme = run_block(0, __name__="readme")
    options = readme["FilterOptions"](decide_at=readme["DecideAt"].END_OF_HEADERS)
    endpoint = f"unix:{tmp_path}/external.sock"
    async with (
        asyncio.timeout(20),
        readme["MailFilter"](readme["decide"], [endpoint], options=options),
        MtaClient(endpoint).session(MacroBag(macros)) as session,
    ):
        await session.connect(b"client.example.net", Family.INET, 4711, b"192.0.2.7")
        await session.mail(b"<a@example.com>")
        await session.rcpt(recipient)
        result = await session.headers([(b"Subject", b" hello")])
        if not result.stops:
            result = await session.body_from(b"Hi\r\n")
    assert (result.modifications, result.quarantine) == (modifications, reason)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_filter_ends_quietly(number: signal.Signals, tmp_path: Path) -> None:
    """The whole program, with another address."""
    script = tmp_path / "external.py"
    path = tmp_path / "external.sock"
    script.write_text(blocks("python")[0].replace("inet:127.0.0.1:7357", f"unix:{path}"), encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 20
            while not path.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(number)
            _, complaints = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, complaints) == (0, b"")


def test_the_tests_of_the_filter_pass(tmp_path: Path) -> None:
    (tmp_path / "external.py").write_text(blocks("python")[0], encoding="utf-8")
    (tmp_path / "test_external.py").write_text(blocks("python")[1], encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\npythonpath = .\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


@pytest.mark.parametrize(("recipient", "code"), [(b"<b@EXAMPLE.com>", 550), (b"<b@example.org>", None)])
async def test_the_protocol_in_hand(recipient: bytes, code: int | None, tmp_path: Path) -> None:
    endpoint = f"unix:{tmp_path}/milter.sock"
    kind = run_block(2, __name__="readme")["NoTestRecipients"]
    async with (
        asyncio.timeout(20),
        MilterServer(kind, [endpoint]),
        MtaClient(endpoint).session() as session,
    ):
        await session.connect(b"client.example.net", Family.UNKNOWN)
        await session.mail(b"<a@example.net>")
        answer = await session.rcpt(recipient)
    assert (answer.refusal.code if answer.refusal else None) == code


@pytest.mark.parametrize(
    ("script", "heard"),
    [
        ({}, "continue"),
        ({Command.RCPT: Reject()}, "reject"),
    ],
)
async def test_asking_a_milter(script: dict[Command, Reject], heard: str) -> None:
    async with asyncio.timeout(20), ScriptedMilter(script) as milter:
        assert await run_block(3, __name__="readme")["ask"](milter.endpoint) == heard
    if not script:
        assert milter.connections[0].codes == "OCHMRLLNBEQ"
        assert milter.connections[0].macros(Command.MAIL)[b"i"] == b"4Zk1xQ0"
