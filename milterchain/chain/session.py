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
import itertools
from collections.abc import Sequence

from milterchain.chain.briefing import Briefing, Event
from milterchain.chain.client import AuthInfo, ClientInfo, TLSInfo, client_values, connect_event
from milterchain.chain.fanout import decide, drain
from milterchain.chain.line import Step, Story
from milterchain.chain.member import Member
from milterchain.chain.observer import Observer
from milterchain.chain.pipeline import ContentOutcome, run_content
from milterchain.chain.plan import EVENT_TIMEOUT, MilterPlan
from milterchain.chain.settings import MilterSettings
from milterchain.chain.values import MESSAGE_VALUES, mail_values, protocol_name, rcpt_values, refused_values
from milterchain.chain.verdict import CONTINUE, Kind, Verdict, combine
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
    ) -> None:
        names = [milter.name for milter in milters]
        if len(set(names)) < len(names):
            raise ValueError(f"milters with the same name: {names}")
        self.hostname = hostname
        self.message_timeout = message_timeout
        self.observer = observer
        self.spool = spool
        self._plans = tuple(MilterPlan(settings) for settings in milters)

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
        return ChainSession(self, client, [Member(plan, observer) for plan in self._plans], observer)


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
        self.macros = client_values(client, chain.hostname)
        self.standing = CONTINUE
        self.discarded: str | None = None
        self._chain = chain
        self._client = client
        self._observer = observer
        self._members = members
        self._connect = connect_event(client)
        self._helo: Helo | None = None
        self._mail: Mail | None = None
        self._recipients: list[tuple[int, Path]] = []
        self._numbers = 0
        self._tls = client.tls is not None
        self._auth = client.auth is not None
        self._closed = False

    @property
    def negotiated(self) -> dict[str, Negotiated | None]:
        """What each milter has agreed on, by name in configured order; None if it was never open."""
        return {member.name: member.negotiated for member in self._members}

    # The session

    async def connect(self) -> Verdict:
        """Connect to all milters and introduce the client."""
        return self._stands(await self._open(self._members))

    async def helo(self, name: bytes, esmtp: bool) -> Verdict:  # noqa: FBT001 - reads like the command
        """HELO or EHLO, each time. It ends an open transaction."""
        self.abort()
        if self.standing.decides:
            return self.standing
        self._helo = Helo(name)
        self.macros[b"s"] = name
        self.macros[b"r"] = protocol_name(esmtp=esmtp, tls=self._tls, auth=self._auth)
        return self._stands(await self._fan_out(self._helo))

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
        return await self._fan_out(Unknown(line.replace(b"\0", b"")))

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
        lost = [member for member in self._members if member.must_reopen]
        if lost:
            await self._open(lost)
        self.macros |= mail_values(path, queue_id)
        self.macros[b"nrcpts"] = b"0"
        self._mail = Mail(path.address, path.args)
        return self._decided(await self._fan_out(self._mail))

    async def rcpt(self, path: Path) -> Verdict:
        """RCPT. A refusal is about this recipient only."""
        self._in_transaction("RCPT")
        if self.discarded is not None:
            return CONTINUE
        number = self._number()
        self.macros |= rcpt_values(path)
        verdict = await self._fan_out(Rcpt(path.address, path.args), recipient=number)
        if verdict.kind is Kind.DISCARD:
            return self._decided(verdict)
        if not verdict.decides:
            self._recipients.append((number, path))
            self.macros[b"nrcpts"] = b"%d" % len(self._recipients)
        return verdict

    async def rcpt_refused(self, path: Path, reply: Reply) -> None:
        """A recipient that somebody else has refused: milters that want to know are told."""
        members = [member for member in self._members if member.hears_refused]
        if not members or self._mail is None or self.discarded is not None:
            return
        await self._catch_up(members)
        briefing = Briefing(Rcpt(path.address, path.args), {**self.macros, **refused_values(reply)})
        number = self._number()
        for member in members:
            member.event(briefing, recipient=number, muted=True)

    async def data(self) -> Verdict:
        """DATA, with at least one recipient. If the verdict refuses it, the transaction is over."""
        story = self._story()
        if self.discarded is not None:
            return CONTINUE
        briefing = Briefing(Data(), self.macros)
        answers: list[tuple[Member, Step]] = []
        for member in self._members:
            answers += ((member, member.retell(story)), (member, member.event(briefing)))
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
                self._members,
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

    async def _open(self, members: Sequence[Member]) -> Verdict:
        """Connect, and introduce the client to each milter as soon as it is there."""
        deadline = asyncio.get_running_loop().time() + EVENT_TIMEOUT
        greetings = [Briefing(self._connect, self.macros)]
        if self._helo is not None:
            greetings.append(Briefing(self._helo, self.macros))
        resumed = [member.resume() for member in members]
        if not all(resumed):
            return await self._side_by_side(members, greetings, deadline)
        verdict = CONTINUE
        for greeting in greetings:
            verdict = await decide([(member, member.event(greeting)) for member in members], deadline)
            if verdict.decides:
                break
        # Whoever stands behind a refusal could not change the answer.
        before = itertools.takewhile(lambda member: member.name != verdict.milter, members)
        lost = [member for member in before if member.lost]
        if not lost:
            return verdict
        return combine([await self._side_by_side(lost, greetings, deadline), verdict])

    async def _side_by_side(
        self, members: Sequence[Member], greetings: Sequence[Briefing], deadline: float
    ) -> Verdict:
        """Let each member open, if it has no connection, and hear of the client, none waiting for another."""
        if len(members) == 1:
            return combine([await self._one(members[0], greetings, deadline)])
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(member, greetings, deadline)) for member in members]
            for task in tasks:
                verdict = await task
                if verdict.decides:
                    for other in tasks:
                        other.cancel()
                    return verdict
        return CONTINUE

    @staticmethod
    async def _one(member: Member, greetings: Sequence[Briefing], deadline: float) -> Verdict:
        while True:
            verdict = await member.open()
            for greeting in greetings:
                if verdict.kind is not Kind.CONTINUE or member.lost:
                    break
                verdict = await decide([(member, member.event(greeting))], deadline)
            if not member.lost:
                return verdict

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

    async def _fan_out(self, event: Event, *, recipient: int | None = None) -> Verdict:
        await self._catch_up(self._members)
        briefing = Briefing(event, self.macros)
        return await decide(
            [(member, member.event(briefing, recipient=recipient)) for member in self._members]
        )

    @staticmethod
    async def _catch_up(members: Sequence[Member]) -> None:
        behind = [member for member in members if member.behind]
        if behind:
            await drain(behind, asyncio.get_running_loop().time() + EVENT_TIMEOUT)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _in_transaction(self, event: str) -> Mail:
        if self._mail is None:
            raise LocalProtocolError(f"{event} without MAIL")
        return self._mail

    def _story(self) -> Story:
        mail = self._in_transaction("DATA")
        return Story(mail, tuple(self._recipients), dict(self.macros))

    async def _settle(self, deadline: float) -> Verdict:
        """Bring in line those that know an envelope that is not true any more."""
        if self.discarded is not None:
            return Verdict(kind=Kind.DISCARD, milter=self.discarded)
        story = self._story()
        return await decide([(member, member.retell(story)) for member in self._members], deadline)
