"""What a next hop is told of the client, by XCLIENT or XFORWARD (as in Postfix's XCLIENT_README).

XCLIENT makes the hop treat our connection as the client's own: its rules, its milters, its log. XFORWARD is
for the log alone. Only attributes that the hop offers are told, as xtext, so that no value can end its word.

Whatever is not known is said to be unavailable: an attribute that is left out would be ours.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from milterchain.chain.client import UNKNOWN_NAME, ClientInfo
from milterchain.milter.flags import Family

__all__ = ["Identity", "identity_of", "xclient_command", "xforward_commands", "xtext"]

MAX_VALUE: Final = 255
"""Octets of a value before it is encoded: all that Postfix takes."""
MAX_XFORWARD: Final = 510
"""Octets of one XFORWARD command: with CRLF the 512 of RFC 5321. XCLIENT has to be one command."""

_UNAVAILABLE: Final = b"[UNAVAILABLE]"
_TEMPUNAVAIL: Final = b"[TEMPUNAVAIL]"
_SPECIAL: Final = re.compile(rb"[^!-*,-<>-~]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A client, as the next hop may know it.

    Attributes:
        address: its IP address; empty for a client on a Unix socket and one that has gone already.
        port: 0 if it is not known.
        name: the verified name, or `unknown`.
        ptr: the name that the address has, or `unknown`.
        temporary: the look-up of the names failed for now.
        helo: as typed; empty before HELO.
        esmtp: whether that was EHLO.
        login: whom it has proved to be; None if it has not.
        local_address: where it connected to.
        local_port: likewise.
        queue_id: what the message is called here. No part of who the client is.
    """

    address: str
    port: int = 0
    name: bytes = UNKNOWN_NAME
    ptr: bytes = UNKNOWN_NAME
    temporary: bool = False
    helo: bytes = b""
    esmtp: bool = True
    login: bytes | None = None
    local_address: str = ""
    local_port: int = 0
    queue_id: bytes = field(default=b"", compare=False)

    def without_login(self) -> "Identity":
        """The same client before it logged in."""
        return replace(self, login=None)


def identity_of(client: ClientInfo, helo: bytes, *, esmtp: bool, queue_id: bytes = b"") -> Identity:
    """What can be told of a client."""
    inet = client.family in {Family.INET, Family.INET6}
    return Identity(
        address=client.address if inet else "",
        port=client.port if inet else 0,
        name=client.name,
        ptr=client.ptr,
        temporary=client.resolve == b"TEMP",
        helo=helo,
        esmtp=esmtp,
        login=client.auth.identity if client.auth is not None else None,
        local_address=client.local_address if inet else "",
        local_port=client.local_port if inet else 0,
        queue_id=queue_id,
    )


def xtext(value: bytes) -> bytes:
    """RFC 1891 section 5: `+`, `=` and all that is not printable ASCII as `+HH`."""
    return _SPECIAL.sub(lambda match: b"+%02X" % match[0][0], value)


def _name(value: bytes, identity: Identity) -> bytes:
    if value == UNKNOWN_NAME or not value:
        return _TEMPUNAVAIL if identity.temporary else _UNAVAILABLE
    return xtext(value[:MAX_VALUE])


def _word(value: bytes) -> bytes:
    return xtext(value[:MAX_VALUE]) or _UNAVAILABLE


def _address(address: str) -> bytes:
    plain = address.partition("%")[0].encode("ascii", "replace")
    return (b"IPV6:" if b":" in plain else b"") + plain if plain else _UNAVAILABLE


def _port(port: int) -> bytes:
    return b"%d" % port if port else _UNAVAILABLE


def xclient_command(identity: Identity, offered: bytes) -> bytes:
    """The one XCLIENT command.

    Args:
        identity: with an address.
        offered: the attributes in the reply to EHLO.
    """
    values = {
        b"NAME": _name(identity.name, identity),
        # After NAME, which sets this one, too.
        b"REVERSE_NAME": _name(identity.ptr, identity),
        b"ADDR": _address(identity.address),
        b"PORT": _port(identity.port),
        b"PROTO": b"ESMTP" if identity.esmtp else b"SMTP",
        b"HELO": _word(identity.helo),
        b"LOGIN": _word(identity.login or b""),
        b"DESTADDR": _address(identity.local_address),
        b"DESTPORT": _port(identity.local_port),
    }
    return b" ".join((b"XCLIENT", *_offered(values, offered)))


def xforward_commands(identity: Identity, offered: bytes) -> list[bytes]:
    """The XFORWARD commands for one message, none longer than SMTP allows.

    Args:
        identity: of the client.
        offered: the attributes in the reply to EHLO.
    """
    values = {
        b"NAME": _name(identity.name, identity),
        b"ADDR": _address(identity.address),
        b"PORT": _port(identity.port),
        b"PROTO": b"ESMTP" if identity.esmtp else b"SMTP",
        b"HELO": _word(identity.helo),
        b"IDENT": _word(identity.queue_id),
        b"SOURCE": b"REMOTE" if identity.address else b"LOCAL",
    }
    commands: list[bytes] = []
    for attribute in _offered(values, offered):
        if commands and len(commands[-1]) + 1 + len(attribute) <= MAX_XFORWARD:
            commands[-1] += b" " + attribute
        else:
            commands.append(b"XFORWARD " + attribute)
    return commands


def _offered(values: Mapping[bytes, bytes], offered: bytes) -> list[bytes]:
    names = set(offered.upper().split())
    return [b"%b=%b" % (name, value) for name, value in values.items() if name in names]
