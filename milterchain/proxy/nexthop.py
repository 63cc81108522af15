"""Where messages go: the addresses of next hops as configuration and command line write them.

`smtp:HOST:PORT`, `smtps:HOST:PORT` (implicit TLS), `lmtp:HOST:PORT`, `lmtp:unix:/PATH`, `maildir:/PATH`,
`discard:`. An IPv6 address is written in brackets.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

__all__ = ["DiscardHop", "Hop", "LMTPHop", "MaildirHop", "SMTPHop", "parse_hop"]

_FORMS = (
    "smtp:HOST:PORT, smtps:HOST:PORT, lmtp:HOST:PORT (HOST may be [IPV6]), lmtp:unix:/PATH,"
    " maildir:/PATH or discard:"
)
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+)):([0-9]{1,5})", re.ASCII)


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class SMTPHop:
    """A server that is spoken to by SMTP.

    Attributes:
        host: a name or an address, without brackets.
        port: 1 to 65535.
        implicit_tls: TLS comes before the greeting.
    """

    host: str
    port: int
    implicit_tls: bool = False

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect to."""
        return self.host, self.port

    def __str__(self) -> str:
        return f"{'smtps' if self.implicit_tls else 'smtp'}:{_host_port(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class LMTPHop:
    """A server that is spoken to by LMTP.

    Attributes:
        address: host and port, or the path of a Unix socket.
    """

    address: tuple[str, int] | str

    def __str__(self) -> str:
        if isinstance(self.address, str):
            return f"lmtp:unix:{self.address}"
        return f"lmtp:{_host_port(*self.address)}"


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


Hop: TypeAlias = SMTPHop | LMTPHop | MaildirHop | DiscardHop


def _tcp(text: str) -> tuple[str, int] | None:
    match = _HOST_PORT.fullmatch(text)
    return (match[1] or match[2], int(match[3])) if match and 1 <= int(match[3]) <= 65535 else None


def parse_hop(text: str) -> Hop:
    """Read the address of a next hop. A relative path stays relative.

    Raises:
        ValueError: what is wrong with it, and what is allowed.
    """
    scheme, _, rest = text.partition(":")
    path = rest.removeprefix("unix:")
    if scheme in {"smtp", "smtps"} and (address := _tcp(rest)):
        return SMTPHop(*address, implicit_tls=scheme == "smtps")
    if scheme == "lmtp" and path != rest and path and "\0" not in path:
        return LMTPHop(path)
    if scheme == "lmtp" and (address := _tcp(rest)):
        return LMTPHop(address)
    if scheme == "maildir" and rest and "\0" not in rest:
        return MaildirHop(Path(rest))
    if text == "discard:":
        return DiscardHop()
    raise ValueError(f"{text!r} is not a next hop; allowed: {_FORMS}")
