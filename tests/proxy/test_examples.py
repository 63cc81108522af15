"""The example milters, against an MTA side that says one message at a time."""

import pytest

from milterchain.milter.endpoint import Endpoint
from milterchain.milter.flags import Command, Family
from milterchain.milter.messages import (
    Abort,
    AddHeader,
    Body,
    ChangeHeader,
    Connect,
    Continue,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    Mail,
    Rcpt,
    ReplyCode,
)
from milterchain.milter.server import MilterServer
from milterchain.proxy.examples import EXAMPLES, GTUBE, GTUBE_SUBJECT, GtubeFilter, StampFilter
from milterchain.testing import RawMta

ANY_PORT = Endpoint(host="127.0.0.1", port=0)


def test_names_and_order():
    assert list(EXAMPLES.items()) == [("stamp", StampFilter), ("gtube", GtubeFilter)]


async def test_stamp_counts_the_recipients_of_each_message():
    client = Connect(hostname=b"c.test", family=Family.INET, port=1, address=b"192.0.2.1")
    async with MilterServer(StampFilter, [ANY_PORT]) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        mta.send(client, Helo(b"c\t\xff.test"))
        for queue_id, count in [(b"Q1", 2), (b"Q2", 1)]:
            mta.send(Macros(Command.MAIL, ((b"i", queue_id),)), Mail(b"<>"), *[Rcpt(b"<a@x>")] * count)
            assert await mta.answers(EndOfMessage()) == [
                AddHeader(
                    b"X-Milterchain-Example",
                    b"client=192.0.2.1; helo=c??.test;\n queue-id=%b; recipients=%d" % (queue_id, count),
                ),
                Continue(),
            ]


async def test_stamp_knows_little_of_an_unknown_client():
    async with MilterServer(StampFilter, [ANY_PORT]) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        mta.send(Connect(hostname=b"localhost"), Mail(b"<>"), Rcpt(b"<a@x>"))
        edit, _ = await mta.answers(EndOfMessage())
        assert isinstance(edit, AddHeader)
        assert edit.value == b"client=localhost; helo=none;\n queue-id=none; recipients=1"


REFUSED = ReplyCode(b"550 5.7.1 This message contains the GTUBE test string")


@pytest.mark.parametrize(
    ("headers", "chunks", "answers"),
    [
        ([], [b"nothing to see\r\n"], [Continue()]),
        ([], [], [Continue()]),
        ([], [b"x " + GTUBE + b"\r\n"], [REFUSED]),
        ([], [GTUBE[:10], GTUBE[10:20], GTUBE[20:]], [REFUSED]),
        ([], [bytes((byte,)) for byte in GTUBE], [REFUSED]),
        ([Header(b"Subject", b"a")], [b"a", GTUBE], [REFUSED]),
        ([Header(b"X", b"x")], [GTUBE_SUBJECT], [ChangeHeader(1, b"Subject", b"[SPAM] "), Continue()]),
        (
            [Header(b"subject", b"Hello"), Header(b"Subject", b"second")],
            [GTUBE_SUBJECT[:9], GTUBE_SUBJECT[9:]],
            [ChangeHeader(1, b"Subject", b"[SPAM] Hello"), Continue()],
        ),
        ([Header(b"Subject", b"[SPAM] Hello")], [GTUBE_SUBJECT], [Continue()]),
    ],
)
async def test_gtube(headers, chunks, answers):
    async with MilterServer(GtubeFilter, [ANY_PORT]) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        for _ in range(2):
            assert await mta.ask(Mail(b"<>")) == Continue()
            for header in headers:
                assert await mta.ask(header) == Continue()
            replies = [await mta.ask(Body(chunk)) for chunk in chunks]
            if replies[-1:] != [REFUSED]:
                assert replies == [Continue()] * len(chunks)
                replies = await mta.answers(EndOfMessage())
            assert replies[-len(answers) :] == answers
            mta.send(Abort())
