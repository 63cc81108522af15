"""Clients that others speak for, and their names, through the whole proxy."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import dns.asyncresolver
import dns.resolver
import pytest

from milterchain.milter.flags import Command, Family
from milterchain.milter.messages import Connect, Continue, Helo, Mail, Reject
from milterchain.proxy.passwords import PasswordHash

PROXIED = {"listen": [{"address": "127.0.0.1:0", "xclient_from": ["127.0.0.1"]}]}
BALANCED = {"listen": [{"address": "127.0.0.1:0", "proxy_protocol_from": ["127.0.0.1"]}]}
STRANGERS = {"access": {"trusted_networks": ["127.0.0.1"], "relay_domains": ["example.org"]}}
XCLIENT = "XCLIENT ADDR=192.0.2.7 NAME=c.example PORT=4711 PROTO=ESMTP HELO=c.example"
XFORWARD = (
    "XFORWARD NAME=c.example ADDR=192.0.2.7 PORT=4711 PROTO=SMTP HELO=h.example IDENT=4Zk SOURCE=REMOTE"
)


def connects(world: Any) -> list[Connect]:
    return [connection.of(Connect)[0] for connection in world.milters[0].connections]


async def test_xclient_begins_new_milter_sessions(world: Any) -> None:
    await world.start({}, **PROXIED, access={"relay_domains": ["example.net"]})
    client = await world.client()
    await client.reply()
    await client.say("EHLO proxy.example")
    assert (await client.say(XCLIENT)).startswith("220 mx.test ")
    await client.say("EHLO client.example")
    await client.envelope()
    assert (await client.send()).startswith("250 ")
    first, second = world.milters[0].connections
    assert first.codes == "OCHQ"
    assert second.codes == "OCHHMRTLLNBE"
    (connect,) = second.of(Connect)
    assert (connect.hostname, connect.family, connect.address, connect.port) == (
        b"c.example",
        Family.INET,
        b"192.0.2.7",
        4711,
    )
    macros = second.macros(Command.CONNECT)
    assert macros[b"_"] == b"c.example [192.0.2.7]"
    assert macros[b"{client_name}"] == macros[b"{client_ptr}"] == b"c.example"
    assert macros[b"{client_resolve}"] == b"OK"
    assert second.of(Helo) == [Helo(b"c.example"), Helo(b"client.example")]
    (message,) = world.hop.accepted
    assert b"Received: from client.example (c.example [192.0.2.7])\r\n" in message.data


async def test_the_access_rule_holds_for_the_client(world: Any) -> None:
    await world.start(**PROXIED, **STRANGERS)
    client = await world.client()
    await client.begin_mail()
    assert (await client.say("RCPT TO:<b@elsewhere.example>")).startswith("250 ")
    await client.say("RSET")
    assert (await client.say("XCLIENT ADDR=192.0.2.7")).startswith("220 ")
    await client.say("EHLO client.example", "MAIL FROM:<a@example.net>")
    assert (await client.say("RCPT TO:<b@elsewhere.example>")).startswith("554 5.7.1 ")
    assert (await client.say("RCPT TO:<b@example.org>")).startswith("250 ")


async def test_who_has_logged_in_to_the_proxy_may_relay(world: Any) -> None:
    await world.start({}, **PROXIED, **STRANGERS)
    client = await world.client()
    await client.reply()
    await client.say("XCLIENT ADDR=192.0.2.7 LOGIN=ann+2Bx", "EHLO client.example")
    await client.envelope("b@elsewhere.example")
    assert (await client.send()).startswith("250 ")
    macros = world.milters[0].connections[-1].macros(Command.MAIL)
    assert (macros[b"{auth_authen}"], macros[b"{auth_type}"]) == (b"ann+x", b"XCLIENT")
    assert b" with ESMTPA id " in world.hop.accepted[0].data


async def test_xforward_is_for_the_milters_and_the_log(world: Any, log: io.StringIO) -> None:
    await world.start({}, **PROXIED, **STRANGERS)
    client = await world.client()
    await client.reply()
    await client.say("EHLO postfix.example")
    assert await client.say(XFORWARD) == "250 2.0.0 Ok"
    # The one who hands it in has decided who may relay.
    await client.envelope("b@elsewhere.example")
    assert (await client.send()).startswith("250 ")
    first, second = world.milters[0].connections
    assert first.codes == "OCHQ"
    assert second.codes == "OCHMRTLLNBE"
    assert connects(world)[1] == Connect(
        hostname=b"c.example", family=Family.INET, port=4711, address=b"192.0.2.7"
    )
    assert second.of(Helo) == [Helo(b"h.example")]
    assert b"{auth_type}" not in second.macros(Command.MAIL)
    (line,) = [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "message"]
    assert (line["client"], line["helo"]) == ("192.0.2.7", "h.example")
    received = world.hop.accepted[0].data
    assert b"Received: from postfix.example (unknown [127.0.0.1])\r\n" in received
    assert b" with ESMTP id " in received


async def test_messages_of_several_clients_in_one_session(world: Any) -> None:
    await world.start({}, **PROXIED)
    client = await world.client()
    await client.reply()
    await client.say("EHLO postfix.example")
    for forward in (XFORWARD, XFORWARD, XFORWARD.replace("192.0.2.7", "192.0.2.8"), None):
        if forward is not None:
            await client.say(forward)
        await client.envelope()
        assert (await client.send()).startswith("250 ")
    assert [connect.address for connect in connects(world)] == [
        b"127.0.0.1",
        b"192.0.2.7",
        b"192.0.2.8",
        b"127.0.0.1",
    ]
    assert [len(connection.of(Mail)) for connection in world.milters[0].connections] == [0, 2, 1, 1]
    assert all(not connection.violations for connection in world.milters[0].connections)


async def test_ehlo_after_a_forwarded_message(world: Any) -> None:
    await world.start({}, **PROXIED)
    client = await world.client()
    await client.reply()
    await client.say("EHLO postfix.example", XFORWARD)
    await client.envelope()
    await client.say("EHLO again.example")
    await client.envelope()
    last = world.milters[0].connections[-1]
    assert last.of(Connect)[0].address == b"127.0.0.1"
    assert last.of(Helo) == [Helo(b"again.example")]


@pytest.mark.parametrize("stage", [Command.CONNECT, Command.HELO, Command.MAIL])
async def test_a_refusal_of_the_origin_is_heard_at_mail(world: Any, stage: Command) -> None:
    """Before that nobody could have known of it."""
    refusing = False
    await world.start({}, {stage: lambda _: Reject() if refusing else Continue()}, **PROXIED)
    client = await world.client()
    await client.reply()
    await client.say("EHLO postfix.example", XFORWARD)
    refusing = True
    assert (await client.say("MAIL FROM:<a@example.org>")).startswith("550 5.7.1 ")
    assert (await client.say("RCPT TO:<b@example.org>")).startswith("503 ")
    refusing = False
    # It was about that client only.
    await client.say("RSET")
    await client.envelope()
    assert (await client.send()).startswith("250 ")


async def test_a_message_from_the_upstream_host_itself(world: Any) -> None:
    await world.start({}, **PROXIED)
    client = await world.client()
    await client.reply()
    await client.say("EHLO postfix.example")
    await client.say("XFORWARD NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PROTO=[UNAVAILABLE] HELO=[UNAVAILABLE]")
    await client.say("XFORWARD SOURCE=LOCAL")
    await client.envelope()
    connection = world.milters[0].connections[-1]
    assert connection.codes == "OCMR"
    assert connection.of(Connect)[0].hostname == b"localhost"
    assert connection.macros(Command.CONNECT)[b"{client_addr}"] == b"127.0.0.1"


async def test_an_origin_that_is_not_known(world: Any) -> None:
    await world.start({}, **PROXIED)
    client = await world.client()
    await client.reply()
    await client.say("EHLO postfix.example", "XFORWARD ADDR=[UNAVAILABLE] SOURCE=REMOTE")
    await client.envelope()
    (connect,) = world.milters[0].connections[-1].of(Connect)
    assert (connect.hostname, connect.family) == (b"unknown", Family.UNKNOWN)


async def test_a_load_balancer(world: Any) -> None:
    await world.start({}, **BALANCED, **STRANGERS)
    client = await world.client()
    client.write(b"PROXY TCP6 2001:db8::7 2001:db8::25 4711 25\r\n")
    await client.begin_mail()
    assert (await client.say("RCPT TO:<b@elsewhere.example>")).startswith("554 5.7.1 ")
    (connection,) = world.milters[0].connections
    assert connection.of(Connect)[0] == Connect(
        hostname=b"[2001:db8::7]", family=Family.INET6, port=4711, address=b"2001:db8::7"
    )
    macros = connection.macros(Command.CONNECT)
    assert (macros[b"{daemon_addr}"], macros[b"{daemon_port}"]) == (b"2001:db8::25", b"25")


async def test_the_client_is_looked_up(world: Any, dns_server: Any) -> None:
    zone = {("7.2.0.192.in-addr.arpa.", "PTR"): ["c.example."], ("c.example.", "A"): ["192.0.2.7"]}
    async with dns_server(zone) as (asked, server):
        servers = [f"{server.address}:{server.port}"]
        await world.start({}, **PROXIED, dns={"servers": servers}, access={"relay_domains": ["example.net"]})
        client = await world.client()
        await client.reply()
        assert not asked.asked
        await client.say("XCLIENT ADDR=192.0.2.7", "EHLO client.example")
        await client.envelope()
        assert (await client.send()).startswith("250 ")
        assert [kind for _, kind in asked.asked] == ["PTR", "A"]
        first, second = world.milters[0].connections
        assert first.of(Connect)[0].hostname == b"localhost"
        assert second.of(Connect)[0].hostname == b"c.example"
        assert second.macros(Command.CONNECT)[b"{client_resolve}"] == b"OK"
        assert b"(c.example [192.0.2.7])" in world.hop.accepted[0].data


async def test_names_that_are_told_are_not_looked_up(world: Any, dns_server: Any) -> None:
    async with dns_server({}) as (asked, server):
        await world.start({}, **PROXIED, dns={"servers": [f"{server.address}:{server.port}"]})
        client = await world.client()
        await client.reply()
        await client.say(XCLIENT)
        assert connects(world)[1].hostname == b"c.example"
        assert not asked.asked


async def test_milters_can_be_told_how_many_connections_a_client_has(world: Any) -> None:
    await world.start({}, milter={"macros": {"connect": ["{client_connections}"]}})
    for _ in range(2):
        await (await world.client()).reply()
    macros = [connection.macros(Command.CONNECT) for connection in world.milters[0].connections]
    assert [values[b"{client_connections}"] for values in macros] == [b"1", b"2"]


async def test_a_forged_name(world: Any, dns_server: Any) -> None:
    async with dns_server({("7.2.0.192.in-addr.arpa.", "PTR"): ["c.example."]}) as (_, server):
        await world.start({}, **BALANCED, dns={"servers": [f"{server.address}:{server.port}"]})
        client = await world.client()
        client.write(b"PROXY TCP4 192.0.2.7 192.0.2.25 4711 25\r\n")
        await client.reply()
        assert connects(world)[0].hostname == b"[192.0.2.7]"
        macros = world.milters[0].connections[0].macros(Command.CONNECT)
        assert macros[b"_"] == b"c.example [192.0.2.7] (may be forged)"
        assert macros[b"{client_resolve}"] == b"FORGED"


async def test_a_resolver_that_is_away_costs_its_deadline_only(world: Any, dns_server: Any) -> None:
    async with dns_server({("7.2.0.192.in-addr.arpa.", "PTR"): "silence"}) as (_, server):
        dns = {"servers": [f"{server.address}:{server.port}"], "timeout": "100ms"}
        await world.start({}, **BALANCED, dns=dns)
        client = await world.client()
        client.write(b"PROXY TCP4 192.0.2.7 192.0.2.25 4711 25\r\n")
        assert (await client.reply()).startswith("220 ")
        assert world.milters[0].connections[0].macros(Command.CONNECT)[b"{client_resolve}"] == b"TEMP"


async def test_a_login_between_messages_is_not_that_of_the_origin(world: Any, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"ann:{PasswordHash.make(b'secret')}\n")
    listen = {
        **PROXIED["listen"][0],
        "auth": {"backend": "file", "path": str(users), "allow_plaintext": True},
    }
    await world.start({}, listen=[listen])
    client = await world.client()
    await client.reply()
    await client.say("EHLO postfix.example", XFORWARD)
    await client.envelope()
    assert (await client.send()).startswith("250 ")
    login = base64.b64encode(b"\0ann\0secret").decode()
    assert (await client.say(f"AUTH PLAIN {login}")).startswith("235 ")
    for forward in (XFORWARD, "NOOP"):
        await client.say(forward)
        await client.envelope()
        assert (await client.send()).startswith("250 ")
    _, forwarded, own = world.milters[0].connections
    assert len(forwarded.of(Mail)) == 2
    assert b"{auth_authen}" not in forwarded.macros(Command.MAIL)
    assert own.of(Connect)[0].address == b"127.0.0.1"
    assert own.macros(Command.MAIL)[b"{auth_authen}"] == b"ann"


async def test_without_a_dns_server_nobody_is_looked_up(
    world: Any, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    def read(*_: object) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.asyncresolver.Resolver, "read_resolv_conf", read)
    await world.start({}, **BALANCED, dns={"lookup": True})
    assert "clients are not looked up" in log.getvalue()
    client = await world.client()
    client.write(b"PROXY TCP4 192.0.2.7 192.0.2.25 4711 25\r\n")
    assert (await client.reply()).startswith("220 ")
    assert connects(world)[0].hostname == b"[192.0.2.7]"


@pytest.mark.parametrize(
    "command",
    [
        "XCLIENT ADDR=192.0.2.7 HELO=a+0D+0ARCPT+20TO:<x@y> LOGIN=[UNAVAILABLE]",
        "XFORWARD ADDR=192.0.2.7 HELO=a+0D+0ARCPT+20TO:<x@y>+00 IDENT=4Z+20)+3Cx+3E",
    ],
)
async def test_nothing_can_be_injected(world: Any, command: str) -> None:
    await world.start({}, **PROXIED, access={"relay_domains": ["example.net"]})
    client = await world.client()
    await client.reply()
    await client.say("EHLO postfix.example")
    assert (await client.say(command))[:3] in {"220", "250"}
    if command.startswith("XCLIENT"):
        await client.say("EHLO postfix.example")
    await client.envelope()
    assert (await client.send()).startswith("250 ")
    connection = world.milters[0].connections[-1]
    assert connection.of(Helo)[0] == Helo(b"a??RCPT?TO:?x?y?" + (b"?" if "XFORWARD" in command else b""))
    assert all(b"x@y" not in line for line in world.hop.accepted[0].data.splitlines())
