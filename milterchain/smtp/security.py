"""STARTTLS and AUTH in the dialogue of one session (RFC 3207, RFC 4954). No I/O.

Both need EHLO before them and no open transaction. TLS is begun once. AUTH is offered only where passwords
are safe from listeners: under TLS, unless the listener allows plaintext. A login that fails is counted, and
its answer is kept back; after some the session is closed.
"""

import asyncio
import logging
from typing import Final

from milterchain.errors import SMTPSyntaxError
from milterchain.mail.replies import Reply
from milterchain.smtp import answers
from milterchain.smtp.handler import Features, SessionHandler
from milterchain.smtp.options import Listener
from milterchain.smtp.sasl import MECHANISMS, Credentials, Exchange, decode_response, encode_challenge
from milterchain.smtp.tls import TLSSession

__all__ = ["Security"]

BEGIN_TLS: Final = Reply.of(220, "2.0.0 Ready to start TLS")
EHLO_FIRST: Final = Reply.of(503, "5.5.1 Error: send EHLO first")
TLS_ACTIVE: Final = Reply.of(503, "5.5.1 Error: TLS already active")
TLS_FIRST: Final = Reply.of(530, "5.7.0 Must issue a STARTTLS command first")
AUTHENTICATED: Final = Reply.of(503, "5.5.1 Error: already authenticated")
AUTH_FIRST: Final = Reply.of(530, "5.7.0 Authentication required")
AUTH_NEEDS_TLS: Final = Reply.of(538, "5.7.11 Encryption required for requested authentication mechanism")
NO_MECHANISM: Final = Reply.of(504, "5.5.4 Error: authentication mechanism not supported")
EXCHANGE_TOO_LONG: Final = Reply.of(500, "5.5.6 Error: authentication exchange line is too long")
WELCOME: Final = Reply.of(235, "2.7.0 Authentication successful")
WRONG: Final = Reply.of(535, "5.7.8 Error: authentication failed")
CANNOT_TELL: Final = Reply.of(454, "4.7.0 Temporary authentication failure")

_WITHOUT_TLS: Final = frozenset({b"EHLO", b"HELO", b"NOOP", b"QUIT", b"STARTTLS"})
"""What RFC 3207 section 4 lets pass where TLS is a must, and HELO, which tells as little as EHLO."""
_WITHOUT_LOGIN: Final = _WITHOUT_TLS | {b"AUTH", b"RSET", b"HELP", b"XCLIENT", b"XFORWARD"}
"""What RFC 4954 section 6 lets pass where a login is a must, and what a proxy says before its client's."""

_logger = logging.getLogger(__name__)


class Security:
    """TLS and login of one session.

    Attributes:
        tls: what the handshake told, None without TLS.
        login: as whom the client has logged in, None if it has not.
        awaits_tls: the last reply was the 220 to STARTTLS; the handshake comes next.
        failures: logins that failed.
    """

    __slots__ = ("_auth", "_exchange", "_handler", "_tls", "awaits_tls", "failures", "login", "tls")

    def __init__(self, handler: SessionHandler, listener: Listener | None = None) -> None:
        self.tls: TLSSession | None = None
        self.login: bytes | None = None
        self.awaits_tls = False
        self.failures = 0
        self._handler = handler
        self._tls = listener.tls if listener is not None else None
        self._auth = listener.auth if listener is not None else None
        self._exchange: Exchange | None = None

    @property
    def exchanging(self) -> bool:
        """The next line is no command, but part of an AUTH exchange."""
        return self._exchange is not None

    @property
    def exhausted(self) -> bool:
        """So many logins have failed that the session should be closed."""
        return self._auth is not None and self.failures >= self._auth.failures

    def delay(self, reply: Reply) -> float:
        """Seconds for which a reply is kept back."""
        return self._auth.delay * self.failures if self._auth is not None and reply.code == 535 else 0.0

    def keywords(self, features: Features) -> list[bytes]:
        """What EHLO offers."""
        keywords = []
        if self._tls is not None and self.tls is None and self.login is None:
            keywords.append(b"STARTTLS")
        if self.offers_auth(features):
            keywords.append(b"AUTH " + b" ".join(MECHANISMS))
        return keywords

    def offers_auth(self, features: Features) -> bool:
        """Whether a client may log in here and now."""
        auth = self._auth
        if auth is None or (self.tls is None and not auth.allow_plaintext):
            return False
        return auth.verify is not None or features.login

    def refusal(self, verb: bytes) -> Reply | None:
        """The answer to a command that may not come yet."""
        missing_tls = self._tls is not None and self._tls.settings.required and self.tls is None
        if missing_tls and verb not in _WITHOUT_TLS:
            return TLS_FIRST
        missing_login = self._auth is not None and self._auth.required and self.login is None
        if missing_login and verb not in _WITHOUT_LOGIN:
            return AUTH_FIRST
        return None

    def starttls(self, argument: bytes, *, esmtp: bool, in_transaction: bool) -> Reply:
        """Answer STARTTLS."""
        if self._tls is None:
            return answers.NOT_IMPLEMENTED
        if argument:
            raise SMTPSyntaxError("Syntax: STARTTLS")
        refusal = self._first_of(
            (self.tls is not None, TLS_ACTIVE),
            (not esmtp, EHLO_FIRST),
            (in_transaction, answers.IN_TRANSACTION),
            (self.login is not None, AUTHENTICATED),
        )
        if refusal is not None:
            return refusal
        self.awaits_tls = True
        return BEGIN_TLS

    async def secured(self, session: TLSSession) -> None:
        """The handshake is done."""
        self.awaits_tls = False
        self.tls = session
        await self._handler.tls(session)

    async def succeed(self, handler: SessionHandler, login: bytes | None) -> None:
        """Another client speaks, which has another handler; the connection is secured as it was."""
        self._handler = handler
        self.login = login
        if self.tls is not None:
            await handler.tls(self.tls)

    async def auth(self, argument: bytes, *, esmtp: bool, in_transaction: bool) -> Reply:
        """Answer AUTH."""
        if self._auth is None:
            return answers.NOT_IMPLEMENTED
        refusal = self._first_of(
            (not esmtp, EHLO_FIRST),
            (self.login is not None, AUTHENTICATED),
            (in_transaction, answers.IN_TRANSACTION),
            (self.tls is None and not self._auth.allow_plaintext, AUTH_NEEDS_TLS),
        )
        if refusal is not None:
            return refusal
        mechanism, *initial = argument.split(b" ")
        if not mechanism or len(initial) > 1:
            raise SMTPSyntaxError("Syntax: AUTH mechanism")
        make = MECHANISMS.get(mechanism.upper())
        if make is None or not self.offers_auth(self._handler.features()):
            return NO_MECHANISM
        # A lone = is an initial response without any octet.
        response = (b"" if initial[0] == b"=" else decode_response(initial[0])) if initial else None
        exchange = make(response)
        return await self._go_on(exchange, None)

    async def respond(self, line: bytes) -> Reply:
        """Answer a line within an exchange."""
        exchange, self._exchange = self._exchange, None
        assert exchange is not None, "the dialogue asks first"
        return await self._go_on(exchange, decode_response(line))

    def too_long(self) -> Reply:
        """The answer to a line within an exchange that has no end."""
        self._exchange = None
        return EXCHANGE_TOO_LONG

    def _first_of(self, *rules: tuple[bool, Reply]) -> Reply | None:
        """The first reply that applies, else the refusal that stands for the session."""
        for applies, reply in rules:
            if applies:
                return reply
        return self._handler.security_refusal()

    async def _go_on(self, exchange: Exchange, response: bytes | None) -> Reply:
        try:
            challenge = next(exchange) if response is None else exchange.send(response)
        except StopIteration as end:
            return await self._try(end.value)
        self._exchange = exchange
        return Reply(334, (encode_challenge(challenge),))

    async def _try(self, credentials: Credentials) -> Reply:
        assert self._auth is not None
        try:
            async with asyncio.timeout(self._auth.timeout):
                reply = await self._handler.auth(credentials) or WELCOME
        except Exception:
            _logger.exception("nobody can tell whether a login is right")
            return CANNOT_TELL
        if reply.positive:
            self.login = credentials.login
        elif reply.code == 535:
            self.failures += 1
        return reply
