"""The headers of a message as a filter works on them: an ordered list that can be changed.

`HeaderList` keeps every header as it came, byte for byte, until it is changed, and remembers what it was, so
that `edits` can tell the MTA in the fewest modifications what became of it. Names are bytes and are compared
without regard to case; values are bytes (`value`, `unfolded`) or decoded text (`text`, `addresses`, `date`).

A value is what milters get: everything after the colon, a bare LF at each fold. Without SMFIP_HDR_LEADSPC
(`leading_space`) the MTA has taken one space off its front and will put one there. With it the blank belongs
to the value, and is put before a new one that has none.

The MTA's own Received header is not in the list, as milters do not see it.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from email.utils import format_datetime, parsedate_to_datetime

from milterchain.mail.edits import HeaderIndex
from milterchain.mail.header_edits import HeaderEdit, header_edits
from milterchain.mail.header_text import decode_text, encode_text, is_header_name, normalize_value, unfold
from milterchain.mail.headers import MAX_HEADER
from milterchain.mail.mailboxes import Mailbox, encode_mailboxes, parse_mailboxes

__all__ = ["Field", "HeaderList"]

_SUBJECT = b"Subject"
_DATE = b"Date"


class _Place:
    """A place in a ring; that of the list itself, which has no field, is between the last and the first."""

    __slots__ = ("field", "following", "previous")

    def __init__(self, previous: "_Place | None" = None) -> None:
        self.field: Field | None = None
        self.previous: _Place = previous or self
        self.following: _Place = self.previous.following if previous else self
        self.previous.following = self.following.previous = self

    def leave(self) -> None:
        self.previous.following, self.following.previous = self.following, self.previous


class Field:
    """One header in a `HeaderList`. Two are equal only if they are the same one."""

    __slots__ = ("_leading_space", "_name", "_place", "_value")

    def __init__(self, place: _Place, name: bytes, value: bytes, *, leading_space: bool) -> None:
        self._place: _Place | None = place
        self._name = name
        self._value = value
        self._leading_space = leading_space
        place.field = self

    def __repr__(self) -> str:
        return f"<Field {self.name!r}: {self.value!r}>"

    @property
    def name(self) -> bytes:
        """The name as it is spelled."""
        return self._name

    @property
    def value(self) -> bytes:
        """What stands after the colon; see the module about the blank in front."""
        return self._value

    @property
    def unfolded(self) -> bytes:
        """The value on one line, without the blanks around it; nothing is decoded."""
        return unfold(self.value)

    @property
    def text(self) -> str:
        """The text that the value means: unfolded, encoded words (RFC 2047) decoded."""
        return decode_text(self.value)

    @property
    def addresses(self) -> list[Mailbox]:
        """The value read as an address list; what is no address is left out."""
        return parse_mailboxes(self.value)

    @property
    def deleted(self) -> bool:
        """Whether it is no longer in its list."""
        return self._place is None

    def replace(self, value: bytes) -> None:
        """Give it another value; the spelling of its name stays.

        Raises:
            ValueError: the value has a NUL or is too large, or the header was deleted.
        """
        if value != self.value:
            self._here()
            self._value = _prepare(self.name, value, leading_space=self._leading_space)

    def replace_text(self, text: str) -> None:
        """Give it a text as its value, folded and as encoded words (UTF-8) where ASCII does not suffice.

        If it has that text already its bytes stay as they are.

        Raises:
            ValueError: the text is too large, or the header was deleted.
        """
        if text != self.text:
            self.replace(encode_text(text, indent=len(self.name) + 2))

    def replace_addresses(self, mailboxes: Iterable[Mailbox]) -> None:
        """Give it an address list as its value, folded between the addresses.

        Raises:
            ValueError: something is no address, the list is too large, or the header was deleted.
        """
        self.replace(encode_mailboxes(mailboxes, indent=len(self.name) + 2))

    def delete(self) -> None:
        """Take it out of its list. May be called again."""
        if self._place is not None:
            self._place.leave()
            self._place = None

    def insert_before(self, name: bytes, value: bytes) -> "Field":
        """Put a new header before this one.

        Raises:
            ValueError: name or value cannot be, or this header was deleted.
        """
        return _insert(self._here().previous, name, value, leading_space=self._leading_space)

    def insert_after(self, name: bytes, value: bytes) -> "Field":
        """Put a new header after this one.

        Raises:
            ValueError: name or value cannot be, or this header was deleted.
        """
        return _insert(self._here(), name, value, leading_space=self._leading_space)

    def _here(self) -> _Place:
        if self._place is None:
            raise ValueError(f"header {self.name!r} was deleted")
        return self._place


class HeaderList:
    """The headers of a message, in order.

    Changing the list while going through it is fine: deleted headers are not met any more, and new ones are
    not met before the next time.

    Attributes:
        original: name and value of each header as the list was made.
        leading_space: whether values have the blank that follows the colon.
    """

    __slots__ = ("_ends", "leading_space", "original")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]] = (), *, leading_space: bool = False) -> None:
        self.original: Sequence[tuple[bytes, bytes]] = tuple(headers)
        self.leading_space = leading_space
        # A ring of fields: senders may send very many, which a filter goes through and changes one by one.
        self._ends = _Place()
        for name, value in self.original:
            Field(_Place(self._ends.previous), name, value, leading_space=leading_space)

    def __iter__(self) -> Iterator[Field]:
        return (field for field in self._present() if not field.deleted)

    def __len__(self) -> int:
        return len(self._present())

    def __contains__(self, name: bytes) -> bool:
        return self.field(name) is not None

    def __repr__(self) -> str:
        return f"HeaderList({self.items()!r})"

    def __bytes__(self) -> bytes:
        """The headers as they are relayed, with CRLF line ends."""
        colon = b":" if self.leading_space else b": "
        rows = [b"%b%b%b\n" % (name, colon, value) for name, value in self.items()]
        return b"".join(rows).replace(b"\n", b"\r\n")

    @property
    def names(self) -> list[bytes]:
        """The name of each header, as it is spelled, in order."""
        return [field.name for field in self._present()]

    @property
    def changed(self) -> bool:
        """Whether anything differs from the original."""
        return tuple(self.items()) != self.original

    def items(self) -> list[tuple[bytes, bytes]]:
        """Name and value of each header, in order."""
        return [(field.name, field.value) for field in self._present()]

    def edits(self, *, header_index: HeaderIndex = "postfix", keep_order: bool = False) -> list[HeaderEdit]:
        """The modifications that make the original what the list is now, see `header_edits`."""
        return header_edits(self.original, self.items(), header_index=header_index, keep_order=keep_order)

    def fields(self, name: bytes) -> list[Field]:
        """All headers of that name, in order."""
        lowered = _lowered(name)
        return [field for field in self._present() if field.name.lower() == lowered]

    def field(self, name: bytes, index: int = 0) -> Field | None:
        """The header of that name (from 0; -1 is the last one), None if there is none."""
        found = self.fields(name)
        return found[index] if -len(found) <= index < len(found) else None

    def raw(self, name: bytes, index: int = 0) -> bytes | None:
        """The value of the header of that name; None without one."""
        field = self.field(name, index)
        return None if field is None else field.value

    def unfolded(self, name: bytes, index: int = 0) -> bytes | None:
        """The value on one line, without the blanks around it; None without such a header."""
        field = self.field(name, index)
        return None if field is None else field.unfolded

    def text(self, name: bytes, index: int = 0) -> str | None:
        """The decoded text of the header of that name; None without one."""
        field = self.field(name, index)
        return None if field is None else field.text

    def addresses(self, name: bytes) -> list[Mailbox]:
        """The mailboxes in all headers of that name."""
        return [mailbox for field in self.fields(name) for mailbox in field.addresses]

    @property
    def subject(self) -> str | None:
        """The decoded subject; None without one. Setting it changes the first one or adds one."""
        return self.text(_SUBJECT)

    @subject.setter
    def subject(self, text: str) -> None:
        self.set_text(_SUBJECT, text)

    def date(self) -> datetime | None:
        """The Date header; None if there is none that can be read. Without a known zone it is naive."""
        value = self.unfolded(_DATE)
        try:
            return None if value is None else parsedate_to_datetime(value.decode("latin-1"))
        except (ValueError, IndexError, OverflowError):
            return None

    def set(self, name: bytes, value: bytes, *, index: int = 0) -> Field:
        """Give the header of that name (from 0) another value, or add it at the end if there is none.

        An empty value makes an empty header; use `delete` to have none.

        Raises:
            ValueError: name or value cannot be.
        """
        field = self.field(name, index)
        if field is None:
            return self.add(name, value)
        field.replace(value)
        return field

    def set_text(self, name: bytes, text: str, *, index: int = 0) -> Field:
        """Set a decoded text, see `Field.replace_text`."""
        field = self.field(name, index)
        if field is None:
            return self.add_text(name, text)
        field.replace_text(text)
        return field

    def set_addresses(self, name: bytes, mailboxes: Iterable[Mailbox], *, index: int = 0) -> Field:
        """Set an address list, see `Field.replace_addresses`."""
        return self.set(name, encode_mailboxes(mailboxes, indent=len(name) + 2), index=index)

    def set_date(self, date: datetime) -> Field:
        """Set the Date header; a naive time is UTC of an unknown zone (`-0000`)."""
        return self.set(_DATE, format_datetime(date).encode("ascii"))

    def add(self, name: bytes, value: bytes) -> Field:
        """Add a header after all others.

        Raises:
            ValueError: name or value cannot be.
        """
        return _insert(self._ends.previous, name, value, leading_space=self.leading_space)

    def add_text(self, name: bytes, text: str) -> Field:
        """Add a header with a decoded text, see `Field.replace_text`."""
        return self.add(name, encode_text(text, indent=len(name) + 2))

    def insert(self, index: int, name: bytes, value: bytes) -> Field:
        """Insert a header: 0 is before all others; beyond the end is at the end.

        Raises:
            ValueError: name or value cannot be.
        """
        following = self._present()[index:]
        return following[0].insert_before(name, value) if following else self.add(name, value)

    def delete(self, name: bytes) -> int:
        """Delete all headers of that name; how many there were."""
        gone = self.fields(name)
        for field in gone:
            field.delete()
        return len(gone)

    def _present(self) -> list[Field]:
        fields = []
        place = self._ends.following
        while place.field is not None:
            fields.append(place.field)
            place = place.following
        return fields


def _lowered(name: bytes) -> bytes:
    """In lower case; a str is an error, and not a name that no header has."""
    try:
        return bytes.lower(name)
    except TypeError:
        raise TypeError(f"the name of a header is bytes, not {name!r}") from None


def _insert(previous: _Place, name: bytes, value: bytes, *, leading_space: bool) -> Field:
    """Make a field that follows what is at a place."""
    value = _prepare(name, value, leading_space=leading_space)
    return Field(_Place(previous), name, value, leading_space=leading_space)


def _prepare(name: bytes, value: bytes, *, leading_space: bool) -> bytes:
    """The value as it will be, if header and MTA can take it."""
    if not is_header_name(name):
        raise ValueError(f"{name[:80]!r} is no header name")
    if b"\0" in value:
        raise ValueError(f"NUL in the value of header {name[:80]!r}")
    value = normalize_value(value.rstrip(b"\r\n"))
    if leading_space and value and value[:1] not in {b" ", b"\t", b"\n"}:
        value = b" " + value
    # A milter packet holds it all; Postfix cuts off what is larger.
    if len(name) + len(value) + value.count(b"\n") + 4 > MAX_HEADER:
        raise ValueError(f"header {name[:80]!r} is larger than {MAX_HEADER} octets")
    return value
