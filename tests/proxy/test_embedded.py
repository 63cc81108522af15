"""The embedded default: its own two milters, and a message that ends in the Maildir."""

import asyncio
import os
import re
import shlex
import signal
import smtplib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from milterchain.config import Config, ListenConfig
from milterchain.config_types import ListenAddress
from milterchain.proxy import embedded
from milterchain.proxy.examples import GTUBE, GTUBE_SUBJECT

PATIENCE = 20.0


@asynccontextmanager
async def running(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The demonstration as it is, but for the port; what it says at the start."""
    usual = embedded.embedded_config
    listen = (ListenConfig(address=ListenAddress(host="127.0.0.1")),)

    def on_any_port(directory: Path, sockets: Path) -> Config:
        return usual(directory, sockets).model_copy(update={"listen": listen})

    monkeypatch.setattr(embedded, "embedded_config", on_any_port)
    said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        group.create_task(embedded.serve_embedded(directory, said.set_result))
        yield await said
        os.kill(os.getpid(), signal.SIGTERM)


def delivered(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in (directory / embedded.MAILDIR / "new").glob("*")]


async def test_the_line_on_the_screen_sends_a_first_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as text:
        (line,) = [line for line in text.splitlines() if "smtplib" in line]
        process = await asyncio.create_subprocess_exec(*shlex.split(line))
        assert await process.wait() == 0
    (message,) = delivered(tmp_path)
    assert message.startswith(
        b"Return-Path: <me@example.org>\nDelivered-To: you@example.org\nReceived: from "
    )
    assert re.search(
        rb"\nSubject: Hello"
        rb"\nX-Milterchain-Example: client=127\.0\.0\.1; helo=\S+;\n queue-id=\w+; recipients=1\n"
        rb"\nIt works\.\n\Z",
        message,
    )


async def test_the_milters_tag_and_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(port: int, body: bytes) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
            client.sendmail("a@example.org", ["b@example.net"], b"Subject: hi\r\n\r\n" + body + b"\r\n")

    async with running(tmp_path, monkeypatch) as text:
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)", text)
        assert found is not None
        port = int(found[1])
        await asyncio.to_thread(send, port, GTUBE_SUBJECT)
        with pytest.raises(smtplib.SMTPDataError, match="GTUBE test string"):
            await asyncio.to_thread(send, port, GTUBE)
    (message,) = delivered(tmp_path)
    assert b"\nSubject: [SPAM] hi\n" in message
