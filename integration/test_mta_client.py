"""The client for MTAs, and milter-check, against filters that others wrote."""

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from integration.services.filters import (
    Filter,
    make_key,
    start_editor,
    start_opendkim,
    start_opendmarc,
    start_rspamd,
)
from integration.services.process import Run
from milterchain.milter import (
    Accept,
    AddHeader,
    Command,
    Continue,
    Discard,
    Family,
    InsertHeader,
    MacroBag,
    MtaClient,
    MtaOptions,
    MtaSession,
    Protocol,
    ReplaceBody,
    Stage,
)

HEADERS = [(b"From", b" Ann <ann@example.test>"), (b"Subject", b" hello")]
OPTIONS = MtaOptions(command_timeout=5, content_timeout=10)


@pytest.fixture(scope="module")
def signer(run: Run) -> Filter:
    return start_opendkim(run, make_key(run))


@pytest.fixture(scope="module")
def editor(run: Run) -> Filter:
    return start_editor(run, "red", unix=True)


async def begin(session: MtaSession) -> None:
    await session.connect(b"client.example.test", Family.INET, 4711, b"192.0.2.7")
    await session.helo(b"client.example.test")


async def envelope(session: MtaSession, sender: bytes = b"<ann@example.test>") -> None:
    session.macros[b"i"] = b"4Zk1xQ"
    await session.mail(sender)
    await session.rcpt(b"<bob@example.test>")
    await session.data()


async def test_opendkim_signs(signer: Filter) -> None:
    async with MtaClient(signer.address, OPTIONS).session(MacroBag({b"j": b"mx.example.test"})) as session:
        await begin(session)
        for _ in range(2):
            await envelope(session)
            await session.headers(HEADERS)
            answer = await session.body_from(b"Hello\r\n")
            assert answer.reply == Accept()
            (signature,) = answer.modifications
            assert isinstance(signature, InsertHeader)
            assert (signature.index, signature.name) == (0, b"DKIM-Signature")
            assert b"d=example.test" in signature.value


async def test_a_libmilter_filter_hears_each_event(editor: Filter) -> None:
    async with MtaClient(editor.address, OPTIONS).session() as session:
        assert session.negotiated.version == 6
        await begin(session)
        await envelope(session)
        edit = json.dumps(["body", "new body\r\n"]).encode()
        assert not (await session.headers([*HEADERS, (b"X-red-Edit", b" " + edit)])).stops
        assert (await session.body(b"x" * 200_000)).asked
        answer = await session.end_of_message()
        assert answer.reply == Continue()
        body, seen = answer.modifications
        assert body == ReplaceBody(b"new body\r\n")
        assert isinstance(seen, AddHeader)
        assert b"headers=3 body=200000" in seen.value


async def test_a_verdict_of_a_libmilter_filter(editor: Filter) -> None:
    async with MtaClient(editor.address, OPTIONS).session() as session:
        await begin(session)
        await session.mail(b"<verdict-red-rcpt-reply5@example.test>")
        answer = await session.rcpt(b"<bob@example.test>")
        assert answer.refusal is not None
        assert answer.refusal.code // 100 == 5
        await session.abort()
        await envelope(session, b"<verdict-red-eom-discard@example.test>")
        await session.headers(HEADERS)
        assert (await session.body_from(b"Hello\r\n")).reply == Discard()


async def complete(session: MtaSession) -> None:
    await envelope(session)
    await session.headers(HEADERS)
    assert (await session.body_from(b"Hello\r\n")).reply == Continue()


async def discarded(session: MtaSession) -> None:
    await envelope(session, b"<verdict-red-eom-discard@example.test>")
    await session.headers(HEADERS)
    await session.body_from(b"Hello\r\n")


async def aborted_after(session: MtaSession) -> None:
    await complete(session)
    await session.abort()


async def nothing(session: MtaSession) -> None:
    del session


RESETS = [(complete, True), (envelope, True), (discarded, False), (aborted_after, False), (nothing, False)]


@pytest.mark.parametrize(("before", "reused"), RESETS)
async def test_libmilter_goes_on_after_a_reset(
    editor: Filter, before: Callable[[MtaSession], Awaitable[None]], *, reused: bool
) -> None:
    async with MtaClient(editor.address, OPTIONS).session() as session:
        await begin(session)
        await before(session)
        assert await session.reset() is reused
        await begin(session)
        await complete(session)


async def test_rspamd_answers_only_the_end(run: Run, nameserver: str) -> None:
    rspamd = start_rspamd(run, nameserver)
    options = MtaOptions(content_timeout=30, macros={Stage.CONNECT: [b"j", b"v"]})
    async with MtaClient(rspamd.address, options).session(MacroBag({b"j": b"mx.example.test"})) as session:
        assert session.negotiated.protocol & Protocol.NO_REPLY_RCPT
        await begin(session)
        await envelope(session)
        assert not (await session.headers([*HEADERS, (b"Subject", b" labbad")])).asked
        answer = await session.body_from(b"Hello\r\n")
        assert answer.event is Command.END_OF_MESSAGE
        assert answer.smtp is not None
        assert answer.smtp.startswith(b"554 ")


# milter-check


def milter_check(address: str, *arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        (sys.executable, "-m", "milterchain", "milter-check", "--connect", address, *map(str, arguments)),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.fixture
def eml(tmp_path: Path) -> Path:
    path = tmp_path / "message.eml"
    path.write_bytes(b"From: Ann <ann@example.test>\nTo: bob@example.test\nSubject: hello\n\nHello\n")
    return path


@pytest.mark.parametrize("options", [[], ["--abort-at", "body"], ["--new-session"], ["--no-abort"]])
def test_checked_messages_are_signed(signer: Filter, eml: Path, options: list[str]) -> None:
    code, out = milter_check(signer.address, *options, eml, eml, eml)
    assert code == 0
    assert out.count("insert_header index=0 name=DKIM-Signature") == 3


def test_a_filter_that_wants_more_than_is_offered(signer: Filter) -> None:
    code, out = milter_check(signer.address, "--actions", "none")
    assert code == 1
    assert "closed the connection when the reply to OPTNEG was due" in out


def test_opendmarc_refuses(run: Run, eml: Path) -> None:
    opendmarc = start_opendmarc(run)
    code, out = milter_check(opendmarc.address, "--client-addr", "203.0.113.5", "--json", eml)
    (message,) = json.loads(out)["messages"]
    assert (code, message["verdict"]) == (5, "reject")
    assert message["smtp"].startswith("550 5.7.1 rejected by DMARC policy")
    assert message["modifications"][0]["name"] == "Authentication-Results"


@pytest.mark.parametrize("version", [2, 3, 4, 6])
def test_each_version(editor: Filter, eml: Path, version: int) -> None:
    code, out = milter_check(editor.address, "--protocol-version", version, eml)
    assert code == 0
    assert f": version {version}, " in out
