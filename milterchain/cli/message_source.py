"""What commands send: a message from a file, its envelope, and a client that pretends to send it.

All functions raise `typer.BadParameter` for what cannot be used.
"""

import sys
from collections.abc import Iterator, Sequence
from email.utils import getaddresses
from ipaddress import ip_address
from pathlib import Path as FilePath

import typer

from milterchain.chain.client import ClientInfo
from milterchain.errors import HeaderLimitError
from milterchain.mail.canonical import canonical
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message, parse_message
from milterchain.milter.flags import Family

__all__ = ["as_typed", "envelope_of", "read_client", "read_message"]


def read_message(source: str) -> Message:
    """Read a file, or standard input for `-`, with any line ends."""
    try:
        content = sys.stdin.buffer.read() if source == "-" else FilePath(source).read_bytes()
        return parse_message(canonical(content))
    except OSError as error:
        raise typer.BadParameter(f"{source}: {error.strerror}", param_hint="MESSAGE.eml") from None
    except HeaderLimitError as error:
        raise typer.BadParameter(f"{source}: {error}", param_hint="MESSAGE.eml") from None


def as_typed(text: str) -> bytes:
    """What the shell was given, byte for byte."""
    return text.encode("utf-8", "surrogateescape")


def envelope_of(
    message: Message,
    sender: str | None,
    recipients: Sequence[str],
    sender_args: Sequence[str] = (),
    recipient_args: Sequence[str] = (),
) -> Envelope:
    """The envelope that was given, and what was not given as the headers From, To and Cc have it.

    Args:
        message: whose headers are looked at.
        sender: None to take it from the message.
        recipients: none to take them from the message.
        sender_args: the parameters of MAIL.
        recipient_args: the parameters of each RCPT.
    """
    author = next(_addresses(message, b"from"), b"<>") if sender is None else _given(sender)
    receivers = [_given(recipient) for recipient in recipients] or [*_addresses(message, b"to", b"cc")]
    args = tuple(map(as_typed, recipient_args))
    return Envelope(
        Path(author, tuple(map(as_typed, sender_args))),
        tuple([Path(receiver, args) for receiver in receivers or [b"<postmaster>"]]),
    )


def read_client(address: str) -> ClientInfo:
    """A client with this IP address, at this `unix:/PATH`, or `unknown`."""
    if address == "unknown":
        return ClientInfo()
    if address.startswith("unix:/"):
        return ClientInfo(address=address.removeprefix("unix:"), family=Family.UNIX)
    try:
        client = ip_address(address)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--client-addr") from None
    return ClientInfo(address=str(client), family=Family.INET if client.version == 4 else Family.INET6)


def _given(address: str) -> bytes:
    """An address byte for byte, but not with a name in front, as headers have it."""
    if address.endswith(">") and not address.startswith("<"):
        bare = address.removesuffix(">").rpartition("<")[2]
        raise typer.BadParameter(f"{address!r} is more than an address; write {bare!r}")
    return _bracketed(address)


def _bracketed(address: str) -> bytes:
    return b"<%b>" % as_typed(address.removeprefix("<").removesuffix(">"))


def _addresses(message: Message, *names: bytes) -> Iterator[bytes]:
    values = [
        value.decode("utf-8", "replace") for name, value in message.milter_headers() if name.lower() in names
    ]
    return iter([_bracketed(address) for _, address in getaddresses(values) if "@" in address])
