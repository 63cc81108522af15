"""Starting, draining, stopping; what a configuration becomes."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from milterchain.config import parse
from milterchain.errors import ConfigurationError
from milterchain.milter.flags import Stage
from milterchain.proxy.app import App, build_next_hops, milter_settings, server_options
from milterchain.testing import Late, refusing_address


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
            ]
        },
        "test",
        Path(),
    )
    settings = milter_settings(config.milter[0])
    assert (settings.name, settings.endpoint.port, settings.default_action) == ("m", 1, "shutdown")
    assert (settings.connect_timeout, settings.command_timeout, settings.content_timeout) == (1, 2, 3)
    assert (settings.version, settings.header_index, settings.pipeline) == (4, "sendmail", "off")
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
    assert (options.errors, options.received_hops) == (6, 7)
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
