"""What a milter sends, as values that validate themselves; strings are bytes, as they travel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from milterchain.errors import LocalProtocolError
from milterchain.milter.commands import Header
from milterchain.milter.flags import Response
from milterchain.milter.payloads import U32, Chunk, Empty, OneString, check_strings, split_strings, split_u32
from milterchain.milter.readable import Readable
from milterchain.milter.reply_text import reply_parts

__all__ = [
    "Accept",
    "AddHeader",
    "AddRecipient",
    "ChangeHeader",
    "ChangeSender",
    "ConnFail",
    "Continue",
    "DeleteRecipient",
    "Discard",
    "InsertHeader",
    "Progress",
    "Quarantine",
    "Reject",
    "ReplaceBody",
    "ReplyCode",
    "Shutdown",
    "Skip",
    "TempFail",
]


@dataclass(frozen=True, slots=True)
class Continue(Empty):
    """Go on."""

    code: ClassVar[Response] = Response.CONTINUE


@dataclass(frozen=True, slots=True)
class Accept(Empty):
    """Accept the connection or message without asking this milter again."""

    code: ClassVar[Response] = Response.ACCEPT


@dataclass(frozen=True, slots=True)
class Reject(Empty):
    """Refuse with the MTA's own 5xx text."""

    code: ClassVar[Response] = Response.REJECT


@dataclass(frozen=True, slots=True)
class TempFail(Empty):
    """Refuse with the MTA's own 4xx text."""

    code: ClassVar[Response] = Response.TEMPFAIL


@dataclass(frozen=True, slots=True)
class Discard(Empty):
    """Tell the client that all is well and drop the message."""

    code: ClassVar[Response] = Response.DISCARD


@dataclass(frozen=True, slots=True)
class Skip(Empty):
    """Go on, but send no more events of this type for now."""

    code: ClassVar[Response] = Response.SKIP


@dataclass(frozen=True, slots=True)
class ConnFail(Empty):
    """Make the connection fail (defined by Sendmail, sent by nobody)."""

    code: ClassVar[Response] = Response.CONN_FAIL


@dataclass(frozen=True, slots=True)
class Shutdown(Empty):
    """Answer 421 and close the SMTP connection."""

    code: ClassVar[Response] = Response.SHUTDOWN


@dataclass(frozen=True, slots=True)
class ReplyCode(OneString):
    """Refuse with this text: code, blank or dash, text; lines joined by CRLF."""

    code: ClassVar[Response] = Response.REPLY_CODE

    def _readable(self) -> Mapping[str, object]:
        parts = reply_parts(self.text)
        if parts is None:
            return {"raw": self.text}
        status = {} if parts.status is None else {"status": parts.status}
        return {"code": parts.code, **status, "text": b"\n".join(parts.lines)}


@dataclass(frozen=True, slots=True)
class Progress(Empty):
    """Still working; the timer starts again."""

    code: ClassVar[Response] = Response.PROGRESS


@dataclass(frozen=True, slots=True)
class Quarantine(OneString):
    """Hold the message; `text` is the reason."""

    code: ClassVar[Response] = Response.QUARANTINE

    def _readable(self) -> Mapping[str, object]:
        return {"reason": self.text}


@dataclass(frozen=True, slots=True)
class AddHeader(Header):
    """Append a header."""

    code: ClassVar[Response] = Response.ADD_HEADER  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class _IndexedHeader(Readable):
    index: int
    name: bytes
    value: bytes

    def __post_init__(self) -> None:
        check_strings(self.name, self.value)
        if not 0 <= self.index <= 0xFFFFFFFF:
            raise LocalProtocolError(f"header index {self.index} out of range")

    def encode(self) -> bytes:
        """The payload."""
        return U32.pack(self.index) + self.name + b"\0" + self.value + b"\0"

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        index, rest = split_u32(payload)
        name, value = split_strings(rest, 2, 2)
        return cls(index, name, value)


@dataclass(frozen=True, slots=True)
class InsertHeader(_IndexedHeader):
    """Insert a header at a position among all headers."""

    code: ClassVar[Response] = Response.INSERT_HEADER


@dataclass(frozen=True, slots=True)
class ChangeHeader(_IndexedHeader):
    """Change the index-th header of that name (from 1); an empty value deletes it."""

    code: ClassVar[Response] = Response.CHANGE_HEADER


@dataclass(frozen=True, slots=True)
class _AddressWithArgs(Readable):
    address: bytes
    args: bytes = b""

    def __post_init__(self) -> None:
        check_strings(self.address, self.args)

    def _readable(self) -> Mapping[str, object]:
        return {"address": self.address, **({"args": self.args} if self.args else {})}

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload; the arguments are one string, separated by blanks."""
        return cls(*split_strings(payload, 1, 2))


@dataclass(frozen=True, slots=True)
class AddRecipient(_AddressWithArgs):
    """Add a recipient; with arguments it travels as SMFIR_ADDRCPT_PAR."""

    @property
    def code(self) -> Response:
        """SMFIR_ADDRCPT, or SMFIR_ADDRCPT_PAR with arguments."""
        return Response.ADD_RECIPIENT_PAR if self.args else Response.ADD_RECIPIENT

    def encode(self) -> bytes:
        """The payload."""
        return self.address + b"\0" + (self.args + b"\0" if self.args else b"")


@dataclass(frozen=True, slots=True)
class DeleteRecipient(OneString):
    """Delete a recipient; `text` is its address as the client gave it."""

    code: ClassVar[Response] = Response.DELETE_RECIPIENT

    def _readable(self) -> Mapping[str, object]:
        return {"address": self.text}


@dataclass(frozen=True, slots=True)
class ChangeSender(_AddressWithArgs):
    """Change the envelope sender."""

    code: ClassVar[Response] = Response.CHANGE_SENDER

    def encode(self) -> bytes:
        """The payload."""
        return self.address + b"\0" + (self.args + b"\0" if self.args else b"")


@dataclass(frozen=True, slots=True)
class ReplaceBody(Chunk):
    """A piece of the new body."""

    code: ClassVar[Response] = Response.REPLACE_BODY
