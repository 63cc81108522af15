"""Sessions over real sockets: what each milter hears, and what the client is told."""

import asyncio

import pytest

from milterchain.chain.verdict import Kind
from milterchain.mail.envelope import Path
from milterchain.mail.replies import Reply
from milterchain.milter.flags import Command, Protocol
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    Connect,
    Continue,
    Discard,
    Helo,
    Mail,
    Rcpt,
    Reject,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
    Unknown,
)
from milterchain.testing.faults import InTurn, Late

R1, R2, R3 = Path(b"<r1@b.test>"), Path(b"<r2@b.test>"), Path(b"<r3@b.test>")


async def test_a_session_with_two_messages(lab):
    milter = await lab.milter()
    session = await lab.greeted()
    for _ in range(2):
        outcome = await lab.send(session)
        assert outcome.verdict.kind is Kind.CONTINUE
        assert outcome.message == lab.message() or outcome.message.size == len(lab.raw)
    await session.close()
    connection = await milter.wait_closed()
    assert connection.codes == "OCHMRTLLLNBEMRTLLLNBEQ"
    assert connection.violations == []
    assert connection.of(Connect)[0].hostname == b"client.test"
    assert connection.of(Helo) == [Helo(b"client.test")]
    assert connection.of(Mail)[0] == Mail(b"<sender@a.test>", (b"SIZE=10",))
    assert connection.of(Rcpt)[0] == Rcpt(b"<r@b.test>")


async def test_no_milters_at_all(lab):
    session = await lab.greeted()
    outcome = await lab.send(session)
    assert outcome.verdict.kind is Kind.CONTINUE
    assert (await session.unknown(b"FOO")).kind is Kind.CONTINUE
