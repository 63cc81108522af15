"""SMTP replies as values (RFC 5321 section 4.2, RFC 2034).

A reply is a code and one or more lines of text; an enhanced status code is part of the text, as it travels.
Milters decide replies, next hops send them, the front end writes them: all use this value.
"""

import re
from dataclasses import dataclass
from typing import Self

__all__ = ["MAX_REPLY_LINE", "MAX_REPLY_LINES", "REPLY_LINE", "Reply", "parse_reply"]

MAX_REPLY_LINE = 4096
"""Octets that are read of one line. RFC 5321 4.5.3.1.5 says 512; real servers exceed it."""
MAX_REPLY_LINES = 128

REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
"""One line without its end: a code, and a blank or a dash with text behind it, or nothing."""
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ENHANCED = re.compile(rb"([245]\.\d{1,3}\.\d{1,3})(?= |$)")


@dataclass(frozen=True, slots=True)
class Reply:
    """One SMTP reply.

    Attributes:
        code: 200 to 599.
        lines: the text of each line, without code, dash and line end; at least one. Control characters
            have been replaced by `?`, so that no text can end its line.
    """

    code: int
    lines: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"{self.code} is no SMTP reply code")
        if not self.lines:
            raise ValueError("a reply has at least one line")
        if any(_UNSAFE.search(line) for line in self.lines):
            object.__setattr__(self, "lines", tuple(_UNSAFE.sub(b"?", line) for line in self.lines))

    @classmethod
    def of(cls, code: int, *lines: str) -> Self:
        """Build a reply from text: `Reply.of(250, "2.0.0 Ok")`."""
        return cls(code, tuple(line.encode("utf-8") for line in lines))

    @property
    def status(self) -> bytes | None:
        """The enhanced status code of the first line (`b"5.7.1"`), None without one."""
        match = _ENHANCED.match(self.lines[0])
        return match[1] if match else None

    @property
    def positive(self) -> bool:
        """2xx or 3xx."""
        return self.code < 400

    @property
    def temporary(self) -> bool:
        """4xx."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5xx."""
        return self.code >= 500

    @property
    def closes(self) -> bool:
        """421 and 521 end the connection (RFC 5321 3.8, RFC 7504)."""
        return self.code in {421, 521}

    def encode(self) -> bytes:
        """The bytes on the wire."""
        *firsts, last = self.lines
        head = b"".join([b"%d-%b\r\n" % (self.code, line) for line in firsts])
        return head + b"%d %b\r\n" % (self.code, last)

    def __str__(self) -> str:
        return f"{self.code} {' / '.join(line.decode('utf-8', 'backslashreplace') for line in self.lines)}"


def parse_reply(data: bytes) -> Reply:
    """Read one whole reply: the opposite of `Reply.encode`.

    Lines end in CRLF or LF, the last one needs no end; a code may stand without text.

    Raises:
        ValueError: a line has no code from 200 to 599, the codes differ, a line but the last one lacks its
            dash or the last one has one, or the reply has too many lines.
    """
    lines = data.removesuffix(b"\n").split(b"\n")
    if len(lines) > MAX_REPLY_LINES:
        raise ValueError(f"a reply of {len(lines)} lines, {MAX_REPLY_LINES} are allowed")
    codes = set()
    texts = []
    for number, line in enumerate(lines, 1):
        match = REPLY_LINE.fullmatch(line.removesuffix(b"\r"))
        if match is None or (match[2] == b"-") != (number < len(lines)):
            raise ValueError(f"no line {number} of {len(lines)} of a reply: {line[:80]!r}")
        codes.add(int(match[1]))
        texts.append(match[3] or b"")
    if len(codes) > 1:
        raise ValueError(f"codes {sorted(codes)} in one reply")
    return Reply(codes.pop(), tuple(texts))
