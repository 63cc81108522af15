"""Next hops that die, stall or lie: what is tried again, what must not be, and what the client hears."""

import asyncio
import errno

import pytest

from milterchain.errors import (
    NextHopClosedError,
    NextHopConnectError,
    NextHopError,
    NextHopProtocolError,
    NextHopTimeoutError,
)
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message, parse_message
from milterchain.mail.replies import Reply
from milterchain.proxy.nexthop import DiscardHop, SMTPHop
from milterchain.proxy.pool import PoolOptions
from milterchain.proxy.relay import NextHops, RelayOptions
from milterchain.proxy.relay_replies import failure_reply
from milterchain.smtp.client_options import ClientOptions
from milterchain.testing.faults import Close, Garbage, InTurn, Late, Reset, Silence, StopReading
from milterchain.testing.scripted_next_hop import HopAnswer, HopScript, ScriptedNextHop

SHORT = 0.05
SENDER = Path(b"<a@client.test>")
ONE, TWO, THREE = (Path(b"<%b@x.test>" % name) for name in (b"one", b"two", b"three"))
ENVELOPE = Envelope(SENDER, (ONE, TWO))
OK = Reply.of(250, "2.0.0 Ok")

ENDS: list[tuple[str, HopAnswer]] = [
    ("close", Close()),
    ("reset", Reset()),
    ("421", "421 4.3.2 shutting down"),
    ("garbage", Garbage(b"?\r\n")),
    ("354", "354 go ahead"),
]
each_end = pytest.mark.parametrize("end", [pytest.param(answer, id=name) for name, answer in ENDS])


@pytest.fixture
def message():
    with parse_message(b"Subject: x\r\n\r\n" + b"text\r\n" * 100_000) as message:
        yield message


def relay(*hops: ScriptedNextHop, **times: float) -> NextHops:
    options = RelayOptions(client=ClientOptions(**times), pool=PoolOptions(open_timeout=5))
    return NextHops([SMTPHop("127.0.0.1", hop.port) for hop in hops], options)


async def send(hops: NextHops, message: Message, envelope: Envelope = ENVELOPE):
    transaction = hops.begin(SENDER)
    assert await transaction.rcpt(ONE) == OK
    assert await transaction.rcpt(TWO) == OK
    return await transaction.send(envelope, message)


def in_order(hop: ScriptedNextHop) -> bool:
    return all(session.violations == [] for session in hop.connections)


@each_end
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "second RCPT"])
async def test_a_connection_that_ends_before_the_final_dot_is_replaced(
    step: str, end: HopAnswer, message: Message
) -> None:
    if step == "DATA" and end == "354 go ahead":
        end = "250 what"
    first = {"RCPT": InTurn(None, end)} if step == "second RCPT" else {step: end}
    async with ScriptedNextHop([first, {}]) as hop:
        hops = relay(hop)
        assert (await send(hops, message)).reply.code == 250
        assert [len(session.messages) for session in hop.connections] == [0, 1]
        assert hop.accepted[0].recipients == (b"one@x.test", b"two@x.test")
        assert in_order(hop)
        await hops.close()


@pytest.mark.parametrize("end", [Close(), Reset(), "421 4.3.2 bye", "250 Ok"])
async def test_a_connection_that_ends_amid_the_content_is_replaced(end: HopAnswer) -> None:
    go = asyncio.Event()
    script = {"DATA": [StopReading(go), "354 go", end]}
    async with ScriptedNextHop([script, {}]) as hop:
        hops = relay(hop)
        with parse_message([b"A: b\r\n\r\n", *[b"x" * 998 + b"\r\n"] * 20_000]) as large:
            assert (await send(hops, large)).reply.code == 250
            assert len(hop.accepted) == 1
            assert len(hop.accepted[0].data) == large.size
        go.set()
        await hops.close()


async def test_a_refusal_amid_the_content_is_the_answer() -> None:
    go, never = asyncio.Event(), asyncio.Event()
    script = {"DATA": ["354 go", Late(go), StopReading(never), "552 5.3.4 too big"]}
    async with ScriptedNextHop(script) as hop, asyncio.TaskGroup() as group:
        hops = relay(hop)
        with parse_message([b"A: b\r\n\r\n", *[b"x" * 998 + b"\r\n"] * 50_000]) as large:
            sending = group.create_task(send(hops, large))
            await hop.wait_for(lambda: hop.connections and len(hop.connections[0].reads) > 5)
            go.set()
            assert (await sending).reply == Reply.of(552, "5.3.4 too big")
        assert len(hop.connections) == 1
        never.set()
        await hops.close()


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (Close(), NextHopClosedError),
        (Reset(), NextHopClosedError),
        (Garbage(b"?\r\n"), NextHopProtocolError),
        ("354 what", NextHopProtocolError),
        (Silence(), NextHopTimeoutError),
    ],
)
async def test_after_the_final_dot_nothing_is_tried_again(
    end: HopAnswer, error: type[NextHopError], message: Message
) -> None:
    async with ScriptedNextHop({".": end}) as hop, ScriptedNextHop() as other:
        hops = relay(hop, other, data_done_timeout=SHORT if error is NextHopTimeoutError else 60.0)
        with pytest.raises(error):
            await send(hops, message)
        assert len(hop.connections) == len(hop.messages) == 1
        assert other.connections == []
        await hops.close()


@pytest.mark.parametrize(
    ("script", "times"),
    [
        ({"MAIL": Silence()}, {"command_timeout": SHORT}),
        ({"RCPT": Silence()}, {"command_timeout": SHORT}),
        ({"DATA": Silence()}, {"data_initiation_timeout": SHORT}),
        ({"DATA": [StopReading(asyncio.Event()), "354 go"]}, {"data_block_timeout": SHORT}),
    ],
)
async def test_a_missed_deadline_is_not_tried_again(script: HopScript, times: dict[str, float]) -> None:
    async with ScriptedNextHop(script) as hop:
        hops = relay(hop, **times)
        with (
            parse_message([b"A: b\r\n\r\n", *[b"x" * 998 + b"\r\n"] * 20_000]) as large,
            pytest.raises(NextHopTimeoutError) as caught,
        ):
            await send(hops, large)
        assert failure_reply(caught.value).status == b"4.4.2"
        assert len(hop.connections) == 1
        await hops.close()


async def test_a_hop_that_always_dies_is_given_up() -> None:
    async with ScriptedNextHop({"MAIL": Close()}) as hop:
        hops = relay(hop)
        with pytest.raises(NextHopClosedError):
            await hops.begin(SENDER).rcpt(ONE)
        assert len(hop.connections) == 3
        await hops.close()


async def test_a_hop_that_keeps_dying_makes_room_for_the_next(message: Message) -> None:
    async with ScriptedNextHop({"RCPT": Close()}) as first, ScriptedNextHop() as second:
        hops = relay(first, second)
        for _ in range(2):
            assert (await send(hops, message)).hop == second.next_hop
        assert len(first.connections) == 2
        assert len(second.connections) == 1
        await hops.close()


async def test_a_hop_that_keeps_dying_makes_room_for_a_local_one(message: Message) -> None:
    async with ScriptedNextHop({"RCPT": Close()}) as first:
        hops = NextHops([SMTPHop("127.0.0.1", first.port), DiscardHop()])
        transaction = hops.begin(SENDER)
        assert (await transaction.rcpt(ONE)).code == 250
        assert (await transaction.send(Envelope(SENDER, (ONE,)), message)).hop == "discard:"
        await hops.close()


async def test_kept_connections_that_died_are_not_noticed(message: Message) -> None:
    async with ScriptedNextHop() as hop:
        hops = relay(hop)
        await send(hops, message)
        await hop.stop()
        await hop.start()
        await send(hops, message)
        assert len(hop.accepted) == 2
        await hops.close()


async def test_a_kept_connection_that_dies_at_the_first_command(message: Message) -> None:
    async with ScriptedNextHop([{"MAIL": InTurn(None, Close())}, {}]) as hop:
        hops = relay(hop)
        await send(hops, message)
        await send(hops, message)
        assert len(hop.connections) == 2
        assert len(hop.accepted) == 2
        await hops.close()


async def test_recipients_that_another_hop_does_not_accept_again(message: Message) -> None:
    refusing = {"RCPT": lambda argument: "450 4.2.0 greylisted" if b"one" in argument else None}
    async with ScriptedNextHop([{"RCPT": InTurn(None, Close())}, refusing]) as hop:
        hops = relay(hop)
        transaction = hops.begin(SENDER)
        assert await transaction.rcpt(ONE) == OK
        with pytest.raises(NextHopError, match="does not accept again") as caught:
            await transaction.rcpt(TWO)
        assert failure_reply(caught.value) == Reply.of(
            451, "4.3.0 The message could not be relayed - try again later"
        )
        delivery = await transaction.send(Envelope(SENDER, (ONE,)), message)
        assert delivery.reply == Reply.of(450, "4.2.0 greylisted")
        assert hop.messages == []
        await hops.close()


@each_end
async def test_a_connection_that_ends_when_the_envelope_changes(end: HopAnswer, message: Message) -> None:
    async with ScriptedNextHop([{"RSET": end}, {}]) as hop:
        hops = relay(hop)
        delivery = await send(hops, message, Envelope(SENDER, (TWO, THREE)))
        assert delivery.reply.code == 250
        assert hop.accepted[0].recipients == (b"two@x.test", b"three@x.test")
        await hops.close()


@pytest.mark.parametrize(
    "answer", ["500 5.5.1 what", "451 4.3.0 no", "421 4.3.2 bye", Close(), Garbage(b"?\n")]
)
async def test_a_reset_that_fails_ends_the_connection(answer: HopAnswer, message: Message) -> None:
    async with ScriptedNextHop([{"RSET": answer}, {}]) as hop:
        hops = relay(hop)
        transaction = hops.begin(SENDER)
        await transaction.rcpt(ONE)
        await transaction.abort()
        await hop.wait_closed()
        await send(hops, message)
        assert len(hop.connections) == 2
        await hops.close()


async def test_a_refused_reset_before_a_changed_envelope(message: Message) -> None:
    async with ScriptedNextHop([{"RSET": "500 5.5.1 what"}, {}]) as hop:
        hops = relay(hop)
        assert (await send(hops, message, Envelope(SENDER, (TWO,)))).reply.code == 250
        assert [len(session.messages) for session in hop.connections] == [0, 1]
        await hops.close()


def reached(hop: ScriptedNextHop, step: str) -> bool:
    """Whether the step whose answer never comes has begun."""
    if step == "CONNECT":
        return bool(hop.connections)
    return any(step in session.verbs.split() for session in hop.connections)


@pytest.mark.parametrize("step", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."])
async def test_cancellation_never_leaves_a_connection_in_the_pool(step: str, message: Message) -> None:
    async with ScriptedNextHop([{step: Silence()}, {}]) as hop:
        hops = relay(hop)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(send(hops, message))
            await hop.wait_for(lambda: reached(hop, step))
            task.cancel()
        assert (await hop.wait_closed()).closed_by_peer
        await send(hops, message)
        assert len(hop.connections) == 2
        assert hop.connections[1].verbs == "EHLO MAIL RCPT RCPT DATA ."
        await hops.close()


async def test_a_cancelled_abort_closes_the_connection() -> None:
    async with ScriptedNextHop([{"RSET": Silence()}, {}]) as hop:
        hops = relay(hop)
        transaction = hops.begin(SENDER)
        await transaction.rcpt(ONE)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(transaction.abort())
            await hop.wait_for(lambda: reached(hop, "RSET"))
            task.cancel()
        assert (await hop.wait_closed()).closed_by_peer
        await hops.close()


async def test_a_hop_that_accepts_connections_and_says_nothing() -> None:
    never = asyncio.Event()
    async with ScriptedNextHop({"CONNECT": Late(never)}) as hop:
        options = RelayOptions(pool=PoolOptions(open_timeout=SHORT))
        hops = NextHops([SMTPHop("127.0.0.1", hop.port)], options)
        with pytest.raises(NextHopConnectError, match=r"no session within 0\.05 s"):
            await hops.begin(SENDER).rcpt(ONE)
        await hops.close()


def with_cause(number: int) -> NextHopError:
    error = NextHopError("secret /var/spool")
    error.__cause__ = OSError(number, "secret")
    return error


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (NextHopConnectError("secret 10.0.0.1"), 451, b"4.4.1"),
        (NextHopTimeoutError("secret"), 451, b"4.4.2"),
        (NextHopClosedError("secret"), 451, b"4.4.2"),
        (NextHopProtocolError("secret"), 451, b"4.5.0"),
        (NextHopError("secret"), 451, b"4.3.0"),
        (with_cause(errno.EACCES), 451, b"4.3.0"),
        (with_cause(errno.ENOSPC), 452, b"4.3.1"),
        (with_cause(errno.EDQUOT), 452, b"4.3.1"),
    ],
)
def test_faults_are_worded_for_clients(error: NextHopError, code: int, status: bytes) -> None:
    reply = failure_reply(error)
    assert (reply.code, reply.status) == (code, status)
    assert "secret" not in str(reply)
