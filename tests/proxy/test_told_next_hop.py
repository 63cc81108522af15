"""The whole proxy before a next hop that is told who the client is: who decides about relaying."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from milterchain.milter import Command
from milterchain.milter.messages import Discard
from milterchain.testing.scripted_next_hop import KEYWORDS, ScriptedNextHop

XCLIENT = (*KEYWORDS, "XCLIENT NAME ADDR PORT PROTO HELO LOGIN")
DENIED = "454 4.7.1 <b@example.net>: Relay access denied"
STRANGERS = {"access": {"trusted_networks": ["192.0.2.0/24"], "relay_domains": ["example.org"]}}


def decide(argument: bytes) -> str | None:
    return DENIED if b"@example.net>" in argument else None


@pytest.fixture
async def told() -> AsyncIterator[ScriptedNextHop]:
    async with ScriptedNextHop({"RCPT": decide}, keywords=XCLIENT) as hop:
        yield hop


async def test_it_decides_itself(world: Any, told: ScriptedNextHop) -> None:
    await world.start({}, relay={"next_hop": [told.next_hop]}, **STRANGERS)
    client = await world.client()
    await client.begin_mail()
    assert await client.say("RCPT TO:<b@example.net>") == DENIED
    assert (await client.say("RCPT TO:<b@example.com>")).startswith("250 ")
    assert (await client.say("RCPT TO:<b@example.org>")).startswith("250 ")
    assert (await client.send()).startswith("250 ")
    assert (await client.say("QUIT")).startswith("221 ")
    session = await told.wait_closed()
    assert session.verbs == "EHLO XCLIENT EHLO MAIL RCPT RCPT RCPT DATA . QUIT"
    assert b" ADDR=127.0.0.1 " in session.commands[1]
    assert b" HELO=client.example " in session.commands[1]
    assert told.accepted[0].recipients == (b"b@example.com", b"b@example.org")
    # The milter heard only of those who were accepted.
    assert world.milters[0].connections[0].codes.count("R") == 2


@pytest.mark.parametrize("mode", ["none", "xforward"])
async def test_our_rule_stands_where_it_is_not_told(world: Any, told: ScriptedNextHop, mode: str) -> None:
    await world.start(relay={"next_hop": [told.next_hop], "client_identity": mode}, **STRANGERS)
    client = await world.client()
    await client.begin_mail()
    reply = await client.say("RCPT TO:<b@example.com>")
    assert reply == "554 5.7.1 <b@example.com>: Relay access denied"
    assert (await client.say("RCPT TO:<b@example.org>")).startswith("250 ")


async def test_a_discarded_message_is_no_way_around_the_rule(world: Any, told: ScriptedNextHop) -> None:
    await world.start({Command.MAIL: Discard()}, relay={"next_hop": [told.next_hop]}, **STRANGERS)
    client = await world.client()
    await client.begin_mail()
    assert (await client.say("RCPT TO:<b@example.com>")).startswith("554 ")
    assert (await client.say("RCPT TO:<b@example.org>")).startswith("250 ")


async def test_a_next_hop_that_is_gone_leaves_it_to_the_rule(world: Any, told: ScriptedNextHop) -> None:
    await world.start(relay={"next_hop": [told.next_hop]}, **STRANGERS)
    await told.stop()
    client = await world.client()
    await client.begin_mail()
    assert (await client.say("RCPT TO:<b@example.com>")).startswith("554 ")
    assert (await client.say("RCPT TO:<b@example.org>")).startswith("451 4.4.1 ")
