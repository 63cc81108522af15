"""The text of replies with a code of the filter's own: how it is built, and how it is read back.

The text of a `ReplyCode` travels as SMTP lines, the code on each, and MTAs read it as a format in which `%%`
stands for a percent sign (smfi_setmlreply). Postfix closes the connection over a text that it cannot read,
Sendmail ignores it; `reply_text` builds only what both take.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["MAX_LINE", "MAX_LINES", "ReplyParts", "reply_lines", "reply_parts", "reply_text"]

MAX_LINE = 980
"""Bytes of one line of a reply's text, code and status not counted (libmilter, MAXREPLYLEN)."""
MAX_LINES = 32
"""Lines of a reply's text (libmilter, MAXREPLIES)."""

MAX_READ_LINE = 4096
"""Bytes that are read of one line. RFC 5321 4.5.3.1.5 says 512; filters exceed it."""
MAX_READ_LINES = 128

_STATUS = re.compile(r"([245])\.\d{1,3}\.\d{1,3}", re.ASCII)
_LINE_END = re.compile(rb"\r\n|\r|\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_LINE = re.compile(rb"([45][0-9][0-9])[ -]([^\0]*)", re.DOTALL)
_READ_STATUS = re.compile(rb"\A([245]\.\d{1,3}\.\d{1,3})(?: |\Z)")
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PERCENT = re.compile(rb"%(%?)")


def reply_text(code: int, status: str | None, *lines: str | bytes) -> bytes:
    """The payload of a `ReplyCode`, without the NUL.

    The text may come from anywhere: line ends in it begin a new line of the reply, other control characters
    become `?`, and what is longer than `MAX_LINE` bytes is folded, at a blank if there is one and never
    inside a character. `%` needs no doubling here.

    Args:
        code: 400 to 599. Most MTAs close the SMTP connection after 421.
        status: the enhanced status code (RFC 3463), which is put on each line; its class is that of the
            code. None for a reply without one.
        lines: the text; str travels as UTF-8.

    Raises:
        ValueError: code and status make no reply that an MTA would take, or the text has more than
            `MAX_LINES` lines.
    """
    if not 400 <= code <= 599:
        raise ValueError(f"{code} is no refusal: 400 to 599 are")
    if status is not None:
        found = _STATUS.fullmatch(status)
        if found is None or found[1] != str(code)[0]:
            raise ValueError(f"{status!r} is no enhanced status code for {code}")
    folded = [part for line in lines for part in _parts(line)] or [b""]
    if len(folded) > MAX_LINES:
        raise ValueError(f"{len(folded)} lines, {MAX_LINES} are the most")
    if status is not None:
        tails = [(status.encode() + b" " + text).rstrip() for text in folded]
    else:
        # Postfix reads a digit as the beginning of a status code, and refuses one of another class.
        own = b"%d" % (code // 100)
        tails = [b" " + text if text[:1].isdigit() and text[:1] != own else text for text in folded]
    *firsts, last = tails
    return b"".join([*(b"%d-%b\r\n" % (code, tail) for tail in firsts), b"%d %b" % (code, last)])


def _parts(text: str | bytes) -> Iterator[bytes]:
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    for line in _LINE_END.split(raw):
        yield from _fold(_CONTROL.sub(b"?", line).replace(b"%", b"%%"))


def _fold(line: bytes) -> Iterator[bytes]:
    while len(line) > MAX_LINE:
        cut = line.rfind(b" ", 1, MAX_LINE + 1)
        if cut < 0:
            cut = MAX_LINE
            while cut > MAX_LINE - 3 and line[cut] & 0xC0 == 0x80:
                cut -= 1  # not inside a character of UTF-8
            if (cut - len(line[:cut].rstrip(b"%"))) % 2:
                cut -= 1  # nor inside a %%
        yield line[:cut]
        line = line[cut:].removeprefix(b" ")
    yield line


class ReplyParts(NamedTuple):
    """What a `ReplyCode` says.

    Attributes:
        code: 400 to 599.
        status: the enhanced status code of the first line, None without one.
        lines: the text of each line, without code and status, `%%` undone.
    """

    code: int
    status: str | None
    lines: tuple[bytes, ...]


def reply_lines(text: bytes) -> tuple[int, tuple[bytes, ...]] | None:
    """Read the text of a `ReplyCode` as Postfix 3.12 does (milter8.c).

    Each line is a code, blank or dash, text; all codes are equal, and a text that begins with a digit begins
    with that of their class. A dash where the blank belongs, or the other way round, is put right, as is `%%`
    (meant as an escape) and a lone `%`. Control characters become `?`, so that no text can end its line.
    Nothing else is changed or added.

    Returns:
        The code and the text of each line, status included; None if it is no reply that an MTA would take.
    """
    lines = text.split(b"\r\n", MAX_READ_LINES)
    code = text[:3]
    texts = []
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or match[1] != code or len(line) > MAX_READ_LINE:
            return None
        if match[2][:1].isdigit() and match[2][:1] != code[:1]:
            return None
        texts.append(_UNSAFE.sub(b"?", _PERCENT.sub(rb"\1", match[2])))
    return (int(code), tuple(texts)) if len(lines) <= MAX_READ_LINES else None


def reply_parts(text: bytes) -> ReplyParts | None:
    """Read the text of a `ReplyCode`, the status apart; None if it is no reply that an MTA would take."""
    found = reply_lines(text)
    if found is None:
        return None
    code, lines = found
    first = _READ_STATUS.match(lines[0])
    return ReplyParts(
        code=code,
        status=None if first is None else first[1].decode(),
        lines=tuple(_READ_STATUS.sub(b"", line) for line in lines),
    )
