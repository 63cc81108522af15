"""The replies that the SMTP server gives on its own, in Postfix's words where it has some."""

from collections.abc import Mapping
from typing import Final

from milterchain.mail.replies import Reply

__all__ = [
    "BAD_PROXY_HEADER",
    "BINARY_BY_DATA",
    "BYE",
    "CANNOT_VERIFY",
    "FAILED",
    "GO_AHEAD",
    "HELO_FIRST",
    "HELP",
    "IN_TRANSACTION",
    "KNOWN_COMMANDS",
    "LINE_TOO_LONG",
    "MAIL_FIRST",
    "NESTED_MAIL",
    "NOT_IMPLEMENTED",
    "NOT_PERMITTED",
    "NOT_SYNCHRONIZED",
    "NO_QUEUE",
    "NO_RECIPIENTS",
    "OK",
    "RCPT_FIRST",
    "RECIPIENT_OK",
    "REFUSED",
    "SENDER_OK",
    "SHUTTING_DOWN",
    "TIMED_OUT",
    "TOO_LARGE",
    "TOO_MANY_CONNECTIONS",
    "TOO_MANY_ERRORS",
    "TOO_MANY_MAILS",
    "TOO_MANY_RECIPIENTS",
    "TOO_MUCH_DATA",
    "UNKNOWN",
    "UNUSABLE",
]

OK: Final = Reply.of(250, "2.0.0 Ok")
SENDER_OK: Final = Reply.of(250, "2.1.0 Ok")
RECIPIENT_OK: Final = Reply.of(250, "2.1.5 Ok")
GO_AHEAD: Final = Reply.of(354, "End data with <CR><LF>.<CR><LF>")
BYE: Final = Reply.of(221, "2.0.0 Bye")
HELP: Final = Reply.of(214, "2.0.0 HELO EHLO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT")
CANNOT_VERIFY: Final = Reply.of(252, "2.0.0 Cannot VRFY user, but will take a message for it")

HELO_FIRST: Final = Reply.of(503, "5.5.1 Error: send HELO/EHLO first")
NESTED_MAIL: Final = Reply.of(503, "5.5.1 Error: nested MAIL command")
IN_TRANSACTION: Final = Reply.of(503, "5.5.1 Error: MAIL transaction in progress")
MAIL_FIRST: Final = Reply.of(503, "5.5.1 Error: need MAIL command")
RCPT_FIRST: Final = Reply.of(503, "5.5.1 Error: need RCPT command")
BINARY_BY_DATA: Final = Reply.of(503, "5.5.1 Error: BODY=BINARYMIME needs BDAT")
NO_RECIPIENTS: Final = Reply.of(554, "5.5.1 Error: no valid recipients")
TOO_MANY_RECIPIENTS: Final = Reply.of(452, "4.5.3 Error: too many recipients")
TOO_MANY_MAILS: Final = Reply.of(452, "4.5.3 Error: too many messages in this session")
TOO_LARGE: Final = Reply.of(552, "5.3.4 Message size exceeds fixed limit")
NOT_PERMITTED: Final = Reply.of(550, "5.7.0 Error: insufficient authorization")
REFUSED: Final = Reply.of(550, "5.7.1 Command rejected")
UNKNOWN: Final = Reply.of(500, "5.5.2 Error: command not recognized")
LINE_TOO_LONG: Final = Reply.of(500, "5.5.2 Error: line too long")
NOT_SYNCHRONIZED: Final = Reply.of(554, "5.5.0 Error: SMTP protocol synchronization")

FAILED: Final = Reply.of(451, "4.3.0 Error: internal error, try again later")
BAD_PROXY_HEADER: Final = Reply.of(421, "4.3.0 Error: no usable PROXY header, closing connection")
UNUSABLE: Final = Reply.of(421, "4.3.0 Error: internal error, closing connection")
TIMED_OUT: Final = Reply.of(421, "4.4.2 Error: timeout exceeded")
SHUTTING_DOWN: Final = Reply.of(421, "4.3.2 Service shutting down, closing connection")
TOO_MANY_ERRORS: Final = Reply.of(421, "4.7.0 Error: too many errors")
TOO_MANY_CONNECTIONS: Final = Reply.of(421, "4.7.0 Error: too many connections")
TOO_MUCH_DATA: Final = Reply.of(421, "4.7.0 Error: too much data")

NO_QUEUE: Final = Reply.of(458, "4.5.1 Unable to queue messages: there is no queue here")
NOT_IMPLEMENTED: Final = Reply.of(502, "5.5.1 Error: command not implemented")
_WEB_CLIENT: Final = Reply.of(221, "2.7.0 Error: this is a mail server")

KNOWN_COMMANDS: Final[Mapping[bytes, tuple[Reply, bool]]] = {
    **dict.fromkeys([b"EXPN", b"TURN"], (NOT_IMPLEMENTED, False)),
    # A web client is talking: what follows may have been written by somebody else (Postfix
    # smtpd_forbidden_commands).
    **dict.fromkeys([b"CONNECT", b"GET", b"POST"], (_WEB_CLIENT, True)),
}
"""Commands that are no mystery and yet not served: the reply, and whether it is the last one."""
