"""From a transaction to what the MTA is told: the fewest modifications, in the order in which they go."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from milterchain.errors import NotNegotiatedError, VersionError
from milterchain.mail.body import Body
from milterchain.mailfilter.decision import Decision
from milterchain.mailfilter.transaction import Transaction
from milterchain.milter.flags import Action
from milterchain.milter.messages import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
)
from milterchain.milter.modifier import Modifier
from milterchain.milter.negotiation import ACTION_SINCE, Negotiated

__all__ = ["Changes", "Edit", "changes_of", "check_changes", "send_changes"]

_PIECE = 2**16
"""Octets of a body that are read at once."""

Edit: TypeAlias = AddHeader | InsertHeader | ChangeHeader | AddRecipient | DeleteRecipient | ChangeSender
"""A modification other than a new body."""

_NEEDS: Mapping[type[Edit], Action] = MappingProxyType(
    {
        AddHeader: Action.ADD_HEADERS,
        InsertHeader: Action.ADD_HEADERS,
        ChangeHeader: Action.CHANGE_HEADERS,
        ChangeSender: Action.CHANGE_SENDER,
        DeleteRecipient: Action.DELETE_RECIPIENT,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a decision changes in a message.

    Attributes:
        edits: envelope first, then headers.
        body: the new one; None if it stays.
        reason: why the message is to be held; None if it is not.
    """

    edits: Sequence[Edit] = ()
    body: Body | None = None
    reason: bytes | None = None

    def __bool__(self) -> bool:
        return bool(self.edits) or self.body is not None or self.reason is not None


def changes_of(transaction: Transaction, decision: Decision) -> Changes:
    """What is to be done to the message: nothing at all if the decision refuses it."""
    if not decision.accepts:
        return Changes()
    edits = transaction.headers.edits(
        header_index=transaction.mta.header_index, keep_order=transaction.keeps_header_order
    )
    return Changes(
        edits=(*transaction.envelope_edits(), *edits),
        body=transaction.replacement,
        reason=decision.reason,
    )


def check_changes(changes: Changes, negotiated: Negotiated) -> None:
    """Make sure before the first modification is sent that the last one can be, too.

    Raises:
        NotNegotiatedError: something was not negotiated.
        VersionError: the protocol version that was agreed on does not have it.
    """
    for kind, need in _needs(changes):
        if negotiated.version < ACTION_SINCE.get(need, 0):
            raise VersionError(f"{kind} is not in version {negotiated.version} of the protocol")
        if need & ~negotiated.actions:
            raise NotNegotiatedError(f"{kind} needs Action.{need.name}, which was not negotiated")


def _needs(changes: Changes) -> Iterator[tuple[str, Action]]:
    for edit in changes.edits:
        if isinstance(edit, AddRecipient):
            yield "AddRecipient", Action.ADD_RECIPIENT_PAR if edit.args else Action.ADD_RECIPIENT
        else:
            yield type(edit).__name__, _NEEDS[type(edit)]
    if changes.body is not None:
        yield "ReplaceBody", Action.CHANGE_BODY
    if changes.reason is not None:
        yield "Quarantine", Action.QUARANTINE


async def send_changes(changes: Changes, modifier: Modifier) -> None:
    """Send all; the body last and in one go, as Postfix wants it.

    Raises:
        MilterClosedError: the MTA is gone.
        OSError: the body's file cannot be read.
    """
    for edit in changes.edits:
        await _send(edit, modifier)
    if changes.reason is not None:
        await modifier.quarantine(changes.reason)
    if changes.body is not None:
        await modifier.replace_body(changes.body.chunks(_PIECE))


async def _send(edit: Edit, modifier: Modifier) -> None:
    match edit:
        case AddHeader(name, value):
            await modifier.add_header(name, value)
        case InsertHeader(index, name, value):
            await modifier.insert_header(index, name, value)
        case ChangeHeader(index, name, value):
            await modifier.change_header(name, value, index=index)
        case ChangeSender(address, args):
            await modifier.change_sender(address, args)
        case AddRecipient(address, args):
            await modifier.add_recipient(address, args)
        case _:
            await modifier.delete_recipient(edit.text)
