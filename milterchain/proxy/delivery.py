"""What became of a message on a next hop, and messages that go to one recipient at a time.

LMTP answers for each recipient after the message (RFC 2033), SMTP once for all: if some took it and some did
not, 250 would lose it for these and 4xx double it for those. Therefore a client can name one recipient for
each message to an LMTP hop; it hears 452 4.5.3 for more, and sends these the message again (RFC 5321
4.5.3.1.10). Recipients that milters add get theirs after the client's recipient has it; their refusals come
too late for an answer, and are in `Delivery.refused`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from milterchain.errors import NextHopError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.proxy.lanes import Lane, accepts
from milterchain.proxy.relay_replies import as_final, failure_reply

__all__ = ["ONE_AT_A_TIME", "TOO_MANY", "Delivery", "deliver_each"]

ONE_AT_A_TIME: Final = Reply.of(452, "4.5.3 Error: too many recipients, send one at a time")
TOO_MANY: Final = Reply.of(452, "4.5.3 Error: too many recipients for the next hop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What became of a message.

    Attributes:
        reply: for the client; positive only if the hop has taken the message.
        hop: the address of the hop that decided.
        refused: recipients that it refused at last, with its replies. If `reply` is positive they are
            recipients that milters added, and the log is the only place where they can appear.
    """

    reply: Reply
    hop: str
    refused: tuple[tuple[Path, Reply], ...] = ()


async def deliver_each(
    lane: Lane, envelope: Envelope, message: Message, refused: Sequence[tuple[Path, Reply]] = ()
) -> Delivery:
    """Hand over the message to one recipient after the other. The answer for the first one decides.

    Args:
        lane: on which all recipients have been asked for.
        envelope: with more than one recipient.
        message: to be sent.
        refused: recipients that get nothing.

    Raises:
        NextHopError: as for a `Lane`, as long as nobody has the message.
    """
    left_out = {path for path, _ in refused}
    first, *others = [path for path in envelope.recipients if path not in left_out]
    reply = await _deliver_to(lane, envelope, first, message)
    if not accepts(reply):
        return Delivery(reply=as_final(reply), hop=lane.hop, refused=tuple(refused))
    late = list(refused)
    for recipient in others:
        try:
            answer = await _deliver_to(lane, envelope, recipient, message)
        except NextHopError as error:
            answer = failure_reply(error)
        if not accepts(answer):
            late.append((recipient, answer))
    return Delivery(reply=reply, hop=lane.hop, refused=tuple(late))


async def _deliver_to(lane: Lane, envelope: Envelope, recipient: Path, message: Message) -> Reply:
    mail, replies = await lane.begin(envelope.sender, [recipient], size=message.size)
    for reply in (mail, *replies):
        if not accepts(reply):
            return reply
    return await lane.deliver(envelope, message)
