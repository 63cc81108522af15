"""Mail filters on real sockets, against an MTA that says one message at a time."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from milterchain.errors import CloseConnectionError, MilterClosedError, MilterConnectError
from milterchain.mailfilter import (
    ACCEPT,
    DISCARD,
    MTA,
    REJECT,
    TEMPFAIL,
    BodyOptions,
    Connection,
    DecideAt,
    Decision,
    FilterOptions,
    HeaderOptions,
    Helo,
    MailFilter,
    OnError,
    Recipient,
    Sender,
    TooLarge,
    Transaction,
    custom,
    quarantine,
    running,
)
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.flags import ALL_ACTIONS, Action, Command, Family, Protocol
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    AddRecipient,
    AnyCommand,
    AnyResponse,
    Body,
    ChangeHeader,
    Connect,
    Continue,
    Data,
    DeleteRecipient,
    Discard,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Macros,
    Mail,
    Progress,
    Quarantine,
    Quit,
    QuitNewConnection,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    Skip,
    TempFail,
)
from milterchain.milter.messages import (
    Helo as SayHelo,
)
from milterchain.milter.negotiation import NO_REPLY, Negotiated
from milterchain.milter.server_options import NegotiationOptions, ServerOptions
from milterchain.testing import PATIENCE, RawMta

ANY_PORT = Endpoint(host="127.0.0.1", port=0)
CLIENT = Connect(hostname=b"c.test", family=Family.INET, port=1234, address=b"192.0.2.1")
EDITED = [AddHeader(b"X-Seen", b" yes"), Accept()]
NO_SILENCE = Protocol(0x1FFFFF & ~sum(NO_REPLY.values()))
"""What an MTA offers that wants an answer to everything."""


@pytest.fixture(autouse=True)
def _show_failures(caplog):
    caplog.set_level(logging.DEBUG)


def macros(stage: Command, **values: bytes) -> Macros:
    return Macros(stage, tuple((b"{%b}" % name.encode(), value) for name, value in values.items()))


class Mta(RawMta):
    """Says only what was negotiated, as MTAs do."""

    agreed: Negotiated

    async def offer(self, **offer) -> None:
        answer = await self.negotiate(**offer)
        self.agreed = Negotiated(version=answer.version, actions=answer.actions, protocol=answer.protocol)

    async def say(self, *messages: AnyCommand) -> list[AnyResponse]:
        """Say messages, until one ends it; the answers but Continue and Skip."""
        for message in messages:
            command = Command(message.code)
            if command is Command.MACRO or command is Command.ABORT:
                self.send(message)
                continue
            if not self.agreed.wants(command):
                continue
            if not self.agreed.replies(command):
                self.send(message)
                continue
            answers = await self.answers(message)
            if answers not in ([Continue()], [Skip()]):
                return answers
        return []

    async def envelope(self, *, recipients: tuple[bytes, ...] = (b"<r@x.test>",)) -> list[AnyResponse]:
        return await self.say(
            Mail(b"<s@x.test>", (b"SIZE=1",)), *(Rcpt(address) for address in recipients), Data()
        )

    async def content(self, *, body: bytes = b"body\r\n", headers: int = 1) -> list[AnyResponse]:
        return await self.say(
            *(Header(b"Subject", b" %d" % number) for number in range(headers)),
            EndOfHeaders(),
            Body(body),
            EndOfMessage(),
        )

    async def whole(self) -> list[AnyResponse]:
        """A whole session with one message."""
        return await self.say(CLIENT, SayHelo(b"c.test")) or await self.envelope() or await self.content()


@asynccontextmanager
async def serving(function, *, offer=None, server=None, negotiation=None, **options) -> AsyncIterator[Mta]:
    settings = FilterOptions(**options)
    mail_filter = MailFilter(function, [ANY_PORT], options=settings, server=server, negotiation=negotiation)
    async with mail_filter, Mta(mail_filter.endpoints[0]) as mta:
        await mta.offer(**(offer or {}))
        yield mta


def always(decision: Decision):
    async def function(_trx: Transaction) -> Decision:
        return decision

    return function


async def edit(trx: Transaction) -> Decision:
    trx.headers.add(b"X-Seen", b"yes")
    return ACCEPT


async def test_the_function_sees_all_of_it():
    seen: list[Transaction] = []
    body = b""

    async def look(trx: Transaction) -> Decision:
        nonlocal body
        seen.append(trx)
        body = trx.body.read()
        assert trx.message().read() == b"Subject: 0\r\nX:1\r\n\r\nbody\r\n"
        return ACCEPT

    async with serving(look, body=BodyOptions(memory=0)) as mta:
        answers = await mta.say(
            macros(Command.CONNECT, j=b"mx.test", v=b"Postfix 3.7", daemon_name=b"smtpd", x=b"y"),
            CLIENT,
            macros(Command.HELO, tls_version=b"TLSv1.3", cipher_bits=b"256"),
            SayHelo(b"c.test"),
            macros(Command.MAIL, auth_authen=b"joe", mail_mailer=b"local"),
            Mail(b"<s@x.test>", (b"SIZE=1",)),
            macros(Command.RCPT, rcpt_mailer=b"smtp"),
            Rcpt(b"<r@x.test>", (b"NOTIFY=NEVER",)),
            Rcpt(b"q@x.test"),
            Header(b"Subject", b" 0"),
            Header(b"X", b"1"),
            Body(b"bo"),
            Body(b"dy\r\n"),
            macros(Command.END_OF_MESSAGE, i=b"4ABC"),
            EndOfMessage(),
        )
    assert answers == [Accept()]
    (trx,) = seen
    assert trx.mta == MTA(version="Postfix 3.7", name="mx.test", daemon="smtpd")
    assert trx.connection == Connection(host="c.test", family=Family.INET, address="192.0.2.1", port=1234)
    assert trx.helo == Helo(name="c.test", tls_version="TLSv1.3", cipher_bits=256)
    assert trx.sender == Sender(b"s@x.test")
    assert (trx.sender.authenticated_user, trx.sender.transport) == ("joe", "local")
    assert trx.sender.args == (b"SIZE=1",)
    assert trx.recipients == (Recipient(b"r@x.test"), Recipient(b"q@x.test"))
    assert trx.recipients[0].transport == "smtp"
    assert trx.recipients[0].args == (b"NOTIFY=NEVER",)
    assert trx.queue_id == "4ABC"
    assert trx.headers.names == [b"Subject", b"X"]
    assert body == b"body\r\n"
    trx.body.seek(0)
    with pytest.raises(ValueError, match="closed"):
        trx.body.read()


async def test_all_that_can_be_changed():
    async def change(trx: Transaction) -> Decision:
        trx.headers.subject = "new"
        trx.headers.add(b"X-Seen", b"yes")
        trx.delete_recipient("r@X.test")
        trx.add_recipient("user@スパム.example", "NOTIFY=NEVER")
        trx.replace_body(b"x" * 100_000)
        return quarantine("held")

    async with serving(change) as mta:
        answers = await mta.whole()
    new_body = b"".join(answer.chunk for answer in answers if isinstance(answer, ReplaceBody))
    assert [answer for answer in answers if not isinstance(answer, ReplaceBody)] == [
        DeleteRecipient(b"<r@x.test>"),
        AddRecipient(b"<user@xn--zck5b2b.example>", b"NOTIFY=NEVER"),
        ChangeHeader(1, b"Subject", b" new"),
        AddHeader(b"X-Seen", b" yes"),
        Quarantine(b"held"),
        Accept(),
    ]
    assert new_body == b"x" * 100_000 + b"\r\n"


REFUSALS = [
    (REJECT, Reject()),
    (TEMPFAIL, TempFail()),
    (custom(550, "5.7.1", "no", "not ever"), ReplyCode(b"550-5.7.1 no\r\n550 5.7.1 not ever")),
]
POINTS = {
    DecideAt.CONNECT: Command.CONNECT,
    DecideAt.HELO: Command.HELO,
    DecideAt.MAIL: Command.MAIL,
    DecideAt.DATA: Command.DATA,
    DecideAt.END_OF_HEADERS: Command.END_OF_HEADERS,
    DecideAt.END_OF_MESSAGE: Command.END_OF_MESSAGE,
}
SESSION = [
    *(CLIENT, SayHelo(b"c.test"), Mail(b"<s@x.test>"), Rcpt(b"<r@x.test>"), Data()),
    *(Header(b"Subject", b" 0"), EndOfHeaders(), Body(b"body\r\n"), EndOfMessage()),
]


@pytest.mark.parametrize("point", DecideAt)
@pytest.mark.parametrize(("decision", "reply"), REFUSALS, ids=str)
async def test_refusals_are_told_at_once(point, decision, reply):
    async with serving(always(decision), decide_at=point) as mta:
        for message in SESSION:
            answers = await mta.say(message)
            if message.code is POINTS[point]:
                assert answers == [reply]
                break
            assert answers == []


@pytest.mark.parametrize("point", DecideAt)
async def test_discard_concerns_a_message(point):
    async with serving(always(DISCARD), decide_at=point) as mta:
        for message in SESSION:
            if await mta.say(message) == [Discard()]:
                last = DecideAt.END_OF_MESSAGE if point <= DecideAt.HELO else point
                assert message.code is POINTS[last]
                return
    pytest.fail("never")


@pytest.mark.parametrize("point", DecideAt)
async def test_accepting_without_changes_ends_it(point):
    async with serving(always(ACCEPT), decide_at=point) as mta:
        for message in SESSION:
            if await mta.say(message) == [Accept()]:
                # After HELO there may be another one, with TLS.
                last = DecideAt.END_OF_MESSAGE if point is DecideAt.HELO else point
                assert message.code is POINTS[last]
                return
    pytest.fail("never")


@pytest.mark.parametrize("point", DecideAt)
@pytest.mark.parametrize("version", [2, 3, 4, 6])
async def test_changes_wait_for_the_end_of_the_message(point, version):
    async def change(trx: Transaction) -> Decision:
        trx.headers.add(b"X-Seen", b"yes")
        trx.add_recipient("a@x.test")
        return quarantine("held")

    async with serving(change, decide_at=point, offer={"version": version}) as mta:
        answers = await mta.whole()
        again = await mta.envelope() or await mta.content()
    blank = b" " if version == 6 else b""
    assert answers == [
        AddRecipient(b"<a@x.test>"),
        AddHeader(b"X-Seen", blank + b"yes"),
        Quarantine(b"held"),
        Accept(),
    ]
    assert again == answers


@pytest.mark.parametrize("point", DecideAt)
async def test_the_function_knows_what_came_before(point):
    async def look(trx: Transaction) -> Decision:
        known = [
            bool(trx.connection.host),
            bool(trx.helo.name),
            bool(trx.sender.bare),
            bool(trx.recipients),
            bool(len(trx.headers)),
        ]
        assert known == [point >= DecideAt(number) for number in range(5)]
        return custom(450, "4.7.0", "seen")

    async with serving(look, decide_at=point) as mta:
        assert await mta.whole() == [ReplyCode(b"450 4.7.0 seen")]


@pytest.mark.parametrize("point", DecideAt)
async def test_an_mta_that_ignores_what_was_negotiated(point):
    """It offers neither to leave out events nor to go on without replies."""
    async with serving(edit, decide_at=point, offer={"protocol": Protocol(0)}) as mta:
        assert await mta.whole() == [AddHeader(b"X-Seen", b"yes"), Accept()]


async def test_several_messages_and_an_abort_between():
    seen = []

    async def look(trx: Transaction) -> Decision:
        seen.append((trx.sender.bare, [r.bare for r in trx.recipients], len(trx.headers), trx.body.read()))
        return ACCEPT

    async with serving(look) as mta:
        await mta.say(CLIENT, SayHelo(b"c.test"))
        await mta.envelope(recipients=(b"a@x.test", b"b@x.test"))
        await mta.say(Header(b"A", b"1"), Abort())
        for _ in range(2):
            assert await mta.envelope() == []
            assert await mta.content() == [Accept()]
    assert seen == [(b"s@x.test", [b"r@x.test"], 1, b"body\r\n")] * 2


async def test_helo_is_decided_on_again_after_starttls():
    async def look(trx: Transaction) -> Decision:
        trx.headers.add(b"X-TLS", trx.helo.tls_version.encode() or b"none")
        return ACCEPT

    async with serving(look, decide_at=DecideAt.HELO) as mta:
        tls = macros(Command.HELO, tls_version=b"TLSv1.3")
        assert await mta.say(CLIENT, SayHelo(b"c.test"), tls, SayHelo(b"c.test")) == []
        for _ in range(2):
            assert await mta.content() == [AddHeader(b"X-TLS", b" TLSv1.3"), Accept()]


async def test_a_connection_that_is_used_again():
    hosts = []

    async def look(trx: Transaction) -> Decision:
        hosts.append(trx.connection.host)
        return ACCEPT

    async with MailFilter(look, [ANY_PORT]) as mail_filter, Mta(mail_filter.endpoints[0]) as mta:
        await mta.offer()
        assert await mta.whole() == [Accept()]
        mta.send(QuitNewConnection())
        await mta.say(Connect(hostname=b"d.test"), SayHelo(b"d.test"))
        assert await mta.envelope() + await mta.content() == [Accept()]
        assert mail_filter.sessions == 2
        assert mail_filter.connections == 1
    assert hosts == ["c.test", "d.test"]


# Validation of recipients


def validator(**decisions: Decision):
    async def validate(check) -> Decision:
        assert check.connection.host == "c.test"
        assert check.helo.name == "c.test"
        assert check.sender == Sender(b"s@x.test")
        assert check.mta == MTA()
        return decisions[check.recipient.local.decode()]

    return validate


@pytest.mark.parametrize("point", [point for point in DecideAt if point != DecideAt.MAIL])
async def test_each_recipient_is_validated(point):
    seen = []

    async def look(trx: Transaction) -> Decision:
        seen.append([recipient.local for recipient in trx.recipients])
        return ACCEPT

    validate = validator(a=ACCEPT, b=REJECT, c=TEMPFAIL, d=custom(550, "5.1.1", "who?"), e=ACCEPT)
    async with serving(look, decide_at=point, validate_recipient=validate) as mta:
        await mta.say(CLIENT, SayHelo(b"c.test"))
        assert await mta.say(Mail(b"<s@x.test>")) == []
        replies = [await mta.say(Rcpt(b"<%c@x.test>" % name)) for name in b"abcde"]
        assert replies == [[], [Reject()], [TempFail()], [ReplyCode(b"550 5.1.1 who?")], []]
        assert (await mta.say(Data()) or await mta.content()) == [Accept()]
    assert seen == [[b"a", b"e"] if point >= DecideAt.DATA else []]


async def test_a_sender_may_be_decided_on_and_recipients_be_validated():
    options = {"decide_at": DecideAt.MAIL, "validate_recipient": validator(a=REJECT, r=ACCEPT)}
    async with serving(always(ACCEPT), **options) as mta:
        await mta.say(CLIENT, SayHelo(b"c.test"), Mail(b"<s@x.test>"))
        assert await mta.say(Rcpt(b"<a@x.test>")) == [Reject()]
        assert await mta.say(Rcpt(b"<r@x.test>"), Data()) + await mta.content() == [Accept()]


@pytest.mark.parametrize("wrong", [DISCARD, quarantine("x"), None])
@pytest.mark.parametrize(
    ("on_error", "reply"),
    [(OnError.TEMPFAIL, [TempFail()]), (OnError.ACCEPT, []), (OnError.REJECT, [Reject()])],
)
async def test_what_is_no_decision_on_a_recipient_is_an_error(wrong, on_error, reply):
    options = {"on_error": on_error, "validate_recipient": validator(a=wrong)}
    async with serving(always(ACCEPT), **options) as mta:
        await mta.say(CLIENT, SayHelo(b"c.test"), Mail(b"<s@x.test>"))
        assert await mta.say(Rcpt(b"<a@x.test>")) == reply


async def test_there_is_an_end_to_recipients():
    async with serving(always(ACCEPT), max_recipients=2, validate_recipient=validator(r=ACCEPT)) as mta:
        await mta.say(CLIENT, SayHelo(b"c.test"), Mail(b"<s@x.test>"))
        replies = [await mta.say(Rcpt(b"<r@x.test>")) for _ in range(3)]
        assert replies == [[], [], [ReplyCode(b"452 4.5.3 Too many recipients")]]
        assert await mta.content() == [Accept()]
    async with serving(always(ACCEPT), max_recipients=2) as mta:
        await mta.say(CLIENT, SayHelo(b"c.test"))
        await mta.envelope(recipients=(b"r@x.test",) * 3)
        assert await mta.content() == [ReplyCode(b"452 4.5.3 Too many recipients")]
    async with serving(always(ACCEPT), max_recipients=3, validate_recipient=validator(r=ACCEPT)) as mta:
        await mta.say(CLIENT, SayHelo(b"c.test"), Mail(b"<s@x.test>"))
        assert await mta.say(Rcpt(b"<r@x.test>"), Rcpt(b"<r@x.test>", (b"X=" + b"x" * 5000,))) == []
        assert await mta.say(Rcpt(b"<r@x.test>", (b"x" * 2000,))) != []


# Errors


async def fail(_trx: Transaction) -> Decision:
    raise KeyError("a mistake")


async def change_and_fail(trx: Transaction) -> Decision:
    trx.headers.add(b"X", b"1")
    raise KeyError("a mistake")


async def no_decision(_trx: Transaction) -> Decision:
    return True  # type: ignore[return-value]


async def too_slow(_trx: Transaction) -> Decision:
    await asyncio.Event().wait()
    raise AssertionError


async def cancelled_from_inside(_trx: Transaction) -> Decision:
    other = asyncio.get_running_loop().create_future()
    other.cancel()
    await other
    raise AssertionError


async def loses_another(_trx: Transaction) -> Decision:
    raise MilterClosedError("another milter left")


async def not_negotiated(trx: Transaction) -> Decision:
    trx.headers.add(b"X", b"1")
    return quarantine("held")


@pytest.mark.parametrize("point", DecideAt)
@pytest.mark.parametrize(
    ("on_error", "reply"),
    [(OnError.ACCEPT, Accept()), (OnError.TEMPFAIL, TempFail()), (OnError.REJECT, Reject())],
)
async def test_errors_are_answered_as_one_likes(on_error, reply, point, caplog):
    async with serving(change_and_fail, on_error=on_error, decide_at=point) as mta:
        assert await mta.whole() == [reply]
    assert "a mistake" in caplog.text
    assert f"hence {on_error.value}" in caplog.text


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (fail, "a mistake"),
        (no_decision, "a filter returns a Decision, not True"),
        (too_slow, "TimeoutError"),
        (cancelled_from_inside, "what it waited for was cancelled"),
        (loses_another, "another milter left"),
        (not_negotiated, "Quarantine needs Action.QUARANTINE, which was not negotiated"),
    ],
)
async def test_what_an_error_is(function, text, caplog):
    offer = {"actions": ALL_ACTIONS ^ Action.QUARANTINE}
    options = {"time_limit": 0.05 if function is too_slow else PATIENCE, "on_error": OnError.REJECT}
    async with serving(function, offer=offer, **options) as mta:
        assert await mta.whole() == [Reject()]
    assert text in caplog.text


@pytest.mark.parametrize("point", DecideAt)
async def test_an_error_may_close_the_connection(point):
    options = {"decide_at": point, "on_error": OnError.CLOSE}
    async with serving(fail, **options) as mta:
        for message in SESSION:
            if message.code is POINTS[point]:
                mta.send(message)
                break
            assert await mta.say(message) == []
        assert await mta.closed() == b""


async def test_the_function_may_close_the_connection(caplog):
    async def leave(_trx: Transaction) -> Decision:
        raise CloseConnectionError("enough")

    async with serving(leave, on_error=OnError.ACCEPT) as mta:
        await mta.say(CLIENT)
        await mta.envelope()
        mta.send(EndOfMessage())
        assert await mta.closed() == b""
    assert "connection closed: enough" in caplog.text
    assert "hence" not in caplog.text


async def test_other_connections_stay_when_one_is_closed():
    async def sometimes(trx: Transaction) -> Decision:
        return await (fail if trx.connection.host == "c.test" else always(ACCEPT))(trx)

    settings = FilterOptions(on_error=OnError.CLOSE, decide_at=DecideAt.CONNECT)
    async with (
        MailFilter(sometimes, [ANY_PORT], options=settings) as mail_filter,
        Mta(mail_filter.endpoints[0]) as one,
        Mta(mail_filter.endpoints[0]) as other,
    ):
        for mta in (one, other):
            await mta.offer()
        one.send(CLIENT)
        assert await one.closed() == b""
        assert await other.say(Connect(hostname=b"d.test")) == [Accept()]


async def test_a_failing_file_of_a_new_body_fails_the_message(caplog):
    async def change(trx: Transaction) -> Decision:
        trx.replace_body(b"new")
        assert trx.replacement is not None
        trx.replacement.chunks = None  # type: ignore[method-assign]
        return ACCEPT

    async with serving(change) as mta:
        assert await mta.whole() == [TempFail()]
    assert "the filter failed" in caplog.text


# Limits

TOO_LARGE = ReplyCode(b"552 5.3.4 Message too large")


def lengths(seen: list[object]):
    async def look(trx: Transaction) -> Decision:
        seen.append((len(trx.headers), len(trx.body.read()), trx.cut_short))
        return ACCEPT

    return look


@pytest.mark.parametrize(
    "offer", [{}, {"protocol": NO_SILENCE}, {"version": 2}], ids=["silent", "loud", "old"]
)
@pytest.mark.parametrize(
    ("too_large", "answer", "expected"),
    [
        (TooLarge.REJECT, TOO_LARGE, None),
        (TooLarge.CLEAR, Accept(), (1, 0, True)),
        (TooLarge.TRUNCATE, Accept(), (1, 5, True)),
    ],
)
async def test_bodies_have_a_limit(too_large, answer, expected, offer):
    seen: list[object] = []
    body = BodyOptions(max_size=5, too_large=too_large)
    async with serving(lengths(seen), body=body, offer=offer) as mta:
        assert await mta.whole() == [answer]
        assert await mta.envelope() + await mta.content(body=b"12345") == [Accept()]
    assert seen == [*([expected] if expected else []), (1, 5, False)]


async def test_of_a_body_that_is_too_large_no_more_is_wanted():
    async with serving(always(ACCEPT), body=BodyOptions(max_size=5, too_large=TooLarge.TRUNCATE)) as mta:
        await mta.say(CLIENT, SayHelo(b"c.test"))
        await mta.envelope()
        await mta.say(EndOfHeaders())
        assert await mta.ask(Body(b"1234")) == Continue()
        assert await mta.ask(Body(b"56")) == Skip()
        assert await mta.ask(EndOfMessage()) == Accept()


@pytest.mark.parametrize("offer", [{}, {"protocol": NO_SILENCE}], ids=["silent", "loud"])
@pytest.mark.parametrize(
    ("too_large", "answer", "expected"),
    [
        (TooLarge.REJECT, TOO_LARGE, None),
        (TooLarge.CLEAR, Accept(), (0, 6, True)),
        (TooLarge.TRUNCATE, Accept(), (3, 6, True)),
    ],
)
async def test_headers_have_a_limit(too_large, answer, expected, offer):
    seen: list[object] = []
    headers = HeaderOptions(max_count=3, too_large=too_large)
    async with serving(lengths(seen), headers=headers, offer=offer) as mta:
        await mta.say(CLIENT, SayHelo(b"c.test"))
        assert await mta.envelope() + await mta.content(headers=4) == [answer]
        assert await mta.envelope() + await mta.content(headers=3) == [Accept()]
    assert seen == [*([expected] if expected else []), (3, 6, False)]


async def test_a_large_body_goes_to_a_file(tmp_path):
    async def look(trx: Transaction) -> Decision:
        trx.replace_body(b"> " + line for line in trx.body)
        assert trx.replacement is not None
        assert not trx.replacement.in_memory
        return ACCEPT

    async with serving(look, body=BodyOptions(memory=100, directory=str(tmp_path))) as mta:
        await mta.say(CLIENT, SayHelo(b"c.test"))
        await mta.envelope()
        *chunks, verdict = await mta.content(body=b"x" * 500 + b"\r\n")
    assert b"".join(chunk.chunk for chunk in chunks) == b"> " + b"x" * 500 + b"\r\n"
    assert verdict == Accept()


# Time


class Slow:
    """Takes its time, and notes how it ends."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, _trx: Transaction) -> Decision:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return ACCEPT


@pytest.mark.parametrize("point", DecideAt)
async def test_progress_is_told_while_it_runs(point, monkeypatch):
    monkeypatch.setattr(running, "PROGRESS_INTERVAL", 0.01)
    slow = Slow()
    async with serving(slow, decide_at=point) as mta:
        for message in SESSION:
            if message.code is POINTS[point]:
                assert await mta.ask(message) == Progress()
                assert await mta.receive() == Progress()
                slow.go.set()
                while (answer := await mta.receive()) == Progress():
                    pass
                assert answer == (Continue() if point is DecideAt.HELO else Accept())
                return
            await mta.say(message)


async def test_sendmail_is_told_of_progress_only_at_the_end(monkeypatch):
    monkeypatch.setattr(running, "PROGRESS_INTERVAL", 0.001)

    async def slow(_trx: Transaction) -> Decision:
        await asyncio.sleep(0.02)
        return ACCEPT

    version = macros(Command.CONNECT, v=b"8.17.1")
    async with serving(slow, decide_at=DecideAt.CONNECT) as mta:
        assert await mta.say(version, CLIENT) == [Accept()]
    async with serving(slow) as mta:
        await mta.say(version)
        assert (await mta.whole())[0] == Progress()


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_it_is_cancelled_when_the_mta_goes_away(leave):
    slow = Slow()
    async with MailFilter(slow, [ANY_PORT]) as mail_filter:
        async with Mta(mail_filter.endpoints[0]) as mta, asyncio.timeout(PATIENCE):
            await mta.offer()
            await mta.say(*SESSION[:-1])
            mta.send(EndOfMessage())
            await slow.started.wait()
            if leave == "reset":
                await mta.reset()
        async with asyncio.timeout(PATIENCE):
            await slow.cancelled.wait()


async def test_close_cancels_and_shutdown_waits():
    slow = Slow()
    async with MailFilter(slow, [ANY_PORT]) as mail_filter, Mta(mail_filter.endpoints[0]) as mta:
        await mta.offer()
        await mta.say(*SESSION[:-1])
        mta.send(EndOfMessage())
        await slow.started.wait()
        async with asyncio.TaskGroup() as group, asyncio.timeout(PATIENCE):
            group.create_task(mail_filter.shutdown(PATIENCE))
            waiting = group.create_task(mail_filter.wait_closed())
            slow.go.set()
            assert await mta.receive() == Accept()
            mta.send(Quit())
            await waiting
        assert not slow.cancelled.is_set()

    slow = Slow()
    async with MailFilter(slow, [ANY_PORT]) as mail_filter, Mta(mail_filter.endpoints[0]) as mta:
        await mta.offer()
        await mta.say(*SESSION[:-1])
        mta.send(EndOfMessage())
        await slow.started.wait()
        await mail_filter.close()
        assert slow.cancelled.is_set()


# The server


async def test_it_listens_on_several_addresses(tmp_path):
    path = tmp_path / "socket"
    async with MailFilter(always(ACCEPT), [ANY_PORT, f"unix:{path}"]) as mail_filter:
        assert len(mail_filter.endpoints) == 2
        for endpoint in mail_filter.endpoints:
            async with Mta(endpoint) as mta:
                await mta.offer()
                assert await mta.whole() == [Accept()]
    assert not path.exists()


async def test_it_says_why_it_cannot_listen(tmp_path):
    with pytest.raises(MilterConnectError, match="No such file"):
        await MailFilter(always(ACCEPT), [f"unix:{tmp_path}/no/socket"]).start()


async def test_limits_and_negotiation_of_the_server():
    settings = {
        "server": ServerOptions(connections=1),
        "negotiation": NegotiationOptions(max_version=4),
    }
    async with serving(edit, **settings) as mta:
        assert mta.agreed.version == 4
        assert await mta.whole() == [AddHeader(b"X-Seen", b"yes"), Accept()]
