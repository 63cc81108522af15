"""Listeners, admission, and the end."""

import asyncio
import socket
from ipaddress import ip_network

import pytest

from milterchain.mail.replies import Reply
from milterchain.smtp import server as server_module
from milterchain.smtp.handler import SessionInfo
from milterchain.smtp.options import Listener, ServerOptions
from milterchain.smtp.server import SMTPServer

SHUTTING_DOWN = b"421 4.3.2 Service shutting down, closing connection\r\n"
TOO_MANY = b"421 4.7.0 Error: too many connections\r\n"
MESSAGE = b"Subject: x\r\n\r\nbody\r\n.\r\n"


@pytest.fixture
def server(recording_handler):
    return SMTPServer(recording_handler, ServerOptions(hostname=b"mx.example"))


async def greeting_at(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


async def test_several_listeners(server, tmp_path):
    async with server:
        bound = await server.start(
            [
                Listener(name="a", host="127.0.0.1"),
                Listener(name="b", host="localhost"),
                Listener(name="c", path=str(tmp_path / "smtp")),
            ]
        )
        assert bound[0].name == "a"
        assert {listener.name for listener in bound[1:-1]} == {"b"}
        assert str(bound[-1]) == f"unix:{tmp_path}/smtp"
        for listener in bound[:-1]:
            assert listener.port
            assert await greeting_at(listener.host, listener.port) == b"220 mx.example ESMTP\r\n"


async def test_ipv6(server):
    async with server:
        try:
            (bound,) = await server.start([Listener(host="::1")])
        except OSError:
            pytest.skip("no IPv6 here")
        assert str(bound) == f"[::1]:{bound.port}"
        # The same port is free for IPv4.
        await server.start([Listener(host="127.0.0.1", port=bound.port)])
        assert await greeting_at("::1", bound.port) == b"220 mx.example ESMTP\r\n"
        assert await greeting_at("127.0.0.1", bound.port) == b"220 mx.example ESMTP\r\n"


async def test_unix_socket(smtp_site, tmp_path):
    path = tmp_path / "smtp"
    async with smtp_site(listener=Listener(path=str(path), mode=0o600), connections_per_client=1) as site:
        assert path.stat().st_mode & 0o777 == 0o600
        await site.greeted()
        assert site.handler.info == SessionInfo(
            listener="smtp", family="L", address=str(path), local_address=str(path)
        )
        # All clients of a Unix socket look the same: they are not counted one by one.
        await (await site.connect()).hello()
    assert not path.exists()


async def test_stale_unix_socket_is_replaced(server, tmp_path):
    path = str(tmp_path / "smtp")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    async with server:
        await server.start([Listener(path=path)])
        reader, writer = await asyncio.open_unix_connection(path)
        assert (await reader.readline()).startswith(b"220 ")
        writer.close()
        await writer.wait_closed()


async def test_living_unix_socket_is_not_replaced(server, tmp_path):
    path = tmp_path / "smtp"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        async with server:
            with pytest.raises(OSError, match=f"unix:{path}: "):
                await server.start([Listener(path=str(path))])
        assert path.exists()


async def test_file_in_the_way_is_not_removed(server, tmp_path):
    path = tmp_path / "smtp"
    path.write_text("precious")
    async with server:
        with pytest.raises(OSError, match="unix:"):
            await server.start([Listener(path=str(path))])
    assert path.read_text() == "precious"


async def test_foreign_unix_socket_is_left(server, tmp_path):
    path = tmp_path / "smtp"
    async with server:
        await server.start([Listener(path=str(path))])
        path.rename(tmp_path / "old")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            await server.close()
            assert path.exists()


async def test_failing_listener_closes_the_others(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with server:
            free = await server.start([Listener(host="127.0.0.1")])
            with pytest.raises(OSError, match=f"127.0.0.1:{port}: Address already in use"):
                await server.start([Listener(host="127.0.0.1", port=port)])
            with pytest.raises(ConnectionRefusedError):
                await greeting_at("127.0.0.1", free[0].port)


async def test_no_host_name(server):
    async with server:
        with pytest.raises(OSError, match=r"a\.\.b:25: "):
            await server.start([Listener(host="a..b", port=25)])


def test_listener_needs_an_address():
    for where in ({}, {"host": "::1", "path": "/run/x"}):
        with pytest.raises(ValueError, match="either"):
            Listener(**where)


async def test_shared_port(recording_handler):
    options = ServerOptions(hostname=b"mx.example")
    async with SMTPServer(recording_handler, options) as one, SMTPServer(recording_handler, options) as two:
        (bound,) = await one.start([Listener(host="127.0.0.1")], reuse_port=True)
        assert await two.start([bound], reuse_port=True) == (bound,)


async def test_replies_are_not_delayed(smtp_site):
    """Nagle's algorithm is off on accepted connections."""
    async with smtp_site() as site:
        await (await site.connect()).hello()
        (session,) = site.server._sessions
        sock = session.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_connections(smtp_site):
    async with smtp_site(connections=2) as site:
        first = await site.connect()
        await first.hello()
        await (await site.connect()).hello()
        assert await (await site.connect()).rest() == TOO_MANY
        assert len(site.handlers) == 2
        await first.say(b"QUIT")
        await site.until(lambda: site.server.connections == 1)
        await (await site.connect()).hello()


async def test_a_flood_of_connections_is_no_flood_of_lines(smtp_site, caplog, monkeypatch):
    async with smtp_site(connections=1) as site:
        await (await site.connect()).hello()
        for _ in range(5):
            assert await (await site.connect()).rest() == TOO_MANY
        assert caplog.messages == ["too many connections: 1 allowed; 1 refused, 127.0.0.1 last"]
        monkeypatch.setattr(site.server, "_tell_from", 0.0)
        assert await (await site.connect()).rest() == TOO_MANY
        assert caplog.messages[1:] == ["too many connections: 1 allowed; 5 refused, 127.0.0.1 last"]


async def test_lingering_connections_count(smtp_site):
    async with smtp_site(connections=1, errors=1) as site:
        client = await site.greeted()
        await client.say(b"FOO")
        await client.rest()
        await site.all_closed()
        assert await (await site.connect()).rest() == TOO_MANY
        client.writer.close()
        await site.until(lambda: not site.server._lingering)
        await (await site.connect()).hello()


async def test_lingering_connections_are_closed_in_the_end(smtp_site):
    async with smtp_site(errors=1) as site:
        client = await site.greeted()
        await client.say(b"FOO")
        await client.rest()
        await site.until(lambda: site.server._lingering)
        await site.server.drain(timeout=10)
        assert not site.server._lingering


async def test_connections_per_client(smtp_site):
    async with smtp_site(connections_per_client=2) as site:
        first = await site.connect()
        await first.hello()
        await (await site.connect()).hello()
        assert await (await site.connect()).rest() == TOO_MANY
        # Another client is not affected.
        await (await site.connect(local_addr=("127.0.0.2", 0))).hello()
        await first.say(b"QUIT")
        await site.until(lambda: site.server.connections == 2)
        await (await site.connect()).hello()
        assert await (await site.connect()).rest() == TOO_MANY


async def test_unlimited_clients(smtp_site):
    options = {
        "connections_per_client": 1,
        "unlimited_clients": (ip_network("::1"), ip_network("127.0.0.0/30")),
    }
    async with smtp_site(**options) as site:
        for _ in range(3):
            await (await site.connect()).hello()
        where = {"local_addr": ("127.0.0.5", 0)}
        await (await site.connect(**where)).hello()
        assert await (await site.connect(**where)).rest() == TOO_MANY


async def test_drain_closes_idle_sessions(smtp_site):
    async with smtp_site() as site:
        idle = await site.connect()
        await idle.hello()
        half = await site.connect()
        await half.hello()
        half.send(b"MAIL FR")
        await site.until(lambda: any(session._input for session in site.server._sessions))
        await site.server.drain(timeout=10)
        assert await idle.rest() == SHUTTING_DOWN
        assert await half.rest() == SHUTTING_DOWN
        with pytest.raises(ConnectionRefusedError):
            await site.connect()


async def test_drain_lets_transactions_finish(smtp_site):
    async with smtp_site() as site:
        client = await site.greeted()
        await client.say(b"MAIL FROM:<a@b>")
        async with asyncio.TaskGroup() as group:
            drained = group.create_task(site.server.drain(timeout=10))
            await site.until(lambda: site.server.draining)
            assert await client.say(b"RCPT TO:<c@d>") == b"250 2.1.5 Ok\r\n"
            assert (await client.say(b"DATA")).startswith(b"354 ")
            assert not drained.done()
            client.send(MESSAGE + b"NOOP\r\n")
            assert await client.rest() == b"250 2.0.0 Taken\r\n" + SHUTTING_DOWN
        assert not site.server.connections


async def test_drain_lets_a_message_finish(smtp_site, gate):
    async with smtp_site({"message": gate}) as site:
        client = await site.in_data()
        client.send(MESSAGE)
        await site.until(lambda: site.handler.count("message"))
        async with asyncio.TaskGroup() as group:
            group.create_task(site.server.drain(timeout=10))
            await site.until(lambda: site.server.draining)
            gate.open()
            assert await client.rest() == b"250 2.0.0 Taken\r\n" + SHUTTING_DOWN


async def test_drain_answers_a_greeting_under_way(smtp_site, gate):
    async with smtp_site({"connect": gate}) as site:
        client = await site.connect()
        await site.until(lambda: site.handlers)
        async with asyncio.TaskGroup() as group:
            group.create_task(site.server.drain(timeout=10))
            await site.until(lambda: site.server.draining)
            gate.open()
            assert await client.rest() == b"220 mx.example ESMTP\r\n" + SHUTTING_DOWN


@pytest.mark.parametrize("stage", ["connect", "mail", "idle", "data", "message"])
async def test_drain_gives_up_in_the_end(smtp_site, stage):
    cancelled = []

    async def stuck(_):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(stage)
            raise

    async with smtp_site({stage: stuck} if stage in {"connect", "mail", "message"} else {}) as site:
        client = await site.connect()
        if stage != "connect":
            await client.hello()
        if stage == "mail":
            client.send(b"MAIL FROM:<a@b>\r\n")
        elif stage == "idle":
            await client.say(b"MAIL FROM:<a@b>")
        elif stage in {"data", "message"}:
            await client.transaction()
            client.send(MESSAGE if stage == "message" else MESSAGE[:5])
        if stage in {"connect", "mail", "message"}:
            await site.until(lambda: site.handlers and site.handler.count(stage))
        await site.server.drain(timeout=0.02)
        assert await client.rest() == SHUTTING_DOWN
        assert cancelled == ([stage] if stage in {"connect", "mail", "message"} else [])
        assert site.handler.names()[-1] == "close"


async def test_refused_while_draining(smtp_site):
    async with smtp_site() as site:
        site.server.draining = True
        assert await (await site.connect()).rest() == SHUTTING_DOWN
        assert not site.handlers


async def test_close_right_after_connecting(smtp_site):
    """A session whose task has not run yet is forgotten, too."""
    async with smtp_site() as site:
        await site.connect()
        await site.until(lambda: site.server.connections)
        await site.server.close()
        assert not site.server.connections


async def test_handler_that_takes_too_long_to_close(smtp_site, monkeypatch):
    monkeypatch.setattr(server_module, "CLOSE_GRACE", 0.02)
    cancelled = []

    async def stuck(_):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async with smtp_site({"close": stuck}) as site:
        await site.greeted()
        await site.server.close()
        assert cancelled


async def test_handler_that_cannot_be_ended(smtp_site, monkeypatch, caplog):
    monkeypatch.setattr(server_module, "CLOSE_GRACE", 0.02)
    released = asyncio.Event()

    async def stubborn(_):
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    async with smtp_site({"close": stubborn}) as site:
        await site.greeted()
        await site.server.close()
        assert "1 sessions could not be ended" in caplog.text
        released.set()
        await site.all_closed()


async def test_many_sessions_at_once(smtp_site):
    async def one(site, number):
        client = await site.greeted()
        for _ in range(3):
            await client.transaction()
            assert await client.say(b"A: %d\r\n\r\nbody\r\n." % number) == b"250 2.0.0 Taken\r\n"
        await client.say(b"QUIT")
        client.writer.close()

    async with smtp_site(connections_per_client=100) as site:
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(one(site, number))
        await site.all_closed()
        assert len(site.handlers) == 50
        for handler in site.handlers:
            assert len(handler.messages) == 3
            assert len(set(handler.messages)) == 1


async def test_reply_that_a_closed_client_cannot_hear(smtp_site):
    """A client that closes both sides at once costs nothing but its session."""
    async with smtp_site({"helo": Reply.of(421, "4.7.0 go")}) as site:
        client = await site.connect()
        await client.reply()
        client.send(b"EHLO c\r\n")
        client.writer.close()
        await site.all_closed()
