"""BDAT: whole, byte by byte, pipelined, refused, hostile."""

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from milterchain.errors import SMTPSyntaxError
from milterchain.mail.canonical import canonical
from milterchain.mail.headers import HeaderLimits
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.smtp.chunking import MAX_REPEATED, Chunk, ChunkReader, is_bdat, parse_bdat
from milterchain.smtp.data import MessageReceiver
from milterchain.smtp.handler import Features

HEAD = b"Subject: x\r\n\r\n"
BINARY = HEAD + b"\x00\n\r.\r\n.\r\n\xff\r\r\nno end"
ENVELOPE = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
OK = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n"
TAKEN = b"250 2.0.0 Taken\r\n"
NEED_RCPT = b"503 5.5.1 Error: need RCPT command\r\n"


def bdat(data, *, last=True):
    return b"BDAT %d%b\r\n" % (len(data), b" LAST" if last else b"") + data


@pytest.mark.parametrize(
    ("line", "chunk"),
    [
        (b"BDAT 0 LAST", Chunk(0, True)),
        (b"bdat\t5  ", Chunk(5, False)),
        (b"Bdat 00012 last", Chunk(12, True)),
        (b"BDAT " + b"9" * 18, Chunk(int("9" * 18), False)),
    ],
)
def test_command(line, chunk):
    assert is_bdat(line)
    assert parse_bdat(line) == chunk


@pytest.mark.parametrize(
    "line",
    [
        *(b"BDAT", b"BDAT ", b"BDAT LAST", b"BDAT -1", b"BDAT +1", b"BDAT 0x5", b"BDAT 5 FIRST", b"BDAT5"),
        *(b"BDAT 5 LAST x", b"BDAT 5\x00", b"BDAT 5LAST", b"BDAT 1 2", b"BDAT " + b"9" * 19),
        *("BDAT \u0665".encode(), b"BDAT 5 LAST" + b" " * 5 + b"\r"),
    ],
)
def test_no_command(line):
    assert is_bdat(line)
    with pytest.raises(SMTPSyntaxError):
        parse_bdat(line)


def receive(octets, pieces, sizes, *, binary=False):
    """What comes of octets that arrive in pieces and were announced in chunks; the input has a tail."""
    receiver = MessageReceiver(size_limit=10_000, hops=100, binary=binary)
    arriving = iter([*pieces, b"QUIT\r\n"])
    buffer = bytearray()
    for size in sizes:
        reader = ChunkReader(size, receiver)
        while not reader.feed(buffer):
            buffer += next(arriving)
        assert reader.missing == 0
    rest = bytes(buffer) + b"".join(arriving)
    receiver.end()
    received = receiver.finish()
    assert isinstance(received, Message), octets
    with received:
        assert received.binary == binary
        return b"".join(received.chunks()), rest


def cut(data, places):
    places = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


hostile = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.\r\n", b"a", b"\0", b"BDAT 3\r\n", b": "])
)


@given(hostile.map(b"".join), st.lists(st.integers(0, 200)), st.lists(st.integers(0, 200)), st.booleans())
@example(b"", [], [], True)
@example(b"\r\n", [1], [1], True)
@example(b"a: b\r\n\r\n\r", [9], [8, 8], True)
def test_cuts_change_nothing(body, cuts, chunks, binary):
    octets = HEAD + body
    sizes = [len(chunk) for chunk in cut(octets, chunks)]
    expected = octets if binary else canonical(octets)
    for pieces in (cut(octets, cuts), [octets], [octets[at : at + 1] for at in range(len(octets))]):
        assert receive(octets, pieces, sizes, binary=binary) == (expected, b"QUIT\r\n")


@given(hostile.map(b"".join), st.lists(st.integers(0, 200)))
def test_headers_are_text_though_the_body_is_not(octets, cuts):
    whole = receive(octets, [octets], [len(octets)], binary=True)
    assert receive(octets, cut(octets, cuts), [len(octets)], binary=True) == whole
    end = 2 if whole[0].startswith(b"\r\n") else (whole[0] + b"\r\n\r\n").index(b"\r\n\r\n") + 4
    head = whole[0][:end]
    assert canonical(head) == head


async def begin(site, extra=b""):
    client = await site.greeted()
    client.send(ENVELOPE.replace(b"<a@b>", b"<a@b>" + extra))
    assert await client.reply() + await client.reply() == OK
    return client


async def test_messages_in_chunks(smtp_site):
    async with smtp_site() as site:
        client = await begin(site)
        client.send(bdat(HEAD, last=False))
        assert await client.reply() == b"250 2.0.0 Ok: 14 octets\r\n"
        client.send(bdat(b".\r\n..\r\n.", last=False))
        assert await client.reply() == b"250 2.0.0 Ok: 8 octets\r\n"
        assert await client.say(b"BDAT 0 LAST") == TAKEN
        client.send(ENVELOPE + bdat(HEAD + b"bare\n and \r bare\r\n"))
        assert await client.reply() + await client.reply() + await client.reply() == OK + TAKEN
        await client.transaction()
        assert await client.say(HEAD + b"data\r\n.") == TAKEN
        assert site.handler.messages == [
            HEAD + b".\r\n..\r\n.\r\n",
            HEAD + b"bare\r\n and   bare\r\n",
            HEAD + b"data\r\n",
        ]
        transaction = ["mail", "rcpt", "data", "message"]
        assert site.handler.names() == ["connect", "helo", *transaction * 3]


async def test_one_group_with_all_its_chunks(smtp_site):
    async with smtp_site() as site:
        client = await begin(site)
        client.send(
            b"".join(bdat(part, last=False) for part in (HEAD, b"a", b"", b"b\r\n")) + b"BDAT 0 LAST\r\n"
        )
        client.send(b"QUIT\r\n")
        replies = await client.rest()
        assert replies.count(b"250 2.0.0 Ok: ") == 4
        assert replies.endswith(b"0 octets\r\n250 2.0.0 Ok: 3 octets\r\n" + TAKEN + b"221 2.0.0 Bye\r\n")
        assert site.handler.messages == [HEAD + b"ab\r\n"]


async def test_octet_by_octet(smtp_site):
    async with smtp_site() as site:
        client = await begin(site)
        stream = bdat(HEAD, last=False) + bdat(b"RSET\r\n.\r\n", last=True)
        for at in range(len(stream)):
            client.send(stream[at : at + 1])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert await client.reply() + await client.reply() == b"250 2.0.0 Ok: 14 octets\r\n" + TAKEN
        assert site.handler.messages == [HEAD + b"RSET\r\n.\r\n"]


async def test_binary_messages_pass_as_they_are(smtp_site):
    async with smtp_site(features=Features(binarymime=True)) as site:
        client = await begin(site, b" BODY=BINARYMIME")
        assert await client.say(b"DATA") == b"503 5.5.1 Error: BODY=BINARYMIME needs BDAT\r\n"
        client.send(bdat(BINARY[:20], last=False) + bdat(BINARY[20:]))
        assert await client.reply() + await client.reply() == b"250 2.0.0 Ok: 20 octets\r\n" + TAKEN
        assert site.handler.messages == [BINARY]
        assert site.handler.calls[2][2] == {b"BODY": b"BINARYMIME"}


async def test_smuggled_commands_stay_octets(smtp_site):
    evil = HEAD + b"\r\n.\r\nMAIL FROM:<evil@x>\r\nBDAT 3 LAST\r\n.\n.\r\n"
    async with smtp_site() as site:
        client = await begin(site)
        client.send(bdat(evil) + b"NOOP\r\n")
        assert await client.reply() + await client.reply() == TAKEN + b"250 2.0.0 Ok\r\n"
        assert site.handler.count("mail") == 1


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ([], NEED_RCPT),
        ([b"MAIL FROM:<a@b>"], b"554 5.5.1 Error: no valid recipients\r\n"),
        ([b"HELO c", b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>"], b"503 5.5.1 Error: CHUNKING not announced\r\n"),
    ],
)
async def test_chunks_out_of_order_are_read(smtp_site, said, reply):
    async with smtp_site(synchronized=False) as site:
        client = await site.greeted()
        for line in said:
            await client.say(line)
        client.send(bdat(b"QUIT\r\n", last=False) * 3 + bdat(b"QUIT\r\n") + b"NOOP\r\n")
        assert [await client.reply() for _ in range(5)] == [reply] * 4 + [b"250 2.0.0 Ok\r\n"]
        assert "data" not in site.handler.names()


async def test_what_cannot_come_after_a_chunk(smtp_site):
    async with smtp_site() as site:
        client = await begin(site)
        client.send(bdat(HEAD, last=False))
        await client.reply()
        begun = b"503 5.5.1 Error: a message has been begun with BDAT\r\n"
        assert await client.say(b"DATA") == begun
        assert await client.say(b"RCPT TO:<x@y>") == begun
        assert await client.say(b"MAIL FROM:<x@y>") == b"503 5.5.1 Error: nested MAIL command\r\n"
        assert await client.say(b"NOOP") == b"250 2.0.0 Ok\r\n"
        assert await client.say(b"RSET") == b"250 2.0.0 Ok\r\n"
        client.send(bdat(b"x"))
        assert await client.reply() == NEED_RCPT
        client.send(ENVELOPE + bdat(HEAD))
        assert await client.reply() + await client.reply() + await client.reply() == OK + TAKEN
        assert site.handler.messages == [HEAD]
        assert site.handler.count("reset") == 1


@pytest.mark.parametrize("answer", [Reply.of(550, "5.7.1 no"), RuntimeError("broken")])
async def test_refused_at_the_first_chunk(smtp_site, caplog, answer):
    async with smtp_site({"data": answer}) as site:
        client = await begin(site)
        client.send(bdat(HEAD, last=False) + bdat(b"NOOP\r\n", last=False) + bdat(b"") + bdat(b""))
        refused = (
            b"550 5.7.1 no\r\n"
            if isinstance(answer, Reply)
            else b"451 4.3.0 Error: internal error, try again later\r\n"
        )
        assert [await client.reply() for _ in range(4)] == [refused] * 3 + [NEED_RCPT]
        assert (site.handler.count("data"), site.handler.count("reset")) == (1, 1)
        assert ("broken" in caplog.text) == isinstance(answer, Exception)


async def test_a_refusal_that_closes_comes_after_the_chunk(smtp_site):
    async with smtp_site({"data": Reply.of(421, "4.7.0 go away")}) as site:
        client = await begin(site)
        client.send(bdat(b"x" * 100_000) + b"NOOP\r\n")
        assert await client.rest() == b"421 4.7.0 go away\r\n"


@pytest.mark.parametrize(
    ("message", "expected", "options"),
    [
        (HEAD + b"x" * 3000, b"552 5.3.4 ", {"message_size": 2000}),
        (b"A: " + b"x" * 600 + b"\r\n\r\n", b"552 5.3.4 ", {"headers": HeaderLimits(total=500)}),
        (b"Received: x\r\n" * 5 + b"\r\nx", b"554 5.4.6 ", {"received_hops": 5}),
    ],
)
async def test_message_beyond_a_limit(smtp_site, message, expected, options):
    async with smtp_site(**options) as site:
        client = await begin(site)
        client.send(bdat(message))
        assert (await client.reply()).startswith(expected)
        client.send(ENVELOPE + bdat(HEAD))
        assert await client.reply() + await client.reply() + await client.reply() == OK + TAKEN


async def test_all_chunks_count(smtp_site):
    async with smtp_site(message_size=2000, errors=3) as site:
        client = await begin(site)
        client.send(bdat(HEAD, last=False) + bdat(b"x" * 1000, last=False) * 8 + bdat(b"x"))
        replies = [await client.reply() for _ in range(10)]
        assert replies[:2] == [b"250 2.0.0 Ok: 14 octets\r\n", b"250 2.0.0 Ok: 1000 octets\r\n"]
        assert set(replies[2:]) == {b"552 5.3.4 Error: message size exceeds fixed limit\r\n"}
        assert site.handler.not_taken.code == 552
        client.send(ENVELOPE + bdat(HEAD))
        assert await client.reply() + await client.reply() + await client.reply() == OK + TAKEN


async def test_repeated_refusals_come_to_an_end(smtp_site):
    async with smtp_site(errors=3) as site:
        client = await site.greeted()
        client.send(bdat(b"", last=False) * (MAX_REPEATED + 10))
        replies = await client.rest()
        assert replies == NEED_RCPT * (MAX_REPEATED + 3) + b"421 4.7.0 Error: too many errors\r\n"


@pytest.mark.parametrize("line", [b"BDAT", b"BDAT x LAST", b"BDAT 5" + b" " * 3000 + b"LAST", b"BDAT 5\x00"])
async def test_chunk_of_unknown_size(smtp_site, line):
    async with smtp_site() as site:
        client = await begin(site)
        client.send(line + b"\r\nMAIL FROM:<evil@x>\r\n")
        assert await client.rest() == b"521 5.5.4 Syntax: BDAT count [LAST]\r\n"
        assert site.handler.count("mail") == 1


async def test_enormous_chunk(smtp_site):
    async with smtp_site(message_size=1000) as site:
        client = await begin(site)
        client.send(b"BDAT 4001\r\n")
        assert await client.rest() == b"421 4.7.0 Error: too much data\r\n"


@pytest.mark.parametrize("options", [{"command_timeout": 0.1}, {"transfer_timeout": 0.1}])
@pytest.mark.parametrize("begun", [b"BDAT 5\r\n", b"BDAT 5\r\nab"])
async def test_chunk_that_does_not_come(smtp_site, options, begun):
    async with smtp_site(**options) as site:
        client = await begin(site)
        client.send(begun)
        assert await client.rest() == b"421 4.4.2 Error: timeout exceeded\r\n"
        await site.all_closed()


async def test_client_lost_between_chunks(smtp_site):
    async with smtp_site() as site:
        client = await begin(site)
        client.send(bdat(HEAD, last=False))
        await client.reply()
        client.reset()
        await site.all_closed()
        assert not site.handler.messages


async def test_half_closed_within_a_chunk(smtp_site):
    async with smtp_site() as site:
        client = await begin(site)
        client.send(bdat(HEAD)[:-1])
        client.writer.write_eof()
        assert await client.rest() == b""
        assert not site.handler.messages


async def test_message_is_finished_though_the_client_is_lost(smtp_site):
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_):
        arrived.set()
        await go_on.wait()

    async with smtp_site({"message": wait}) as site:
        client = await begin(site)
        client.send(bdat(HEAD))
        await arrived.wait()
        client.reset()
        go_on.set()
        await site.all_closed()
        assert site.handler.messages == [HEAD]


@pytest.mark.parametrize("options", [{"data_rate": 1e6}, {"transfer_timeout": 0.3}])
async def test_chunks_now_and_then_are_too_slow(smtp_site, options):
    async with smtp_site(**{"command_timeout": 0.3, **options}) as site:
        client = await begin(site)
        replies = set()
        while not any(reply.startswith(b"421") for reply in replies):
            client.send(bdat(b"x", last=False))
            replies.add(await client.reply())
            await asyncio.sleep(0.01)
        assert replies == {b"250 2.0.0 Ok: 1 octets\r\n", b"421 4.4.2 Error: timeout exceeded\r\n"}
        await site.all_closed()


async def test_empty_chunks_lead_nowhere(smtp_site):
    async with smtp_site(junk_commands=5, errors=3) as site:
        client = await begin(site)
        client.send(bdat(b"", last=False) * 20)
        replies = await client.rest()
        assert replies == b"250 2.0.0 Ok: 0 octets\r\n" * 8 + b"421 4.7.0 Error: too many errors\r\n"
