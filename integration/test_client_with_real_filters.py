"""`MilterSession`, the engine of the proxy, by itself with filters that stand on libmilter.

OpenDKIM signs what another OpenDKIM verifies, OpenDMARC judges by that, a filter through python3-milter
makes every modification, and one in C answers everything or nothing. The content goes piece by piece and in
one stream: the outcome must be the same.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from integration.services.filters import (
    AUTHSERV,
    Filter,
    SigningKey,
    build_noop,
    make_key,
    start_editor,
    start_noop,
    start_opendkim,
    start_opendmarc,
)
from integration.services.process import Run
from milterchain.errors import MilterClosedError
from milterchain.mail import Message, apply_edits, parse_message
from milterchain.milter import (
    ALL_ACTIONS,
    Abort,
    Accept,
    Action,
    AddHeader,
    AddRecipient,
    AnyCommand,
    ChangeHeader,
    ChangeSender,
    ClientOptions,
    Command,
    Connect,
    Content,
    ContentResult,
    Continue,
    Data,
    DeleteRecipient,
    Discard,
    Family,
    Helo,
    InsertHeader,
    Mail,
    MilterSession,
    Rcpt,
    Reject,
    ReplaceBody,
    Reply,
    ReplyCode,
    TempFail,
    Unknown,
    parse_endpoint,
)

OPTIONS = ClientOptions(command_timeout=10, content_timeout=20)
CLIENT = Connect(hostname=b"client.example.test", family=Family.INET, port=4711, address=b"192.0.2.7")
FOREIGN = Connect(hostname=b"far.test", family=Family.INET6, port=4711, address=b"2001:db8::7")
"""OpenDKIM verifies no mail of hosts that are its own, and with the configuration here all IPv4 hosts are."""
MACROS = ((b"j", AUTHSERV.encode()), (b"{daemon_name}", b"test"), (b"{client_addr}", b"192.0.2.7"))
SENDER = b"<ann@example.test>"

HEADERS = (
    b"From: Ann <ann@example.test>\r\n"
    b"To: bob@x.test\r\n"
    b"Subject: a subject that\r\n\tis folded, with  two blanks \r\n"
    b"X-8bit: \xff\xfe\r\n"
    b"Date: Sun, 22 Nov 2026 12:00:00 +0000\r\n"
    b"Message-ID: <1@example.test>\r\n"
)
SMALL = HEADERS + b"\r\nHello\r\n.\r\n"
LARGE = HEADERS + b"\r\n" + b"A line of thirty-two octets: 0123\r\n" * 10_000
MESSAGES = pytest.mark.parametrize(
    "data", [SMALL, LARGE, HEADERS + b"\r\n"], ids=["small", "large", "no body"]
)
BOTH_WAYS = pytest.mark.parametrize("pipelined", [False, True], ids=["one by one", "in one stream"])


@pytest.fixture(scope="module")
def key(run: Run) -> SigningKey:
    return make_key(run)


@pytest.fixture(scope="module")
def signer(run: Run, key: SigningKey) -> Filter:
    return start_opendkim(run, key, name="signer")


@pytest.fixture(scope="module")
def verifier(run: Run, key: SigningKey) -> Filter:
    return start_opendkim(run, key, mode="v", name="verifier", unix=True)


@pytest.fixture(scope="module", params=[False, True], ids=["stripped", "leading space"])
def editor(run: Run, request: pytest.FixtureRequest) -> Filter:
    spaced = bool(request.param)
    options = ("--leading-space",) if spaced else ()
    return start_editor(run, f"red{int(spaced)}", *options, unix=spaced)


@asynccontextmanager
async def session_with(
    milter: Filter, options: ClientOptions = OPTIONS, *, client: Connect = CLIENT
) -> AsyncIterator[MilterSession]:
    """A session after HELO."""
    session = await MilterSession.open(parse_endpoint(milter.address), options)
    try:
        assert await reply(session, Connect.code, session.command(client, MACROS)) == Continue()
        await reply(session, Helo.code, session.command(Helo(b"client.example.test")))
        yield session
        await session.quit()
        assert session.failure is None
    finally:
        session.close()


async def reply(session: MilterSession, code: Command, future: asyncio.Future[Reply] | None) -> Reply:
    """What was answered; Continue if no answer is due."""
    assert (future is not None) == session.negotiated.replies(code)
    return Continue() if future is None else await future


async def envelope(session: MilterSession, sender: bytes = SENDER, *recipients: bytes) -> Reply:
    """MAIL, RCPT and DATA, up to the first refusal."""
    macros = ((b"i", b"4Zk1xQ"),)
    commands: list[AnyCommand] = [Mail(sender), *map(Rcpt, recipients or (b"<bob@x.test>",)), Data()]
    for command in commands:
        if (answer := await reply(session, command.code, session.command(command, macros))) != Continue():
            return answer
    return Continue()


async def send(session: MilterSession, message: Message, *, pipelined: bool) -> ContentResult:
    content = Content(headers=message.milter_headers(), body=message.body.chunks, body_size=len(message.body))
    macros = {Command.END_OF_MESSAGE: [(b"i", b"4Zk1xQ")]}
    return await session.content(content, pipelined=pipelined, macros=macros)


async def passed(
    milter: Filter, data: bytes, *, pipelined: bool, client: Connect = CLIENT
) -> tuple[ContentResult, bytes]:
    """What a filter made of a message."""
    async with session_with(milter, client=client) as session:
        assert await envelope(session) == Continue()
        message = parse_message(data)
        result = await send(session, message, pipelined=pipelined)
        edited, warnings = apply_edits(
            message, result.edits, leading_space=session.negotiated.leading_space, header_index="sendmail"
        )
        assert not warnings
        return result, b"".join(edited.chunks())


def authentication_results(data: bytes) -> bytes:
    head = data.partition(b"\r\n\r\n")[0]
    _, _, rest = head.partition(b"Authentication-Results: ")
    return rest.partition(b"\r\nFrom:")[0]


@BOTH_WAYS
@MESSAGES
async def test_what_one_opendkim_signs_another_verifies(
    signer: Filter, verifier: Filter, data: bytes, *, pipelined: bool
) -> None:
    result, signed = await passed(signer, data, pipelined=pipelined)
    assert result.reply == Accept()
    assert [type(edit) for edit in result.edits] == [InsertHeader]
    assert signed.startswith(b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/simple; d=example.test;")
    assert signed.endswith(data)
    result, verified = await passed(verifier, signed, pipelined=pipelined, client=FOREIGN)
    assert b"dkim=pass" in authentication_results(verified)
    assert verified.endswith(signed)
    damaged = signed.replace(b"Subject: a", b"Subject: A other")
    _, verified = await passed(verifier, damaged, pipelined=pipelined, client=FOREIGN)
    assert b"dkim=fail" in authentication_results(verified)


async def test_opendkim_signs_many_in_one_session(signer: Filter) -> None:
    message = parse_message(SMALL)
    async with session_with(signer) as session:
        for number in range(20):
            assert await envelope(session) == Continue()
            if number % 3 == 1:
                session.send(Abort())
            else:
                result = await send(session, message, pipelined=False)
                assert [edit.code for edit in result.edits] == [InsertHeader(0, b"", b"").code]
                if number % 3 == 2:
                    session.send(Abort())


@BOTH_WAYS
async def test_opendmarc_judges_by_what_opendkim_found(
    run: Run, signer: Filter, verifier: Filter, *, pipelined: bool
) -> None:
    opendmarc = start_opendmarc(run, name=f"opendmarc{int(pipelined)}", unix=pipelined)
    _, signed = await passed(signer, SMALL, pipelined=pipelined)
    _, verified = await passed(verifier, signed, pipelined=pipelined, client=FOREIGN)
    result, _ = await passed(opendmarc, verified, pipelined=pipelined, client=FOREIGN)
    assert result.reply in {Accept(), Continue()}
    assert any(isinstance(edit, InsertHeader) and b"dmarc=pass" in edit.value for edit in result.edits)
    result, _ = await passed(opendmarc, SMALL, pipelined=pipelined, client=FOREIGN)
    assert isinstance(result.reply, ReplyCode)
    assert result.reply.text.startswith(b"550 5.7.1 rejected by DMARC policy")


EDITS: Sequence[tuple[list[object], list[object]]] = [
    (["add", "X-A", "one\n\ttwo"], [AddHeader(b"X-A", b"one\n\ttwo")]),
    (["insert", 0, "X-I", "1"], [InsertHeader(0, b"X-I", b"1")]),
    (["change", 1, "Subject", "new"], [ChangeHeader(1, b"Subject", b"new")]),
    (["delete", 1, "X-8bit"], [ChangeHeader(1, b"X-8bit", b"")]),
    (["sender", "<new@x.test>"], [ChangeSender(b"<new@x.test>")]),
    (["recipient", "<more@x.test>"], [AddRecipient(b"<more@x.test>")]),
    (["recipient", "<dsn@x.test>", "NOTIFY=NEVER"], [AddRecipient(b"<dsn@x.test>", b"NOTIFY=NEVER")]),
    (["remove", "<bob@x.test>"], [DeleteRecipient(b"<bob@x.test>")]),
    (["progress"], []),
    (["body", "new ", "body\r\n"], [ReplaceBody(b"new "), ReplaceBody(b"body\r\n")]),
    (["repeat", "x" * 40_000, 3], [ReplaceBody(b"x" * 40_000)] * 3),
]


def asked_for(milter: Filter, edits: Sequence[Sequence[object]]) -> bytes:
    lines = [f"X-{milter.name}-Edit: {json.dumps(edit)}\r\n".encode() for edit in edits]
    return b"".join(lines) + SMALL


@BOTH_WAYS
async def test_each_modification_through_libmilter(editor: Filter, *, pipelined: bool) -> None:
    async with session_with(editor) as session:
        for edit, expected in EDITS:
            await envelope(session)
            message = parse_message(asked_for(editor, [edit]))
            result = await send(session, message, pipelined=pipelined)
            assert result.reply == Continue()
            *made, seen = result.edits
            assert made == expected
            assert isinstance(seen, AddHeader)


@BOTH_WAYS
@pytest.mark.parametrize("version", [2, 3, 4, 6])
async def test_all_modifications_in_each_version(editor: Filter, version: int, *, pipelined: bool) -> None:
    options = ClientOptions(version=version, content_timeout=20)
    async with session_with(editor, options) as session:
        assert session.negotiated.version == version
        assert session.negotiated.replies(Command.DATA) == (version >= 4)
        await envelope(session)
        message = parse_message(asked_for(editor, [edit for edit, _ in EDITS]))
        result = await send(session, message, pipelined=pipelined)
        *made, seen = result.edits
        assert made == [edit for _, expected in EDITS for edit in expected]
        assert isinstance(seen, AddHeader)
        assert b"headers=%d body=%d" % (len(message.milter_headers()), len(message.body)) in seen.value


VERDICTS = {"reject": Reject(), "tempfail": TempFail(), "discard": Discard(), "accept": Accept()}


@BOTH_WAYS
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "header", "eoh", "body", "eom"])
@pytest.mark.parametrize("what", [*VERDICTS, "reply5", "reply4", "reply421"])
async def test_each_verdict_through_libmilter(
    editor: Filter, stage: str, what: str, *, pipelined: bool
) -> None:
    sender = f"<verdict-{editor.name}-{stage}-{what}@x.test>".encode()
    async with session_with(editor) as session:
        verdict = await envelope(session, sender)
        if stage in {"mail", "rcpt", "data"}:
            assert verdict != Continue()
        else:
            result = await send(session, parse_message(SMALL), pipelined=pipelined)
            verdict = result.reply
            before_the_end = stage != "eom"
            assert (result.stage is not Command.END_OF_MESSAGE) == before_the_end
            assert session.closed == (pipelined and before_the_end)
            assert bool(result.edits) != before_the_end
        if what in VERDICTS:
            assert verdict == VERDICTS[what]
        else:
            assert isinstance(verdict, ReplyCode)
            assert verdict.text.startswith({"reply5": b"550", "reply4": b"450", "reply421": b"421"}[what])
        if not session.closed:
            session.send(Abort())
            await envelope(session)
            assert (await send(session, parse_message(SMALL), pipelined=False)).reply == Continue()


async def test_one_refused_recipient_among_others(editor: Filter) -> None:
    async with session_with(editor) as session:
        sender = f"<verdict-{editor.name}-rcpt-reject@x.test>".encode()
        assert await envelope(session, sender, b"<a@x.test>") == Reject()
        assert await reply(session, Command.UNKNOWN, session.command(Unknown(b"FOO bar"))) == Continue()
        assert await reply(session, Command.RCPT, session.command(Rcpt(b"<b@x.test>"))) == Reject()
        session.send(Abort())
        assert await envelope(session, SENDER, b"<a@x.test>", b"<b@x.test>") == Continue()
        assert (await send(session, parse_message(SMALL), pipelined=True)).reply == Continue()


@pytest.fixture(scope="module", params=[(), ("-n",)], ids=["replies", "no replies"])
def counted(run: Run, request: pytest.FixtureRequest) -> Iterator[Filter]:
    """A filter in C that adds a header."""
    options: tuple[str, ...] = request.param
    name = f"noop{len(options)}"
    milter = start_noop(run, build_noop(run), name, *options, "-a", "X-Id")
    yield milter
    milter.kill()


@BOTH_WAYS
@MESSAGES
async def test_a_filter_in_c(counted: Filter, data: bytes, *, pipelined: bool) -> None:
    async with session_with(counted) as session:
        assert session.negotiated.no_content_verdicts == (counted.name == "noop1")
        for _ in range(3):
            await envelope(session)
            result = await send(session, parse_message(data), pipelined=pipelined)
            assert result == ContentResult(
                Continue(), Command.END_OF_MESSAGE, (AddHeader(b"X-Id", b"4Zk1xQ"),)
            )
            session.send(Abort())


async def test_many_sessions_at_once(counted: Filter) -> None:
    async def one() -> None:
        async with session_with(counted) as session:
            for _ in range(5):
                await envelope(session)
                assert (await send(session, parse_message(LARGE), pipelined=True)).reply == Continue()

    async with asyncio.TaskGroup() as group:
        for _ in range(30):
            group.create_task(one())


async def test_less_than_a_filter_needs_is_refused(counted: Filter, signer: Filter) -> None:
    few = ClientOptions(actions=ALL_ACTIONS & ~Action.ADD_HEADERS)
    async with session_with(counted, few) as session:
        await envelope(session)
        assert (await send(session, parse_message(SMALL), pipelined=False)).reply == TempFail()
    with pytest.raises(MilterClosedError, match="OPTNEG"):
        async with session_with(signer, ClientOptions(actions=Action(0))):
            pass
