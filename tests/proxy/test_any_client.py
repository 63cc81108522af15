"""Whatever a client says, in whatever order: milters and next hop hear nothing that is wrong.

A milter that seems to have failed because of what a client said would be a way around it: its default action
may be to let mail pass.
"""

import asyncio
import base64
import os
import random
from pathlib import Path
from typing import Any

import pytest

from milterchain.milter.flags import Command
from milterchain.milter.messages import Discard, Reject, TempFail
from milterchain.proxy import passwords
from milterchain.smtp.budget import Budget

SEEDS = range(int(os.environ.get("CLIENTS_FROM", "0")), int(os.environ.get("CLIENTS_TO", "40")))
"""Clients to try. After a change of the dialogue, try some thousands: CLIENTS_TO=3000."""

LOGIN = base64.b64encode(b"\0ann\0secret")
USUAL = (
    *(b"EHLO client.example", b"HELO client.example"),
    *(
        b"MAIL FROM:<a@example.org>",
        b"MAIL FROM:<>",
        b"MAIL FROM:<a@example.org> SIZE=5 BODY=8BITMIME RET=HDRS",
    ),
    *(b"RCPT TO:<b@example.net>", b"RCPT TO:<c@example.net> NOTIFY=NEVER", b"RCPT TO:<refused@example.net>")
    * 2,
    *(b"DATA",) * 3,
    *(b"BDAT 14\r\nSubject: x\r\n\r\n", b"BDAT 0", b"BDAT 3 LAST\r\nx\r\n", b"BDAT 0 LAST") * 2,
    b"RSET",
)
ODD = (
    *(b"NOOP", b"HELP", b"VRFY b", b"ETRN example.org", b"EXPN b", b"FOO bar", b"", b"\xff\xfe"),
    *(b"MAIL", b"RCPT TO:<b"),
    *(b"AUTH PLAIN " + LOGIN, b"AUTH LOGIN", b"*", b"STARTTLS"),
    *(b"XCLIENT ADDR=192.0.2.7 NAME=[UNAVAILABLE] HELO=other.example", b"XCLIENT ADDR=127.0.0.1", b"XCLIENT"),
    *(b"XFORWARD ADDR=192.0.2.8 HELO=third.example", b"XFORWARD ADDR=[UNAVAILABLE]", b"XFORWARD"),
)  # fmt: skip
CONTENTS = (b".\r\n", b"Subject: x\r\n\r\nx\r\n.\r\n", b"x\n.\ny\r\n.\r\n")


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(passwords, "LOG_N", 1)
    path = tmp_path / "users"
    path.write_text(f"ann:{passwords.PasswordHash.make(b'secret')}\n")
    return path


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "delay", lambda *_: 0.0)


async def talk(client: Any, dice: random.Random) -> None:
    """One session; each command is answered once."""
    reply = await client.reply()
    for _ in range(dice.randint(5, 40)):
        command = dice.choice(USUAL if dice.random() < 0.8 else ODD)
        if reply.startswith("334"):
            command = dice.choice([LOGIN, b"YW5u", b"c2VjcmV0", b"*", b"?"])
        client.write(command if b"\r\n" in command else command + b"\r\n")
        reply = await client.reply()
        if reply.startswith("354"):
            client.write(dice.choice(CONTENTS))
            reply = await client.reply()
        if not reply or reply[:3] in {"221", "421", "521"}:
            return
    if dice.random() < 0.5:
        client.abort()
    else:
        await client.close()


def refuse(argument: bytes) -> str | None:
    return "550 5.1.1 who?" if b"refused" in argument else None


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_client_makes_others_fail(world: Any, users: Path, log: Any, seed: int) -> None:
    dice = random.Random(seed)
    stages = [Command.CONNECT, Command.HELO, Command.MAIL, Command.RCPT, Command.DATA, Command.UNKNOWN]
    stages += [Command.HEADER, Command.BODY, Command.END_OF_MESSAGE]
    decides = {dice.choice(stages): dice.choice([Reject(), TempFail(), Discard()])}
    if dice.random() < 0.5:
        decides = {}
    await world.start(
        decides,
        {},
        hop={"RCPT": refuse},
        milter={"default_action": "accept"},
        listen=[
            {
                "address": "127.0.0.1:0",
                "auth": {"backend": "file", "path": str(users), "allow_plaintext": True},
                "xclient_from": ["127.0.0.1"],
            }
        ],
        access={"trusted_networks": ["127.0.0.0/8"], "relay_domains": ["example.net"]},
        limits={"errors": 100},
    )
    for _ in range(3):
        async with asyncio.timeout(20):
            await talk(await world.client(), dice)
    await world.app.drain(5)
    for milter in world.milters:
        for connection in milter.connections:
            assert not connection.violations, connection
    for session in world.hop.connections:
        assert not session.violations, session
    usual = ('"level": "info"', '"login failed"')
    complaints = [line for line in log.getvalue().splitlines() if not any(each in line for each in usual)]
    assert not complaints
    if Command.END_OF_MESSAGE in decides:
        assert not world.hop.accepted
