"""`Milter`, the base class of filters, and the replies that filters build.

A filter is a class with one async method for each event that it cares about::

    class NoWednesdays(Milter):
        async def mail(self, sender, args):
            return reply(450, "4.7.0", "Not on Wednesdays") if wednesday() else None

What is not overridden is declined when the connection is negotiated, so that the MTA does not even send it.
`MilterServer` makes one object for each SMTP session and calls its methods one after the other.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, ParamSpec

from milterchain.milter.flags import Action, Command, Protocol, Stage
from milterchain.milter.macros import MacroStore
from milterchain.milter.messages import Connect, Reply, ReplyCode
from milterchain.milter.modifier import Modifier
from milterchain.milter.negotiation import DECLINE, NO_REPLY, Negotiated
from milterchain.milter.reply_text import reply_text

__all__ = ["Milter", "derived_protocol", "no_reply", "reply"]

_P = ParamSpec("_P")

_MARK = "_milter_no_reply"
_METHODS: Mapping[str, Command] = {
    "connect": Command.CONNECT,
    "helo": Command.HELO,
    "mail": Command.MAIL,
    "rcpt": Command.RCPT,
    "data": Command.DATA,
    "header": Command.HEADER,
    "end_of_headers": Command.END_OF_HEADERS,
    "body": Command.BODY,
    "unknown": Command.UNKNOWN,
}
"""The methods that an MTA can be told not to call, or not to wait for."""


def reply(code: int, status: str | None, *lines: str | bytes) -> ReplyCode:
    """A refusal with a text of the filter's own: `reply(550, "5.7.1", "We do not want this")`.

    The text may come from anywhere: line ends in it begin a new line of the reply, other control characters
    become `?`, long lines are folded (`reply_text.MAX_LINE`), and `%` needs no doubling.

    Args:
        code: 400 to 599. Most MTAs close the SMTP connection after 421.
        status: the enhanced status code (RFC 3463), which is put on each line; its class is that of the
            code. None for a reply without one.
        lines: the text; str travels as UTF-8.

    Raises:
        ValueError: code and status make no reply that an MTA would take, or the text has too many lines
            (`reply_text.MAX_LINES`).
    """
    return ReplyCode(reply_text(code, status, *lines))


def no_reply(method: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, Coroutine[Any, Any, None]]:
    """Mark a method of a filter that never has a verdict, so that the MTA does not wait for it.

    ::

        @no_reply
        async def header(self, name: bytes, value: bytes) -> None:
            self.headers.append((name, value))

    MTAs that do not know how to go on without a reply get one all the same. There is always a reply to the
    end of a message.

    Raises:
        ValueError: no MTA can be told not to wait for this method.
    """
    name = getattr(method, "__name__", "?")
    if name not in _METHODS:
        raise ValueError(f"{name} is none of {', '.join(_METHODS)}")
    setattr(method, _MARK, True)
    return method


class Milter:
    """A filter's view of one SMTP session.

    Each method may answer with a reply: `Accept()`, `Reject()`, `TempFail()`, `Discard()`, `Skip()`,
    `Shutdown()`, `Continue()` of `milterchain.milter.messages`, or `reply(…)`; None is `Continue()`. If a
    method raises or takes too long, the MTA is told to try again later (`TempFail()`), and the failure is
    logged; if it raises `CloseConnectionError`, the connection is closed without an answer. If the MTA leaves
    while it waits for a method, that method is cancelled, then `abort` and `close` are called.

    A verdict that is returned where the MTA does not listen (NO_REPLY_* was negotiated) is kept and given at
    the next event that has a reply; no method is called in between.

    Class attributes, what to negotiate (`NegotiationOptions` of the server wins):
        actions: what `end_of_message` must be able to do to messages. An MTA that does not offer all of it
            is refused.
        optional_actions: what it would do besides if the MTA allows it; look at `negotiated.actions`.
        protocol: wishes beyond the events: `Protocol.LEADING_SPACE`, `Protocol.RCPT_REJECTED`, …; those
            that the MTA does not know are dropped. Do not list NO_* bits: they follow from the methods.
        wanted_macros: for each stage the names of macros to ask for, instead of what MTAs send by default.

    Attributes:
        negotiated: what was agreed on; set before the first event.
        macros: the macros in force: `self.macros.get(b"i")`.
        modifier: what can be done now: more time can be asked for always, changes are possible only while
            `end_of_message` runs, which gets the same object.
    """

    actions: ClassVar[Action] = Action(0)
    optional_actions: ClassVar[Action] = Action(0)
    protocol: ClassVar[Protocol] = Protocol(0)
    wanted_macros: ClassVar[Mapping[Stage, Sequence[bytes]]] = {}

    negotiated: Negotiated
    macros: MacroStore
    modifier: Modifier

    async def progress(self) -> None:
        """Tell the MTA that this filter still works on what was sent last; its timer starts again.

        May be called at any time, also from another task; where the MTA does not wait it does nothing.
        Sendmail knows it only at the end of a message and would take the filter for broken elsewhere, so it
        is not told there. It is recognised by the macros that it sends unasked; a filter that asks for
        others at `Stage.CONNECT` should ask for `v` too.

        Raises:
            MilterClosedError: the MTA is gone.
        """
        await self.modifier.progress()

    async def new_connection(self) -> None:
        """The object was made for an SMTP session, and options are agreed on: get ready.

        Called once, before any event. If it raises, the connection is closed.
        """

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
        """The session is over, however it ended; called exactly once.

        Also if the MTA could not be agreed with, and no other method was called.
        """


def derived_protocol(kind: type[Milter]) -> Protocol:
    """The bits that follow from a filter's methods.

    NO_* for those that it does not override, NO_REPLY_* for those that are marked by `no_reply`, and SKIP,
    which the server always can make use of.
    """
    bits = Protocol.SKIP
    for name, command in _METHODS.items():
        method = getattr(kind, name)
        if method is getattr(Milter, name):
            bits |= DECLINE[command]
        elif getattr(method, _MARK, False):
            bits |= NO_REPLY[command]
    return bits
