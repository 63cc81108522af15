"""What a filter decides about a message: values that compare, and that read well in logs.

::

    ACCEPT                                          deliver it, with the changes made to the transaction
    REJECT, TEMPFAIL                                refuse it, for ever or for now, in the MTA's own words
    custom(550, "5.7.1", "Not from", "this sender") refuse it in words of one's own
    DISCARD                                         tell the client that all is well, and drop it
    quarantine("train as spam")                     accept it, changes and all, and have the MTA hold it

Changes to a transaction take effect only with ACCEPT and `quarantine`.
"""

import re
from dataclasses import dataclass, field

from milterchain.milter.filter import reply
from milterchain.milter.messages import Accept, Discard, Reject, ReplyCode, TempFail
from milterchain.milter.readable import logfmt

__all__ = ["ACCEPT", "DISCARD", "MAX_REASON", "REJECT", "TEMPFAIL", "Decision", "custom", "quarantine"]

MAX_REASON = 500
"""Octets of the reason for a quarantine: Postfix and Sendmail write it into one line of their logs."""

_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a message. Made by the functions and constants of this module.

    Attributes:
        reply: what the MTA is told.
        reason: why the message is to be held; None if it is not.
    """

    reply: Accept | Reject | TempFail | Discard | ReplyCode
    reason: bytes | None = field(default=None)

    @property
    def accepts(self) -> bool:
        """Whether the message goes on, held or not: only then do changes count."""
        return isinstance(self.reply, Accept)

    def __str__(self) -> str:
        """One line: `reject`, `quarantine reason="train as spam"`, `reply_code code=550 …`."""
        if self.reason is not None:
            return logfmt("quarantine", {"reason": self.reason})
        return str(self.reply)


ACCEPT = Decision(Accept())
"""Deliver the message."""
REJECT = Decision(Reject())
"""Refuse it with a 5xx reply in the MTA's own words."""
TEMPFAIL = Decision(TempFail())
"""Refuse it with a 4xx reply in the MTA's own words: the client may try again."""
DISCARD = Decision(Discard())
"""Take it from the client and drop it silently. It always concerns a message, never a connection."""


def custom(code: int, status: str | None, *lines: str | bytes) -> Decision:
    """Refuse the message with a reply of the filter's own.

    Sendmail does not pass on the text at CONNECT; 421 ends the SMTP connection.

    Args:
        code: 400 to 599.
        status: the enhanced status code (RFC 3463), None for a reply without one; its class is the code's.
        lines: the text, one line each. `%` needs no doubling; line ends begin a new line.

    Raises:
        ValueError: code and status make no reply that an MTA would take, or the text is too long.
    """
    return Decision(reply(code, status, *lines))


def quarantine(reason: str | bytes) -> Decision:
    """Accept the message, but have the MTA hold it.

    Args:
        reason: why, for the MTA's administrator. Line ends and other control characters become blanks;
            what goes beyond `MAX_REASON` octets is cut off.
    """
    text = reason.encode() if isinstance(reason, str) else reason
    text = _CONTROLS.sub(b" ", text)[:MAX_REASON]
    if isinstance(reason, str):
        text = text.decode("utf-8", "ignore").encode()
    return Decision(Accept(), text)
