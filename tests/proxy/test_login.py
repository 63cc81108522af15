"""TLS and login through the whole proxy: who may relay, what milters and next hops learn."""

import asyncio
import base64
import smtplib
import ssl
from pathlib import Path
from typing import Any

import pytest

from milterchain.milter.flags import Command
from milterchain.milter.messages import Connect, Reject, TempFail
from milterchain.proxy.passwords import PasswordHash
from milterchain.testing.faults import Close
from milterchain.testing.scripted_next_hop import KEYWORDS, ScriptedNextHop

CERTIFICATES = Path(__file__).parents[1] / "certificates"
TLS = {"certificate": str(CERTIFICATES / "server.pem"), "key": str(CERTIFICATES / "server.key")}
ANN = "AUTH PLAIN " + base64.b64encode(b"\0ann\0secret").decode()
CLOSED = {"trusted_networks": [], "relay_domains": []}
OFFERED = (*KEYWORDS, "AUTH PLAIN LOGIN")
WRONG = "535 5.7.8 Error: authentication failed"
TOO_MANY = "454 4.7.0 Error: too many failed logins, try again later"
DENIED = "554 5.7.1 <b@example.net>: Relay access denied"


def context(certificate: str | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=CERTIFICATES / "authority.pem")
    if certificate is not None:
        made.load_cert_chain(CERTIFICATES / f"{certificate}.pem", CERTIFICATES / f"{certificate}.key")
    return made


async def starttls(client: Any, made: ssl.SSLContext | None = None) -> None:
    """From the greeting to EHLO under TLS."""
    assert (await client.reply()).startswith("220 ")
    assert "STARTTLS" in await client.say("EHLO client.example")
    assert (await client.say("STARTTLS")).startswith("220 ")
    async with asyncio.timeout(10):
        await client._writer.start_tls(made or context(), server_hostname="mx.example")
    assert (await client.say("EHLO secure.example")).startswith("250-")


def listen(**keys: Any) -> list[dict[str, Any]]:
    return [{"address": "127.0.0.1:0", "tls": TLS, **keys}]


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"ann:{PasswordHash.make(b'secret')}\n")
    return path


async def test_tls_is_told(world: Any) -> None:
    tls = {**TLS, "client_certificates": "request", "client_ca": str(CERTIFICATES / "authority.pem")}
    await world.start({}, listen=listen(tls=tls))
    client = await world.client()
    await starttls(client, context("client"))
    await client.envelope()
    assert (await client.send()).startswith("250 ")
    milter = world.milters[0].connections[0]
    assert milter.codes.startswith("OCHH")
    assert milter.macros(Command.HELO)[b"{tls_version}"] == b"TLSv1.3"
    assert milter.macros(Command.HELO)[b"{cipher}"] == b"TLS_AES_256_GCM_SHA384"
    assert milter.macros(Command.HELO)[b"{cipher_bits}"] == b"256"
    assert milter.macros(Command.HELO)[b"{cert_subject}"] == b"client.example"
    assert milter.macros(Command.HELO)[b"{cert_issuer}"] == b"Example authority"
    (message,) = world.hop.accepted
    assert message.data.startswith(
        b"Received: from secure.example (unknown [127.0.0.1])\r\n"
        b"\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits))\r\n"
        b'\t(Client CN "client.example", Issuer "Example authority" (verified OK))\r\n'
        b"\tby mx.test (milterchain) with ESMTPS id "
    )


@pytest.mark.parametrize("lookup", [False, True])
async def test_implicit_tls(world: Any, lookup: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    await world.start({}, listen=listen(tls={**TLS, "mode": "implicit"}), dns={"lookup": lookup})
    address = world.app.addresses[0]
    reader, writer = await asyncio.open_connection(
        address.host, address.port, ssl=context(), server_hostname="mx.example"
    )
    client = type(await world.client())(reader, writer)
    await client.begin()
    assert (await client.send()).startswith("250 ")
    await client.close()
    (message,) = world.hop.accepted
    assert b"(localhost [127.0.0.1])" in message.data if lookup else b"(unknown [127.0.0.1])" in message.data
    assert b"(No client certificate requested)" in message.data
    assert b" with ESMTPS id " in message.data


async def test_whoever_has_logged_in_may_send_to_anybody(world: Any, users: Path, log: Any) -> None:
    auth = {"backend": "file", "path": str(users)}
    await world.start({}, listen=listen(auth=auth), access=CLOSED)
    client = await world.client()
    await starttls(client)
    await client.say("MAIL FROM:<a@example.org>")
    assert await client.say("RCPT TO:<b@example.net>") == DENIED
    await client.say("RSET")
    assert await client.say(ANN) == "235 2.7.0 Authentication successful"
    await client.envelope()
    assert (await client.send()).startswith("250 ")
    macros = world.milters[0].connections[0].macros(Command.MAIL)
    assert (macros[b"{auth_type}"], macros[b"{auth_authen}"]) == (b"PLAIN", b"ann")
    assert b" with ESMTPSA id " in world.hop.accepted[0].data
    assert '"event": "login"' in log.getvalue()
    assert "secret" not in log.getvalue()


async def test_wrong_passwords(world: Any, users: Path, log: Any) -> None:
    auth = {"backend": "file", "path": str(users)}
    await world.start(listen=listen(auth=auth), access=CLOSED)
    client = await world.client()
    await starttls(client)
    for wrong in (b"\0ann\0wrong", b"bob\0ann\0secret"):
        command = "AUTH PLAIN " + base64.b64encode(wrong).decode()
        assert await client.say(command) == "535 5.7.8 Error: authentication failed"
    await client.say("MAIL FROM:<a@example.org>")
    assert await client.say("RCPT TO:<b@example.net>") == DENIED
    assert log.getvalue().count('"login failed"') == 2
    assert '"client": "127.0.0.1"' in log.getvalue()


async def guess(world: Any, times: int) -> list[str]:
    """The answers to wrong passwords, and at last to the right one, each in a session of its own."""
    replies = []
    for command in [*["AUTH PLAIN " + base64.b64encode(b"\0ann\0wrong").decode()] * times, ANN]:
        client = await world.client()
        await client.reply()
        await client.say("EHLO client.example")
        replies.append(await client.say(command))
        await client.close()
    return replies


@pytest.mark.parametrize("backend", ["file", "next-hop"])
async def test_failed_logins_of_all_sessions_count(world: Any, users: Path, log: Any, backend: str) -> None:
    auth = {"backend": backend, "allow_plaintext": True}
    if backend == "file":
        auth["path"] = str(users)
    hop = await world._stack.enter_async_context(ScriptedNextHop({"AUTH": WRONG}, keywords=OFFERED))
    await world.start(
        {},
        listen=[{"address": "127.0.0.1:0", "auth": auth}],
        access=CLOSED,
        limits={"failed_logins": 1},
        relay={"next_hop": [hop.next_hop], "client_identity": "none"},
    )
    assert await guess(world, 2) == [WRONG, TOO_MANY, TOO_MANY]
    assert log.getvalue().count('"login failed"') == 3
    asked = sum("AUTH" in each.verbs for each in hop.connections)
    assert asked == (1 if backend == "next-hop" else 0)


async def test_users_behind_a_trusted_address_do_not_lock_each_other_out(world: Any, users: Path) -> None:
    auth = {"backend": "file", "path": str(users), "allow_plaintext": True}
    await world.start({}, listen=[{"address": "127.0.0.1:0", "auth": auth}], limits={"failed_logins": 1})
    assert await guess(world, 1) == [WRONG, "235 2.7.0 Authentication successful"]


async def next_hop_world(world: Any, script: dict[str, Any], keywords: tuple[str, ...] = OFFERED) -> Any:
    hop = await world._stack.enter_async_context(ScriptedNextHop(script, keywords=keywords))
    await world.start(
        {},
        listen=listen(auth={"backend": "next-hop"}),
        access=CLOSED,
        relay={"next_hop": [hop.next_hop], "client_identity": "none", "tls": "none"},
    )
    return hop


async def test_the_next_hop_decides(world: Any) -> None:
    hop = await next_hop_world(world, {"AUTH": "235 2.7.0 ok"})
    client = await world.client()
    await starttls(client)
    assert (await client.say("AUTH LOGIN YW5u", "c2VjcmV0")).startswith("235 ")
    for _ in range(2):
        await client.envelope()
        assert (await client.send()).startswith("250 ")
    stranger = await world.client()
    await stranger.begin_mail()
    assert await stranger.say("RCPT TO:<b@example.net>") == DENIED
    # The first connection is that of the start, which asked what is offered.
    logins = [each for each in hop.connections if "AUTH" in each.verbs]
    (mine,) = logins
    assert mine.verbs.endswith("AUTH MAIL RCPT DATA . MAIL RCPT DATA .")
    assert ANN.encode() in mine.commands


async def test_the_next_hop_refuses(world: Any) -> None:
    await next_hop_world(world, {"AUTH": "535 5.7.8 go away"})
    client = await world.client()
    await starttls(client)
    assert await client.say(ANN) == "535 5.7.8 go away"


async def test_the_next_hop_is_gone(world: Any, log: Any) -> None:
    await next_hop_world(world, {"AUTH": [Close()]})
    client = await world.client()
    await starttls(client)
    assert await client.say(ANN) == "454 4.7.0 Temporary authentication failure"
    assert '"login failed"' in log.getvalue()


async def test_the_next_hop_has_no_logins(world: Any) -> None:
    await next_hop_world(world, {}, KEYWORDS)
    client = await world.client()
    await starttls(client)
    assert "AUTH" not in await client.say("EHLO secure.example")


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [(Reject(), "550 5.7.1 Command rejected"), (TempFail(), "454 4.3.0 Try again later")],
)
async def test_a_standing_refusal(world: Any, verdict: Any, answer: str) -> None:
    auth = {"backend": "next-hop", "allow_plaintext": True}
    await world.start({Command.HELO: verdict}, listen=listen(auth=auth))
    client = await world.client()
    await client.reply()
    await client.say("EHLO client.example")
    assert await client.say("STARTTLS") == answer
    assert await client.say(ANN) == answer


async def test_connect_is_told_once(world: Any) -> None:
    await world.start({}, listen=listen())
    client = await world.client()
    await starttls(client)
    assert len(world.milters[0].connections[0].of(Connect)) == 1


async def test_only_who_has_logged_in_says_who_wrote(world: Any, users: Path) -> None:
    auth = {"backend": "file", "path": str(users), "allow_plaintext": True}
    hop = await world._stack.enter_async_context(ScriptedNextHop({}, keywords=OFFERED))
    await world.start({}, listen=listen(auth=auth), relay={"next_hop": [hop.next_hop], "tls": "none"})
    client = await world.client()
    await client.reply()
    await client.say("EHLO client.example")
    for login in (None, ANN):
        if login is not None:
            await client.say(login)
        await client.say("MAIL FROM:<a@example.org> AUTH=ann+2Bx", "RCPT TO:<b@example.net>")
        assert (await client.send()).startswith("250 ")
    assert [message.mail for message in hop.accepted] == [
        b"MAIL FROM:<a@example.org> AUTH=<>",
        b"MAIL FROM:<a@example.org> AUTH=ann+2Bx",
    ]
    macros = world.milters[0].connections[0].macros(Command.MAIL)
    assert macros[b"{auth_author}"] == b"ann+2Bx"


@pytest.mark.parametrize("implicit", [False, True])
async def test_pythons_own_client(world: Any, users: Path, implicit: bool) -> None:  # noqa: FBT001
    tls = {**TLS, "mode": "implicit"} if implicit else TLS
    auth = {"backend": "file", "path": str(users), "required": True}
    await world.start({}, listen=listen(tls=tls, auth=auth), access=CLOSED)
    port = world.app.addresses[0].port

    def send() -> dict[str, Any]:
        client: smtplib.SMTP
        if implicit:
            client = smtplib.SMTP_SSL("localhost", port, context=context(), timeout=10)
        else:
            client = smtplib.SMTP("localhost", port, timeout=10)
            client.starttls(context=context())
        with client:
            client.login("ann", "secret")
            return client.sendmail("a@example.org", ["b@example.net"], "Subject: hi\n\nHello\n")

    assert await asyncio.to_thread(send) == {}
    assert b" with ESMTPSA id " in world.hop.accepted[0].data
