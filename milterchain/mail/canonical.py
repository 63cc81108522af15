"""The one place where line ends are put right, before anybody has seen the message.

Mail must have CRLF line ends, and every program along the way must see the same lines: a bare LF or CR that
one takes for a line end and another does not is how messages are smuggled and signatures broken. So a bare LF
becomes CRLF, a bare CR becomes a blank (as Postfix normalises), and the last line gets its end.

Input comes in pieces of any size, already without transparency dots; a CR at the end of a piece waits for
what follows. NULs and 8-bit bytes pass. A clean piece, which nearly all are, is returned itself.
"""

import re

__all__ = ["Canonicaliser", "HeaderCanonicaliser", "canonical"]

_CRLF = b"\r\n"
_ALL_BUT_LINE_ENDS = bytes(set(range(256)) - set(_CRLF))
_BARE_CR = re.compile(rb"\r(?!\n)")
_EMPTY_LINE = re.compile(rb"\n\r?\n")


class Canonicaliser:
    """Puts the line ends of one message right, piece by piece.

    Attributes:
        bare_cr: the CR without LF met so far, for those who want to log or refuse them.
        bare_lf: the LF without CR met so far.
    """

    __slots__ = ("_held_cr", "_line_open", "bare_cr", "bare_lf")

    def __init__(self) -> None:
        self.bare_cr = 0
        self.bare_lf = 0
        self._held_cr = False
        self._line_open = False

    def feed(self, data: bytes) -> bytes:
        """The canonical form of what is known so far and was not returned yet."""
        if self._held_cr:
            data = b"\r" + data
            self._held_cr = False
        if data.endswith(b"\r"):
            data = data[:-1]
            self._held_cr = True
        if not data:
            return b""
        # No bare CR, and as many LF as CR, hence no bare LF. Counting CRLF takes twice as long.
        ends = data.translate(None, _ALL_BUT_LINE_ENDS)
        if ends != _CRLF * (len(ends) // 2) or _BARE_CR.search(data):
            pairs = data.count(_CRLF)
            self.bare_cr += ends.count(b"\r") - pairs
            self.bare_lf += ends.count(b"\n") - pairs
            data = data.replace(_CRLF, b"\n").replace(b"\r", b" ").replace(b"\n", _CRLF)
        self._line_open = not data.endswith(b"\n")
        return data

    def finish(self) -> bytes:
        """What is left at the end of the message: the end of a line that had none."""
        tail = b""
        if self._held_cr:
            self.bare_cr += 1
            self._held_cr = False
            self._line_open = True
            tail = b" "
        if self._line_open:
            self._line_open = False
            tail += _CRLF
        return tail


class HeaderCanonicaliser:
    """Puts the line ends of the headers right and leaves the body alone: for BINARYMIME (RFC 3030).

    The headers end with the first empty line; without one, all is headers.
    """

    __slots__ = ("_headers", "_in_body", "_tail")

    def __init__(self) -> None:
        self._headers = Canonicaliser()
        self._in_body = False
        self._tail = b"\n"

    def feed(self, data: bytes) -> bytes:
        """What is known so far and was not returned yet."""
        if self._in_body:
            return data
        seen = self._tail + data
        match = _EMPTY_LINE.search(seen)
        if match is None:
            self._tail = seen[-2:]
            return self._headers.feed(data)
        self._in_body = True
        body = match.end() - len(self._tail)
        return self._headers.feed(data[:body]) + data[body:]

    def finish(self) -> bytes:
        """What is left at the end of the message."""
        return b"" if self._in_body else self._headers.finish()


def canonical(data: bytes) -> bytes:
    """The canonical form of a whole message or body."""
    canonicaliser = Canonicaliser()
    return canonicaliser.feed(data) + canonicaliser.finish()
