"""TLS towards an SMTP server: how much is demanded, and the handshake.

`may` uses TLS where it is offered, with any certificate, and goes on without where it fails (RFC 7435):
it keeps out listeners, nobody else. `encrypt` never goes on without. `verify` also demands a certificate that
a trusted authority has made for the very name, or address, of the server as configured.
"""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

from milterchain.errors import NextHopTLSError

__all__ = ["ClientTLS", "TLSLevel", "start_tls", "tls_reason"]

TLSLevel: TypeAlias = Literal["may", "encrypt", "verify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTLS:
    """How TLS is used.

    Attributes:
        level: what is demanded.
        context: made for that level.
        implicit: the handshake comes first of all, and there is no STARTTLS.
        handshake_timeout: seconds.
    """

    level: TLSLevel
    context: ssl.SSLContext
    implicit: bool = False
    handshake_timeout: float = 30.0

    @classmethod
    def of(cls, level: TLSLevel, *, ca_file: str | None = None) -> Self:
        """Make it.

        Args:
            level: what is demanded.
            ca_file: the authorities that are trusted, in PEM; None for those of the system.

        Raises:
            OSError: the file cannot be read, or has no certificates.
        """
        context = ssl.create_default_context(cafile=ca_file)
        if level != "verify":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return cls(level=level, context=context)

    @property
    def opportunistic(self) -> bool:
        """Whether it goes without."""
        return self.level == "may" and not self.implicit


async def start_tls(
    transport: asyncio.Transport, protocol: asyncio.Protocol, tls: ClientTLS, name: str
) -> asyncio.Transport:
    """Begin TLS on a connection; what comes out of it is the protocol's, as before.

    Raises:
        NextHopTLSError: there is no common ground, or the certificate is not the one that is demanded. The
            connection is gone.
    """
    loop = asyncio.get_running_loop()
    try:
        secured = await loop.start_tls(
            transport,
            protocol,
            tls.context,
            server_hostname=name,
            ssl_handshake_timeout=tls.handshake_timeout,
        )
    except (OSError, UnicodeError) as error:  # ssl.SSLError is one; UnicodeError: no name for a certificate
        transport.abort()
        raise NextHopTLSError(f"no TLS: {tls_reason(error)}") from error
    if secured is None:
        raise NextHopTLSError("no TLS: the connection was lost")
    return secured


def tls_reason(error: Exception) -> str:
    """Why a handshake failed, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate of another or not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return error.reason or "handshake failed"
    return str(error) or type(error).__name__
