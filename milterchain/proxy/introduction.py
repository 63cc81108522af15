"""Tell a next hop whom a connection is for: XCLIENT, then AUTH.

Either binds the connection to that client for good: it must not serve another one. After XCLIENT the hop has
returned to its greeting, and is greeted again, with the client's own name: to the hop that is the client's
HELO. XFORWARD binds nothing; it is said before each message.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from milterchain.errors import NextHopClosedError, NextHopConnectError, NextHopProtocolError
from milterchain.mail.replies import Reply
from milterchain.proxy.identity import Identity, xclient_command, xforward_commands
from milterchain.smtp.client import SMTPClient
from milterchain.smtp.client_auth import Credentials, authenticate

__all__ = ["IdentityMode", "Party", "introduce", "trace_commands", "uses_xclient"]

IdentityMode: TypeAlias = Literal["none", "auto", "xclient", "xforward"]

_OUR_FAULT: Final = {500, 501, 502, 503, 504}
"""What answers the command itself; other refusals of XCLIENT are the hop's decision on the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Whom a connection is for.

    Attributes:
        identity: the client; None if nothing is told of it.
        credentials: its login, to be made on the hop.
    """

    identity: Identity | None = None
    credentials: Credentials | None = None


def uses_xclient(client: SMTPClient, identity: Identity | None, mode: IdentityMode) -> bool:
    """Whether this client is introduced by XCLIENT. One on a Unix socket has no address that could be told.

    Raises:
        NextHopConnectError: it has to be, and the hop does not offer it.
    """
    if identity is None or not identity.address or mode not in {"auto", "xclient"}:
        return False
    offered = b"ADDR" in client.features.get(b"XCLIENT", b"").upper().split()
    if mode == "xclient" and not offered:
        raise NextHopConnectError("does not offer XCLIENT")
    return offered


async def introduce(client: SMTPClient, party: Party, *, xclient: bool) -> Reply | None:
    """Say what binds a connection to a client. Returns the hop's refusal of that client, None without one.

    Raises:
        NextHopError: the hop cannot be used for this client.
    """
    if xclient:
        assert party.identity is not None
        (reply,) = await client.exchange(xclient_command(party.identity, client.features[b"XCLIENT"]))
        if reply.closes:
            raise NextHopClosedError(f"ended the session: {reply}")
        if reply.code in _OUR_FAULT or reply.status == b"5.7.0" or (reply.positive and reply.code != 220):
            raise NextHopProtocolError(f"answered XCLIENT with {reply}")
        if not reply.positive:
            return reply
        await client.hello(party.identity.helo)
    if party.credentials is not None:
        reply = await authenticate(client, party.credentials)
        if not reply.positive:
            return reply
    return None


def trace_commands(client: SMTPClient, identity: Identity | None, mode: IdentityMode) -> list[bytes]:
    """The XFORWARD commands before a message, none if it is not to be said or cannot be."""
    offered = client.features.get(b"XFORWARD")
    if identity is None or offered is None or mode not in {"auto", "xforward"}:
        return []
    return xforward_commands(identity, offered)
