"""Releasing a held message: the next hop gets it, once.

A message is taken out of the quarantine only after the next hop has accepted it. A release that fails, or is
killed, before the next hop can have the whole message leaves it held as it was. One that is cut off between
the final dot and the next hop's answer leaves it in doubt: nobody here can know then, so that it is not sent
again unless somebody says so.

Recipients that the next hop refuses stay: the message is held for them.
"""

from dataclasses import dataclass

from milterchain.errors import NextHopError, QuarantineError
from milterchain.mail.replies import Reply
from milterchain.proxy.logs import text
from milterchain.proxy.quarantine import Quarantine
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


async def release(quarantine: Quarantine, name: str, hops: NextHops, *, again: bool = False) -> Released:
    """Send a held message on its way, and take it out of the quarantine.

    Args:
        quarantine: where it is.
        name: its id.
        hops: who is to get it. They must let a message pass although some recipients are refused
            (`on_refused_added_recipient = "log"`).
        again: the last release was cut off, and did not succeed.

    Raises:
        QuarantineError: it was not released; the text says why, and whether it may have been.
    """
    with quarantine.claim(name) as claim:
        envelope = claim.record.envelope
        if claim.in_doubt and not again:
            raise QuarantineError(f"{name}: {IN_DOUBT}; look there, then delete it or release it --again")
        if not envelope.recipients:
            raise QuarantineError(f"{name}: it has no recipients: a milter has deleted them")
        claim.unmark()
        transaction = hops.begin(envelope.sender)
        with claim.message() as message:
            try:
                delivery = await transaction.send(envelope, message)
            except NextHopError as error:
                doubt = f"; {IN_DOUBT}" if claim.in_doubt else ""
                raise QuarantineError(f"{name}: not released: {error}{doubt}") from error
            finally:
                await transaction.abort()
        refused = tuple((text(path.bare), str(reply)) for path, reply in delivery.refused)
        if not delivery.reply.positive:
            claim.unmark()
            words = [f"{recipient}: {reply}" for recipient, reply in refused] or [str(delivery.reply)]
            raise QuarantineError(f"{name}: not released: {delivery.hop} says: {', '.join(words)}")
        if refused:
            claim.keep_for([path for path, _ in delivery.refused])
        else:
            claim.remove()
        return Released(hop=delivery.hop, reply=delivery.reply, refused=refused)
