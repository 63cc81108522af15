"""Mail under fire: seeded clients and seeded killers, and the ledger that holds both to account."""

import asyncio
import contextlib
import enum
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from integration.services.filters import Filter
from integration.services.gate import Gate
from integration.services.postfix import Postfix
from integration.services.sink import Received
from integration.services.smtp import stuff

REPLY_TIMEOUT = 120.0
"""Seconds a client waits for a reply; milterchain is never killed and always has to answer."""

SESSIONS = 20
PAUSE_AFTER_REFUSAL = 0.05
"""Seconds a refused client waits before its next message, so that an outage does not use them all up."""


class Fate(enum.Enum):
    """What a client knows of its message."""

    ACCEPTED = "250 to the final dot"
    REFUSED = "4xx or 5xx"
    ABANDONED = "the client broke off before the final dot"
    UNKNOWN = "the client broke off after the final dot"
    UNANSWERED = "the client waited and got no reply"


class Behaviour(enum.Enum):
    """What a client does with one message."""

    SEND = "MAIL, RCPT, DATA one by one"
    PIPELINE = "MAIL, RCPT, DATA in one write"
    LEAVE_AFTER_MAIL = "close after MAIL"
    LEAVE_AFTER_RCPT = "close after RCPT"
    LEAVE_IN_DATA = "close in the content"
    LEAVE_AFTER_DOT = "close without waiting for the reply to the content"
    RESET = "RSET after RCPT"


WEIGHTS = {
    Behaviour.SEND: 66,
    Behaviour.PIPELINE: 20,
    Behaviour.LEAVE_AFTER_MAIL: 2,
    Behaviour.LEAVE_AFTER_RCPT: 2,
    Behaviour.LEAVE_IN_DATA: 4,
    Behaviour.LEAVE_AFTER_DOT: 4,
    Behaviour.RESET: 2,
}
SIZES = ((2_000, 60), (16_000, 25), (100_000, 12), (600_000, 2), (2_000_000, 1))
"""Mean sizes of bodies in bytes, and how many of a hundred have them."""


@dataclass(frozen=True, slots=True)
class Message:
    """One attempt; everything follows from the seed and the number."""

    number: int
    size: int
    behaviour: Behaviour

    @classmethod
    def make(cls, seed: int, number: int) -> "Message":
        """The message of this number."""
        chance = random.Random(f"{seed}/{number}")
        mean = chance.choices([mean for mean, _ in SIZES], [weight for _, weight in SIZES])[0]
        behaviour = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        return cls(number, chance.randrange(mean * 2), behaviour)

    @property
    def recipient(self) -> str:
        """An address that no other message has."""
        return f"m{self.number}@example.test"

    @property
    def body(self) -> bytes:
        """Lines that differ from those of every other message, some with dots."""
        line = b".%d the quick brown fox\r\n.\r\n" % self.number
        return line * (self.size // len(line) + 1)

    @property
    def content(self) -> bytes:
        """Headers and body."""
        return (
            b"From: sender@example.test\r\nTo: %b\r\nSubject: %d\r\nMessage-ID: <%d@client.example.test>\r\n"
            b"\r\n%b" % (self.recipient.encode(), self.number, self.number, self.body)
        )


@dataclass(slots=True)
class Ledger:
    """What every client was told."""

    fates: dict[int, Fate] = field(default_factory=dict)
    replies: Counter[bytes] = field(default_factory=Counter)

    def count(self, fate: Fate) -> int:
        """How many messages met this fate."""
        return sum(1 for each in self.fates.values() if each is fate)


class RefusedError(Exception):
    """The server said no; the argument is the reply."""


class GoneError(Exception):
    """The server closed the connection without a reply."""


class Session:
    """One client's SMTP session."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self._writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, address: str) -> "AsyncIterator[Session]":
        """Connect, read the banner, say EHLO."""
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        try:
            session = cls(reader, writer)
            await session.expect(b"220")
            await session.command(b"EHLO client.example.test")
            yield session
        finally:
            writer.transport.abort()

    async def expect(self, code: bytes) -> bytes:
        """Read one reply.

        Raises:
            RefusedError: it has another code.
            GoneError: there is none.
        """
        async with asyncio.timeout(REPLY_TIMEOUT):
            while True:
                try:
                    line = await self._reader.readline()
                except ConnectionError:
                    raise GoneError from None
                if not line.endswith(b"\n"):
                    raise GoneError
                if line[3:4] != b"-":
                    break
        if not line.startswith(code):
            raise RefusedError(line.rstrip())
        return line

    async def command(self, line: bytes, code: bytes = b"250") -> bytes:
        """Send one command and read its reply."""
        self.write(line + b"\r\n")
        return await self.expect(code)

    def write(self, data: bytes) -> None:
        """Send without waiting; loss shows at the next reply."""
        self._writer.write(data)

    async def transact(self, message: Message) -> Fate:
        """One message, as its behaviour says."""
        mail, rcpt = b"MAIL FROM:<sender@example.test>", b"RCPT TO:<%b>" % message.recipient.encode()
        match message.behaviour:
            case Behaviour.PIPELINE:
                self.write(mail + b"\r\n" + rcpt + b"\r\nDATA\r\n")
                await self._expect_all(b"250", b"250", b"354")
            case Behaviour.LEAVE_AFTER_MAIL:
                await self.command(mail)
                return Fate.ABANDONED
            case _:
                await self.command(mail)
                await self.command(rcpt)
        if message.behaviour is Behaviour.LEAVE_AFTER_RCPT:
            return Fate.ABANDONED
        if message.behaviour is Behaviour.RESET:
            await self.command(b"RSET")
            return Fate.ABANDONED
        if message.behaviour is not Behaviour.PIPELINE:
            await self.command(b"DATA", b"354")
        content = stuff(message.content)
        if message.behaviour is Behaviour.LEAVE_IN_DATA:
            self.write(content[: random.Random(message.number).randrange(len(content) - 4)])
            await self._drain()
            return Fate.ABANDONED
        self.write(content)
        if message.behaviour is Behaviour.LEAVE_AFTER_DOT:
            await self._drain()
            return Fate.UNKNOWN
        await self.expect(b"250")
        return Fate.ACCEPTED

    async def _expect_all(self, *codes: bytes) -> None:
        """Read the replies to pipelined commands; the first refusal counts, the others are read too."""
        refusal: RefusedError | None = None
        for code in codes:
            try:
                await self.expect(code)
            except RefusedError as error:
                refusal = refusal or error
        if refusal is not None:
            raise refusal

    async def _drain(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()


LEAVING = {
    Behaviour.LEAVE_AFTER_MAIL,
    Behaviour.LEAVE_AFTER_RCPT,
    Behaviour.LEAVE_IN_DATA,
    Behaviour.LEAVE_AFTER_DOT,
}


class Clients:
    """Send until so many messages were accepted."""

    def __init__(self, address: str, *, seed: int, accepted: int):
        self.ledger = Ledger()
        self._address = address
        self._seed = seed
        self._wanted = accepted
        self._accepted = 0
        self._next = 0

    async def run(self, sessions: int = SESSIONS) -> None:
        """All sessions side by side."""
        async with asyncio.TaskGroup() as group:
            for number in range(sessions):
                group.create_task(self._client(random.Random(f"{self._seed}/client/{number}")))

    async def _client(self, chance: random.Random) -> None:
        while self._accepted < self._wanted:
            try:
                async with Session.open(self._address) as session:
                    for _ in range(chance.randrange(1, 9)):
                        if not await self._one(session, chance):
                            break
            except (RefusedError, GoneError, ConnectionError):
                # Banner or EHLO: no message was at stake.
                await asyncio.sleep(PAUSE_AFTER_REFUSAL)

    async def _one(self, session: Session, chance: random.Random) -> bool:
        """One message; whether the session may go on."""
        message = Message.make(self._seed, self._next)
        self._next += 1
        try:
            fate = await session.transact(message)
        except RefusedError as error:
            self.ledger.fates[message.number] = Fate.REFUSED
            self.ledger.replies[error.args[0]] += 1
            await asyncio.sleep(PAUSE_AFTER_REFUSAL)
            return await self._reset(session) if chance.random() < 0.5 else False
        except (GoneError, ConnectionError):
            self.ledger.fates[message.number] = Fate.UNANSWERED
            return False
        self.ledger.fates[message.number] = fate
        self._accepted += fate is Fate.ACCEPTED
        return message.behaviour not in LEAVING

    async def _reset(self, session: Session) -> bool:
        try:
            await session.command(b"RSET")
        except (RefusedError, GoneError, ConnectionError):
            return False
        return True


@dataclass(slots=True)
class Killers:
    """Kill and restart the filters and the next hop at random moments, until told to stop.

    Attributes:
        kills: how often each was killed.
    """

    filters: Sequence[Filter]
    postfix: Postfix
    gate: Gate
    seed: int
    kills: Counter[str] = field(default_factory=Counter)

    async def run(self, finished: asyncio.Event) -> None:
        """All killers side by side, until `finished`; everything runs again afterwards."""
        async with asyncio.TaskGroup() as group:
            for each in self.filters:
                group.create_task(self._kill_filter(each, finished))
            group.create_task(self._kill_next_hop(finished))

    async def _kill_filter(self, victim: Filter, finished: asyncio.Event) -> None:
        chance = random.Random(f"{self.seed}/{victim.name}")
        while not await _set_within(finished, chance.uniform(1, 5)):
            victim.kill()
            self.kills[victim.name] += 1
            await asyncio.sleep(chance.uniform(0, 0.2))
            await asyncio.to_thread(victim.start)

    async def _kill_next_hop(self, finished: asyncio.Event) -> None:
        chance = random.Random(f"{self.seed}/next hop")
        while not await _set_within(finished, chance.uniform(1, 5)):
            await self.gate.close_for_cut()
            self.postfix.kill()
            self.gate.cut()
            self.kills[self.postfix.name] += 1
            await asyncio.sleep(chance.uniform(0, 0.3))
            await asyncio.to_thread(self.postfix.start)
            await self.gate.listen()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Audit:
    """What was told against what arrived.

    Attributes:
        lost: accepted, and not there.
        duplicated: there more than once, as different messages of the next hop.
        unwanted: refused or abandoned, and there.
        damaged: there with another body, or without what a filter should have added.
        redelivered: how often Postfix delivered the same queue file again because it was killed between
            the sink's reply and its own bookkeeping; that is its business, not ours.
    """

    lost: list[int]
    duplicated: list[int]
    unwanted: list[int]
    damaged: list[int]
    redelivered: int


def audit(ledger: Ledger, arrived: Sequence[Received], *, seed: int, headers: Sequence[str]) -> Audit:
    """Hold the ledger against the sink."""
    by_number: dict[int, dict[str, Received]] = {}
    for received in arrived:
        number = int(received.recipients[0].partition("<m")[2].partition("@")[0])
        by_number.setdefault(number, {})[received.queue_id] = received
    undelivered = {Fate.REFUSED, Fate.ABANDONED}

    def damaged(number: int) -> bool:
        body = hashlib.sha256(Message.make(seed, number).body).hexdigest()
        return any(
            each.body_sha256 != body or any(each.headers.count(name) != 1 for name in headers)
            for each in by_number[number].values()
        )

    return Audit(
        lost=[n for n, fate in ledger.fates.items() if fate is Fate.ACCEPTED and n not in by_number],
        duplicated=[n for n, copies in by_number.items() if len(copies) > 1],
        unwanted=[n for n, fate in ledger.fates.items() if fate in undelivered and n in by_number],
        damaged=[n for n in by_number if damaged(n)],
        redelivered=len(arrived) - sum(len(copies) for copies in by_number.values()),
    )
