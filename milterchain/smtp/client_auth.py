"""AUTH, from the client's side (RFC 4954): PLAIN (RFC 4616), or LOGIN where that is all there is.

Both show the password to the server. It is therefore said only over TLS, or to a server on this machine.
"""

from base64 import b64encode
from dataclasses import dataclass, field
from typing import Final

from milterchain.errors import NextHopClosedError, NextHopLoginError, NextHopProtocolError
from milterchain.mail.replies import Reply
from milterchain.smtp.client import SMTPClient
from milterchain.smtp.client_commands import MAX_COMMAND

__all__ = ["Credentials", "authenticate", "mechanisms"]

_KNOWN: Final = (b"PLAIN", b"LOGIN")
"""What can be spoken, the better one first: it needs fewer round trips."""
_FAILED: Final = Reply.of(535, "5.7.8 Error: authentication failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A login with its password.

    Attributes:
        user: the authentication identity.
        password: never shown.
        authorize: the authorization identity of PLAIN, empty if that is the user's own.
    """

    user: bytes
    password: bytes = field(repr=False)
    authorize: bytes = b""


def mechanisms(client: SMTPClient) -> tuple[bytes, ...]:
    """The offered mechanisms that can be spoken, in order of preference."""
    offered = client.features.get(b"AUTH", b"").upper().split()
    return tuple(mechanism for mechanism in _KNOWN if mechanism in offered)


async def authenticate(client: SMTPClient, credentials: Credentials) -> Reply:
    """Log in. Returns the server's decision: 235, or its refusal.

    Raises:
        NextHopLoginError: the server offers no mechanism, or the password would cross a network in clear.
        NextHopError: the connection is of no use any more.
    """
    usable = mechanisms(client)
    if b"\0" in credentials.user + credentials.password + credentials.authorize:
        return _FAILED  # PLAIN has no way to say it, and nobody has such a name
    if credentials.authorize:
        usable = tuple(mechanism for mechanism in usable if mechanism == b"PLAIN")
    if not usable:
        raise NextHopLoginError("offers no AUTH that can be used")
    if not client.private:
        raise NextHopLoginError("would get a password unencrypted over a network")
    if usable[0] == b"PLAIN":
        secret = b"\0".join((credentials.authorize, credentials.user, credentials.password))
        steps = [b"AUTH PLAIN " + b64encode(secret)]
    else:
        steps = [b"AUTH LOGIN", b64encode(credentials.user), b64encode(credentials.password)]
    if any(len(step) > MAX_COMMAND for step in steps):
        return _FAILED
    for step in steps[:-1]:
        reply = await _say(client, step)
        if reply.code != 334:
            return _decision(client, reply)
    return _decision(client, await _say(client, steps[-1]))


async def _say(client: SMTPClient, step: bytes) -> Reply:
    (reply,) = await client.exchange(step)
    if reply.closes:
        raise NextHopClosedError(f"ended the session: {reply}")
    return reply


def _decision(client: SMTPClient, reply: Reply) -> Reply:
    if reply.code != 235 and reply.positive:
        client.close()
        raise NextHopProtocolError(f"answered AUTH with {reply}")
    return reply
