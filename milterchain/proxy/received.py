"""Our own Received header (RFC 5321 section 4.4).

What the client said of itself is taken apart from what we know of it, and nothing that a client or a resolver
says can end a line, close a comment or add a clause: other characters become `?`.
"""

import re
import time
from dataclasses import dataclass

from milterchain.smtp.tls import TLSSession

__all__ = ["Trace", "received_header"]

_UNSAFE = re.compile(rb"[^!#-'*-;=?-Z^-~]")
"""All but printable ASCII, and of that blanks and `"()<>[\\]`."""
_UNSAFE_NAME = re.compile(rb"[^ !#-'*-\[\]-~]")
"""What cannot stand within quotation marks within a comment: all but printable ASCII, and `"()\\`."""
_UNSAFE_PATH = re.compile(rb"[\x00-\x1f\x7f]")
_UNSAFE_LITERAL = re.compile(rb"[^0-9A-Za-z:.\-]")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MAX_WORD = 255
"""The longest domain name (RFC 5321 4.5.3.1.2); a HELO name is cut there, so that lines stay below 998."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What the header tells.

    Attributes:
        helo: as the client typed it.
        client_name: the verified name of the client, `unknown` without one.
        client_address: its IP address; empty for a client on a Unix socket.
        hostname: ours.
        protocol: `SMTP`, `ESMTP`, `UTF8SMTP`… (RFC 3848, RFC 6531).
        queue_id: of this message.
        recipient: the bare address of the only recipient; None if there are more, lest one learns of another.
        tls: how the client's connection is secured; as comments, in Postfix's words.
    """

    helo: bytes
    client_name: bytes
    client_address: str
    hostname: bytes
    protocol: bytes
    queue_id: bytes
    recipient: bytes | None
    tls: TLSSession | None = None


def _word(value: bytes) -> bytes:
    return _UNSAFE.sub(b"?", value[:_MAX_WORD]) or b"unknown"


def _helo(value: bytes) -> bytes:
    if value[:1] == b"[" and value[-1:] == b"]" and len(value) <= _MAX_WORD:
        return b"[%b]" % _UNSAFE_LITERAL.sub(b"?", value[1:-1])
    return _word(value)


def _literal(address: str) -> bytes:
    if not address:
        return b"local"
    return f"[IPv6:{address}]".encode() if ":" in address else f"[{address}]".encode()


def _quoted(name: str) -> bytes:
    return _UNSAFE_NAME.sub(b"?", name.encode("utf-8")[:_MAX_WORD])


def _tls(session: TLSSession | None) -> bytes:
    """The lines on TLS. Python tells only the secret bits of a cipher, and modern ones have no others."""
    if session is None:
        return b""
    bits = session.bits
    using = b"%b with cipher %b" % (_word(session.version.encode()), _word(session.cipher.encode()))
    if session.verified:
        names = (_quoted(session.subject), _quoted(session.issuer))
        client = b'Client CN "%b", Issuer "%b" (verified OK)' % names
    elif session.requested:
        client = b"Client did not present a certificate"
    else:
        client = b"No client certificate requested"
    return b"\t(using %b (%d/%d bits))\r\n\t(%b)\r\n" % (using, bits, bits, client)


def received_header(trace: Trace, now: float | None = None) -> bytes:
    """Build the header, folded, with its final CRLF.

    Args:
        trace: what it tells.
        now: seconds since 1970, for tests.
    """
    moment = time.gmtime(now)
    date = (
        f"{_DAYS[moment.tm_wday]}, {moment.tm_mday} {_MONTHS[moment.tm_mon - 1]} {moment.tm_year}"
        f" {moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02} +0000"
    )
    client = b"%b %b" % (_word(trace.client_name), _literal(trace.client_address))
    recipient = b""
    if trace.recipient:
        recipient = b"\tfor <%b>;\r\n" % _UNSAFE_PATH.sub(b"?", trace.recipient)
    return b"Received: from %b (%b)\r\n%b\tby %b (milterchain) with %b id %b%b\r\n%b\t%b\r\n" % (
        _helo(trace.helo),
        client,
        _tls(trace.tls),
        trace.hostname,
        trace.protocol,
        trace.queue_id,
        b"" if recipient else b";",
        recipient,
        date.encode(),
    )
