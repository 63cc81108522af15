"""The forms that payloads take: nothing, one string, raw bytes; and how strings and numbers are read.

Errors are `LocalProtocolError`s here, see `messages`.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from milterchain.errors import LocalProtocolError
from milterchain.milter.readable import Readable

__all__ = [
    "U32",
    "Chunk",
    "Empty",
    "OneString",
    "check_strings",
    "setters",
    "split_strings",
    "split_u32",
]

U32 = struct.Struct("!I")


def check_strings(*strings: bytes) -> None:
    """Refuse a NUL inside a string: it would end the string early.

    Raises:
        LocalProtocolError: there is one.
    """
    for string in strings:
        if 0 in string:  # b"\0" is tried as a number first, which takes longer than the search
            raise LocalProtocolError(f"NUL inside a string: {string[:80]!r}")


def setters(kind: type, *names: str) -> tuple[Callable[[Any, Any], None], ...]:
    """What gives a frozen message its values without a check: strings that were split have no NUL."""
    return tuple(getattr(kind, name).__set__ for name in names)


def split_strings(payload: bytes, least: int, most: int | None) -> list[bytes]:
    """Split NUL-terminated strings; there must be `least` to `most` of them."""
    if payload[-1:] != b"\0":
        raise LocalProtocolError("missing NUL at the end of a string")
    strings = payload[:-1].split(b"\0")
    if len(strings) < least or (most is not None and len(strings) > most):
        raise LocalProtocolError(f"{len(strings)} strings where {least} to {most} belong")
    return strings


def split_u32(payload: bytes) -> tuple[int, bytes]:
    """Split a leading number from what follows it."""
    if len(payload) < 4:
        raise LocalProtocolError("payload too short for its number")
    return U32.unpack_from(payload)[0], payload[4:]


@dataclass(frozen=True, slots=True)
class Empty(Readable):
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
class OneString(Readable):
    """A message with one NUL-terminated string."""

    text: bytes

    def __post_init__(self) -> None:
        check_strings(self.text)

    def encode(self) -> bytes:
        """The payload."""
        return self.text + b"\0"

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        (text,) = split_strings(payload, 1, 1)
        return cls(text)


@dataclass(frozen=True, slots=True)
class Chunk(Readable):
    """Raw bytes."""

    chunk: bytes = b""

    def encode(self) -> bytes:
        """The payload."""
        return self.chunk

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        return cls(payload)

    def _readable(self) -> Mapping[str, object]:
        return {"bytes": len(self.chunk)} if self.chunk else {}
