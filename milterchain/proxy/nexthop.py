"""Where messages go: the addresses of next hops as configuration and command line write them.

`smtp:HOST:PORT` (an IPv6 address in brackets), `maildir:/PATH`, `discard:`. The grammar has `smtps:` and
`lmtp:`, too; this version does not speak them and says so.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

__all__ = ["DiscardHop", "Hop", "MaildirHop", "SMTPHop", "parse_hop"]

_FORMS = "smtp:HOST:PORT, smtp:[IPV6]:PORT, maildir:/PATH or discard:"
_LATER = {"smtps": "SMTP over implicit TLS", "lmtp": "LMTP"}
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+)):([0-9]{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class SMTPHop:
    """A server that is spoken to by SMTP.

    Attributes:
        host: a name or an address, without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"smtp:[{self.host}]:{self.port}" if ":" in self.host else f"smtp:{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class MaildirHop:
    """A Maildir on this machine that takes everything."""

    path: Path

    def __str__(self) -> str:
        return f"maildir:{self.path}"


@dataclass(frozen=True, slots=True)
class DiscardHop:
    """Takes everything and forgets it: for tests and measurements."""

    def __str__(self) -> str:
        return "discard:"


Hop: TypeAlias = SMTPHop | MaildirHop | DiscardHop


def parse_hop(text: str) -> Hop:
    """Read the address of a next hop. A relative Maildir path stays relative.

    Raises:
        ValueError: what is wrong with it, and what is allowed.
    """
    scheme, _, rest = text.partition(":")
    if scheme in _LATER and rest:
        raise ValueError(
            f"{text!r}: {_LATER[scheme]} to the next hop is not available yet; allowed: {_FORMS}"
        )
    if scheme == "smtp" and (match := _HOST_PORT.fullmatch(rest)) and 1 <= int(match[3]) <= 65535:
        return SMTPHop(match[1] or match[2], int(match[3]))
    if scheme == "maildir" and rest and "\0" not in rest:
        return MaildirHop(Path(rest))
    if text == "discard:":
        return DiscardHop()
    raise ValueError(f"{text!r} is not a next hop; allowed: {_FORMS}")
