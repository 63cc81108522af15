"""`milterchain milter-check`: what is played, what is shown, and the exit code."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from milterchain.milter.flags import (
    ALL_ACTIONS,
    ALL_PROTOCOL,
    DATA_SIZE_1M,
    DATA_SIZE_64K,
    Action,
    Command,
    Family,
    Protocol,
    Stage,
)
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    Body,
    ChangeSender,
    Connect,
    Continue,
    Discard,
    Header,
    Helo,
    Mail,
    OptNeg,
    Quarantine,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
    Unknown,
)
from milterchain.testing import Close, InTurn, ScriptedMilter, refusing_address

MESSAGE = b"From: Ann <ann@example.org>\nTo: bob@example.net, c@example.net\nSubject: hi\n\nHello\nWorld\n"


@pytest.fixture
def eml(tmp_path: Path) -> Path:
    path = tmp_path / "message.eml"
    path.write_bytes(MESSAGE)
    return path


async def check(command: Any, milter: ScriptedMilter, *arguments: object) -> tuple[int, str]:
    code, out, err = await command("milter-check", "--connect", milter.endpoint, *arguments)
    assert err == ""
    return code, out


async def test_a_message(command: Any, eml: Path) -> None:
    script = {
        Command.RCPT: InTurn(ReplyCode(b"550-5.1.1 no\r\n550 5.1.1 user"), Continue()),
        Command.END_OF_MESSAGE: [
            AddHeader(b"X-A", b"1"),
            ReplaceBody(b"x"),
            ReplaceBody(b"y"),
            ChangeSender(b"<z@z>"),
            Accept(),
        ],
    }
    answer = OptNeg(
        version=6,
        actions=Action.ADD_HEADERS | Action.CHANGE_BODY,
        protocol=Protocol.NO_HELO,
        macros={Stage.MAIL: (b"i", b"{auth_authen}"), 99: (b"z",), Stage.DATA: ()},
    )
    async with ScriptedMilter(script, negotiate=answer) as milter:
        code, out = await check(command, milter, eml)
        connection = await milter.wait_closed()
    assert code == 0
    lines = out.splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert lines[0].startswith(
        f"{milter.endpoint}: version 6, 65535 bytes; may add headers, change body; not"
    )
    assert lines[1:4] == [
        "  asks for macros at mail: i {auth_authen}",
        "  asks for macros at 99: z",
        "  asks for macros at data: nothing",
    ]
    table = [line.split() for line in lines[5 : lines.index("", 5)]]
    assert table[0] == ["Message", "Event", "Argument", "Time", "Answer"]
    assert [row[0] for row in table[1:4]] == ["open", "connect", "helo"]
    assert table[3][-2:] == ["not", "asked"]
    shown = [[cell for cell in row if cell != "ms"] for row in table]
    assert [row[:3] + row[4:] for row in shown[4:7]] == [
        ["1", "mail", "<ann@example.org>", "continue"],
        ["1", "rcpt", "<bob@example.net>", "reply_code", "code=550", "status=5.1.1", 'text="no\\nuser"'],
        ["1", "rcpt", "<c@example.net>", "continue"],
    ]
    assert shown[8][:3] == ["1", "headers", "3"]
    assert shown[-1] == ["1", "abort"]
    assert lines[-5:] == [
        f"Message 1 ({eml}): accept",
        "  recipient refused: <bob@example.net>",
        "  add_header name=X-A value=1",
        "  replace_body bytes=2",
        "  change_sender address=<z@z>",
    ]
    assert connection.codes == "OCMRRTLLLNBEAQ"
    assert connection.violations == []
    assert connection.of(Body) == [Body(b"Hello\r\nWorld\r\n")]
    assert connection.of(Header)[0] == Header(b"From", b"Ann <ann@example.org>")
    assert connection.macros(Command.MAIL).keys() == {b"i"}


VERDICTS = [
    ({}, 0, "accept"),
    ({Command.CONNECT: Accept()}, 0, "accept"),
    ({Command.CONNECT: Discard(), Command.HELO: Discard()}, 0, "accept"),
    ({Command.RCPT: Accept()}, 0, "accept"),
    ({Command.CONNECT: Reject()}, 5, "reject at connect"),
    ({Command.HELO: TempFail()}, 4, "tempfail at helo"),
    ({Command.MAIL: ReplyCode(b"421 4.3.2 later")}, 4, "tempfail at mail"),
    ({Command.RCPT: Reject()}, 5, "reject at rcpt"),
    ({Command.RCPT: Discard()}, 3, "discard at rcpt"),
    ({Command.RCPT: Shutdown()}, 4, "shutdown at rcpt"),
    ({Command.DATA: Reject()}, 5, "reject at data"),
    ({Command.HEADER: TempFail()}, 4, "tempfail at header"),
    ({Command.HEADER: Skip(), Command.END_OF_HEADERS: Discard()}, 3, "discard at end of headers"),
    ({Command.BODY: ReplyCode(b"554 no")}, 5, "reject at body"),
    ({Command.END_OF_MESSAGE: [AddHeader(b"A", b"b"), Reject()]}, 5, "reject at end of message"),
    ({Command.END_OF_MESSAGE: [Quarantine(b"odd"), Continue()]}, 6, "quarantine: odd"),
    ({Command.END_OF_MESSAGE: [Quarantine(b"odd"), TempFail()]}, 4, "tempfail at end of message: odd"),
]


@pytest.mark.parametrize(("script", "expected", "verdict"), VERDICTS, ids=lambda value: str(value)[:60])
async def test_the_exit_code_follows_the_verdict(
    command: Any, script: Any, expected: int, verdict: str
) -> None:
    async with ScriptedMilter(
        script, negotiate=OptNeg(version=6, actions=ALL_ACTIONS, protocol=Protocol.SKIP)
    ) as milter:
        code, out = await check(command, milter, "--rcpt", "a@b", "--rcpt", "<c@d>")
        assert f"Message 1 (sample): {verdict}\n" in out
        assert code == expected
        code, out = await check(command, milter, "--json")
        assert code == json.loads(out)["exit_code"] == expected
        assert milter.connections[0].violations == []


async def test_what_is_sent_and_what_wants_no_answer(command: Any, eml: Path) -> None:
    offer = Protocol.NO_HELO | Protocol.NO_REPLY_CONNECT | Protocol.NO_REPLY_HEADER
    answer = OptNeg(version=6, actions=Action(0), protocol=offer)
    async with ScriptedMilter(negotiate=answer) as milter:
        code, out = await check(command, milter, eml)
    assert code == 0
    silent = re.findall(r" ms +(no.*)$", out, re.MULTILINE)
    assert silent == ["no answer wanted", "not asked", "no answer wanted"]


async def test_void_changes_are_marked(command: Any) -> None:
    script = {Command.END_OF_MESSAGE: [AddHeader(b"A", b"b"), Reject()]}
    async with ScriptedMilter(script) as milter:
        _, out = await check(command, milter)
    assert out.endswith("  client hears 550 5.7.1 Command rejected\n  add_header name=A value=b (void)\n")


async def test_json(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(MESSAGE)))
    script = {
        Command.MAIL: Continue(),
        Command.RCPT: InTurn(ReplyCode(b"550-5.1.1 no\r\n550 5.1.1 user"), Continue()),
        Command.END_OF_MESSAGE: [
            AddHeader(b"X", b"\xff"),
            ReplaceBody(b"x"),
            ReplaceBody(b"y"),
            Quarantine(b"odd"),
            Accept(),
        ],
    }
    answer = OptNeg(
        version=4, actions=Action.QUARANTINE, protocol=Protocol.NO_HELO, macros={Stage.MAIL: (b"i",)}
    )
    async with ScriptedMilter(script, negotiate=answer) as milter:
        code, out = await check(command, milter, "--json", "-")
    result = json.loads(out)
    assert code == result["exit_code"] == 6
    assert result["milter"] == milter.endpoint
    assert result["failure"] is None
    assert result["negotiated"] == {
        "version": 4,
        "actions": ["quarantine"],
        "protocol": ["no helo"],
        "data_size": 65535,
        "macros": {"mail": ["i"]},
    }
    events = {(event["message"], event["stage"], event["argument"]): event for event in result["events"]}
    assert all(event.pop("seconds") >= 0 for event in result["events"])
    assert events[1, "rcpt", "<bob@example.net>"] == {
        "message": 1,
        "stage": "rcpt",
        "argument": "<bob@example.net>",
        "asked": True,
        "answer": 'reply_code code=550 status=5.1.1 text="no\\nuser"',
        "silence": None,
        "smtp": "550-5.1.1 no / 550 5.1.1 user",
    }
    helo = events[None, "helo", "localhost"]
    assert (helo["asked"], helo["answer"], helo["silence"]) == (False, None, "not asked")
    assert result["messages"] == [
        {
            "source": "-",
            "verdict": "quarantine",
            "stage": "end_of_message",
            "smtp": None,
            "refused_recipients": ["<bob@example.net>"],
            "quarantine": "odd",
            "modifications": [
                {"kind": "add_header", "name": "X", "value": "\\xff"},
                {"kind": "replace_body", "bytes": 2, "body": "xy"},
            ],
        }
    ]


async def test_everything_can_be_set(command: Any) -> None:
    async with ScriptedMilter() as milter:
        code, _ = await check(
            *(
                command,
                milter,
                "--client-addr",
                "2001:db8::1",
                "--client-name",
                "client.test",
                "--client-port",
                99,
            ),
            *("--helo", "me.test", "--from", "<a@b>", "--from-arg", "SIZE=9", "--from-arg", "BODY=8BITMIME"),
            *("--rcpt", "c@d", "--rcpt-arg", "NOTIFY=NEVER", "--unknown", "HELP me", "--unknown", "FOO"),
            *(
                "--macro",
                "{auth_authen}=ann",
                "--macro",
                "i=ID",
                "--macros-at",
                "rcpt=i,v",
                "--macros-at",
                "data=",
            ),
            *("--actions", "add-headers,quarantine", "--protocol", "0x1", "--protocol-version", 4),
        )
        connection = await milter.wait_closed()
    assert code == 0
    offer = connection.of(OptNeg)[0]
    assert (offer.version, offer.actions, offer.protocol) == (
        4,
        Action.ADD_HEADERS | Action.QUARANTINE,
        Protocol.NO_CONNECT,
    )
    assert connection.of(Connect) == [
        Connect(hostname=b"client.test", family=Family.INET6, port=99, address=b"2001:db8::1")
    ]
    assert connection.of(Helo) == [Helo(b"me.test")]
    assert connection.of(Unknown) == [Unknown(b"HELP me"), Unknown(b"FOO")]
    assert connection.of(Mail) == [Mail(b"<a@b>", (b"SIZE=9", b"BODY=8BITMIME"))]
    assert connection.of(Rcpt) == [Rcpt(b"<c@d>", (b"NOTIFY=NEVER",))]
    assert connection.macros(Command.CONNECT)[b"{client_name}"] == b"client.test"
    mail = connection.macros(Command.MAIL)
    assert (mail[b"i"], mail[b"{auth_authen}"], mail[b"{mail_addr}"]) == (b"ID", b"ann", b"a@b")
    assert connection.macros(Command.RCPT).keys() == {b"i", b"v"}
    assert "DT" not in connection.codes_with_macros


@pytest.mark.parametrize(
    ("address", "connect"),
    [
        ("unix:/run/s", Connect(hostname=b"localhost", family=Family.UNIX, address=b"/run/s")),
        ("unknown", Connect(hostname=b"unknown")),
    ],
)
async def test_other_clients(command: Any, address: str, connect: Connect) -> None:
    async with ScriptedMilter() as milter:
        await check(command, milter, "--client-addr", address)
        assert (await milter.wait_closed()).of(Connect) == [connect]


async def test_data_sizes(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "large.eml"
    path.write_bytes(b"A: b\r\n\r\n" + b"x" * 70_000)
    answer = OptNeg(version=6, actions=ALL_ACTIONS, protocol=Protocol.DATA_SIZE_1M)
    async with ScriptedMilter(negotiate=answer) as milter:
        _, out = await check(command, milter, "--data-size", "1M", path)
        assert f"{DATA_SIZE_1M} bytes" in out
        await check(command, milter, "--data-size", "1M", "--used-data-size", "64K", path)
        await milter.wait_closed(1)
    assert (
        milter.connections[0].of(OptNeg)[0].protocol
        == ALL_PROTOCOL | Protocol.DATA_SIZE_1M | Protocol.DATA_SIZE_256K
    )
    assert [len(connection.of(Body)[0].chunk) for connection in milter.connections] == [70_002, DATA_SIZE_64K]


# Several messages

SEVERAL = [
    ([], "OCHMRTLNBEAMRTLNBEAQ"),
    (["--no-abort"], "OCHMRTLNBEMRTLNBEQ"),
    (["--new-session"], "OCHMRTLNBEKCHMRTLNBEQ"),
    (["--abort-at", "mail"], "OCHMAMRTLNBEAMAMRTLNBEAQ"),
    (["--abort-at", "rcpt", "--no-abort"], "OCHMRAMRTLNBEMRAMRTLNBEQ"),
    (["--abort-at", "data", "--no-abort"], "OCHMRTAMRTLNBEMRTAMRTLNBEQ"),
    (["--abort-at", "headers", "--no-abort"], "OCHMRTLNAMRTLNBEMRTLNAMRTLNBEQ"),
    (["--abort-at", "body", "--no-abort"], "OCHMRTLNBAMRTLNBEMRTLNBAMRTLNBEQ"),
]


@pytest.mark.parametrize(("options", "codes"), SEVERAL, ids="".join)
async def test_several_messages(command: Any, tmp_path: Path, options: list[str], codes: str) -> None:
    path = tmp_path / "message.eml"
    path.write_bytes(b"A: b\n\nc\n")
    async with ScriptedMilter() as milter:
        code, out = await check(command, milter, *options, path, path)
        assert (await milter.wait_closed()).codes == codes
    assert code == 0
    assert out.count(f"({path}): accept") == 2


async def test_a_new_session_on_a_new_connection(command: Any, eml: Path) -> None:
    async with ScriptedMilter({Command.END_OF_MESSAGE: Accept()}) as milter:
        code, out = await check(command, milter, "--new-session", eml, eml)
        await milter.wait_closed(1)
    assert code == 0
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "new session new connection" in rows
    assert [connection.codes for connection in milter.connections] == ["OCHMRRTLLLNBEQ"] * 2


async def test_what_stands_for_all_messages(command: Any, eml: Path) -> None:
    async with ScriptedMilter({Command.MAIL: Shutdown()}) as milter:
        code, out = await check(command, milter, eml, eml)
        assert (await milter.wait_closed()).codes == "OCHMQ"
    assert code == 4
    assert out.count("shutdown at mail") == 2
    async with ScriptedMilter({Command.RCPT: Shutdown()}) as milter:
        code, out = await check(command, milter, "--abort-at", "data", eml)
        assert (await milter.wait_closed()).codes == "OCHMRAQ"
    async with ScriptedMilter({Command.UNKNOWN: Shutdown()}) as milter:
        code, out = await check(command, milter, "--unknown", "HELP", eml)
        assert (await milter.wait_closed()).codes == "OCHUQ"
    assert (code, "shutdown at unknown" in out) == (4, True)
    async with ScriptedMilter({Command.BODY: Reject()}) as milter:
        code, out = await check(command, milter, "--abort-at", "body", eml)
        assert (await milter.wait_closed()).codes == "OCHMRRTLLLNBAMRRTLLLNBAQ"
    assert code == 5


async def test_the_first_message_that_does_not_pass_decides(command: Any, eml: Path) -> None:
    script = {Command.END_OF_MESSAGE: InTurn(Accept(), Discard(), Reject())}
    async with ScriptedMilter(script) as milter:
        code, _ = await check(command, milter, eml, eml, eml)
    assert code == 3


# Failures and mistakes


async def test_a_milter_that_fails(command: Any) -> None:
    with refusing_address() as (host, port):
        code, out, _ = await command("milter-check", "--connect", f"inet:{host}:{port}")
    assert (code, out) == (1, f"Failed: inet:{host}:{port}: Connection refused [ECONNREFUSED]\n")
    async with ScriptedMilter({Command.RCPT: Close()}) as milter:
        code, out = await check(command, milter)
        assert code == 1
        assert "mail" in out
        assert out.endswith("closed the connection when the reply to RCPT was due\n")
        code, out = await check(command, milter, "--json")
    assert code == 1
    assert json.loads(out)["failure"].endswith("when the reply to RCPT was due")
    assert json.loads(out)["messages"] == []


MISTAKES = [
    (["--connect", "nowhere"], "no milter address"),
    (["--actions", "fly"], "'fly' is not one of add headers"),
    (["--protocol", "-1"], "does not fit into 32 bits"),
    (["--protocol-version", "7"], "--protocol-version"),
    (["--macro", "i"], "'i' is not NAME=VALUE"),
    (["--macros-at", "lunch=i"], "with a stage of connect"),
    (["--client-addr", "nowhere"], "does not appear to be an IPv4 or IPv6 address"),
    (["--client-addr", "unix:"], "does not appear to be an IPv4 or IPv6 address"),
    (["--data-size", "2M"], "64K"),
    (["--abort-at", "lunch"], "mail"),
    (["/nonexistent/message.eml"], "No such file"),
]


@pytest.mark.parametrize(("arguments", "error"), MISTAKES, ids=str)
async def test_usage_mistakes(command: Any, arguments: list[str], error: str) -> None:
    given = arguments if "--connect" in arguments else ["--connect", "inet:127.0.0.1:1", *arguments]
    code, out, err = await command("milter-check", *given)
    assert (code, out) == (2, "")
    assert error in err
    assert "Traceback" not in err


async def test_what_cannot_be_sent_is_no_fault_of_the_milter(command: Any) -> None:
    async with ScriptedMilter() as milter:
        code, out, err = await command("milter-check", "--connect", milter.endpoint, "--helo", "x" * 70_000)
    assert (code, out) == (2, "")
    assert err.endswith("HELO or its macros are longer than 65535 bytes\n")


async def test_macros_that_go_nowhere_are_told(command: Any) -> None:
    own = ("--macro", "{mine}=1", "--macro", "other=2", "--macro", "{auth_type}=PLAIN")
    async with ScriptedMilter() as milter:
        _, out = await check(command, milter, *own, "--macros-at", "rcpt=other")
        assert "  macros that go with no event: {mine} (see --macros-at)\n" in out
        _, out = await check(command, milter, *own, "--macros-at", "rcpt=other", "--json")
        assert json.loads(out)["macros_not_sent"] == ["{mine}"]
        _, out = await check(command, milter, *own, "--macros-at", "rcpt=other,{mine}")
        assert "no event" not in out


async def test_help_documents_the_exit_codes(command: Any) -> None:
    code, out, _ = await command("milter-check", "--help")
    assert code == 0
    assert "exit code" in out
