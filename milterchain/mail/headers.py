"""Headers as bytes: split off a message, kept as they came, found by name.

Nothing here decodes, unfolds or re-serialises: a header is the bytes from its name to its last line end, and
a header section that nobody changed renders to exactly the bytes that were read. Input has CRLF line ends
only (see `canonical`).

A line is a header if it begins with printable ASCII other than a colon, then blanks, then a colon (Postfix
is_header.c). The first line that is neither a header nor a continuation ends the section and belongs to the
body. Lines such as `From joe@example.org Mon Jan  5 …` or `>From …` before the first header, which mailbox
files and uucp leave behind, become `X-Mailbox-Line` headers, as Postfix does. NULs, which no milter could be
told of, are removed from headers.

Every section has one header that is ours (`own`): the Received header that we add, or a place holder without
bytes where it would be. Milters do not see it, but the positions at which they insert count it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import NamedTuple, Self, overload

from milterchain.errors import HeaderLimitError

__all__ = ["MAX_HEADER", "VIRTUAL_RECEIVED", "Header", "HeaderLimits", "Headers", "Split", "split_message"]

MAX_HEADER = 60_000
"""Octets of one header: it must fit a milter packet of 65535 with its name repeated (Postfix: 60000, too)."""
MAX_HEADERS = 10_000
"""Headers in a message: each is a packet to each milter."""
MAX_HEADER_BYTES = 2**20
"""Octets of all headers: they are held in memory."""

_CRLF = b"\r\n"
_HEADER = re.compile(rb"(([!-9;-~]+)[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*)")
# `From : joe@example.org` is a header with a blank before its colon; Postfix takes it for a mailbox line.
_MAILBOX_LINE = re.compile(rb">*From (?![ \t]*:)[^\n]*\n")
_MAILBOX_NAME = b"X-Mailbox-Line"


class Header(NamedTuple):
    """One header; a tuple, because a message makes many of them.

    Attributes:
        raw: all its bytes with the final CRLF; empty for a place holder.
        name: as received, without the blanks that may stand before the colon.
        own: this is our Received header, or its place holder.
    """

    raw: bytes
    name: bytes
    own: bool = False

    @classmethod
    def parse(cls, raw: bytes, *, own: bool = False) -> Self:
        """Make a header from its bytes.

        Raises:
            ValueError: these bytes are not exactly one header with CRLF line ends and without NUL.
        """
        match = _HEADER.fullmatch(raw)
        if not match or b"\0" in raw or not raw.count(b"\n") == raw.count(b"\r") == raw.count(_CRLF):
            raise ValueError(f"not one header: {raw[:80]!r}")
        return cls(raw, match[2], own)

    @property
    def value(self) -> bytes:
        """Everything between the colon and the final CRLF, each fold a bare LF: what milters see."""
        return self.raw.partition(b":")[2][:-2].replace(_CRLF, b"\n")


VIRTUAL_RECEIVED = Header(b"", b"Received", own=True)
"""Stands where our own Received header would be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderLimits:
    """How large a header section may be.

    Attributes:
        total: octets of all headers.
        single: octets of one header, folds and final CRLF included.
        count: number of headers.
    """

    total: int = MAX_HEADER_BYTES
    single: int = MAX_HEADER
    count: int = MAX_HEADERS

    def check(self, headers: Sequence[Header], total: int) -> None:
        """Raise HeaderLimitError for the first limit that is exceeded."""
        if total > self.total:
            raise HeaderLimitError(f"headers of {total} octets, {self.total} are allowed")
        if len(headers) > self.count:
            raise HeaderLimitError(f"{len(headers)} headers, {self.count} are allowed")
        if total > self.single:
            for header in headers:
                if len(header.raw) > self.single:
                    name = header.name[:80].decode("ascii")
                    size = len(header.raw)
                    raise HeaderLimitError(f"header {name} of {size} octets, {self.single} are allowed")


class Headers(Sequence[Header]):
    """An immutable header section, in order, exactly one of them `own`."""

    __slots__ = ("_items", "_raw", "_visible")

    def __init__(self, items: Iterable[Header]) -> None:
        self._items = tuple(items)
        self._raw: bytes | None = None
        self._visible: list[tuple[bytes, bytes]] | None = None
        own = sum(header.own for header in self._items)
        if own != 1:
            raise ValueError(f"{own} own headers, there must be one")

    @overload
    def __getitem__(self, index: int) -> Header: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Header, ...]: ...
    def __getitem__(self, index: int | slice) -> Header | tuple[Header, ...]:
        return self._items[index]

    def __len__(self) -> int:
        """The number of headers, the own one included even if it has no bytes."""
        return len(self._items)

    def __iter__(self) -> Iterator[Header]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        return self._items == other._items if isinstance(other, Headers) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Headers({list(self._items)!r})"

    @property
    def raw(self) -> bytes:
        """The bytes of all headers, as they are relayed; made once."""
        if self._raw is None:
            self._raw = b"".join([header.raw for header in self._items])
        return self._raw

    @property
    def visible(self) -> Sequence[tuple[bytes, bytes]]:
        """Name and value of each header that milters see: all but the own one; made once."""
        if self._visible is None:
            # The body of Header.value, inlined: this runs for each header of each message.
            self._visible = [
                (name, raw.partition(b":")[2][:-2].replace(_CRLF, b"\n"))
                for raw, name, own in self._items
                if not own
            ]
        return self._visible

    def values(self, name: bytes) -> list[bytes]:
        """The values of all visible headers of that name (in any case)."""
        lowered = name.lower()
        return [value for found, value in self.visible if found.lower() == lowered]

    def with_own(self, header: Header) -> "Headers":
        """A copy with another own header in the place of the present one."""
        return Headers(header if old.own else old for old in self._items)


class Split(NamedTuple):
    """A message in its parts.

    Attributes:
        headers: without an own one.
        separator: the empty line between headers and body (CRLF), or nothing.
        rest: the body, or as much of it as was in the input.
    """

    headers: tuple[Header, ...]
    separator: bytes
    rest: bytes


def split_message(data: bytes, limits: HeaderLimits) -> Split:
    """Split a message, or a part of one in which the headers end.

    Raises:
        HeaderLimitError: the headers go beyond a limit.
    """
    end = data.find(b"\r\n\r\n") + 2
    head = data[:end]
    found = _HEADER.findall(head)
    # Matches that leave no gap begin each at the start of a line: all of the head is headers.
    if end > 2 and sum([len(raw) for raw, _ in found]) == end and b"\0" not in head:
        headers = tuple(starmap(Header, found))
        limits.check(headers, end)
        return Split(headers, _CRLF, data[end + 2 :])
    # NULs go before lines are judged, but the body keeps its own: lines are counted to find it again.
    clean = data.replace(b"\0", b"")
    headers, separator, end = _split_lines(clean)
    rest = data.split(b"\n", clean.count(b"\n", 0, end))[-1] if clean is not data else data[end:]
    limits.check(headers, sum(len(header.raw) for header in headers))
    return Split(headers, separator, rest)


def _split_lines(data: bytes) -> tuple[tuple[Header, ...], bytes, int]:
    """Headers, separator, and where the body begins."""
    headers = []
    end = 0
    while match := _MAILBOX_LINE.match(data, end):
        headers.append(Header(_MAILBOX_NAME + b": " + match[0], _MAILBOX_NAME))
        end = match.end()
    first = end
    while match := _HEADER.match(data, end):
        headers.append(Header(match[1], match[2]))
        end = match.end()
    if data.startswith(_CRLF, end):
        return tuple(headers), _CRLF, end + 2
    # Without a separator a body line with a leading blank would continue the mailbox line.
    unsafe = first == end > 0 and data[end : end + 1] in {b" ", b"\t"}
    return tuple(headers), _CRLF if unsafe else b"", end
