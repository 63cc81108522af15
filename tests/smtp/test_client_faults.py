"""The SMTP client against servers that die, stall, flood and lie, at each step; and against cancellation."""

import asyncio
import gc
from collections.abc import Iterator

import pytest

from milterchain.errors import (
    NextHopClosedError,
    NextHopConnectError,
    NextHopError,
    NextHopProtocolError,
    NextHopTimeoutError,
)
from milterchain.mail.replies import Reply
from milterchain.smtp.client import SMTPClient
from milterchain.smtp.client_options import ClientOptions
from milterchain.testing.faults import Close, Garbage, Late, Reset, Silence, StopReading
from milterchain.testing.scripted_next_hop import KEYWORDS, HalfLine, HopAnswer, ScriptedNextHop

SHORT = 0.05
"""A deadline that is meant to be missed."""
LONG = 60.0
"""A deadline that is not, however busy the machine is."""
SERIAL = tuple(keyword for keyword in KEYWORDS if keyword != "PIPELINING")

FAULTS: list[tuple[str, HopAnswer, type[NextHopError]]] = [
    ("close", Close(), NextHopClosedError),
    ("reset", Reset(), NextHopClosedError),
    ("half a line, then closed", [HalfLine("250 2.0.0 Ok"), Close()], NextHopClosedError),
    ("half a reply, then closed", [b"250-mx\r\n", Close()], NextHopClosedError),
    ("silence", Silence(), NextHopTimeoutError),
    ("half a line, then silence", HalfLine("250 2.0.0 Ok"), NextHopTimeoutError),
    ("half a reply, then silence", b"250-mx\r\n250-SIZE\r\n", NextHopTimeoutError),
    ("garbage", Garbage(b"\xff\xfe garbage\r\n"), NextHopProtocolError),
    ("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n", NextHopProtocolError),
    ("mixed codes", b"250-a\r\n251 b\r\n", NextHopProtocolError),
    ("an endless line", b"250 " + b"x" * 100_000, NextHopProtocolError),
    ("endless lines", b"250-x\r\n" * 1000, NextHopProtocolError),
]


def fault_cases(*left_out: str):
    return pytest.mark.parametrize(
        ("answer", "error"),
        [pytest.param(answer, error, id=name) for name, answer, error in FAULTS if name not in left_out],
    )


def deadline(error: type[NextHopError]) -> float:
    return SHORT if error is NextHopTimeoutError else LONG


async def connect(hop: ScriptedNextHop, **times: float) -> SMTPClient:
    return await SMTPClient.open(("127.0.0.1", hop.port), ClientOptions(**times))


async def transaction(client: SMTPClient) -> None:
    await client.exchange(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>")


async def unusable(client: SMTPClient, error: type[NextHopError]) -> None:
    """Nothing can be done any more but learn why, and the socket goes away."""
    assert type(client.failure) is error
    assert not client.usable
    with pytest.raises(error):
        await client.exchange(b"NOOP")
    await client.wait_closed()
    assert client._timer is None


@pytest.mark.parametrize("step", ["CONNECT", "EHLO"])
@fault_cases()
async def test_faults_while_opening(step: str, answer: HopAnswer, error: type[NextHopError]) -> None:
    async with ScriptedNextHop({step: answer}) as hop:
        times = {"greeting_timeout" if step == "CONNECT" else "hello_timeout": deadline(error)}
        with pytest.raises(error):
            await connect(hop, **times)
        await hop.wait_closed()


@pytest.mark.parametrize(
    ("step", "reply", "text"),
    [
        ("CONNECT", "554 5.3.2 go away", "greeted with 554 5.3.2 go away"),
        ("CONNECT", "421 4.3.2 later", "greeted with 421"),
        ("CONNECT", "521 no mail here", "greeted with 521"),
        ("CONNECT", "250 what", "greeted with 250"),
        ("EHLO", "421 4.7.0 too many", "refused our greeting: 421"),
        ("EHLO", "450 4.7.1 name", "refused our greeting: 450"),
        ("EHLO", "354 what", "refused our greeting: 354"),
    ],
)
async def test_refusals_while_opening(step: str, reply: str, text: str) -> None:
    async with ScriptedNextHop({step: reply}) as hop:
        with pytest.raises(NextHopConnectError, match=text):
            await connect(hop)
        await hop.wait_closed()


async def test_neither_ehlo_nor_helo() -> None:
    async with ScriptedNextHop({"EHLO": "500 no", "HELO": "550 5.7.1 no"}) as hop:
        with pytest.raises(NextHopConnectError, match=r"550 5\.7\.1 no"):
            await connect(hop)


async def test_a_greeting_with_more_behind_it_is_not_trusted() -> None:
    async with ScriptedNextHop({"CONNECT": b"220 mx\r\n250 injected\r\n"}) as hop:
        with pytest.raises(NextHopProtocolError, match="without being asked: 250 injected"):
            await connect(hop)


async def test_no_connection_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forever(*_: object, **__: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", forever)
    with pytest.raises(NextHopConnectError, match=r"within 0\.05 s"):
        await SMTPClient.open(("127.0.0.1", 25), ClientOptions(connect_timeout=SHORT))


@pytest.mark.parametrize("keywords", [KEYWORDS, SERIAL], ids=["pipelining", "serial"])
@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
@fault_cases()
async def test_faults_at_commands(
    step: str, keywords: tuple[str, ...], answer: HopAnswer, error: type[NextHopError]
) -> None:
    async with ScriptedNextHop({step: answer}, keywords=keywords) as hop:
        client = await connect(hop, command_timeout=deadline(error))
        with pytest.raises(error):
            await client.exchange(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"RCPT TO:<e@f>")
        await unusable(client, error)


@fault_cases()
async def test_faults_at_data(answer: HopAnswer, error: type[NextHopError]) -> None:
    async with ScriptedNextHop({"DATA": answer}) as hop:
        client = await connect(hop, data_initiation_timeout=deadline(error))
        await transaction(client)
        with pytest.raises(error):
            await client.data([b"x\r\n"])
        assert not client.in_doubt
        await unusable(client, error)


@fault_cases()
async def test_faults_after_the_final_dot_leave_a_doubt(answer: HopAnswer, error: type[NextHopError]) -> None:
    async with ScriptedNextHop({".": answer}) as hop:
        client = await connect(hop, data_done_timeout=deadline(error))
        await transaction(client)
        with pytest.raises(error):
            await client.data([b"x\r\n"])
        assert client.in_doubt
        await unusable(client, error)


@pytest.mark.parametrize(("step", "code"), [("DATA", 250), (".", 354)])
async def test_a_positive_reply_of_the_wrong_kind(step: str, code: int) -> None:
    async with ScriptedNextHop({step: f"{code} what"}) as hop:
        client = await connect(hop)
        await transaction(client)
        with pytest.raises(NextHopProtocolError, match=f"{code} what"):
            await client.data([b"x\r\n"])
        assert client.in_doubt == (step == ".")
        await unusable(client, NextHopProtocolError)


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 65_534 + b"\r\n"


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Close(), NextHopClosedError), (Reset(), NextHopClosedError), (Garbage(b"?\n"), NextHopProtocolError)],
)
async def test_faults_amid_the_content(fault: Close | Reset | Garbage, error: type[NextHopError]) -> None:
    go = asyncio.Event()
    async with ScriptedNextHop({"DATA": ["354 go", Late(go), fault]}) as hop, asyncio.TaskGroup() as group:
        client = await connect(hop)
        await transaction(client)
        sending = group.create_task(outcome(client))
        await hop.wait_for(lambda: len(hop.connections[0].reads) > 5)
        go.set()
        assert isinstance(await sending, error)
        assert not client.in_doubt
        await unusable(client, error)


async def outcome(client: SMTPClient) -> Reply | NextHopError:
    try:
        return await client.data(endless())
    except NextHopError as error:
        return error


async def test_a_server_that_takes_no_more_content() -> None:
    never = asyncio.Event()
    async with ScriptedNextHop({"DATA": [StopReading(never), "354 go"]}) as hop:
        client = await connect(hop, data_block_timeout=SHORT)
        await transaction(client)
        with pytest.raises(NextHopTimeoutError, match="take the content"):
            await client.data(endless())
        assert not client.in_doubt
        await unusable(client, NextHopTimeoutError)
        never.set()


@pytest.mark.parametrize("reading", [True, False], ids=["reading", "not reading"])
@pytest.mark.parametrize("text", ["552 5.3.4 too big", "421 4.3.2 shutting down"])
async def test_a_refusal_amid_the_content_is_the_answer_unless_it_is_421(*, text: str, reading: bool) -> None:
    go, never = asyncio.Event(), asyncio.Event()
    pause = [] if reading else [StopReading(never)]
    script = {"DATA": [*pause, "354 go", Late(go), text]}
    async with ScriptedNextHop(script) as hop, asyncio.TaskGroup() as group:
        client = await connect(hop)
        await transaction(client)
        sending = group.create_task(outcome(client))
        if reading:
            await hop.wait_for(lambda: len(hop.connections[0].reads) > 5)
        go.set()
        result = await sending
        assert isinstance(result, Reply if text.startswith("552") else NextHopClosedError)
        assert text in str(result)
        assert not client.in_doubt
        await unusable(client, NextHopClosedError)
        never.set()


@pytest.mark.parametrize("late", [True, False], ids=["amid", "at once"])
async def test_an_acceptance_before_the_end_of_the_content_is_none(*, late: bool) -> None:
    go = asyncio.Event()
    script = {"DATA": ["354 go", Late(go), "250 Ok"] if late else b"354 go\r\n250 Ok\r\n"}
    async with ScriptedNextHop(script) as hop, asyncio.TaskGroup() as group:
        client = await connect(hop)
        await transaction(client)
        sending = group.create_task(outcome(client))
        await hop.wait_for(lambda: "DATA" in hop.connections[0].verbs)
        await hop.wait_for(lambda: not late or len(hop.connections[0].reads) > 5)
        go.set()
        assert isinstance(await sending, NextHopProtocolError)
        await unusable(client, NextHopProtocolError)


async def test_a_source_that_fails_closes_the_connection() -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise OSError(5, "Input/output error")

    async with ScriptedNextHop() as hop:
        client = await connect(hop)
        await transaction(client)
        with pytest.raises(OSError, match="Input/output"):
            await client.data(broken())
        await unusable(client, NextHopClosedError)
        assert (await hop.wait_closed()).messages == []


@pytest.mark.parametrize("keywords", [KEYWORDS, SERIAL], ids=["pipelining", "serial"])
async def test_421_answers_all_that_is_outstanding(keywords: tuple[str, ...]) -> None:
    async with ScriptedNextHop({"MAIL": "421 4.3.2 bye"}, keywords=keywords) as hop:
        client = await connect(hop)
        replies = await client.exchange(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"RCPT TO:<e@f>")
        assert replies == (Reply.of(421, "4.3.2 bye"),) * 3
        await unusable(client, NextHopClosedError)
        assert "RCPT" not in hop.connections[0].verbs or keywords is KEYWORDS


async def test_421_to_data_is_no_answer_to_the_content() -> None:
    async with ScriptedNextHop({"DATA": "421 4.3.2 bye"}) as hop:
        client = await connect(hop)
        await transaction(client)
        assert isinstance(result := await outcome(client), NextHopClosedError)
        assert "421 4.3.2 bye" in str(result)
        await unusable(client, NextHopClosedError)


async def test_421_to_the_final_dot_is_the_answer() -> None:
    async with ScriptedNextHop({".": "421 4.3.2 bye"}) as hop:
        client = await connect(hop)
        await transaction(client)
        assert await client.data([b"x\r\n"]) == Reply.of(421, "4.3.2 bye")
        assert not client.in_doubt
        await unusable(client, NextHopClosedError)


async def test_421_without_being_asked() -> None:
    go = asyncio.Event()
    async with ScriptedNextHop({"NOOP": ["250 Ok", Late(go), "421 4.4.2 idle too long"]}) as hop:
        client = await connect(hop)
        await client.exchange(b"NOOP")
        assert client.usable
        go.set()
        await client.wait_closed()
        assert not client.usable
        with pytest.raises(NextHopClosedError, match=r"421 4\.4\.2 idle too long"):
            await client.exchange(b"NOOP")


@pytest.mark.parametrize("flood", [b"250 b\r\n", b"250 b\r\n" * 50_000, b"\0" * 500_000])
async def test_more_replies_than_commands(flood: bytes) -> None:
    async with ScriptedNextHop({"NOOP": b"250 a\r\n" + flood}) as hop:
        client = await connect(hop)
        assert await client.exchange(b"NOOP") == (Reply.of(250, "a"),)
        await client.wait_closed()
        await unusable(client, NextHopProtocolError)


async def test_quit_does_not_wait_for_ever() -> None:
    async with ScriptedNextHop({"QUIT": Silence()}) as hop:
        client = await connect(hop, quit_timeout=SHORT)
        client.quit()
        assert not client.usable
        await client.wait_closed()


async def test_dribbled_bytes_do_not_extend_a_deadline() -> None:
    events = [asyncio.Event() for _ in range(100)]
    dribble = [item for event in events for item in (b"250-x\r\n", Late(event))]
    async with ScriptedNextHop({"NOOP": dribble}) as hop, asyncio.TaskGroup() as group:
        client = await connect(hop)

        async def release() -> None:
            for event in events:
                event.set()
                await asyncio.sleep(SHORT / 10)

        releasing = group.create_task(release())
        with pytest.raises(NextHopTimeoutError):
            await client.exchange(b"NOOP", within=SHORT)
        assert not all(event.is_set() for event in events)
        releasing.cancel()


STEPS = ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."]


def reached(hop: ScriptedNextHop, step: str) -> bool:
    """Whether the step whose answer never comes has begun."""
    if step == "CONNECT":
        return bool(hop.connections)
    return any(session.verbs.split()[-1:] == [step] for session in hop.connections)


@pytest.mark.parametrize("step", STEPS)
async def test_cancellation_closes_the_connection(step: str) -> None:
    async def everything() -> None:
        client = await connect(hop)
        await client.exchange(b"MAIL FROM:<a@b>")
        await client.exchange(b"RCPT TO:<c@d>")
        await client.data([b"x\r\n"])

    async with ScriptedNextHop({step: Silence()}) as hop, asyncio.TaskGroup() as group:
        task = group.create_task(everything())
        await hop.wait_for(lambda: reached(hop, step))
        task.cancel()
        assert (await hop.wait_closed()).closed_by_peer
    gc.collect()  # a future whose exception nobody took would be reported now


async def test_cancellation_amid_the_content() -> None:
    never = asyncio.Event()
    async with ScriptedNextHop({"DATA": [StopReading(never), "354 go"]}) as hop:
        client = await connect(hop)
        await transaction(client)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SHORT):
                await client.data(endless())
        assert not client.in_doubt
        await unusable(client, NextHopClosedError)
        never.set()
