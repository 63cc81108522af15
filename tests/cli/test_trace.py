"""`milterchain trace`: what each milter said, what it changed, and what comes of it."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from milterchain.milter.flags import Command
from milterchain.milter.messages import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    Connect,
    Continue,
    DeleteRecipient,
    Discard,
    Header,
    Helo,
    Mail,
    Quarantine,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
)
from milterchain.testing import Close, ScriptedMilter

MESSAGE = b"From: Ann <ann@example.org>\nTo: bob@example.net, c@example.net\nSubject: hi\n\nHello\nWorld\n"

EDITS = [
    AddHeader(b"X-Added", b"1"),
    ChangeHeader(1, b"Subject", b"changed"),
    ReplaceBody(b"Hello\r\nMoon\r\n"),
    ChangeSender(b"<new@example.org>"),
    AddRecipient(b"<added@example.net>"),
    DeleteRecipient(b"<bob@example.net>"),
    Continue(),
]


@pytest.fixture
def eml(tmp_path: Path) -> Path:
    path = tmp_path / "message.eml"
    path.write_bytes(MESSAGE)
    return path


async def test_answers_changes_verdict(command: Any, eml: Path) -> None:
    async with ScriptedMilter({Command.END_OF_MESSAGE: EDITS}) as one, ScriptedMilter() as two:
        code, out, err = await command("trace", eml, "--milter", one.endpoint, "--milter", two.endpoint)
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    rows = [line.split()[:-2] for line in lines[1 : lines.index("")]]
    stages = ["open", "connect", "helo", "mail"]
    assert [row[0] for row in rows[::2]][:4] == stages
    assert ["rcpt", "<bob@example.net>", one.endpoint, "continue"] in rows
    assert ["rcpt", "<c@example.net>", two.endpoint, "continue"] in rows
    assert rows[-1] == ["message", two.endpoint, "continue"]
    changes = lines[lines.index(f"Changes by {one.endpoint}") :]
    for line in (
        "  - sender <ann@example.org>",
        "  + sender <new@example.org>",
        "  - recipient <bob@example.net>",
        "  + recipient <added@example.net>",
        "  - Subject: hi",
        "  + Subject: changed",
        "  + X-Added: 1",
        "  -World",
        "  +Moon",
    ):
        assert line in changes
    assert lines[-2:] == [
        "Verdict: accept",
        "  would be relayed from <new@example.org> to <c@example.net>, <added@example.net>",
    ]
    assert "\x1b" not in out


async def test_milters_see_what_a_real_run_shows_them(command: Any, eml: Path) -> None:
    async with ScriptedMilter() as milter:
        code, _, _ = await command(
            *("trace", eml, "--milter", milter.endpoint, "--from", "x@example.org", "--to", "y@example.net"),
            *("--client-addr", "192.0.2.9", "--helo", "client.example"),
        )
    assert code == 0
    connection = milter.connections[0]
    assert connection.of(Connect)[0].address == b"192.0.2.9"
    assert connection.of(Helo)[0].text == b"client.example"
    assert connection.of(Mail)[0].address == b"<x@example.org>"
    assert [rcpt.address for rcpt in connection.of(Rcpt)] == [b"<y@example.net>"]
    assert [header.name for header in connection.of(Header)] == [b"From", b"To", b"Subject"]
    assert connection.codes.rstrip("Q") == "OCHMRTLLLNBE"
    assert not connection.violations


async def test_json(command: Any, eml: Path) -> None:
    async with ScriptedMilter({Command.END_OF_MESSAGE: EDITS}) as milter:
        code, out, err = await command("trace", "--json", "--milter", milter.endpoint, eml)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["verdict"] == {
        "verdict": "accept",
        "stage": "message",
        "milter": None,
        "reply": None,
        "quarantine": None,
    }
    assert result["envelope"] == {
        "sender": "<new@example.org>",
        "recipients": ["<c@example.net>", "<added@example.net>"],
    }
    assert {event["stage"] for event in result["events"]} >= {
        "open",
        "connect",
        "helo",
        "mail",
        "rcpt",
        "message",
    }
    (change,) = result["changes"]
    assert change["envelope"]["sender"]["after"]["address"] == "<new@example.org>"
    assert [header["kind"] for header in change["message"]["headers"]] == ["changed", "added"]


@pytest.mark.parametrize(
    ("script", "verdict"),
    [
        ({Command.CONNECT: Reject()}, "reject at connect by M: 550 5.7.1 Command rejected"),
        ({Command.HELO: ReplyCode(b"450 4.7.0 hm")}, "tempfail at helo by M: 450 4.7.0 hm"),
        ({Command.MAIL: Discard()}, "discard at mail by M"),
        ({Command.RCPT: Reject()}, "reject at rcpt by M: 550 5.7.1 Command rejected"),
        ({Command.RCPT: Shutdown()}, "shutdown at rcpt by M: 421 4.7.0 Server closing connection"),
        ({Command.DATA: Reject()}, "reject at data by M: 550 5.7.1 Command rejected"),
        ({Command.HEADER: Reject()}, "reject at message by M: 550 5.7.1 Command rejected"),
        ({Command.END_OF_MESSAGE: [Quarantine(b"a virus"), Continue()]}, "quarantine by M: a virus"),
        ({Command.END_OF_MESSAGE: [DeleteRecipient(b"<y@example.net>"), Continue()]}, "accept"),
    ],
    ids=str,
)
async def test_verdicts(command: Any, eml: Path, script: Any, verdict: str) -> None:
    async with ScriptedMilter(script) as milter:
        code, out, _ = await command("trace", eml, "--to", "y@example.net", "--milter", milter.endpoint)
    assert code == 0
    assert f"Verdict: {verdict.replace(' M', f' {milter.endpoint}')}\n" in out


async def test_a_failing_milter_is_a_problem(command: Any, eml: Path) -> None:
    async with ScriptedMilter({Command.MAIL: Close()}) as milter:
        code, out, _ = await command("trace", eml, "--milter", milter.endpoint)
    assert code == 1
    assert "failed: " in out
    assert "Verdict: tempfail at mail" in out


async def test_a_milter_that_is_not_there_is_a_problem(command: Any, eml: Path, tmp_path: Path) -> None:
    code, out, _ = await command("trace", eml, "--milter", f"unix:{tmp_path}/none.sock")
    assert code == 1
    assert "ENOENT" in out


async def test_standard_input(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no headers at all\n")))
    async with ScriptedMilter() as milter:
        code, out, _ = await command("trace", "-", "--milter", milter.endpoint)
    assert code == 0
    assert "would be relayed from <> to <postmaster>" in out


async def test_what_a_milter_says_cannot_drive_the_terminal(command: Any, eml: Path) -> None:
    edits = [AddHeader(b"X-Evil", b"\x1b[2J\x07"), Continue()]
    async with ScriptedMilter({Command.END_OF_MESSAGE: edits}) as milter:
        _, out, _ = await command("trace", eml, "--milter", milter.endpoint)
    assert "\x1b" not in out
    assert "\\x1b[2J\\x07" in out
