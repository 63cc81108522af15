"""Address lists as headers have them (RFC 5322 3.4): `Joe <joe@example.org>, "Doe, Ann" <ann@example.org>`.

Reading takes anything, never raises, and takes time in proportion to its length: groups are taken apart,
comments left out (but for the name in the old form `joe@example.org (Joe Doe)`), and what is no address that
could be written again is skipped. Writing makes a list that every reader understands.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from milterchain.mail.address import Address
from milterchain.mail.addresses import is_safe
from milterchain.mail.header_text import MAX_LINE, decode_text, encode_words, fold, unfold

__all__ = ["Mailbox", "encode_mailboxes", "parse_mailboxes"]

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z|\\\Z)|\[[^\]]*\]?|[ \t]+|[^\s"\[(),:;<>]+|.', re.DOTALL)
_COMMENT_MARK = re.compile(rb"\\.|[()]", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+(?: [A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+)*")
_PRINTABLE = re.compile(r"[ -~]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """One entry of an address list.

    Attributes:
        address: where it goes.
        name: the display name, decoded; empty without one.
    """

    address: Address
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name} <{self.address}>" if self.name else str(self.address)


def parse_mailboxes(value: bytes) -> list[Mailbox]:
    """The mailboxes of an address list, in order."""
    reader = _Reader(unfold(value))
    reader.run()
    return reader.found


class _Reader:
    """One pass over the tokens of an address list."""

    __slots__ = ("_angle", "_comment", "_data", "_words", "found")

    def __init__(self, data: bytes) -> None:
        self.found: list[Mailbox] = []
        self._data = data
        self._start()

    def _start(self) -> None:
        self._words: list[bytes] = []
        self._angle: list[bytes] | None = None
        self._comment = b""

    def run(self) -> None:
        place = 0
        inside = False
        routed = False
        while match := _TOKEN.match(self._data, place):
            token = match[0]
            place = match.end()
            if token == b"(":
                place = self._take_comment(place)
            elif token == b"<":
                inside = True
                self._angle = []
            elif token == b">":
                inside = False
            # In a source route commas are no separators.
            elif token == b";" or (token == b"," and not (inside and routed)):
                inside = False
                self._finish()
            elif inside and self._angle is not None:
                if token.strip():
                    routed = token != b":" and (routed if self._angle else token.startswith(b"@"))
                    self._angle.append(token)
            elif token == b":":
                self._start()
            elif self._angle is None:
                self._words.append(token)
        self._finish()

    def _take_comment(self, place: int) -> int:
        """Where the comment that was opened before this place ends."""
        begin = place
        depth = 1
        while depth:
            mark = _COMMENT_MARK.search(self._data, place)
            if mark is None:
                place = len(self._data)
                break
            place = mark.end()
            depth += {b"(": 1, b")": -1}.get(mark[0], 0)
        self._comment = self._data[begin : place if depth else place - 1]
        return place

    def _finish(self) -> None:
        tokens = [token for token in (self._words if self._angle is None else self._angle) if token.strip()]
        address = b"".join(tokens)
        if self._angle is not None:
            name = decode_text(b"".join(map(_unquote, self._words)))
        else:
            name = decode_text(_ESCAPE.sub(rb"\1", self._comment))
            if len(tokens) > 1 and b"@" not in address:
                address = b""
        if is_safe(address):
            self.found.append(Mailbox(address=Address(address), name=" ".join(name.split())))
        self._start()


def _unquote(token: bytes) -> bytes:
    if token[:1] != b'"':
        return token
    return _ESCAPE.sub(rb"\1", token[1:].removesuffix(b'"'))


def encode_mailboxes(mailboxes: Iterable[Mailbox], *, indent: int = 0) -> bytes:
    """The value of a header with these mailboxes, folded between them.

    Args:
        mailboxes: one after the other; control characters in a name become blanks.
        indent: octets that stand before the value on its first line.

    Raises:
        ValueError: an address is empty, or is none that may be written into a message.
    """
    pieces: list[bytes] = []
    for mailbox in mailboxes:
        if pieces:
            pieces[-1] += b","
        pieces += [b" " + piece.lstrip(b" ") for piece in _encode_mailbox(mailbox)]
    if pieces:
        pieces[0] = pieces[0][1:]
    return fold(pieces, indent=indent)


def _encode_mailbox(mailbox: Mailbox) -> list[bytes]:
    address = mailbox.address.bare
    if not is_safe(address):
        raise ValueError(f"{address[:80]!r} is no address")
    name = " ".join(_CONTROL.sub(" ", mailbox.name).split())
    if not name:
        return [address]
    if not _PRINTABLE.fullmatch(name) or "=?" in name or len(name) > MAX_LINE - 4:
        words = encode_words(name)
    elif _ATOMS.fullmatch(name):
        words = [name.encode("ascii")]
    else:
        words = [b'"%b"' % re.sub(rb'(["\\])', rb"\\\1", name.encode("ascii"))]
    return [*words, b"<%b>" % address]
