"""Transactions with scripted next hops: what they are told, in which writes, and what the client hears."""

import pytest

from milterchain.errors import NextHopConnectError, NextHopError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message, parse_message
from milterchain.mail.replies import Reply
from milterchain.proxy.nexthop import DiscardHop, Hop, SMTPHop
from milterchain.proxy.relay import NextHops, RelayOptions
from milterchain.proxy.relay_replies import failure_reply
from milterchain.smtp.handler import Features
from milterchain.testing.peer import refusing_address
from milterchain.testing.scripted_next_hop import KEYWORDS, ScriptedNextHop

SENDER = Path(b"<a@client.test>", (b"SIZE=10", b"BODY=8BITMIME"))
ONE, TWO, THREE = (Path(b"<%b@x.test>" % name) for name in (b"one", b"two", b"three"))
CONTENT = b"Subject: x\r\n\r\n.dot\r\ntext\r\n"
OK = Reply.of(250, "2.0.0 Ok")
SERIAL = tuple(keyword for keyword in KEYWORDS if keyword != "PIPELINING")


@pytest.fixture
def message():
    with parse_message(CONTENT) as message:
        yield message


def relay(*hops: ScriptedNextHop | Hop, **options) -> NextHops:
    return NextHops(
        [SMTPHop("127.0.0.1", hop.port) if isinstance(hop, ScriptedNextHop) else hop for hop in hops],
        RelayOptions(**options),
    )


def refuse(*names: bytes, reply: str = "550 5.1.1 no such user"):
    return lambda argument: reply if any(b"<" + name in argument for name in names) else None


async def test_the_first_recipient_brings_mail_in_one_write(message: Message) -> None:
    async with ScriptedNextHop() as hop:
        hops = relay(hop)
        assert hops.features is None
        transaction = hops.begin(SENDER)
        assert transaction.features is None
        assert await transaction.rcpt(ONE) == OK
        assert transaction.features == Features(smtputf8=True, dsn=True, size=52428800)
        assert await transaction.rcpt(TWO) == OK
        delivery = await transaction.send(Envelope(SENDER, (ONE, TWO)), message)
        assert delivery.reply == Reply.of(250, "2.0.0 Ok: queued as 1")
        assert delivery.hop == hop.next_hop
        assert delivery.refused == ()
        (session,) = hop.connections
        assert session.reads[1:] == [
            b"MAIL FROM:<a@client.test> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<one@x.test>\r\n",
            b"RCPT TO:<two@x.test>\r\n",
            b"DATA\r\n",
            b"Subject: x\r\n\r\n..dot\r\ntext\r\n.\r\n",
        ]
        assert session.violations == []
        await hops.close()
        assert (await hop.wait_closed()).verbs == "EHLO MAIL RCPT RCPT DATA . QUIT"


async def test_no_more_recipients_than_the_hop_says(message: Message) -> None:
    async with ScriptedNextHop(keywords=(*KEYWORDS, "LIMITS RCPTMAX=1 MAILMAX=9")) as hop:
        hops = relay(hop)
        transaction = hops.begin(SENDER)
        assert await transaction.rcpt(ONE) == OK
        too_many = Reply.of(452, "4.5.3 Error: too many recipients for the next hop")
        assert await transaction.rcpt(TWO) == too_many
        assert (await transaction.send(Envelope(SENDER, (ONE,)), message)).reply.code == 250
        assert hop.connections[0].verbs == "EHLO MAIL RCPT DATA ."
        await hops.close()


@pytest.mark.parametrize("keywords", [KEYWORDS, SERIAL], ids=["pipelining", "serial"])
async def test_a_connection_is_kept_for_the_next_message(keywords: tuple[str, ...], message: Message) -> None:
    async with ScriptedNextHop(keywords=keywords) as hop:
        hops = relay(hop)
        for _ in range(3):
            transaction = hops.begin(SENDER)
            await transaction.rcpt(ONE)
            assert (await transaction.send(Envelope(SENDER, (ONE,)), message)).reply.code == 250
        assert [session.verbs for session in hop.connections] == ["EHLO" + " MAIL RCPT DATA ." * 3]
        assert hop.connections[0].violations == []
        await hops.close()


async def test_the_order_of_recipients_is_no_change(message: Message) -> None:
    async with ScriptedNextHop() as hop:
        transaction = (hops := relay(hop)).begin(SENDER)
        await transaction.rcpt(ONE)
        await transaction.rcpt(TWO)
        await transaction.send(Envelope(SENDER, (TWO, ONE)), message)
        assert hop.connections[0].verbs == "EHLO MAIL RCPT RCPT DATA ."
        await hops.close()


CHANGES = [
    ("sender", Envelope(Path(b"<>"), (ONE, TWO))),
    ("parameter", Envelope(Path(SENDER.address, (b"SIZE=11",)), (ONE, TWO))),
    ("less", Envelope(SENDER, (TWO,))),
    ("more", Envelope(SENDER, (ONE, TWO, THREE))),
    ("other", Envelope(SENDER, (THREE,))),
    ("twice", Envelope(SENDER, (ONE, ONE))),
]


@pytest.mark.parametrize(("envelope"), [pytest.param(envelope, id=name) for name, envelope in CHANGES])
async def test_a_changed_envelope_is_told_in_one_write(envelope: Envelope, message: Message) -> None:
    async with ScriptedNextHop() as hop:
        transaction = (hops := relay(hop)).begin(SENDER)
        await transaction.rcpt(ONE)
        await transaction.rcpt(TWO)
        assert (await transaction.send(envelope, message)).reply.code == 250
        (session,) = hop.connections
        rcpts = b"".join(b"RCPT TO:" + path.address + b"\r\n" for path in envelope.recipients)
        mail = b" ".join([b"MAIL FROM:" + envelope.sender.address, *envelope.sender.args])
        mail = mail.replace(b"SIZE=10", b"SIZE=%d" % message.size).replace(
            b"SIZE=11", b"SIZE=%d" % message.size
        )
        assert session.reads[3] == b"RSET\r\n" + mail + b"\r\n" + rcpts
        assert hop.accepted[0].recipients == tuple(path.bare for path in envelope.recipients)
        assert hop.accepted[0].sender == envelope.sender.bare
        assert session.violations == []
        await hops.close()


async def test_a_message_can_be_sent_without_asking_for_recipients_first(message: Message) -> None:
    async with ScriptedNextHop() as hop:
        hops = relay(hop)
        assert (await hops.begin(SENDER).send(Envelope(SENDER, (ONE, TWO)), message)).reply.code == 250
        assert hop.connections[0].verbs == "EHLO MAIL RCPT RCPT DATA ."
        with pytest.raises(ValueError, match="nobody"):
            await hops.begin(SENDER).send(Envelope(SENDER), message)
        await hops.close()


async def test_a_refused_mail_answers_each_recipient() -> None:
    async with ScriptedNextHop({"MAIL": "550 5.1.8 bad sender"}) as hop:
        transaction = (hops := relay(hop)).begin(SENDER)
        assert await transaction.rcpt(ONE) == Reply.of(550, "5.1.8 bad sender")
        assert await transaction.rcpt(TWO) == Reply.of(550, "5.1.8 bad sender")
        await transaction.abort()
        assert hop.connections[0].verbs == "EHLO MAIL RCPT MAIL RCPT"
        await hops.close()


async def test_a_refused_recipient_does_not_end_the_transaction(message: Message) -> None:
    async with ScriptedNextHop({"RCPT": refuse(b"one")}) as hop:
        transaction = (hops := relay(hop)).begin(SENDER)
        assert await transaction.rcpt(ONE) == Reply.of(550, "5.1.1 no such user")
        assert await transaction.rcpt(TWO) == OK
        assert (await transaction.send(Envelope(SENDER, (TWO,)), message)).reply.code == 250
        assert hop.connections[0].verbs == "EHLO MAIL RCPT RCPT DATA ."
        await hops.close()


async def test_abort_resets_and_keeps_the_connection() -> None:
    async with ScriptedNextHop() as hop:
        hops = relay(hop)
        for _ in range(2):
            transaction = hops.begin(SENDER)
            await transaction.rcpt(ONE)
            await transaction.abort()
            await transaction.abort()
        await hops.begin(SENDER).abort()
        assert [session.verbs for session in hop.connections] == ["EHLO" + " MAIL RCPT RSET" * 2]
        await hops.close()


@pytest.mark.parametrize(
    ("script", "reply"),
    [
        ({"DATA": "451 4.3.0 not now"}, Reply.of(451, "4.3.0 not now")),
        ({"DATA": "554 5.5.1 never"}, Reply.of(554, "5.5.1 never")),
        ({".": "550-5.7.1 spam\n550 5.7.1 really"}, Reply.of(550, "5.7.1 spam", "5.7.1 really")),
        ({".": "451 4.3.0 disk"}, Reply.of(451, "4.3.0 disk")),
        ({".": "421 4.3.2 bye"}, Reply.of(451, "4.3.2 bye")),
        ({".": "521 5.3.2 bye"}, Reply.of(554, "5.3.2 bye")),
    ],
)
async def test_the_answer_to_the_message_is_passed_on(script, reply: Reply, message: Message) -> None:
    async with ScriptedNextHop(script) as hop:
        hops = relay(hop)
        for _ in range(2):
            transaction = hops.begin(SENDER)
            await transaction.rcpt(ONE)
            assert (await transaction.send(Envelope(SENDER, (ONE,)), message)).reply == reply
        assert len(hop.connections) == (2 if "bye" in str(reply) else 1)
        assert all(session.violations == [] for session in hop.connections)
        await hops.close()


ADDED = Envelope(SENDER, (ONE, THREE))


async def send_with_added(hops: NextHops, message: Message, envelope: Envelope = ADDED):
    transaction = hops.begin(SENDER)
    await transaction.rcpt(ONE)
    return await transaction.send(envelope, message)


async def test_a_refused_added_recipient_tempfails_the_message(message: Message) -> None:
    async with ScriptedNextHop({"RCPT": refuse(b"three")}) as hop:
        delivery = await send_with_added(hops := relay(hop), message)
        assert delivery.reply == Reply.of(451, "4.1.1 no such user")
        assert delivery.refused == ((THREE, Reply.of(550, "5.1.1 no such user")),)
        assert hop.messages == []
        assert hop.connections[0].verbs == "EHLO MAIL RCPT RSET MAIL RCPT RCPT RSET"
        await hops.close()


async def test_a_refused_added_recipient_is_reported_if_that_is_wanted(message: Message) -> None:
    async with ScriptedNextHop({"RCPT": refuse(b"three")}) as hop:
        hops = relay(hop, on_refused_added_recipient="log")
        delivery = await send_with_added(hops, message)
        assert delivery.reply.code == 250
        assert delivery.refused == ((THREE, Reply.of(550, "5.1.1 no such user")),)
        assert hop.accepted[0].recipients == (b"one@x.test",)
        await hops.close()


async def test_nobody_left_is_never_a_success(message: Message) -> None:
    async with ScriptedNextHop({"RCPT": refuse(b"three")}) as hop:
        hops = relay(hop, on_refused_added_recipient="log")
        delivery = await send_with_added(hops, message, Envelope(SENDER, (THREE,)))
        assert delivery.reply == Reply.of(451, "4.1.1 no such user")
        assert hop.messages == []
        await hops.close()


class Fickle:
    """Accepts a recipient the first time and refuses it from then on."""

    def __init__(self, name: bytes, reply: str) -> None:
        self.name, self.reply, self.asked = name, reply, 0

    def __call__(self, argument: bytes) -> str | None:
        if self.name in argument:
            self.asked += 1
        return self.reply if self.name in argument and self.asked > 1 else None


@pytest.mark.parametrize("policy", ["tempfail", "log"])
@pytest.mark.parametrize(
    ("refusal", "heard"),
    [
        ("550 5.2.2 full", Reply.of(451, "4.2.2 full")),
        ("450 4.2.0 greylisted", Reply.of(450, "4.2.0 greylisted")),
        ("550 no", Reply.of(451, "no")),
    ],
)
async def test_a_recipient_that_was_accepted_and_is_refused_later(
    policy: str, refusal: str, heard: Reply, message: Message
) -> None:
    async with ScriptedNextHop({"RCPT": Fickle(b"one", refusal)}) as hop:
        hops = relay(hop, on_refused_added_recipient=policy)
        delivery = await send_with_added(hops, message)
        assert delivery.reply == heard
        assert [path for path, _ in delivery.refused] == [ONE]
        assert hop.messages == []
        await hops.close()


async def test_a_sender_that_was_accepted_and_is_refused_later(message: Message) -> None:
    async with ScriptedNextHop({"MAIL": Fickle(b"", "553 5.1.8 no")}) as hop:
        delivery = await send_with_added(hops := relay(hop), message)
        assert delivery.reply == Reply.of(451, "4.1.8 no")
        assert hop.messages == []
        await hops.close()


async def test_a_refused_sender_without_recipients_asked_before(message: Message) -> None:
    async with ScriptedNextHop({"MAIL": "553 5.1.8 no"}) as hop:
        hops = relay(hop)
        assert (await hops.begin(SENDER).send(ADDED, message)).reply == Reply.of(553, "5.1.8 no")
        await hops.close()


async def test_the_hops_are_tried_in_order(message: Message) -> None:
    async with ScriptedNextHop() as second:
        with refusing_address() as address:
            hops = relay(SMTPHop(*address), second)
            for _ in range(2):
                transaction = hops.begin(SENDER)
                await transaction.rcpt(ONE)
                delivery = await transaction.send(Envelope(SENDER, (ONE,)), message)
                assert delivery.hop == second.next_hop
            await hops.close()


@pytest.mark.parametrize("refusal", ["554 5.3.2 not here", "421 4.3.2 too many connections"])
async def test_a_hop_that_greets_with_a_refusal_is_passed_over(refusal: str) -> None:
    async with ScriptedNextHop({"CONNECT": refusal}) as first, ScriptedNextHop() as second:
        hops = relay(first, second)
        transaction = hops.begin(SENDER)
        assert await transaction.rcpt(ONE) == OK
        assert second.connections[0].verbs == "EHLO MAIL RCPT"
        await transaction.abort()
        await hops.close()


async def test_no_hop_at_all() -> None:
    with refusing_address() as one, refusing_address() as two:
        hops = relay(SMTPHop(*one), SMTPHop(*two))
        with pytest.raises(
            NextHopConnectError, match=f"^smtp:.*{one[1]}.*refused; smtp:.*{two[1]}.*refused$"
        ) as caught:
            await hops.begin(SENDER).rcpt(ONE)
        assert failure_reply(caught.value).code == 451
        await hops.close()
    with pytest.raises(ValueError, match="at least one"):
        NextHops([])


async def test_a_hop_that_comes_up_in_the_meantime() -> None:
    async with ScriptedNextHop({"CONNECT": "421 4.3.2 starting"}) as hop:
        hop._scripts.append({})
        hops = relay(hop)
        transaction = hops.begin(SENDER)
        assert await transaction.rcpt(ONE) == OK
        await transaction.abort()
        await hops.close()


async def test_discard(message: Message) -> None:
    hops = relay(DiscardHop())
    assert hops.features == Features(smtputf8=True)
    transaction = hops.begin(SENDER)
    assert (await transaction.rcpt(ONE)).code == 250
    assert (await transaction.rcpt(TWO)).code == 250
    delivery = await transaction.send(Envelope(SENDER, (ONE, TWO)), message)
    assert (delivery.reply.code, delivery.hop) == (250, "discard:")
    await transaction.abort()
    await hops.close()


async def test_a_local_hop_is_the_last_resort(message: Message) -> None:
    with refusing_address() as address:
        hops = relay(SMTPHop(*address), DiscardHop())
        transaction = hops.begin(SENDER)
        await transaction.rcpt(ONE)
        assert (await transaction.send(Envelope(SENDER, (ONE,)), message)).hop == "discard:"
        await hops.close()


async def test_probe() -> None:
    async with ScriptedNextHop(keywords=["SIZE 0", "DSN"]) as hop:
        with refusing_address() as address:
            hops = relay(SMTPHop(*address), hop, DiscardHop())
            refused, greeted, local = await hops.probe()
            assert isinstance(refused.error, NextHopError)
            assert (greeted.hop, greeted.greeting) == (hop.next_hop, "220 next-hop.test ESMTP")
            assert greeted.features == hops.features == Features(dsn=True)
            assert greeted.error is local.error is None
            await hops.close()
            assert (await hop.wait_closed()).verbs == "EHLO QUIT"


async def test_addresses_that_a_hop_cannot_take() -> None:
    utf8 = Path("<é@x.test>".encode())
    async with ScriptedNextHop(keywords=["PIPELINING"]) as hop:
        transaction = (hops := relay(hop)).begin(SENDER)
        assert (await transaction.rcpt(utf8)).code == 553
        assert await transaction.rcpt(ONE) == OK
        assert (await transaction.rcpt(utf8)).code == 553
        assert (await transaction.rcpt(Path(b"<a@b>\r\nRSET"))).code == 501
        await transaction.abort()
        assert hop.connections[0].commands[1:] == [
            b"MAIL FROM:<a@client.test>",
            b"RCPT TO:<one@x.test>",
            b"RSET",
        ]
        await hops.close()


async def test_a_sender_that_a_hop_cannot_be_told() -> None:
    async with ScriptedNextHop(keywords=["PIPELINING"]) as hop:
        transaction = (hops := relay(hop)).begin(Path(b"<a@b>", (b"SMTPUTF8",)))
        assert (await transaction.rcpt(ONE)).code == 550
        await transaction.abort()
        assert hop.connections[0].verbs == "EHLO"
        await hops.close()
