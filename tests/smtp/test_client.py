"""The SMTP client against a scripted server: what it says, in which writes, and what it understands."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from milterchain.errors import NextHopClosedError, NextHopConnectError, SMTPSyntaxError
from milterchain.mail.replies import Reply
from milterchain.smtp.client import WRITE_BUFFER, SMTPClient
from milterchain.smtp.client_commands import MAX_COMMAND
from milterchain.smtp.client_options import ClientOptions
from milterchain.smtp.client_replies import parse_features
from milterchain.testing.faults import InTurn, Late, StopReading
from milterchain.testing.peer import PATIENCE, refusing_address
from milterchain.testing.scripted_next_hop import KEYWORDS, ScriptedNextHop

SERIAL = tuple(keyword for keyword in KEYWORDS if keyword != "PIPELINING")
OK = Reply.of(250, "2.0.0 Ok")


async def connect(hop: ScriptedNextHop, **times: float) -> SMTPClient:
    return await SMTPClient.open(("127.0.0.1", hop.port), ClientOptions(hello=b"relay.test", **times))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for announces nothing
            await asyncio.sleep(0.002)


def codes(replies: tuple[Reply, ...]) -> list[int]:
    return [reply.code for reply in replies]


@pytest.mark.parametrize(
    ("reply", "features"),
    [
        (Reply.of(250, "mx"), {}),
        (Reply.of(250, "SIZE 1", "SIZE 2", "dsn"), {b"SIZE": b"2", b"DSN": b""}),
        (Reply.of(250, "mx", "AUTH=LOGIN PLAIN", "AUTH PLAIN"), {b"AUTH": b"LOGIN PLAIN"}),
        (Reply.of(250, "mx", "XCLIENT NAME ADDR ", "X-a-1"), {b"XCLIENT": b"NAME ADDR", b"X-A-1": b""}),
        (Reply.of(250, "mx", "", " SIZE", "-x", "é", "8BITMIME"), {b"8BITMIME": b""}),
        (Reply.of(550, "mx", "SIZE 1"), {}),
        (Reply.of(354, "mx", "SIZE 1"), {}),
    ],
)
def test_features(reply: Reply, features: dict[bytes, bytes]) -> None:
    assert parse_features(reply) == features


async def test_open_greets_and_notes_what_is_offered() -> None:
    async with ScriptedNextHop() as hop:
        client = await connect(hop)
        assert client.greeting == Reply.of(220, "next-hop.test ESMTP")
        assert client.features[b"SIZE"] == b"52428800"
        assert client.pipelining
        assert client.usable
        client.quit()
        await client.wait_closed()
        session = await hop.wait_closed()
        assert session.commands == [b"EHLO relay.test", b"QUIT"]
        assert session.violations == []
        assert not client.usable


async def test_helo_where_ehlo_is_unknown() -> None:
    async with ScriptedNextHop({"EHLO": "502 5.5.1 what?"}) as hop:
        client = await connect(hop)
        assert hop.connections[0].commands == [b"EHLO relay.test", b"HELO relay.test"]
        assert client.features == {}
        assert not client.pipelining
        client.close()


async def test_commands_leave_in_one_write_with_pipelining() -> None:
    async with ScriptedNextHop({"RCPT": lambda to: "550 5.1.1 no" if b"bad" in to else None}) as hop:
        client = await connect(hop)
        replies = await client.exchange(b"MAIL FROM:<a@b>", b"RCPT TO:<bad@x>", b"RCPT TO:<good@x>")
        assert codes(replies) == [250, 550, 250]
        assert hop.connections[0].reads[-1] == b"MAIL FROM:<a@b>\r\nRCPT TO:<bad@x>\r\nRCPT TO:<good@x>\r\n"
        client.close()


async def test_commands_leave_one_by_one_without_pipelining() -> None:
    async with ScriptedNextHop(
        {"RCPT": lambda to: "550 5.1.1 no" if b"bad" in to else None}, keywords=SERIAL
    ) as hop:
        client = await connect(hop)
        replies = await client.exchange(b"MAIL FROM:<a@b>", b"RCPT TO:<bad@x>", b"RCPT TO:<good@x>")
        assert codes(replies) == [250, 550, 250]
        assert hop.connections[0].reads[-2:] == [b"RCPT TO:<bad@x>\r\n", b"RCPT TO:<good@x>\r\n"]
        assert hop.connections[0].violations == []
        client.close()


@pytest.mark.parametrize("keywords", [KEYWORDS, SERIAL], ids=["pipelining", "serial"])
async def test_replies_go_to_those_who_asked_in_order(keywords: tuple[str, ...]) -> None:
    script = {"RCPT": lambda argument: f"250 {argument.decode()}"}
    async with ScriptedNextHop(script, keywords=keywords) as hop, asyncio.TaskGroup() as group:
        client = await connect(hop)
        tasks = [group.create_task(client.exchange(b"RCPT %d" % n, b"RCPT %d" % -n)) for n in range(1, 5)]
        await asyncio.wait(tasks)
        assert [[reply.lines[0] for reply in task.result()] for task in tasks] == [
            [b"%d" % n, b"%d" % -n] for n in range(1, 5)
        ]
        assert hop.connections[0].violations == []
        client.close()


@pytest.mark.parametrize(
    ("command", "code", "status"),
    [
        (b"RCPT TO:<a@b>\r\nRCPT TO:<evil@c>", 501, "5.1.3"),
        (b"RCPT TO:<a@b\n>", 501, "5.1.3"),
        (b"RCPT TO:<a\x00@b>", 501, "5.1.3"),
        (b"RCPT TO:<a\t@b>", 501, "5.1.3"),
        (b"RCPT TO:<a\x7f@b>", 501, "5.1.3"),
        (b"RCPT TO:<" + b"a" * MAX_COMMAND + b">", 501, "5.5.4"),
        ("RCPT TO:<é@b>".encode(), 553, "5.6.7"),
    ],
)
async def test_what_must_not_be_sent_is_not_sent(command: bytes, code: int, status: str) -> None:
    async with ScriptedNextHop(keywords=["PIPELINING"]) as hop:
        client = await connect(hop)
        with pytest.raises(SMTPSyntaxError) as caught:
            await client.exchange(b"RSET", command)
        assert (caught.value.code, caught.value.status) == (code, status)
        assert client.usable
        assert await client.exchange(b"NOOP") == (OK,)
        assert hop.connections[0].commands == [b"EHLO relay.test", b"NOOP"]
        client.close()


async def test_eight_bits_go_where_smtputf8_is_offered() -> None:
    async with ScriptedNextHop() as hop:
        client = await connect(hop)
        await client.exchange("MAIL FROM:<é@b> SMTPUTF8".encode())
        assert hop.connections[0].mail == "MAIL FROM:<é@b> SMTPUTF8".encode()
        client.close()


async def transaction(client: SMTPClient) -> None:
    assert codes(await client.exchange(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>")) == [250, 250]


@pytest.mark.parametrize("keywords", [KEYWORDS, SERIAL], ids=["pipelining", "serial"])
async def test_messages_one_after_the_other(keywords: tuple[str, ...]) -> None:
    contents = [b"Subject: x\r\n\r\n.\r\n..\r\ntext\r\n", b"", b"A: b\r\n\r\n" + b".x\r\n" * 300_000]
    async with ScriptedNextHop(keywords=keywords) as hop:
        client = await connect(hop)
        for content in contents:
            await transaction(client)
            pieces = [content[i : i + 65_536] for i in range(0, len(content), 65_536)]
            assert (await client.data(pieces)).code == 250
            assert not client.in_doubt
        assert [message.data for message in hop.accepted] == contents
        assert hop.connections[0].violations == []
        assert hop.connections[0].verbs == "EHLO" + " MAIL RCPT DATA ." * 3
        client.close()


async def test_a_small_message_is_one_write() -> None:
    async with ScriptedNextHop() as hop:
        client = await connect(hop)
        await transaction(client)
        await client.data([b"A: b\r\n\r\n", b"text\r\n"])
        assert hop.connections[0].reads[-1] == b"A: b\r\n\r\ntext\r\n.\r\n"
        client.close()


async def test_a_refused_data_leaves_the_connection_usable() -> None:
    async with ScriptedNextHop({"DATA": "451 4.3.0 not now"}) as hop:
        client = await connect(hop)
        await transaction(client)
        assert await client.data(never()) == Reply.of(451, "4.3.0 not now")
        assert client.usable
        client.close()


def never() -> Iterator[bytes]:
    pytest.fail("the content was read")
    yield b""


async def test_a_refused_content_leaves_the_connection_usable() -> None:
    async with ScriptedNextHop({".": "550-5.7.1 spam\n550 5.7.1 really"}) as hop:
        client = await connect(hop)
        await transaction(client)
        assert await client.data([b"x\r\n"]) == Reply.of(550, "5.7.1 spam", "5.7.1 really")
        assert client.usable
        await transaction(client)
        client.close()


async def test_a_354_without_recipients_is_left_by_an_empty_content() -> None:
    script = {"RCPT": "550 5.1.1 no", "DATA": "354 go", ".": "554 5.5.1 no valid recipients"}
    async with ScriptedNextHop(script) as hop:
        client = await connect(hop)
        replies = await client.exchange(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"DATA")
        assert codes(replies) == [250, 550, 354]
        assert (await client.stream(())).code == 554
        assert await client.exchange(b"RSET") == (OK,)
        assert hop.messages[0].raw == b""
        client.close()


async def test_content_is_taken_from_its_source_no_faster_than_the_server_reads() -> None:
    go = asyncio.Event()
    taken = 0
    total = 400

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(total):
            taken += 1
            yield b"x" * 65_534 + b"\r\n"

    async with ScriptedNextHop({"DATA": [StopReading(go), "354 go"]}) as hop, asyncio.TaskGroup() as group:
        client = await connect(hop)
        await transaction(client)
        sending = group.create_task(client.data(chunks()))
        await until(lambda: client._paused)
        assert taken < total / 2
        assert client._transport is not None
        assert client._transport.get_write_buffer_size() <= WRITE_BUFFER + 65_536
        go.set()
        assert (await sending).code == 250
        assert taken == total
        assert len(hop.messages[0].data) == total * 65_536
        client.close()


async def test_the_loop_stays_responsive_while_a_fast_server_takes_the_content() -> None:
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    async with ScriptedNextHop() as hop:
        client = await connect(hop)
        await transaction(client)
        loop.call_soon(turn)
        await client.data(b"x" * 65_534 + b"\r\n" for _ in range(50))
        assert turns >= 50
        client.close()


async def test_a_busy_connection_sets_one_timer() -> None:
    async with ScriptedNextHop() as hop:
        client = await connect(hop, greeting_timeout=5, data_initiation_timeout=5)
        timer = client._timer
        for _ in range(5):
            await transaction(client)
            await client.data([b"x\r\n"])
        assert client._timer is timer
        client.close()
        assert client._timer is None


@pytest.mark.parametrize("asked", [True, False], ids=["a later deadline", "no deadline"])
async def test_a_timer_that_rings_too_early_is_set_again_or_forgotten(*, asked: bool) -> None:
    go = asyncio.Event()
    async with ScriptedNextHop({"NOOP": [Late(go), OK]}) as hop, asyncio.TaskGroup() as group:
        client = await connect(hop, greeting_timeout=0.5, hello_timeout=0.5)
        first = client._timer
        assert first is not None
        waiting = group.create_task(client.exchange(b"NOOP", within=PATIENCE)) if asked else None
        await until(lambda: client._timer is not first)
        assert (client._timer is not None) == asked
        assert client.failure is None
        go.set()
        if waiting is not None:
            assert await waiting == (OK,)
        client.close()


async def test_unix_socket(tmp_path) -> None:
    path = str(tmp_path / "hop")
    async with ScriptedNextHop(unix_path=path) as hop:
        client = await SMTPClient.open(path)
        assert hop.connections[0].commands == [b"EHLO localhost"]
        client.close()
        await client.wait_closed()


async def test_ipv6() -> None:
    async with ScriptedNextHop(host="::1") as hop:
        client = await SMTPClient.open(("::1", hop.port))
        assert client.usable
        client.close()


async def test_no_connection() -> None:
    with refusing_address() as address, pytest.raises(NextHopConnectError, match="Connection refused"):
        await SMTPClient.open(address)
    with pytest.raises(NextHopConnectError, match="no connection to /nonexistent/socket"):
        await SMTPClient.open("/nonexistent/socket")
    # A label of more than 63 octets cannot even be asked for: no resolver takes part in this.
    with pytest.raises(NextHopConnectError, match=r"no connection to a+\.invalid:25: "):
        await SMTPClient.open(("a" * 80 + ".invalid", 25))
    async with ScriptedNextHop(host="::1") as hop:
        await hop.stop()
        with pytest.raises(NextHopConnectError, match=r"\[::1\]:\d+: .*refused"):
            await SMTPClient.open(("::1", hop.port))


async def test_closing() -> None:
    async with ScriptedNextHop() as hop:
        client = await connect(hop)
        client.close()
        client.close()
        client.quit()
        client.data_received(b"250 too late\r\n")
        with pytest.raises(NextHopClosedError, match="closed by this side"):
            await client.exchange(b"NOOP")
        with pytest.raises(NextHopClosedError):
            await client.stream([b"x"])
        await client.wait_closed()
        await client.wait_closed()


async def test_one_chunk() -> None:
    content = [b"A: b\r\n\r\n", b"\0.\r\n.\r\n", b"x" * 300_000]
    async with ScriptedNextHop(
        {".": InTurn("451 4.3.0 later", "250 2.0.0 Ok")}, keywords=(*KEYWORDS, "CHUNKING")
    ) as hop:
        client = await connect(hop)
        for code in (451, 250):
            await transaction(client)
            reply = await client.chunk(iter(content), sum(map(len, content)))
            assert (reply.code, client.in_doubt, client.usable) == (code, False, True)
        client.close()
        assert [message.data for message in hop.messages] == [b"".join(content)] * 2
        assert not hop.connections[0].violations


async def test_a_chunk_of_another_size_is_not_finished() -> None:
    async with ScriptedNextHop(keywords=(*KEYWORDS, "CHUNKING")) as hop:
        client = await connect(hop)
        await transaction(client)
        with pytest.raises(ValueError, match="too few"):
            await client.chunk([b"x"], 2)
        assert client.failure is not None
        assert not client.in_doubt
        assert not hop.messages
