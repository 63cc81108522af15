"""Each verdict of a milter at each stage, and each default action, as the SMTP client hears it."""

from typing import Any

import pytest

from milterchain.milter.flags import Command
from milterchain.milter.messages import (
    Accept,
    Continue,
    Discard,
    Quarantine,
    Reject,
    ReplyCode,
    Shutdown,
    TempFail,
    Unknown,
)
from milterchain.testing.faults import Close, Garbage, Reset

REJECTED = "550 5.7.1 Command rejected"
LATER = "451 4.7.1 Service unavailable - try again later"
CLOSING = "421 4.7.0 Server closing connection"
BANNER = "554 mx.test ESMTP not accepting connections"
MINIMAL = "250-mx.test\n250 ENHANCEDSTATUSCODES"
FAILED = {
    "reject": "550 5.5.0 Service unavailable",
    "tempfail": "451 4.7.1 Service unavailable - try again later",
    "shutdown": "421 4.7.1 Service unavailable - try again later",
}
OUR_TEXT = "550 5.7.0 not you"
OUR_LATER = "450 4.7.0 not now"
OUR_CLOSE = "421 4.7.0 go away"
MAIL_FIRST = "503 5.5.1 Error: need MAIL command"

USUAL = {
    "greeting": "220 ",
    "ehlo": "250-mx.test\n250-",
    "mail": "250 2.1.0 Ok",
    "rcpt": "250 ",
    "data": "354 ",
    "message": "250 2.0.0 Ok",
    "next": "250 2.1.0 Ok",
}


async def walk(client: Any) -> dict[str, str]:
    """Go on until a command after the greeting is refused; what was heard, by stage."""
    heard = {"greeting": await client.reply()}
    if not heard["greeting"].startswith(("220", "554")):
        return heard
    for stage, command in (
        ("ehlo", "EHLO client.example"),
        ("mail", "MAIL FROM:<a@example.org>"),
        ("rcpt", "RCPT TO:<b@example.net>"),
        ("data", "DATA"),
        ("message", "Subject: hi\r\n\r\nHello\r\n."),
        ("next", "MAIL FROM:<c@example.org>"),
    ):
        heard[stage] = await client.say(command)
        if not heard[stage].startswith(("2", "3")):
            break
    return heard


def differs(heard: dict[str, str]) -> dict[str, str]:
    """What is not as usual."""
    return {stage: reply for stage, reply in heard.items() if not reply.startswith(USUAL[stage])}


CONTENT = (Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE)
STAGE_OF = {
    Command.MAIL: "mail",
    Command.RCPT: "rcpt",
    Command.DATA: "data",
    **dict.fromkeys(CONTENT, "message"),
}

ROWS: list[tuple[Command, Any, dict[str, str]]] = [
    # A refusal at connect: for good in the greeting, for now at MAIL.
    (Command.CONNECT, Reject(), {"greeting": BANNER, "ehlo": MINIMAL, "mail": REJECTED}),
    (Command.CONNECT, TempFail(), {"mail": LATER}),
    (Command.CONNECT, ReplyCode(OUR_TEXT.encode()), {"greeting": BANNER, "ehlo": MINIMAL, "mail": OUR_TEXT}),
    (Command.CONNECT, ReplyCode(OUR_LATER.encode()), {"mail": OUR_LATER}),
    (
        Command.CONNECT,
        ReplyCode(OUR_CLOSE.encode()),
        {"greeting": "421 mx.test Service unavailable - try again later"},
    ),
    (
        Command.CONNECT,
        Shutdown(),
        {"greeting": "421 mx.test Service unavailable - try again later"},
    ),
    (Command.CONNECT, Discard(), {}),
    (Command.CONNECT, Accept(), {}),
    (Command.HELO, Reject(), {"ehlo": MINIMAL, "mail": REJECTED}),
    (Command.HELO, TempFail(), {"mail": LATER}),
    (Command.HELO, ReplyCode(OUR_TEXT.encode()), {"ehlo": MINIMAL, "mail": OUR_TEXT}),
    (Command.HELO, ReplyCode(OUR_LATER.encode()), {"mail": OUR_LATER}),
    (Command.HELO, ReplyCode(OUR_CLOSE.encode()), {"ehlo": OUR_CLOSE}),
    (Command.HELO, Shutdown(), {"ehlo": CLOSING}),
    (Command.HELO, Discard(), {}),
    (Command.HELO, Accept(), {}),
    *(
        (command, answer, {STAGE_OF[command]: reply} if reply else {})
        for command in STAGE_OF
        for answer, reply in (
            (Reject(), REJECTED),
            (TempFail(), LATER),
            (ReplyCode(OUR_TEXT.encode()), OUR_TEXT),
            (ReplyCode(OUR_LATER.encode()), OUR_LATER),
            (ReplyCode(OUR_CLOSE.encode()), OUR_CLOSE),
            (ReplyCode(b"550-5.7.0 one\r\n550 5.7.0 two"), "550-5.7.0 one\n550 5.7.0 two"),
            (Shutdown(), "421 4.7.0 Service unavailable" if command in CONTENT else CLOSING),
            (Discard(), ""),
            (Accept(), ""),
        )
    ),
]


@pytest.mark.parametrize(
    ("command", "answer", "expected"), ROWS, ids=[f"{command.name}-{answer}" for command, answer, _ in ROWS]
)
async def test_a_verdict_as_the_client_hears_it(
    world: Any, command: Command, answer: Any, expected: dict[str, str]
) -> None:
    await world.start({command: answer})
    client = await world.client()
    heard = await walk(client)
    assert differs(heard) == expected
    relayed = not expected and (not isinstance(answer, Discard) or command in {Command.CONNECT, Command.HELO})
    assert len(world.hop.accepted) == (1 if relayed else 0)
    last = list(heard.values())[-1]
    if last.startswith("421"):
        assert await client.at_end()
    else:
        assert await client.say("RSET") == "250 2.0.0 Ok"
        assert await client.say("QUIT") == "221 2.0.0 Bye"
    assert all(not connection.violations for milter in world.milters for connection in milter.connections)
    assert all(not connection.violations for connection in world.hop.connections)


SESSION = (Command.CONNECT, Command.HELO, Command.MAIL, Command.RCPT, Command.DATA, Command.END_OF_MESSAGE)


def failed(action: str, command: Command) -> dict[str, str]:
    """What the client hears when the milter dies at a command."""
    reply = FAILED.get(action)
    if reply is None:
        return {}
    if command is Command.CONNECT:
        if action == "reject":
            return {"greeting": BANNER, "ehlo": MINIMAL, "mail": reply}
        if action == "shutdown":
            return {"greeting": "421 mx.test Service unavailable - try again later"}
        return {"mail": reply}
    if command is Command.HELO:
        stage = {"reject": {"ehlo": MINIMAL, "mail": reply}, "shutdown": {"ehlo": reply}}
        return stage.get(action, {"mail": reply})
    return {STAGE_OF[command]: reply}


@pytest.mark.parametrize("command", SESSION, ids=lambda command: command.name)
@pytest.mark.parametrize("action", ["accept", "quarantine", *FAILED])
async def test_a_default_action_as_the_client_hears_it(world: Any, action: str, command: Command) -> None:
    await world.start({command: Close()}, milter={"default_action": action})
    client = await world.client()
    assert differs(await walk(client)) == failed(action, command)
    assert len(world.hop.accepted) == (1 if action == "accept" else 0)


@pytest.mark.parametrize("command", [Command.CONNECT, Command.HELO], ids=str)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Reject(), REJECTED),
        (TempFail(), LATER),
        (ReplyCode(OUR_TEXT.encode()), OUR_TEXT),
        (Continue(), "252 2.0.0 Cannot VRFY user, but will take a message for it"),
    ],
)
async def test_vrfy_repeats_a_refusal_that_stands(
    world: Any, command: Command, answer: Any, expected: str
) -> None:
    await world.start({command: answer})
    client = await world.client()
    await client.reply()
    await client.say("EHLO client.example")
    assert await client.say("VRFY a@example.org") == expected


@pytest.mark.parametrize("fault", [Reset(), Garbage(), b"\0\0\0\x01\xff"], ids=str)
async def test_every_fault_is_a_tempfail_by_default(world: Any, fault: Any) -> None:
    await world.start({Command.MAIL: fault})
    client = await world.client()
    assert differs(await walk(client)) == {"mail": FAILED["tempfail"]}


async def test_a_reply_that_no_server_may_send(world: Any) -> None:
    await world.start({Command.MAIL: ReplyCode(b"999 what")}, milter={"default_action": "reject"})
    client = await world.client()
    assert differs(await walk(client)) == {"mail": "451 4.3.5 Server configuration problem - try again later"}


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("hold", {}),
        ("tempfail", {"message": "451 4.7.1 Message not accepted - try again later"}),
        ("reject", {"message": "550 5.7.1 Message refused"}),
    ],
)
async def test_quarantine_as_the_client_hears_it(world: Any, action: str, expected: dict[str, str]) -> None:
    script = {Command.END_OF_MESSAGE: (Quarantine(b"spam"), Continue())}
    await world.start(script, quarantine={"action": action})
    client = await world.client()
    assert differs(await walk(client)) == expected
    assert not world.hop.accepted


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (Reject(), "500 5.5.2 Error: command not recognized"),
        (TempFail(), LATER),
        (ReplyCode(OUR_LATER.encode()), OUR_LATER),
        (Shutdown(), CLOSING),
        (Continue(), "500 5.5.2 Error: command not recognized"),
    ],
    ids=str,
)
async def test_unknown_commands(world: Any, answer: Any, reply: str) -> None:
    await world.start({Command.UNKNOWN: answer})
    client = await world.client()
    await client.reply()
    await client.say("EHLO client.example")
    assert await client.say("BOGUS and more") == reply
    (unknown,) = world.milters[0].connections[0].of(Unknown)
    assert unknown.text == b"BOGUS and more"


async def test_the_first_in_order_decides_not_the_fastest(world: Any) -> None:
    await world.start({Command.MAIL: TempFail()}, {Command.MAIL: Reject()})
    client = await world.client()
    assert differs(await walk(client)) == {"mail": LATER}


async def test_a_refusal_at_helo_stands_but_one_at_mail_does_not(world: Any) -> None:
    await world.start({Command.MAIL: [Reject()]})
    client = await world.client()
    assert differs(await walk(client)) == {"mail": REJECTED}
    assert await client.say("RCPT TO:<b@example.net>") == MAIL_FIRST
