"""`MacroBag`: what an MTA knows, by the names of macros, for whatever milters ask for.

Which of it is sent, when and in which spelling, is for `MacroTable` and the milter to say. Names are bytes,
with or without braces. Four macros of Sendmail are dates and follow from two points in time (Sendmail
Installation and Operation Guide, section 5.1.2), unless they were set like any other:

==== =============================================================================
`a`  the date in the message's Date header; the current date where there is none
`b`  the current date, like `a` in the form of RFC 5322
`d`  the current date in the form of ctime(3)
`t`  the current date in UTC as YYYYMMDDhhmm
==== =============================================================================
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from email.utils import format_datetime
from types import MappingProxyType

from milterchain.milter.macros import canonical

__all__ = ["MacroBag"]

_DATES = (b"a", b"b", b"d", b"t")
_NOTHING: Mapping[bytes, bytes] = MappingProxyType({})


class MacroBag(MutableMapping[bytes, bytes]):
    """Macros and their values; a mapping in which `x` and `{x}` are one name.

    The dates are always there, so that they can be asked for; to delete one is to have it follow from the
    clock again. Iterating gives names without braces.

    Args:
        values: to begin with.
    """

    __slots__ = ("_current", "_header", "_values")

    def __init__(self, values: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]] = _NOTHING) -> None:
        self._values: dict[bytes, bytes] = {}
        self._current: datetime | None = None
        self._header: datetime | None = None
        self.update(values)

    def __getitem__(self, name: bytes) -> bytes:
        key = canonical(name)
        value = self._values.get(key)
        if value is not None:
            return value
        if key in _DATES:
            return self._date(key)
        raise KeyError(name)

    def __setitem__(self, name: bytes, value: bytes) -> None:
        self._values[canonical(name)] = value

    def __delitem__(self, name: bytes) -> None:
        key = canonical(name)
        if self._values.pop(key, None) is None and key not in _DATES:
            raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, bytes) and (canonical(name) in self._values or canonical(name) in _DATES)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._values
        yield from (name for name in _DATES if name not in self._values)

    def __len__(self) -> int:
        return len(self._values.keys() | _DATES)

    def __repr__(self) -> str:
        return f"MacroBag({self._values!r})"

    def copy(self) -> "MacroBag":
        """A bag of its own with the same values, the dates that were set included."""
        made = MacroBag(self._values)
        made._current, made._header = self._current, self._header
        return made

    def discard(self, *names: bytes) -> None:
        """Forget some, such as those of one recipient; those that are not there do no harm."""
        for name in names:
            self._values.pop(canonical(name), None)

    def set_current_date(self, date: datetime | None) -> None:
        """Stop the clock for `b`, `d` and `t`, as Sendmail does when a message comes; None lets it run.

        Args:
            date: without a zone it is in local time.
        """
        self._current = None if date is None else _zoned(date)

    def set_header_date(self, date: datetime | None) -> None:
        """Say what the message's Date header says, for `a`; None if there is no such header.

        Args:
            date: without a zone it is in local time.
        """
        self._header = None if date is None else _zoned(date)

    def _date(self, name: bytes) -> bytes:
        current = self._current or datetime.now().astimezone()
        if name == b"t":
            return current.astimezone(UTC).strftime("%Y%m%d%H%M").encode("ascii")
        if name == b"d":
            return current.ctime().encode("ascii")
        date = self._header if name == b"a" and self._header is not None else current
        return format_datetime(date).encode("ascii")


def _zoned(date: datetime) -> datetime:
    return date if date.tzinfo is not None else date.astimezone()
