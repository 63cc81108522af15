"""Starting, draining, stopping; what a configuration becomes."""

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from milterchain.config import parse
from milterchain.errors import ConfigurationError
from milterchain.milter.flags import Command, Family, Stage
from milterchain.milter.messages import Connect
from milterchain.proxy.app import App, milter_settings, serve, server_options
from milterchain.proxy.next_hops import build_next_hops
from milterchain.testing import Late, ScriptedMilter, refusing_address


def test_every_key_of_a_milter_arrives() -> None:
    config = parse(
        {
            "milter": [
                {
                    "name": "m",
                    "address": "inet:127.0.0.1:1",
                    "default_action": "shutdown",
                    "connect_timeout": "1s",
                    "command_timeout": "2s",
                    "content_timeout": "3s",
                    "protocol": 5,
                    "header_index": "sendmail",
                    "on_rejected_recipient": "keep",
                    "pipeline": "off",
                    "macros": {"mail": ["{x}"]},
                }
            ],
            "limits": {"message_size": "1MiB"},
        },
        "test",
        Path(),
    )
    settings = milter_settings(config.milter[0], config.limits.message_size)
    assert (settings.name, settings.endpoint.port, settings.default_action) == ("m", 1, "shutdown")
    assert (settings.connect_timeout, settings.command_timeout, settings.content_timeout) == (1, 2, 3)
    assert (settings.version, settings.header_index, settings.pipeline) == (4, "sendmail", "off")
    assert settings.message_size == 2**20
    assert (settings.on_rejected_recipient, settings.macros) == ("keep", {Stage.MAIL: (b"{x}",)})


async def test_every_limit_and_timeout_arrives() -> None:
    config = parse(
        {
            "hostname": "mx.test",
            "limits": {
                "message_size": 1,
                "recipients": 2,
                "connections": 3,
                "connections_per_client": 4,
                "command_timeout": 5,
                "errors": 6,
                "received_hops": 7,
                "messages_per_connection": 11,
            },
            "relay": {
                "connect_timeout": 8,
                "command_timeout": 9,
                "data_done_timeout": 10,
                "on_refused_added_recipient": "log",
            },
        },
        "test",
        Path(),
    )
    options = server_options(config)
    assert (options.hostname, options.message_size, options.recipients) == (b"mx.test", 1, 2)
    assert (options.connections, options.connections_per_client, options.command_timeout) == (3, 4, 5)
    assert (options.errors, options.received_hops, options.mails) == (6, 7, 11)
    hops = build_next_hops(config)
    client = hops.options.client
    assert (client.hello, client.connect_timeout, client.command_timeout) == (b"mx.test", 8, 9)
    assert (client.data_done_timeout, hops.options.on_refused_added_recipient) == (10, "log")
    await hops.close()


async def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        app = App(
            parse({"listen": [{"address": address}], "relay": {"next_hop": ["discard:"]}}, "test", Path())
        )
        with pytest.raises(ConfigurationError, match=f"cannot listen on {address}: .*in use"):
            await app.start()
        await app.stop()


async def test_it_starts_without_its_next_hop(log: Any) -> None:
    with refusing_address() as (host, port):
        document = {"listen": [{"address": "127.0.0.1:0"}], "relay": {"next_hop": [f"smtp:{host}:{port}"]}}
        async with App(parse(document, "test", Path())) as app:
            assert app.addresses[0].port
    assert "next hop does not answer" in log.getvalue()


async def test_draining_lets_open_messages_come_to_their_end(world: Any) -> None:
    there = asyncio.Event()
    await world.start({}, hop={".": [Late(there), "250 2.0.0 Ok"]})
    idle = await world.client()
    await idle.reply()
    client = await world.client()
    await client.begin()
    await client.say("DATA")
    client.write(b"Subject: hi\r\n\r\nHello\r\n.\r\n")
    await world.hop.wait_for(lambda: world.hop.messages)
    async with asyncio.TaskGroup() as group:
        drain = group.create_task(world.app.drain())
        assert (await idle.reply()).startswith("421 4.3.2 ")
        assert await idle.at_end()
        assert not drain.done()
        there.set()
        assert await client.reply() == "250 2.0.0 Ok"
        assert (await client.reply()).startswith("421 4.3.2 ")
        assert await client.at_end()
    assert world.hop.accepted
    with pytest.raises(ConnectionRefusedError):
        await world.client()


async def test_draining_ends_connections_that_wait_for_the_next_session(world: Any) -> None:
    await world.start({}, {}, milter={"reuse": True})
    for _ in range(2):
        client = await world.client()
        await client.begin()
        assert (await client.send()).startswith("250 2.0.0 Ok")
        await client.say("QUIT")
        for milter in world.milters:
            await milter.wait_for(lambda: milter.connections[0].codes.endswith("K"))  # noqa: B023 - waited for
    await world.app.drain()
    for milter in world.milters:
        assert (await milter.wait_closed()).codes.endswith("EKQ")
        assert len(milter.connections) == 1


async def test_draining_has_a_limit(world: Any, log: Any) -> None:
    never = asyncio.Event()
    await world.start({}, hop={".": [Late(never), "250 2.0.0 Ok"]})
    client = await world.client()
    await client.begin()
    await client.say("DATA")
    client.write(b"Subject: hi\r\n\r\nHello\r\n.\r\n")
    await world.hop.wait_for(lambda: world.hop.messages)
    started = asyncio.get_running_loop().time()
    await world.app.drain(0.1)
    assert asyncio.get_running_loop().time() - started < 15
    assert (await client.reply()).startswith("421 4.3.2 ")
    assert await client.at_end()
    assert '"interrupted"' in log.getvalue()


async def test_a_client_on_a_unix_socket(tmp_path: Path) -> None:
    document = {
        "listen": [{"name": "local", "address": "unix:smtp.sock"}],
        "access": {"trusted_networks": []},
        "relay": {"next_hop": ["maildir:mail"]},
    }
    async with ScriptedMilter() as milter:
        document["milter"] = [{"address": milter.endpoint}]
        async with App(parse(document, "test", tmp_path)) as app:
            assert str(app.addresses[0]) == f"unix:{tmp_path}/smtp.sock"
            reader, writer = await asyncio.open_unix_connection(tmp_path / "smtp.sock")
            for line in (
                b"HELO here",
                b"MAIL FROM:<>",
                b"RCPT TO:<b@example.net>",
                b"DATA",
                b"hi\r\n.",
                b"QUIT",
            ):
                assert (await reader.readline())[:1] in b"23"
                writer.write(line + b"\r\n")
            assert (await reader.readline()).startswith(b"221 ")
            writer.close()
    connection = milter.connections[0]
    assert connection.of(Connect)[0].family == Family.UNIX
    assert connection.macros(Command.CONNECT)[b"{daemon_name}"] == b"local"
    (delivered,) = (tmp_path / "mail" / "new").iterdir()
    assert b"Received: from here (unknown local)\n" in delivered.read_bytes()


async def test_a_second_signal_stops_at_once(world: Any) -> None:
    never = asyncio.Event()
    await world.start(hop={".": [Late(never), "250 2.0.0 Ok"]})
    config = world.app.config
    ready = asyncio.Event()
    apps: list[App] = []

    def on_ready(app: App) -> None:
        apps.append(app)
        ready.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(serve(config, on_ready))
        await ready.wait()
        world.app, first = apps[0], world.app
        client = await world.client()
        world.app = first
        await client.begin()
        await client.say("DATA")
        client.write(b"Subject: hi\r\n\r\nHello\r\n.\r\n")
        await world.hop.wait_for(lambda: world.hop.messages)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert (await client.reply()).startswith("421 4.3.2 ")
        assert await client.at_end()
