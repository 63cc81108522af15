"""Our own Received header (RFC 5321 section 4.4).

What the client said of itself is taken apart from what we know of it, and nothing that a client or a resolver
says can end a line, close a comment or add a clause: other characters become `?`.
"""

import re
import time
from dataclasses import dataclass

__all__ = ["Trace", "received_header"]

_UNSAFE = re.compile(rb"[^!#-'*-;=?-Z^-~]")
"""All but printable ASCII, and of that blanks and `"()<>[\\]`."""
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
    """

    helo: bytes
    client_name: bytes
    client_address: str
    hostname: bytes
    protocol: bytes
    queue_id: bytes
    recipient: bytes | None


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
    return b"Received: from %b (%b)\r\n\tby %b (milterchain) with %b id %b%b\r\n%b\t%b\r\n" % (
        _helo(trace.helo),
        client,
        trace.hostname,
        trace.protocol,
        trace.queue_id,
        b"" if recipient else b";",
        recipient,
        date.encode(),
    )
