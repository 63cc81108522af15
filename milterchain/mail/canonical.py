"""The one place where line ends are put right, before anybody has seen the message.

Mail must have CRLF line ends, and every program along the way must see the same lines: a bare LF or CR that
one takes for a line end and another does not is how messages are smuggled and signatures broken. So a bare LF
becomes CRLF, a bare CR becomes a blank (as Postfix normalises), and the last line gets its end.

Input comes in pieces of any size, already without transparency dots; a CR at the end of a piece waits for
what follows. NULs and 8-bit bytes pass. A clean piece, which nearly all are, is returned itself.
"""

__all__ = ["Canonicaliser", "canonical"]


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
        pairs = data.count(b"\r\n")
        bare_cr = data.count(b"\r") - pairs
        bare_lf = data.count(b"\n") - pairs
        if bare_cr or bare_lf:
            self.bare_cr += bare_cr
            self.bare_lf += bare_lf
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\n", b"\r\n")
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
            tail += b"\r\n"
        return tail


def canonical(data: bytes) -> bytes:
    """The canonical form of a whole message or body."""
    canonicaliser = Canonicaliser()
    return canonicaliser.feed(data) + canonicaliser.finish()
