"""Every packet of the milter protocol as a value, and its payload as bytes.

A packet is a length, a code and a payload; this module knows codes and payloads, `framing` knows lengths.
Constructors validate, so that a message that cannot be sent cannot exist. `decode_command` and
`decode_response` are as strict as Postfix (milter8.c): a missing NUL, trailing bytes, a payload where none
belongs and unknown codes are errors. Both raise `LocalProtocolError`; the one place that receives from a
peer turns it into `RemoteProtocolError`.

Strings are bytes: the protocol knows no encoding.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, TypeAlias

from milterchain.errors import LocalProtocolError
from milterchain.milter.flags import Action, Command, Family, Protocol, Response, Stage

__all__ = [
    "Abort",
    "Accept",
    "AddHeader",
    "AddRecipient",
    "AnyCommand",
    "AnyResponse",
    "Body",
    "ChangeHeader",
    "ChangeSender",
    "ConnFail",
    "Connect",
    "Continue",
    "Data",
    "DeleteRecipient",
    "Discard",
    "EndOfHeaders",
    "EndOfMessage",
    "Header",
    "Helo",
    "InsertHeader",
    "Macros",
    "Mail",
    "Modification",
    "OptNeg",
    "Progress",
    "Quarantine",
    "Quit",
    "QuitNewConnection",
    "Rcpt",
    "Reject",
    "ReplaceBody",
    "Reply",
    "ReplyCode",
    "Shutdown",
    "Skip",
    "TempFail",
    "Unknown",
    "decode_command",
    "decode_response",
]

_OPTNEG = struct.Struct("!III")
_U32 = struct.Struct("!I")
_U16 = struct.Struct("!H")
_STAGES: Mapping[int, Stage] = {stage.value: stage for stage in Stage}
_FAMILIES: Mapping[int, Family] = {family.value: family for family in Family}


def _check(*strings: bytes) -> None:
    for string in strings:
        if b"\0" in string:
            raise LocalProtocolError(f"NUL inside a string: {string[:80]!r}")


def _strings(payload: bytes, least: int, most: int | None) -> list[bytes]:
    """Split NUL-terminated strings; there must be `least` to `most` of them."""
    if payload[-1:] != b"\0":
        raise LocalProtocolError("missing NUL at the end of a string")
    strings = payload[:-1].split(b"\0")
    if len(strings) < least or (most is not None and len(strings) > most):
        raise LocalProtocolError(f"{len(strings)} strings where {least} to {most} belong")
    return strings


def _u32(payload: bytes) -> tuple[int, bytes]:
    if len(payload) < 4:
        raise LocalProtocolError("payload too short for its number")
    return _U32.unpack_from(payload)[0], payload[4:]


@dataclass(frozen=True, slots=True)
class _Empty:
    """A message without payload."""

    def encode(self) -> bytes:
        """The payload."""
        return b""

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload, which must be empty."""
        if payload:
            raise LocalProtocolError(f"{len(payload)} bytes of payload where none belong")
        return cls()


@dataclass(frozen=True, slots=True)
class _OneString:
    """A message with one NUL-terminated string."""

    text: bytes

    def __post_init__(self) -> None:
        _check(self.text)

    def encode(self) -> bytes:
        """The payload."""
        return self.text + b"\0"

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        (text,) = _strings(payload, 1, 1)
        return cls(text)


# Commands: MTA to milter.


@dataclass(frozen=True, slots=True, kw_only=True)
class OptNeg:
    """Option negotiation, the first packet of both sides.

    Attributes:
        version: 2 to 6.
        actions: offered by the MTA, wanted by the milter.
        protocol: offered by the MTA, wanted by the milter; unknown bits are kept.
        macros: for the milter's answer: which macros it wants at which stage (SMFIF_SETSYMLIST). Stage
            numbers that nobody defined are kept as plain integers.
    """

    code: ClassVar[Command] = Command.OPTNEG
    version: int
    actions: Action
    protocol: Protocol
    macros: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for names in self.macros.values():
            _check(*names)

    def encode(self) -> bytes:
        """The payload."""
        lists = b"".join(_U32.pack(stage) + b" ".join(names) + b"\0" for stage, names in self.macros.items())
        return _OPTNEG.pack(self.version, self.actions, self.protocol) + lists

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload. Names in a list may be separated by blanks or commas."""
        if len(payload) < 12:
            raise LocalProtocolError(f"option negotiation of {len(payload)} bytes, 12 are the least")
        version, actions, protocol = _OPTNEG.unpack_from(payload)
        macros: dict[int, tuple[bytes, ...]] = {}
        rest = payload[12:]
        while rest:
            stage, rest = _u32(rest)
            names, found, rest = rest.partition(b"\0")
            if not found:
                raise LocalProtocolError("missing NUL at the end of a macro list")
            macros[_STAGES.get(stage, stage)] = tuple(names.replace(b",", b" ").split())
        return cls(version=version, actions=Action(actions), protocol=Protocol(protocol), macros=macros)


@dataclass(frozen=True, slots=True)
class Macros:
    """Macro definitions for the command that follows (`stage` is that command's code).

    Names stand as they travel: one letter bare, longer ones in braces.
    """

    code: ClassVar[Command] = Command.MACRO
    stage: int
    values: tuple[tuple[bytes, bytes], ...]

    def __post_init__(self) -> None:
        for name, value in self.values:
            _check(name, value)

    def encode(self) -> bytes:
        """The payload."""
        parts = [bytes((self.stage,))]
        for name, value in self.values:
            parts += (name, b"\0", value, b"\0")
        return b"".join(parts)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload. Unknown stages (Sendmail and Postfix differ) are no error."""
        if not payload:
            raise LocalProtocolError("macros without a stage")
        if len(payload) == 1:
            return cls(payload[0], ())
        strings = _strings(payload[1:], 2, None)
        if len(strings) % 2:
            raise LocalProtocolError("a macro without a value")
        return cls(payload[0], tuple(zip(strings[::2], strings[1::2], strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """A client connected.

    Attributes:
        hostname: its verified name, or its address in brackets.
        family: what `address` is; `Family.UNKNOWN` has neither port nor address.
        port: the client's port, 0 for a unix socket or when unknown.
        address: dotted quad, bare IPv6 address, or path.
    """

    code: ClassVar[Command] = Command.CONNECT
    hostname: bytes
    family: Family = Family.UNKNOWN
    port: int = 0
    address: bytes = b""

    def __post_init__(self) -> None:
        _check(self.hostname, self.address)
        if not 0 <= self.port <= 0xFFFF:
            raise LocalProtocolError(f"port {self.port} out of range")
        if self.family == Family.UNKNOWN and (self.port or self.address):
            raise LocalProtocolError("an unknown address family has neither port nor address")

    def encode(self) -> bytes:
        """The payload."""
        head = self.hostname + b"\0" + bytes((self.family,))
        if self.family == Family.UNKNOWN:
            return head
        return head + _U16.pack(self.port) + self.address + b"\0"

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        hostname, found, rest = payload.partition(b"\0")
        if not found or not rest or rest[0] not in _FAMILIES:
            raise LocalProtocolError("connect without host name or with an unknown address family")
        family = _FAMILIES[rest[0]]
        if family == Family.UNKNOWN:
            if len(rest) > 1:
                raise LocalProtocolError("an unknown address family has neither port nor address")
            return cls(hostname=hostname)
        if len(rest) < 3:
            raise LocalProtocolError("connect without a port")
        (address,) = _strings(rest[3:], 1, 1)
        return cls(hostname=hostname, family=family, port=_U16.unpack_from(rest, 1)[0], address=address)


@dataclass(frozen=True, slots=True)
class Helo(_OneString):
    """HELO or EHLO with its argument as typed."""

    code: ClassVar[Command] = Command.HELO


@dataclass(frozen=True, slots=True)
class _Address:
    """An address as typed, with the ESMTP arguments that followed it, each as typed."""

    address: bytes
    args: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _check(self.address, *self.args)

    def encode(self) -> bytes:
        """The payload."""
        return b"\0".join((self.address, *self.args, b""))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        address, *args = _strings(payload, 1, None)
        return cls(address, tuple(args))


@dataclass(frozen=True, slots=True)
class Mail(_Address):
    """MAIL FROM."""

    code: ClassVar[Command] = Command.MAIL


@dataclass(frozen=True, slots=True)
class Rcpt(_Address):
    """RCPT TO."""

    code: ClassVar[Command] = Command.RCPT


@dataclass(frozen=True, slots=True)
class Data(_Empty):
    """DATA (since version 4)."""

    code: ClassVar[Command] = Command.DATA


@dataclass(frozen=True, slots=True)
class Header:
    """One header; folds in `value` are LF and the white space that followed."""

    code: ClassVar[Command] = Command.HEADER
    name: bytes
    value: bytes

    def __post_init__(self) -> None:
        _check(self.name, self.value)

    def encode(self) -> bytes:
        """The payload."""
        return self.name + b"\0" + self.value + b"\0"

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        name, value = _strings(payload, 2, 2)
        return cls(name, value)


@dataclass(frozen=True, slots=True)
class EndOfHeaders(_Empty):
    """The end of the headers."""

    code: ClassVar[Command] = Command.END_OF_HEADERS


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Raw bytes."""

    chunk: bytes = b""

    def encode(self) -> bytes:
        """The payload."""
        return self.chunk

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        return cls(payload)


@dataclass(frozen=True, slots=True)
class Body(_Chunk):
    """A piece of the body, not longer than the negotiated data size."""

    code: ClassVar[Command] = Command.BODY


@dataclass(frozen=True, slots=True)
class EndOfMessage(_Chunk):
    """The end of the message. MTAs send it empty; libmilter takes a last piece of the body in it."""

    code: ClassVar[Command] = Command.END_OF_MESSAGE


@dataclass(frozen=True, slots=True)
class Unknown(_OneString):
    """A line that is no SMTP command (since version 3)."""

    code: ClassVar[Command] = Command.UNKNOWN


@dataclass(frozen=True, slots=True)
class Abort(_Empty):
    """The message is given up; the connection stays."""

    code: ClassVar[Command] = Command.ABORT


@dataclass(frozen=True, slots=True)
class Quit(_Empty):
    """The end of the connection."""

    code: ClassVar[Command] = Command.QUIT


@dataclass(frozen=True, slots=True)
class QuitNewConnection(_Empty):
    """The end of the SMTP session; a new CONNECT follows on the same milter connection."""

    code: ClassVar[Command] = Command.QUIT_NEW_CONNECTION


# Responses: milter to MTA.


@dataclass(frozen=True, slots=True)
class Continue(_Empty):
    """Go on."""

    code: ClassVar[Response] = Response.CONTINUE


@dataclass(frozen=True, slots=True)
class Accept(_Empty):
    """Accept the connection or message without asking this milter again."""

    code: ClassVar[Response] = Response.ACCEPT


@dataclass(frozen=True, slots=True)
class Reject(_Empty):
    """Refuse with the MTA's own 5xx text."""

    code: ClassVar[Response] = Response.REJECT


@dataclass(frozen=True, slots=True)
class TempFail(_Empty):
    """Refuse with the MTA's own 4xx text."""

    code: ClassVar[Response] = Response.TEMPFAIL


@dataclass(frozen=True, slots=True)
class Discard(_Empty):
    """Tell the client that all is well and drop the message."""

    code: ClassVar[Response] = Response.DISCARD


@dataclass(frozen=True, slots=True)
class Skip(_Empty):
    """Go on, but send no more events of this type for now."""

    code: ClassVar[Response] = Response.SKIP


@dataclass(frozen=True, slots=True)
class ConnFail(_Empty):
    """Make the connection fail (defined by Sendmail, sent by nobody)."""

    code: ClassVar[Response] = Response.CONN_FAIL


@dataclass(frozen=True, slots=True)
class Shutdown(_Empty):
    """Answer 421 and close the SMTP connection."""

    code: ClassVar[Response] = Response.SHUTDOWN


@dataclass(frozen=True, slots=True)
class ReplyCode(_OneString):
    """Refuse with this text: code, blank or dash, text; lines joined by CRLF."""

    code: ClassVar[Response] = Response.REPLY_CODE


@dataclass(frozen=True, slots=True)
class Progress(_Empty):
    """Still working; the timer starts again."""

    code: ClassVar[Response] = Response.PROGRESS


@dataclass(frozen=True, slots=True)
class Quarantine(_OneString):
    """Hold the message; `text` is the reason."""

    code: ClassVar[Response] = Response.QUARANTINE


@dataclass(frozen=True, slots=True)
class AddHeader(Header):
    """Append a header."""

    code: ClassVar[Response] = Response.ADD_HEADER  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class _IndexedHeader:
    index: int
    name: bytes
    value: bytes

    def __post_init__(self) -> None:
        _check(self.name, self.value)
        if not 0 <= self.index <= 0xFFFFFFFF:
            raise LocalProtocolError(f"header index {self.index} out of range")

    def encode(self) -> bytes:
        """The payload."""
        return _U32.pack(self.index) + self.name + b"\0" + self.value + b"\0"

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        index, rest = _u32(payload)
        name, value = _strings(rest, 2, 2)
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
class _AddressWithArgs:
    address: bytes
    args: bytes = b""

    def __post_init__(self) -> None:
        _check(self.address, self.args)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload; the arguments are one string, separated by blanks."""
        return cls(*_strings(payload, 1, 2))


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
class DeleteRecipient(_OneString):
    """Delete a recipient; `text` is its address as the client gave it."""

    code: ClassVar[Response] = Response.DELETE_RECIPIENT


@dataclass(frozen=True, slots=True)
class ChangeSender(_AddressWithArgs):
    """Change the envelope sender."""

    code: ClassVar[Response] = Response.CHANGE_SENDER

    def encode(self) -> bytes:
        """The payload."""
        return self.address + b"\0" + (self.args + b"\0" if self.args else b"")


@dataclass(frozen=True, slots=True)
class ReplaceBody(_Chunk):
    """A piece of the new body."""

    code: ClassVar[Response] = Response.REPLACE_BODY


Reply: TypeAlias = Continue | Accept | Reject | TempFail | Discard | Skip | ConnFail | Shutdown | ReplyCode
"""What ends the wait for a milter's answer."""

Modification: TypeAlias = (
    AddHeader | InsertHeader | ChangeHeader | AddRecipient | DeleteRecipient | ChangeSender | ReplaceBody
)
"""What a milter may change at the end of a message."""

AnyResponse: TypeAlias = Reply | Modification | Progress | Quarantine | OptNeg

AnyCommand: TypeAlias = (
    OptNeg
    | Macros
    | Connect
    | Helo
    | Mail
    | Rcpt
    | Data
    | Header
    | EndOfHeaders
    | Body
    | EndOfMessage
    | Unknown
    | Abort
    | Quit
    | QuitNewConnection
)

_COMMANDS: Mapping[int, Callable[[bytes], AnyCommand]] = {
    message.code: message.decode
    for message in (
        OptNeg,
        Macros,
        Connect,
        Helo,
        Mail,
        Rcpt,
        Data,
        Header,
        EndOfHeaders,
        Body,
        EndOfMessage,
        Unknown,
        Abort,
        Quit,
        QuitNewConnection,
    )
}

_RESPONSES: Mapping[int, Callable[[bytes], AnyResponse]] = {
    **{
        message.code: message.decode
        for message in (
            Continue,
            Accept,
            Reject,
            TempFail,
            Discard,
            Skip,
            ConnFail,
            Shutdown,
            ReplyCode,
            Progress,
            Quarantine,
            AddHeader,
            InsertHeader,
            ChangeHeader,
            DeleteRecipient,
            ChangeSender,
            ReplaceBody,
        )
    },
    Response.OPTNEG: OptNeg.decode,
    Response.ADD_RECIPIENT: AddRecipient.decode,
    Response.ADD_RECIPIENT_PAR: AddRecipient.decode,
}


def decode_command(code: int, payload: bytes) -> AnyCommand:
    """Read an MTA's packet.

    Raises:
        LocalProtocolError: unknown code, or a payload that this command cannot have.
    """
    try:
        decode = _COMMANDS[code]
    except KeyError:
        raise LocalProtocolError(f"unknown command {bytes((code,))!r}") from None
    return decode(payload)


def decode_response(code: int, payload: bytes) -> AnyResponse:
    """Read a milter's packet.

    Raises:
        LocalProtocolError: unknown code, or a payload that this response cannot have.
    """
    try:
        decode = _RESPONSES[code]
    except KeyError:
        raise LocalProtocolError(f"unknown response {bytes((code,))!r}") from None
    return decode(payload)
