"""Read SMTP replies from a stream of bytes, in order (RFC 5321 section 4.2).

Sans-IO: bytes go in by `feed`, replies come out by `next_reply`. What arrived before something illegal is
delivered before the error is raised. After an error nothing more is delivered: the stream cannot be trusted,
so that the error is raised again each time.

Lenient where real servers are: a line may end in a bare LF, a code may stand without text, and no enhanced
status code is demanded. Strict where leniency would put the two sides out of step: each line has a code from
200 to 599, followed by a space, a dash or nothing; all lines of a reply have the same code; and the
length of a line and the number of lines are limited.
"""

import re

from milterchain.errors import NextHopProtocolError
from milterchain.mail.replies import MAX_REPLY_LINE, MAX_REPLY_LINES, REPLY_LINE, Reply

__all__ = ["ReplyReader", "parse_features"]

_KEYWORD = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:[ =](.*))?", re.DOTALL)

_SHOWN = 60
"""Octets of an illegal line that an error quotes: enough to know what answered."""


class ReplyReader:
    """Replies out of the bytes that a server sent."""

    __slots__ = ("_buffer", "_code", "_error", "_lines", "_max_line", "_max_lines")

    def __init__(self, *, max_line: int = MAX_REPLY_LINE, max_lines: int = MAX_REPLY_LINES) -> None:
        self._max_line = max_line
        self._max_lines = max_lines
        self._buffer = b""
        self._code = b""
        self._lines: list[bytes] = []
        self._error: NextHopProtocolError | None = None

    @property
    def idle(self) -> bool:
        """Nothing was fed but whole replies, and all of them have been taken."""
        return not self._buffer and not self._lines

    def feed(self, data: bytes) -> None:
        """Take bytes as they arrived; they are examined by `next_reply`."""
        self._buffer = self._buffer + data if self._buffer else data

    def next_reply(self) -> Reply | None:
        """Take the next reply, None if it is not complete yet.

        Raises:
            NextHopProtocolError: what arrived is no SMTP reply, or it is beyond the limits.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._read()
        except NextHopProtocolError as error:
            self._error = error
            self._buffer = b""
            raise

    def _read(self) -> Reply | None:
        while (end := self._buffer.find(b"\n", 0, self._max_line + 1)) >= 0:
            line = self._buffer[:end].removesuffix(b"\r")
            self._buffer = self._buffer[end + 1 :]
            match = REPLY_LINE.fullmatch(line)
            if match is None:
                raise NextHopProtocolError(f"no SMTP reply: {_quote(line)}")
            code, separator, text = match.groups()
            if self._lines and code != self._code:
                raise NextHopProtocolError(
                    f"a reply that begins with {self._code.decode()} goes on with {_quote(line)}"
                )
            self._code = code
            self._lines.append(text or b"")
            if separator != b"-":
                lines, self._lines = self._lines, []
                return Reply(int(code), tuple(lines))
            if len(self._lines) >= self._max_lines:
                raise NextHopProtocolError(f"a reply of more than {self._max_lines} lines")
        if len(self._buffer) > self._max_line:
            raise NextHopProtocolError(
                f"a reply line of more than {self._max_line} octets: {_quote(self._buffer)}"
            )
        return None


def parse_features(reply: Reply) -> dict[bytes, bytes]:
    """What a reply to EHLO offers: keyword in upper case → its arguments.

    Lines that are no offer are skipped, and a refusal offers nothing.
    The old form `AUTH=LOGIN` is read as `AUTH LOGIN`. If a keyword occurs twice, the first one counts.
    """
    features: dict[bytes, bytes] = {}
    if 200 <= reply.code < 300:
        for line in reply.lines[1:]:
            match = _KEYWORD.fullmatch(line.rstrip())
            if match is not None:
                features.setdefault(match[1].upper(), match[2] or b"")
    return features


def _quote(line: bytes) -> str:
    """The beginning of a line, for an error text."""
    return ascii(line[:_SHOWN].decode("latin-1"))
