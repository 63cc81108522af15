"""STARTTLS, implicit TLS and AUTH on real sockets, under asyncio and uvloop."""

import asyncio
import base64
import shutil
import ssl
from dataclasses import replace
from ipaddress import ip_network

import pytest

from milterchain.mail.replies import Reply
from milterchain.smtp import channel
from milterchain.smtp.handler import Features
from milterchain.smtp.options import Listener
from milterchain.smtp.sasl import AuthSettings, Credentials
from milterchain.smtp.tls import ServerTLS, TLSSettings

MESSAGE = b"Subject: x\r\n\r\nbody\r\n.\r\n"
PLAIN = b"AUTH PLAIN " + base64.b64encode(b"\0ann\0secret")
WRONG = Reply.of(535, "5.7.8 Error: authentication failed")


@pytest.fixture
def secure(certificates):
    """`secure(auth=, **settings)`: a listener with TLS."""

    def make(*, auth=None, directory=certificates, **settings):
        files = {"certificate": directory / "server.pem", "key": directory / "server.key"}
        tls = ServerTLS(TLSSettings(**files, **settings))
        return Listener(host="127.0.0.1", tls=tls, auth=auth)

    return make


async def right(credentials):
    return credentials.password == b"secret"


AUTH = AuthSettings(verify=right, delay=0)


async def secured(site, context):
    """A client that has come as far as EHLO under TLS."""
    client = await site.connect()
    assert b"STARTTLS" in await client.hello()
    assert await client.say(b"STARTTLS") == b"220 2.0.0 Ready to start TLS\r\n"
    await client.starttls(context)
    return client


async def test_starttls(smtp_site, secure, client_context):
    async with smtp_site(listener=secure()) as site:
        client = await secured(site, client_context())
        assert await client.say(b"MAIL FROM:<a@b>") == b"503 5.5.1 Error: send HELO/EHLO first\r\n"
        assert b"STARTTLS" not in await client.say(b"EHLO client.example")
        assert await client.say(b"STARTTLS") == b"503 5.5.1 Error: TLS already active\r\n"
        await client.transaction()
        client.send(MESSAGE)
        assert (await client.reply()).startswith(b"250 ")
        assert await client.say(b"QUIT") == b"221 2.0.0 Bye\r\n"
        assert await client.rest() == b""
        await site.all_closed()
        names = site.handler.names()
        assert names[:4] == ["connect", "helo", "tls", "helo"]
        assert site.handler.calls[2][1].version == "TLSv1.3"


async def test_implicit(smtp_site, secure, client_context):
    async with smtp_site(listener=secure(implicit=True)) as site:
        client = await site.connect(ssl=client_context(), server_hostname="mx.example")
        assert b"STARTTLS" not in await client.hello()
        assert await client.say(b"STARTTLS") == b"503 5.5.1 Error: TLS already active\r\n"
        assert site.handler.names() == ["tls", "connect", "helo"]
        client.send(b"QUIT\r\n")
        assert await client.rest() == b"221 2.0.0 Bye\r\n"


async def test_without_tls(smtp_site):
    async with smtp_site() as site:
        client = await site.connect()
        assert b"STARTTLS" not in await client.hello()
        assert (await client.say(b"STARTTLS")).startswith(b"502 ")


async def test_out_of_order(smtp_site, secure):
    async with smtp_site(listener=secure()) as site:
        client = await site.connect()
        await client.reply()
        assert await client.say(b"STARTTLS") == b"503 5.5.1 Error: send EHLO first\r\n"
        await client.say(b"EHLO client.example")
        assert await client.say(b"STARTTLS now") == b"501 5.5.4 Syntax: STARTTLS\r\n"
        await client.say(b"MAIL FROM:<a@b>")
        assert (await client.say(b"STARTTLS")).startswith(b"503 5.5.1 ")


async def test_standing_refusal(smtp_site, secure):
    refusal = Reply.of(454, "4.3.0 Try again later")
    async with smtp_site({"security_refusal": refusal}, listener=secure(auth=AUTH)) as site:
        client = await site.greeted()
        assert await client.say(b"STARTTLS") == refusal.encode()


async def test_required(smtp_site, secure, client_context):
    async with smtp_site(listener=secure(required=True)) as site:
        client = await site.greeted()
        for command in (b"MAIL FROM:<a@b>", b"RSET", b"VRFY x", b"WHAT"):
            assert await client.say(command) == b"530 5.7.0 Must issue a STARTTLS command first\r\n"
        assert (await client.say(b"NOOP")).startswith(b"250 ")
        await client.say(b"STARTTLS")
        await client.starttls(client_context())
        await client.say(b"EHLO client.example")
        await client.transaction()


@pytest.mark.parametrize("size", [1, 3_000, 100_000, 400_000])
async def test_injected_plaintext_is_dropped(smtp_site, secure, client_context, size):
    """Also more than the transport takes before it pauses."""
    async with smtp_site(listener=secure()) as site:
        client = await site.greeted()
        injected = b"MAIL FROM:<evil@example.com>\r\n"
        client.send(b"STARTTLS\r\n" + injected * (1 + size // len(injected)))
        assert (await client.reply()).startswith(b"220 ")
        await client.starttls(client_context())
        assert (await client.say(b"EHLO client.example")).startswith(b"250-")
        await client.transaction()
        assert site.handler.count("mail") == 1


async def test_endless_plaintext(smtp_site, secure, monkeypatch):
    monkeypatch.setattr(channel, "MAX_DROPPED", 10_000)
    async with smtp_site(listener=secure()) as site:
        client = await site.greeted()
        client.send(b"STARTTLS\r\n" + b"NOOP\r\n" * 10_000)
        assert await client.reply() == b"554 5.5.0 Error: SMTP protocol synchronization\r\n"


@pytest.mark.parametrize("implicit", [False, True])
async def test_no_handshake(smtp_site, secure, caplog, implicit):
    caplog.set_level("INFO", "milterchain")
    async with smtp_site(listener=secure(implicit=implicit)) as site:
        client = await site.connect()
        if not implicit:
            await client.hello()
            await client.say(b"STARTTLS")
        client.send(b"EHLO client.example\r\n" * 10)
        assert b"250" not in await client.rest()
        await site.until(lambda: not site.server.connections)
        assert "no TLS with 127.0.0.1: " in caplog.text
        assert not site.server._lingering


@pytest.mark.parametrize("implicit", [False, True])
async def test_handshake_deadline(smtp_site, secure, implicit):
    async with smtp_site(listener=secure(implicit=implicit, handshake_timeout=0.1)) as site:
        client = await site.connect()
        if not implicit:
            await client.hello()
            await client.say(b"STARTTLS")
        assert await client.rest() == b""
        await site.until(lambda: not site.server.connections)
        assert not site.server._lingering


async def test_client_gone_in_handshake(smtp_site, secure):
    async with smtp_site(listener=secure()) as site:
        client = await site.greeted()
        await client.say(b"STARTTLS")
        client.reset()
        await site.all_closed()
        await site.until(lambda: not site.server._lingering)


async def test_stop_in_handshake(smtp_site, secure):
    async with smtp_site(listener=secure(implicit=True)) as site:
        client = await site.connect()
        await site.until(lambda: site.server.connections)
        async with asyncio.timeout(3):
            await site.server.close()
        assert await client.rest() == b""


async def test_large_message_and_back_pressure(smtp_site, secure, client_context):
    async with smtp_site(listener=secure()) as site:
        client = await secured(site, client_context())
        await client.say(b"EHLO client.example")
        await client.transaction()
        body = b"x" * 998 + b"\r\n"
        client.send(b"Subject: x\r\n\r\n" + body * 5000 + b".\r\n")
        assert (await client.reply()).startswith(b"250 ")
        assert site.handler.messages[0].count(body) == 5000


async def test_drain_under_tls(smtp_site, secure, client_context):
    async with smtp_site(listener=secure()) as site:
        client = await secured(site, client_context())
        await client.say(b"EHLO client.example")
        async with asyncio.TaskGroup() as group:
            group.create_task(site.server.drain(5))
            assert await client.rest() == b"421 4.3.2 Service shutting down, closing connection\r\n"
            client.writer.close()


async def test_client_leaves_under_tls(smtp_site, secure, client_context):
    async with smtp_site(listener=secure()) as site:
        client = await secured(site, client_context())
        client.writer.close()
        await site.all_closed()


async def test_new_certificate_for_new_sessions(
    smtp_site, secure, client_context, certificates, tmp_path, monkeypatch
):
    monkeypatch.setattr("milterchain.smtp.tls.LOOK_AGAIN", 0)
    for name in ("server.pem", "server.key"):
        shutil.copy(certificates / name, tmp_path)
    async with smtp_site(listener=secure(directory=tmp_path)) as site:
        serials = []
        for _ in range(2):
            client = await secured(site, client_context())
            serials.append(client.writer.get_extra_info("peercert")["serialNumber"])
            shutil.copy(certificates / "renewed.pem", tmp_path / "server.pem")
            shutil.copy(certificates / "renewed.key", tmp_path / "server.key")
        assert serials == ["01", "02"]


async def test_old_protocol_is_refused(smtp_site, secure, client_context):
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with smtp_site(listener=secure(minimum_version="1.3")) as site:
        client = await site.greeted()
        await client.say(b"STARTTLS")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await client.starttls(context)


# AUTH


async def logged_in(client, command=PLAIN):
    return await client.say(command) == b"235 2.7.0 Authentication successful\r\n"


@pytest.mark.parametrize(
    "dialogue",
    [
        [PLAIN],
        [PLAIN.replace(b"PLAIN", b"plain")],
        [b"AUTH PLAIN", PLAIN[11:]],
        [b"AUTH LOGIN", b"YW5u", b"c2VjcmV0"],
        [b"auth lOgIn YW5u", b"c2VjcmV0"],
    ],
)
async def test_auth(smtp_site, secure, client_context, dialogue):
    auth = AuthSettings(delay=0)
    async with smtp_site(listener=secure(auth=auth), features=Features(login=True)) as site:
        client = await site.connect()
        assert b"AUTH" not in await client.hello()
        assert (await client.say(PLAIN)).startswith(b"538 5.7.11 ")
        await client.say(b"STARTTLS")
        await client.starttls(client_context())
        assert (await client.say(PLAIN)).startswith(b"503 5.5.1 Error: send EHLO")
        assert b"\r\n250-AUTH PLAIN LOGIN\r\n" in await client.say(b"EHLO client.example")
        *firsts, last = dialogue
        for line in firsts:
            assert (await client.say(line)).startswith(b"334 ")
        assert await logged_in(client, last)
        mechanism = dialogue[0][5:10].decode().upper()
        wanted = Credentials(mechanism=mechanism, login=b"ann", password=b"secret")
        assert site.handler.calls[-1] == ("auth", wanted)
        assert (await client.say(PLAIN)).startswith(b"503 5.5.1 Error: already authenticated")
        await client.transaction()


@pytest.fixture
def open_listener():
    """AUTH without TLS."""

    def make(**settings):
        return Listener(
            host="127.0.0.1", auth=AuthSettings(verify=right, allow_plaintext=True, delay=0, **settings)
        )

    return make


@pytest.mark.parametrize(
    ("dialogue", "answer"),
    [
        ([b"AUTH"], b"501 5.5.4 Syntax: AUTH mechanism"),
        ([b"AUTH PLAIN a b"], b"501 5.5.4 Syntax: AUTH mechanism"),
        ([b"AUTH GSSAPI"], b"504 5.5.4 Error: authentication mechanism not supported"),
        ([b"AUTH PLAIN YQ"], b"501 5.5.2 Error: bad base64"),
        ([b"AUTH PLAIN ="], b"501 5.5.2 Error: bad authentication data"),
        ([b"AUTH PLAIN", b"*"], b"501 5.7.0 Authentication aborted"),
        ([b"AUTH LOGIN", b"YW5u", b"*"], b"501 5.7.0 Authentication aborted"),
        ([b"AUTH LOGIN", b"YW5u", b" c2VjcmV0"], b"501 5.5.2 Error: bad base64"),
        ([b"AUTH PLAIN", b"x" * 5000], b"500 5.5.6 Error: authentication exchange line is too long"),
    ],
)
async def test_bad_auth(smtp_site, open_listener, dialogue, answer):
    async with smtp_site(listener=open_listener()) as site:
        client = await site.connect()
        assert b"AUTH PLAIN LOGIN" in await client.hello()
        *firsts, last = dialogue
        for line in firsts:
            assert (await client.say(line)).startswith(b"334 ")
        assert await client.say(last) == answer + b"\r\n"
        assert site.handler.count("auth") == 0
        # What comes next is a command again.
        assert await client.say(b"NOOP") == b"250 2.0.0 Ok\r\n"
        assert await logged_in(client)


async def test_not_in_a_transaction(smtp_site, open_listener):
    async with smtp_site(listener=open_listener()) as site:
        client = await site.greeted()
        await client.say(b"MAIL FROM:<a@b>")
        assert (await client.say(PLAIN)).startswith(b"503 5.5.1 ")
        await client.say(b"RSET")
        assert await logged_in(client)


async def test_failures_end_the_session(smtp_site, open_listener):
    async with smtp_site({"auth": WRONG}, listener=open_listener()) as site:
        client = await site.greeted()
        for _ in range(2):
            assert await client.say(PLAIN) == WRONG.encode()
        client.send(PLAIN + b"\r\n")
        assert await client.rest() == WRONG.encode() + b"421 4.7.0 Error: too many errors\r\n"


async def test_failures_are_delayed(smtp_site, monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    auth = AuthSettings(verify=right, allow_plaintext=True, failures=9, delay=0.5)
    async with smtp_site({"auth": WRONG}, listener=Listener(host="127.0.0.1", auth=auth)) as site:
        client = await site.greeted()
        monkeypatch.setattr("milterchain.smtp.session.asyncio.sleep", sleep)
        for _ in range(3):
            assert await client.say(PLAIN) == WRONG.encode()
        monkeypatch.undo()
    assert waited == [0.5, 1.0, 1.5]


LATER = Reply.of(454, "4.7.0 Temporary authentication failure")


@pytest.mark.parametrize("trouble", [RuntimeError("no"), LATER])
async def test_nobody_can_tell(smtp_site, open_listener, trouble):
    async with smtp_site({"auth": trouble}, listener=open_listener()) as site:
        client = await site.greeted()
        for _ in range(5):
            assert await client.say(PLAIN) == b"454 4.7.0 Temporary authentication failure\r\n"


async def test_nobody_can_tell_in_time(smtp_site, open_listener):
    async def never(_):
        await asyncio.Event().wait()

    async with smtp_site({"auth": never}, listener=open_listener(timeout=0.05)) as site:
        client = await site.greeted()
        assert await client.say(PLAIN) == b"454 4.7.0 Temporary authentication failure\r\n"


async def test_not_where_the_next_hop_knows_no_login(smtp_site):
    listener = Listener(host="127.0.0.1", auth=AuthSettings(allow_plaintext=True))
    async with smtp_site(listener=listener) as site:
        client = await site.connect()
        assert b"AUTH" not in await client.hello()
        assert (await client.say(PLAIN)).startswith(b"504 ")


async def test_login_required(smtp_site, open_listener):
    async with smtp_site(listener=open_listener(required=True)) as site:
        client = await site.greeted()
        assert await client.say(b"MAIL FROM:<a@b>") == b"530 5.7.0 Authentication required\r\n"
        assert (await client.say(b"RSET")).startswith(b"250 ")
        assert await logged_in(client)
        await client.transaction()


async def test_no_tls_after_a_login(smtp_site, secure):
    auth = AuthSettings(verify=right, allow_plaintext=True)
    async with smtp_site(listener=secure(auth=auth)) as site:
        client = await site.greeted()
        assert await logged_in(client)
        assert (await client.say(b"STARTTLS")).startswith(b"503 5.5.1 ")
        assert b"STARTTLS" not in await client.say(b"EHLO client.example")


async def test_author(smtp_site, open_listener):
    """MAIL AUTH= is known where AUTH is."""
    async with smtp_site(listener=open_listener()) as site:
        client = await site.greeted()
        assert (await client.say(b"MAIL FROM:<a@b> AUTH=x+zz")).startswith(b"501 ")
        assert (await client.say(b"MAIL FROM:<a@b> AUTH=ann+2Bx")).startswith(b"250 ")
        assert site.handler.calls[-1][2] == {b"AUTH": b"ann+2Bx"}
    async with smtp_site() as site:
        client = await site.greeted()
        assert (await client.say(b"MAIL FROM:<a@b> AUTH=<>")).startswith(b"555 ")


async def test_endless_noise(smtp_site, secure, monkeypatch):
    """Too slow to be too much."""
    monkeypatch.setattr(channel, "MAX_NOISE", 0.2)
    monkeypatch.setattr(channel, "QUIET", 5)
    async with smtp_site(listener=secure()) as site:
        client = await site.greeted()
        client.send(b"STARTTLS\r\nx")

        async with client.dripping():
            assert await client.reply() == b"554 5.5.0 Error: SMTP protocol synchronization\r\n"


@pytest.mark.parametrize("implicit", [False, True])
async def test_drain_does_not_wait_for_handshakes(smtp_site, secure, implicit):
    async with smtp_site(listener=secure(implicit=implicit)) as site:
        client = await site.connect()
        await site.until(lambda: site.server.connections)
        if not implicit:
            await client.hello()
            await client.say(b"STARTTLS")
        async with asyncio.timeout(3):
            await site.server.drain(60)


async def test_handshake_behind_a_proxy_header(smtp_site, secure, client_context):
    """The load balancer's header and the begin of the handshake come in one segment."""
    listener = replace(secure(implicit=True), proxy_protocol_from=(ip_network("127.0.0.0/8"),))
    async with smtp_site(listener=listener) as site:
        client = await site.connect()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context().wrap_bio(incoming, outgoing, server_hostname="mx.example")
        client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 465\r\n")

        async def turn(step):
            async with asyncio.timeout(10):
                while True:
                    try:
                        done = step()
                    except ssl.SSLWantReadError:
                        client.send(outgoing.read())
                        incoming.write(await client.reader.read(2**16))
                    else:
                        client.send(outgoing.read())
                        return done

        await turn(tls.do_handshake)
        assert await turn(lambda: tls.read(100)) == b"220 mx.example ESMTP\r\n"
        assert site.handler.info.address == "192.0.2.7"


async def test_requiretls_only_where_it_can_be_kept(smtp_site, secure, client_context):
    refused = b"555 5.5.4 Unsupported option: REQUIRETLS\r\n"
    for able in (True, False):
        async with smtp_site(features=Features(requiretls=able), listener=secure()) as site:
            client = await site.connect()
            assert b"REQUIRETLS" not in await client.hello()
            assert await client.say(b"MAIL FROM:<a@b> REQUIRETLS") == refused
            client = await secured(site, client_context())
            assert (b"REQUIRETLS" in await client.say(b"EHLO client.example")) == able
            reply = await client.say(b"MAIL FROM:<a@b> REQUIRETLS")
            assert reply == (b"250 2.1.0 Ok\r\n" if able else refused)
