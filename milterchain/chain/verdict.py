"""From a milter's answer to what the SMTP client hears: pure functions and tables.

A `Verdict` is what one milter, or the chain, says to one event. `verdict_of` reads it from a milter's reply,
`fault_verdict` from a failure, `combine` makes one of several, and the `*_reply` functions say what a
standing verdict means for the parts of the SMTP dialogue that follow.

Texts and validation are those of Postfix 3.12 (milter8.c, smtpd.c).
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from milterchain.chain.settings import DefaultAction
from milterchain.mail.replies import Reply
from milterchain.milter import messages
from milterchain.milter.flags import Command, Response
from milterchain.milter.reply_text import reply_lines

__all__ = [
    "CONTINUE",
    "Fault",
    "Kind",
    "Scope",
    "Verdict",
    "auth_reply",
    "banner_reply",
    "combine",
    "deferred",
    "fault_verdict",
    "helo_reply",
    "mail_reply",
    "minimal_ehlo",
    "parse_reply_code",
    "scope_of",
    "unknown_reply",
    "verdict_of",
]


class Kind(enum.Enum):
    """What a verdict says."""

    CONTINUE = enum.auto()
    ACCEPT = enum.auto()
    """This milter wants to hear no more; the others go on."""
    DISCARD = enum.auto()
    """The client hears that all is well, and nothing is relayed."""
    TEMPFAIL = enum.auto()
    REJECT = enum.auto()
    SHUTDOWN = enum.auto()
    """The SMTP session ends."""


class Scope(enum.Enum):
    """How far a verdict reaches for the milter that gave it."""

    EVENT = enum.auto()
    """Nothing beyond this event, or this recipient."""
    MESSAGE = enum.auto()
    CONNECTION = enum.auto()


class Fault(enum.Enum):
    """Who is to blame for a failure, as far as the text for the client is concerned."""

    SERVICE = enum.auto()
    """The milter is away, late, or broke the protocol."""
    CONFIGURATION = enum.auto()
    """The milter gave a reply that no SMTP server may send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a milter, or the chain, says to an event.

    Attributes:
        kind: what it says.
        reply: the text for the client; None if it is the server's own positive reply.
        milter: the name of the milter that said so, None if nobody had anything to say.
        quarantine: the reason for which the message is to be held, None if it is not. Only failures say so
            at other events than the end of the message.
        decides: whether this is the end of the matter, whatever the other milters say.
    """

    kind: Kind = Kind.CONTINUE
    reply: Reply | None = None
    milter: str | None = None
    quarantine: bytes | None = None
    decides: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "decides", self.kind not in {Kind.CONTINUE, Kind.ACCEPT})

    @property
    def closes(self) -> bool:
        """Whether the SMTP connection ends once the reply is sent."""
        return self.reply is not None and self.reply.closes


CONTINUE = Verdict()
"""Nothing to say."""


class _Column(enum.Enum):
    """Events whose replies mean the same."""

    CONNECT = enum.auto()
    HELO = enum.auto()
    ENVELOPE = enum.auto()
    CONTENT = enum.auto()
    UNKNOWN = enum.auto()


_COLUMNS: Mapping[Command, _Column] = {
    Command.CONNECT: _Column.CONNECT,
    Command.HELO: _Column.HELO,
    Command.MAIL: _Column.ENVELOPE,
    Command.RCPT: _Column.ENVELOPE,
    Command.DATA: _Column.ENVELOPE,
    Command.HEADER: _Column.CONTENT,
    Command.END_OF_HEADERS: _Column.CONTENT,
    Command.BODY: _Column.CONTENT,
    Command.END_OF_MESSAGE: _Column.CONTENT,
    Command.UNKNOWN: _Column.UNKNOWN,
}

_Cell = tuple[Kind, Reply | None]
_ON: _Cell = (Kind.CONTINUE, None)
_DONE: _Cell = (Kind.ACCEPT, None)
_DROP: _Cell = (Kind.DISCARD, None)
_REFUSE: _Cell = (Kind.REJECT, Reply.of(550, "5.7.1 Command rejected"))
_DEFER: _Cell = (Kind.TEMPFAIL, Reply.of(451, "4.7.1 Service unavailable - try again later"))
_CLOSE: _Cell = (Kind.SHUTDOWN, Reply.of(421, "4.7.0 Server closing connection"))
_CLOSE_LATE: _Cell = (Kind.SHUTDOWN, Reply.of(421, "4.7.0 Service unavailable"))

# Discard means a message: at CONNECT and HELO there is none (Postfix ignores it), and a line that is no
# command has nothing to do with one.
_TABLE: Mapping[Response, tuple[_Cell, _Cell, _Cell, _Cell, _Cell]] = {
    # ................. CONNECT  HELO     ENVELOPE CONTENT      UNKNOWN
    Response.CONTINUE: (_ON, _ON, _ON, _ON, _ON),
    Response.SKIP: (_ON, _ON, _ON, _ON, _ON),
    Response.ACCEPT: (_DONE, _DONE, _DONE, _DONE, _DONE),
    Response.DISCARD: (_ON, _ON, _DROP, _DROP, _ON),
    Response.REJECT: (_REFUSE, _REFUSE, _REFUSE, _REFUSE, _REFUSE),
    Response.TEMPFAIL: (_DEFER, _DEFER, _DEFER, _DEFER, _DEFER),
    Response.SHUTDOWN: (_CLOSE, _CLOSE, _CLOSE, _CLOSE_LATE, _CLOSE),
}

_GO_ON = (messages.Continue, messages.Skip)

_CELLS: Mapping[tuple[Response, Command], _Cell] = {
    (response, command): dict(zip(_Column, row, strict=True))[column]
    for response, row in _TABLE.items()
    for command, column in _COLUMNS.items()
}


def verdict_of(reply: messages.Reply, event: Command, milter: str) -> Verdict | Fault:
    """What a milter's reply to an event means; a reply that Postfix calls an error is a Fault.

    CONN_FAIL is one of these: neither Postfix nor any milter library knows what it should do.
    """
    if isinstance(reply, _GO_ON):
        return CONTINUE
    if isinstance(reply, messages.ConnFail):
        return Fault.SERVICE
    if isinstance(reply, messages.ReplyCode):
        text = parse_reply_code(reply.text)
        if text is None:
            return Fault.CONFIGURATION
        return Verdict(kind=Kind.TEMPFAIL if text.temporary else Kind.REJECT, reply=text, milter=milter)
    kind, answer = _CELLS[reply.code, event]
    return CONTINUE if kind is Kind.CONTINUE else Verdict(kind=kind, reply=answer, milter=milter)


_GREETINGS = (Command.CONNECT, Command.HELO)


def scope_of(verdict: Verdict, event: Command) -> Scope:
    """How far a verdict that was given at an event reaches for its milter."""
    if verdict.kind is Kind.CONTINUE:
        return Scope.EVENT
    if verdict.kind is Kind.SHUTDOWN or event in _GREETINGS:
        return Scope.CONNECTION
    if verdict.kind in {Kind.REJECT, Kind.TEMPFAIL} and event in {Command.RCPT, Command.UNKNOWN}:
        return Scope.EVENT
    return Scope.MESSAGE


def parse_reply_code(text: bytes) -> Reply | None:
    """Read what SMFIR_REPLYCODE carries; None if it breaks Postfix's grammar (see `reply_lines`)."""
    found = reply_lines(text)
    return None if found is None else Reply(*found)


_UNAVAILABLE = "Service unavailable"
_LATER = f"{_UNAVAILABLE} - try again later"
_MISCONFIGURED = "4.3.5 Server configuration problem - try again later"

_FAULTS: Mapping[tuple[DefaultAction, Fault], _Cell] = {
    (DefaultAction.ACCEPT, Fault.SERVICE): _ON,
    (DefaultAction.ACCEPT, Fault.CONFIGURATION): _ON,
    (DefaultAction.QUARANTINE, Fault.SERVICE): _ON,
    (DefaultAction.QUARANTINE, Fault.CONFIGURATION): _ON,
    (DefaultAction.REJECT, Fault.SERVICE): (Kind.REJECT, Reply.of(550, f"5.5.0 {_UNAVAILABLE}")),
    (DefaultAction.REJECT, Fault.CONFIGURATION): (Kind.TEMPFAIL, Reply.of(451, _MISCONFIGURED)),
    (DefaultAction.TEMPFAIL, Fault.SERVICE): (Kind.TEMPFAIL, Reply.of(451, f"4.7.1 {_LATER}")),
    (DefaultAction.TEMPFAIL, Fault.CONFIGURATION): (Kind.TEMPFAIL, Reply.of(451, _MISCONFIGURED)),
    (DefaultAction.SHUTDOWN, Fault.SERVICE): (Kind.SHUTDOWN, Reply.of(421, f"4.7.1 {_LATER}")),
    (DefaultAction.SHUTDOWN, Fault.CONFIGURATION): (Kind.SHUTDOWN, Reply.of(421, _MISCONFIGURED)),
}

_HELD_BY_DEFAULT = b"default_action"


def fault_verdict(action: DefaultAction, fault: Fault, milter: str) -> Verdict:
    """What stands in for a milter that failed, at this and all later events of the SMTP session."""
    kind, reply = _FAULTS[action, fault]
    held = _HELD_BY_DEFAULT if action is DefaultAction.QUARANTINE else None
    return Verdict(kind=kind, reply=reply, milter=milter, quarantine=held)


@lru_cache
def deferred(milter: str | None) -> Verdict:
    """The safe answer where a message can be neither passed nor refused: try again later."""
    kind, reply = _DEFER
    return Verdict(kind=kind, reply=reply, milter=milter)


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """The chain's verdict: the first in the given (configured) order that decides; else go on."""
    return next((verdict for verdict in verdicts if verdict.decides), CONTINUE)


def banner_reply(verdict: Verdict, hostname: bytes) -> Reply | None:
    """The greeting after a verdict at CONNECT, None for the usual one.

    A temporary refusal is heard at MAIL (`mail_reply`), and a milter's own text too: a greeting is no place
    for either (smtpd.c).
    """
    if verdict.reply is None:
        return None
    if verdict.reply.permanent:
        return Reply(554, (hostname + b" ESMTP not accepting connections",))
    if verdict.closes:
        return Reply(421, (hostname + b" " + _LATER.encode(),))
    return None


def helo_reply(verdict: Verdict) -> Reply | None:
    """The answer to HELO and EHLO while a verdict of CONNECT or HELO stands, None for the usual one."""
    return verdict.reply if verdict.closes else None


def minimal_ehlo(verdict: Verdict) -> bool:
    """Whether EHLO offers nothing but ENHANCEDSTATUSCODES while a verdict of CONNECT or HELO stands."""
    return verdict.reply is not None and verdict.reply.permanent


def mail_reply(verdict: Verdict) -> Reply | None:
    """The answer to MAIL, VRFY and ETRN while a verdict of CONNECT or HELO stands, None for the usual one."""
    return verdict.reply


_AUTH_LATER = Reply.of(454, "4.3.0 Try again later")


def auth_reply(verdict: Verdict) -> Reply | None:
    """The answer to AUTH and STARTTLS while a verdict of CONNECT or HELO stands, None for the usual one.

    Neither command may be answered 451 (RFC 4954 section 6, RFC 3207 section 4).
    """
    if verdict.reply is None or verdict.closes or verdict.reply.permanent:
        return verdict.reply
    return _AUTH_LATER


def unknown_reply(verdict: Verdict) -> Reply | None:
    """The answer to a line that is no command, None for the usual `500`.

    As in Postfix 3.12 a permanent refusal changes nothing: the line is refused for good anyway.
    """
    if verdict.reply is None or (verdict.reply.permanent and not verdict.closes):
        return None
    return verdict.reply
