"""The chain: milters in configured order, and one SMTP session that passes through them.

A front end reports what its client does and gets a `Verdict` for each event; what a verdict means in SMTP is
the front end's business (`milterchain.chain.verdict` has functions for that). It calls one method at a time
and `close` at the end, which is safe at any time, even while another method runs or after it was cancelled.

What a front end must know:

- A refusal at CONNECT or HELO stands for the session: the same verdict is the answer to all that follows.
- A refusal at MAIL or DATA ends the transaction; at RCPT it is about that recipient only.
- DISCARD, at any point, is a success for the client; from then on the milters hear nothing of this message.
- After `content` the transaction is over, whatever the outcome. `abort` ends it earlier.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from milterchain.chain.attendance import Attendance
from milterchain.chain.breaker import Breaker, BreakerChange, BreakerOptions
from milterchain.chain.briefing import Briefing, Event
from milterchain.chain.client import AuthInfo, ClientInfo, TLSInfo, client_values, connect_event
from milterchain.chain.fanout import decide, drain
from milterchain.chain.greeting import greet, introduce
from milterchain.chain.line import Step, Story
from milterchain.chain.member import Member
from milterchain.chain.observed import OBSERVED_LAG, watch
from milterchain.chain.observer import Observer
from milterchain.chain.pipeline import ContentOutcome, run_content
from milterchain.chain.plan import EVENT_TIMEOUT, MilterPlan
from milterchain.chain.settings import MilterSettings
from milterchain.chain.values import MESSAGE_VALUES, mail_values, protocol_name, rcpt_values, refused_values
from milterchain.chain.verdict import CONTINUE, Kind, Verdict
from milterchain.errors import LocalProtocolError
from milterchain.mail.body import SpoolSettings
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.milter.messages import Data, Helo, Mail, Rcpt, Unknown
from milterchain.milter.negotiation import Negotiated

__all__ = ["Chain", "ChainSession", "ClientInfo", "ContentOutcome"]

MESSAGE_TIMEOUT = 540.0
"""Seconds for the content stage of all milters together: below the ten minutes that SMTP clients wait for the
answer to the final dot (RFC 5321 4.5.3.2.6)."""
CLOSE_TIMEOUT = 5.0
"""Seconds in which milters that still owe a reply may give it before they are cut off."""


class Chain:
    """The milters of a configuration. Sessions hold the connections, `close` ends those that are kept.

    Args:
        milters: in the order in which they count.
        hostname: our own name.
        message_timeout: seconds for the content of a message in all milters together.
        observer: hears of all sessions.
        spool: where large new bodies go.
        breaker: when a milter that keeps failing is left alone; None is never.
        on_breaker: is told when one is, and when it is back.

    Raises:
        ValueError: two milters have the same name.
    """

    def __init__(
        self,
        milters: Sequence[MilterSettings],
        *,
        hostname: bytes,
        message_timeout: float = MESSAGE_TIMEOUT,
        observer: Observer | None = None,
        spool: SpoolSettings | None = None,
        breaker: BreakerOptions | None = None,
        on_breaker: Callable[[BreakerChange], None] = lambda _: None,
    ) -> None:
        names = [milter.name for milter in milters]
        if len(set(names)) < len(names):
            raise ValueError(f"milters with the same name: {names}")
        self.hostname = hostname
        self.message_timeout = message_timeout
        self.observer = observer
        self.spool = spool
        self._plans = tuple(
            MilterPlan(settings, Breaker(settings.name, breaker, on_breaker) if breaker else None)
            for settings in milters
        )

    @property
    def observed(self) -> Mapping[str, Mapping[str, int]]:
        """What milters that are only observed would have done so far, in numbers, by name."""
        return {plan.settings.name: plan.counts for plan in self._plans if plan.observed}

    async def close(self) -> None:
        """Close the connections that are kept for later sessions. May be called again."""
        for plan in self._plans:
            if plan.idle is not None:
                await plan.idle.close()

    def session(self, client: ClientInfo, *, observer: Observer | None = None) -> "ChainSession":
        """Begin a session; no connection is made before `connect`.

        Args:
            client: who connected.
            observer: hears of this session, in place of the chain's.
        """
        observer = observer if observer is not None else self.observer
        members = [Member(plan, observer) for plan in self._plans if plan.conditions.client(client)]
        return ChainSession(self, client, members, observer)


class ChainSession:
    """One SMTP session. Made by `Chain.session`.

    Attributes:
        macros: what milters can be told, by name without braces; front ends may add to it.
        standing: the refusal of CONNECT or HELO that stands, else Continue.
        discarded: the milter that discards the present message.
    """

    def __init__(
        self, chain: Chain, client: ClientInfo, members: Sequence[Member], observer: Observer | None
    ) -> None:
        self.macros: dict[bytes, bytes] = {}
        self.standing = CONTINUE
        self.discarded: str | None = None
        self._chain = chain
        self._client = client
        self._observer = observer
        self._members = members
        self._roll = Attendance(members)
        self._helo: Helo | None = None
        self._mail: Mail | None = None
        self._recipients: list[tuple[int, Path]] = []
        self._numbers = 0
        self._tls = client.tls is not None
        self._auth = client.auth is not None
        self._closed = False

    @property
    def negotiated(self) -> dict[str, Negotiated | None]:
        """What each milter that hears of this client has agreed on, by name; None if it was never open."""
        return {member.name: member.negotiated for member in self._members}

    # The session

    async def connect(self) -> Verdict:
        """Connect to all milters and introduce the client."""
        self.macros = client_values(self._client, self._chain.hostname) | self.macros
        return self._stands(await greet(self._roll.early, self._greetings(), _latest()))

    async def helo(self, name: bytes, esmtp: bool) -> Verdict:  # noqa: FBT001 - reads like the command
        """HELO or EHLO, each time. It ends an open transaction."""
        self.abort()
        if self.standing.decides:
            return self.standing
        self._helo = Helo(name)
        self.macros[b"s"] = name
        self.macros[b"r"] = protocol_name(esmtp=esmtp, tls=self._tls, auth=self._auth)
        for member in self._roll.late:
            self._tell(member, Briefing(self._helo, self.macros))
        return self._stands(await self._fan_out(self._helo, self._roll.early))

    def identify(self, client: ClientInfo) -> None:
        """More is known of the client now: its names. Before `connect`."""
        self._client = client

    def tls(self, info: TLSInfo) -> None:
        """The client has begun TLS. It says EHLO again after that; milters hear of TLS then."""
        self.abort()
        self._tls = True
        self.macros |= info.values()

    def auth(self, info: AuthInfo) -> None:
        """The client has authenticated; milters hear of it at the next MAIL."""
        self._auth = True
        self.macros |= info.values()
        if self.macros.get(b"r", b"").startswith(b"ESMTP"):
            self.macros[b"r"] = protocol_name(esmtp=True, tls=self._tls, auth=True)

    async def unknown(self, line: bytes) -> Verdict:
        """A line that is no command."""
        if self.standing.decides or self.discarded is not None:
            return self.standing
        return await self._fan_out(Unknown(line.replace(b"\0", b"")), self._roll.early)

    async def settled(self) -> None:
        """Wait until no milter owes an answer, for those who want to see all."""
        await drain(self._members, _latest())

    async def close(self) -> None:
        """End the session. May be called again."""
        if self._closed:
            return
        self._closed = True
        for member in self._members:
            member.quit()
        busy = [member for member in self._members if member.busy]
        try:
            if busy:
                await drain(busy, asyncio.get_running_loop().time() + CLOSE_TIMEOUT)
        finally:
            for member in busy:
                member.drop()

    # A transaction

    async def mail(self, path: Path, queue_id: bytes) -> Verdict:
        """MAIL. If the verdict refuses it, no transaction is open.

        Args:
            path: the sender, as typed.
            queue_id: what the message will be known by, in logs and to milters.
        """
        self.abort()
        if self.standing.decides:
            return self.standing
        told = self._roll.begin(path, authenticated=self._auth)
        await self._introduce(told)
        self.macros |= mail_values(path, queue_id)
        self.macros[b"nrcpts"] = b"0"
        self._mail = Mail(path.address, path.args)
        return self._decided(await self._fan_out(self._mail, told))

    async def rcpt(self, path: Path) -> Verdict:
        """RCPT. A refusal is about this recipient only."""
        mail = self._in_transaction("RCPT")
        if self.discarded is not None:
            return CONTINUE
        number = self._number()
        if joining := self._roll.joining(path):
            await self._introduce(joining)
            briefing = Briefing(mail, self.macros)
            for member in joining:
                self._roll.joined(member, self._tell(member, briefing))
        self.macros |= rcpt_values(path)
        self.macros[b"nrcpts"] = b"%d" % (len(self._recipients) + 1)
        verdict = await self._tell_recipient(path, number)
        if verdict.kind is Kind.DISCARD:
            return self._decided(verdict)
        if not verdict.decides:
            self._recipients.append((number, path))
        self.macros[b"nrcpts"] = b"%d" % len(self._recipients)
        return verdict

    async def rcpt_refused(self, path: Path, reply: Reply) -> None:
        """A recipient that somebody else has refused: milters that want to know are told."""
        members = [member for member, _ in self._roll.hearing(path) if member.hears_refused]
        if not members or self._mail is None or self.discarded is not None:
            return
        await self._catch_up(members)
        briefing = Briefing(Rcpt(path.address, path.args), {**self.macros, **refused_values(reply)})
        number = self._number()
        for member in members:
            member.event(briefing, recipient=number, muted=True)

    async def data(self) -> Verdict:
        """DATA, with at least one recipient. If the verdict refuses it, the transaction is over."""
        self._in_transaction("DATA")
        if self.discarded is not None:
            return CONTINUE
        briefing = Briefing(Data(), self.macros)
        answers: list[tuple[Member, Step]] = []
        for member, retold in self._retell():
            told = retold, self._tell(member, briefing)
            answers += [(member, step) for step in told if not member.plan.observed]
        return self._decided(await decide(answers))

    async def content(
        self, message: Message, envelope: Envelope, *, deadline: float | None = None
    ) -> ContentOutcome:
        """The message has come in: pass it through the chain. The transaction is over then.

        Args:
            message: as it came in.
            envelope: the sender and the recipients that nobody refused.
            deadline: the loop time by which the verdict is wanted; never later than `message_timeout` allows.

        Raises:
            OSError: the message cannot be read, or a new body not be written.
            LocalProtocolError: there is no transaction.
        """
        latest = asyncio.get_running_loop().time() + self._chain.message_timeout
        deadline = latest if deadline is None else min(deadline, latest)
        self._in_transaction("content")
        try:
            verdict = await self._settle(deadline)
            if verdict.decides:
                return ContentOutcome(verdict=verdict, message=message, envelope=envelope)
            return await run_content(
                self._taking_part(),
                message,
                envelope,
                self.macros,
                deadline=deadline,
                observer=self._observer,
                spool=self._chain.spool,
            )
        finally:
            self.abort()

    def abort(self) -> None:
        """The transaction is over: RSET, a lost client, a message that was too large. May be called again."""
        if self._mail is None:
            return
        self._mail = None
        self._recipients = []
        self._numbers = 0
        self.discarded = None
        for name in MESSAGE_VALUES:
            self.macros.pop(name, None)
        for member in self._members:
            member.abort()

    # Inside

    def _greetings(self) -> list[Briefing]:
        """What a milter is told of the client when its connection is there."""
        greetings = [Briefing(connect_event(self._client), self.macros)]
        if self._helo is not None:
            greetings.append(Briefing(self._helo, self.macros))
        return greetings

    async def _introduce(self, members: Sequence[Member]) -> None:
        """Open those that are not, for a message that they are meant for."""
        lost = [member for member in members if member.must_reopen]
        if lost:
            await introduce(lost, self._greetings(), _latest())

    def _tell(self, member: Member, briefing: Briefing, recipient: int | None = None) -> Step:
        """Tell a member; what one says that is only observed is counted."""
        step = member.event(briefing, recipient=recipient)
        if member.plan.observed:
            watch(member, step)
        return step

    def _stands(self, verdict: Verdict) -> Verdict:
        if verdict.decides:
            self.standing = verdict
            for member in self._members:
                member.quit()
        return verdict

    def _decided(self, verdict: Verdict) -> Verdict:
        """Let go of the message if a verdict on all of it says so."""
        if verdict.kind is Kind.DISCARD:
            self.discarded = verdict.milter
            for member in self._members:
                member.abort()
        elif verdict.decides:
            self.abort()
        return verdict

    async def _fan_out(self, event: Event, members: Sequence[Member]) -> Verdict:
        await self._catch_up(members)
        briefing = Briefing(event, self.macros)
        answers = [(member, self._tell(member, briefing)) for member in members]
        return await decide([answer for answer in answers if not answer[0].plan.observed])

    async def _tell_recipient(self, path: Path, number: int) -> Verdict:
        hearing = self._roll.hearing(path)
        await self._catch_up([member for member, _ in hearing])
        briefing = Briefing(Rcpt(path.address, path.args), self.macros)
        answers: list[tuple[Member, Step]] = []
        for member, mail in hearing:
            step = self._tell(member, briefing, number)
            if not member.plan.observed:
                answers += [(member, step)] if mail is None else [(member, mail), (member, step)]
        return await decide(answers)

    @staticmethod
    async def _catch_up(members: Sequence[Member]) -> None:
        behind = [member for member in members if member.behind]
        if behind:
            now = asyncio.get_running_loop().time()
            await drain([member for member in behind if member.plan.observed], now + OBSERVED_LAG)
            await drain([member for member in behind if not member.plan.observed], now + EVENT_TIMEOUT)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _in_transaction(self, event: str) -> Mail:
        if self._mail is None:
            raise LocalProtocolError(f"{event} without MAIL")
        return self._mail

    def _taking_part(self) -> list[Member]:
        return self._roll.taking_part([path for _, path in self._recipients])

    def _retell(self) -> list[tuple[Member, Step]]:
        """Tell each member the envelope again that knows another one, as far as it concerns that member."""
        mail, values = self._in_transaction("DATA"), dict(self.macros)
        whole = Story(mail, tuple(self._recipients), values)
        told = []
        for member in self._taking_part():
            conditions, story = member.plan.conditions, whole
            if conditions.recipients is not None:
                its = tuple(each for each in self._recipients if conditions.recipient(each[1]))
                story = Story(mail, its, values)
            told.append((member, member.retell(story)))
        return told

    async def _settle(self, deadline: float) -> Verdict:
        """Bring in line those that know an envelope that is not true any more."""
        if self.discarded is not None:
            return Verdict(kind=Kind.DISCARD, milter=self.discarded)
        return await decide([answer for answer in self._retell() if not answer[0].plan.observed], deadline)


def _latest() -> float:
    return asyncio.get_running_loop().time() + EVENT_TIMEOUT
