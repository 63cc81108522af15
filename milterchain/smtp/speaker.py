"""The client of a session, and whether it may speak for others by XCLIENT and XFORWARD.

The right follows the client: after an XCLIENT that names another address, that address counts. So a proxy
that hands on what its client types (nginx does, after its XCLIENT) hands on no right.
"""

from collections.abc import Awaitable, Callable

from milterchain.mail.replies import Reply
from milterchain.smtp.handler import SessionHandler, SessionInfo
from milterchain.smtp.identity import (
    XCLIENT_ATTRIBUTES,
    XFORWARD_ATTRIBUTES,
    apply_xclient,
    apply_xforward,
    is_one_of,
)
from milterchain.smtp.options import Listener

__all__ = ["Speaker", "Succeed"]

Succeed = Callable[[SessionInfo], Awaitable[SessionHandler | Reply]]
"""Ends the handler of the session and makes the one for this client; a reply refuses the client."""


class Speaker:
    """One session's.

    Args:
        info: who the client is.
        listener: that took it.
        succeed: called at XCLIENT.

    Attributes:
        info: who the client is now.
        permitted: it may speak for others.
    """

    __slots__ = ("_forwarded", "_listener", "_succeed", "info", "permitted")

    def __init__(self, info: SessionInfo, listener: Listener, succeed: Succeed) -> None:
        self.info = info
        self.permitted = is_one_of(info, listener.xclient_from)
        self._listener = listener
        self._succeed = succeed
        self._forwarded: SessionInfo | None = None

    def keywords(self) -> list[bytes]:
        """What is offered in the reply to EHLO."""
        if not self.permitted:
            return []
        return [b" ".join((b"XCLIENT", *XCLIENT_ATTRIBUTES)), b" ".join((b"XFORWARD", *XFORWARD_ATTRIBUTES))]

    async def xclient(self, argument: bytes) -> SessionHandler | Reply:
        """Become another client: its handler, or a reply that refuses it.

        Raises:
            SMTPSyntaxError: what is wrong with the argument.
        """
        info = apply_xclient(self.info, argument)
        successor = await self._succeed(info)
        if not isinstance(successor, Reply):
            self.info = info
            self.permitted = is_one_of(info, self._listener.xclient_from)
            self._forwarded = None
        return successor

    def xforward(self, argument: bytes) -> SessionInfo:
        """Learn more of where the next message comes from, and return all that is known.

        Raises:
            SMTPSyntaxError: what is wrong with the argument.
        """
        self._forwarded = apply_xforward(self.info, self._forwarded, argument)
        return self._forwarded

    def forget(self) -> bool:
        """Forget what XFORWARD told; whether there was anything."""
        forwarded, self._forwarded = self._forwarded, None
        return forwarded is not None
