"""The envelope of a transaction: what it was, what a filter made of it, and the edits between the two."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from milterchain.mail.address import Address
from milterchain.mail.addresses import address_key, extract_address
from milterchain.mailfilter.parties import Recipient, Sender
from milterchain.milter.messages import AddRecipient, ChangeSender, DeleteRecipient

__all__ = ["EnvelopeChanges"]

_ARG = re.compile(rb"[!-~\x80-\xff]+")


class EnvelopeChanges:
    """Sender and recipients, changed in memory.

    Args:
        sender: None if it is not known yet.
        recipients: None if they are not known yet.

    Attributes:
        sender: the present one; empty if it is not known.
    """

    __slots__ = ("_blindly_deleted", "_original_recipients", "_original_sender", "_recipients", "sender")

    def __init__(self, sender: Sender | None, recipients: Sequence[Recipient] | None) -> None:
        self._original_sender = sender
        self._original_recipients = None if recipients is None else tuple(recipients)
        self._blindly_deleted: dict[tuple[bytes, bytes], bytes] = {}
        self._recipients: dict[tuple[bytes, bytes], list[Recipient]] = {}
        for recipient in recipients or ():
            self._recipients.setdefault(recipient.key, []).append(recipient)
        self.sender = sender or Sender(b"")

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The present ones; those that were added are the last."""
        return tuple(recipient for same in self._recipients.values() for recipient in same)

    def has_recipient(self, address: str | bytes) -> bool:
        """Whether a mailbox is among the present recipients."""
        return address_key(_encoded(address)) in self._recipients

    def change_sender(self, address: str | bytes, *args: str | bytes) -> None:
        """Change the sender, see `Transaction.change_sender`."""
        sender = _address(address, args)
        self.sender = replace(
            self.sender, raw=sender.raw, args=sender.args or self.sender.args, transport="", host=""
        )

    def add_recipient(self, address: str | bytes, *args: str | bytes) -> bool:
        """Add a recipient, see `Transaction.add_recipient`."""
        added = _address(address, args)
        if not added.bare:
            raise ValueError("a recipient cannot be empty")
        if added.key in self._recipients:
            return False
        originals = [known for known in self._original_recipients or () if known == added]
        restored = all(known.args == added.args for known in originals)
        self._recipients[added.key] = (
            originals if originals and restored else [Recipient(added.raw, added.args)]
        )
        return True

    def delete_recipient(self, address: str | bytes) -> bool:
        """Delete a recipient, see `Transaction.delete_recipient`."""
        deleted = _address(address, ())
        if self._original_recipients is None:
            self._blindly_deleted[deleted.key] = deleted.raw
        return self._recipients.pop(deleted.key, None) is not None

    def edits(self) -> Iterator[ChangeSender | DeleteRecipient | AddRecipient]:
        """The fewest edits that make the present envelope of the original one."""
        yield from self._sender_edits()
        yield from self._recipient_edits()

    def _sender_edits(self) -> Iterator[ChangeSender]:
        sender, original = self.sender, self._original_sender or Sender(b"")
        new_args = sender.args if sender.args != original.args else ()
        known = self._original_sender is not None
        if (sender.bare != original.bare or new_args) if known else sender.raw:
            yield ChangeSender(_wire(sender), b" ".join(new_args))

    def _recipient_edits(self) -> Iterator[DeleteRecipient | AddRecipient]:
        kept = {id(recipient) for recipient in self.recipients}
        originals = self._original_recipients or ()
        gone = dict.fromkeys(recipient.path.bracketed for recipient in originals if id(recipient) not in kept)
        yield from map(DeleteRecipient, (*gone, *self._blindly_deleted.values()))
        known = {id(recipient) for recipient in originals}
        for recipient in self.recipients:
            if id(recipient) not in known:
                yield AddRecipient(_wire(recipient), b" ".join(recipient.args))


def _encoded(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else text


def _address(text: str | bytes, args: Sequence[str | bytes]) -> Address:
    """What a filter gives as an address, in brackets.

    Raises:
        ValueError: address or arguments cannot be written into an SMTP command.
    """
    address = extract_address(_encoded(text))
    if address is None:
        raise ValueError(f"{text!r} is no address")
    encoded = tuple(map(_encoded, args))
    for arg in encoded:
        if not _ARG.fullmatch(arg):
            raise ValueError(f"{arg!r} is no argument of MAIL or RCPT")
    return Address(b"<%b>" % address, encoded)


def _wire(address: Address) -> bytes:
    """The address as the MTA gets it: with A-labels where that makes it ASCII, for MTAs without SMTPUTF8."""
    local, domain = address.local, address.ascii_domain
    if not address.raw.isascii() and local.isascii() and domain.isascii():
        return b"<%b@%b>" % (local, domain)
    return address.path.bracketed
