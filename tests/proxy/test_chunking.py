"""BDAT through the whole proxy: to next hops that know BINARYMIME, and to those that do not."""

import pytest

from milterchain.errors import QuarantineError
from milterchain.mail.envelope import Path
from milterchain.milter.flags import Command
from milterchain.milter.messages import Accept, Body, Quarantine, Reject
from milterchain.proxy.nexthop import SMTPHop
from milterchain.proxy.quarantine import Quarantine as Store
from milterchain.proxy.relay import NextHops
from milterchain.proxy.release import release
from milterchain.smtp.handler import Features
from milterchain.testing import ScriptedNextHop
from milterchain.testing.scripted_next_hop import KEYWORDS

HEAD = b"Subject: x\r\n\r\n"
BINARY = HEAD + b"\x00\n\r.\r\n.\r\n\xff\r\r\nno end"
CHUNKING = (*KEYWORDS, "CHUNKING")
EVERYTHING = (*CHUNKING, "BINARYMIME")


async def say_chunk(client, data, *, last=True):
    client.write(b"BDAT %d%b\r\n" % (len(data), b" LAST" if last else b"") + data)
    return await client.reply()


@pytest.fixture
async def binary_hop():
    async with ScriptedNextHop(keywords=EVERYTHING) as hop:
        yield hop


async def begin(client, parameters=""):
    await client.reply()
    offered = await client.say("EHLO client.example")
    await client.say(f"MAIL FROM:<a@example.org>{parameters}")
    assert (await client.say("RCPT TO:<b@example.net>")).startswith("250 ")
    return offered.split("\n250")


async def test_text_goes_on_by_data(world):
    await world.start({})
    client = await world.client()
    assert "-BINARYMIME" not in await begin(client)
    assert await say_chunk(client, HEAD + b".a\n", last=False) == "250 2.0.0 Ok: 17 octets"
    assert (await say_chunk(client, b"b")).startswith("250 ")
    (message,) = world.hop.accepted
    assert message.data.endswith(HEAD + b".a\r\nb\r\n")
    assert not message.chunked
    assert not world.hop.connections[0].violations
    (milter,) = world.milters
    assert b"".join(body.chunk for body in milter.connections[0].of(Body)) == b".a\r\nb\r\n"


async def test_binary_goes_on_as_it_is(world, binary_hop):
    await world.start({}, relay={"next_hop": [binary_hop.next_hop]})
    client = await world.client()
    offered = await begin(client, " BODY=BINARYMIME")
    assert {"-CHUNKING", "-BINARYMIME"} <= set(offered)
    assert (await say_chunk(client, BINARY[:20], last=False)).startswith("250 ")
    assert (await say_chunk(client, BINARY[20:])).startswith("250 ")
    (message,) = binary_hop.accepted
    assert message.mail == b"MAIL FROM:<a@example.org> BODY=BINARYMIME"
    assert message.chunked
    assert message.data.startswith(b"Received: ")
    assert message.data.endswith(BINARY)
    (milter,) = world.milters
    assert b"".join(body.chunk for body in milter.connections[0].of(Body)) == BINARY[len(HEAD) :]
    # The connection is in order afterwards.
    assert (await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.net>")).startswith("250 ")
    assert (await client.send()).startswith("250 ")
    assert len(binary_hop.connections) == 1
    assert not binary_hop.connections[0].violations


@pytest.mark.parametrize("keywords", [KEYWORDS, CHUNKING, (*KEYWORDS, "BINARYMIME")])
async def test_a_hop_that_has_changed_gets_nothing_binary(keywords):
    async with ScriptedNextHop(keywords=keywords) as hop:
        hops = NextHops([SMTPHop("127.0.0.1", hop.port)])
        transaction = hops.begin(Path(b"<a@example.org>", (b"body=BinaryMIME",)))
        reply = await transaction.rcpt(Path(b"<b@example.net>"))
        assert str(reply) == "451 4.6.3 The next hop does not support binary messages"
        await transaction.abort()
        await hops.close()
        assert hop.connections[0].verbs == "EHLO QUIT"


@pytest.mark.parametrize(
    ("keywords", "features"),
    [
        (["CHUNKING", "BINARYMIME"], Features(binarymime=True)),
        (["BINARYMIME"], Features()),
        (["LIMITS MAILMAX=5 rcptmax=50"], Features(recipients=50)),
        (["LIMITS RCPTMAX=0"], Features()),
        (["LIMITS RCPTMAX=1000000 X"], Features()),
    ],
)
async def test_what_hops_offer(keywords, features):
    async with ScriptedNextHop(keywords=keywords) as hop:
        hops = NextHops([SMTPHop("127.0.0.1", hop.port)])
        await hops.probe()
        assert hops.features == features
        await hops.close()


async def test_a_binary_message_is_held_and_released_as_it_is(world, binary_hop):
    script = {Command.END_OF_MESSAGE: [Quarantine(b"look at it"), Accept()]}
    await world.start(script, relay={"next_hop": [binary_hop.next_hop]})
    client = await world.client()
    await begin(client, " BODY=BINARYMIME")
    assert (await say_chunk(client, BINARY)).startswith("250 ")
    store = Store(world.directory / "quarantine")
    (name,) = store.ids()
    async with ScriptedNextHop() as other:
        hops = NextHops([SMTPHop("127.0.0.1", other.port)])
        with pytest.raises(QuarantineError, match=r"4\.6\.3"):
            await release(store, name, hops)
        await hops.close()
        assert not other.messages
    hops = NextHops([SMTPHop("127.0.0.1", binary_hop.port)])
    await release(store, name, hops)
    await hops.close()
    (message,) = binary_hop.accepted
    assert message.chunked
    assert message.data.endswith(BINARY)


async def test_so_many_messages_in_a_connection(world):
    await world.start(limits={"messages_per_connection": 1})
    client = await world.client()
    offered = await begin(client)
    assert " LIMITS MAILMAX=1 RCPTMAX=1000" in offered
    assert (await client.send()).startswith("250 ")
    assert (await client.say("MAIL FROM:<a@example.org>")).startswith("452 4.5.3 ")


@pytest.mark.parametrize(
    "said", ["FOO", "NOOP", "VRFY x", "ETRN x", "MAIL FROM:<c@example.org>", "AUTH PLAIN"]
)
async def test_nothing_said_between_chunks_gets_around_a_milter(world, said):
    await world.start({Command.END_OF_MESSAGE: Reject()}, milter={"default_action": "accept"})
    client = await world.client()
    await begin(client)
    assert (await say_chunk(client, HEAD, last=False)).startswith("250 ")
    await client.say(said)
    assert (await say_chunk(client, b"spam\r\n")).startswith("550 ")
    assert not world.hop.accepted
    assert world.milters[0].connections[0].codes == "OCHMRTLNBE"
