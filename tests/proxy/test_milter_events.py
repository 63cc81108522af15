"""What a milter hears of an SMTP session, through the whole proxy."""

import re
import socket
from typing import Any

import pytest

from milterchain.milter.flags import Command, Family
from milterchain.milter.messages import (
    Body,
    Connect,
    Continue,
    Header,
    Helo,
    Mail,
    Rcpt,
    Reject,
)

IPV6 = pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")


async def greeted(world: Any, **tables: Any) -> Any:
    """A proxy with one milter, and a client that has said EHLO."""
    await world.start({}, **tables)
    client = await world.client()
    await client.reply()
    await client.say("EHLO  client.example ")
    return client


def heard(world: Any) -> Any:
    (connection,) = world.milters[0].connections
    assert not connection.violations
    return connection


@IPV6
async def test_an_ipv6_client(world: Any) -> None:
    await greeted(world, listen=[{"address": "[::1]:0", "name": "mx"}])
    connection = heard(world)
    (connect,) = connection.of(Connect)
    assert (connect.hostname, connect.family, connect.address) == (b"[::1]", Family.INET6, b"::1")
    macros = connection.macros(Command.CONNECT)
    assert macros[b"{client_addr}"] == b"IPv6:::1"
    assert macros[b"{client_port}"] == b"%d" % connect.port
    assert macros[b"{client_name}"] == macros[b"{client_ptr}"] == b"unknown"
    assert macros[b"{client_resolve}"] == b"FAIL"
    assert macros[b"_"] == b"unknown [::1]"
    assert macros[b"{daemon_addr}"] == b"::1"
    assert macros[b"{daemon_name}"] == b"mx"
    assert macros[b"j"] == b"mx.test"


async def test_milters_get_the_host_name_for_a_listener_without_one(world: Any) -> None:
    await greeted(world)
    assert heard(world).macros(Command.CONNECT)[b"{daemon_name}"] == b"mx.test"


async def test_commands_and_arguments_as_typed(world: Any) -> None:
    client = await greeted(world)
    await client.say("MAIL FROM:<A.b@Example.ORG> BODY=8bitmime SIZE=30 ret=hdrs ENVID=x+20y")
    await client.say('RCPT TO:<"quo ted"@Example.NET> NOTIFY=never ORCPT=rfc822;q@x')
    await client.say("RCPT TO:<bare@x.example>")
    assert (await client.send()).startswith("250 ")
    connection = heard(world)
    assert connection.of(Helo) == [Helo(b"client.example")]
    assert connection.of(Mail) == [
        Mail(b"<A.b@Example.ORG>", (b"BODY=8bitmime", b"SIZE=30", b"ret=hdrs", b"ENVID=x+20y"))
    ]
    assert connection.of(Rcpt) == [
        Rcpt(b'<"quo ted"@Example.NET>', (b"NOTIFY=never", b"ORCPT=rfc822;q@x")),
        Rcpt(b"<bare@x.example>"),
    ]
    (message,) = world.hop.accepted
    assert b" RET=hdrs" in message.mail or b" ret=hdrs" in message.mail
    assert b"NOTIFY=never ORCPT=rfc822;q@x" in message.rcpts[0]


async def test_parameters_are_told_again_with_the_envelope(world: Any) -> None:
    refuse = lambda rcpt: Reject() if b"bad@" in rcpt.address else Continue()  # noqa: E731
    await world.start({}, {Command.RCPT: refuse})
    client = await world.client()
    await client.reply()
    await client.say("EHLO client.example", "MAIL FROM:<> RET=FULL")
    await client.say("RCPT TO:<bad@example.net> NOTIFY=NEVER")
    await client.say("RCPT TO:<b@example.net> NOTIFY=DELAY")
    assert (await client.send()).startswith("250 ")
    connection = world.milters[0].connections[0]
    assert connection.codes == "OCHMRRAMRTLLNBE"
    assert connection.of(Mail) == [Mail(b"<>", (b"RET=FULL",))] * 2
    assert connection.of(Rcpt)[-1] == Rcpt(b"<b@example.net>", (b"NOTIFY=DELAY",))
    assert connection.macros(Command.MAIL)[b"{mail_addr}"] == b""


@pytest.mark.parametrize("command", ["NOOP", "VRFY a@b", "HELP", "RSET", "DATA", "RCPT TO:<b@example.net>"])
async def test_what_milters_do_not_hear_of(world: Any, command: str) -> None:
    client = await greeted(world)
    await client.say(command)
    assert heard(world).codes == "OCH"


@pytest.mark.parametrize(
    ("commands", "codes"),
    [
        (["MAIL FROM:a b"], "OCH"),
        (["MAIL FROM:<a@b> SIZE=999999999"], "OCH"),
        (["MAIL FROM:<a@b> WHAT=EVER"], "OCH"),
        (["MAIL FROM:<a@b>", "MAIL FROM:<c@d>"], "OCHM"),
        (["MAIL FROM:<a@b>", "RCPT TO:nobody at all"], "OCHM"),
        (["MAIL FROM:<a@b>", "RCPT TO:<x@y> WHAT=EVER"], "OCHM"),
        (["MAIL FROM:<a@b>", "DATA"], "OCHM"),
        (["MAIL FROM:<a@b>", "RCPT TO:<1@b>", "RCPT TO:<2@b>", "RCPT TO:<3@b>"], "OCHMRR"),
    ],
)
async def test_what_the_server_refuses_by_itself(world: Any, commands: list[str], codes: str) -> None:
    client = await greeted(world, limits={"recipients": 2})
    assert (await client.say(*commands))[:1] in {"4", "5"}
    assert heard(world).codes == codes


@pytest.mark.parametrize(
    ("limits", "data", "code"),
    [
        ({"message_size": "1KiB"}, b"Subject: hi\r\n\r\n" + b"x" * 2000 + b"\r\n", "552"),
        ({}, b"Subject: " + b"x" * 70_000 + b"\r\n\r\n", "552"),
        ({"received_hops": 2}, b"Received: x\r\n" * 2 + b"\r\n", "554"),
    ],
)
async def test_a_message_beyond_a_limit_is_aborted(
    world: Any, limits: dict[str, Any], data: bytes, code: str
) -> None:
    client = await greeted(world, limits=limits)
    await client.envelope()
    assert (await client.send(data)).startswith(code)
    await world.milters[0].wait_for(lambda: heard(world).codes == "OCHMRTA")
    assert not world.hop.messages
    await client.envelope()
    assert (await client.send(b"Subject: hi\r\n\r\n")).startswith("250 ")
    assert heard(world).codes == "OCHMRTAMRTLNE"


@pytest.mark.parametrize(
    ("data", "codes", "headers", "body", "relayed"),
    [
        (b"", "NE", [], b"", b""),
        (b"\r\n", "NE", [], b"", b"\r\n"),
        (b"A: b\r\n", "LNE", [(b"A", b"b")], b"", None),
        (b"A: b\r\n\r\n", "LNE", [(b"A", b"b")], b"", None),
        (b"no header\r\n", "NBE", [], b"no header\r\n", None),
        (b"A: b\r\nbody: \r\n\r\nx\r\n", "LLNBE", [(b"A", b"b"), (b"body", b"")], b"x\r\n", None),
        # With a header of ours, the separator that was left out is put in.
        (b"A: b\r\nbody here\r\n", "LNBE", [(b"A", b"b")], b"body here\r\n", b"A: b\r\n\r\nbody here\r\n"),
        (b"From x Mon\r\nA: b\r\n\r\n", "LLNE", [(b"X-Mailbox-Line", b"From x Mon"), (b"A", b"b")], b"",
         b"X-Mailbox-Line: From x Mon\r\nA: b\r\n\r\n"),
        (b"A : b \r\nB:\tc\r\n  d\r\nC:\r\n\r\n", "LLLNE", [(b"A", b"b "), (b"B", b"\tc\n  d"), (b"C", b"")],
         b"", None),
        (b"A: b\0c\r\n\r\n\0body\0\r\n", "LNBE", [(b"A", b"bc")], b"\0body\0\r\n",
         b"A: bc\r\n\r\n\0body\0\r\n"),
        (b"A: b\nC: d\r\n\r\n..x\ry\nz\r\n", "LLNBE", [(b"A", b"b"), (b"C", b"d")], b".x y\r\nz\r\n",
         b"A: b\r\nC: d\r\n\r\n.x y\r\nz\r\n"),
        (b"A: \xff\xfe\r\n\r\n\xff\r\n", "LNBE", [(b"A", b"\xff\xfe")], b"\xff\r\n", None),
        (b"A: b\r\n\r\n" + b"x" * 65534 + b"\r\n", "LNBBE", [(b"A", b"b")], b"x" * 65534 + b"\r\n", None),
    ],
)  # fmt: skip
async def test_content(
    world: Any,
    data: bytes,
    codes: str,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    relayed: bytes | None,
) -> None:
    """Two milters get the same, and the next hop what they saw."""
    await world.start({}, {})
    client = await world.client()
    await client.begin()
    assert (await client.send(data)).startswith("250 ")
    for milter in world.milters:
        (connection,) = milter.connections
        assert connection.codes == f"OCHMRT{codes}"
        assert [(header.name, header.value) for header in connection.of(Header)] == headers
        assert b"".join(piece.chunk for piece in connection.of(Body)) == body
        assert all(len(piece.chunk) == 65535 for piece in connection.of(Body)[:-1])
    received = re.match(rb"Received:.*\r\n(?:\t.*\r\n)*", world.hop.accepted[0].data)
    assert received is not None
    rest = world.hop.accepted[0].data[received.end() :]
    assert rest in {data if relayed is None else relayed, b"\r\n" + data}
