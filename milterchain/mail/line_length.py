"""Break lines that are longer than SMTP allows (RFC 5321 4.5.3.1.6), in a body of any size.

A filter that writes a new body may have made lines that a server further on refuses, or breaks in its own
way. Input comes in pieces of any size, and how it is cut makes no difference. Lines end in CRLF or LF, and
their ends stay as they are (see `canonical`). No character of UTF-8 is cut in two; what is no UTF-8 is cut
anywhere.
"""

__all__ = ["LINE_LENGTH", "LineLengthLimiter", "limit_line_length"]

LINE_LENGTH = 998
"""Octets of a line without its end."""

_CRLF = b"\r\n"
_LONGEST_CHARACTER = 4
"""Octets of UTF-8."""


class LineLengthLimiter:
    """Breaks the long lines of one body, piece by piece."""

    __slots__ = ("_column", "_held", "_limit")

    def __init__(self, limit: int = LINE_LENGTH) -> None:
        """Begin a body.

        Args:
            limit: octets of a line without its end.

        Raises:
            ValueError: there is not even room for one character.
        """
        if limit < _LONGEST_CHARACTER:
            raise ValueError(f"lines of {limit} octets are too short for UTF-8")
        self._limit = limit
        self._column = 0
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What is known so far and was not returned yet, with short lines."""
        data = self._held + data
        hold = 1 if data.endswith(b"\r") else _incomplete(data)
        self._held = data[len(data) - hold :]
        return self._limited(data[: len(data) - hold])

    def finish(self) -> bytes:
        """What is left at the end of the body; the next piece begins another one."""
        rest = self._limited(self._held)
        self._held = b""
        self._column = 0
        return rest

    def _limited(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        *lines, last = data.split(b"\n")
        for line in lines:
            self._put(parts, line.removesuffix(b"\r"))
            parts.append(_CRLF if line.endswith(b"\r") else b"\n")
            self._column = 0
        self._put(parts, last)
        return b"".join(parts)

    def _put(self, parts: list[bytes], text: bytes) -> None:
        """Append text without a line end."""
        start = 0
        while len(text) - start > self._limit - self._column:
            end = _boundary(text, start, start + self._limit - self._column)
            parts += [text[start:end], _CRLF]
            start = end
            self._column = 0
        parts.append(text[start:])
        self._column += len(text) - start


def _incomplete(data: bytes) -> int:
    """The octets at the end that begin a character without ending it."""
    for back in range(1, min(len(data), _LONGEST_CHARACTER - 1) + 1):
        octet = data[-back]
        if octet >= 0xC0:
            return back if back < _length(octet) else 0
        if octet < 0x80:
            break
    return 0


def _boundary(data: bytes, start: int, end: int) -> int:
    """The last place up to `end` where no character is cut."""
    for place in range(end, max(start, end - _LONGEST_CHARACTER + 1) - 1, -1):
        octet = data[place]
        if octet & 0xC0 != 0x80:
            return place if end - place < _length(octet) else end
    return end


def _length(first: int) -> int:
    """The octets of a character that begins with this one."""
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


def limit_line_length(data: bytes, limit: int = LINE_LENGTH) -> bytes:
    """A whole body with its long lines broken, see `LineLengthLimiter`."""
    limiter = LineLengthLimiter(limit)
    return limiter.feed(data) + limiter.finish()
