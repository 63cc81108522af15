"""What the driver of the filter benchmark sends: one SMTP session as Postfix would tell of it, encoded.

The file has three parts, each a number of steps: the opening of a connection, one message, and the end of
the connection. A step is the codes of the replies that it may have (three bytes, none if no reply is due), a
zero, the number of its bytes, and the bytes; numbers are big-endian and have four bytes.
"""

import struct
from typing import NamedTuple

from milterchain.milter.flags import Command, Family
from milterchain.milter.framing import encode_packet
from milterchain.milter.messages import (
    Abort,
    AnyCommand,
    Body,
    Connect,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    Mail,
    Quit,
    Rcpt,
)
from milterchain.milter.negotiation import Negotiated, Offer

__all__ = ["HEADERS", "OFFER", "script"]

OFFER = Offer().message()
"""What Postfix offers: version 6, and everything."""

_QUEUE_ID = (b"i", b"4bXyZz0Qq1z9vQ")
_SESSION_MACROS = (
    (b"j", b"mx.example.test"),
    (b"{client_addr}", b"192.0.2.17"),
    (b"{client_name}", b"client.example.test"),
    (b"{daemon_name}", b"mx.example.test"),
    (b"{daemon_addr}", b"192.0.2.1"),
    (b"v", b"Postfix 3.7.11"),
)
_MAIL_MACROS = (
    _QUEUE_ID,
    (b"{mail_addr}", b"sender@example.test"),
    (b"{mail_host}", b"example.test"),
    (b"{mail_mailer}", b"smtp"),
)
_RCPT_MACROS = (
    _QUEUE_ID,
    (b"{rcpt_addr}", b"recipient@example.test"),
    (b"{rcpt_host}", b"example.test"),
    (b"{rcpt_mailer}", b"local"),
)

HEADERS = (
    (
        b"Received",
        b"\n\t".join(
            (
                b"from client.example.test (client.example.test [192.0.2.17])",
                b"by mx.example.test (Postfix) with ESMTPS id 4bXyZz0Qq1z9vQ",
                b"for <recipient@example.test>; Mon, 2 Jun 2025 10:00:00 +0200 (CEST)",
            )
        ),
    ),
    (b"DKIM-Signature", b"v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.test;\n\ts=sel; b=" + b"A" * 344),
    (b"Date", b"Mon, 2 Jun 2025 09:59:58 +0200"),
    (b"From", b"Some Sender <sender@example.test>"),
    (b"To", b"A Recipient <recipient@example.test>"),
    (b"Subject", b"A message of the benchmark"),
    (b"Message-ID", b"<20250602095958.12345@client.example.test>"),
    (b"MIME-Version", b"1.0"),
    (b"Content-Type", b"text/plain; charset=utf-8"),
    (b"Content-Transfer-Encoding", b"7bit"),
)
"""The headers of each message."""

_LINE = b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n"
_CONTINUE = b"c"


class _Step(NamedTuple):
    packets: bytes
    answers: bytes = b""

    def encode(self) -> bytes:
        return struct.pack("!3sxI", self.answers, len(self.packets)) + self.packets


class _Part:
    """Steps under construction; what is not answered goes with what follows, as MTAs write it."""

    def __init__(self, negotiated: Negotiated) -> None:
        self._negotiated = negotiated
        self._steps: list[_Step] = []
        self._waiting = b""

    def add(self, *messages: AnyCommand, answers: bytes = _CONTINUE) -> None:
        """A command, perhaps with its macros before it."""
        command = messages[-1].code
        if not self._negotiated.wants(command):
            return
        self._waiting += b"".join(encode_packet(each.code, each.encode()) for each in messages)
        if self._negotiated.replies(command) or command is Command.OPTNEG:
            self._steps.append(_Step(self._waiting, answers))
            self._waiting = b""

    def encode(self) -> bytes:
        """All steps; what is not answered at the end has one of its own."""
        steps = [*self._steps, _Step(self._waiting)] if self._waiting else self._steps
        return struct.pack("!I", len(steps)) + b"".join(step.encode() for step in steps)


def _opening(negotiated: Negotiated) -> _Part:
    part = _Part(negotiated)
    client = Connect(hostname=b"client.example.test", family=Family.INET, port=40123, address=b"192.0.2.17")
    part.add(OFFER, answers=b"O")
    part.add(Macros(client.code, _SESSION_MACROS), client)
    part.add(Macros(Helo.code, ()), Helo(b"client.example.test"))
    return part


def _message(negotiated: Negotiated, size: int) -> _Part:
    """A message; it ends with ABORT, which Postfix sends after every message."""
    part = _Part(negotiated)
    blank = b" " if negotiated.leading_space else b""
    body = (_LINE * (size // len(_LINE) + 1))[:size]
    part.add(Macros(Mail.code, _MAIL_MACROS), Mail(b"<sender@example.test>", (b"SIZE=4096",)))
    part.add(Macros(Rcpt.code, _RCPT_MACROS), Rcpt(b"<recipient@example.test>"))
    part.add(Macros(Data.code, (_QUEUE_ID,)), Data())
    for name, value in HEADERS:
        part.add(Header(name, blank + value))
    part.add(Macros(EndOfHeaders.code, (_QUEUE_ID,)), EndOfHeaders())
    for start in range(0, size, negotiated.max_data):
        part.add(Body(body[start : start + negotiated.max_data]))
    # kilter's filters can end only with ACCEPT.
    part.add(Macros(EndOfMessage.code, (_QUEUE_ID,)), EndOfMessage(), answers=b"ca")
    part.add(Abort())
    return part


def _closing(negotiated: Negotiated) -> _Part:
    part = _Part(negotiated)
    part.add(Quit())
    return part


def script(negotiated: Negotiated, size: int) -> bytes:
    """The driver's file.

    Args:
        negotiated: what the filter wants, and answers.
        size: of the body in bytes.
    """
    parts = (_opening(negotiated), _message(negotiated, size), _closing(negotiated))
    return b"".join(part.encode() for part in parts)
