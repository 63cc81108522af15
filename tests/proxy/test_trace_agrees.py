"""`milterchain trace` against a real run: milters hear the same, and it says what the client hears."""

from typing import Any

import pytest

from milterchain.cli.trace import TraceRequest, trace_message
from milterchain.milter.flags import Command
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    Continue,
    DeleteRecipient,
    Discard,
    InsertHeader,
    Macros,
    Quarantine,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    TempFail,
)
from milterchain.testing.faults import Close

MESSAGE = b"Subject: hi\r\nFrom: a@example.org\r\nX-Long: a\r\n\tb\r\n\r\nHello\r\n.dot\r\n"
STUFFED = MESSAGE.replace(b"\r\n.", b"\r\n..")

REAL = {b"i", b"{client_port}", b"{daemon_port}"}
"""Macros that are a matter of the session, not of the message."""

E = Command.END_OF_MESSAGE
ADD_NOBODY = AddRecipient(b"<no one@\n>")
SCRIPTS: dict[str, Any] = {
    "nothing": {},
    "accept at connect": {Command.CONNECT: Accept()},
    "accept the message": {Command.MAIL: Accept()},
    "reject at connect": {Command.CONNECT: Reject()},
    "tempfail at connect": {Command.CONNECT: TempFail()},
    "shutdown at connect": {Command.CONNECT: Shutdown()},
    "reject at helo": {Command.HELO: Reject()},
    "shutdown at helo": {Command.HELO: Shutdown()},
    "reject at mail": {Command.MAIL: Reject()},
    "discard at mail": {Command.MAIL: Discard()},
    "reject at rcpt": {Command.RCPT: ReplyCode(b"550 5.1.1 who")},
    "reject one recipient": {Command.RCPT: lambda rcpt: Reject() if b"c@" in rcpt.address else Continue()},
    "discard at rcpt": {Command.RCPT: Discard()},
    "shutdown at rcpt": {Command.RCPT: Shutdown()},
    "reject at data": {Command.DATA: Reject()},
    "discard at data": {Command.DATA: Discard()},
    "reject a header": {Command.HEADER: Reject()},
    "text at the body": {Command.BODY: ReplyCode(b"450 4.7.0 grey")},
    "tempfail at the end": {E: TempFail()},
    "discard at the end": {E: Discard()},
    "shutdown at the end": {E: Shutdown()},
    "quarantine": {E: [Quarantine(b"a virus"), Continue()]},
    "lost at mail": {Command.MAIL: Close()},
    "lost at the end": {E: [AddHeader(b"X", b"1"), Close()]},
    "edits": {
        E: [
            AddHeader(b"X-Added", b"1\n 2"),
            InsertHeader(0, b"X-First", b"0"),
            ChangeHeader(1, b"Subject", b"changed"),
            ChangeHeader(1, b"X-Long", b""),
            ReplaceBody(b"Moon\n.\nend"),
            ChangeSender(b"<new@example.org>"),
            AddRecipient(b"<d@example.net>"),
            DeleteRecipient(b"<b@example.net>"),
            Continue(),
        ]
    },
    "no recipient is left": {
        E: [DeleteRecipient(b"<b@example.net>"), DeleteRecipient(b"<c@example.net>"), Continue()]
    },
    "a recipient that is no address": {E: [ADD_NOBODY, Continue()]},
}


async def play(client: Any) -> list[tuple[str, str]]:
    """Send the message, as far as it gets; each refusal, and the reply to the message."""
    heard = []

    async def refused(command: str, reply: str) -> bool:
        if reply[:1] in {"2", "3"}:
            return False
        heard.append((command, reply))
        return True

    await refused("the connection", await client.reply())
    if heard and heard[0][1].startswith("421"):
        return heard
    if await refused("EHLO", await client.say("EHLO client.example")):
        return heard
    if await refused("MAIL", await client.say("MAIL FROM:<a@example.org>")):
        return heard
    for recipient in ("<b@example.net>", "<c@example.net>"):
        reply = await client.say(f"RCPT TO:{recipient}")
        if await refused(f"RCPT TO:{recipient}", reply) and reply.startswith("421"):
            return heard
    if await refused("DATA", await client.say("DATA")):
        return heard
    client.write(STUFFED + b".\r\n")
    return [*heard, ("the message", await client.reply())]


def told(connection: Any) -> list[Any]:
    """What a milter was told, without what differs between any two sessions."""
    return [
        (command.stage, {name: value for name, value in command.values if name not in REAL})
        if isinstance(command, Macros)
        else command
        for command in connection.commands
        if chr(command.code) not in "AQC"
    ]


@pytest.mark.parametrize("policy", ["tempfail", "log"])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
async def test_trace_and_run(world: Any, script: Any, policy: str) -> None:
    await world.start({}, script, {}, relay={"on_refused_added_recipient": policy})
    heard = await play(await world.client())
    sent = world.directory / "message.eml"
    sent.write_bytes(MESSAGE)
    request = TraceRequest.read(
        *(str(sent), "a@example.org", ["b@example.net", "c@example.net"]), "127.0.0.1", "client.example"
    )
    result = await trace_message(world.app.config, request)

    traced = [(each.command, each.reply) for each in result.heard]
    if world.hop.accepted:
        (message,) = world.hop.accepted
        # That is what trace leaves to the next hop.
        assert heard.pop() == ("the message", "250 2.0.0 Ok: queued as 1")
        assert result.verdict == "accept"
        assert result.sender == f"<{message.sender.decode()}>"
        assert list(result.recipients) == [f"<{recipient.decode()}>" for recipient in message.recipients]
    assert traced == heard
    for milter in world.milters:
        run, trace = milter.connections
        assert told(run) == told(trace)
        assert not trace.violations
