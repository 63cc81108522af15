"""`milterchain run`, as a process of its own."""

import asyncio
import os
import re
import shlex
import signal
import smtplib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from milterchain.proxy.embedded import embedded_config, welcome
from milterchain.testing import ScriptedMilter, ScriptedNextHop

PATIENCE = 30.0


class Process:
    """A running proxy."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.log = ""

    async def until(self, pattern: str) -> re.Match[str]:
        """Read the log until a line fits."""
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while line := (await self._process.stderr.readline()).decode():
                self.log += line
                if found := re.search(pattern, line):
                    return found
        raise AssertionError(f"{pattern!r} is not in\n{self.log}")

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self._process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()


@asynccontextmanager
async def running(*arguments: str, cwd: Path) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "milterchain", "run", *arguments),
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
        # Also reads what is left in the pipes, so that their transports are closed with the process.
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_flags_make_a_chain_that_stops_at_a_signal(tmp_path: Path, number: int) -> None:
    async with (
        ScriptedMilter() as milter,
        ScriptedNextHop() as hop,
        running(
            *("--listen", "127.0.0.1:0", "--milter", milter.endpoint, "--next-hop", hop.next_hop),
            cwd=tmp_path,
        ) as process,
    ):
        await process.until(r"127\.0\.0\.1:[1-9]\d*")
        assert await process.end(number) == 0


async def test_a_message_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "milterchain.toml"
    path.write_text('[[listen]]\naddress = "127.0.0.1:0"\n[relay]\nnext_hop = ["maildir:mail"]\n')
    async with running("-c", str(path), cwd=tmp_path.parent) as process:
        port = int((await process.until(r"127\.0\.0\.1:(\d+)"))[1])
        await asyncio.to_thread(send, port)
        await process.until(r'"relayed"')
        assert await process.end() == 0
    (delivered,) = (tmp_path / "mail" / "new").iterdir()
    assert delivered.read_bytes().endswith(b"\n\nHello\n")


def send(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
        client.sendmail("a@example.org", ["b@example.net"], "Subject: hi\n\nHello\n")


async def test_a_taken_port_is_a_configuration_mistake(tmp_path: Path) -> None:
    async with ScriptedNextHop() as hop, running("--listen", hop.address, cwd=tmp_path) as process:
        await process.until(rf"^cannot listen on {hop.address}: ")
        assert await process._process.wait() == 2


def test_the_first_message_can_be_copied_from_the_screen(tmp_path: Path) -> None:
    text = welcome("127.0.0.1", 2525, tmp_path)
    (line,) = [line for line in text.splitlines() if "smtplib" in line]
    python, option, script = shlex.split(line)
    assert (python, option) == (sys.executable, "-c")
    compile(script, "first message", "exec")
    assert "swaks --server 127.0.0.1:2525" in text
    assert str(tmp_path / "milterchain-mail") in text


def test_the_embedded_configuration(tmp_path: Path) -> None:
    config = embedded_config(tmp_path, tmp_path / "sockets")
    assert [str(listen.address) for listen in config.listen] == ["127.0.0.1:2525"]
    assert len(config.milter) == 2
    assert str(config.relay.next_hop[0]) == f"maildir:{tmp_path}/milterchain-mail"
