"""A laboratory: scripted milters on real sockets, and sessions of a chain of them."""

import contextlib
import functools
import operator
from collections.abc import AsyncIterator

import pytest

from milterchain.chain.client import ClientInfo
from milterchain.chain.pipeline import ContentOutcome
from milterchain.chain.session import Chain, ChainSession
from milterchain.chain.settings import MilterSettings
from milterchain.chain.verdict import Kind, Verdict
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import parse_message
from milterchain.mail.replies import Reply
from milterchain.milter.endpoint import parse_endpoint
from milterchain.milter.flags import ALL_ACTIONS, Family, Protocol
from milterchain.milter.messages import OptNeg
from milterchain.testing.scripted_milter import ScriptedMilter

CLIENT = ClientInfo(
    address="192.0.2.7",
    family=Family.INET,
    port=4711,
    name=b"client.test",
    ptr=b"client.test",
    resolve=b"OK",
    local_address="192.0.2.1",
    local_port=25,
)
SENDER = Path(b"<sender@a.test>", (b"SIZE=10",))
RAW = b"Received: from x\r\nSubject:  hello\r\nMessage-ID: <1@a.test>\r\n\r\nbody\r\nmore\r\n"


def summary(verdict: Verdict) -> str:
    """A verdict in a few letters: c, d, or the reply."""
    if verdict.reply is not None:
        return str(verdict.reply)
    return {Kind.CONTINUE: "c", Kind.DISCARD: "d"}[verdict.kind]


class Lab:
    client = CLIENT
    sender = SENDER
    raw = RAW

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self.milters: list[ScriptedMilter] = []

    async def milter(self, script=(), **options) -> ScriptedMilter:
        """Start one more milter."""
        milter = await self._stack.enter_async_context(ScriptedMilter(script or {}, **options))
        self.milters.append(milter)
        return milter

    @staticmethod
    def settings(milter, name="m0", **settings) -> MilterSettings:
        endpoint = milter.endpoint if isinstance(milter, ScriptedMilter) else milter
        return MilterSettings(name=name, endpoint=parse_endpoint(endpoint), **settings)

    def chain(self, *settings, message_timeout=30.0, **options) -> Chain:
        """A chain of the milters started so far, named m0, m1, …; settings are dicts for each."""
        milters = [
            self.settings(milter, f"m{index}", **(settings[index] if index < len(settings) else {}))
            for index, milter in enumerate(self.milters)
        ]
        return Chain(milters, hostname=b"mx.test", message_timeout=message_timeout, **options)

    async def session(self, *settings, **options) -> ChainSession:
        """A new session, not connected yet; it is closed at the end of the test."""
        session = self.chain(*settings, **options).session(CLIENT)
        self._stack.push_async_callback(session.close)
        return session

    async def greeted(self, *settings, **options) -> ChainSession:
        """A session that has come to EHLO, all milters content with it."""
        session = await self.session(*settings, **options)
        assert not (await session.connect()).decides
        assert not (await session.helo(b"client.test", True)).decides
        return session

    async def transaction(self, session: ChainSession, *recipients: bytes) -> Envelope:
        """MAIL, RCPT, DATA, all of them taken."""
        paths = tuple(Path(recipient) for recipient in recipients or (b"<r@b.test>",))
        assert not (await session.mail(SENDER, b"Q1")).decides
        for path in paths:
            assert not (await session.rcpt(path)).decides
        assert not (await session.data()).decides
        return Envelope(SENDER, paths)

    async def send(self, session: ChainSession, *recipients: bytes, raw: bytes = RAW) -> ContentOutcome:
        """A whole transaction with its content."""
        envelope = await self.transaction(session, *recipients)
        return await session.content(parse_message(raw), envelope)

    @staticmethod
    def message(raw: bytes = RAW):
        return parse_message(raw)

    @staticmethod
    def wants(*bits: Protocol, version: int = 6, macros=None) -> OptNeg:
        """An answer to the option negotiation."""
        protocol = functools.reduce(operator.or_, bits, Protocol(0))
        return OptNeg(version=version, actions=ALL_ACTIONS, protocol=protocol, macros=macros or {})

    async def play(self, session: ChainSession, steps: str) -> list[str]:
        """Go through a session: what each step is told.

        Steps: C, H, M, R and a digit, X and a digit (a recipient that the next hop refused), T, E (content),
        U, A (RSET), Q.
        """
        return [await self._step(session, step) for step in steps.split()]

    async def _step(self, session: ChainSession, step: str) -> str:  # noqa: C901 - a table in disguise
        path = Path(b"<r%b@b.test>" % step[1:].encode())
        match step[0]:
            case "C":
                verdict = await session.connect()
            case "H":
                verdict = await session.helo(b"client.test", True)
            case "M":
                self.envelope = Envelope(SENDER)
                verdict = await session.mail(SENDER, b"Q1")
            case "R":
                verdict = await session.rcpt(path)
                if not verdict.decides or verdict.kind is Kind.DISCARD:
                    self.envelope = self.envelope.with_recipient(path)
            case "X":
                await session.rcpt_refused(path, Reply.of(550, "5.1.1 no such user"))
                return ""
            case "T":
                verdict = await session.data()
            case "E":
                self.outcome = await session.content(parse_message(RAW), self.envelope)
                verdict = self.outcome.verdict
            case "U":
                verdict = await session.unknown(b"FOO bar")
            case "A":
                session.abort()
                return ""
            case _:
                await session.close()
                return ""
        return summary(verdict)


@pytest.fixture(scope="session")
def make_lab() -> type[Lab]:
    return Lab


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with contextlib.AsyncExitStack() as stack:
        yield Lab(stack)
