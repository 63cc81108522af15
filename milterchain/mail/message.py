"""A message: headers, the line between, body; and how one is made from what a client sends.

Messages are immutable. What is relayed is `chunks()`; what milters are told is `milter_headers()` and the
chunks of the body. Reading a message and relaying it gives the same bytes, but for what `headers` says about
mailbox lines and NULs.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from milterchain.errors import HeaderLimitError
from milterchain.mail.body import Body, BodyWriter, SpoolSettings
from milterchain.mail.headers import VIRTUAL_RECEIVED, Header, HeaderLimits, Headers, split_message

__all__ = ["Message", "MessageBuilder", "parse_message"]

RELAY_CHUNK = 2**16
"""Octets in which a message is relayed: enough for one write, little enough to be held by many sessions."""

_CRLF = b"\r\n"
_HEAD_END = b"\r\n\r\n"
# The beginning of a line that may yet turn out to belong to the headers.
_UNDECIDED = re.compile(rb"[ \t]|>*From |[!-9;-~]+[ \t]*(?::|\Z)|\Z")


@dataclass(frozen=True, slots=True)
class Message:
    """A message.

    Attributes:
        headers: all headers, exactly one of them our own or its place holder.
        separator: the empty line after the headers (CRLF); or nothing, if the client left it out.
        body: everything after it; possibly shared with other messages.
        binary: the body is no text: it need not consist of lines, and CR and LF may stand alone in it.
    """

    headers: Headers
    separator: bytes
    body: Body
    binary: bool = field(default=False, kw_only=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """The octets that are relayed."""
        return len(self.headers.raw) + len(self.separator) + len(self.body)

    def chunks(self, size: int = RELAY_CHUNK) -> Iterator[bytes]:
        """The bytes that are relayed, in pieces of at most `size` octets; a small message is one piece.

        Raises:
            ValueError: the body was closed.
            OSError: the body's file cannot be read.
        """
        head = self.headers.raw + self.separator
        if 0 < len(head) + len(self.body) <= size:
            yield head + bytes(self.body)
            return
        for start in range(0, len(head), size):
            yield head[start : start + size]
        yield from self.body.chunks(size)

    def milter_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Name and value of each header but our own, in order; made once.

        Values are untouched: they begin right after the colon, folds are bare LF.
        """
        return self.headers.visible

    def with_own_received(self, raw: bytes | None) -> "Message":
        """A copy with our Received header (`raw`, CRLF included), or without any bytes of it (None).

        Raises:
            ValueError: `raw` is not one header.
        """
        own = VIRTUAL_RECEIVED if raw is None else Header.parse(raw, own=True)
        return self.with_headers(self.headers.with_own(own))

    def with_headers(self, headers: Headers) -> "Message":
        """A copy with other headers and the same body.

        If the client left out the separator it is put in, lest the first line of the body pass for a header
        or the continuation of one.
        """
        changed = headers.raw != self.headers.raw
        separator = _CRLF if changed and len(self.body) else self.separator
        return Message(headers, separator, self.body, binary=self.binary)

    def with_body(self, body: Body) -> "Message":
        """A copy with another body, and with a separator."""
        return Message(self.headers, _CRLF, body, binary=self.binary)

    def close(self) -> None:
        """Close the body, for all messages that share it. May be called again."""
        self.body.close()


class MessageBuilder:
    """Makes a message from canonical pieces of any size.

    Once the headers are beyond a limit nothing more is kept: feeding goes on without effect (the client must
    be heard to the end), and `finish` raises.

    Attributes:
        failure: the limit that was exceeded.
    """

    __slots__ = ("_check_at", "_head", "_headers", "_limits", "_separator", "_writer", "failure")

    def __init__(self, *, limits: HeaderLimits | None = None, spool: SpoolSettings | None = None) -> None:
        self.failure: HeaderLimitError | None = None
        self._limits = limits or HeaderLimits()
        self._check_at = self._limits.total
        self._head = bytearray()
        self._headers: tuple[Header, ...] | None = None
        self._separator = b""
        self._writer = BodyWriter(spool)

    def feed(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            OSError: the body cannot be written to its file; only `close` makes sense then.
        """
        if self._headers is not None:
            self._writer.write(data)
        elif self.failure is not None:
            return
        elif not self._head and _HEAD_END in data:
            self._split(data)
        else:
            head = self._head
            start = max(len(head) - 3, 0)
            head += data
            if head.find(_HEAD_END, start) >= 0 or head.startswith(_CRLF):
                self._split(bytes(head))
            elif len(head) > self._check_at:
                self._check(bytes(head))

    def finish(self) -> Message:
        """The message. Its body is the caller's to close.

        Raises:
            HeaderLimitError: the headers went beyond a limit.
            OSError: the body cannot be written to its file.
        """
        if self._headers is None and self.failure is None:
            self._split(bytes(self._head))
        if self._headers is None:
            assert self.failure is not None
            raise self.failure
        return Message(Headers((VIRTUAL_RECEIVED, *self._headers)), self._separator, self._writer.finish())

    def close(self) -> None:
        """Throw away what was collected. May be called again, and after `finish`."""
        self._head = bytearray()
        self._writer.close()

    def _split(self, data: bytes) -> None:
        self._head = bytearray()
        try:
            headers, separator, rest = split_message(data, self._limits)
        except HeaderLimitError as error:
            self.failure = error
            return
        self._headers = headers
        self._separator = separator
        self._writer.write(rest)

    def _check(self, head: bytes) -> None:
        """Find the end of the headers where no empty line is in sight.

        Done at most twice for a message, or slow clients would make it expensive.
        """
        lines, _, last = head.rpartition(b"\n")
        try:
            _, separator, rest = split_message(lines + b"\n" if lines else b"", self._limits)
        except HeaderLimitError as error:
            self._head = bytearray()
            self.failure = error
            return
        if separator or rest or not _UNDECIDED.match(last.replace(b"\0", b"")):
            self._split(head)
        elif self._check_at == self._limits.total:
            self._check_at += self._limits.single
        else:
            self._head = bytearray()
            self.failure = HeaderLimitError(f"headers of more than {self._limits.total} octets")


def parse_message(
    data: bytes | Iterable[bytes], *, limits: HeaderLimits | None = None, spool: SpoolSettings | None = None
) -> Message:
    """Make a message from canonical bytes (see `canonical`) or pieces of them.

    Raises:
        HeaderLimitError: the headers go beyond a limit.
        OSError: the body cannot be written to its file.
    """
    builder = MessageBuilder(limits=limits, spool=spool)
    for piece in (data,) if isinstance(data, bytes) else data:
        builder.feed(piece)
    return builder.finish()
