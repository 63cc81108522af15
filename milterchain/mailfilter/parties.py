"""Sender and recipients of a message: addresses with what the MTA knows of them."""

import re
from dataclasses import dataclass, field
from typing import Self

from milterchain.mail.address import Address
from milterchain.mailfilter.session_facts import macro_text, text_of
from milterchain.milter.macros import MacroStore

__all__ = ["Recipient", "Sender"]

_XTEXT = re.compile(rb"\+([0-9A-F]{2})")


@dataclass(frozen=True, slots=True, eq=False)
class Sender(Address):
    """The argument of MAIL FROM, and who is logged in. The null sender has an empty local part.

    Compares as addresses do: by mailbox, whatever else is known.

    Attributes:
        transport: macro `{mail_mailer}`: how the MTA would deliver to this address (`smtp`, `local`, …).
        host: macro `{mail_host}`: the next hop for it.
        authenticated_user: macro `{auth_authen}`: the name with which the client logged in; empty if it has
            not.
        auth_type: macro `{auth_type}`: the mechanism (`PLAIN`, …).
        auth_ssf: macro `{auth_ssf}`: the strength of the mechanism's own encryption, as a number (Sendmail).
        auth_author: macro `{auth_author}`: the AUTH parameter of MAIL (RFC 4954).
    """

    transport: str = field(default="", kw_only=True)
    host: str = field(default="", kw_only=True)
    authenticated_user: str = field(default="", kw_only=True)
    auth_type: str = field(default="", kw_only=True)
    auth_ssf: str = field(default="", kw_only=True)
    auth_author: str = field(default="", kw_only=True)

    @classmethod
    def from_milter(
        cls, raw: bytes, args: tuple[bytes, ...], macros: MacroStore, *, sendmail: bool = False
    ) -> Self:
        """Read the event and its macros; Sendmail writes the user's name as xtext (RFC 3461 section 4)."""
        user = macros.get(b"auth_authen") or b""
        if sendmail:
            user = _XTEXT.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), user)
        return cls(
            raw,
            args,
            transport=macro_text(macros, b"mail_mailer"),
            host=macro_text(macros, b"mail_host"),
            authenticated_user=text_of(user),
            auth_type=macro_text(macros, b"auth_type"),
            auth_ssf=macro_text(macros, b"auth_ssf"),
            auth_author=macro_text(macros, b"auth_author"),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Recipient(Address):
    """The argument of RCPT TO. Compares as addresses do.

    Attributes:
        transport: macro `{rcpt_mailer}`: how the MTA delivers to it (`local`, `smtp`, …); empty for one that
            the filter added.
        host: macro `{rcpt_host}`: the next hop for it.
    """

    transport: str = field(default="", kw_only=True)
    host: str = field(default="", kw_only=True)

    @classmethod
    def from_milter(cls, raw: bytes, args: tuple[bytes, ...], macros: MacroStore) -> Self:
        """Read the event and its macros."""
        return cls(
            raw,
            args,
            transport=macro_text(macros, b"rcpt_mailer"),
            host=macro_text(macros, b"rcpt_host"),
        )
