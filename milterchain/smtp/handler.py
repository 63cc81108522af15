"""What the SMTP server asks of the rest: one `SessionHandler` for each connection.

The server owns the conversation: syntax, order, limits, deadlines, pipelining, the spooled message. The
handler owns the decisions. The server calls one method at a time, in the order of the conversation, and
awaits it. XCLIENT ends a handler and makes another, for the client that it tells of.

Answers:

- None is the server's own positive reply (`250 2.1.0 Ok`, `354 ...`).
- A `Reply` is sent as it is. If it is positive, the command took effect; else it did not.
- A reply that closes (421, 521) is sent, then the connection is closed.
- An exception is logged, the client hears `451 4.3.0`, and the transaction is over.

If the client goes away, the method that is running is cancelled, except `message`: what has been sent to the
next hop cannot be called back, so it runs to its end. `close` comes last, exactly once, whatever happened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from milterchain.mail.envelope import Path
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.smtp.sasl import AuthSettings, Credentials
from milterchain.smtp.tls import TLSSession

__all__ = [
    "UNKNOWN_NAMES",
    "ClientNames",
    "Features",
    "HandlerFactory",
    "Parameters",
    "SessionHandler",
    "SessionInfo",
]

Parameters = Mapping[bytes, bytes | None]
"""ESMTP parameters: the keyword in upper case, the value as typed, None if the parameter has no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientNames:
    """What is known of the names of a client.

    Attributes:
        name: one that its address has, and that has its address; else `unknown`.
        ptr: one that its address has; else `unknown`.
        resolve: how the look-up of the name ended: there is none (`FAIL`), there could be one (`TEMP`), or
            the name does not have the address (`FORGED`).
    """

    name: bytes
    ptr: bytes
    resolve: Literal[b"OK", b"FORGED", b"TEMP", b"FAIL"]


UNKNOWN_NAMES: Final = ClientNames(name=b"unknown", ptr=b"unknown", resolve=b"FAIL")
"""The names of a client that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """Who is connected to what; or, after XFORWARD, where a message came from.

    Attributes:
        listener: the name of the listener that took the connection.
        family: as milters name it: `4`, `6`, `L` (Unix socket) or `U` (the peer is gone already).
        address: the client's IP address (an IPv4-mapped one as IPv4), the path of the Unix socket it
            connected to, or empty for `U`. Where another speaks for the client, `U` is one that the other
            knows no address of.
        port: the client's port; 0 for `L` and `U`.
        local_address: the address, or path, that the client connected to.
        local_port: its port; 0 if it has none.
        auth: how clients of this listener log in; None if they cannot.
        connections: how many this client has now, with this one; None if nobody counts.
        rate: how many it has made in the last minute, with this one; likewise.
        names: the client's; None if nobody has looked.
        peer: the address of the one who speaks for the client (PROXY, XCLIENT, XFORWARD); empty if it does so
            itself.
        helo: the name that the client gave to that one; empty if that is not known.
        esmtp: whether it gave it with EHLO.
        login: whom the client has proved to be to that one; None if to nobody.
        ident: what that one calls the message.
        daemon_name: what milters are told of the listener; empty if they get the host name.
    """

    listener: str
    family: Literal["4", "6", "L", "U"]
    address: str
    port: int = 0
    local_address: str = ""
    local_port: int = 0
    auth: AuthSettings | None = None
    connections: int | None = None
    rate: int | None = None
    names: ClientNames | None = None
    peer: str = ""
    helo: bytes = b""
    esmtp: bool = False
    login: bytes | None = None
    ident: bytes = b""
    daemon_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What may be offered in the reply to EHLO, beyond what the server can always do.

    PIPELINING, SIZE, 8BITMIME, CHUNKING, LIMITS and ENHANCEDSTATUSCODES are the server's own. The rest
    depends on the next hop: what it cannot take must not be accepted.

    Attributes:
        smtputf8: internationalised addresses and headers (RFC 6531).
        dsn: RET, ENVID, NOTIFY and ORCPT (RFC 3461).
        size: the largest message that the next hop takes; None if it does not say. The smaller of this and
            the server's own limit counts.
        login: the next hop can be asked whether credentials are right.
        binarymime: bodies that are no text (RFC 3030).
        recipients: how many one message may have there; None if it does not say.
        requiretls: messages go on over TLS to a next hop that was verified and does the same (RFC 8689).
    """

    smtputf8: bool = False
    dsn: bool = False
    size: int | None = None
    login: bool = False
    binarymime: bool = False
    recipients: int | None = None
    requiretls: bool = False


class SessionHandler(Protocol):
    """The decisions of one SMTP session.

    Attributes:
        minimal_ehlo: after a standing refusal only ENHANCEDSTATUSCODES is offered in reply to EHLO. Read at
            each EHLO, after `helo`.
    """

    minimal_ehlo: bool

    def features(self) -> Features:
        """What can be offered now. Asked at each EHLO, after `helo`."""

    async def connect(self) -> Reply | None:
        """A client has connected; the greeting is not sent yet.

        A reply that is not positive is sent as the greeting. The session goes on, but no MAIL is accepted:
        the handler's own refusal is the answer, or `550 5.7.1` if it has none. A positive reply replaces the
        greeting.
        """

    async def helo(self, name: bytes, esmtp: bool) -> Reply | None:  # noqa: FBT001 - positional by contract
        """HELO or EHLO, whenever it comes. An open transaction has been `reset` before.

        The first line of a positive reply replaces the host name in the first line of the answer.
        """

    def security_refusal(self) -> Reply | None:
        """The answer to STARTTLS and AUTH while a refusal stands; None if none does."""

    async def tls(self, session: TLSSession) -> None:
        """The connection is secured; what the client said before is forgotten.

        Called before `connect` if TLS begins with the connection. No transaction is open.
        """

    async def auth(self, credentials: Credentials) -> Reply | None:
        """The client wants to log in. None, or a reply of 235: it has; 535: the credentials are wrong."""

    def forward(self, origin: SessionInfo | None) -> None:
        """The next message comes from elsewhere, as XFORWARD told; again after each XFORWARD.

        None ends that, with the transaction or before: the client speaks for itself again.
        """

    async def mail(self, path: Path, params: Parameters) -> Reply | None:
        """MAIL. If the answer is not positive, no transaction is open, and no `reset` follows."""

    async def rcpt(self, path: Path, params: Parameters) -> Reply | None:
        """RCPT, in a transaction. Recipients beyond the limit are refused by the server and not shown."""

    async def data(self) -> Reply | None:
        """DATA, with at least one accepted recipient, before the `354`; or the first BDAT of a message.

        If the answer is not positive, the transaction is over: `reset` follows.
        """

    async def message(self, message: Message) -> Reply:
        """The message has come in completely.

        Whatever the answer is, the transaction is over and no `reset` follows (it does after an exception).
        The message, with its spool file, is closed by the server when this returns.
        """

    async def vrfy(self, address: bytes) -> Reply | None:
        """VRFY, with its argument as it came. None: `252`, which tells nothing."""

    async def unknown(self, line: bytes) -> Reply | None:
        """A command that the server does not know, as it came, without its line end. None: `500 5.5.2`.

        Not asked between two chunks of a message.
        """

    async def reset(self, reply: Reply | None = None) -> None:
        """The open transaction is over without a message.

        After RSET, HELO again, a refused DATA, a message that could not be taken, or an exception in this
        handler.

        Args:
            reply: what the client hears of the message that could not be taken: it was beyond a limit, or
                there is no room for it.
        """

    async def close(self) -> None:
        """The session is over. Called exactly once, if the handler was made at all."""


HandlerFactory = Callable[[SessionInfo], SessionHandler]
"""Makes the handler of one session. Must not block. An exception is logged and answered with `421 4.3.0`."""
