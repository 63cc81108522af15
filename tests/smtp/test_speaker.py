"""Clients that speak for others: PROXY, XCLIENT and XFORWARD on sockets."""

import asyncio
import dataclasses
import ssl
import struct
from ipaddress import ip_network

import pytest

from milterchain.mail.replies import Reply
from milterchain.smtp.options import Listener
from milterchain.smtp.sasl import AuthSettings
from milterchain.smtp.tls import ServerTLS, TLSSettings

LOOPBACK = (ip_network("127.0.0.1"),)
ELSEWHERE = (ip_network("192.0.2.0/24"),)
BALANCED = Listener(host="127.0.0.1", proxy_protocol_from=LOOPBACK)
PROXIED = Listener(host="127.0.0.1", xclient_from=LOOPBACK)

V1 = b"PROXY TCP4 192.0.2.7 192.0.2.25 4711 25\r\n"
V2 = (
    bytes.fromhex("0D0A0D0A000D0A515549540A2111000C")
    + bytes([192, 0, 2, 7, 192, 0, 2, 25])
    + struct.pack("!HH", 4711, 25)
)
LOCAL = bytes.fromhex("0D0A0D0A000D0A515549540A20000000")
OFFERED = (
    b"XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT",
    b"XFORWARD NAME ADDR PROTO HELO SOURCE PORT IDENT",
)


@pytest.mark.parametrize("header", [V1, V2])
async def test_the_client_behind_a_balancer(smtp_site, header):
    async with smtp_site(listener=BALANCED) as site:
        client = await site.connect()
        client.send(header)
        await client.hello()
        info = site.handler.info
        assert (info.family, info.address, info.port, info.peer) == ("4", "192.0.2.7", 4711, "127.0.0.1")
        assert (info.local_address, info.local_port, info.listener) == ("192.0.2.25", 25, "smtp")


@pytest.mark.parametrize("header", [V1, V2])
async def test_a_header_in_pieces(smtp_site, header):
    async with smtp_site(listener=BALANCED) as site:
        client = await site.connect()
        for octet in header:
            client.send(bytes([octet]))
            await client.writer.drain()
            await asyncio.sleep(0)
        await client.hello()
        assert site.handler.info.address == "192.0.2.7"


async def test_a_balancer_that_speaks_for_itself(smtp_site):
    async with smtp_site(listener=BALANCED) as site:
        client = await site.connect()
        client.send(LOCAL)
        await client.hello()
        assert (site.handler.info.address, site.handler.info.peer) == ("127.0.0.1", "")


@pytest.mark.parametrize("header", [b"EHLO client.example\r\n", b"PROXY UNKNOWN\r\n", b"\0" * 5000])
async def test_no_header(smtp_site, header, caplog):
    async with smtp_site(listener=BALANCED) as site:
        client = await site.connect()
        client.send(header)
        assert await client.rest() == b"421 4.3.0 Error: no usable PROXY header, closing connection\r\n"
        assert not site.handlers
    assert "PROXY" in caplog.text


async def test_a_header_that_does_not_come(smtp_site):
    async with smtp_site(listener=BALANCED, proxy_header_timeout=0.05) as site:
        client = await site.connect()
        client.send(V2[:20])
        assert (await client.rest()).startswith(b"421 4.4.2 ")
        assert not site.handlers


async def test_a_balancer_that_only_knocks(smtp_site):
    async with smtp_site(listener=BALANCED) as site:
        client = await site.connect()
        client.writer.close()
        await site.until(lambda: not site.server.connections)
        assert not site.handlers


async def test_others_need_no_header_and_cannot_use_one(smtp_site):
    async with smtp_site(listener=Listener(host="127.0.0.1", proxy_protocol_from=ELSEWHERE)) as site:
        client = await site.connect()
        assert (await client.reply()).startswith(b"220 ")
        assert (await client.say(V1.removesuffix(b"\r\n"))).startswith(b"500 ")
        assert site.handler.info.address == "127.0.0.1"


async def test_what_follows_the_header_is_early(smtp_site):
    async with smtp_site(listener=BALANCED) as site:
        client = await site.connect()
        client.send(V1 + b"EHLO client.example\r\n")
        assert (await client.rest()).startswith(b"554 5.5.0 ")


async def test_connections_are_counted_by_client(smtp_site):
    async with smtp_site(listener=BALANCED, connections_per_client=1) as site:
        first, second = await site.connect(), await site.connect()
        first.send(V1)
        await first.hello()
        second.send(V1)
        assert (await second.rest()).startswith(b"421 4.7.0 ")
        other = await site.connect()
        other.send(V1.replace(b"192.0.2.7 ", b"192.0.2.8 "))
        await other.hello()
        assert [handler.info.connections for handler in site.handlers] == [1, 1]
        await first.say(b"QUIT")
        await site.until(lambda: site.server.connections == 1)
        again = await site.connect()
        again.send(V1)
        await again.hello()


async def test_xclient_on_a_unix_socket(smtp_site, tmp_path):
    listener = Listener(path=str(tmp_path / "smtp"), xclient_from=LOOPBACK)
    async with smtp_site(listener=listener) as site:
        client = await site.greeted()
        assert (await client.say(b"XCLIENT ADDR=192.0.2.7")).startswith(b"220 ")
        assert (site.handler.info.family, site.handler.info.address) == ("4", "192.0.2.7")


async def test_xclient_begins_again(smtp_site):
    async with smtp_site(listener=PROXIED) as site:
        client = await site.connect()
        offer = await client.hello()
        assert all(line in offer for line in OFFERED)
        assert (await client.say(b"XCLIENT ADDR=192.0.2.7 NAME=c.example LOGIN=ann")).startswith(
            b"220 mx.example "
        )
        first, second = site.handlers
        assert first.names() == ["connect", "helo", "close"]
        assert second.names() == ["connect"]
        assert (second.info.address, second.info.login, second.info.peer) == (
            "192.0.2.7",
            b"ann",
            "127.0.0.1",
        )
        assert await client.say(b"MAIL FROM:<a@b>") == b"503 5.5.1 Error: send HELO/EHLO first\r\n"
        offer = await client.say(b"EHLO client.example")
        assert not any(line in offer for line in OFFERED)
        # What the client types behind the proxy gives it no right.
        assert (
            await client.say(b"XCLIENT ADDR=127.0.0.1") == b"550 5.7.0 Error: insufficient authorization\r\n"
        )
        assert (
            await client.say(b"XFORWARD ADDR=192.0.2.8") == b"550 5.7.0 Error: insufficient authorization\r\n"
        )
        await client.transaction()


async def test_the_right_lasts_while_the_address_has_it(smtp_site):
    async with smtp_site(listener=PROXIED) as site:
        client = await site.greeted()
        for command in (b"XCLIENT LOGIN=ann", b"XCLIENT NAME=a.example", b"XCLIENT ADDR=192.0.2.7"):
            assert (await client.say(command)).startswith(b"220 ")
        assert [handler.info.login for handler in site.handlers] == [None, b"ann", None, None]
        assert (await client.say(b"XCLIENT LOGIN=ann")).startswith(b"550 ")


async def test_xclient_that_tells_of_helo(smtp_site):
    async with smtp_site(listener=PROXIED) as site:
        client = await site.greeted()
        assert (await client.say(b"XCLIENT ADDR=192.0.2.7 HELO=h.example PROTO=ESMTP")).startswith(b"220 ")
        await client.transaction()
        assert site.handler.calls[:2] == [("connect",), ("helo", b"h.example", True)]


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (b"XCLIENT", b"501 5.5.4 Syntax: XCLIENT attribute=value...\r\n"),
        (b"XCLIENT ADDR=x", b"501 5.5.4 Bad address syntax\r\n"),
        (b"XFORWARD", b"501 5.5.4 Syntax: XFORWARD attribute=value...\r\n"),
        (b"XFORWARD PORT=x", b"501 5.5.4 Bad port\r\n"),
    ],
)
async def test_mistakes_change_nothing(smtp_site, command, reply):
    async with smtp_site(listener=PROXIED) as site:
        client = await site.greeted()
        assert await client.say(command) == reply
        await client.transaction()
        assert len(site.handlers) == 1


@pytest.mark.parametrize("command", [b"XCLIENT ADDR=192.0.2.7", b"XFORWARD ADDR=192.0.2.7"])
async def test_not_in_a_transaction(smtp_site, command):
    async with smtp_site(listener=PROXIED) as site:
        client = await site.greeted()
        await client.say(b"MAIL FROM:<a@b>")
        assert await client.say(command) == b"503 5.5.1 Error: MAIL transaction in progress\r\n"
        assert len(site.handlers) == 1


async def test_nothing_may_follow_xclient_before_the_greeting(smtp_site):
    async with smtp_site(listener=PROXIED) as site:
        client = await site.greeted()
        client.send(b"XCLIENT ADDR=192.0.2.7\r\nEHLO client.example\r\n")
        assert (await client.rest()).startswith(b"554 5.5.0 ")
        assert len(site.handlers) == 1


async def test_the_new_client_is_refused(smtp_site):
    async def connect(handler):
        return Reply.of(554, "no") if handler.info.address == "192.0.2.7" else None

    async with smtp_site({"connect": connect}, listener=PROXIED) as site:
        client = await site.greeted()
        assert await client.say(b"XCLIENT ADDR=192.0.2.7") == b"554 no\r\n"
        assert await client.say(b"EHLO client.example") == b"250-mx.example\r\n250 ENHANCEDSTATUSCODES\r\n"
        assert (await client.say(b"MAIL FROM:<a@b>")).startswith(b"550 5.7.1 ")


async def test_a_refusal_of_the_proxy_is_none_of_its_client(smtp_site):
    async def connect(handler):
        return Reply.of(554, "no") if handler.info.address == "127.0.0.1" else None

    async with smtp_site({"connect": connect}, listener=PROXIED) as site:
        client = await site.connect()
        assert await client.reply() == b"554 no\r\n"
        assert (await client.say(b"XCLIENT ADDR=192.0.2.7")).startswith(b"220 ")
        await client.say(b"EHLO client.example")
        await client.transaction()


async def test_handlers_know_how_many_connections_their_client_has(smtp_site):
    async with smtp_site(listener=PROXIED) as site:
        for _ in range(2):
            client = await site.greeted()
        for client in site.clients:
            await client.say(b"XCLIENT ADDR=192.0.2.7")
        assert [handler.info.connections for handler in site.handlers] == [1, 2, 1, 2]


async def test_xclient_counts_for_the_client(smtp_site):
    async with smtp_site(listener=PROXIED, connections_per_client=1) as site:
        first, second = await site.connect(), await site.connect()
        for client in (first, second):
            await client.hello()
        assert (await first.say(b"XCLIENT ADDR=192.0.2.7")).startswith(b"220 ")
        assert (await second.say(b"XCLIENT ADDR=192.0.2.7")).startswith(b"421 4.7.0 ")
        assert await second.rest() == b""


async def test_no_handler_for_the_new_client(smtp_site, caplog):
    async with smtp_site(listener=PROXIED) as site:
        client = await site.greeted()
        site.script["factory"] = RuntimeError("secret")
        assert (
            await client.say(b"XCLIENT ADDR=192.0.2.7")
            == b"421 4.3.0 Error: internal error, closing connection\r\n"
        )
        assert await client.rest() == b""
    assert "no handler could be made" in caplog.text


FORWARD = ("forward", "192.0.2.7", b"h.example")


async def test_xforward_lasts_for_one_message(smtp_site):
    async with smtp_site(listener=PROXIED) as site:
        client = await site.greeted()
        assert await client.say(b"XFORWARD ADDR=192.0.2.7 NAME=c.example") == b"250 2.0.0 Ok\r\n"
        assert await client.say(b"XFORWARD HELO=h.example PROTO=SMTP") == b"250 2.0.0 Ok\r\n"
        await client.transaction()
        assert await client.say(b"Subject: x\r\n\r\n.") == b"250 2.0.0 Taken\r\n"
        await client.say(b"MAIL FROM:<a@b>")
        names = site.handler.names()
        assert names == [
            *["connect", "helo", "forward", "forward", "mail", "rcpt", "data", "message"],
            "forward",
            "mail",
        ]
        assert site.handler.calls[3] == FORWARD
        assert site.handler.calls[8] == ("forward", None)


@pytest.mark.parametrize(
    "commands",
    [[b"RSET"], [b"EHLO x"], [b"HELO x"], [b"MAIL FROM:<a@b>", b"RSET"], [b"MAIL FROM:<a@b>", b"EHLO x"]],
)
async def test_xforward_is_forgotten(smtp_site, commands):
    async with smtp_site(listener=PROXIED) as site:
        client = await site.greeted()
        await client.say(b"XFORWARD ADDR=192.0.2.7 HELO=h.example")
        for command in commands:
            assert (await client.say(command)).startswith(b"250")
        calls = [call for call in site.handler.calls if call[0] == "forward"]
        assert calls == [FORWARD, ("forward", None)]


async def test_xforward_is_forgotten_when_the_handler_fails(smtp_site):
    async with smtp_site({"message": RuntimeError("x")}, listener=PROXIED) as site:
        client = await site.greeted()
        await client.say(b"XFORWARD ADDR=192.0.2.7 HELO=h.example")
        await client.transaction()
        assert (await client.say(b".")).startswith(b"451 ")
        assert site.handler.calls[-2:] == [("reset",), ("forward", None)]


async def test_a_client_that_vanishes_during_xclient(smtp_site):
    begun = asyncio.Event()

    async def close(_):
        if not begun.is_set():
            begun.set()
            await asyncio.sleep(60)

    async with smtp_site({"close": close}, listener=PROXIED) as site:
        client = await site.greeted()
        client.send(b"XCLIENT ADDR=192.0.2.7\r\n")
        await begun.wait()
        client.reset()
        await site.all_closed()
        assert len(site.handlers) == 2


@pytest.fixture
def secure(certificates):
    """`secure(listener, **settings)`: the same one with TLS."""

    def make(listener, **settings):
        files = {"certificate": certificates / "server.pem", "key": certificates / "server.key"}
        return dataclasses.replace(listener, tls=ServerTLS(TLSSettings(**files, **settings)))

    return make


@pytest.mark.parametrize("header", [V1, V2])
async def test_starttls_behind_a_balancer(smtp_site, secure, client_context, header):
    async with smtp_site(listener=secure(BALANCED)) as site:
        client = await site.connect()
        client.send(header)
        await client.hello()
        await client.say(b"STARTTLS")
        await client.starttls(client_context())
        await client.say(b"EHLO client.example")
        await client.transaction()
        assert site.handler.info.address == "192.0.2.7"
        assert site.handler.names()[:4] == ["connect", "helo", "tls", "helo"]


class Tunnel:
    """TLS over a client, octet by octet in our hands."""

    def __init__(self, client, context):
        self.client = client
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="mx.example")

    async def complete(self, operation, first=b""):
        """Do it, with these octets before all others."""
        async with asyncio.timeout(10):
            while True:
                try:
                    result = operation()
                except ssl.SSLWantReadError:
                    result = None
                data = first + self.outgoing.read()
                first = b""
                if data:
                    self.client.send(data)
                if result is not None:
                    return result
                received = await self.client.reader.read(65536)
                assert received, "the server closed the connection"
                self.incoming.write(received)


@pytest.mark.parametrize("header", [V1, V2])
async def test_implicit_tls_behind_a_balancer(smtp_site, secure, client_context, header):
    """The header and the begin of the handshake come in one packet."""
    async with smtp_site(listener=secure(BALANCED, implicit=True)) as site:
        tunnel = Tunnel(await site.connect(), client_context())
        await tunnel.complete(lambda: tunnel.tls.do_handshake() or True, header)
        assert (await tunnel.complete(tunnel.tls.read)).startswith(b"220 ")
        assert site.handler.info.address == "192.0.2.7"
        assert site.handler.names() == ["tls", "connect"]


async def test_implicit_tls_in_its_own_packet(smtp_site, secure, client_context):
    async with smtp_site(listener=secure(BALANCED, implicit=True)) as site:
        client = await site.connect()
        client.send(V2)
        await client.writer.drain()
        await client.starttls(client_context())
        await client.hello()
        assert site.handler.info.address == "192.0.2.7"


async def test_xclient_keeps_tls(smtp_site, secure, client_context):
    async with smtp_site(listener=secure(PROXIED)) as site:
        client = await site.greeted()
        await client.say(b"XFORWARD ADDR=192.0.2.8 HELO=h.example")
        await client.say(b"STARTTLS")
        await client.starttls(client_context())
        await client.say(b"EHLO proxy.example")
        assert site.handler.calls[2:4] == [("forward", "192.0.2.8", b"h.example"), ("forward", None)]
        assert (await client.say(b"XCLIENT ADDR=192.0.2.7")).startswith(b"220 ")
        assert b"STARTTLS" not in await client.say(b"EHLO client.example")
        first, second = site.handlers
        assert second.names() == ["tls", "connect", "helo"]
        assert second.calls[0] == next(call for call in first.calls if call[0] == "tls")
        await client.transaction()


async def test_xclient_logs_in(smtp_site):
    async def nobody(_):
        return False

    auth = AuthSettings(verify=nobody, allow_plaintext=True, required=True)
    async with smtp_site(listener=dataclasses.replace(PROXIED, auth=auth)) as site:
        client = await site.greeted()
        assert (await client.say(b"MAIL FROM:<a@b>")).startswith(b"530 ")
        assert (await client.say(b"XCLIENT LOGIN=ann")).startswith(b"220 ")
        assert b"AUTH" in await client.say(b"EHLO client.example")
        assert (await client.say(b"AUTH PLAIN AGEAYg==")).startswith(b"503 5.5.1 ")
        await client.transaction()
        await client.say(b".")
        assert (await client.say(b"XCLIENT ADDR=192.0.2.7")).startswith(b"220 ")
        await client.say(b"EHLO client.example")
        assert (await client.say(b"MAIL FROM:<a@b>")).startswith(b"530 ")
