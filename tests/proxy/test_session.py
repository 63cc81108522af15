"""The proxy as an SMTP client, the milters and the next hop see it, over real sockets."""

import asyncio
import errno
import json
import os
import re
from typing import Any, NoReturn

import pytest

from milterchain.milter.flags import Command, Protocol
from milterchain.milter.messages import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    Continue,
    DeleteRecipient,
    Discard,
    InsertHeader,
    Mail,
    OptNeg,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    TempFail,
)
from milterchain.testing import Close, InTurn, Late, ScriptedMilter, Silence

MESSAGE = b"Subject: hi\r\nFrom: a@example.org\r\n\r\nHello\r\n"


def without_received(data: bytes) -> bytes:
    """What follows our own header."""
    assert data.startswith(b"Received: from ")
    return re.sub(rb"\AReceived:.*\r\n(?:\t.*\r\n)*", b"", data)


async def test_a_message_goes_through(world: Any) -> None:
    await world.start({}, {})
    client = await world.client()
    await client.begin("b@example.net", "c@example.net")
    assert await client.send(MESSAGE) == "250 2.0.0 Ok: queued as 1"
    (message,) = world.hop.accepted
    assert message.sender == b"a@example.org"
    assert message.recipients == (b"b@example.net", b"c@example.net")
    received, _, rest = message.data.partition(b"Subject:")
    assert b"Subject:" + rest == MESSAGE
    assert re.fullmatch(
        rb"Received: from client\.example \(unknown \[127\.0\.0\.1\]\)\r\n"
        rb"\tby mx\.test \(milterchain\) with ESMTP id [0-9A-Z]{16};\r\n\t[^\r\n]+ \+0000\r\n",
        received,
    )
    for milter in world.milters:
        assert milter.connections[0].codes == "OCHMRRTLLNBE"
    assert await client.say("QUIT") == "221 2.0.0 Bye"
    assert await client.at_end()
    assert (await world.milters[0].wait_closed()).codes.startswith("OCHMRRTLLNBE")


async def test_the_only_recipient_is_named_in_received(world: Any) -> None:
    await world.start()
    client = await world.client()
    await client.reply()
    await client.say("HELO client.example")
    await client.envelope()
    await client.send()
    assert re.search(rb" with SMTP id \w+\r\n\tfor <b@example\.net>;\r\n", world.hop.accepted[0].data)


async def test_without_received(world: Any) -> None:
    await world.start(
        {Command.END_OF_MESSAGE: [InsertHeader(1, b"X-A", b"1"), Continue()]}, relay={"received": False}
    )
    client = await world.client()
    await client.begin()
    await client.send(MESSAGE)
    assert world.hop.accepted[0].data == b"X-A: 1\r\n" + MESSAGE


async def test_several_messages_in_a_session(world: Any) -> None:
    await world.start({}, {})
    client = await world.client()
    await client.begin()
    for number in range(3):
        if number:
            await client.envelope()
        assert await client.send(b"Subject: %d\r\n\r\n" % number) == f"250 2.0.0 Ok: queued as {number + 1}"
    assert [without_received(message.data) for message in world.hop.accepted] == [
        b"Subject: 0\r\n\r\n",
        b"Subject: 1\r\n\r\n",
        b"Subject: 2\r\n\r\n",
    ]
    (connection,) = world.milters[0].connections
    assert connection.codes == "OCH" + "MRTLNE" * 3
    ids = [connection.macros(Command.MAIL, number)[b"i"] for number in range(3)]
    assert len(set(ids)) == 3
    assert [re.search(rb" id (\w+)", message.data)[1] for message in world.hop.accepted] == ids  # type: ignore[index]


async def test_rset_ends_a_transaction_everywhere(world: Any) -> None:
    await world.start({})
    client = await world.client()
    await client.begin()
    assert await client.say("RSET") == "250 2.0.0 Ok"
    await client.envelope("c@example.net")
    await client.send()
    assert world.milters[0].connections[0].codes == "OCHMRAMRTLLNBE"
    assert [message.recipients for message in world.hop.accepted] == [(b"c@example.net",)]


async def test_ehlo_again_ends_a_transaction(world: Any) -> None:
    await world.start({})
    client = await world.client()
    await client.begin()
    assert (await client.say("EHLO other.example")).startswith("250-mx.test")
    assert await client.say("RCPT TO:<b@example.net>") == "503 5.5.1 Error: need MAIL command"
    await client.envelope("c@example.net")
    await client.send()
    assert world.milters[0].connections[0].codes == "OCHMRAHMRTLLNBE"
    assert b"from other.example (" in world.hop.accepted[0].data


@pytest.mark.parametrize("within", ["session", "transaction", "data"])
async def test_a_lost_client_leaves_nothing_open(world: Any, within: str) -> None:
    await world.start({})
    client = await world.client()
    await client.begin()
    if within == "session":
        await client.say("RSET")
    if within == "data":
        await client.say("DATA")
        client.write(b"Subject: half")
    client.abort()
    connection = await world.milters[0].wait_closed()
    assert connection.codes == ("OCHMRTAQ" if within == "data" else "OCHMRAQ")
    assert not connection.violations
    assert not world.hop.messages


async def test_a_message_outlives_its_client(world: Any) -> None:
    there = asyncio.Event()
    await world.start({}, hop={".": [Late(there), "250 2.0.0 Ok"]})
    client = await world.client()
    await client.begin()
    await client.say("DATA")
    client.write(MESSAGE + b".\r\n")
    await world.hop.wait_for(lambda: world.hop.messages)
    client.abort()
    there.set()
    await world.hop.wait_for(lambda: world.hop.accepted)


# Recipients: the access rule, then the next hop, then the milters.


async def test_replies_of_the_next_hop_reach_the_client_word_by_word(world: Any) -> None:
    replies = InTurn("550-5.1.1 nobody\n550 5.1.1 of that name", "250 2.1.5 certainly", "452 4.2.2 full")
    await world.start({}, hop={"RCPT": replies, ".": "250-2.6.0 many\n250 2.6.0 thanks"})
    client = await world.client()
    await client.begin_mail()
    assert await client.say("RCPT TO:<x@example.net>") == "550-5.1.1 nobody\n550 5.1.1 of that name"
    assert await client.say("RCPT TO:<y@example.net>") == "250 2.1.5 certainly"
    assert await client.say("RCPT TO:<z@example.net>") == "452 4.2.2 full"
    assert await client.send() == "250-2.6.0 many\n250 2.6.0 thanks"
    (rcpt,) = world.milters[0].connections[0].of(Rcpt)
    assert rcpt.address == b"<y@example.net>"


async def test_milters_that_want_to_hear_of_refused_recipients(world: Any) -> None:
    wants = OptNeg(version=6, actions=0, protocol=Protocol.RCPT_REJECTED)
    refusal = "550 5.1.1 User unknown"
    await world.start(
        ScriptedMilter({}, negotiate=wants),
        {},
        hop={"RCPT": lambda address: refusal if b"x@" in address else None},
    )
    client = await world.client()
    await client.begin_mail()
    assert await client.say("RCPT TO:<x@example.net>") == refusal
    assert (await client.say("RCPT TO:<y@example.net>")).startswith("250 ")
    told, untold = (milter.connections[0] for milter in world.milters)
    assert [rcpt.address for rcpt in told.of(Rcpt)] == [b"<x@example.net>", b"<y@example.net>"]
    assert told.macros(Command.RCPT, 0)[b"{rcpt_mailer}"] == b"error"
    assert told.macros(Command.RCPT, 0)[b"{rcpt_host}"] == b"5.1.1"
    assert [rcpt.address for rcpt in untold.of(Rcpt)] == [b"<y@example.net>"]


async def test_a_foreign_client_may_not_relay(world: Any) -> None:
    await world.start({}, access={"trusted_networks": [], "relay_domains": ["example.net"]})
    client = await world.client()
    await client.begin_mail()
    denied = "554 5.7.1 <b@other.test>: Relay access denied"
    assert await client.say("RCPT TO:<b@other.test>") == denied
    assert not any("RCPT" in connection.verbs for connection in world.hop.connections)
    assert (await client.say("RCPT TO:<b@example.net>")).startswith("250 ")
    assert [rcpt.address for rcpt in world.milters[0].connections[0].of(Rcpt)] == [b"<b@example.net>"]


async def test_a_recipient_that_a_milter_refused_is_taken_back_from_the_next_hop(world: Any) -> None:
    refuse = lambda rcpt: Reject() if b"bad@" in rcpt.address else Continue()  # noqa: E731
    await world.start({Command.RCPT: refuse}, {})
    client = await world.client()
    await client.begin("b@example.net")
    assert await client.say("RCPT TO:<bad@example.net>") == "550 5.7.1 Command rejected"
    assert (await client.say("RCPT TO:<c@example.net>")).startswith("250 ")
    assert await client.send() == "250 2.0.0 Ok: queued as 1"
    assert world.hop.accepted[0].recipients == (b"b@example.net", b"c@example.net")
    assert world.hop.connections[-1].verbs == "EHLO MAIL RCPT RCPT RCPT RSET MAIL RCPT RCPT DATA ."
    # The other milter had taken it: it hears the envelope again, without it.
    assert world.milters[1].connections[0].codes == "OCHMRRRAMRRTLLNBE"


async def test_no_recipient_is_left(world: Any) -> None:
    await world.start({Command.RCPT: TempFail()})
    client = await world.client()
    await client.begin_mail()
    await client.say("RCPT TO:<b@example.net>")
    assert await client.send() == "554 5.5.1 Error: no valid recipients"


@pytest.mark.parametrize("stage", [Command.MAIL, Command.RCPT, Command.DATA, Command.END_OF_MESSAGE])
async def test_a_discarded_message_is_a_success_that_nobody_else_sees(world: Any, stage: Command) -> None:
    await world.start({stage: Discard()}, {})
    client = await world.client()
    await client.begin()
    assert await client.send() == "250 2.0.0 Ok"
    assert not world.hop.messages
    assert "E" not in world.milters[1].connections[0].codes
    await client.envelope()
    assert world.milters[1].connections[0].of(Mail)[-1]


# The message: the milters' edits, the next hop's words.

EDITS = [
    AddHeader(b"X-Added", b"1"),
    ChangeHeader(1, b"Subject", b"changed"),
    ReplaceBody(b"New body\r\n"),
    ChangeSender(b"<new@example.org>"),
    AddRecipient(b"<added@example.net>"),
    DeleteRecipient(b"<b@example.net>"),
    Continue(),
]


async def test_edits_reach_the_next_hop_and_later_milters(world: Any) -> None:
    await world.start({Command.END_OF_MESSAGE: EDITS}, {})
    client = await world.client()
    await client.begin("b@example.net", "c@example.net")
    assert await client.send(MESSAGE) == "250 2.0.0 Ok: queued as 1"
    (message,) = world.hop.accepted
    assert message.sender == b"new@example.org"
    assert message.recipients == (b"c@example.net", b"added@example.net")
    changed = b"Subject: changed\r\nFrom: a@example.org\r\nX-Added: 1\r\n\r\nNew body\r\n"
    assert without_received(message.data) == changed
    assert world.milters[1].connections[0].codes == "OCHMRRTLLLNBE"


@pytest.mark.parametrize(("limit", "passes"), [("64KiB", False), ("2MiB", True)])
async def test_what_a_milter_may_send_back_is_bounded_by_the_size_of_messages(
    world: Any, limit: str, *, passes: bool
) -> None:
    body = b"x" * 78 + b"\r\n"
    edits = [ReplaceBody(body * 25_000), Continue()]
    await world.start({Command.END_OF_MESSAGE: edits}, limits={"message_size": limit})
    client = await world.client()
    await client.begin()
    assert (await client.send()).startswith("250 2.0.0" if passes else "451 4.7.1")
    assert [message.data[-80:] for message in world.hop.accepted] == [body] * passes


async def test_a_milter_that_deletes_every_recipient_discards(world: Any) -> None:
    await world.start({Command.END_OF_MESSAGE: [DeleteRecipient(b"<b@example.net>"), Continue()]})
    client = await world.client()
    await client.begin()
    assert await client.send() == "250 2.0.0 Ok"
    assert not world.hop.messages


@pytest.mark.parametrize("policy", ["tempfail", "log"])
async def test_an_added_recipient_that_the_next_hop_refuses(world: Any, policy: str) -> None:
    hop = {"RCPT": lambda address: "550 5.1.1 nobody" if b"added@" in address else None}
    await world.start({Command.END_OF_MESSAGE: EDITS}, hop=hop, relay={"on_refused_added_recipient": policy})
    client = await world.client()
    await client.begin("b@example.net", "c@example.net")
    reply = await client.send()
    assert reply == ("250 2.0.0 Ok: queued as 1" if policy == "log" else "451 4.1.1 nobody")
    assert [message.recipients for message in world.hop.accepted] == (
        [(b"c@example.net",)] if policy == "log" else []
    )


@pytest.mark.parametrize("policy", ["tempfail", "log"])
@pytest.mark.parametrize("left", [True, False])
async def test_an_added_recipient_that_is_no_address(
    world: Any, log: Any, policy: str, *, left: bool
) -> None:
    """It is refused by us, as the next hop would: a redirection that failed must not swallow the message."""
    edits = [AddRecipient(b"<no body>"), DeleteRecipient(b"<b@example.net>"), Continue()]
    await world.start({Command.END_OF_MESSAGE: edits}, relay={"on_refused_added_recipient": policy})
    client = await world.client()
    await client.begin(*["b@example.net", "c@example.net"][: 1 + left])
    reply = await client.send()
    passes = left and policy == "log"
    assert reply == ("250 2.0.0 Ok: queued as 1" if passes else "451 4.1.3 Bad address of an added recipient")
    assert len(world.hop.accepted) == passes
    assert "modification dropped" in log.getvalue()


async def test_a_refusal_of_the_message_reaches_the_client_word_by_word(world: Any) -> None:
    await world.start({}, hop={".": InTurn("554 5.6.0 we do not like it", "451 4.3.0 later")})
    client = await world.client()
    await client.begin()
    assert await client.send() == "554 5.6.0 we do not like it"
    await client.envelope()
    assert await client.send() == "451 4.3.0 later"


@pytest.mark.parametrize("fault", [Close(), "421 4.3.2 going down"], ids=str)
async def test_a_next_hop_that_fails_after_the_dot_is_in_doubt(world: Any, fault: Any) -> None:
    await world.start({}, hop={".": fault})
    client = await world.client()
    await client.begin()
    assert (await client.send()).startswith("451 4.")
    assert await client.say("RSET") == "250 2.0.0 Ok"


async def test_no_next_hop(world: Any) -> None:
    await world.start({})
    await world.hop.stop()
    client = await world.client()
    await client.begin_mail()
    reply = await client.say("RCPT TO:<b@example.net>")
    assert reply == "451 4.4.1 The next hop cannot be reached - try again later"
    await world.hop.start()
    assert (await client.say("RCPT TO:<b@example.net>")).startswith("250 ")
    assert (await client.send()).startswith("250 ")


async def test_the_whole_has_a_time(world: Any) -> None:
    await world.start({Command.END_OF_MESSAGE: Silence()}, limits={"message_timeout": "200ms"})
    client = await world.client()
    await client.begin()
    assert (await client.send()).startswith("451 4.")
    assert await client.say("NOOP") == "250 2.0.0 Ok"


async def test_after_a_milter_was_too_slow_its_default_action_is_the_answer(world: Any, log: Any) -> None:
    await world.start(
        {Command.END_OF_MESSAGE: Silence()},
        milter={"default_action": "accept"},
        limits={"message_timeout": "200ms"},
    )
    client = await world.client()
    await client.begin()
    assert await client.send() == "451 4.7.1 Service unavailable - try again later"
    assert any(line["event"] == "milter failed" and line["milter"] == "m1" for line in lines(log.getvalue()))
    await client.envelope()
    assert (await client.send()).startswith("250 ")
    assert len(world.hop.accepted) == 1


async def test_the_time_covers_the_next_hop(world: Any) -> None:
    await world.start(hop={".": Silence()}, limits={"message_timeout": "200ms"})
    client = await world.client()
    await client.begin()
    assert await client.send() == "451 4.4.2 Processing takes too long - try again later"
    assert await client.say("NOOP") == "250 2.0.0 Ok"


async def test_features_of_the_next_hop_are_offered(world: Any) -> None:
    await world.start()
    client = await world.client()
    await client.reply()
    offered = await client.say("EHLO client.example")
    assert "250-DSN" in offered
    assert "SMTPUTF8" in offered
    assert "SIZE 52428800" in offered
    assert (await client.say("MAIL FROM:<a@example.org> RET=HDRS SMTPUTF8")).startswith("250 ")
    assert (await client.say("RCPT TO:<b@example.net> NOTIFY=NEVER")).startswith("250 ")
    assert (await client.send()).startswith("250 ")
    (message,) = world.hop.accepted
    assert message.mail.endswith(b"RET=HDRS SMTPUTF8")
    assert message.rcpts[0].endswith(b"NOTIFY=NEVER")
    assert b" with UTF8SMTP id " in message.data


# What is logged.


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_one_line_tells_what_became_of_a_message(world: Any, log: Any) -> None:
    await world.start({Command.END_OF_MESSAGE: [AddHeader(b"X-A", b"1"), Continue()]}, {})
    client = await world.client()
    await client.begin()
    await client.send()
    (summary,) = [line for line in lines(log.getvalue()) if line["event"] == "message"]
    assert summary["result"] == "relayed"
    assert summary["changed_by"] == ["m1"]
    assert summary["reply"] == "250 2.0.0 Ok: queued as 1"
    assert summary["recipients"] == ["b@example.net"]
    assert summary["queue_id"].encode() in world.hop.accepted[0].data
    assert summary["session"]


async def test_a_message_that_cannot_be_taken_is_logged_too(world: Any, log: Any) -> None:
    await world.start(limits={"message_size": 100})
    client = await world.client()
    await client.begin()
    assert await client.send(MESSAGE * 10) == "552 5.3.4 Error: message size exceeds fixed limit"
    (summary,) = [line for line in lines(log.getvalue()) if line["event"] == "message"]
    assert (summary["result"], summary["reply"][:9]) == ("not taken", "552 5.3.4")
    assert summary["recipients"] == ["b@example.net"]


async def test_no_room_for_a_message_is_logged_with_its_cause(
    world: Any, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("milterchain.mail.body.BodyWriter.write", full)
    await world.start()
    client = await world.client()
    await client.begin()
    assert (await client.send()).startswith("452 4.3.1 ")
    assert await client.say("NOOP") == "250 2.0.0 Ok"
    cause, summary = lines(log.getvalue())
    assert cause["level"] == "error"
    assert "No space left on device" in cause["event"]
    assert summary["result"] == "not taken"


async def test_a_message_that_was_broken_off_is_logged_a_probe_is_not(world: Any, log: Any) -> None:
    await world.start()
    for _ in range(3):
        (await world.client()).abort()
    client = await world.client()
    await client.begin()
    await client.say("DATA")
    client.write(b"Subject: hal")
    client.abort()
    await world.app.stop()
    (summary,) = lines(log.getvalue())
    assert (summary["event"], summary["result"]) == ("message", "broken off")


async def test_a_failed_next_hop_is_logged_with_its_name_and_cause(world: Any, log: Any) -> None:
    await world.start(hop={"RCPT": Silence()}, relay={"command_timeout": "100ms"})
    client = await world.client()
    await client.begin_mail()
    assert (await client.say("RCPT TO:<b@example.net>")).startswith("451 4.4.2 ")
    (failure,) = [line for line in lines(log.getvalue()) if line["event"] == "next hop failed"]
    assert (failure["hop"], failure["level"]) == (world.hop.next_hop, "warning")
    assert failure["error"] == "did not answer in time"


async def test_a_message_that_the_next_hop_did_not_answer_is_a_warning(world: Any, log: Any) -> None:
    await world.start(hop={".": Close()})
    client = await world.client()
    await client.begin()
    assert (await client.send()).startswith("451 4.4.2 ")
    (summary,) = [line for line in lines(log.getvalue()) if line["event"] == "message"]
    assert (summary["result"], summary["level"]) == ("next hop failed", "warning")
    assert summary["hop"] == world.hop.next_hop


async def test_a_failed_milter_is_logged_with_its_cause(world: Any, log: Any) -> None:
    await world.start({Command.MAIL: Close()})
    client = await world.client()
    await client.reply()
    await client.say("EHLO client.example", "MAIL FROM:<a@example.org>")
    (failure,) = [line for line in lines(log.getvalue()) if line["event"] == "milter failed"]
    assert (failure["milter"], failure["stage"], failure["level"]) == ("m1", "mail", "warning")
    assert failure["error"]
    assert failure["queue_id"]


async def test_a_refusal_is_logged_with_who_and_what(world: Any, log: Any) -> None:
    await world.start({}, {Command.RCPT: ReplyCode(b"550 5.7.0 not you")})
    client = await world.client()
    await client.begin_mail()
    await client.say("RCPT TO:<b@example.net>")
    (refused,) = [line for line in lines(log.getvalue()) if line["event"] == "refused"]
    assert (refused["stage"], refused["milter"], refused["recipient"]) == ("rcpt", "m2", "b@example.net")
    assert refused["reply"] == "550 5.7.0 not you"
    assert who(refused) == ("127.0.0.1", "client.example", "a@example.org")


def who(refused: dict[str, Any]) -> tuple[str, str, str]:
    """What each refusal says, wherever it is."""
    return refused["client"], refused["helo"], refused["sender"]


@pytest.mark.parametrize("stage", ["mail", "data"])
async def test_all_refusals_say_of_whom(world: Any, log: Any, stage: str) -> None:
    await world.start({Command[stage.upper()]: Reject()})
    client = await world.client()
    await client.reply()
    await client.say("EHLO client.example", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.net>", "DATA")
    (refused,) = [line for line in lines(log.getvalue()) if line["event"] == "refused"]
    assert (refused["stage"], refused["milter"]) == (stage, "m1")
    assert who(refused) == ("127.0.0.1", "client.example", "a@example.org")


async def test_a_refusal_by_the_next_hop_says_of_whom(world: Any, log: Any) -> None:
    await world.start({}, hop={"RCPT": "550 5.1.1 who"})
    client = await world.client()
    await client.begin_mail()
    await client.say("RCPT TO:<b@example.net>")
    (refused,) = [line for line in lines(log.getvalue()) if line["event"] == "refused"]
    assert (refused["by"], *who(refused)) == ("next hop", "127.0.0.1", "client.example", "a@example.org")


@pytest.mark.parametrize("stage", ["connect", "helo"])
@pytest.mark.parametrize("answer", [TempFail(), Reject()], ids=["tempfail", "reject"])
async def test_a_refusal_that_stands_names_each_sender_it_keeps_out(
    world: Any, log: Any, stage: str, answer: Any
) -> None:
    await world.start({}, {Command[stage.upper()]: answer})
    client = await world.client()
    await client.reply()
    reply = await client.say("EHLO client.example", "MAIL FROM:<a@example.org>")
    first, refused = [line for line in lines(log.getvalue()) if line["event"] == "refused"]
    assert (first["stage"], first["client"]) == (stage, "127.0.0.1")
    assert (refused["stage"], refused["milter"], refused["reply"]) == ("mail", "m2", reply)
    assert who(refused) == ("127.0.0.1", "client.example", "a@example.org")


async def test_an_internal_error_is_a_tempfail_and_logged(
    world: Any, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("milterchain.proxy.transaction.received_header", broken)
    await world.start({})
    client = await world.client()
    await client.begin()
    assert await client.send() == "451 4.3.0 Error: internal error, try again later"
    assert await client.say("NOOP") == "250 2.0.0 Ok"
    (error,) = [line for line in lines(log.getvalue()) if line["event"] == "internal error"]
    assert "a secret" in error["exception"]
    assert error["queue_id"]
    assert not world.hop.messages


async def test_a_health_probe_is_nothing_to_tell_of(world: Any, log: Any) -> None:
    await world.start({})
    before = log.getvalue()
    client = await world.client()
    await client.reply()
    client.abort()
    await world.milters[0].wait_closed()
    await world.app.drain()
    assert log.getvalue() == before
