"""One session on a real socket: groups of commands, lines, data, deadlines, clients that go away."""

import asyncio
import random
import socket

import pytest

from milterchain.mail.canonical import canonical
from milterchain.mail.headers import HeaderLimits
from milterchain.mail.replies import Reply
from milterchain.smtp import channel as channel_module
from milterchain.smtp.dialogue import MAX_COMMAND

NOT_SYNCHRONIZED = b"554 5.5.0 Error: SMTP protocol synchronization\r\n"
MESSAGE = b"Subject: x\r\n\r\nbody\r\n"


async def test_whole_session(smtp_site):
    async with smtp_site() as site:
        client = await site.connect()
        assert await client.hello() == (
            b"250-mx.example\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n"
            b"250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-CHUNKING\r\n250 LIMITS RCPTMAX=1000\r\n"
        )
        for _ in range(3):
            await client.transaction()
            assert await client.say(MESSAGE + b".") == b"250 2.0.0 Taken\r\n"
        assert await client.say(b"QUIT") == b"221 2.0.0 Bye\r\n"
        assert await client.rest() == b""
        await site.all_closed()
        assert site.handler.messages == [MESSAGE] * 3
        transaction = ["mail", "rcpt", "data", "message"]
        assert site.handler.names() == ["connect", "helo", *transaction * 3, "close"]


async def test_bare_lf_ends_a_command(smtp_site):
    async with smtp_site(synchronized=False) as site:
        client = await site.greeted()
        client.send(b"NOOP\nNOOP\r\n")
        assert await client.reply() == b"250 2.0.0 Ok\r\n"
        assert await client.reply() == b"250 2.0.0 Ok\r\n"


async def test_group_is_answered_in_one_write(smtp_site):
    async with smtp_site() as site:
        await site.greeted()
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        with sock:
            await loop.sock_connect(sock, (site.bound.host, site.bound.port))
            await loop.sock_recv(sock, 1000)
            await loop.sock_sendall(sock, b"EHLO c\r\n")
            await loop.sock_recv(sock, 1000)
            rcpts = b"".join(b"RCPT TO:<r%d@x>\r\n" % number for number in range(10))
            await loop.sock_sendall(sock, b"MAIL FROM:<a@b>\r\n" + rcpts + b"DATA\r\n")
            expected = (
                b"250 2.1.0 Ok\r\n" + b"250 2.1.5 Ok\r\n" * 10 + b"354 End data with <CR><LF>.<CR><LF>\r\n"
            )
            assert await loop.sock_recv(sock, 10_000) == expected
            # The reply to a message waits for nothing.
            await loop.sock_sendall(sock, MESSAGE + b".\r\nMAIL FROM:<a@b>\r\nQUIT\r\n")
            received = b""
            while more := await loop.sock_recv(sock, 10_000):
                received += more
            assert received == b"250 2.0.0 Taken\r\n250 2.1.0 Ok\r\n221 2.0.0 Bye\r\n"


async def test_replies_do_not_pile_up(smtp_site, monkeypatch):
    monkeypatch.setattr(channel_module, "MAX_PENDING", 50)
    async with smtp_site() as site:
        client = await site.greeted()
        client.send(b"NOOP\r\n" * 20 + b"QUIT\r\n")
        assert await client.rest() == b"250 2.0.0 Ok\r\n" * 20 + b"221 2.0.0 Bye\r\n"


async def test_group_with_refusals_keeps_order(smtp_site):
    async def only_even(handler):
        return None if int(handler.calls[-1][1].bare[:1]) % 2 == 0 else Reply.of(550, "5.1.1 odd")

    async with smtp_site({"rcpt": only_even}) as site:
        client = await site.greeted()
        client.send(b"MAIL FROM:<>\r\n" + b"".join(b"RCPT TO:<%d@x>\r\n" % number for number in range(4)))
        replies = [await client.reply() for _ in range(5)]
        assert [reply[:3] for reply in replies] == [b"250", b"250", b"550", b"250", b"550"]


@pytest.mark.parametrize(
    "early", [b"EHLO c\r\nMAIL FROM:<a@b>\r\n", b"HELO c\r\nMAIL FROM:<a@b>\r\n", b"NOOP\r\nX"]
)
async def test_improper_group(smtp_site, early):
    async with smtp_site() as site:
        client = await site.connect()
        await client.reply()
        client.send(early)
        assert await client.rest() == NOT_SYNCHRONIZED
        await site.all_closed()
        assert "mail" not in site.handler.names()


async def test_talk_before_the_greeting(smtp_site):
    talked = asyncio.Event()

    async def wait(_):
        await talked.wait()

    async with smtp_site({"connect": wait}) as site:
        client = await site.connect()
        client.send(b"EHLO c\r\n")
        await site.until(lambda: site.handlers and any(session._input for session in site.server._sessions))
        talked.set()
        assert await client.rest() == NOT_SYNCHRONIZED


@pytest.mark.parametrize("late", [False, True])
async def test_data_before_the_354(smtp_site, late):
    talked = asyncio.Event()

    async def wait(_):
        if late:
            await talked.wait()

    async with smtp_site({"data": wait}) as site:
        client = await site.greeted()
        await client.say(b"MAIL FROM:<a@b>")
        await client.say(b"RCPT TO:<c@d>")
        if late:
            client.send(b"DATA\r\n")
            await site.until(lambda: site.handler.count("data"))
            client.send(MESSAGE)
            await site.until(lambda: any(session._input for session in site.server._sessions))
            talked.set()
        else:
            client.send(b"DATA\r\n" + MESSAGE)
        assert await client.rest() == NOT_SYNCHRONIZED
        await site.all_closed()
        assert not site.handler.messages


async def test_impatient_clients_can_be_served(smtp_site):
    async with smtp_site(synchronized=False) as site:
        client = await site.connect()
        client.send(b"HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n" + MESSAGE + b".\r\nQUIT\r\n")
        replies = (await client.rest()).splitlines()
        assert [reply[:3] for reply in replies] == [b"220", b"250", b"250", b"250", b"354", b"250", b"221"]
        assert site.handler.messages == [MESSAGE]


async def test_long_lines(smtp_site):
    async with smtp_site() as site:
        client = await site.greeted()
        assert await client.say(b"NOOP " + b"x" * (MAX_COMMAND - 5)) == b"250 2.0.0 Ok\r\n"
        for size in (MAX_COMMAND - 4, 3000, 30_000):
            assert await client.say(b"NOOP " + b"x" * size) == b"500 5.5.2 Error: line too long\r\n"
        # A CR where the line is cut off must not make it pass.
        assert (
            await client.say(b"NOOP " + b"x" * (MAX_COMMAND - 5) + b"\rMORE")
            == b"500 5.5.2 Error: line too long\r\n"
        )
        # It may come in pieces.
        for _ in range(3):
            client.send(b"y" * 3000)
            await client.writer.drain()
            await asyncio.sleep(0)
        assert await client.say(b"") == b"500 5.5.2 Error: line too long\r\n"
        assert await client.say(b"NOOP") == b"250 2.0.0 Ok\r\n"


async def test_endless_line(smtp_site):
    async with smtp_site() as site:
        client = await site.greeted()
        client.send(b"x" * (2**16 + MAX_COMMAND + 1))
        assert await client.reply() == b"500 5.5.2 Error: line too long\r\n"
        assert await client.rest() == b""


async def test_half_a_command_is_not_executed(smtp_site):
    async with smtp_site() as site:
        client = await site.greeted()
        client.send(b"MAIL FROM:<a@b>")
        client.writer.write_eof()
        assert await client.rest() == b""
        await site.all_closed()
        assert "mail" not in site.handler.names()


async def test_random_pieces(smtp_site):
    rng = random.Random(2)
    async with smtp_site() as site:
        client = await site.greeted()
        expected = []
        for _ in range(60):
            text = bytes(rng.choices(b"\r\n.a\x00", k=rng.randrange(200)))
            text = text.replace(b"\r\n.\r\n", b"").removesuffix(b"\r")
            text = b"A: b\r\n\r\n" + text.replace(b"\r\n.", b"\r\n..")
            stream = text + b"\r\n.\r\n"
            end = stream.index(b"\r\n.\r\n") + 2
            stream = stream[: end + 3]
            expected.append(canonical(stream[:end].replace(b"\r\n.", b"\r\n")))
            await client.transaction()
            at = 0
            while at < len(stream):
                size = rng.randrange(1, 40)
                client.send(stream[at : at + size])
                await client.writer.drain()
                at += size
                if rng.random() < 0.3:
                    await asyncio.sleep(0)
            assert await client.reply() == b"250 2.0.0 Taken\r\n"
        assert site.handler.messages == expected


async def test_smuggled_commands_stay_data(smtp_site):
    async with smtp_site() as site:
        client = await site.greeted()
        for end in (
            b"\n.\n",
            b"\n.\r\n",
            b"\r\n.\n",
            b"\r.\r",
            b"\r\n.\r",
            b"\r\n\x00.\r\n",
            b"\r\n.\x00\r\n",
        ):
            await client.transaction()
            client.send(b"A: b\r\n\r\nhi" + end + b"MAIL FROM:<evil@x>\r\nRCPT TO:<v@x>\r\nDATA\r\n")
            assert await client.say(b"\r\n.") == b"250 2.0.0 Taken\r\n"
            message = site.handler.messages[-1]
            assert b"MAIL FROM:<evil@x>\r\n" in message
            assert message == canonical(message)
        assert site.handler.count("mail") == 7


async def test_large_message(smtp_site):
    body = b"".join(b"%078d\r\n" % number for number in range(40_000))
    async with smtp_site() as site:
        client = await site.in_data()
        client.send(b"A: b\r\n\r\n" + body)
        assert await client.say(b".") == b"250 2.0.0 Taken\r\n"
        assert site.handler.messages == [b"A: b\r\n\r\n" + body]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"A: b\r\n\r\n" + b"x" * 3000, b"552 5.3.4 "),
        (b"A: " + b"x" * 600 + b"\r\n\r\n", b"552 5.3.4 "),
        (b"Received: x\r\n" * 5 + b"\r\nx", b"554 5.4.6 "),
    ],
)
async def test_message_beyond_a_limit(smtp_site, message, expected):
    limits = {"message_size": 2000, "headers": HeaderLimits(total=500), "received_hops": 5}
    async with smtp_site(**limits) as site:
        client = await site.in_data()
        assert (await client.say(message + b"\r\n.")).startswith(expected)
        assert site.handler.names()[-1] == "reset"
        assert not site.handler.messages
        await client.transaction()
        assert (await client.say(MESSAGE + b".")).startswith(b"250 ")


async def test_endless_data(smtp_site):
    async with smtp_site(message_size=1000) as site:
        client = await site.in_data()
        client.send(b"x" * 5000)
        assert await client.rest() == b"421 4.7.0 Error: too much data\r\n"
        await site.all_closed()


async def test_too_many_errors(smtp_site):
    async with smtp_site(errors=3) as site:
        client = await site.greeted()
        client.send(b"FOO\r\n" * 5)
        unknown = b"500 5.5.2 Error: command not recognized\r\n"
        assert await client.rest() == unknown * 3 + b"421 4.7.0 Error: too many errors\r\n"
        assert site.handler.count("unknown") == 3


async def test_refused_messages_are_errors(smtp_site):
    async with smtp_site({"message": Reply.of(550, "5.7.1 no")}, errors=1) as site:
        client = await site.in_data()
        client.send(MESSAGE + b".\r\n")
        assert await client.rest() == b"550 5.7.1 no\r\n421 4.7.0 Error: too many errors\r\n"


async def test_errors_are_delayed(smtp_site, monkeypatch):
    delays = []

    async def sleep(delay):
        delays.append(delay)

    async with smtp_site(soft_errors=2, error_delay=7) as site:
        client = await site.greeted()
        monkeypatch.setattr("milterchain.smtp.session.asyncio.sleep", sleep)
        for _ in range(4):
            await client.say(b"FOO")
        await client.say(b"NOOP")
        monkeypatch.undo()
        assert delays == [7, 7]


async def test_closing_replies_close(smtp_site):
    closing = Reply.of(421, "4.7.0 go away")
    for stage in ("connect", "helo", "mail", "message"):
        async with smtp_site({stage: closing}) as site:
            client = await site.connect()
            if stage != "connect":
                await client.reply()
                client.send(b"EHLO c\r\n")
            if stage in {"mail", "message"}:
                await client.reply()
                client.send(b"MAIL FROM:<a@b>\r\n")
            if stage == "message":
                await client.reply()
                await client.say(b"RCPT TO:<c@d>")
                await client.say(b"DATA")
                client.send(MESSAGE + b".\r\n")
            assert await client.rest() == b"421 4.7.0 go away\r\n"


async def test_rejected_at_connect(smtp_site):
    async with smtp_site(
        {"connect": Reply.of(554, "mx.example no"), "mail": Reply.of(550, "5.7.1 no")}
    ) as site:
        client = await site.connect()
        assert await client.reply() == b"554 mx.example no\r\n"
        assert await client.say(b"EHLO c") == b"250-mx.example\r\n250 ENHANCEDSTATUSCODES\r\n"
        assert await client.say(b"MAIL FROM:<a@b>") == b"550 5.7.1 no\r\n"
        assert (await client.say(b"RCPT TO:<a@b>")).startswith(b"503 5.5.1 ")
        assert (await client.say(b"QUIT")).startswith(b"221 ")


async def test_no_handler(smtp_site, caplog):
    async with smtp_site({"factory": RuntimeError("secret")}) as site:
        client = await site.connect()
        assert await client.rest() == b"421 4.3.0 Error: internal error, closing connection\r\n"
        assert "secret" in caplog.text


async def test_failure_of_our_own(smtp_site, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("secret")

    async with smtp_site() as site:
        client = await site.greeted()
        await client.say(b"MAIL FROM:<a@b>")
        await client.say(b"RCPT TO:<c@d>")
        monkeypatch.setattr("milterchain.smtp.session.DataReceiver.feed", fail)
        await client.say(b"DATA")
        assert await client.rest() == b"421 4.3.0 Error: internal error, closing connection\r\n"
        await site.all_closed()
        assert "secret" in caplog.text


async def test_handler_that_fails_to_close(smtp_site, caplog):
    async with smtp_site({"close": RuntimeError("secret")}) as site:
        client = await site.greeted()
        await client.say(b"QUIT")
        await site.all_closed()
        assert "secret" in caplog.text


@pytest.mark.parametrize("stage", ["command", "half a command", "data"])
async def test_timeout(smtp_site, stage):
    async with smtp_site(command_timeout=0.4) as site:
        client = await site.greeted()
        if stage == "data":
            await client.transaction()
            client.send(b"half a message")
        elif stage == "half a command":
            client.send(b"NOO")
        assert await client.rest() == b"421 4.4.2 Error: timeout exceeded\r\n"
        await site.all_closed()
        assert not site.handler.messages


async def test_timeout_of_a_whole_transfer(smtp_site):
    async with smtp_site(command_timeout=5, transfer_timeout=0.1) as site:
        client = await site.in_data()
        answer = asyncio.get_running_loop().create_future()

        async def trickle():
            while not client.reader.at_eof():
                client.send(b"x\r\n")
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            group.create_task(trickle())
            answer = await client.rest()
        assert answer == b"421 4.4.2 Error: timeout exceeded\r\n"


async def test_client_that_is_cut_off_can_read_why(smtp_site):
    async with smtp_site(message_size=1000) as site:
        client = await site.in_data()
        for _ in range(50):
            client.send(b"x" * 1000)
            await asyncio.sleep(0)
        assert await client.rest() == b"421 4.7.0 Error: too much data\r\n"
        await site.all_closed()
        # The server waits for the client to close, and that ends it.
        (session,) = site.server._lingering
        client.writer.close()
        await site.until(lambda: not site.server._lingering)
        assert session._timeout_handle is None


async def test_client_that_does_not_close(smtp_site, monkeypatch):
    monkeypatch.setattr(channel_module, "LINGER", 0.02)
    async with smtp_site(errors=1) as site:
        client = await site.greeted()
        await client.say(b"FOO")
        assert await client.rest() == b"421 4.7.0 Error: too many errors\r\n"
        await site.until(lambda: not site.server._lingering)


async def test_deadline_moves_on_with_each_command(smtp_site):
    async with smtp_site(command_timeout=0.3, junk_commands=10**6) as site:
        client = await site.greeted()
        (session,) = site.server._sessions
        # The timer that the first command set rings for nothing, and is set anew.
        first = session._timeout_handle
        while session._timeout_handle is first:
            assert await client.say(b"NOOP") == b"250 2.0.0 Ok\r\n"
        assert await client.say(b"NOOP") == b"250 2.0.0 Ok\r\n"


async def test_no_deadline_while_the_handler_works(smtp_site):
    async def slow(_):
        """Work until the timer of the last command has rung, or as long as it would take."""
        (session,) = site.server._sessions
        await site.until(lambda: session._timeout_handle is None)

    async with smtp_site({"connect": slow, "message": slow}, command_timeout=0.3) as site:
        client = await site.in_data()
        assert await client.say(MESSAGE + b".") == b"250 2.0.0 Taken\r\n"


async def test_client_that_reads_nothing(smtp_site, monkeypatch):
    """Replies that nobody takes stop the reading of commands."""
    monkeypatch.setattr(channel_module, "LINGER", 0.05)
    long_reply = Reply(250, (b"x" * 4000,) * 500)
    async with smtp_site({"unknown": long_reply}, command_timeout=0.4) as site:
        client = await site.greeted()
        client.writer.transport.pause_reading()
        client.send(b"FOO\r\n" * 1000)
        await site.all_closed()
        assert site.handler.count("unknown") < 20
        await site.until(lambda: not site.server._lingering)


async def test_half_closed_client_gets_its_answer(smtp_site, gate):
    async with smtp_site({"message": gate}) as site:
        client = await site.in_data()
        client.send(MESSAGE + b".\r\nQUIT\r\n")
        client.writer.write_eof()
        await site.until(lambda: site.handler.count("message"))
        await site.until(lambda: any(session._ended for session in site.server._sessions))
        gate.open()
        assert await client.rest() == b"250 2.0.0 Taken\r\n221 2.0.0 Bye\r\n"


async def test_half_closed_in_the_data(smtp_site):
    async with smtp_site() as site:
        client = await site.in_data()
        client.send(MESSAGE)
        client.writer.write_eof()
        assert await client.rest() == b""
        await site.all_closed()
        assert not site.handler.messages


async def test_message_is_finished_though_the_client_is_lost(smtp_site, caplog):
    caplog.set_level("INFO", "milterchain")
    relayed = asyncio.Event()
    finished = []

    async def slow(_):
        await relayed.wait()
        finished.append(True)

    async with smtp_site({"message": slow}) as site:
        client = await site.in_data()
        client.send(MESSAGE + b".\r\nNOOP\r\n")
        await site.until(lambda: site.handler.count("message"))
        client.reset()
        await site.until(lambda: all(session.transport is None for session in site.server._sessions))
        assert site.server.connections == 1
        relayed.set()
        await site.all_closed()
        assert finished
        assert site.handler.names()[-2:] == ["message", "close"]
        assert "the client was gone before it could hear 250 2.0.0 Taken" in caplog.text


@pytest.mark.parametrize("stage", ["connect", "helo", "mail", "rcpt", "data"])
async def test_other_work_is_cancelled_if_the_client_is_lost(smtp_site, stage):
    cancelled = []

    async def wait(_):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(stage)
            raise

    async with smtp_site({stage: wait}) as site:
        client = await site.connect()
        if stage != "connect":
            await client.reply()
            client.send(b"EHLO c\r\n")
            if stage != "helo":
                await client.reply()
                client.send(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
        await site.until(lambda: site.handlers and site.handler.count(stage))
        client.reset()
        await site.all_closed()
        assert cancelled == [stage]
        assert site.handler.names()[-1] == "close"


@pytest.mark.parametrize("data", [b"", b"half a message"])
async def test_client_lost_while_waiting(smtp_site, data):
    async with smtp_site() as site:
        client = await site.in_data()
        client.send(data)
        await client.writer.drain()
        client.reset()
        await site.all_closed()
        assert site.handler.names()[-1] == "close"


async def test_session_info_of_the_handler(smtp_site):
    async with smtp_site() as site:
        client = await site.greeted()
        host, port = client.writer.get_extra_info("sockname")
        info = site.handler.info
        assert (info.family, info.address, info.port) == ("4", host, port)
        assert (info.listener, info.local_address, info.local_port) == (
            "smtp",
            site.bound.host,
            site.bound.port,
        )
