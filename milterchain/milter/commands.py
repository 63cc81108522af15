"""What an MTA sends, as values that validate themselves; strings are bytes, as they travel."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Self

from milterchain.errors import LocalProtocolError
from milterchain.milter.flags import Action, Command, Family, Protocol, Stage
from milterchain.milter.payloads import (
    U32,
    Chunk,
    Empty,
    OneString,
    check_strings,
    setters,
    split_strings,
    split_u32,
)
from milterchain.milter.readable import Readable

__all__ = [
    "Abort",
    "Body",
    "Connect",
    "Data",
    "EndOfHeaders",
    "EndOfMessage",
    "Header",
    "Helo",
    "Macros",
    "Mail",
    "OptNeg",
    "Quit",
    "QuitNewConnection",
    "Rcpt",
    "Unknown",
]

_OPTNEG = struct.Struct("!III")
_U16 = struct.Struct("!H")
_STAGES: Mapping[int, Stage] = {stage.value: stage for stage in Stage}
_STAGE_NAMES: Mapping[int, str] = {command.value: command.name.lower() for command in Command}
_ORDINARY = 64
"""How many offers are remembered, and of how many bytes the longest: MTAs offer the same in each session."""
_FAMILIES: Mapping[int, Family] = {family.value: family for family in Family}


@dataclass(frozen=True, slots=True, kw_only=True)
class OptNeg(Readable):
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
    macros: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for names in self.macros.values():
            check_strings(*names)

    def encode(self) -> bytes:
        """The payload."""
        lists = b"".join(U32.pack(stage) + b" ".join(names) + b"\0" for stage, names in self.macros.items())
        return _OPTNEG.pack(self.version, self.actions, self.protocol) + lists

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload. Names in a list may be separated by blanks or commas."""
        return cls._read_again(payload) if len(payload) <= _ORDINARY else cls._read(payload)

    @classmethod
    @lru_cache(_ORDINARY)
    def _read_again(cls, payload: bytes) -> Self:
        return cls._read(payload)

    @classmethod
    def _read(cls, payload: bytes) -> Self:
        if len(payload) < 12:
            raise LocalProtocolError(f"option negotiation of {len(payload)} bytes, 12 are the least")
        version, actions, protocol = _OPTNEG.unpack_from(payload)
        macros: dict[int, tuple[bytes, ...]] = {}
        rest = payload[12:]
        while rest:
            stage, rest = split_u32(rest)
            names, found, rest = rest.partition(b"\0")
            if not found:
                raise LocalProtocolError("missing NUL at the end of a macro list")
            macros[_STAGES.get(stage, stage)] = tuple(names.replace(b",", b" ").split())
        return cls(version=version, actions=Action(actions), protocol=Protocol(protocol), macros=macros)


@dataclass(frozen=True, slots=True)
class Macros(Readable):
    """Macro definitions for the command that follows (`stage` is that command's code).

    Names stand as they travel: one letter bare, longer ones in braces.
    """

    code: ClassVar[Command] = Command.MACRO
    stage: int
    values: tuple[tuple[bytes, bytes], ...]

    def __post_init__(self) -> None:
        for name, value in self.values:
            check_strings(name, value)

    def encode(self) -> bytes:
        """The payload."""
        parts = [bytes((self.stage,))]
        for name, value in self.values:
            parts += (name, b"\0", value, b"\0")
        return b"".join(parts)

    def _readable(self) -> Mapping[str, object]:
        stage = _STAGE_NAMES.get(self.stage, self.stage)
        return {"stage": stage, **{name.decode("utf-8", "surrogateescape"): v for name, v in self.values}}

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload. Unknown stages (Sendmail and Postfix differ) are no error."""
        if not payload:
            raise LocalProtocolError("macros without a stage")
        if len(payload) == 1:
            return cls(payload[0], ())
        strings = split_strings(payload[1:], 2, None)
        if len(strings) % 2:
            raise LocalProtocolError("a macro without a value")
        macros = object.__new__(cls)
        _set_stage(macros, payload[0])
        _set_values(macros, tuple(zip(strings[::2], strings[1::2], strict=True)))
        return macros


_set_stage, _set_values = setters(Macros, "stage", "values")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect(Readable):
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
        check_strings(self.hostname, self.address)
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
        (address,) = split_strings(rest[3:], 1, 1)
        return cls(hostname=hostname, family=family, port=_U16.unpack_from(rest, 1)[0], address=address)


@dataclass(frozen=True, slots=True)
class Helo(OneString):
    """HELO or EHLO with its argument as typed."""

    code: ClassVar[Command] = Command.HELO


@dataclass(frozen=True, slots=True)
class _Address(Readable):
    """An address as typed, with the ESMTP arguments that followed it, each as typed."""

    address: bytes
    args: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        check_strings(self.address, *self.args)

    def encode(self) -> bytes:
        """The payload."""
        return b"\0".join((self.address, *self.args, b""))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        address, *args = split_strings(payload, 1, None)
        message = object.__new__(cls)
        _set_address(message, address)
        _set_args(message, tuple(args))
        return message


_set_address, _set_args = setters(_Address, "address", "args")


@dataclass(frozen=True, slots=True)
class Mail(_Address):
    """MAIL FROM."""

    code: ClassVar[Command] = Command.MAIL


@dataclass(frozen=True, slots=True)
class Rcpt(_Address):
    """RCPT TO."""

    code: ClassVar[Command] = Command.RCPT


@dataclass(frozen=True, slots=True)
class Data(Empty):
    """DATA (since version 4)."""

    code: ClassVar[Command] = Command.DATA


@dataclass(frozen=True, slots=True)
class Header(Readable):
    """One header; folds in `value` are LF and the white space that followed."""

    code: ClassVar[Command] = Command.HEADER
    name: bytes
    value: bytes

    def __post_init__(self) -> None:
        check_strings(self.name, self.value)

    def encode(self) -> bytes:
        """The payload."""
        return self.name + b"\0" + self.value + b"\0"

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        name, value = split_strings(payload, 2, 2)
        header = object.__new__(cls)
        _set_name(header, name)
        _set_value(header, value)
        return header


_set_name, _set_value = setters(Header, "name", "value")


@dataclass(frozen=True, slots=True)
class EndOfHeaders(Empty):
    """The end of the headers."""

    code: ClassVar[Command] = Command.END_OF_HEADERS


@dataclass(frozen=True, slots=True)
class Body(Chunk):
    """A piece of the body, not longer than the negotiated data size."""

    code: ClassVar[Command] = Command.BODY


@dataclass(frozen=True, slots=True)
class EndOfMessage(Chunk):
    """The end of the message. MTAs send it empty; libmilter takes a last piece of the body in it."""

    code: ClassVar[Command] = Command.END_OF_MESSAGE


@dataclass(frozen=True, slots=True)
class Unknown(OneString):
    """A line that is no SMTP command (since version 3)."""

    code: ClassVar[Command] = Command.UNKNOWN


@dataclass(frozen=True, slots=True)
class Abort(Empty):
    """The message is given up; the connection stays."""

    code: ClassVar[Command] = Command.ABORT


@dataclass(frozen=True, slots=True)
class Quit(Empty):
    """The end of the connection."""

    code: ClassVar[Command] = Command.QUIT


@dataclass(frozen=True, slots=True)
class QuitNewConnection(Empty):
    """The end of the SMTP session; a new CONNECT follows on the same milter connection."""

    code: ClassVar[Command] = Command.QUIT_NEW_CONNECTION
