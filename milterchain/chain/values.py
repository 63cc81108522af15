"""The macros that come and go with a message, as functions of what is known.

Keys are canonical names without braces. A proxy has no transports: `{*_host}` is the domain, `{*_mailer}` is
`smtp`. Addresses are as the client typed them, without brackets.
"""

from collections.abc import Mapping

from milterchain.mail.addresses import domain_of
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply

__all__ = [
    "MESSAGE_VALUES",
    "content_values",
    "mail_values",
    "protocol_name",
    "rcpt_values",
    "refused_values",
]

MAILER = b"smtp"

MESSAGE_VALUES = (
    *(b"i", b"mail_addr", b"mail_host", b"mail_mailer", b"auth_author", b"msg_size", b"msg_id"),
    *(b"rcpt_addr", b"rcpt_host", b"rcpt_mailer", b"nrcpts"),
)
"""What is forgotten when a message is over."""

MAX_MESSAGE_ID = 1000
"""Octets of a Message-Id that is handed on as a macro: all macros of a stage share one packet."""


def protocol_name(*, esmtp: bool, tls: bool, auth: bool) -> bytes:
    """The macro `r`: the name of the protocol as in Received (RFC 3848)."""
    if not esmtp:
        return b"SMTP"
    return b"ESMTP" + (b"S" if tls else b"") + (b"A" if auth else b"")


def mail_values(path: Path, queue_id: bytes) -> dict[bytes, bytes]:
    """From MAIL on."""
    values = {
        b"i": queue_id,
        b"mail_addr": path.bare,
        b"mail_host": domain_of(path.address),
        b"mail_mailer": MAILER,
    }
    for arg in path.args:
        keyword, _, value = arg.partition(b"=")
        keyword = keyword.upper()
        if keyword == b"AUTH" and value != b"<>":
            values[b"auth_author"] = value
        elif keyword == b"SIZE" and value:
            values[b"msg_size"] = value
    return values


def rcpt_values(path: Path) -> dict[bytes, bytes]:
    """At RCPT."""
    return {b"rcpt_addr": path.bare, b"rcpt_host": domain_of(path.address), b"rcpt_mailer": MAILER}


def refused_values(reply: Reply) -> dict[bytes, bytes]:
    """At a RCPT that was refused: status and text in the places of host and address (smtpd_milter.c)."""
    text = reply.lines[0]
    status = reply.status
    if status is None:
        status = b"5.0.0" if reply.permanent else b"4.0.0"
    else:
        text = text[len(status) :].lstrip(b" ")
    return {b"rcpt_addr": text, b"rcpt_host": status, b"rcpt_mailer": b"error"}


def content_values(message: Message, envelope: Envelope) -> Mapping[bytes, bytes]:
    """From the content on. The size is without our own Received header, which milters do not see."""
    own = next(header.raw for header in message.headers if header.own)
    values = {b"msg_size": b"%d" % (message.size - len(own)), b"nrcpts": b"%d" % len(envelope.recipients)}
    for name, value in message.milter_headers():
        if name.lower() == b"message-id":
            if len(value) <= MAX_MESSAGE_ID:
                values[b"msg_id"] = value.strip(b" \t\n")
            break
    return values
