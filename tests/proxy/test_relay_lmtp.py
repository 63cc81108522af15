"""LMTP next hops: one recipient for each message, so that each answer has its place."""

import asyncio
from pathlib import Path as File
from typing import Any

import pytest

from milterchain.errors import NextHopConnectError, NextHopError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message, parse_message
from milterchain.mail.replies import Reply
from milterchain.proxy.nexthop import LMTPHop, SMTPHop
from milterchain.proxy.relay import NextHops, RelayOptions
from milterchain.smtp.handler import Features
from milterchain.testing.faults import Close, InTurn
from milterchain.testing.scripted_next_hop import ScriptedNextHop

SENDER = Path(b"<a@client.test>")
ONE, TWO, THREE = (Path(b"<%b@x.test>" % name) for name in (b"one", b"two", b"three"))
TOO_MANY = Reply.of(452, "4.5.3 Error: too many recipients, send one at a time")


@pytest.fixture
def message():
    with parse_message(b"Subject: x\r\n\r\n.dot\r\ntext\r\n") as message:
        yield message


def relay(hop: ScriptedNextHop, **options: Any) -> NextHops:
    return NextHops([LMTPHop(("127.0.0.1", hop.port))], RelayOptions(**options))


async def test_a_unix_socket(tmp_path: File, message: Message) -> None:
    path = tmp_path / "lmtp"
    async with ScriptedNextHop(lmtp=True, unix_path=path) as hop:
        hops = NextHops([LMTPHop(str(path))])
        transaction = hops.begin(SENDER)
        assert (await transaction.rcpt(ONE)).code == 250
        delivery = await transaction.send(Envelope(SENDER, (ONE,)), message)
        assert (delivery.reply.code, delivery.hop) == (250, hop.next_hop)
        assert hops.features == Features(smtputf8=True, dsn=True, size=52428800, recipients=1)
        await hops.close()
        assert hop.connections[0].verbs == "LHLO MAIL RCPT DATA . QUIT"
        assert hop.connections[0].violations == []


async def test_a_second_recipient_is_sent_later(message: Message) -> None:
    async with ScriptedNextHop(lmtp=True) as hop:
        hops = relay(hop)
        transaction = hops.begin(SENDER)
        assert (await transaction.rcpt(ONE)).code == 250
        assert await transaction.rcpt(TWO) == TOO_MANY
        assert (await transaction.send(Envelope(SENDER, (ONE,)), message)).reply.code == 250
        transaction = hops.begin(SENDER)
        assert (await transaction.rcpt(TWO)).code == 250
        assert (await transaction.send(Envelope(SENDER, (TWO,)), message)).reply.code == 250
        await hops.close()
        assert hop.connections[0].verbs == "LHLO MAIL RCPT DATA . MAIL RCPT DATA . QUIT"


async def test_a_client_may_name_many_and_the_first_gets_the_message(world: Any) -> None:
    async with ScriptedNextHop(lmtp=True) as hop:
        await world.start(relay={"next_hop": [hop.next_hop]})
        client = await world.client()
        await client.begin_mail()
        client.write(b"".join(b"RCPT TO:<u%d@example.net>\r\n" % number for number in range(50)))
        async with asyncio.timeout(5):
            replies = [await client.reply() for _ in range(50)]
        assert [reply[:3] for reply in replies] == ["250", *["452"] * 49]
        assert (await client.send()).startswith("250 ")
        assert hop.accepted[0].recipients == (b"u0@example.net",)


async def test_a_refused_recipient_does_not_keep_others_out() -> None:
    async with ScriptedNextHop({"RCPT": InTurn("550 5.1.1 who?", None)}, lmtp=True) as hop:
        hops = relay(hop)
        transaction = hops.begin(SENDER)
        assert (await transaction.rcpt(ONE)).code == 550
        assert (await transaction.rcpt(TWO)).code == 250
        await transaction.abort()
        await hops.close()


@pytest.mark.parametrize("answer", ["452 4.2.2 mailbox full", "550 5.7.1 no\n550 5.7.1 really"])
async def test_the_answer_to_the_message_is_the_client_s(answer: str, message: Message) -> None:
    async with ScriptedNextHop({".": answer}, lmtp=True) as hop:
        hops = relay(hop)
        transaction = hops.begin(SENDER)
        await transaction.rcpt(ONE)
        delivery = await transaction.send(Envelope(SENDER, (ONE,)), message)
        assert delivery.reply == Reply.of(int(answer[:3]), *(line[4:] for line in answer.split("\n")))
        await hops.close()


MIXED: list[tuple[str, Any, int, list[bytes], list[tuple[Path, int]]]] = [
    ("all", {}, 250, [b"one", b"two", b"three"], []),
    ("not the client's", {".": InTurn("550 5.7.1 no", None)}, 550, [], []),
    ("not yet the client's", {".": InTurn("450 4.2.0 later", None)}, 450, [], []),
    ("not an added one", {".": InTurn(None, "450 4.2.0 later", None)}, 250, [b"one", b"three"], [(TWO, 450)]),
    ("lost after the first", {".": InTurn(None, [Close()])}, 250, [b"one"], [(TWO, 451), (THREE, 451)]),
    ("lost at the first", {".": [Close()]}, 0, [], []),
]


@pytest.mark.parametrize(
    ("script", "code", "delivered", "refused"), [pytest.param(*row[1:], id=row[0]) for row in MIXED]
)
async def test_recipients_that_milters_added_come_after_the_client_s(
    script: Any, code: int, delivered: list[bytes], refused: list[tuple[Path, int]], message: Message
) -> None:
    async with ScriptedNextHop(script, lmtp=True) as hop:
        hops = relay(hop)
        transaction = hops.begin(SENDER)
        await transaction.rcpt(ONE)
        envelope = Envelope(SENDER, (ONE, TWO, THREE))
        if code:
            delivery = await transaction.send(envelope, message)
            assert delivery.reply.code == code
            assert [(path, reply.code) for path, reply in delivery.refused] == refused
        else:
            with pytest.raises(NextHopError):
                await transaction.send(envelope, message)
            assert len(hop.messages) == 1
        accepted = [recipient for each in hop.accepted for recipient in each.recipients]
        assert accepted == [name + b"@x.test" for name in delivered]
        assert all(not session.violations for session in hop.connections)
        await hops.close()


async def test_an_added_recipient_that_is_refused_before_the_message(message: Message) -> None:
    script = {"RCPT": lambda argument: "550 5.1.1 who?" if b"two" in argument else None}
    async with ScriptedNextHop(script, lmtp=True) as hop:
        for policy, code, count in (("tempfail", 451, 0), ("log", 250, 2)):
            hops = relay(hop, on_refused_added_recipient=policy)
            transaction = hops.begin(SENDER)
            await transaction.rcpt(ONE)
            delivery = await transaction.send(Envelope(SENDER, (ONE, TWO, THREE)), message)
            assert delivery.reply.code == code
            assert [path for path, _ in delivery.refused] == [TWO]
            assert len(hop.accepted) == count
            await hops.close()


async def test_several_that_nobody_asked_for_are_not_sent(message: Message) -> None:
    async with ScriptedNextHop(lmtp=True) as hop:
        hops = relay(hop)
        with pytest.raises(NextHopConnectError, match="one recipient at a time"):
            await hops.begin(SENDER).send(Envelope(SENDER, (ONE, TWO)), message)
        assert hop.messages == []
        await hops.close()


async def test_recipients_of_a_hop_that_is_gone_are_not_handed_to_lmtp(message: Message) -> None:
    async with ScriptedNextHop() as first, ScriptedNextHop(lmtp=True) as second:
        hops = NextHops([SMTPHop("127.0.0.1", first.port), LMTPHop(("127.0.0.1", second.port))])
        transaction = hops.begin(SENDER)
        assert (await transaction.rcpt(ONE)).code == (await transaction.rcpt(TWO)).code == 250
        await first.stop()
        with pytest.raises(NextHopConnectError, match="one recipient at a time"):
            await transaction.send(Envelope(SENDER, (ONE, TWO)), message)
        assert second.messages == []
        await transaction.abort()
        await hops.close()
