"""What stands on the sessions, on real sockets: `MtaClient` with any milter, `MailFilter` with any MTA."""

import asyncio
import logging
from contextlib import suppress
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from milterchain.errors import MilterError
from milterchain.mail import Address, Mailbox
from milterchain.mailfilter import (
    ACCEPT,
    DISCARD,
    REJECT,
    BodyOptions,
    DecideAt,
    FilterOptions,
    HeaderOptions,
    MailFilter,
    OnError,
    TooLarge,
    custom,
    quarantine,
)
from milterchain.milter import (
    ALL_ACTIONS,
    ALL_PROTOCOL,
    Abort,
    AnyCommand,
    AnyResponse,
    Body,
    Connect,
    Content,
    Continue,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Endpoint,
    Header,
    Macros,
    Mail,
    MtaClient,
    MtaOptions,
    MtaSession,
    OptNeg,
    Progress,
    Protocol,
    QuitNewConnection,
    Rcpt,
    ServerOptions,
)
from milterchain.milter.framing import encode_packet
from milterchain.testing import PATIENCE, RawMta
from milterchain.testing.peer import Peer, ScriptedServer

FUZZ = settings.get_profile("fuzz-sockets")
HERE = Endpoint(host="127.0.0.1")


def packet(message: AnyCommand | AnyResponse) -> bytes:
    return encode_packet(message.code, message.encode())


# The MTA's side

MTA_OPTIONS = MtaOptions(
    connect_timeout=0.1,
    command_timeout=0.1,
    content_timeout=0.1,
    total_timeout=0.2,
    max_reply=300,
    max_edits=20,
    max_edit_bytes=5000,
)
CONTENT = Content(headers=[(b"A", b" b")], body=lambda size: [b"x" * size, b"y"], body_size=65_536)
STEPS = {
    "connect": lambda session: session.connect(b"h"),
    "helo": lambda session: session.helo(b"h"),
    "mail": lambda session: session.mail(b"<>", [b"SIZE=1"]),
    "rcpt": lambda session: session.rcpt(b"<>"),
    "data": lambda session: session.data(),
    "unknown": lambda session: session.unknown(b"?"),
    "header": lambda session: session.header(b"A", b" b"),
    "headers": lambda session: session.headers([(b"A", b" b"), (b"B", b" c\r\n")]),
    "end of headers": lambda session: session.end_of_headers(),
    "body": lambda session: session.body(b"x" * 70_000),
    "end": lambda session: session.end_of_message(),
    "rest": lambda session: session.body_from([b"x", b"y"]),
    "whole": lambda session: session.message(CONTENT, pipelined=True),
    "abort": lambda session: session.abort(),
    "reset": lambda session: session.reset(),
}
ORDERS = [
    ["connect", "helo", "mail", "rcpt", "data", "headers", "rest"],
    ["connect", "mail", "rcpt", "data", "header", "end of headers", "body", "end"],
    ["mail", "rcpt", "data", "whole"],
    ["mail", "abort", "reset", "connect"],
]
OPTNEGS = st.builds(
    OptNeg,
    version=st.sampled_from([6, 6, 4, 2]),
    actions=st.just(ALL_ACTIONS),
    protocol=st.sets(st.sampled_from(list(Protocol))).map(lambda bits: Protocol(sum(bits))),
)
ANSWERS = st.one_of(
    st.sampled_from([packet(Continue())] * 10 + [packet(Progress()) + packet(Continue())]),
    st.lists(st.from_type(AnyResponse).map(packet), min_size=1, max_size=3).map(b"".join),
)


class AnyMilter(ScriptedServer[Peer]):
    def __init__(self, optneg, answers):
        super().__init__()
        self.optneg = optneg
        self.answers = answers

    def _peer(self, reader, writer):
        return Peer(reader, writer, self.changed)

    async def _converse(self, peer):
        for answer in [packet(self.optneg), *self.answers]:
            await peer.news()
            await peer.send(answer)
        while True:
            await peer.news()
            await peer.send(packet(Continue()))


async def ask(optneg, answers, steps):
    async with asyncio.timeout(PATIENCE), AnyMilter(optneg, answers) as milter:
        client = MtaClient(Endpoint(host="127.0.0.1", port=milter.port), MTA_OPTIONS)
        session: MtaSession | None = None
        try:
            session = await client.open({b"i": b"1"})
            for step in steps:
                with suppress(MilterError):
                    await STEPS[step](session)
        except MilterError:
            return
        finally:
            if session is not None:
                await session.close()
                assert session.closed


@FUZZ
@given(
    optneg=OPTNEGS,
    answers=st.lists(ANSWERS, max_size=16),
    steps=st.lists(st.sampled_from(ORDERS), max_size=3).map(chain.from_iterable),
    more=st.lists(st.sampled_from(list(STEPS)), max_size=6),
)
def test_any_milter_for_an_mta(optneg, answers, steps, more):
    asyncio.run(ask(optneg, answers, [*steps, *more]))


# The filter's side

OFFER = OptNeg(version=6, actions=ALL_ACTIONS, protocol=ALL_PROTOCOL)
MESSAGE = [
    Macros(ord("M"), ((b"i", b"1"),)),
    Mail(b"<a@x.test>"),
    Rcpt(b"<b@x.test>"),
    Data(),
    Header(b"Subject", b" hi"),
    Header(b"From", b" \xff <a@x.test>"),
    EndOfHeaders(),
    Body(b"x\r\n" * 50),
    EndOfMessage(),
]
PIECES = st.one_of(
    st.just(b"".join(map(packet, MESSAGE))),
    st.sampled_from([*MESSAGE, Connect(hostname=b"h"), Abort(), QuitNewConnection()]).map(packet),
    st.from_type(AnyCommand).map(packet),
    st.binary(max_size=10),
)
DECISIONS = [
    ACCEPT,
    REJECT,
    DISCARD,
    custom(550, None, "no\r\n%"),
    quarantine("why"),
    None,
    "raise",
    "change",
]
OPTIONS = st.builds(
    FilterOptions,
    decide_at=st.sampled_from(DecideAt),
    on_error=st.sampled_from(OnError),
    body=st.none() | st.builds(BodyOptions, max_size=st.just(100), too_large=st.sampled_from(TooLarge)),
    headers=st.builds(
        HeaderOptions, max_count=st.sampled_from([1, 100]), too_large=st.sampled_from(TooLarge)
    ),
)
SERVER = ServerOptions(negotiation_timeout=0.05, idle_timeout=0.05, handler_timeout=1, write_timeout=1)


def change(trx):
    trx.headers.subject = f"new {trx.headers.subject}"
    trx.headers.set_addresses(b"From", [Mailbox(address=Address(b"<b@x.test>"), name="ä")])
    for field in trx.headers:
        field.insert_before(b"X-Before", b" " + field.value[:5])
    trx.change_sender("")
    trx.add_recipient("c@x.test")
    for recipient in trx.recipients:
        trx.delete_recipient(recipient.raw)
    trx.replace_body(b"new")


@FUZZ
@given(
    messages=st.integers(0, 3),
    pieces=st.lists(PIECES, max_size=8),
    decision=st.sampled_from(DECISIONS),
    options=OPTIONS,
)
def test_any_mta_for_a_mail_filter(caplog, messages, pieces, decision, options):
    async def decide(trx):
        repr(trx)
        if decision == "raise":
            raise ValueError("what the author did not think of")
        if decision == "change":
            change(trx)
            return ACCEPT
        return decision

    async def converse():
        async with (
            asyncio.timeout(PATIENCE),
            MailFilter(decide, [HERE], options=options, server=SERVER) as served,
            RawMta(served.endpoints[0]) as mta,
        ):
            usual = [OFFER, Connect(hostname=b"h"), *MESSAGE * messages] if messages else []
            mta.send(*usual, *pieces, b"\0\0\0\1Q\0\0\0\0")
            with suppress(ConnectionResetError):
                await mta.closed()

    caplog.clear()
    asyncio.run(converse())
    assert [record for record in caplog.records if record.name == "asyncio"] == []
    if decision not in {None, "raise"} and (messages or decision != "change"):
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
