"""What a filter knows before the message: which MTA asks, who is connected to it, how the client greeted.

All of it is decoded text: the names come from DNS, from certificates and from the client. Bytes that are no
UTF-8 appear as backslash escapes. What the MTA did not tell is empty.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from milterchain.mail.edits import HeaderIndex
from milterchain.milter.flags import Family
from milterchain.milter.macros import MacroStore
from milterchain.milter.messages import Connect

__all__ = ["MTA", "Connection", "Helo", "macro_text", "text_of"]

_SENDMAIL = re.compile(r"\d+\.\d+")


def text_of(data: bytes) -> str:
    """Bytes as text, whatever they are."""
    return data.decode("utf-8", "backslashreplace")


def macro_text(macros: MacroStore, name: bytes) -> str:
    """The value of a macro as text; empty if it is not defined."""
    return text_of(macros.get(name, b"") or b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class MTA:
    """The mail server that asks.

    Attributes:
        version: macro `v`: `Postfix 3.7.11`, or the bare number of a Sendmail.
        name: macro `j`: its host name.
        daemon: macro `{daemon_name}`: the name of the port that the client is connected to.
    """

    version: str = ""
    name: str = ""
    daemon: str = ""

    @classmethod
    def from_macros(cls, macros: MacroStore) -> Self:
        """Read the macros of the connection."""
        return cls(
            version=macro_text(macros, b"v"),
            name=macro_text(macros, b"j"),
            daemon=macro_text(macros, b"daemon_name"),
        )

    @property
    def is_sendmail(self) -> bool:
        """Whether it is Sendmail.

        Its version is a number without a name, and only Sendmail tells its name (`j`) but keeps its version
        to itself unless it is asked.
        """
        return bool(_SENDMAIL.match(self.version)) or (not self.version and bool(self.name))

    @property
    def header_index(self) -> HeaderIndex:
        """How it counts headers, see `milterchain.mail.edits`."""
        return "sendmail" if self.is_sendmail else "postfix"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The SMTP client's connection to the MTA.

    Attributes:
        host: the client's verified name, or its address in brackets, or what else the MTA has.
        family: what `address` is.
        address: IPv4 or IPv6 address without any tag, or the path of a unix socket.
        port: the client's port; 0 if there is none, or it is not known.
        interface: macro `{if_name}`: the name of the MTA's own address (Sendmail).
        local_address: macro `{if_addr}` or `{daemon_addr}`: the MTA's own address.
    """

    host: str = ""
    family: Family = Family.UNKNOWN
    address: str = ""
    port: int = 0
    interface: str = ""
    local_address: str = ""

    @classmethod
    def from_milter(cls, connect: Connect, macros: MacroStore) -> Self:
        """Read the event and its macros."""
        address = text_of(connect.address)
        if connect.family is Family.INET6 and address[:5].lower() == "ipv6:":  # Sendmail
            address = address[5:]
        return cls(
            host=text_of(connect.hostname),
            family=connect.family,
            address=address,
            port=connect.port,
            interface=macro_text(macros, b"if_name"),
            local_address=macro_text(macros, b"if_addr") or macro_text(macros, b"daemon_addr"),
        )

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The client's address as a value; None if it has none."""
        try:
            return ipaddress.ip_address(self.address)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Helo:
    """The client's greeting, and the TLS session in which it came.

    Attributes:
        name: the argument of HELO or EHLO.
        tls_version: `TLSv1.3`; empty without TLS.
        cipher: the name of the cipher suite.
        cipher_bits: the strength of its key; 0 without TLS.
        cert_subject: of the client's certificate: the common name (Postfix), or the whole name (Sendmail).
        cert_issuer: who signed it, likewise. Postfix tells both only if it trusts the certificate.
    """

    name: str = ""
    tls_version: str = ""
    cipher: str = ""
    cipher_bits: int = 0
    cert_subject: str = ""
    cert_issuer: str = ""

    @classmethod
    def from_milter(cls, name: bytes, macros: MacroStore) -> Self:
        """Read the event and its macros."""
        bits = macro_text(macros, b"cipher_bits")
        return cls(
            name=text_of(name),
            tls_version=macro_text(macros, b"tls_version"),
            cipher=macro_text(macros, b"cipher"),
            cipher_bits=int(bits) if bits.isdecimal() and bits.isascii() and len(bits) < 10 else 0,
            cert_subject=macro_text(macros, b"cert_subject"),
            cert_issuer=macro_text(macros, b"cert_issuer"),
        )

    @property
    def tls(self) -> bool:
        """Whether the client talks TLS."""
        return bool(self.tls_version)
