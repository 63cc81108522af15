"""Releasing a held message: the next hop gets it, once.

A message is taken out of the quarantine only after the next hop has accepted it. A release that fails, or is
killed, before the next hop can have the whole message leaves it held as it was. One that is cut off between
the final dot and the next hop's answer leaves it in doubt: nobody here can know then, so that it is not sent
again unless somebody says so.

Recipients that the next hop refuses stay: the message is held for them. Where a next hop answers for each
recipient after the message, as LMTP does, they get it one after the other, each on record before the next.
"""

from dataclasses import dataclass

from milterchain.errors import NextHopError, QuarantineError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.replies import Reply
from milterchain.proxy.delivery import Delivery
from milterchain.proxy.logs import text
from milterchain.proxy.quarantine import Claim, Quarantine
from milterchain.proxy.relay import NextHops

__all__ = ["IN_DOUBT", "Released", "release"]

IN_DOUBT = "a release was cut off when the next hop could have taken the message"


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What became of a release.

    Attributes:
        hop: who has the message.
        reply: what it said.
        refused: recipients for whom the message is still held, with the hop's words.
    """

    hop: str
    reply: Reply
    refused: tuple[tuple[str, str], ...] = ()


async def release(
    quarantine: Quarantine, name: str, hops: NextHops, *, again: bool = False, one_by_one: bool = False
) -> Released:
    """Send a held message on its way, and take it out of the quarantine.

    Args:
        quarantine: where it is.
        name: its id.
        hops: who is to get it. They must let a message pass although some recipients are refused
            (`on_refused_added_recipient = "log"`).
        again: the last release was cut off, and did not succeed.
        one_by_one: recipients get it one after the other.

    Raises:
        QuarantineError: it was not released; the text says why, and whether it may have been.
    """
    with quarantine.claim(name) as claim:
        recipients = claim.record.envelope.recipients
        if claim.in_doubt and not again:
            raise QuarantineError(f"{name}: {IN_DOUBT}; look there, then delete it or release it --again")
        if not recipients:
            raise QuarantineError(f"{name}: it has no recipients: a milter has deleted them")
        claim.unmark()
        refused: list[tuple[Path, Reply]] = []
        delivered: Delivery | None = None
        hop = ""
        groups = [(recipient,) for recipient in recipients] if one_by_one else [recipients]
        for index, group in enumerate(groups):
            delivery = await _send(claim, hops, group)
            hop = delivery.hop
            if delivery.reply.positive:
                delivered = delivery
                refused += delivery.refused
                rest = [path for path, _ in refused] + [
                    path for later in groups[index + 1 :] for path in later
                ]
                claim.keep_for(rest)
            else:
                claim.unmark()
                refused += delivery.refused or [(path, delivery.reply) for path in group]
        words = tuple((text(path.bare), str(reply)) for path, reply in refused)
        if delivered is None:
            said = ", ".join(f"{recipient}: {reply}" for recipient, reply in words)
            raise QuarantineError(f"{name}: not released: {hop} says: {said}")
        return Released(hop=delivered.hop, reply=delivered.reply, refused=words)


async def _send(claim: Claim, hops: NextHops, recipients: tuple[Path, ...]) -> Delivery:
    sender = claim.record.envelope.sender
    transaction = hops.begin(sender)
    with claim.message() as message:
        try:
            return await transaction.send(Envelope(sender, recipients), message)
        except NextHopError as error:
            doubt = f"; {IN_DOUBT}" if claim.in_doubt else ""
            raise QuarantineError(f"{claim.record.id}: not released: {error}{doubt}") from error
        finally:
            await transaction.abort()
