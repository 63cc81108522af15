"""One SMTP transaction: recipients, then the message, through the milters to the next hop.

For each recipient: the access rule, then the next hop, live, then the milters. A next hop that has been told
who the client is (XCLIENT) decides itself whom this client may send to, where the rule would refuse. After
the final dot: our Received header, the milters, the next hop. The client hears of success only when the next
hop took the message (or a milter discarded it); what is in doubt is answered 4xx.

The next hop hears of a recipient before the milters do. What they then refuse, or change in the envelope, is
put right when the message is sent: the next hop gets the envelope as it is in the end.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from milterchain.chain.client import ClientInfo
from milterchain.chain.pipeline import ContentOutcome, Hold
from milterchain.chain.session import Chain, ChainSession
from milterchain.chain.verdict import Kind, Verdict
from milterchain.errors import NextHopError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.milter.flags import Family
from milterchain.proxy.access import AccessRule
from milterchain.proxy.caller import Caller
from milterchain.proxy.failed_logins import FailedLogins
from milterchain.proxy.holding import Holding
from milterchain.proxy.logs import Logger, get_logger, text
from milterchain.proxy.lookup import Lookup
from milterchain.proxy.quarantine import Record
from milterchain.proxy.queue_id import QueueIds
from milterchain.proxy.received import Trace, received_header
from milterchain.proxy.relay import NextHops, NextHopTransaction
from milterchain.proxy.relay_replies import failure_reply
from milterchain.smtp.tls import TLSSession

__all__ = ["BAD_ADDRESS", "OK", "Origin", "Services", "Transaction"]

OK: Final = Reply.of(250, "2.0.0 Ok")
BAD_ADDRESS: Final = Reply.of(451, "4.1.3 Bad address of an added recipient")
_TOO_LATE: Final = Reply.of(451, "4.4.2 Processing takes too long - try again later")
_INTERRUPTED: Final = Reply.of(421, "4.3.2 Service shutting down, closing connection")
_FAILED: Final = Reply.of(451, "4.3.0 Error: internal error, try again later")

_GRACE: Final = 5.0
"""Seconds after the deadline of a message at which the chain is not trusted any more to keep it."""
_FAULTS: Final = {"failed", "next hop failed", "not stored", "refused by quarantine", "timed out"}
"""Results that somebody should look into."""
_LOGGED_RECIPIENTS: Final = 20
"""Recipients that the summary of a message names; their number is always there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What all sessions share.

    Attributes:
        message_timeout: seconds for milters and next hop together, after the final dot.
        received: whether our Received header is added.
        lookup: finds the names of clients; None leaves them unknown.
        holding: what becomes of messages that a milter wants to be held.
        failed_logins: of all clients.
        log: to which sessions bind their names.
    """

    chain: Chain
    next_hops: NextHops
    access: AccessRule
    hostname: bytes
    queue_ids: QueueIds = field(default_factory=QueueIds)
    message_timeout: float = 540.0
    received: bool = True
    lookup: Lookup | None = None
    holding: Holding = field(default_factory=Holding)
    failed_logins: FailedLogins = field(default_factory=FailedLogins)
    log: Logger = field(default_factory=get_logger)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a message comes from.

    Attributes:
        trusted: whether the client may send to anybody.
        helo: the name that it gave, as typed.
        handed_in_by: who sends it to us: the client, or the one who speaks for it with XFORWARD.
        protocol: what the Received header calls the protocol.
        queue_id: what the message is called here.
        tls: how the client's connection is secured, None if it is not.
    """

    client: ClientInfo
    trusted: bool
    helo: bytes
    handed_in_by: Caller
    protocol: bytes
    queue_id: bytes
    tls: TLSSession | None = None


class Transaction:
    """From MAIL to the reply to the message.

    Args:
        services: what all sessions share.
        chain: the session's milters, which have accepted MAIL.
        origin: where the message comes from.
        hop: the transaction on the next hop.
        sender: the argument of MAIL.
        log: bound to session and queue id.
    """

    def __init__(
        self,
        services: Services,
        chain: ChainSession,
        origin: Origin,
        hop: NextHopTransaction,
        sender: Path,
        log: Logger,
    ) -> None:
        self._services = services
        self._chain = chain
        self._origin = origin
        self._envelope = Envelope(sender)
        self._log = log
        self._hop = hop
        self._strict = services.next_hops.options.on_refused_added_recipient == "tempfail"
        self._discarded_by: str | None = None
        self._since = time.monotonic()

    def discard(self, verdict: Verdict) -> None:
        """A milter wants the message to vanish: from now on all is answered with success."""
        self._discarded_by = verdict.milter or "?"

    async def rcpt(self, path: Path) -> Reply | None:
        """Ask the access rule, the next hop and the milters for one recipient, in this order."""
        refusal = None if self._origin.trusted else self._services.access.refuse(path)
        foreign = refusal is not None
        if refusal is not None and (self._discarded_by is not None or not await self._hop.knows_client()):
            return await self._rcpt_refused(path, refusal, "access rule")
        if self._discarded_by is not None:
            self._envelope = self._envelope.with_recipient(path)
            return None
        try:
            reply = await self._hop.rcpt(path, foreign=foreign)
        except NextHopError as error:
            self._log.warning("next hop failed", stage="rcpt", hop=self._hop.hop, error=str(error))
            return await self._rcpt_refused(path, failure_reply(error), "next hop")
        if not reply.positive:
            return await self._rcpt_refused(path, reply, "next hop")
        verdict = await self._chain.rcpt(path)
        if verdict.kind is Kind.DISCARD:
            self.discard(verdict)
        elif verdict.decides:
            self._refused("rcpt", verdict.reply, verdict.milter, recipient=text(path.bare))
            return verdict.reply
        self._envelope = self._envelope.with_recipient(path)
        return reply

    async def _rcpt_refused(self, path: Path, reply: Reply, source: str) -> Reply:
        self._refused("rcpt", reply, None, by=source, recipient=text(path.bare))
        if self._discarded_by is None:
            await self._chain.rcpt_refused(path, reply)
        return reply

    async def data(self) -> Reply | None:
        """Ask the milters whether the message may come."""
        if self._discarded_by is not None:
            return None
        verdict = await self._chain.data()
        if verdict.kind is Kind.DISCARD:
            self.discard(verdict)
        elif verdict.decides:
            self._refused("data", verdict.reply, verdict.milter)
            return verdict.reply
        return None

    async def message(self, message: Message) -> Reply:
        """Bring the message through the milters to the next hop, within the time for both."""
        deadline = asyncio.get_running_loop().time() + self._services.message_timeout
        try:
            # The chain keeps the deadline itself: it knows whom to blame, and goes on without that milter.
            async with asyncio.timeout_at(deadline + _GRACE):
                return await self._through(message, deadline)
        except TimeoutError:
            return self._summary(message, self._envelope, _TOO_LATE, "timed out")
        except asyncio.CancelledError:
            self._summary(message, self._envelope, _INTERRUPTED, "interrupted")
            raise
        except Exception:  # noqa: BLE001 - whatever it is: the client hears 451, the log everything
            self._log.exception("internal error")
            return self._summary(message, self._envelope, _FAILED, "failed")
        finally:
            await self.abort()

    async def _through(self, message: Message, deadline: float) -> Reply:
        if self._discarded_by is not None:
            return self._summary(message, self._envelope, OK, "discarded", milter=self._discarded_by)
        traced = message.with_own_received(self._received() if self._services.received else None)
        outcome = await self._chain.content(traced, self._envelope, deadline=deadline)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._decide(message, outcome)
        finally:
            if outcome.message.body is not message.body:
                outcome.message.close()

    async def _decide(self, message: Message, outcome: ContentOutcome) -> Reply:
        verdict = outcome.verdict
        if verdict.kind is Kind.DISCARD:
            return self._summary(message, self._envelope, OK, "discarded", milter=verdict.milter)
        if verdict.decides:
            assert verdict.reply is not None, "a verdict that refuses says how"
            return self._summary(
                message, self._envelope, verdict.reply, verdict.kind.name.lower(), milter=verdict.milter
            )
        relayed, recipients = outcome.message, outcome.envelope.recipients
        if outcome.unusable and (self._strict or not recipients):
            refused = [text(address) for address in outcome.unusable]
            return self._summary(message, outcome.envelope, BAD_ADDRESS, "not relayed", refused=refused)
        if (hold := outcome.quarantine) is not None:
            marked = self._services.holding.mark(relayed, hold)
            if marked is None:
                return await self._hold(outcome, hold)
            relayed = marked
            self._log.info("marked to be held", milter=hold.milter, reason=text(hold.reason))
        if not recipients:
            return self._summary(message, outcome.envelope, OK, "discarded: no recipient is left")
        changed_by = [report.milter for report in outcome.reports if report.edits]
        return await self._relay(relayed, outcome.envelope, changed_by)

    async def _hold(self, outcome: ContentOutcome, hold: Hold) -> Reply:
        origin = self._origin
        record = Record(
            id=origin.queue_id.decode("ascii"),
            milter=hold.milter,
            reason=hold.reason,
            envelope=outcome.envelope,
            client=origin.client.address,
            helo=origin.helo,
            held_at=time.time(),
        )
        kept = await self._services.holding.keep(record, outcome.message)
        said = {"milter": hold.milter, "reason": text(hold.reason), **kept.details}
        return self._summary(outcome.message, outcome.envelope, kept.reply, kept.result, **said)

    async def _relay(self, message: Message, envelope: Envelope, changed_by: Sequence[str]) -> Reply:
        try:
            delivery = await self._hop.send(envelope, message)
        except NextHopError as error:
            failed = {"hop": self._hop.hop, "error": str(error)}
            return self._summary(message, envelope, failure_reply(error), "next hop failed", **failed)
        reply = delivery.reply
        for path, refusal in delivery.refused:
            self._log.warning(
                "added recipient refused", recipient=text(path.bare), reply=str(refusal), hop=delivery.hop
            )
        result = "relayed" if reply.positive else "refused by next hop"
        return self._summary(message, envelope, reply, result, hop=delivery.hop, changed_by=changed_by)

    def not_taken(self, reply: Reply) -> None:
        """The message came in, but the server could not take it."""
        self._tell(self._envelope, "not taken", reply=str(reply))

    def broken_off(self) -> None:
        """The session ended before the message was there."""
        if self._envelope.recipients:
            self._tell(self._envelope, "broken off")

    async def abort(self) -> None:
        """End the transaction for milters and next hop; after the message this changes nothing for them."""
        self._chain.abort()
        await self._hop.abort()

    def _received(self) -> bytes:
        peer = self._origin.handed_in_by
        recipients = self._envelope.recipients
        return received_header(
            Trace(
                helo=peer.helo,
                client_name=peer.client.name,
                client_address="" if peer.client.family is Family.UNIX else peer.client.address,
                hostname=self._services.hostname,
                protocol=self._origin.protocol,
                queue_id=self._origin.queue_id,
                tls=self._origin.tls,
                recipient=recipients[0].bare if len(recipients) == 1 else None,
            )
        )

    def _refused(self, stage: str, reply: Reply | None, milter: str | None, **more: object) -> None:
        self._log.info(
            "refused",
            stage=stage,
            client=self._origin.client.address,
            helo=text(self._origin.helo),
            sender=text(self._envelope.sender.bare),
            milter=milter,
            reply=str(reply),
            **more,
        )

    def _summary(
        self, message: Message, envelope: Envelope, reply: Reply, result: str, **more: object
    ) -> Reply:
        self._tell(envelope, result, size=message.size, reply=str(reply), **more)
        return reply

    def _tell(self, envelope: Envelope, result: str, **more: object) -> None:
        """Log the one line that tells what became of a message."""
        recipients = envelope.recipients
        tell = self._log.warning if result in _FAULTS else self._log.info
        tell(
            "message",
            result=result,
            sender=text(envelope.sender.bare),
            recipients=[text(path.bare) for path in recipients[:_LOGGED_RECIPIENTS]],
            recipient_count=len(recipients),
            client=self._origin.client.address,
            helo=text(self._origin.helo),
            seconds=round(time.monotonic() - self._since, 3),
            **more,
        )
