"""What a filter may do to a message: edits, quarantine, and asking for more time.

Edits are collected and leave together with the filter's reply, in one write where they are small: a filter
that writes them one by one costs 40 ms on TCP (Nagle's algorithm meets the MTA's delayed acknowledgement).
"""

import re
from collections.abc import Iterable
from typing import Protocol

from milterchain.errors import LocalProtocolError, NotNegotiatedError, WrongStageError
from milterchain.milter.flags import Action
from milterchain.milter.messages import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    Modification,
    Progress,
    Quarantine,
    ReplaceBody,
)
from milterchain.milter.negotiation import Negotiated

__all__ = ["Modifier", "Sink"]

_NAME = re.compile(rb"[!-9;-~]+")
"""A header's name: printable ASCII without the colon (RFC 5322 2.2)."""
_LINE_END = re.compile(rb"\r\n?")


class Sink(Protocol):
    """Where a modifier sends to."""

    async def emit(self, message: Modification | Quarantine | Progress) -> None:
        """Send, at once or with what follows; wait while too much is on its way."""

    async def flush(self) -> None:
        """Send at once what was held back."""


class Modifier:
    """Changes one message while `Milter.end_of_message` runs.

    Header values take LF (or CRLF) between lines. They are written after the colon and one space, unless
    LEADING_SPACE was negotiated: then they are everything after the colon. What changes nothing if the filter
    refuses the message in the end, or fails.

    Every method raises:
        WrongStageError: the end of the message is over.
        NotNegotiatedError: the filter's `actions` lack what this needs.
        LocalProtocolError: an argument that cannot travel, such as a NUL or a header name with a colon.
        MilterClosedError: the MTA is gone.
    """

    __slots__ = ("_negotiated", "_sink")

    def __init__(self, sink: Sink, negotiated: Negotiated) -> None:
        self._sink: Sink | None = sink
        self._negotiated = negotiated

    def expire(self) -> None:
        """The end of the message is over (called by the server)."""
        self._sink = None

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

    async def replace_body(self, content: bytes | Iterable[bytes]) -> None:
        """Replace the whole body. Called again, it appends to the new one."""
        size = self._negotiated.max_data
        empty = True
        for piece in (content,) if isinstance(content, bytes) else content:
            for start in range(0, len(piece), size):
                await self._emit(ReplaceBody(piece[start : start + size]), Action.CHANGE_BODY)
                empty = False
        if empty:
            await self._emit(ReplaceBody(b""), Action.CHANGE_BODY)

    async def quarantine(self, reason: bytes) -> None:
        """Have the message held, if it is accepted in the end."""
        await self._emit(Quarantine(reason), Action.QUARANTINE)

    async def progress(self) -> None:
        """Tell the MTA that this filter still works on it; its timer starts again."""
        await self._emit(Progress(), Action(0))
        await self._target().flush()

    def _target(self) -> Sink:
        if self._sink is None:
            raise WrongStageError("a message can be changed only while end_of_message runs")
        return self._sink

    async def _emit(self, message: Modification | Quarantine | Progress, need: Action) -> None:
        sink = self._target()
        if need & ~self._negotiated.actions:
            raise NotNegotiatedError(
                f"{type(message).__name__} needs Action.{need.name}; add it to the filter's `actions`"
            )
        await sink.emit(message)


def _name(name: bytes) -> bytes:
    if not _NAME.fullmatch(name):
        raise LocalProtocolError(f"{name[:80]!r} is no header name")
    return name


def _value(value: bytes) -> bytes:
    return _LINE_END.sub(b"\n", value)
