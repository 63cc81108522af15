"""`milterchain trace`: what each milter said, what it changed, and what comes of it."""

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from milterchain.cli.trace import TraceRequest, trace_message
from milterchain.config import parse
from milterchain.milter.flags import Action, Command, Protocol
from milterchain.milter.messages import (
    Accept,
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
    InsertHeader,
    Mail,
    OptNeg,
    Quarantine,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
)
from milterchain.smtp.handler import ClientNames
from milterchain.testing import Close, InTurn, Late, ScriptedMilter, Silence

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
    lines = out.splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert lines[:3] == [
        "Message: 94 bytes from <ann@example.org> to <bob@example.net>, <c@example.net>",
        f"Client: 127.0.0.1 (localhost), EHLO localhost; queue id {lines[1][-16:]}",
        "",
    ]
    titles, *table = lines[3 : lines.index("", 3)]
    assert titles.split() == ["Stage", "Milter", "Answer", "Time"]
    rows = [line.split()[:-2] for line in table]
    stages = ["open", "connect", "helo", "mail"]
    assert [row[0] for row in rows[::2]][:4] == stages
    assert ["rcpt", "<bob@example.net>", one.endpoint, "continue"] in rows
    assert ["rcpt", "<c@example.net>", two.endpoint, "continue"] in rows
    assert rows[-3:] == [
        ["message", two.endpoint, "continue"],
        ["total", one.endpoint],
        ["total", two.endpoint],
    ]
    changes = lines[lines.index(f"Changes by {one.endpoint}") :]
    for line in (
        "  - sender <ann@example.org>",
        "  + sender <new@example.org>",
        "  - recipient <bob@example.net>",
        "  + recipient <added@example.net>",
        "  @@ header 3 @@",
        "  - Subject: hi",
        "  + Subject: changed",
        "  + X-Added: 1",
        "  -World",
        "  +Moon",
    ):
        assert line in changes
    assert lines[-3:] == [
        "Verdict: accept",
        "  would be relayed from <new@example.org> to <c@example.net>, <added@example.net>",
        "  client hears what the next hop answers (to the message)",
    ]
    assert "\x1b" not in out


async def test_milters_see_what_a_real_run_shows_them(command: Any, eml: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    async with ScriptedMilter() as milter:
        config.write_text(f'dns.lookup = false\n[[milter]]\naddress = "{milter.endpoint}"')
        code, _, _ = await command(
            *("trace", eml, "-c", config, "--from", "x@example.org", "--to", "y@example.net"),
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
    assert result["client_hears"] == []
    assert result["request"] | {"queue_id": ""} == {
        "client": "127.0.0.1",
        "client_name": "localhost",
        "helo": "localhost",
        "listener": None,
        "login": None,
        "queue_id": "",
        "sender": "<ann@example.org>",
        "recipients": ["<bob@example.net>", "<c@example.net>"],
        "size": 94,
    }
    (timed,) = result["milters"]
    assert timed["name"] == milter.endpoint
    assert timed["seconds"] == pytest.approx(sum(event["seconds"] for event in result["events"]))
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
    headers = change["message"]["headers"]
    assert [(header["kind"], header["position"]) for header in headers] == [("changed", 3), ("added", 4)]


@pytest.mark.parametrize("received", ["true", "false"])
async def test_positions_are_those_in_the_users_file(
    command: Any, eml: Path, tmp_path: Path, received: str
) -> None:
    """Our own Received header, or its place holder, is not counted, wherever it is."""
    config = tmp_path / "c.toml"
    edits = [
        InsertHeader(0, b"X-Top", b"1"),
        ChangeHeader(1, b"To", b""),
        ChangeHeader(1, b"Subject", b"new"),
        Continue(),
    ]
    async with ScriptedMilter({Command.END_OF_MESSAGE: edits}) as milter:
        config.write_text(f'relay.received = {received}\n[[milter]]\naddress = "{milter.endpoint}"')
        _, out, _ = await command("trace", "--json", "-c", config, eml)
        _, shown, _ = await command("trace", "-c", config, eml)
    (change,) = json.loads(out)["changes"]
    headers = change["message"]["headers"]
    assert [f"  @@ header {header['position']} @@" for header in headers] == [
        line for line in shown.splitlines() if "@@" in line
    ]
    assert [(header["kind"], header["name"], header["position"]) for header in headers] == [
        ("added", "X-Top", 1),
        ("changed", "Subject", 3),
        ("removed", "To", 2),
    ]


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


NOT_ACCEPTING = "554 mx.test ESMTP not accepting connections (to the connection)"


@pytest.mark.parametrize(
    ("script", "heard"),
    [
        ({Command.CONNECT: Reject()}, [NOT_ACCEPTING, "550 5.7.1 Command rejected (to MAIL)"]),
        ({Command.CONNECT: ReplyCode(b"450 4.7.0 hm")}, ["450 4.7.0 hm (to MAIL)"]),
        (
            {Command.CONNECT: Shutdown()},
            ["421 mx.test Service unavailable - try again later (to the connection)"],
        ),
        ({Command.HELO: ReplyCode(b"550 5.7.0 hm")}, ["550 5.7.0 hm (to MAIL)"]),
        ({Command.HELO: Shutdown()}, ["421 4.7.0 Server closing connection (to EHLO)"]),
        ({Command.MAIL: Reject()}, ["550 5.7.1 Command rejected (to MAIL)"]),
        ({Command.MAIL: Discard()}, ["250 2.0.0 Ok (to the message)"]),
        (
            {Command.RCPT: ReplyCode(b"550 5.1.1 who")},
            ["550 5.1.1 who (to RCPT TO:<y@example.net>)", "554 5.5.1 Error: no valid recipients (to DATA)"],
        ),
        ({Command.RCPT: Discard()}, ["250 2.0.0 Ok (to the message)"]),
        ({Command.DATA: Reject()}, ["550 5.7.1 Command rejected (to DATA)"]),
        ({Command.BODY: ReplyCode(b"550 5.7.0 spam")}, ["550 5.7.0 spam (to the message)"]),
        (
            {Command.END_OF_MESSAGE: [Quarantine(b"a virus"), Continue()]},
            ["250 2.0.0 Ok (to the message)"],
        ),
        (
            {Command.END_OF_MESSAGE: [DeleteRecipient(b"<y@example.net>"), Continue()]},
            ["250 2.0.0 Ok (to the message)"],
        ),
    ],
    ids=str,
)
async def test_what_the_client_would_hear(
    command: Any, eml: Path, tmp_path: Path, script: Any, heard: list[str]
) -> None:
    config = tmp_path / "c.toml"
    async with ScriptedMilter(script) as milter:
        config.write_text(f'hostname = "mx.test"\n[[milter]]\naddress = "{milter.endpoint}"')
        _, out, _ = await command("trace", eml, "--to", "y@example.net", "-c", config)
    assert [line for line in out.splitlines() if "client hears" in line] == [
        f"  client hears {reply}" for reply in heard
    ]


async def test_stages_at_which_nobody_or_not_all_are_asked(command: Any, eml: Path) -> None:
    unasked = Protocol.NO_HELO | Protocol.NO_CONNECT
    first = OptNeg(version=6, actions=Action(0), protocol=unasked)
    second = OptNeg(version=6, actions=Action(0), protocol=Protocol.NO_HELO)
    async with ScriptedMilter(negotiate=first) as one, ScriptedMilter(negotiate=second) as two:
        _, out, _ = await command("trace", eml, "--milter", one.endpoint, "--milter", two.endpoint)
    rows = [line.split() for line in out.splitlines()]
    assert ["connect", one.endpoint, "not", "asked"] in rows
    assert ["helo", "not", "asked"] in rows
    assert not any(row[:2] == ["helo", one.endpoint] for row in rows)


DECLINES = OptNeg(version=6, actions=Action(0), protocol=Protocol.NO_HELO | Protocol.NO_REPLY_MAIL)
OLD = OptNeg(version=2, actions=Action(0), protocol=Protocol(0))


@pytest.mark.parametrize(
    ("script", "negotiate", "stages"),
    [
        ({}, DECLINES, {"helo": "not asked", "mail": "no answer wanted"}),
        ({}, OLD, {"data": "not asked"}),
        (
            {Command.HELO: Accept()},
            None,
            dict.fromkeys(["mail", "rcpt", "data", "message"], "accepted before"),
        ),
        ({Command.MAIL: Accept()}, None, dict.fromkeys(["rcpt", "data", "message"], "accepted before")),
        ({Command.DATA: Close()}, None, {"message": "failed before"}),
    ],
    ids=["declined", "too old", "accepted the connection", "accepted the message", "failed"],
)
async def test_why_there_is_no_answer(
    command: Any, eml: Path, tmp_path: Path, script: Any, negotiate: OptNeg | None, stages: dict[str, str]
) -> None:
    config = tmp_path / "c.toml"
    options = {} if negotiate is None else {"negotiate": negotiate}
    async with ScriptedMilter(script, **options) as one, ScriptedMilter() as two:
        config.write_text(
            f'[[milter]]\nname = "one"\naddress = "{one.endpoint}"\ndefault_action = "accept"\n'
            f'[[milter]]\nname = "two"\naddress = "{two.endpoint}"\n'
        )
        arguments = ("trace", eml, "--to", "y@example.net", "-c", config)
        _, out, _ = await command(*arguments)
        _, as_json, _ = await command(*arguments, "--json")
    rows = [line.split() for line in out.splitlines()]
    for stage, reason in stages.items():
        where = [stage, "<y@example.net>"] if stage == "rcpt" else [stage]
        assert [*where, "one", *reason.split()] in rows
    unanswered = json.loads(as_json)["unanswered"]
    assert {each["stage"]: each["reason"] for each in unanswered} == stages
    assert {each["milter"] for each in unanswered} == {"one"}


@pytest.mark.parametrize("stage", [Command.MAIL, Command.BODY])
async def test_nobody_waits_when_another_one_has_decided(command: Any, eml: Path, stage: Command) -> None:
    slow = {Command.MAIL: Silence()} if stage is Command.MAIL else {}
    async with ScriptedMilter({stage: Reject()}) as one, ScriptedMilter(slow) as two:
        _, out, _ = await command("trace", eml, "--milter", one.endpoint, "--milter", two.endpoint)
    name = "mail" if stage is Command.MAIL else "message"
    assert [name, two.endpoint, "already", "decided"] in [line.split() for line in out.splitlines()]


async def test_on_a_terminal(command: Any, eml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    async with ScriptedMilter({Command.END_OF_MESSAGE: EDITS}) as one, ScriptedMilter() as two:
        code, out, err = await command("trace", eml, "--milter", one.endpoint, "--milter", two.endpoint)
    assert code == 0
    assert "asking the milters" in err
    assert "\x1b[32m  + X-Added: 1" in out
    assert out.count("connect ") == 1  # the stage is named once


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


async def test_without_any_milter_there_is_nothing_to_trace(command: Any, eml: Path) -> None:
    assert await command("trace", eml) == (2, "", "no milters: give --config or --milter\n")


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


@pytest.mark.parametrize(
    ("address", "known"),
    [
        ("192.0.2.25:25", {b"{daemon_addr}": b"192.0.2.25", b"{daemon_port}": b"25"}),
        ("[::]:25", {}),
        ("unix:smtp.sock", {}),
    ],
)
async def test_the_client_comes_by_the_first_listener(
    command: Any, eml: Path, tmp_path: Path, address: str, known: dict[bytes, bytes]
) -> None:
    config = tmp_path / "c.toml"
    async with ScriptedMilter() as milter:
        config.write_text(
            f'[[listen]]\nname = "mx"\naddress = "{address}"\n[[milter]]\naddress = "{milter.endpoint}"'
        )
        await command("trace", eml, "-c", config)
    told = milter.connections[0].macros(Command.CONNECT)
    assert told[b"{daemon_name}"] == b"mx"
    assert {name: told[name] for name in (b"{daemon_addr}", b"{daemon_port}") if name in told} == known


async def test_a_listener_without_a_name(command: Any, eml: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    async with ScriptedMilter() as milter, ScriptedMilter() as other:
        config.write_text(
            'hostname = "mx.test"\n'
            f'[[milter]]\naddress = "{milter.endpoint}"\nlisteners = ["smtp"]\n'
            f'[[milter]]\naddress = "{other.endpoint}"'
        )
        await command("trace", eml, "-c", config)
    for each in (milter, other):
        assert each.connections[0].macros(Command.CONNECT)[b"{daemon_name}"] == b"mx.test"


async def test_the_client_is_looked_up(
    command: Any, eml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lookup(address: str) -> ClientNames:
        assert address == "192.0.2.9"
        return ClientNames(name=b"c.example", ptr=b"c.example", resolve=b"OK")

    config = tmp_path / "c.toml"
    monkeypatch.setattr("milterchain.cli.trace.build_lookup", lambda dns: lookup if dns.lookup else None)
    for enabled, seen, shown in (
        ("true", b"c.example", "192.0.2.9 (c.example), EHLO localhost"),
        ("false", b"[192.0.2.9]", "192.0.2.9, EHLO localhost"),
    ):
        async with ScriptedMilter() as milter:
            config.write_text(f'dns.lookup = {enabled}\n[[milter]]\naddress = "{milter.endpoint}"')
            _, out, _ = await command("trace", eml, "-c", config, "--client-addr", "192.0.2.9")
        assert milter.connections[0].of(Connect)[0].hostname == seen
        assert out.splitlines()[1].startswith(f"Client: {shown}; queue id ")


CONDITIONS = """
[[listen]]
name = "smtp"
address = "127.0.0.1:2525"
[[listen]]
name = "submission"
address = "127.0.0.1:2587"
[[milter]]
name = "all"
address = "{0}"
[[milter]]
name = "far"
address = "{1}"
clients = ["192.0.2.0/24"]
[[milter]]
name = "users"
address = "{1}"
listeners = ["submission"]
authenticated = "only"
[[milter]]
name = "senders"
address = "{1}"
sender_domains = ["example.com"]
[[milter]]
name = "recipients"
address = "{1}"
recipient_domains = ["elsewhere.example"]
"""


async def test_milters_that_are_not_meant_for_the_message(command: Any, eml: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    async with ScriptedMilter() as one, ScriptedMilter() as two:
        config.write_text(CONDITIONS.format(one.endpoint, two.endpoint))
        code, out, _ = await command("trace", eml, "-c", config)
        _, as_json, _ = await command("trace", eml, "-c", config, "--json")
    assert code == 0
    assert out.splitlines()[2] == (
        "Not asked, by their conditions: far (clients), users (listeners), senders (sender_domains),"
        " recipients (recipient_domains)"
    )
    assert "far" not in out[out.index("Stage") :]
    result = json.loads(as_json)
    assert {milter["name"]: milter["left_out"] for milter in result["milters"]} == {
        "all": None,
        "far": "clients",
        "users": "listeners",
        "senders": "sender_domains",
        "recipients": "recipient_domains",
    }
    assert result["unanswered"] == []
    assert two.connections == []


async def test_a_user_of_another_listener(command: Any, eml: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    arguments = ("trace", eml, "-c", config, "--to", "a@example.net", "--to", "b@elsewhere.example")
    async with ScriptedMilter() as one, ScriptedMilter() as two:
        config.write_text(CONDITIONS.format(one.endpoint, two.endpoint))
        _, out, _ = await command(*arguments, "--listener", "submission", "--login", "joe")
        code, _, err = await command(*arguments, "--listener", "nowhere")
    lines = out.splitlines()
    assert lines[1].startswith(
        "Client: 127.0.0.1 (localhost) at submission, EHLO localhost, logged in as joe;"
    )
    assert lines[2] == "Not asked, by their conditions: far (clients), senders (sender_domains)"
    rows = [line.split() for line in lines]
    assert ["rcpt", "<a@example.net>", "recipients", "not", "meant"] in rows
    assert ["rcpt", "<b@elsewhere.example>", "recipients", "continue"] in [row[:4] for row in rows]
    connection = next(each for each in one.connections if each.of(Mail))
    assert connection.macros(Command.MAIL)[b"{auth_authen}"] == b"joe"
    assert b"{auth_authen}" not in connection.macros(Command.CONNECT)
    assert (code, err) == (2, "--listener: 'nowhere' is not one of smtp, submission\n")


async def test_recipients_told_again_are_a_stage_of_their_own(command: Any, eml: Path) -> None:
    refuses = {Command.RCPT: InTurn(Reject(), Continue())}
    async with ScriptedMilter() as one, ScriptedMilter(refuses) as two:
        arguments = ("trace", eml, "--milter", one.endpoint, "--milter", two.endpoint)
        _, out, _ = await command(*arguments)
        _, as_json, _ = await command(*arguments, "--json")
    rows = [line.split()[:3] for line in out.splitlines()]
    assert rows.count(["mail", one.endpoint, "continue"]) == 1
    assert [row for row in rows if row[:1] == ["replay"]] == [["replay", one.endpoint, "continue"]]
    assert rows.index(["replay", one.endpoint, "continue"]) < rows.index(["data", one.endpoint, "continue"])
    (again,) = [event for event in json.loads(as_json)["events"] if event["stage"] == "replay"]
    assert (again["milter"], again["verdict"], again["error"]) == (one.endpoint, "continue", None)
    assert again["seconds"] > 0


async def test_a_failure_when_recipients_are_told_again(command: Any, eml: Path) -> None:
    loses = {Command.MAIL: InTurn(Continue(), Close())}
    refuses = {Command.RCPT: InTurn(Reject(), Continue())}
    async with ScriptedMilter(loses) as one, ScriptedMilter(refuses) as two:
        code, out, _ = await command("trace", eml, "--milter", one.endpoint, "--milter", two.endpoint)
    assert code == 1
    (again,) = [line for line in out.splitlines() if line.startswith("replay")]
    assert "closed the connection" in again


async def test_a_verdict_amid_the_content_stands_at_its_place(command: Any, eml: Path) -> None:
    early = {Command.END_OF_HEADERS: Accept()}
    async with ScriptedMilter(early) as one, ScriptedMilter() as two:
        _, out, _ = await command("trace", eml, "--milter", one.endpoint, "--milter", two.endpoint)
    rows = [line.split()[:-2] for line in out.splitlines()]
    at = rows.index(["message", one.endpoint, "accept", "(at", "end", "of", "headers)"])
    assert rows[at + 1] == ["message", two.endpoint, "continue"]


OBSERVED = """
[[milter]]
name = "first"
address = "{0}"
[[milter]]
name = "watched"
address = "{1}"
mode = "observe"
"""


async def test_what_an_observed_milter_would_do(command: Any, eml: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    would = [
        AddHeader(b"X-Two", b"2"),
        ChangeHeader(1, b"X-One", b"changed"),
        ReplaceBody(b"new\r\n"),
        AddRecipient(b"<added@example.net>"),
        Quarantine(b"a virus"),
        Continue(),
    ]
    async with (
        ScriptedMilter({Command.END_OF_MESSAGE: [AddHeader(b"X-One", b"1"), Continue()]}) as one,
        ScriptedMilter({Command.END_OF_MESSAGE: would}) as two,
    ):
        config.write_text(OBSERVED.format(one.endpoint, two.endpoint))
        code, out, _ = await command("trace", eml, "-c", config)
        _, as_json, _ = await command("trace", eml, "-c", config, "--json")
    assert code == 0
    lines = out.splitlines()
    assert any(line.split()[:3] == ["message", "watched", "(observed)"] for line in lines)
    begin = lines.index("Changes that watched would make")
    assert lines[begin + 1 : lines.index("", begin)] == [
        "  would say quarantine: a virus",
        "  + recipient <added@example.net>",
        "  @@ header 4 @@",
        "  - X-One: 1",
        "  + X-One: changed",
        "  @@ header 5 @@",
        "  + X-Two: 2",
        "  body: 14 -> 5 bytes",
        "  @@ -1,2 +1,1 @@",
        "  -Hello",
        "  -World",
        "  +new",
    ]
    assert lines[-3:] == [
        "Verdict: accept",
        "  would be relayed from <ann@example.org> to <bob@example.net>, <c@example.net>",
        "  client hears what the next hop answers (to the message)",
    ]
    result = json.loads(as_json)
    assert [milter["mode"] for milter in result["milters"]] == ["enforce", "observe"]
    assert [(change["milter"], change["observed"]) for change in result["changes"]] == [
        ("first", False),
        ("watched", True),
    ]
    assert result["changes"][1]["would"] == ["quarantine: a virus"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ({Command.END_OF_MESSAGE: Reject()}, "  would say reject: 550 5.7.1 Command rejected"),
        ({Command.END_OF_MESSAGE: Discard()}, "  would say discard"),
        ({Command.RCPT: Reject()}, None),
        ({}, None),
    ],
)
async def test_what_an_observed_milter_would_say(
    command: Any, eml: Path, tmp_path: Path, script: Any, said: str | None
) -> None:
    config = tmp_path / "c.toml"
    async with ScriptedMilter() as one, ScriptedMilter(script) as two:
        config.write_text(OBSERVED.format(one.endpoint, two.endpoint))
        _, out, _ = await command("trace", eml, "-c", config)
    lines = out.splitlines()
    assert [line for line in lines if "would say" in line] == ([said] if said else [])
    assert ("Changes that watched would make" in lines) == (said is not None)
    assert "Verdict: accept" in lines


async def test_answers_that_nobody_waited_for_stand_at_their_recipients(command: Any, eml: Path) -> None:
    asked_again = asyncio.Event()

    def accept(_: object) -> Continue:
        asked_again.set()
        return Continue()

    fast = {Command.RCPT: InTurn(Reject(), Reject(), accept)}
    late = [Late(asked_again), ReplyCode(b"450 4.7.0 slow")]
    slow = {Command.RCPT: InTurn(late, ReplyCode(b"450 4.7.1 slow"), Continue())}
    receivers = [f"{name}@example.net" for name in "abc"]
    options = [option for receiver in receivers for option in ("--to", receiver)]
    async with ScriptedMilter(fast) as one, ScriptedMilter(slow) as two:
        _, out, _ = await command("trace", eml, "--milter", one.endpoint, "--milter", two.endpoint, *options)
    rows = [line.split() for line in out.splitlines() if line.startswith("rcpt")]
    assert len(rows) == 6
    assert {row[1]: row[3:-2] for row in rows if row[2] == two.endpoint} == {
        "<a@example.net>": ["tempfail:", "450", "4.7.0", "slow"],
        "<b@example.net>": ["tempfail:", "450", "4.7.1", "slow"],
        "<c@example.net>": ["continue"],
    }


async def test_a_late_answer_to_the_last_recipient_is_no_replay(
    command: Any, eml: Path, tmp_path: Path
) -> None:
    """Before the content nobody waits for a milter that is only observed."""

    def slowly(_: object) -> list[Any]:
        there = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, there.set)
        return [Late(there), Continue()]

    config = tmp_path / "c.toml"
    async with ScriptedMilter({Command.RCPT: slowly}) as milter:
        config.write_text(f'[[milter]]\naddress = "{milter.endpoint}"\nmode = "observe"')
        recipients = ("--to", "b@x.test", "--to", "c@x.test")
        _, out, _ = await command("trace", "--json", "-c", config, *recipients, eml)
    events = json.loads(out)["events"]
    assert [event["recipient"] for event in events if event["stage"] == "rcpt"] == ["b@x.test", "c@x.test"]
    assert "replay" not in {event["stage"] for event in events}


async def test_a_recipient_twice(command: Any, eml: Path) -> None:
    async with ScriptedMilter() as milter:
        _, out, _ = await command(
            "trace", eml, "--milter", milter.endpoint, "--to", "a@example.net", "--to", "a@example.net"
        )
    assert len([line for line in out.splitlines() if line.startswith("rcpt ")]) == 2


async def test_the_stage_is_told_while_somebody_waits(eml: Path) -> None:
    told: list[str] = []
    async with ScriptedMilter() as milter:
        config = parse(
            {"dns": {"lookup": False}, "milter": [{"address": milter.endpoint}]}, "test", eml.parent
        )
        request = TraceRequest.read(str(eml), None, ["a@example.net"], "127.0.0.1", "localhost")
        await trace_message(config, request, told.append)
    assert told == ["open", "connect", "helo", "mail", "rcpt <a@example.net>", "data", "message"]
