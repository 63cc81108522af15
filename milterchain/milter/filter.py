"""`Milter`, the base class of filters, and the replies that filters build.

A filter is a class with one async method for each event that it cares about::

    class NoWednesdays(Milter):
        async def mail(self, sender, args):
            return reply(450, "4.7.0", "Not on Wednesdays") if wednesday() else None

What is not overridden is declined when the connection is negotiated, so that the MTA does not even send it.
`MilterServer` makes one object for each SMTP session and calls its methods one after the other.
"""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from milterchain.milter.flags import Action, Command, Protocol, Stage
from milterchain.milter.macros import MacroStore
from milterchain.milter.messages import Connect, OptNeg, Reply, ReplyCode
from milterchain.milter.modifier import Modifier
from milterchain.milter.negotiation import DECLINE, Negotiated, answer_as_milter

__all__ = ["MAX_LINE", "MAX_LINES", "Milter", "reply"]

MAX_LINE = 980
"""Bytes of one line of a reply's text (libmilter, MAXREPLYLEN)."""
MAX_LINES = 32
"""Lines of a reply's text (libmilter, MAXREPLIES)."""

_STATUS = re.compile(r"([245])\.\d{1,3}\.\d{1,3}")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def reply(code: int, status: str, *lines: str | bytes) -> ReplyCode:
    """A refusal with a text of the filter's own: `reply(550, "5.7.1", "We do not want this")`.

    Args:
        code: 400 to 599. Most MTAs close the SMTP connection after 421.
        status: the enhanced status code (RFC 3463); its class is that of the code.
        lines: the text; `%` needs no doubling here.

    Raises:
        ValueError: code, status and lines make no reply that an MTA would take.
    """
    if not 400 <= code <= 599:
        raise ValueError(f"{code} is no refusal: 400 to 599 are")
    found = _STATUS.fullmatch(status)
    if found is None or found[1] != str(code)[0]:
        raise ValueError(f"{status!r} is no enhanced status code for {code}")
    texts = [line.encode() if isinstance(line, str) else line for line in lines] or [b""]
    if len(texts) > MAX_LINES:
        raise ValueError(f"{len(texts)} lines, {MAX_LINES} are the most")
    for text in texts:
        if _CONTROL.search(text):
            raise ValueError(f"control character in {text!r}")
        if len(text) > MAX_LINE:
            raise ValueError(f"line of {len(text)} bytes, {MAX_LINE} are the most")
    # MTAs read the text as a format: %% is a percent sign (smfi_setreply).
    tails = [b"%b %b" % (status.encode(), text.replace(b"%", b"%%")) for text in texts]
    *firsts, last = (tail.rstrip() for tail in tails)
    return ReplyCode(b"".join([*(b"%d-%b\r\n" % (code, tail) for tail in firsts), b"%d %b" % (code, last)]))


class Milter:
    """A filter's view of one SMTP session.

    Each method may answer with a reply: `Accept()`, `Reject()`, `TempFail()`, `Discard()`, `Skip()`,
    `Shutdown()`, `Continue()` of `milterchain.milter.messages`, or `reply(…)`; None is `Continue()`. If a
    method raises or takes too long, the MTA is told to try again later (`TempFail()`), and the failure is
    logged.

    A verdict that is returned where the MTA does not listen (NO_REPLY_* was negotiated) is kept and given at
    the next event that has a reply; no method is called in between.

    Class attributes, what to negotiate:
        actions: what `end_of_message` may do to messages. An MTA that does not offer all of it is refused.
        protocol: wishes beyond the events: `Protocol.NO_REPLY_HEADER`, `Protocol.LEADING_SPACE`, …; those
            that the MTA does not know are dropped. Do not list NO_* bits: they follow from the methods.
        wanted_macros: for each stage the names of macros to ask for, instead of what MTAs send by default.

    Attributes:
        negotiated: what was agreed on; set before the first event.
        macros: the macros in force: `self.macros.get(b"i")`.
    """

    actions: ClassVar[Action] = Action(0)
    protocol: ClassVar[Protocol] = Protocol(0)
    wanted_macros: ClassVar[Mapping[Stage, Sequence[bytes]]] = {}

    negotiated: Negotiated
    macros: MacroStore

    def negotiate(self, offer: OptNeg) -> OptNeg:
        """Answer the MTA's offer; override to decide by what it offers.

        Raises:
            NegotiationError: this filter cannot work with that MTA.
        """
        return answer_as_milter(
            offer,
            actions=self.actions,
            protocol=self.protocol | declined_by(type(self)) | Protocol.SKIP,
            macros=self.wanted_macros,
        )

    async def connect(self, client: Connect) -> Reply | None:
        """A client connected to the MTA; a verdict is for the whole session."""

    async def helo(self, name: bytes) -> Reply | None:
        """HELO or EHLO, with its argument; may come more than once. A verdict is for the whole session."""

    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> Reply | None:
        """MAIL FROM: a message begins. Address (with brackets if typed) and ESMTP arguments are as typed."""

    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> Reply | None:
        """RCPT TO; a refusal is for this recipient only."""

    async def data(self) -> Reply | None:
        """DATA: the envelope is complete."""

    async def header(self, name: bytes, value: bytes) -> Reply | None:
        """One header; lines in the value are separated by LF.

        The one space after the colon is not part of the value, unless LEADING_SPACE was negotiated.
        """

    async def end_of_headers(self) -> Reply | None:
        """The header block is complete."""

    async def body(self, chunk: bytes) -> Reply | None:
        """A piece of the body, cut anywhere. `Skip()` ends the supply."""

    async def end_of_message(self, modifier: Modifier) -> Reply | None:
        """The message is complete: the only time to change it."""

    async def abort(self) -> None:
        """The message that had begun will not be completed: forget it. More messages may follow."""

    async def unknown(self, line: bytes) -> Reply | None:
        """The client sent what is no SMTP command."""

    async def close(self) -> None:
        """The session is over, however it ended; called exactly once."""


_METHODS: Mapping[Command, str] = {
    Command.CONNECT: "connect",
    Command.HELO: "helo",
    Command.MAIL: "mail",
    Command.RCPT: "rcpt",
    Command.DATA: "data",
    Command.HEADER: "header",
    Command.END_OF_HEADERS: "end_of_headers",
    Command.BODY: "body",
    Command.UNKNOWN: "unknown",
}


def declined_by(kind: type[Milter]) -> Protocol:
    """The NO_* bits of a filter class: the events whose methods it did not override."""
    declined = Protocol(0)
    for command, name in _METHODS.items():
        if getattr(kind, name) is getattr(Milter, name):
            declined |= DECLINE[command]
    return declined
