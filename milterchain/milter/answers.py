"""What a milter answered, as an MTA reads it: what stops, and what the SMTP client hears.

Where a milter leaves the words to the MTA they are those of Postfix (milter8.c).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from milterchain.milter.flags import Command, Response
from milterchain.milter.messages import Continue, Discard, Modification, Reply, ReplyCode, Skip
from milterchain.milter.reply_text import ReplyParts, reply_lines, reply_parts

__all__ = ["Answer", "MessageAnswer"]

_WORDS: Mapping[int, bytes] = MappingProxyType(
    {
        Response.REJECT: b"550 5.7.1 Command rejected",
        Response.TEMPFAIL: b"451 4.7.1 Service unavailable - try again later",
        Response.SHUTDOWN: b"421 4.7.0 Server closing connection",
    }
)
_GREETINGS = (Command.CONNECT, Command.HELO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a milter said to one event.

    Its text form is that of the reply: `continue`, `reply_code code=550 status=5.7.1 text="not today"`.

    Attributes:
        event: the command that was answered.
        reply: what it said; Continue where it was not asked.
        asked: whether it had to reply: it did not decline the event, or to reply to it, or to hear more of
            the kind for now.
    """

    event: Command
    reply: Reply
    asked: bool = True

    def __str__(self) -> str:
        return str(self.reply)

    @property
    def stops(self) -> bool:
        """Whether this is a verdict, so that the MTA has no more to ask.

        About what depends on the event: at CONNECT and HELO about the session, at RCPT a refusal about that
        recipient, at an unknown command a refusal about that; anything else about the message. SHUTDOWN and
        the codes 421 and 521 end the session anywhere. Discard at CONNECT and HELO is none: there is no
        message yet, and Postfix goes on.
        """
        if isinstance(self.reply, Discard):
            return self.event not in _GREETINGS
        return not isinstance(self.reply, Continue | Skip)

    @property
    def refusal(self) -> ReplyParts | None:
        """Code, status and text for the SMTP client; None if it hears the MTA's own positive reply.

        A refusal at CONNECT or HELO is told at MAIL as well: greetings have no room for it.
        """
        return reply_parts(self._text)

    @property
    def smtp(self) -> bytes | None:
        """The refusal as it is sent to the client: what the milter wrote, with line ends, and safe."""
        found = reply_lines(self._text)
        if found is None:
            return None
        code, (*firsts, last) = found
        return b"".join([*(b"%d-%b\r\n" % (code, line) for line in firsts), b"%d %b\r\n" % (code, last)])

    @property
    def _text(self) -> bytes:
        return self.reply.text if isinstance(self.reply, ReplyCode) else _WORDS.get(self.reply.code, b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageAnswer(Answer):
    """What a milter said to a message, or to a piece of it.

    Attributes:
        modifications: in order; void if the answer is a refusal or Discard.
        quarantine: the reason for which the message is to be held if it passes; None if it is not.
    """

    modifications: tuple[Modification, ...] = ()
    quarantine: bytes | None = None
