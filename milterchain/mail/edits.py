"""What milters change, applied.

`apply_edits` takes the edits of one milter in the order in which they came, and makes a new message; the
envelope has its own function, and each of the two passes over what belongs to the other. Nothing is ever half
applied. An edit that cannot be applied safely (a header name that is none, an address with a line end in it)
is left out and reported in the warnings; the others stand.

Headers are counted as Postfix counts them, with one choice (`header_index`), because filters disagree:

- `postfix`: the headers that are there now. After deleting the first of three, index 1 is the former second.
- `sendmail`: the headers that were there when this milter began, and those that it added. A deleted one still
  counts and is revived by changing it. Only index 0 means the first that is left: OpenDKIM deletes forged
  Authentication-Results at ascending indices and old signatures by repeating index 0, so both come out right.

Positions for insertion count every header, our own Received too, even where it has no bytes. Changing counts
headers of one name, and never our own.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from milterchain.mail.addresses import address_key, extract_address
from milterchain.mail.body import Body, BodyWriter, SpoolSettings
from milterchain.mail.canonical import Canonicaliser
from milterchain.mail.envelope import Envelope, Path, bare
from milterchain.mail.header_text import is_header_name, normalize_value
from milterchain.mail.headers import MAX_HEADER, Header, Headers
from milterchain.mail.message import Message
from milterchain.milter.messages import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    Modification,
    ReplaceBody,
)

__all__ = [
    "EditedEnvelope",
    "EditedMessage",
    "HeaderIndex",
    "apply_edits",
    "apply_envelope_edits",
    "new_body",
]

HeaderIndex: TypeAlias = Literal["postfix", "sendmail"]

_HEADER_EDITS = AddHeader | InsertHeader | ChangeHeader


class EditedMessage(NamedTuple):
    """A message after the edits of one milter.

    Attributes:
        message: the very message that was given, if nothing changed.
        warnings: one line for each edit that was left out.
    """

    message: Message
    warnings: tuple[str, ...] = ()


class EditedEnvelope(NamedTuple):
    """An envelope after the edits of one milter.

    Attributes:
        envelope: the very envelope that was given, if nothing changed.
        warnings: one line for each edit or argument that was left out.
        unusable: recipients that could not be added, as the milter gave them.
    """

    envelope: Envelope
    warnings: tuple[str, ...] = ()
    unusable: tuple[bytes, ...] = ()


def apply_edits(
    message: Message,
    edits: Sequence[Modification],
    *,
    header_index: HeaderIndex = "postfix",
    leading_space: bool = False,
    spool: SpoolSettings | None = None,
) -> EditedMessage:
    """Apply one milter's edits of headers and body.

    Args:
        message: before; it is not changed, and the new one shares its body unless that was replaced.
        edits: all edits of one milter, in order; those of the envelope are passed over.
        header_index: how indices count after a deletion.
        leading_space: whether SMFIP_HDR_LEADSPC was negotiated: the milter gives each value with the blank
            that follows the colon, or without, as it likes. Else a blank is put before each value.
        spool: where a large new body goes. It is the caller's to close.

    Raises:
        OSError: a new body cannot be written to its file.
    """
    warnings: list[str] = []
    edited = message
    header_edits = [edit for edit in edits if isinstance(edit, _HEADER_EDITS)]
    if header_edits:
        table = _HeaderTable(message.headers, revive=header_index == "sendmail")
        for edit in header_edits:
            header = _make_header(edit.name, edit.value, leading_space=leading_space)
            if isinstance(header, str):
                warnings.append(header)
            else:
                table.apply(edit, header)
        headers = table.headers()
        if headers != message.headers:
            edited = edited.with_headers(headers)
    chunks = [edit.chunk for edit in edits if isinstance(edit, ReplaceBody)]
    if chunks:
        edited = edited.with_body(new_body(chunks, spool, binary=message.binary))
    return EditedMessage(edited, tuple(warnings))


def _make_header(name: bytes, value: bytes, *, leading_space: bool) -> Header | str:
    """The header that a milter means, or what is wrong with it."""
    if not is_header_name(name):
        return f"header name {name[:80]!r} is not valid"
    value = normalize_value(value).replace(b"\n", b"\r\n")
    raw = b"%b:%b%b\r\n" % (name, b"" if leading_space else b" ", value)
    if len(raw) > MAX_HEADER:
        return f"header {name[:80]!r} of {len(raw)} octets is larger than {MAX_HEADER}"
    return Header(raw, name)


class _Slot:
    """A place in the header list; `header` is None where it was deleted, `key` is empty for our own."""

    __slots__ = ("header", "key")

    def __init__(self, header: Header) -> None:
        self.header: Header | None = header
        self.key = b"" if header.own else header.name.lower()


class _HeaderTable:
    """The headers while one milter's edits are applied.

    `_order` has every slot, `_named` those of one name without the own one, both in order. With `revive`,
    deleted slots stay in both.
    """

    def __init__(self, headers: Headers, *, revive: bool) -> None:
        self._revive = revive
        self._order: list[_Slot] = []
        self._named: dict[bytes, list[_Slot]] = {}
        for header in headers:
            slot = _Slot(header)
            self._order.append(slot)
            if slot.key:
                self._named.setdefault(slot.key, []).append(slot)

    def headers(self) -> Headers:
        return Headers(slot.header for slot in self._order if slot.header is not None)

    def apply(self, edit: AddHeader | InsertHeader | ChangeHeader, header: Header) -> None:
        if isinstance(edit, AddHeader):
            self._append(header)
        elif isinstance(edit, InsertHeader):
            self._insert(edit.index, header)
        else:
            self._change(edit.index, header, delete=not edit.value)

    def _append(self, header: Header) -> None:
        slot = _Slot(header)
        self._order.append(slot)
        self._named.setdefault(slot.key, []).append(slot)

    def _insert(self, index: int, header: Header) -> None:
        if index >= len(self._order):
            self._append(header)
            return
        slot = _Slot(header)
        same = self._named.setdefault(slot.key, [])
        before = sum(other.key == slot.key for other in self._order[:index]) if same else 0
        same.insert(before, slot)
        self._order.insert(index, slot)

    def _change(self, index: int, header: Header, *, delete: bool) -> None:
        same = self._named.get(header.name.lower(), [])
        if index == 0:
            slot = next((slot for slot in same if slot.header is not None), None)
        else:
            slot = same[index - 1] if index <= len(same) else None
        if slot is None:
            if not delete:
                self._append(header)
        elif not delete:
            slot.header = header
        elif self._revive:
            slot.header = None
        else:
            same.remove(slot)
            self._order.remove(slot)


def new_body(chunks: Iterable[bytes], spool: SpoolSettings | None = None, *, binary: bool = False) -> Body:
    """A body from what a milter gives as one: with CRLF line ends, the last line complete.

    Args:
        chunks: pieces, cut anywhere.
        spool: where it goes if it is large. It is the caller's to close.
        binary: it is no text, and is taken as it is.

    Raises:
        OSError: it cannot be written to its file.
    """
    canonicaliser = Canonicaliser()
    writer = BodyWriter(spool)
    for chunk in chunks:
        writer.write(chunk if binary else canonicaliser.feed(chunk))
    writer.write(canonicaliser.finish())
    return writer.finish()


_XTEXT = rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})"
_MAIL_ARGS: Mapping[bytes, re.Pattern[bytes]] = {
    b"RET": re.compile(rb"FULL|HDRS", re.IGNORECASE),
    b"ENVID": re.compile(_XTEXT + rb"{1,100}"),
}
_RCPT_ARGS: Mapping[bytes, re.Pattern[bytes]] = {
    b"NOTIFY": re.compile(
        rb"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY)){0,2}", re.IGNORECASE
    ),
    b"ORCPT": re.compile(rb"[A-Za-z0-9-]{1,60};" + _XTEXT + rb"{1,500}"),
}


def apply_envelope_edits(envelope: Envelope, edits: Sequence[Modification]) -> EditedEnvelope:
    """Apply one milter's edits of sender and recipients; those of the message are passed over.

    Recipients to delete are compared byte for byte with the address as the client typed it, without brackets;
    all of its copies go. Recipients that are there already, or are empty, are not added. A new sender keeps
    the parameters of the old one, but for RET and ENVID where the milter gave them.
    """
    warnings: list[str] = []
    unusable: list[bytes] = []
    sender = envelope.sender
    recipients = _Recipients(envelope.recipients)
    for edit in edits:
        if isinstance(edit, DeleteRecipient):
            recipients.delete(bare(edit.text))
        elif isinstance(edit, AddRecipient | ChangeSender):
            address = extract_address(edit.address)
            if address is None:
                warnings.append(f"address {edit.address[:80]!r} is not valid")
                if isinstance(edit, AddRecipient):
                    unusable.append(edit.address)
            elif isinstance(edit, ChangeSender):
                args = _arguments(edit.args, _MAIL_ARGS, warnings)
                kept = {_keyword(arg): arg for arg in sender.args}
                sender = Path(b"<%b>" % address, tuple((kept | args).values()))
            elif address and address not in recipients:
                args = _arguments(edit.args, _RCPT_ARGS, warnings)
                recipients.add(Path(b"<%b>" % address, tuple(args.values())))
    edited = Envelope(sender, recipients.paths())
    return EditedEnvelope(envelope if edited == envelope else edited, tuple(warnings), tuple(unusable))


class _Recipients:
    """The recipients while edits are applied; a thousand edits of a thousand must not take long."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths: dict[int, Path] = {}
        self._places: dict[bytes, list[int]] = {}
        self._mailboxes: Counter[tuple[bytes, bytes]] = Counter()
        self._count = itertools.count()
        for path in paths:
            self.add(path)

    def paths(self) -> tuple[Path, ...]:
        return tuple(self._paths.values())

    def __contains__(self, address: bytes) -> bool:
        return self._mailboxes[address_key(address)] > 0

    def add(self, path: Path) -> None:
        place = next(self._count)
        self._paths[place] = path
        self._places.setdefault(path.bare, []).append(place)
        self._mailboxes[address_key(path.address)] += 1

    def delete(self, address: bytes) -> None:
        for place in self._places.pop(address, ()):
            del self._paths[place]
            self._mailboxes[address_key(address)] -= 1


def _keyword(arg: bytes) -> bytes:
    return arg.partition(b"=")[0].upper()


def _arguments(
    text: bytes, known: Mapping[bytes, re.Pattern[bytes]], warnings: list[str]
) -> dict[bytes, bytes]:
    """The parameters that may be passed on, by keyword."""
    args = {}
    for arg in text.split():
        keyword = _keyword(arg)
        if keyword in known and known[keyword].fullmatch(arg.partition(b"=")[2]):
            args[keyword] = arg
        else:
            warnings.append(f"parameter {arg[:80]!r} is not valid here")
    return args
