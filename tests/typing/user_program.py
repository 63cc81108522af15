"""A program as a user would write it, with every part of the public API: its types are right, and it works.

`tests/test_typing.py` checks it by `mypy --strict` against the installed package, and runs it.
"""

# ruff: noqa: ARG001, ARG002 - what the library calls has the arguments that it passes

import asyncio
import io
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import BinaryIO, ClassVar, assert_type

from milterchain.errors import MilterClosedError, MilterError
from milterchain.mail import Address, Field, HeaderList, Mailbox, apply_edits, parse_message, same_address
from milterchain.mailfilter import (
    ACCEPT,
    BodyOptions,
    DecideAt,
    Decision,
    FilterOptions,
    MailFilter,
    OnError,
    Recipient,
    RecipientCheck,
    Sender,
    TooLarge,
    Transaction,
    custom,
    quarantine,
)
from milterchain.milter import (
    Accept,
    Action,
    AddHeader,
    Answer,
    ClientOptions,
    Command,
    Connect,
    Content,
    ContentResult,
    Continue,
    Data,
    Endpoint,
    Family,
    Helo,
    Listener,
    MacroBag,
    Mail,
    MessageAnswer,
    Milter,
    MilterServer,
    MilterSession,
    Modification,
    Modifier,
    MtaClient,
    MtaOptions,
    Negotiated,
    NegotiationOptions,
    OptNeg,
    Protocol,
    Quarantine,
    Rcpt,
    Reply,
    ReplyCode,
    ServerOptions,
    Stage,
    no_reply,
    parse_endpoint,
    reply,
)
from milterchain.testing import FilterResult, RawMta, ScriptedMilter, TransactionBuilder

HERE = Endpoint(host="127.0.0.1")


# A mail filter


async def decide(trx: Transaction) -> Decision:
    assert_type(trx.sender, Sender)
    assert_type(trx.recipients, tuple[Recipient, ...])
    assert_type(trx.sender.authenticated_user, str)
    assert_type(trx.headers, HeaderList)
    assert_type(trx.headers.subject, str | None)
    assert_type(trx.headers.date(), datetime | None)
    assert_type(trx.headers.addresses(b"From"), list[Mailbox])
    assert_type(trx.macro("i"), str | None)
    assert_type(trx.body, BinaryIO)
    for field in trx.headers:
        assert_type(field, Field)
        if field.name == b"X-Old":
            field.delete()
    if trx.has_recipient("spam-trap@スパム.example"):
        return quarantine("train as spam")
    if trx.connection.family is Family.UNIX:
        return custom(550, "5.7.1", "Not", b"this way")
    trx.headers.subject = f"[EXTERNAL] {trx.headers.subject or ''}"
    assert_type(trx.headers.set(b"X-Raw", b" raw"), Field)
    trx.headers.set_text(b"X-Text", "スパム")
    trx.change_sender("new@example.org", "RET=HDRS")
    if trx.add_recipient(b"<archive@example.test>"):
        trx.replace_body(io.BytesIO(trx.body.read().upper()))
    return ACCEPT


async def validate(check: RecipientCheck) -> Decision:
    assert_type(check.recipient, Recipient)
    return ACCEPT


OPTIONS = FilterOptions(
    decide_at=DecideAt.END_OF_MESSAGE,
    on_error=OnError.TEMPFAIL,
    body=BodyOptions(memory=1000, too_large=TooLarge.TRUNCATE),
    validate_recipient=validate,
    macros={Stage.CONNECT: [b"v"]},
)


async def test_decide() -> None:
    builder = TransactionBuilder().sender("joe@example.org").recipient("ann@example.test")
    result = await builder.header("Subject", "Hi").body("hello\n").run(decide)
    assert_type(result, FilterResult)
    assert_type(result.decision, Decision)
    assert result.decision == ACCEPT
    assert b"\r\n\r\nHELLO\r\n" in result.message
    result = await builder.recipient("spam-trap@xn--zck5b2b.example").run(decide)
    result.expect(quarantine("train as spam"), Quarantine(b"train as spam"))


# A filter of the lower level


class Counter(Milter):
    actions = Action.ADD_HEADERS
    optional_actions = Action.QUARANTINE
    protocol = Protocol.LEADING_SPACE
    wanted_macros: ClassVar[Mapping[Stage, Sequence[bytes]]] = {Stage.MAIL: [b"i", b"{auth_authen}"]}

    def __init__(self, limit: int = 3) -> None:
        self.limit = limit
        self.recipients: list[bytes] = []

    async def connect(self, client: Connect) -> Reply | None:
        assert_type(client.address, bytes)
        return Accept() if client.family is Family.UNIX else None

    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> None:
        assert_type(self.macros.get(b"i"), bytes | None)
        assert_type(self.negotiated, Negotiated)
        self.recipients = []

    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> ReplyCode | None:
        if len(self.recipients) == self.limit:
            return reply(452, "4.5.3", "Too many", "recipients")
        self.recipients.append(recipient)
        return None

    @no_reply
    async def header(self, name: bytes, value: bytes) -> None:
        await self.progress()

    async def end_of_message(self, modifier: Modifier) -> Reply | None:
        await modifier.add_header(b"X-Count", b" %d" % len(self.recipients))
        if self.negotiated.actions & Action.CHANGE_BODY:
            await modifier.replace_body(pieces())
        return Continue()


async def pieces() -> AsyncIterator[bytes]:
    yield b"new body\r\n"


def make(negotiated: Negotiated) -> Milter:
    return Counter(5 if negotiated.version == 6 else 1)


def callback(offer: OptNeg, answer: OptNeg) -> OptNeg:
    return answer


# MTAs


async def ask_with_the_client(endpoint: Endpoint) -> tuple[Modification, ...]:
    client = MtaClient(str(endpoint), MtaOptions(macros={Stage.MAIL: [b"i"]}, command_timeout=5))
    async with client.session(MacroBag({b"j": b"mx.example.test"})) as session:
        assert_type(await session.connect(b"client.test", Family.INET, 25, b"192.0.2.1"), Answer)
        session.macros[b"i"] = b"4Zk1xQ"
        await session.mail(b"<joe@example.org>", [b"SIZE=100"])
        refused = await session.rcpt(b"<ann@example.test>")
        if refused.stops and refused.smtp is not None:
            assert_type(refused.smtp, bytes)
        await session.data()
        await session.headers([(b"Subject", b" Hi")])
        answer = await session.body_from(io.BytesIO(b"hello\r\n"))
        assert_type(answer, MessageAnswer)
        await session.abort()
        return answer.modifications


async def ask_with_a_session(endpoint: Endpoint) -> bytes:
    message = parse_message(b"Subject: Hi\r\n\r\nhello\r\n")
    session = await MilterSession.open(endpoint, ClientOptions(version=6))
    try:
        for command in (Connect(hostname=b"client.test"), Mail(b"<>"), Rcpt(b"<ann@example.test>"), Data()):
            future = session.command(command, [(b"i", b"1")])
            if future is not None:
                assert_type(await future, Reply)

        def body(size: int) -> Iterable[bytes]:
            return message.body.chunks(size)

        content = Content(headers=message.milter_headers(), body=body, body_size=len(message.body))
        result = await session.content(
            content, pipelined=True, macros={Command.END_OF_MESSAGE: [(b"i", b"1")]}
        )
        assert_type(result, ContentResult)
        edited = apply_edits(message, result.edits, leading_space=session.negotiated.leading_space)
        await session.quit()
        return b"".join(edited.message.chunks())
    except MilterClosedError as error:
        raise RuntimeError("the milter is gone") from error
    except MilterError:
        raise


async def main() -> None:
    await test_decide()
    assert same_address(b"<ann@example.test>", b"ann@EXAMPLE.test")
    assert Address(b"<a@xn--zck5b2b.example>").unicode_domain == "スパム.example"
    server = MilterServer(
        Counter,
        [HERE],
        options=ServerOptions(idle_timeout=60),
        negotiation=NegotiationOptions(max_version=6, callback=callback),
    )
    async with server:
        (added,) = await ask_with_the_client(server.endpoints[0])
        assert added == AddHeader(b"X-Count", b" 1")
        assert b"\r\nX-Count: 1\r\n" in await ask_with_a_session(server.endpoints[0])
        async with RawMta(server.endpoints[0]) as mta:
            assert_type(await mta.negotiate(), OptNeg)
        await server.shutdown(1.0)
    async with MilterServer.dynamic(make, [Listener(HERE, mode=0o600)]) as dynamic:
        assert dynamic.handlers_made == 0
    async with MailFilter(decide, [HERE], options=OPTIONS) as mail_filter:
        assert await ask_with_the_client(mail_filter.endpoints[0])
    async with ScriptedMilter({Command.HELO: [Accept()]}) as milter:
        session = await MilterSession.open(parse_endpoint(milter.endpoint))
        session.command(Connect(hostname=b"h"))
        helo = session.command(Helo(b"h"))
        assert helo is not None
        assert await helo == Accept()
        await session.quit()


if __name__ == "__main__":
    asyncio.run(main())
