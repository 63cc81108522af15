"""What belongs to one client on a next hop: its identity by XCLIENT or XFORWARD, and its login."""

import base64

import pytest

from milterchain.errors import NextHopConnectError, NextHopError, NextHopLoginError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message, parse_message
from milterchain.mail.replies import Reply
from milterchain.proxy.identity import Identity
from milterchain.proxy.nexthop import DiscardHop, LMTPHop, SMTPHop
from milterchain.proxy.relay import NextHops, NextHopSession, RelayOptions
from milterchain.smtp.client_auth import Credentials
from milterchain.testing.faults import Close, InTurn
from milterchain.testing.peer import refusing_address
from milterchain.testing.scripted_next_hop import KEYWORDS, ScriptedNextHop

SENDER = Path(b"<a@client.test>")
ONE, TWO = (Path(b"<%b@x.test>" % name) for name in (b"one", b"two"))
CLIENT = Identity(address="192.0.2.7", port=4711, helo=b"client.test", queue_id=b"Q1")
ANN = Credentials(user=b"ann", password=b"secret")
PLAIN = "AUTH PLAIN " + base64.b64encode(b"\0ann\0secret").decode()

AUTH = (*KEYWORDS, "AUTH PLAIN LOGIN")
XCLIENT = (*KEYWORDS, "XCLIENT NAME ADDR PORT PROTO HELO LOGIN", "AUTH PLAIN LOGIN")
XFORWARD = (*KEYWORDS, "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE")
BOTH = (*XCLIENT, XFORWARD[-1])
NAMED = b"XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=4711 PROTO=ESMTP HELO=client.test LOGIN="
ACCEPTING = {"AUTH": "235 2.7.0 ok"}


@pytest.fixture
def message():
    with parse_message(b"Subject: x\r\n\r\ntext\r\n") as message:
        yield message


def hops_for(*hops: ScriptedNextHop, identity="auto") -> NextHops:
    return NextHops([SMTPHop("127.0.0.1", hop.port) for hop in hops], RelayOptions(identity=identity))


async def send(
    session: NextHopSession, message: Message, identity: Identity | None = CLIENT, *recipients: Path
) -> Reply:
    transaction = session.begin(SENDER, identity)
    recipients = recipients or (ONE,)
    for recipient in recipients:
        if not (reply := await transaction.rcpt(recipient)).positive:
            await transaction.abort()
            return reply
    return (await transaction.send(Envelope(SENDER, recipients), message)).reply


async def test_a_login_stays_with_its_client(message: Message) -> None:
    async with ScriptedNextHop(ACCEPTING, keywords=AUTH) as hop:
        hops = hops_for(hop)
        session, other = hops.session(), hops.session()
        assert (await session.login(ANN, CLIENT)).code == 235
        for _ in range(2):
            assert (await send(session, message)).code == 250
        assert (await send(other, message)).code == 250
        await session.close()
        await session.close()
        await other.close()
        await hops.close()
        mine, others = hop.connections
        assert mine.verbs == "EHLO AUTH MAIL RCPT DATA . MAIL RCPT DATA . QUIT"
        assert mine.commands[1].decode() == PLAIN
        assert others.verbs == "EHLO MAIL RCPT DATA . QUIT"
        assert mine.violations == others.violations == []


async def test_a_login_is_made_again_where_its_connection_died(message: Message) -> None:
    script = {**ACCEPTING, "MAIL": InTurn(None, [Close()])}
    async with ScriptedNextHop([script, ACCEPTING], keywords=AUTH) as hop:
        hops = hops_for(hop)
        session = hops.session()
        await session.login(ANN)
        for _ in range(3):
            assert (await send(session, message)).code == 250
        await session.close()
        await hops.close()
        assert len(hop.accepted) == 3
        assert [each.verbs for each in hop.connections] == [
            "EHLO AUTH MAIL RCPT DATA . MAIL",
            "EHLO AUTH MAIL RCPT DATA . MAIL RCPT DATA . QUIT",
        ]


async def test_a_refused_login_is_the_answer_and_binds_nothing(message: Message) -> None:
    async with ScriptedNextHop({"AUTH": "535 5.7.8 no"}, keywords=AUTH) as hop:
        hops = hops_for(hop)
        session = hops.session()
        assert await session.login(ANN) == Reply.of(535, "5.7.8 no")
        assert (await send(session, message)).code == 250
        await session.close()
        await hops.close()
        assert [each.verbs for each in hop.connections] == ["EHLO AUTH QUIT", "EHLO MAIL RCPT DATA . QUIT"]


async def test_a_login_that_succeeds_no_longer_is_an_error(message: Message) -> None:
    script = {"AUTH": "235 2.7.0 ok", "MAIL": [Close()]}
    async with ScriptedNextHop([script, {"AUTH": "535 5.7.8 no"}], keywords=AUTH) as hop:
        hops = hops_for(hop)
        session = hops.session()
        await session.login(ANN)
        assert (await send(session, message)) == Reply.of(535, "5.7.8 no")
        assert hop.accepted == []
        await session.close()
        await hops.close()


async def test_a_hop_that_dies_at_auth_is_asked_again() -> None:
    async with ScriptedNextHop([{"AUTH": [Close()]}, ACCEPTING], keywords=AUTH) as hop:
        hops = hops_for(hop)
        session = hops.session()
        assert (await session.login(ANN)).code == 235
        await session.close()
        await hops.close()
    async with ScriptedNextHop({"AUTH": "421 4.3.0 busy"}, keywords=AUTH) as hop:
        hops = hops_for(hop)
        with pytest.raises(NextHopError, match="421"):
            await hops.session().login(ANN)
        await hops.close()


async def test_nobody_can_log_in_where_there_is_no_auth() -> None:
    async with ScriptedNextHop() as hop:
        hops = hops_for(hop)
        with pytest.raises(NextHopConnectError, match="no AUTH"):
            await hops.session().login(ANN)
        await hops.close()
    with pytest.raises(NextHopConnectError, match="takes no logins"):
        await NextHops([DiscardHop()]).session().login(ANN)


async def test_xclient_binds_the_connection_to_the_client(message: Message) -> None:
    async with ScriptedNextHop(keywords=BOTH) as hop:
        hops = hops_for(hop)
        session, other = hops.session(), hops.session()
        for _ in range(2):
            assert (await send(session, message)).code == 250
        await session.close()
        assert (await send(other, message, Identity(address="2001:db8::1"))).code == 250
        await other.close()
        await hops.close()
        one, two = hop.connections
        assert one.verbs == "EHLO XCLIENT EHLO MAIL RCPT DATA . MAIL RCPT DATA . QUIT"
        assert one.commands[1] == NAMED + b"[UNAVAILABLE]"
        assert one.commands[2] == b"EHLO client.test"
        assert b" ADDR=IPV6:2001:db8::1 PORT=[UNAVAILABLE] " in two.commands[1]
        assert two.commands[2] == b"EHLO localhost"
        assert one.violations == two.violations == []


async def test_a_bound_connection_serves_on_after_transactions_that_ended_early(message: Message) -> None:
    async with ScriptedNextHop({".": InTurn("550 5.7.1 no", None)}, keywords=XCLIENT) as hop:
        hops = hops_for(hop)
        session = hops.session()
        for path in (ONE, TWO):
            transaction = session.begin(SENDER, CLIENT)
            assert (await transaction.rcpt(path)).code == 250
            await transaction.abort()
        assert (await send(session, message)).code == 550
        assert (await send(session, message)).code == 250
        await session.close()
        await hops.close()
        (connection,) = hop.connections
        left = "MAIL RCPT RSET MAIL RCPT RSET MAIL RCPT DATA . RSET"
        assert connection.verbs == f"EHLO XCLIENT EHLO {left} MAIL RCPT DATA . QUIT"
        assert connection.violations == []


async def test_another_helo_needs_another_connection(message: Message) -> None:
    async with ScriptedNextHop(keywords=XCLIENT) as hop:
        hops = hops_for(hop)
        session = hops.session()
        await send(session, message)
        await send(session, message, Identity(address="192.0.2.7", port=4711, helo=b"other.test"))
        await session.close()
        await hops.close()
        assert [each.verbs for each in hop.connections] == ["EHLO XCLIENT EHLO MAIL RCPT DATA . QUIT"] * 2


async def test_a_login_comes_after_xclient_which_does_not_claim_it(message: Message) -> None:
    async with ScriptedNextHop(ACCEPTING, keywords=XCLIENT) as hop:
        hops = hops_for(hop)
        session = hops.session()
        logged_in = Identity(address="192.0.2.7", port=4711, helo=b"client.test", login=b"ann")
        assert (await session.login(ANN, CLIENT)).code == 235
        assert (await send(session, message, logged_in)).code == 250
        await session.close()
        await hops.close()
        (connection,) = hop.connections
        assert connection.verbs == "EHLO XCLIENT EHLO AUTH MAIL RCPT DATA . QUIT"
        assert connection.commands[1] == NAMED + b"[UNAVAILABLE]"


async def test_a_login_made_here_is_told(message: Message) -> None:
    async with ScriptedNextHop(keywords=XCLIENT) as hop:
        hops = hops_for(hop)
        session = hops.session()
        await send(session, message, Identity(address="192.0.2.7", helo=b"c", login=b"ann+x"))
        await session.close()
        await hops.close()
        assert hop.connections[0].commands[1].endswith(b" LOGIN=ann+2Bx")


@pytest.mark.parametrize(
    ("reply", "heard"),
    [
        ("554 5.7.1 <192.0.2.7>: Client host rejected", "554 5.7.1 <192.0.2.7>: Client host rejected"),
        ("450 4.7.1 greylisted", "450 4.7.1 greylisted"),
    ],
)
async def test_a_refused_client_is_refused_in_the_words_of_the_hop(
    reply: str, heard: str, message: Message
) -> None:
    async with ScriptedNextHop({"XCLIENT": reply}, keywords=XCLIENT) as hop:
        hops = hops_for(hop)
        session = hops.session()
        assert str(await send(session, message)) == heard
        await session.close()
        await hops.close()
        assert hop.connections[0].verbs == "EHLO XCLIENT QUIT"


@pytest.mark.parametrize(
    "reply", ["501 5.5.4 what", "550 5.7.0 insufficient authorization", "250 Ok", "421 4.3.0 busy"]
)
async def test_a_hop_that_does_not_take_xclient_is_not_used_without(reply: str, message: Message) -> None:
    async with ScriptedNextHop({"XCLIENT": reply}, keywords=XCLIENT) as hop:
        hops = hops_for(hop)
        session = hops.session()
        with pytest.raises(NextHopError):
            await send(session, message)
        await session.close()
        await hops.close()
        assert {each.verbs for each in hop.connections} == {"EHLO XCLIENT"}


async def test_xforward_is_said_before_each_message(message: Message) -> None:
    async with ScriptedNextHop(keywords=XFORWARD) as hop:
        hops = hops_for(hop)
        for _ in range(2):
            session = hops.session()
            assert (await send(session, message)).code == 250
            await session.close()
        await hops.close()
        (connection,) = hop.connections
        assert connection.verbs == "EHLO XFORWARD MAIL RCPT DATA . XFORWARD MAIL RCPT DATA . QUIT"
        assert connection.commands[1] == (
            b"XFORWARD NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=4711 PROTO=ESMTP HELO=client.test IDENT=Q1"
            b" SOURCE=REMOTE"
        )
        assert connection.reads[1].startswith(b"XFORWARD ")
        assert connection.reads[1].endswith(b"RCPT TO:<one@x.test>\r\n")
        assert connection.violations == []


async def test_xforward_is_said_again_after_rset(message: Message) -> None:
    async with ScriptedNextHop(keywords=XFORWARD) as hop:
        hops = hops_for(hop)
        transaction = hops.session().begin(SENDER, CLIENT)
        await transaction.rcpt(ONE)
        assert (await transaction.send(Envelope(SENDER, (TWO,)), message)).reply.code == 250
        await hops.close()
        assert hop.connections[0].verbs == "EHLO XFORWARD MAIL RCPT RSET XFORWARD MAIL RCPT DATA . QUIT"


async def test_a_refused_xforward_costs_nothing_but_the_log(message: Message) -> None:
    async with ScriptedNextHop({"XFORWARD": "501 5.5.4 what"}, keywords=XFORWARD) as hop:
        hops = hops_for(hop)
        assert (await send(hops.session(), message)).code == 250
        await hops.close()


@pytest.mark.parametrize(
    ("identity", "keywords", "verbs"),
    [
        ("none", BOTH, "EHLO MAIL RCPT DATA . QUIT"),
        ("auto", KEYWORDS, "EHLO MAIL RCPT DATA . QUIT"),
        ("xforward", BOTH, "EHLO XFORWARD MAIL RCPT DATA . QUIT"),
        ("xforward", KEYWORDS, "EHLO MAIL RCPT DATA . QUIT"),
        ("xclient", BOTH, "EHLO XCLIENT EHLO MAIL RCPT DATA . QUIT"),
    ],
)
async def test_how_hops_learn_of_clients(
    identity: str, keywords: tuple[str, ...], verbs: str, message: Message
) -> None:
    async with ScriptedNextHop(keywords=keywords) as hop:
        hops = hops_for(hop, identity=identity)
        session = hops.session()
        assert (await send(session, message)).code == 250
        await session.close()
        await hops.close()
        assert hop.connections[0].verbs == verbs


async def test_xclient_that_must_be_is_missed(message: Message) -> None:
    async with ScriptedNextHop(keywords=XFORWARD) as hop:
        hops = hops_for(hop, identity="xclient")
        session = hops.session()
        with pytest.raises(NextHopConnectError, match="XCLIENT"):
            await send(session, message)
        assert (await send(session, message, Identity(address=""))).code == 250
        await session.close()
        await hops.close()


async def test_our_own_login_is_made_on_each_connection(message: Message) -> None:
    """XCLIENT would undo it; the log may learn of the client all the same."""
    async with ScriptedNextHop(ACCEPTING, keywords=BOTH) as hop:
        options = RelayOptions(identity="auto", credentials=ANN)
        hops = NextHops([SMTPHop("127.0.0.1", hop.port)], options)
        one, two = hops.session(), hops.session()
        assert (await send(one, message)).code == (await send(two, message)).code == 250
        await hops.close()
        (connection,) = hop.connections
        assert connection.verbs == "EHLO AUTH XFORWARD MAIL RCPT DATA . XFORWARD MAIL RCPT DATA . QUIT"


@pytest.mark.parametrize(
    ("script", "keywords"), [({"AUTH": "535 5.7.8 no"}, AUTH), ({}, KEYWORDS)], ids=["refused", "not offered"]
)
async def test_our_own_login_that_is_refused_is_not_tried_again_at_once(
    script: dict[str, str], keywords: tuple[str, ...], message: Message
) -> None:
    async with ScriptedNextHop(script, keywords=keywords) as hop:
        hops = NextHops([SMTPHop("127.0.0.1", hop.port)], RelayOptions(credentials=ANN))
        with pytest.raises(NextHopLoginError):
            await send(hops.session(), message)
        await hops.close()
        assert len(hop.connections) == 1


async def test_requiretls_needs_a_hop_that_keeps_it() -> None:
    sender = Path(b"<a@client.test>", (b"REQUIRETLS",))
    async with ScriptedNextHop(keywords=(*KEYWORDS, "REQUIRETLS")) as hop:
        hops = hops_for(hop)
        transaction = hops.session().begin(sender)
        assert str(await transaction.rcpt(ONE)) == "550 5.7.30 REQUIRETLS support required"
        assert hop.connections[0].verbs == "EHLO"
        await transaction.abort()
        await hops.close()


class TestForeignRecipients:
    """Recipients that our own access rule refuses, but a hop that knows the client may take."""

    async def test_a_hop_with_xclient_decides(self) -> None:
        script = {"RCPT": "554 5.7.1 Relay access denied"}
        async with ScriptedNextHop(script, keywords=XCLIENT) as hop:
            hops = hops_for(hop)
            session = hops.session()
            transaction = session.begin(SENDER, CLIENT)
            assert await transaction.knows_client()
            assert (await transaction.rcpt(ONE, foreign=True)).code == 554
            await transaction.abort()
            await session.close()
            await hops.close()

    @pytest.mark.parametrize("identity", ["none", "auto", "xforward"])
    async def test_others_do_not(self, identity: str) -> None:
        async with ScriptedNextHop(keywords=XFORWARD) as hop:
            hops = hops_for(hop, identity=identity)
            transaction = hops.session().begin(SENDER, CLIENT)
            assert not await transaction.knows_client()
            await transaction.abort()
            assert len(hop.connections) == (identity == "auto")
            transaction = hops.session().begin(SENDER, CLIENT)
            assert not await transaction.knows_client()
            assert len(hop.connections) == (identity == "auto")
            await hops.close()

    async def test_nor_one_that_cannot_be_reached(self) -> None:
        with refusing_address() as address:
            transaction = NextHops([SMTPHop(*address)], RelayOptions(identity="auto")).begin(SENDER)
            assert not await transaction.knows_client()

    async def test_nor_one_that_refuses_the_client_or_delivers_by_lmtp(self) -> None:
        async with ScriptedNextHop({"XCLIENT": "554 5.7.1 no"}, keywords=XCLIENT) as hop:
            hops = hops_for(hop)
            session = hops.session()
            assert not await session.begin(SENDER, CLIENT).knows_client()
            await session.close()
            await hops.close()
        async with ScriptedNextHop(lmtp=True, keywords=XCLIENT) as hop:
            hops = NextHops([LMTPHop(("127.0.0.1", hop.port))], RelayOptions(identity="auto"))
            session = hops.session()
            transaction = session.begin(SENDER, CLIENT)
            assert not await transaction.knows_client()
            await transaction.abort()
            await session.close()
            await hops.close()

    async def test_a_second_hop_that_does_not_know_the_client_gets_nothing(self, message: Message) -> None:
        async with ScriptedNextHop(keywords=XCLIENT) as first, ScriptedNextHop() as second:
            hops = hops_for(first, second)
            session = hops.session()
            transaction = session.begin(SENDER, CLIENT)
            assert await transaction.knows_client()
            assert (await transaction.rcpt(ONE, foreign=True)).code == 250
            await first.stop()
            with pytest.raises(NextHopConnectError, match="cannot decide"):
                await transaction.send(Envelope(SENDER, (ONE,)), message)
            assert second.messages == []
            await transaction.abort()
            await session.close()
            await hops.close()
