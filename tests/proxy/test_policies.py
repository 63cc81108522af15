"""Policies of each milter through the whole proxy: configuration, log, and what the client notices."""

import json
from typing import Any

import pytest

from milterchain.cli.check import check_all
from milterchain.milter.flags import Command
from milterchain.milter.messages import AddHeader, Continue, Reject, ReplyCode
from milterchain.testing.faults import Close

LATER = "451 4.7.1 Service unavailable - try again later"


def lines(log: Any, event: str) -> list[dict[str, Any]]:
    return [entry for entry in map(json.loads, log.getvalue().splitlines()) if entry["event"] == event]


async def test_an_observed_milter_is_logged_and_changes_nothing(world: Any, log: Any) -> None:
    script = {
        Command.RCPT: ReplyCode(b"550 5.7.1 secret"),
        Command.END_OF_MESSAGE: [AddHeader(b"X", b"1"), Reject()],
    }
    await world.start(script, milter={"mode": "observe", "default_action": "reject"})
    client = await world.client()
    await client.begin("b@example.net")
    assert (await client.send()).startswith("250 ")
    assert b"X: 1" not in world.hop.accepted[0].data
    rcpt, message = lines(log, "observed")
    assert (rcpt["milter"], rcpt["stage"], rcpt["verdict"], rcpt["reply"]) == (
        "m1",
        "rcpt",
        "reject",
        "550 5.7.1 secret",
    )
    assert (message["stage"], message["verdict"], message["edit_count"]) == ("end_of_message", "reject", 0)
    assert world.app.observed == {"m1": {"reject": 2, "edits": 0, "quarantine": 0}}


async def test_edits_of_an_observed_milter(world: Any, log: Any) -> None:
    script = {Command.END_OF_MESSAGE: [AddHeader(b"X", b"1"), Continue()]}
    await world.start(script, milter={"mode": "observe"})
    client = await world.client()
    await client.begin()
    assert (await client.send()).startswith("250 ")
    (line,) = lines(log, "observed")
    assert line["edits"] == ["add_header name=X value=1"]
    (message,) = lines(log, "message")
    assert message["changed_by"] == []


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        ({"clients": ["127.0.0.0/8"]}, True),
        ({"clients": ["10.0.0.0/8"]}, False),
        ({"not_clients": ["127.0.0.1"]}, False),
        ({"listeners": ["smtp"]}, True),
        ({"listeners": ["other"]}, False),
        ({"authenticated": "never"}, True),
        ({"authenticated": "only"}, False),
        ({"sender_domains": ["EXAMPLE.org"]}, True),
        ({"sender_domains": [".example.org"]}, False),
        ({"recipient_domains": ["c.test"]}, True),
        ({"recipient_domains": ["example.org"]}, False),
        ({"recipient_domains": ["c.test"], "sender_domains": ["x.test"]}, False),
    ],
    ids=str,
)
async def test_conditions(world: Any, keys: dict[str, Any], asked: Any) -> None:
    listen = [{"address": "127.0.0.1:0"}, {"address": "127.0.0.1:0", "name": "other"}]
    await world.start(
        {Command.END_OF_MESSAGE: [AddHeader(b"X", b"1"), Continue()]}, milter=keys, listen=listen
    )
    client = await world.client()
    await client.begin("b@b.test", "c@c.test")
    assert (await client.send()).startswith("250 ")
    assert (b"X: 1" in world.hop.accepted[0].data) is asked
    assert len(world.milters[0].connections) == asked


async def test_a_milter_that_keeps_failing_is_left_alone(
    world: Any, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milterchain.chain.breaker.FIRST_REST", 60.0)  # longer than the test
    await world.start({Command.MAIL: Close()}, breaker={"failures": 3, "rest": "60s"})
    for _ in range(5):
        client = await world.client()
        await client.reply()
        await client.say("EHLO client.example")
        assert await client.say("MAIL FROM:<a@example.org>") == LATER
    assert len(world.milters[0].connections) == 3
    (line,) = lines(log, "milter left alone")
    assert (line["milter"], line["failures"], line["seconds"]) == ("m1", 3, 60.0)
    assert len(lines(log, "milter failed")) == 3
    row, *_ = await check_all(world.app.config)
    assert row.ok
    assert "left alone until" in row.details
    assert "after 3 failures" in row.details


async def test_a_milter_that_is_left_alone_comes_back(world: Any, log: Any) -> None:
    broken = [True]
    script = {Command.MAIL: lambda _: Close() if broken else Continue()}
    await world.start(script, breaker={"failures": 2, "rest": "50ms"})

    async def attempt() -> str:
        client = await world.client()
        await client.reply()
        await client.say("EHLO client.example")
        reply = await client.say("MAIL FROM:<a@example.org>")
        assert (await client.say("QUIT")).startswith("221")
        assert await client.at_end()
        return reply

    assert [await attempt() for _ in range(3)] == [LATER] * 3
    broken.clear()
    while await attempt() == LATER:
        pass
    assert (await attempt()).startswith("250 ")
    assert len(lines(log, "milter is back")) == 1
    row, *_ = await check_all(world.app.config)
    assert "left alone" not in row.details
