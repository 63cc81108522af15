"""What a filter may do to a message: edits, quarantine, and asking for more time.

Edits are collected and leave together with the filter's reply, in one write where they are small: a filter
that writes them one by one costs 40 ms on TCP (Nagle's algorithm meets the MTA's delayed acknowledgement).
"""

import enum
import re
from contextlib import aclosing
from typing import Protocol

from milterchain.errors import LocalProtocolError, NotNegotiatedError, VersionError, WrongStageError
from milterchain.milter.chunking import BodySource, chunks
from milterchain.milter.flags import Action
from milterchain.milter.messages import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    Modification,
    Quarantine,
    ReplaceBody,
)
from milterchain.milter.negotiation import ACTION_SINCE, Negotiated

__all__ = ["Modifier", "Sink"]

_NAME = re.compile(rb"[!-9;-~]+")
"""A header's name: printable ASCII without the colon (RFC 5322 2.2)."""
_LINE_END = re.compile(rb"\r\n?")


class Sink(Protocol):
    """Where a modifier sends to."""

    async def emit(self, message: Modification | Quarantine) -> None:
        """Send, at once or with what follows; wait while too much is on its way."""

    async def progress(self) -> None:
        """Tell the MTA at once that there will be a reply, if it waits for one."""


class Modifier:
    """Changes one message while `Milter.end_of_message` runs; read-only at other times.

    Header values take LF (or CRLF) between lines. They are written after the colon and one space, unless
    LEADING_SPACE was negotiated: then they are everything after the colon. What changes nothing if the filter
    refuses the message in the end, or fails.

    Every method but `progress` raises:
        WrongStageError: this is not the end of the message.
        NotNegotiatedError: what was negotiated lacks what this needs: the filter's `actions` do.
        VersionError: the protocol version that was agreed on does not have this.
        LocalProtocolError: an argument that cannot travel, such as a NUL or a header name with a colon.
        MilterClosedError: the MTA is gone.

    Args:
        sink: where changes go.
        negotiated: what is allowed.
        writable: whether this is the end of a message.
    """

    __slots__ = ("_body", "_negotiated", "_sink", "_writable")

    def __init__(self, sink: Sink, negotiated: Negotiated, *, writable: bool = True) -> None:
        self._sink = sink
        self._negotiated = negotiated
        self._writable = writable
        self._body = _Body.OLD

    def expire(self) -> None:
        """The end of the message is over (called by the server)."""
        self._writable = False

    async def add_header(self, name: bytes, value: bytes) -> None:
        """Add a header after all others."""
        await self._emit(AddHeader(_name(name), _value(value)), Action.ADD_HEADERS)

    async def insert_header(self, index: int, name: bytes, value: bytes) -> None:
        """Insert a header: 0 is above all others, 1 below the Received header that the MTA puts on top."""
        await self._emit(InsertHeader(index, _name(name), _value(value)), Action.ADD_HEADERS)

    async def change_header(self, name: bytes, value: bytes, *, index: int = 1) -> None:
        """Give the index-th header of that name another value; it is added if there are not so many.

        An empty value deletes it.
        """
        await self._emit(ChangeHeader(index, _name(name), _value(value)), Action.CHANGE_HEADERS)

    async def delete_header(self, name: bytes, *, index: int = 1) -> None:
        """Delete the index-th header of that name. Delete several from the last to the first."""
        await self._emit(ChangeHeader(index, _name(name), b""), Action.CHANGE_HEADERS)

    async def change_sender(self, address: bytes, args: bytes = b"") -> None:
        """Change the envelope sender; `args` are ESMTP arguments, separated by spaces."""
        await self._emit(ChangeSender(address, args), Action.CHANGE_SENDER)

    async def add_recipient(self, address: bytes, args: bytes = b"") -> None:
        """Add an envelope recipient; `args` are ESMTP arguments, separated by spaces."""
        need = Action.ADD_RECIPIENT_PAR if args else Action.ADD_RECIPIENT
        await self._emit(AddRecipient(address, args), need)

    async def delete_recipient(self, address: bytes) -> None:
        """Remove an envelope recipient, named as the client named it."""
        await self._emit(DeleteRecipient(address), Action.DELETE_RECIPIENT)

    async def replace_body(self, content: BodySource) -> None:
        """Replace the whole body. Called again, it appends to the new one.

        Nothing is done to line ends: bodies travel with CRLF. The new body goes out in as few packets as the
        negotiated size allows, and is never in memory as a whole. Do nothing else between two calls: Postfix
        refuses a body that comes with other changes in between.

        Args:
            content: bytes; a file, of which everything from its position on is read (without a thread: it
                should be a local one); or an iterator of pieces, asynchronous or not.
        """
        self._check(ReplaceBody, Action.CHANGE_BODY)
        if self._body is _Body.ENDED:
            raise LocalProtocolError("other changes came after the new body began: it must come in one go")
        empty = True
        async with aclosing(chunks(content, self._negotiated.max_data)) as pieces:
            async for piece in pieces:
                await self._replace(piece)
                empty = False
        if empty:
            await self._replace(b"")

    async def quarantine(self, reason: bytes) -> None:
        """Have the message held, if it is accepted in the end."""
        await self._emit(Quarantine(reason), Action.QUARANTINE)

    async def progress(self) -> None:
        """Tell the MTA that this filter still works; see `Milter.progress`."""
        await self._sink.progress()

    def _check(self, kind: type[Modification | Quarantine], need: Action) -> None:
        if not self._writable:
            raise WrongStageError("a message can be changed only while end_of_message runs")
        negotiated = self._negotiated
        since = ACTION_SINCE.get(need, 0)
        if negotiated.version < since:
            raise VersionError(
                f"{kind.__name__} needs version {since} of the protocol, the MTA speaks {negotiated.version}"
            )
        if need & ~negotiated.actions:
            raise NotNegotiatedError(
                f"{kind.__name__} needs Action.{need.name}; add it to the filter's `actions`"
            )

    async def _replace(self, chunk: bytes) -> None:
        await self._emit(ReplaceBody(chunk), Action.CHANGE_BODY)
        self._body = _Body.NEW

    async def _emit(self, message: Modification | Quarantine, need: Action) -> None:
        self._check(type(message), need)
        if self._body is _Body.NEW and not isinstance(message, ReplaceBody):
            self._body = _Body.ENDED
        await self._sink.emit(message)


class _Body(enum.Enum):
    """How far a new body has come."""

    OLD = enum.auto()
    NEW = enum.auto()
    ENDED = enum.auto()


def _name(name: bytes) -> bytes:
    if not _NAME.fullmatch(name):
        raise LocalProtocolError(f"{name[:80]!r} is no header name")
    return name


def _value(value: bytes) -> bytes:
    return _LINE_END.sub(b"\n", value)
