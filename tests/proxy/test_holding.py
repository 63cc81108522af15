"""What becomes of messages that milters want held, over real sockets."""

import errno
import json
from typing import Any

import pytest

from milterchain.milter.flags import Command
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    AddRecipient,
    ChangeSender,
    Continue,
    DeleteRecipient,
    Quarantine,
    ReplaceBody,
)
from milterchain.proxy import quarantine as store
from milterchain.testing import ScriptedNextHop
from milterchain.testing.faults import Close

END = Command.END_OF_MESSAGE
SPAM = {END: [Quarantine(b"spam \xff"), Continue()]}


def held(world: Any) -> list[dict[str, Any]]:
    return [
        {**json.loads((path / "envelope.json").read_text()), "raw": (path / "message.eml").read_bytes()}
        for path in sorted((world.directory / "quarantine").glob("*"))
    ]


async def send(world: Any) -> str:
    client = await world.client()
    await client.begin("b@example.net", "c@example.net")
    reply = await client.send()
    assert await client.say("NOOP") == "250 2.0.0 Ok"
    return reply


async def test_a_held_message_is_on_disk_when_the_client_hears_250(world: Any) -> None:
    edits = [AddHeader(b"X-Spam", b"yes"), ReplaceBody(b"new\r\n"), ChangeSender(b"<s@x.test>")]
    envelope = [AddRecipient(b"<d@x.test>"), DeleteRecipient(b"<b@example.net>")]
    await world.start({END: [*edits, *envelope, Quarantine(b"virus"), Accept()]}, {})
    reply = await send(world)
    (message,) = held(world)
    assert reply == "250 2.0.0 Ok"
    assert (message["milter"], message["reason"]) == ("m1", "virus")
    assert message["sender"] == {"address": "<s@x.test>", "args": []}
    assert [path["address"] for path in message["recipients"]] == ["<c@example.net>", "<d@x.test>"]
    assert (message["client"], message["helo"]) == ("127.0.0.1", "client.example")
    headers, _, body = message["raw"].partition(b"\r\n\r\n")
    assert headers.startswith(b"Received: from client.example")
    assert message["id"].encode() in headers
    assert headers.endswith(b"X-Spam: yes")
    assert body == b"new\r\n"
    # The next hop was asked for the recipients, and hears no more; the other milter has seen the message.
    assert world.hop.accepted == []
    assert world.milters[1].connections[0].codes.endswith("E")


@pytest.mark.parametrize("at", [Command.CONNECT, Command.MAIL, Command.RCPT, Command.DATA, END], ids=str)
async def test_default_action_quarantine_really_holds(world: Any, at: Command) -> None:
    await world.start({at: Close()}, milter={"default_action": "quarantine"})
    assert await send(world) == "250 2.0.0 Ok"
    (message,) = held(world)
    assert (message["milter"], message["reason"]) == ("m1", "default_action")
    assert world.hop.accepted == []


@pytest.mark.parametrize(
    ("number", "reply"),
    [
        (errno.ENOSPC, "452 4.3.1 Insufficient system storage - try again later"),
        (errno.EIO, "451 4.3.0 The message could not be stored - try again later"),
    ],
)
async def test_what_cannot_be_stored_is_not_taken(
    world: Any, monkeypatch: pytest.MonkeyPatch, number: int, reply: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no")

    await world.start(SPAM)
    monkeypatch.setattr(store, "write_file", fail)
    assert await send(world) == reply
    assert held(world) == []
    assert world.hop.accepted == []


async def test_a_place_that_is_no_directory(world: Any) -> None:
    (world.directory / "file").touch()
    await world.start(SPAM, quarantine={"directory": "file/held"})
    assert (await send(world)).startswith("451 4.3.0 ")


async def test_each_message_has_its_place(world: Any) -> None:
    await world.start(SPAM)
    client = await world.client()
    await client.begin()
    await client.send()
    for _ in range(2):
        await client.envelope()
        await client.send()
    assert len(held(world)) == 3


async def test_a_message_without_recipients_is_held_all_the_same(world: Any) -> None:
    gone = [DeleteRecipient(b"<b@example.net>"), DeleteRecipient(b"<c@example.net>")]
    await world.start({END: [*gone, Quarantine(b"why"), Continue()]})
    assert (await send(world)).startswith("250 ")
    assert held(world)[0]["recipients"] == []


async def test_to_another_next_hop_without_recipients(world: Any) -> None:
    gone = [DeleteRecipient(b"<b@example.net>"), DeleteRecipient(b"<c@example.net>")]
    quarantine = {"action": "next-hop", "next_hop": "discard:"}
    await world.start({END: [*gone, Quarantine(b"why"), Continue()]}, quarantine=quarantine)
    assert await send(world) == "250 2.0.0 Ok"


async def test_an_added_recipient_that_is_no_address_is_not_lost_in_quarantine(world: Any) -> None:
    script = {END: [AddRecipient(b"<d@x\r\ntest>"), Quarantine(b"why"), Continue()]}
    await world.start(script)
    assert await send(world) == "451 4.1.3 Bad address of an added recipient"
    assert held(world) == []


async def test_to_another_next_hop(world: Any) -> None:
    async with ScriptedNextHop({".": "250 2.0.0 Ok: in quarantine"}) as other:
        await world.start(SPAM, quarantine={"action": "next-hop", "next_hop": other.next_hop})
        assert await send(world) == "250 2.0.0 Ok: in quarantine"
        (message,) = other.accepted
        assert message.recipients == (b"b@example.net", b"c@example.net")
        assert world.hop.accepted == []
        await world.app.stop()
    assert held(world) == []


@pytest.mark.parametrize(
    ("script", "reply"),
    [
        ({"MAIL": "550 5.7.1 go away"}, "550"),
        ({"RCPT": "550 5.1.1 who?"}, "451 4.1.1 who?"),
        ({".": "554 5.6.0 too ugly"}, "451 4.6.0 too ugly"),
        ({".": Close()}, "451 4.4.2 The connection to the next hop was lost - try again later"),
    ],
)
async def test_another_next_hop_that_does_not_take_it(world: Any, script: dict[str, Any], reply: str) -> None:
    async with ScriptedNextHop(script) as other:
        await world.start(SPAM, quarantine={"action": "next-hop", "next_hop": other.next_hop})
        heard = await send(world)
        assert heard.startswith("451 4.7.1 go away" if "MAIL" in script else reply)
        assert other.accepted == world.hop.accepted == []
        await world.app.stop()


async def test_a_header_for_the_next_hop(world: Any) -> None:
    await world.start(SPAM, quarantine={"action": "header"})
    assert (await send(world)).startswith("250 ")
    (message,) = world.hop.accepted
    received, _, rest = message.data.partition(b"X-Milterchain-Quarantine: ")
    assert received.startswith(b"Received: ")
    assert rest.startswith(b"m1; spam ?\r\nSubject: hi\r\n")
    assert held(world) == []


async def test_a_reason_cannot_end_the_header(world: Any) -> None:
    reason = b"a\r\nBcc: x\r\n\r\nbody" + b"x" * 1000
    await world.start({END: [Quarantine(reason), Continue()]}, quarantine={"action": "header"})
    await send(world)
    (message,) = world.hop.accepted
    line = message.data.split(b"X-Milterchain-Quarantine: ")[1].split(b"\r\n")[0]
    assert line.startswith(b"m1; a??Bcc: x????body")
    assert len(line) < 600


async def test_log(world: Any, log: Any) -> None:
    await world.start(SPAM)
    await send(world)
    (line,) = [entry for entry in map(json.loads, log.getvalue().splitlines()) if entry["event"] == "message"]
    assert line["result"] == "held"
    assert line["milter"] == "m1"
    assert line["reason"] == r"spam \xff"
    assert [message["id"] for message in held(world)] == [line["queue_id"]]
