"""SMTP replies as values (RFC 5321 section 4.2, RFC 2034).

A reply is a code and one or more lines of text; an enhanced status code is part of the text, as it travels.
Milters decide replies, next hops send them, the front end writes them: all use this value.
"""

import re
from dataclasses import dataclass
from typing import Self

__all__ = ["MAX_REPLY_LINE", "MAX_REPLY_LINES", "Reply"]

MAX_REPLY_LINE = 4096
"""Octets that are read of one line. RFC 5321 4.5.3.1.5 says 512; real servers exceed it."""
MAX_REPLY_LINES = 128

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
