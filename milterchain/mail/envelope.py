"""The envelope: who sends, who receives, with the parameters of MAIL and RCPT as the client typed them."""

from dataclasses import dataclass

__all__ = ["Envelope", "Path", "bare", "bracketed"]


def bare(address: bytes) -> bytes:
    """The address without the angle brackets around it."""
    return address[1:-1] if address[:1] == b"<" and address[-1:] == b">" else address


def bracketed(address: bytes) -> bytes:
    """The address in angle brackets, which it may have already."""
    return b"<" + bare(address) + b">"


@dataclass(frozen=True, slots=True)
class Path:
    """The argument of MAIL FROM or RCPT TO.

    Attributes:
        address: exactly as typed, brackets included if typed: what milters see.
        args: the ESMTP parameters, one each, exactly as typed.
    """

    address: bytes
    args: tuple[bytes, ...] = ()

    @property
    def bare(self) -> bytes:
        """The address without brackets; empty for the null sender."""
        return bare(self.address)

    @property
    def bracketed(self) -> bytes:
        """The address in brackets, as RFC 5321 wants it on the wire."""
        return bracketed(self.address)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Sender and recipients, in the order in which they came."""

    sender: Path
    recipients: tuple[Path, ...] = ()

    def with_recipient(self, recipient: Path) -> "Envelope":
        """A copy with one more recipient."""
        return Envelope(self.sender, (*self.recipients, recipient))
