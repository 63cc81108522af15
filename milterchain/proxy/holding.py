"""What becomes of a message that a milter, or its default action, wants to be held: `[quarantine] action`.

- `hold`: it is kept on disk, and the client hears 250 once it is safe there.
- `next-hop`: another next hop gets it instead of the usual one, and its 250 is the client's. A refusal there
  is no judgement of the message, whose recipients were accepted: the client hears 451.
- `header`: it is relayed as usual, with a header on top for which the next hop holds it.
- `tempfail`, `reject`: the client hears so.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from milterchain.chain.pipeline import Hold
from milterchain.errors import NextHopError
from milterchain.mail.edits import apply_edits
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.milter.messages import InsertHeader
from milterchain.proxy.logs import text
from milterchain.proxy.quarantine import Quarantine, Record
from milterchain.proxy.relay import NextHops
from milterchain.proxy.relay_replies import as_temporary, failure_reply

__all__ = ["HEADER", "Action", "Holding", "Kept", "held_reply"]

Action: TypeAlias = Literal["hold", "next-hop", "header", "tempfail", "reject"]

HEADER: Final = b"X-Milterchain-Quarantine"
"""The header that asks the next hop to hold a message."""
_MAX_REASON: Final = 500
"""Octets of a reason in a header: one line, however much the milter had to say."""
_PRINTABLE: Final = bytes(octet if 0x20 <= octet <= 0x7E else 0x3F for octet in range(256))

_OK: Final = Reply.of(250, "2.0.0 Ok")
_REFUSED: Final = {
    "tempfail": Reply.of(451, "4.7.1 Message not accepted - try again later"),
    "reject": Reply.of(550, "5.7.1 Message refused"),
}
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_NO_SPACE: Final = Reply.of(452, "4.3.1 Insufficient system storage - try again later")
_NOT_STORED: Final = Reply.of(451, "4.3.0 The message could not be stored - try again later")


def held_reply(action: Action) -> Reply | None:
    """What the client hears if all goes well; None if the next hop says it.

    Nothing in it tells a sender that the message is held: who sends viruses would be glad to know.
    """
    return _OK if action == "hold" else _REFUSED.get(action)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What became of a message that was to be held.

    Attributes:
        reply: for the client.
        result: for the log, in a word.
        details: for the log.
    """

    reply: Reply
    result: str
    details: Mapping[str, object] = field(default_factory=dict)


class Holding:
    """The way in which messages are held.

    Args:
        action: as configured.
        store: where `hold` keeps them.
        next_hops: where `next-hop` sends them.
    """

    def __init__(
        self,
        action: Action = "tempfail",
        *,
        store: Quarantine | None = None,
        next_hops: NextHops | None = None,
    ) -> None:
        self.action = action
        self._store = store
        self._next_hops = next_hops

    def mark(self, message: Message, hold: Hold) -> Message | None:
        """The message with the header that makes the next hop hold it; None if that is not the way."""
        if self.action != "header":
            return None
        reason = hold.reason[:_MAX_REASON].translate(_PRINTABLE)
        value = b"%b; %b" % (hold.milter.encode("ascii", "replace"), reason)
        return apply_edits(message, [InsertHeader(1, HEADER, value)]).message

    async def keep(self, record: Record, message: Message) -> Kept:
        """Hold a message. A positive reply says that it is safe."""
        if self._store is not None and self.action == "hold":
            return await self._to_disk(self._store, record, message)
        if self._next_hops is not None and self.action == "next-hop":
            return await self._relay(self._next_hops, record, message)
        return Kept(reply=_REFUSED["reject" if self.action == "reject" else "tempfail"], result="not held")

    async def close(self) -> None:
        """Close the connections that are kept."""
        if self._next_hops is not None:
            await self._next_hops.close()

    @staticmethod
    async def _to_disk(store: Quarantine, record: Record, message: Message) -> Kept:
        try:
            await store.hold(record, message)
        except OSError as error:
            reply = _NO_SPACE if error.errno in _FULL else _NOT_STORED
            return Kept(reply=reply, result="not stored", details={"error": str(error)})
        return Kept(reply=_OK, result="held")

    @staticmethod
    async def _relay(hops: NextHops, record: Record, message: Message) -> Kept:
        envelope = record.envelope
        if not envelope.recipients:
            return Kept(reply=_OK, result="discarded: no recipient is left")
        transaction = hops.begin(envelope.sender)
        try:
            delivery = await transaction.send(envelope, message)
        except NextHopError as error:
            details = {"hop": transaction.hop, "error": str(error)}
            return Kept(reply=failure_reply(error), result="next hop failed", details=details)
        finally:
            await transaction.abort()
        reply, details = delivery.reply, {"hop": delivery.hop}
        if reply.positive:
            return Kept(reply=reply, result="relayed to quarantine", details=details)
        refused = [text(path.bare) for path, _ in delivery.refused]
        if refused:
            details["refused"] = ", ".join(refused)
        return Kept(reply=as_temporary(reply), result="refused by quarantine", details=details)
