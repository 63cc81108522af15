r"""The lines of the scenario language: what kind each is, and the escapes in it.

`\\`, `\*`, `\t`, `\r`, `\n`, `\s` (a blank, for the end of a line) and `\xHH` stand for one byte each.
"""

import re
from dataclasses import dataclass

from milterchain.testing.cases_model import EVERYWHERE, Pattern, Selector

__all__ = ["Line", "LineError", "byte_text", "line_of", "pattern", "plain_text", "selector"]

_KEYWORDS = frozenset(
    "case on needs filter connect tls drop closed arrives from to has lacks received > < = |".split()  # noqa: SIM905
)
_LINE = re.compile(r"([a-z]+|[><=|])(?:\[([^\]]*)\])?(?:\*(\d{1,7}))?(?: (.+))?", re.DOTALL)
_OPTION = re.compile(r" {4}([a-z][a-z0-9-]*)(?: (.+))?", re.DOTALL)
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPE = re.compile(rb"\\(x[0-9A-Fa-f]{2}|.|)", re.DOTALL)
_ESCAPES = {b"\\": b"\\", b"*": b"*", b"t": b"\t", b"r": b"\r", b"n": b"\n", b"s": b" "}
_GAP = re.compile(rb"((?:[^\\*]|\\.)*)(\*|\Z)", re.DOTALL)

OPTION = "option"


class LineError(ValueError):
    """A line cannot be read; the text says why, the parser adds where."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line in its parts.

    Attributes:
        number: from 1.
        keyword: the first word or sign; `option` for a line below `filter`.
        selector: for which MTAs it is meant.
        times: the number after an asterisk, if there is one.
        key: of an option.
        rest: what follows the keyword and a blank, escapes as they were typed.
    """

    number: int
    keyword: str
    selector: Selector = EVERYWHERE
    times: int | None = None
    key: str = ""
    rest: str = ""


def line_of(number: int, text: str) -> Line | None:
    """Take a line apart; None for an empty line and for a comment.

    Raises:
        LineError: it is no line of the language.
    """
    if found := _CONTROL.search(text):
        raise LineError(f"character {found[0]!r}: write an escape")
    if text != text.rstrip():
        raise LineError(r"blank at the end of the line: write \s")
    if not text or text.startswith("#"):
        return None
    if found := _OPTION.fullmatch(text):
        return Line(number, OPTION, key=found[1], rest=found[2] or "")
    found = _LINE.fullmatch(text)
    if found is None or found[1] not in _KEYWORDS:
        first = text.split(maxsplit=1)[0]
        raise LineError(f"{first!r} begins no line; expected one of: {' '.join(sorted(_KEYWORDS))}")
    where = EVERYWHERE if found[2] is None else selector(found[2])
    times = None if found[3] is None else int(found[3])
    if times is not None and found[1] != "|":
        raise LineError(f"only | lines can be repeated, not {found[1]!r}")
    return Line(number, found[1], where, times, rest=found[4] or "")


def selector(text: str) -> Selector:
    """Read names of MTAs, separated by blanks; those with a minus sign are left out.

    Raises:
        LineError: there is none, or one is no name.
    """
    words = text.split()
    for word in words:
        if not _NAME.fullmatch(word.removeprefix("-")):
            raise LineError(f"{word!r} is no name of an MTA")
    if not words:
        raise LineError("names of MTAs are missing")
    unwanted = frozenset(word[1:] for word in words if word.startswith("-"))
    wanted = frozenset(word for word in words if not word.startswith("-"))
    if both := sorted(wanted & unwanted):
        raise LineError(f"{both[0]!r} is both wanted and unwanted")
    return Selector(wanted, unwanted)


def byte_text(text: str) -> bytes:
    """Undo the escapes.

    Raises:
        LineError: an escape does not exist.
    """
    return _ESCAPE.sub(_escaped, text.encode())


def plain_text(text: str) -> str:
    """Undo the escapes, where text and not bytes are meant.

    Raises:
        LineError: an escape does not exist, or the result is not UTF-8.
    """
    try:
        return byte_text(text).decode()
    except UnicodeDecodeError:
        raise LineError("this must be UTF-8") from None


def pattern(text: str) -> Pattern:
    r"""Undo the escapes; an asterisk without a backslash is a gap.

    Raises:
        LineError: an escape does not exist.
    """
    raw = text.encode()
    pieces = []
    at = 0
    while True:
        found = _GAP.match(raw, at)
        if found is None:
            raise LineError("backslash at the end")
        pieces.append(_ESCAPE.sub(_escaped, found[1]))
        at = found.end()
        if not found[2]:
            return Pattern(tuple(pieces))


def _escaped(found: re.Match[bytes]) -> bytes:
    what = found[1]
    if len(what) == 3:
        return bytes([int(what[1:], 16)])
    try:
        return _ESCAPES[what]
    except KeyError:
        raise LineError(f"\\{what.decode('ascii', 'replace')} is no escape") from None
