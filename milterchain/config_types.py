"""How sizes, times, addresses and macro names are written in a configuration.

Each `parse_…` takes what TOML gave and returns the value; what cannot be read raises ValueError with one
clear sentence that says what is allowed, and no more: `config` puts file and key before it.
"""

import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import idna

from milterchain.milter.flags import Stage

__all__ = [
    "MACRO_STAGES",
    "ListenAddress",
    "Network",
    "default_hostname",
    "parse_domain",
    "parse_duration",
    "parse_hostname",
    "parse_listen",
    "parse_macro",
    "parse_macro_stage",
    "parse_nameserver",
    "parse_network",
    "parse_size",
    "parse_workers",
]

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([KMG]i?B|B)?", re.ASCII | re.IGNORECASE)
_SIZES: Final[Mapping[str, int]] = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|m|h)?", re.ASCII)
_DURATIONS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_NAMESERVER: Final = re.compile(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\]):(\d{1,5})", re.ASCII)
_MACRO: Final = re.compile(r"[A-Za-z_]|\{[A-Za-z0-9_.-]{1,64}\}", re.ASCII)

MACRO_STAGES: Final[Mapping[str, Stage]] = {stage.name.lower(): stage for stage in Stage}
"""The names of the stages in `[[milter]] macros`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddress:
    """Where to listen.

    Attributes:
        host: an IP address; empty for a Unix socket.
        port: 0 lets the system choose.
        path: the Unix socket, None for TCP.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_size(value: object) -> int:
    """Read `"50MiB"`, `"64 kB"` or a plain number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size; write it as 50MiB, 64KiB, 10MB or a number of bytes")
    return int(float(match[1]) * _SIZES[(match[2] or "B").lower()])


def parse_duration(value: object) -> float:
    """Read `"30s"`, `"5m"`, `"1.5h"`, `"200ms"` or a plain number of seconds; it must be above zero."""
    seconds = 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        seconds = float(match[1]) * _DURATIONS[match[2] or "s"]
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{value!r} is not a time; write it as 30s, 5m, 1h or a number of seconds above 0")
    return seconds


def parse_hostname(value: object) -> str:
    """Check a host name that is to be put into greetings, trace headers and macros."""
    name = value if isinstance(value, str) else ""
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"{value!r} is not a host name; letters, digits, hyphens and dots are allowed")
    return name


def _port(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,5}", text, re.ASCII) and int(text) < 65536 else None


def parse_listen(value: object, base: Path) -> ListenAddress:
    """Read `127.0.0.1:2525`, `[::]:25`, `localhost:2525` or `unix:/path`; a relative path is under `base`."""
    text = value if isinstance(value, str) else ""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return ListenAddress(path=base / text.removeprefix("unix:"))
    host, colon, port_text = text.rpartition(":")
    port = _port(port_text)
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    version: int
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        # The loopback name needs no resolver; any other name could mean several addresses.
        host, version = ("127.0.0.1", 4) if host == "localhost" else ("", 0)
    if not colon or port is None or not host or bracketed != (version == 6):
        raise ValueError(
            f"{value!r} is not an address to listen on; write it as 127.0.0.1:2525, [::]:25 or unix:/path"
        )
    return ListenAddress(host=host, port=port)


def parse_nameserver(value: object) -> tuple[str, int]:
    """Read `192.0.2.53`, `2001:db8::53`, `127.0.0.1:5353` or `[::1]:5353`; the port is 53 by default."""
    text = value if isinstance(value, str) else ""
    match = _NAMESERVER.fullmatch(text)
    host, port = (match[1] or match[2], _port(match[3])) if match else (text, 53)
    try:
        address = str(ipaddress.ip_address("" if "%" in host else host))
    except ValueError:
        address = ""
    if not address or not port:
        raise ValueError(
            f"{value!r} is not a DNS server; write it as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353"
        )
    return address, port


def parse_macro(value: object) -> bytes:
    """Check the name of a macro: one letter bare, longer names in braces."""
    if not isinstance(value, str) or not _MACRO.fullmatch(value):
        raise ValueError(
            f"{value!r} is not the name of a macro; write one letter bare (i) and longer names in braces"
            " ({mail_addr})"
        )
    return value.encode("ascii")


def parse_macro_stage(value: object) -> Stage:
    """Read the name of a stage."""
    stage = MACRO_STAGES.get(value) if isinstance(value, str) else None
    if stage is None:
        raise ValueError(f"{value!r} is not one of {', '.join(MACRO_STAGES)}")
    return stage


def parse_domain(value: object) -> str:
    """Check a domain to relay to, as A-labels or U-labels; a leading dot means its subdomains."""
    text = value if isinstance(value, str) else ""
    try:
        name = idna.encode(text.removeprefix("."), uts46=True).decode("ascii")
    except idna.IDNAError:
        name = ""
    if not name:
        raise ValueError(
            f"{value!r} is not a domain; write it as example.org, or .example.org for its subdomains"
        )
    return f".{name.lower()}" if text.startswith(".") else name.lower()


def parse_workers(value: object) -> int | Literal["auto"]:
    """Read a number of processes, or `"auto"`."""
    if value == "auto":
        return "auto"
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is not a number of processes; write 1 or more, or auto")
    return value


def parse_network(value: object) -> Network:
    """Read a network (`10.0.0.0/8`, `fd00::/8`) or one address."""
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError as error:
        hint = "its host bits must be 0" if "host bits" in str(error) else "write it as 10.0.0.0/8 or ::1"
        raise ValueError(f"{value!r} is not a network; {hint}") from None


def default_hostname() -> str:
    """The name that the system has, without asking any resolver; `localhost` if that is no host name."""
    try:
        return parse_hostname(socket.gethostname())
    except ValueError:
        return "localhost"
