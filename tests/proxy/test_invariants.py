"""Random milters, a random next hop and random clients: what must be true whatever they do.

- A client that heard 250 to its message: the next hop has it exactly once, or a milter discarded it.
- A client that heard anything else: the next hop has not taken it (unless its answer was lost on the way).
- The next hop has what was sent, with all edits of the milters that let it pass, and no others.
- A milter that is only observed changes nothing, and no word of it gets to a client.
- A milter with conditions hears of what they let through, and of nothing else. Where nothing goes wrong, it
  is asked about each message that it is meant for.
- No milter hears what libmilter would not expect, the next hop no wrong command, and nobody hangs.
"""

import asyncio
import os
import random
import re
from types import SimpleNamespace
from typing import Any

import pytest

from milterchain.milter.flags import ALL_ACTIONS, Command, Protocol
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    AddRecipient,
    ChangeSender,
    ConnFail,
    Continue,
    DeleteRecipient,
    Discard,
    InsertHeader,
    Macros,
    Mail,
    OptNeg,
    Progress,
    Quarantine,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
)
from milterchain.proxy.quarantine import Quarantine as Held
from milterchain.testing import Close, Garbage, Late, Reset, ScriptedMilter, Silence

SEEDS = range(int(os.environ.get("INVARIANTS_FROM", "0")), int(os.environ.get("INVARIANTS_TO", "60")))
"""Worlds to try. After a change of the chain, try some thousands: INVARIANTS_TO=5000."""

EDITS = AddHeader | InsertHeader | ReplaceBody | AddRecipient | DeleteRecipient | ChangeSender | Quarantine
PASSES = (Continue, Accept, Skip)
ENDS = (Accept, Reject, TempFail, Discard, ReplyCode, Shutdown)
CONTENT = (Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE)
MESSAGE = {Command.MAIL, Command.RCPT, Command.DATA, *CONTENT}
VERDICTS = (
    *(Reject(), TempFail(), Discard(), Accept(), Skip(), Shutdown()),
    *(ReplyCode(b"550 5.7.1 no"), ReplyCode(b"450 4.7.1 later"), ReplyCode(b"421 4.7.0 bye")),
)
OBSERVED = "says one that is only observed"
WATCHED_VERDICTS = tuple(
    ReplyCode(verdict.text + b" " + OBSERVED.encode()) if isinstance(verdict, ReplyCode) else verdict
    for verdict in VERDICTS
)
SENDERS = ("a@example.org", "a@other.example")
DOMAINS = ("example.net", "other.example")
CONDITIONS: tuple[dict[str, Any], ...] = (
    *({"sender_domains": ["example.org"]}, {"recipient_domains": ["example.net"]}),
    {"sender_domains": ["example.org"], "recipient_domains": ["other.example"]},
    *({"authenticated": "never"}, {"clients": ["127.0.0.0/8"], "listeners": ["smtp"]}),
)
NEVER: tuple[dict[str, Any], ...] = (
    *({"authenticated": "only"}, {"clients": ["192.0.2.0/24"]}, {"not_clients": ["127.0.0.0/8"]}),
    {"sender_domains": ["nowhere.example"]},
)
FAULTS = (Close(), Reset(), Silence(), Garbage(), ConnFail(), ReplyCode(b"250 fine"), AddHeader(b"X", b"1"))
BITS = [
    bit
    for bit in Protocol
    if bit.name.startswith(("NO_", "LEADING", "RCPT_REJ"))  # type: ignore[union-attr]
]


class Actor:
    """A milter that decides by dice and remembers what it said.

    Attributes:
        said: for each command that was answered, in order: the command and the items of the answer.
        edits: how many ends of message it has answered.
        observed: whether it is only observed.
        conditions: what it is asked about.
        calm: whether it always lets everything pass.
    """

    def __init__(self, dice: random.Random, name: str) -> None:
        self._dice = dice
        self._name = name
        self._wild = dice.choice([0.0, 0.02, 0.1])
        self._faulty = dice.choice([0.0, 0.0, 0.03])
        self._slow = dice.choice([0.0, 0.0, 0.1, 0.5])
        self.calm = not self._wild and not self._faulty
        self.observed = dice.random() < 0.2
        self.conditions = dice.choice(CONDITIONS) if dice.random() < 0.3 else {}
        if dice.random() < 0.05:
            self.conditions = dice.choice(NEVER)
        self.said: list[tuple[Any, list[Any]]] = []
        self.edits = 0
        bits = dice.sample(BITS, dice.choice([0, 0, 2, 5]))
        agreed = OptNeg(
            version=dice.choice([6, 6, 6, 2, 3, 4]),
            actions=ALL_ACTIONS,
            protocol=Protocol(sum(bits)),
        )
        self.server = ScriptedMilter(
            dict.fromkeys(set(Command) - {Command.OPTNEG, Command.MACRO, Command.ABORT, Command.QUIT,
                                          Command.QUIT_NEW_CONNECTION}, self._answer),
            negotiate=agreed,
            drops_after_verdict=Command.MAIL not in bits and dice.random() < 0.5,
        )  # fmt: skip

    def meant_for(self, sender: str, recipients: list[bytes]) -> bool:
        """Whether its conditions let a message through."""
        senders, domains = (self.conditions.get(key) for key in ("sender_domains", "recipient_domains"))
        return (
            self.conditions not in NEVER
            and (senders is None or sender.partition("@")[2] in senders)
            and (domains is None or any(one.decode().partition("@")[2] in domains for one in recipients))
        )

    def check_conditions(self) -> None:
        """Hold what it heard against its conditions."""
        if self.conditions in NEVER:
            assert not self.server.connections
        for connection in self.server.connections:
            for kind, key in ((Mail, "sender_domains"), (Rcpt, "recipient_domains")):
                if key in self.conditions:
                    heard = {one.address.decode()[1:-1].partition("@")[2] for one in connection.of(kind)}
                    assert heard <= set(self.conditions[key])

    async def closed(self) -> None:
        """Wait until no session is left."""
        await self.server.wait_for(lambda: all(one.closed for one in self.server.connections))

    def _answer(self, command: Any) -> list[Any]:
        dice = self._dice
        items: list[Any] = [Progress()] * (dice.random() < 0.05)
        if dice.random() < self._slow:
            there = asyncio.Event()
            asyncio.get_running_loop().call_later(dice.random() / 50, there.set)
            items.append(Late(there))
        if command.code == Command.END_OF_MESSAGE:
            items += self._edits()
        if dice.random() < self._faulty:
            items.append(dice.choice(FAULTS))
        elif dice.random() < self._wild:
            items.append(dice.choice(WATCHED_VERDICTS if self.observed else VERDICTS))
        else:
            items.append(Continue())
        self.said.append((command, items))
        return items

    def _edits(self) -> list[Any]:
        dice = self._dice
        self.edits += 1
        mark = b"%b-%d" % (self._name.encode(), self.edits)
        return [
            edit
            for edit, chance in (
                (AddHeader(b"X-Edit", mark), 0.4),
                (InsertHeader(1, b"X-Edit", mark), 0.2),
                (ReplaceBody(b"new " + mark + b"\r\n"), 0.2),
                (ReplaceBody(b"more " + mark), 0.2),
                (AddRecipient(b"<add-" + mark + b"@example.net>"), 0.1),
                (DeleteRecipient(b"<r0@example.net>"), 0.1),
                (ChangeSender(b"<" + mark + b"@example.org>"), 0.1),
                (Quarantine(b"why not"), 0.03),
            )
            if dice.random() < chance
        ]


def final(items: list[Any]) -> Any:
    """What ended the wait; None if it was a fault."""
    last = items[-1]
    return None if last in FAULTS else last


def check_order(connection: Any, said: dict[int, list[Any]]) -> None:  # noqa: C901, PLR0912 - a state machine
    """Hold what one milter heard against what libmilter takes without falling out of step."""
    declined = connection.agreed is not None and bool(connection.agreed.protocol & Protocol.NO_MAIL)
    state = "idle"
    seen = []
    for command in connection.commands:
        if isinstance(command, Macros) and command.stage == Command.MAIL and state.startswith("verdict"):
            state = "idle"  # MAIL itself may be declined
        if isinstance(command, Macros | OptNeg):
            continue
        code = Command(command.code)
        seen.append(chr(code))
        where = f"{''.join(seen)} in {connection.codes}: {state}"
        if state == "dead":
            raise AssertionError(where)
        if state == "stream is over":
            assert code in CONTENT, where
            continue
        if state == "verdict in the content":
            state = "stream is over" if code in CONTENT else "idle"
            if code in CONTENT:
                continue
        match code:
            case Command.CONNECT:
                assert len(seen) == 1, where
            case Command.QUIT:
                assert state in {"idle", "gone"}, where
                state = "dead"
                continue
            case Command.ABORT:
                assert state in {"message", "held", "gone"} or declined, where
                state = "idle" if state != "gone" else "gone"
                continue
            case Command.HELO:
                assert state == "idle", where
            case Command.MAIL:
                assert state == "idle", where
                state = "message"
            case Command.UNKNOWN:
                assert state != "gone", where
            case _:
                assert state == "message" or (declined and state == "idle"), where
                state = "message"
        if id(command) in said:
            state = after(code, said[id(command)], state)


def after(code: Command, items: list[Any], state: str) -> str:  # noqa: PLR0911
    """The state after an answer."""
    word = final(items)
    if word is None:
        return "stream is over" if code in CONTENT else "dead"
    if isinstance(word, Shutdown) and code not in CONTENT:
        return "gone"
    if code in {Command.CONNECT, Command.HELO}:
        return "gone" if isinstance(word, ENDS) and not isinstance(word, Discard) else state
    if code is Command.END_OF_MESSAGE:
        return "idle"
    if code is Command.UNKNOWN or not isinstance(word, ENDS):
        return state
    if code is Command.RCPT:
        return {Accept: "idle", Discard: "held"}.get(type(word), state)
    return "verdict in the content" if code in CONTENT else "idle"


class Sent:
    """A message that a client sent, and what it heard.

    Attributes:
        begun: how much each milter had said before.
        ended: how much afterwards.
    """

    def __init__(
        self, token: bytes, body: bytes, sender: str, recipients: list[bytes], begun: list[int]
    ) -> None:
        self.token = token
        self.sender = sender
        self.body = body
        self.recipients = recipients
        self.reply: str | None = None
        self.begun = begun
        self.ended: list[int] = []


class Talk:
    """Clients, one after the other."""

    def __init__(self, world: Any, dice: random.Random, actors: list[Actor]) -> None:
        self.world = world
        self.dice = dice
        self.actors = actors
        self.sent: list[Sent] = []
        self.clients: list[Any] = []

    async def session(self) -> None:
        dice = self.dice
        client = await self.world.client()
        self.clients.append(client)
        reply = await client.reply()
        assert reply
        if dice.random() < 0.9:
            reply = await client.say("EHLO client.example")
        for _ in range(dice.choice([1, 2, 3])):
            if not reply or reply.startswith("421"):
                break
            reply = await self.message(client)
        if dice.random() < 0.5:
            client.abort()
        elif reply and not reply.startswith("421"):
            await client.say("QUIT")
        await client.close()
        for actor in self.actors:
            await actor.closed()

    async def between(self, client: Any) -> str:
        words = ["NOOP", "BOGUS x", "VRFY a"]
        reply = "250"
        while reply and self.dice.random() < 0.2:
            reply = await client.say(self.dice.choice(words))
        return reply

    async def message(self, client: Any) -> str:
        """A transaction; the last reply, empty at the end of the connection."""
        dice = self.dice
        begun = [len(actor.said) for actor in self.actors]
        if dice.random() < 0.1:
            await client.say(dice.choice(["RSET", "EHLO again.example", "HELO again.example"]))
        if not await self.between(client):
            return ""
        sender = dice.choice(SENDERS)
        reply = await client.say(f"MAIL FROM:<{sender}>")
        if not reply.startswith("250"):
            return reply
        accepted = await self.recipients(client)
        if accepted is None:
            return ""
        if dice.random() < 0.1:
            return await client.say(dice.choice(["RSET", "EHLO again.example"]))
        reply = await client.say("DATA")
        if not reply.startswith("354"):
            return reply
        return await self.content(client, sender, accepted, begun)

    async def recipients(self, client: Any) -> list[bytes] | None:
        """The recipients that were accepted; None at the end of the connection."""
        asked = [f"r{number}@{self.dice.choice(DOMAINS)}" for number in range(self.dice.choice([1, 1, 2, 3]))]
        replies = []
        if self.dice.random() < 0.3:
            client.write("".join(f"RCPT TO:<{address}>\r\n" for address in asked).encode())
            replies = [await client.reply() for _ in asked]
        else:
            for address in asked:
                await self.between(client)
                replies.append(await client.say(f"RCPT TO:<{address}>"))
        if not replies[-1]:
            return None
        return [
            address.encode() for address, reply in zip(asked, replies, strict=True) if reply.startswith("250")
        ]

    async def content(self, client: Any, sender: str, recipients: list[bytes], begun: list[int]) -> str:
        """Send a message that no other is equal to, or break off."""
        token = b"token-%d" % len(self.sent)
        lines = b"..dotted\r\n" * self.dice.choice([0, 1, 30000]) + b"bytes \xff\0 end\r\n"
        data = b"Subject: " + token + b"\r\nX-Tab:\tx \r\nEmpty:\r\n\r\n" + lines
        sent = Sent(token, lines.replace(b"..", b"."), sender, recipients, begun)
        self.sent.append(sent)
        chance = self.dice.random()
        client.write(data if chance < 0.05 else data + b".\r\n")
        if chance < 0.1:
            client.abort()
            return ""
        sent.reply = await client.reply()
        sent.ended = [len(actor.said) for actor in self.actors]
        return sent.reply


def hop_script(dice: random.Random) -> dict[str, Any]:
    """A next hop that sometimes refuses, and seldom fails."""
    wild = dice.choice([0.0, 0.05])

    def by_dice(*answers: Any) -> Any:
        return lambda _: dice.choice(answers) if dice.random() < wild else None

    return {
        "MAIL": by_dice("550 5.1.8 no", "451 4.3.0 later", Close(), "421 4.3.2 bye"),
        "RCPT": by_dice("550 5.1.1 no", "450 4.2.1 later", Close(), "421 4.3.2 bye"),
        "DATA": by_dice("554 5.5.1 no", Close()),
        "RSET": by_dice("500 what", Close()),
        ".": by_dice("554 5.7.1 no", "451 4.3.0 later", "421 4.3.2 bye", Close(), Reset()),
    }


def applied(sent: Sent, actors: list[Actor]) -> list[Any]:
    """The edits of the milters that let a message pass, in order, and the wishes to hold it."""
    edits: list[Any] = []
    for actor, begin, end in zip(actors, sent.begun, sent.ended, strict=True):
        if actor.observed:
            continue
        over = False  # after a verdict in a stream, what a milter says is not heard any more
        for command, items in actor.said[begin:end]:
            word = final(items)
            if command.code == Command.END_OF_MESSAGE and not over:
                kept = EDITS if isinstance(word, PASSES) else Quarantine
                edits += [item for item in items[:-1] if isinstance(item, kept)]
            over = command.code in CONTENT and (over or word is None or isinstance(word, ENDS))
    return edits


def check_message(sent: Sent, message: Any, actors: list[Actor], *, held: bool = False) -> None:
    """The next hop, or the quarantine, has what was sent, with the edits."""
    edits = applied(sent, actors)
    assert any(isinstance(edit, Quarantine) for edit in edits) <= held
    marks = {edit.value for edit in edits if isinstance(edit, AddHeader | InsertHeader)}
    assert {value.strip() for value in re.findall(rb"^X-Edit:(.*)\r$", message.data, re.MULTILINE)} == marks
    head, _, body = message.data.partition(b"\r\n\r\n")
    assert b"\r\nSubject: %b\r\nX-Tab:\tx \r\nEmpty:" % sent.token in head
    expected = sent.body
    for actor, begin, end in zip(actors, sent.begun, sent.ended, strict=True):
        alone = Sent(b"", b"", "", [], [begin])
        alone.ended = [end]
        chunks = [edit.chunk for edit in applied(alone, [actor]) if isinstance(edit, ReplaceBody)]
        if chunks:
            expected = b"".join(chunks)
            expected += b"" if expected.endswith(b"\r\n") else b"\r\n"
    assert body == expected
    recipients = list(sent.recipients)
    sender = sent.sender.encode()
    for edit in edits:
        if isinstance(edit, AddRecipient):
            recipients.append(edit.address[1:-1])
        elif isinstance(edit, DeleteRecipient):
            recipients = [recipient for recipient in recipients if recipient != edit.text[1:-1]]
        elif isinstance(edit, ChangeSender):
            sender = edit.address[1:-1]
    assert sorted(message.recipients) == sorted(recipients)
    assert message.sender == sender


def in_quarantine(world: Any) -> list[Any]:
    """The messages that are held."""
    store = Held(world.directory / "quarantine")
    found = []
    for name in store.ids():
        envelope = store.entry(name).record.envelope
        with store.message(name) as message:
            found.append(
                SimpleNamespace(
                    data=bytes(message.body),
                    sender=envelope.sender.bare,
                    recipients=[path.bare for path in envelope.recipients],
                )
            )
    return found


def check_reply(sent: Sent, world: Any, actors: list[Actor]) -> None:
    """What the client heard is what happened."""
    hop = world.hop
    kept = [message for message in in_quarantine(world) if sent.token + b"\r\n" in message.data]
    assert len(kept) <= 1
    there = [message for message in hop.accepted if sent.token + b"\r\n" in message.data]
    assert len(there) <= 1
    if not sent.reply:
        return
    if not sent.reply.startswith("250"):
        assert not there, sent.reply
        assert not kept, sent.reply
    elif kept:
        assert sent.reply == "250 2.0.0 Ok"
        assert not there
        check_message(sent, kept[0], actors, held=True)
    elif sent.reply == "250 2.0.0 Ok":
        assert not there
        words = [
            final(items)
            for actor, begin, end in zip(actors, sent.begun, sent.ended, strict=True)
            if not actor.observed
            for _, items in actor.said[begin:end]
        ]
        deleted = any(isinstance(edit, DeleteRecipient) for edit in applied(sent, actors))
        assert deleted or any(isinstance(word, Discard) for word in words)
    else:
        assert there, sent.reply
        check_message(sent, there[0], actors)


def check_attendance(sent: Sent, actors: list[Actor]) -> None:
    """Where nothing goes wrong, a milter has been asked about a message if it is meant for it."""
    if not sent.reply or not all(actor.calm or actor.observed for actor in actors):
        return
    for actor, begin, end in zip(actors, sent.begun, sent.ended, strict=True):
        if actor.calm:
            asked = sum(command.code == Command.END_OF_MESSAGE for command, _ in actor.said[begin:end])
            assert asked == actor.meant_for(sent.sender, sent.recipients)


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_happens(world: Any, log: Any, seed: int) -> None:
    dice = random.Random(seed)
    actors = [Actor(dice, f"m{number}") for number in range(dice.choice([1, 2, 3]))]
    impatient = {"command_timeout": 1.0, "content_timeout": 1.0, "connect_timeout": 1.0}
    await world.start(
        *[actor.server for actor in actors],
        hop=hop_script(dice),
        milter=[
            {
                **impatient,
                "default_action": dice.choice(["accept", "reject", "tempfail", "quarantine", "shutdown"]),
                "pipeline": dice.choice(["auto", "auto", "on", "off"]),
                "on_rejected_recipient": dice.choice(["replay", "replay", "keep"]),
                "mode": "observe" if actor.observed else "enforce",
                **actor.conditions,
            }
            for actor in actors
        ],
        breaker={"failures": dice.choice([1, 2, 5]), "rest": dice.choice(["50ms", "1s"])},
    )
    talk = Talk(world, dice, actors)
    for _ in range(dice.choice([1, 2])):
        await talk.session()
    await world.app.drain(5)
    for sent in talk.sent:
        check_reply(sent, world, actors)
        if "milter failed" not in log.getvalue():
            check_attendance(sent, actors)
    assert not [reply for client in talk.clients for reply in client.heard if OBSERVED in reply]
    said = {id(command): items for actor in actors for command, items in actor.said}
    for actor in actors:
        actor.check_conditions()
        for connection in actor.server.connections:
            assert not connection.violations, connection
            check_order(connection, said)
    for session in world.hop.connections:
        assert not session.violations, session
    assert "Traceback" not in log.getvalue()
    assert '"level": "error"' not in log.getvalue()
