"""Whom a client speaks for: XCLIENT and XFORWARD, as Postfix defines them (XCLIENT_README, XFORWARD_README).

`apply_xclient` and `apply_xforward` read the argument of a command and answer the client as it is from then
on; what cannot be read raises SMTPSyntaxError and changes nothing.

- XCLIENT makes the session one of another client. What a command leaves out of HELO, PROTO and LOGIN is
  forgotten. With ADDR, what is left out of name and ports is unknown, too: Postfix keeps what it knew of the
  client before, but the peer's name is not that of the client.
- XFORWARD tells where one message came from, in one command or several; what was not told is unknown.

Values end up in macros, trace headers and commands to the next hop: names must be host names, and of a HELO
name what could end a word or a comment becomes `?`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Literal

from milterchain.errors import SMTPSyntaxError
from milterchain.smtp.handler import UNKNOWN_NAMES, ClientNames, SessionInfo

__all__ = [
    "XCLIENT_ATTRIBUTES",
    "XFORWARD_ATTRIBUTES",
    "apply_xclient",
    "apply_xforward",
    "is_hostname",
    "is_one_of",
]

XCLIENT_ATTRIBUTES: Final = (
    *(b"NAME", b"ADDR", b"PROTO", b"HELO", b"REVERSE_NAME", b"PORT", b"LOGIN", b"DESTADDR", b"DESTPORT"),
)
XFORWARD_ATTRIBUTES: Final = (b"NAME", b"ADDR", b"PROTO", b"HELO", b"SOURCE", b"PORT", b"IDENT")

MAX_VALUE: Final = 255
"""Octets of a decoded value (XCLIENT_README)."""

LOCAL_NAMES: Final = ClientNames(name=b"localhost", ptr=b"localhost", resolve=b"OK")
"""The names of a client on this machine."""

_UNAVAILABLE: Final = b"[UNAVAILABLE]"
_TEMPORARILY: Final = b"[TEMPUNAVAIL]"
_XTEXT: Final = re.compile(rb"(?:[!-*,-~\x80-\xff]|\+[0-9A-Fa-f]{2})+")
_CODED: Final = re.compile(rb"\+([0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_LABEL: Final = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MAX_HOSTNAME: Final = 255
_NOT_IN_HELO: Final = re.compile(rb'[^!-~]|[()<>@,;\\"]')

_Values = Mapping[bytes, bytes]


def is_hostname(name: bytes) -> bool:
    """Whether this is a host name, and no address; underscores are borne."""
    if not name or len(name) > _MAX_HOSTNAME or not name.strip(b"0123456789."):
        return False
    return all(_LABEL.fullmatch(label) for label in name.split(b"."))


def is_one_of(info: SessionInfo, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    """Whether the client is in one of the networks; one on a Unix socket counts as 127.0.0.1."""
    if not networks or info.family == "U":
        return False
    address = ip_address("127.0.0.1" if info.family == "L" else info.address)
    return any(address in network for network in networks)


def apply_xclient(info: SessionInfo, argument: bytes) -> SessionInfo:
    """The client of the session that begins with this XCLIENT.

    Raises:
        SMTPSyntaxError: what is wrong with the argument.
    """
    values = _attributes("XCLIENT", argument, XCLIENT_ATTRIBUTES)
    info = replace(info, peer=info.peer or info.address)
    if b"ADDR" in values:
        family, address = _address(values[b"ADDR"])
        info = replace(info, family=family, address=address, port=0, names=None if address else UNKNOWN_NAMES)
    if b"NAME" in values or b"REVERSE_NAME" in values:
        info = replace(info, names=_names(values, info.names or UNKNOWN_NAMES))
    if b"PORT" in values:
        info = replace(info, port=_port(values[b"PORT"]))
    if b"DESTADDR" in values:
        info = replace(info, local_address=_address(values[b"DESTADDR"])[1], local_port=0)
    if b"DESTPORT" in values:
        info = replace(info, local_port=_port(values[b"DESTPORT"]))
    return replace(
        info,
        helo=_helo(values.get(b"HELO", b"")),
        esmtp=_esmtp(values.get(b"PROTO", b"")),
        login=_plain("LOGIN", values.get(b"LOGIN", b"")) or None,
    )


def apply_xforward(session: SessionInfo, before: SessionInfo | None, argument: bytes) -> SessionInfo:
    """The origin of a message after this XFORWARD.

    Args:
        session: who hands the message in.
        before: what the XFORWARD commands before this one told of the message.
        argument: of the command.

    Raises:
        SMTPSyntaxError: what is wrong with the argument.
    """
    values = _attributes("XFORWARD", argument, XFORWARD_ATTRIBUTES)
    info = before or SessionInfo(
        listener=session.listener,
        family="U",
        address="",
        names=UNKNOWN_NAMES,
        local_address=session.local_address,
        local_port=session.local_port,
        peer=session.address,
        daemon_name=session.daemon_name,
    )
    if b"ADDR" in values:
        family, address = _address(values[b"ADDR"])
        info = replace(info, family=family, address=address)
    if b"NAME" in values:
        info = replace(info, names=_names(values, UNKNOWN_NAMES))
    if b"PORT" in values:
        info = replace(info, port=_port(values[b"PORT"]))
    if b"HELO" in values:
        info = replace(info, helo=_helo(values[b"HELO"]))
    if b"PROTO" in values:
        info = replace(info, esmtp=_esmtp(values[b"PROTO"]))
    if b"IDENT" in values:
        info = replace(info, ident=_plain("IDENT", values[b"IDENT"]))
    source = values.get(b"SOURCE", b"").upper()
    if source not in {b"", b"LOCAL", b"REMOTE"}:
        raise SMTPSyntaxError("Bad XFORWARD SOURCE value")
    if source == b"LOCAL" and not info.address:
        # Submitted without SMTP. Postfix, too, tells milters of localhost then (cleanup_milter.c).
        info = replace(info, family="4", address="127.0.0.1", names=LOCAL_NAMES)
    return info


def _attributes(command: str, argument: bytes, known: tuple[bytes, ...]) -> dict[bytes, bytes]:
    """Cut the argument up; the values are decoded, but for those in brackets."""
    if not argument:
        raise SMTPSyntaxError(f"Syntax: {command} attribute=value...")
    values: dict[bytes, bytes] = {}
    for word in re.split(rb"[ \t]+", argument):
        name, _, value = word.partition(b"=")
        name = name.upper()
        if not value:
            raise SMTPSyntaxError("Error: attribute=value expected")
        if name not in known:
            raise SMTPSyntaxError(f"Bad {command} attribute name")
        if name in values:
            raise SMTPSyntaxError(f"Error: {name.decode()} given twice")
        decoded = _CODED.sub(lambda match: bytes.fromhex(match[1].decode()), value)
        if len(decoded) > MAX_VALUE or not _XTEXT.fullmatch(value):
            raise SMTPSyntaxError(f"Bad {command} {name.decode()} value")
        if value.upper() == _TEMPORARILY and name in {b"NAME", b"REVERSE_NAME"}:
            values[name] = _TEMPORARILY
        elif value.upper() == _UNAVAILABLE:
            values[name] = b""
        else:
            values[name] = decoded
    return values


def _names(values: _Values, before: ClientNames) -> ClientNames:
    """The names after NAME and REVERSE_NAME: a real NAME is the reverse name, too (smtpd.c)."""
    names = before
    if b"NAME" in values:
        name = values[b"NAME"]
        if name in {b"", _TEMPORARILY, UNKNOWN_NAMES.name}:
            resolve: Literal[b"TEMP", b"FAIL"] = b"TEMP" if name == _TEMPORARILY else b"FAIL"
            names = replace(names, name=UNKNOWN_NAMES.name, resolve=resolve)
        else:
            names = ClientNames(name=_hostname(name), ptr=name, resolve=b"OK")
    if b"REVERSE_NAME" in values:
        ptr = values[b"REVERSE_NAME"]
        unknown = ptr in {b"", _TEMPORARILY, UNKNOWN_NAMES.ptr}
        names = replace(names, ptr=UNKNOWN_NAMES.ptr if unknown else _hostname(ptr))
    return names


def _hostname(name: bytes) -> bytes:
    if not is_hostname(name):
        raise SMTPSyntaxError("Bad NAME syntax")
    return name


def _address(value: bytes) -> tuple[Literal["4", "6", "U"], str]:
    """Family and address; an IPv4-mapped one as IPv4."""
    if not value:
        return "U", ""
    text = value[5:] if value[:5].upper() == b"IPV6:" else value
    try:
        # A zone would mean something on another machine only.
        address = ip_address(text.decode("ascii") if b"%" not in text else "")
    except ValueError:
        raise SMTPSyntaxError("Bad address syntax") from None
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return "6", str(address)
        address = address.ipv4_mapped
    return "4", str(address)


def _port(value: bytes) -> int:
    if value and (not value.isdigit() or len(value) > 5 or int(value) > 65535):
        raise SMTPSyntaxError("Bad port")
    return int(value or b"0")


def _esmtp(value: bytes) -> bool:
    if value.upper() not in {b"", b"SMTP", b"ESMTP"}:
        raise SMTPSyntaxError("Bad PROTO value")
    return value.upper() == b"ESMTP"


def _helo(value: bytes) -> bytes:
    return _NOT_IN_HELO.sub(b"?", value)


def _plain(name: str, value: bytes) -> bytes:
    if _CONTROL.search(value):
        raise SMTPSyntaxError(f"Bad {name} value")
    return value
