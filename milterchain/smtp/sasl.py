"""The SASL mechanisms PLAIN (RFC 4616) and LOGIN, from the server's side. No I/O.

An exchange is a generator of challenges: what is yielded goes to the client, what it answers is sent in, and
what is returned in the end are the credentials. Base64 is strict: no blanks, no other alphabet, the right
padding. Names have no control characters (SASLprep has none): filters write them into headers.
"""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from milterchain.errors import SMTPSyntaxError

__all__ = [
    "MECHANISMS",
    "AuthSettings",
    "Credentials",
    "Exchange",
    "Verifier",
    "decode_response",
    "encode_challenge",
]


_BAD_DATA: Final = "Error: bad authentication data"
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client wants to be believed.

    Attributes:
        mechanism: in upper case.
        login: the authentication identity.
        password: not shown by `repr`, lest it gets into a log.
        identity: whom it wants to act for; empty is itself.
    """

    mechanism: str
    login: bytes
    password: bytes = field(repr=False)
    identity: bytes = b""


Verifier: TypeAlias = Callable[[Credentials], Awaitable[bool]]
"""Says whether credentials are right. An exception means that it cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """How clients of a listener log in.

    Attributes:
        verify: who knows the passwords; None leaves that to the handler of the session.
        allow_plaintext: also without TLS, where everybody on the way can read the password.
        required: no mail without a login.
        failures: logins of one session that may fail before it is closed.
        delay: seconds for which the answer to a failed login is kept back, times the failures so far.
        timeout: seconds to wait for the verifier.
    """

    verify: Verifier | None = None
    allow_plaintext: bool = False
    required: bool = False
    failures: int = 3
    delay: float = 1.0
    timeout: float = 60.0


Exchange: TypeAlias = Generator[bytes, bytes, Credentials]


def _plain(initial: bytes | None) -> Exchange:
    response = (yield b"") if initial is None else initial
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise SMTPSyntaxError(_BAD_DATA, status="5.5.2")
    identity, login, password = parts
    return _credentials("PLAIN", login, password, identity)


def _login(initial: bytes | None) -> Exchange:
    login = (yield b"Username:") if initial is None else initial
    password = yield b"Password:"
    return _credentials("LOGIN", login, password)


def _credentials(mechanism: str, login: bytes, password: bytes, identity: bytes = b"") -> Credentials:
    if not login or not password or _CONTROL.search(login + identity) or b"\0" in password:
        raise SMTPSyntaxError(_BAD_DATA, status="5.5.2")
    return Credentials(mechanism=mechanism, login=login, password=password, identity=identity)


MECHANISMS: Final[Mapping[bytes, Callable[[bytes | None], Exchange]]] = {b"PLAIN": _plain, b"LOGIN": _login}
"""By name in upper case: what makes an exchange of the initial response (None without one)."""


def decode_response(line: bytes) -> bytes:
    """The octets of a response.

    Raises:
        SMTPSyntaxError: this is no base64, or the client cancels the exchange (`*`).
    """
    if line == b"*":
        raise SMTPSyntaxError("Authentication aborted", status="5.7.0")
    try:
        return binascii.a2b_base64(line, strict_mode=True)
    except binascii.Error:
        raise SMTPSyntaxError("Error: bad base64", status="5.5.2") from None


def encode_challenge(challenge: bytes) -> bytes:
    """What stands after `334 `."""
    return base64.b64encode(challenge)
