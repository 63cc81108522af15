"""A milter fails: for each default action and each stage, what the client, the others and the next hop see.

The second of three milters fails. In which way it fails makes no difference.
"""

import asyncio
from typing import Any, NamedTuple

import pytest

from milterchain.milter.flags import Command
from milterchain.milter.messages import AddHeader, ReplyCode
from milterchain.testing import ScriptedMilter, ScriptedNextHop
from milterchain.testing.faults import Close, Garbage, Late, Reset, Silence
from milterchain.testing.scripted_milter import HalfPacket

STAGES: dict[str, Command | None] = {
    "open": None,
    "connect": Command.CONNECT,
    "helo": Command.HELO,
    "mail": Command.MAIL,
    "rcpt": Command.RCPT,
    "data": Command.DATA,
    "header": Command.HEADER,
    "end of headers": Command.END_OF_HEADERS,
    "body": Command.BODY,
    "end of message": Command.END_OF_MESSAGE,
}
CONTENT = {Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE}
ACTIONS = ("accept", "reject", "tempfail", "quarantine", "shutdown")
REFUSAL = ReplyCode(b"550 5.7.1 never heard")


def faults(never: asyncio.Event) -> dict[str, Any]:
    return {
        "refused": None,
        "closed": [Close()],
        "reset": [Reset()],
        "silence": [Silence()],
        "garbage": [Garbage()],
        "half a packet": [HalfPacket(REFUSAL), Close()],
        "half a packet, then silence": [HalfPacket(REFUSAL)],
        "late reply": [Late(never), REFUSAL],
        "edits, then silence": [AddHeader(b"X", b"1"), Silence()],
    }


class Seen(NamedTuple):
    """What there is to see.

    Attributes:
        replies: the client's, from the greeting on.
        first: what the milter before it heard.
        third: what the milter after it heard.
        hop: what the next hop heard.
        held: messages in quarantine.
    """

    replies: tuple[str, ...]
    first: str
    third: str
    hop: str
    held: int = 0


OK = ("220", "250", "250", "250", "354")
REJECT = "550 5.5.0 Service unavailable"
LATER = "451 4.7.1 Service unavailable - try again later"
CLOSING = "421 4.7.1 Service unavailable - try again later"
NOT_ACCEPTING = "554 mx.test ESMTP not accepting connections"
NOT_NOW = "421 mx.test Service unavailable - try again later"
RELAYED = Seen((*OK, "250"), "OCHMRTLLNBEQ", "OCHMRTLLNBEQ", "MAIL RCPT DATA .")
HELD = RELAYED._replace(hop="MAIL RCPT RSET", held=1)


def refused(reply: str, *, before: int, first: str, third: str, hop: str = "") -> Seen:
    return Seen((*OK[:before], reply), first, third, hop)


def row(reply: str) -> dict[str, Seen]:
    """The rows of an action that refuses, from HELO on; a refusal of the client is heard at MAIL."""
    content = refused(reply, before=5, first="OCHMRTLLNBEQ", third="OCHMRTAQ", hop="MAIL RCPT RSET")
    return {
        "helo": refused(reply, before=2, first="OCHQ", third="OCHQ"),
        "mail": refused(reply, before=2, first="OCHMAQ", third="OCHMAQ"),
        "rcpt": refused(reply, before=3, first="OCHMRAQ", third="OCHMRAQ", hop="MAIL RCPT RSET"),
        "data": refused(reply, before=4, first="OCHMRTAQ", third="OCHMRTAQ", hop="MAIL RCPT RSET"),
        **dict.fromkeys(("header", "end of headers", "body", "end of message"), content),
    }


TABLE: dict[str, dict[str, Seen]] = {
    "accept": dict.fromkeys(STAGES, RELAYED),
    "quarantine": dict.fromkeys(STAGES, HELD),
    "tempfail": {
        "open": refused(LATER, before=2, first="OCQ", third="OCQ"),
        "connect": refused(LATER, before=2, first="OCQ", third="OCQ"),
        **row(LATER),
    },
    "reject": {
        "open": Seen((NOT_ACCEPTING, "250", REJECT), "OCQ", "OCQ", ""),
        "connect": Seen((NOT_ACCEPTING, "250", REJECT), "OCQ", "OCQ", ""),
        **row(REJECT),
    },
    "shutdown": {
        "open": Seen((NOT_NOW,), "OCQ", "OCQ", ""),
        "connect": Seen((NOT_NOW,), "OCQ", "OCQ", ""),
        **row(CLOSING),
        "helo": refused(CLOSING, before=1, first="OCHQ", third="OCHQ"),
    },
}

COMMANDS = (
    "EHLO client.example",
    "MAIL FROM:<a@example.org>",
    "RCPT TO:<b@example.net>",
    "DATA",
    "Subject: hi\r\nFrom: a@example.org\r\n\r\nHello\r\n.",
)


async def dialogue(client: Any) -> list[str]:
    """What the client hears, up to the first refusal after the greeting."""
    replies = [await client.reply()]
    for command in COMMANDS:
        if replies[-1].startswith("421"):
            break
        replies.append(await client.say(command))
        if not replies[-1].startswith(("2", "3")):
            break
    if replies[-1].startswith("421"):
        assert await client.at_end()
    else:
        assert (await client.say("QUIT")).startswith("221")
    return replies


async def play(world: Any, stage: str, items: Any, action: str) -> tuple[list[str], str, str, str, int]:
    command = STAGES[stage]
    if items is None:
        failing = ScriptedMilter()
    elif command is None:
        failing = ScriptedMilter(negotiate=items)
    else:
        failing = ScriptedMilter({command: items})
    # Only where it fails, so that a busy machine is no failure at an earlier stage.
    impatient = "connect" if command is None else "content" if command in CONTENT else "command"
    patience = {f"{impatient}_timeout": "1s"}
    await world.start({}, failing, {}, milter=[{}, {**patience, "default_action": action}, {}])
    if items is None:
        await failing.stop()
    replies = await dialogue(await world.client())
    first, third = [await milter.wait_closed() for milter in (world.milters[0], world.milters[2])]
    hop: ScriptedNextHop = world.hop
    await world.app.stop()
    verbs = " ".join(session.verbs for session in hop.connections).replace("EHLO", "").replace("QUIT", "")
    assert not [each.violations for each in (first, third, *hop.connections) if each.violations]
    assert not any(b"X: 1" in message.data for message in hop.accepted)
    held = list((world.directory / "quarantine").glob("*"))
    return replies, first.codes, third.codes, " ".join(verbs.split()), len(held)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("action", ACTIONS)
async def test_a_milter_fails(more_worlds: Any, action: str, stage: str) -> None:
    expected = TABLE[action][stage]
    never = asyncio.Event()
    kinds = {
        fault: items
        for fault, items in faults(never).items()
        if (fault == "refused") <= (stage == "open")
        and (fault == "edits, then silence") <= (stage == "end of message")
    }
    async with asyncio.TaskGroup() as group:
        plays = {
            fault: group.create_task(play(more_worlds(), stage, items, action))
            for fault, items in kinds.items()
        }
    for fault, task in plays.items():
        replies, first, third, *others = task.result()
        if expected.third == "OCQ" and third in {"O", "OQ", "OC"}:
            third = "OCQ"  # nobody waits for one that is slower than the refusal
        shown = [
            reply if len(wanted) > 3 else reply[:3]
            for reply, wanted in zip(replies, expected.replies, strict=False)
        ]
        assert (fault, Seen(tuple(shown), first, third, *others), len(replies)) == (
            fault,
            expected,
            len(expected.replies),
        )
