"""One transaction with one next hop, whatever kind of hop it is.

A lane knows how to say things to its hop; which recipients, what to do about refusals and when to try again
is decided by `milterchain.proxy.relay_session`. Answers are values. A fault is a `NextHopError`, and the lane
is of no use then; `final` tells whether the hop may have the message nevertheless.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from milterchain.errors import (
    NextHopClosedError,
    NextHopError,
    NextHopLoginError,
    NextHopProtocolError,
    SMTPSyntaxError,
)
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.proxy.commands import is_binary, mail_command, rcpt_command
from milterchain.proxy.identity import Identity
from milterchain.proxy.introduction import IdentityMode, Party, introduce, trace_commands, uses_xclient
from milterchain.proxy.maildir import Maildir
from milterchain.proxy.pool import Pool
from milterchain.smtp.client import SMTPClient

__all__ = ["Lane", "LocalLane", "SMTPLane", "accepts", "recipients_allowed"]

RESET_TIMEOUT = 10.0
"""Seconds for the reply to an RSET that only tidies up: closing is as good."""

_RECIPIENT_MAX: Final = re.compile(rb"(?:.* )?RCPTMAX=([1-9][0-9]{0,5})(?: .*)?", re.IGNORECASE)
_RECIPIENT_OK: Final = Reply.of(250, "2.1.5 Ok")
_SENDER_OK: Final = Reply.of(250, "2.1.0 Ok")
_STORED: Final = Reply.of(250, "2.0.0 Ok: stored")
_DISCARDED: Final = Reply.of(250, "2.0.0 Ok: discarded")


def accepts(reply: Reply) -> bool:
    """Whether MAIL, RCPT or a message was accepted."""
    return 200 <= reply.code < 300


def recipients_allowed(features: Mapping[bytes, bytes]) -> int | None:
    """How many recipients one message may have (RFC 9422); None if that was not told, or cannot be read."""
    match = _RECIPIENT_MAX.fullmatch(features.get(b"LIMITS", b""))
    return int(match[1]) if match else None


class Lane(Protocol):
    """What a transaction asks of a next hop.

    Attributes:
        hop: its address, for logs.
        final: the message was handed over completely; if no answer came the hop may have it.
        told: MAIL was accepted, and the transaction is open.
        party: whom the lane belongs to and must stay with; None if it can serve anybody.
        identified: the hop takes our connection for the client's own: it decides by the client's address.
        single: a message can have one recipient only, as LMTP answers each recipient after the message, and
            SMTP has one answer for all.
        recipients: how many a message can have; None if the hop does not say.
    """

    hop: str
    told: bool
    party: Party | None
    identified: bool
    single: bool

    @property
    def final(self) -> bool:
        """See above."""

    @property
    def usable(self) -> bool:
        """Whether it can be used for a next transaction, as far as is known."""

    @property
    def recipients(self) -> int | None:
        """See above."""

    def serves(self, party: Party) -> bool:
        """Whether the lane belongs to this party."""

    async def introduce(self, party: Party) -> Reply | None:
        """Say whom the lane is for, before the first transaction. Returns the hop's refusal of that client.

        Raises:
            NextHopError: the hop cannot be used for this client.
        """

    async def begin(
        self, sender: Path, recipients: Sequence[Path], *, size: int | None = None
    ) -> tuple[Reply, list[Reply]]:
        """Begin a transaction, in place of the one that is open. Returns the answers to all."""

    async def add(self, recipient: Path) -> Reply:
        """Name one more recipient."""

    async def deliver(self, envelope: Envelope, message: Message) -> Reply:
        """Hand over the message to those recipients that were accepted, and return the hop's answer."""

    async def leave(self) -> None:
        """End the transaction; the connection is given back unless the lane belongs to somebody."""

    def part(self) -> None:
        """Say goodbye. For lanes that belong to somebody who is gone."""

    def drop(self) -> None:
        """Close at once, in any state."""


class SMTPLane:
    """A lane over an SMTP connection of a pool.

    Args:
        pool: where it is from.
        client: the connection.
        mode: how the hop learns of clients.
        single: see `Lane`.
    """

    def __init__(
        self, pool: Pool, client: SMTPClient, mode: IdentityMode = "none", *, single: bool = False
    ) -> None:
        self.hop = str(pool.hop)
        self.single = single
        self.told = False
        self.party: Party | None = None
        self.identified = False
        self._pool = pool
        self._client = client
        self._mode = mode
        self._identity: Identity | None = None

    @property
    def final(self) -> bool:
        """See `Lane`."""
        return self._client.in_doubt

    @property
    def usable(self) -> bool:
        """See `Lane`."""
        return self._client.usable

    @property
    def recipients(self) -> int | None:
        """See `Lane`."""
        return 1 if self.single else recipients_allowed(self._client.features)

    def serves(self, party: Party) -> bool:
        """See `Lane`. Who the client is does not matter where it was not told."""
        if self.party is None or self.party.credentials != party.credentials:
            return False
        if self.identified:
            return self.party.identity == party.identity
        return not uses_xclient(self._client, party.identity, self._mode)

    async def introduce(self, party: Party) -> Reply | None:
        """See `Lane`: XCLIENT and AUTH bind it; XFORWARD is said with each MAIL."""
        self._identity = party.identity
        if self.serves(party):
            return None
        xclient = uses_xclient(self._client, party.identity, self._mode)
        if not xclient and party.credentials is None:
            return None
        self.party = party
        refusal = await introduce(self._client, party, xclient=xclient)
        self.identified = xclient and refusal is None
        return refusal

    async def begin(
        self, sender: Path, recipients: Sequence[Path], *, size: int | None = None
    ) -> tuple[Reply, list[Reply]]:
        """See `Lane`: RSET if a transaction is open, XFORWARD, MAIL and RCPTs are one group of commands."""
        features = self._client.features
        utf8 = not all(path.address.isascii() for path in (sender, *recipients))
        try:
            mail = mail_command(sender, features, size=size, utf8=utf8)
        except SMTPSyntaxError as error:
            refusal = _refusal(error)
            return refusal, [refusal] * len(recipients)
        replies: list[Reply | None] = []
        trace = [] if self.identified else trace_commands(self._client, self._identity, self._mode)
        commands = [*([b"RSET"] if self.told else []), *trace, mail]
        for recipient in recipients:
            try:
                commands.append(rcpt_command(recipient, features))
                replies.append(None)
            except SMTPSyntaxError as error:
                replies.append(_refusal(error))
        reset = self.told
        answers = iter(await self._ask(*commands))
        if reset and not accepts(reply := next(answers)):
            raise NextHopProtocolError(f"answered RSET with {reply}")
        for _ in trace:
            next(answers)  # only the hop's log is the poorer for a refusal
        sender_reply = next(answers)
        self.told = accepts(sender_reply)
        return sender_reply, [reply or next(answers) for reply in replies]

    async def add(self, recipient: Path) -> Reply:
        """See `Lane`."""
        try:
            command = rcpt_command(recipient, self._client.features)
        except SMTPSyntaxError as error:
            return _refusal(error)
        return (await self._ask(command))[0]

    async def deliver(self, envelope: Envelope, message: Message) -> Reply:
        """See `Lane`."""
        if any(is_binary(argument) for argument in envelope.sender.args):
            reply = await self._client.chunk(message.chunks(), message.size)
        else:
            reply = await self._client.data(message.chunks())
        # After a refused DATA servers differ on whether the transaction is still open: RSET settles it.
        self.told = not accepts(reply)
        return reply

    async def leave(self) -> None:
        """See `Lane`. A hop that does not answer RSET as it should is left at once."""
        if self.told and self._client.usable:
            try:
                (reply,) = await self._client.exchange(b"RSET", within=RESET_TIMEOUT)
            except NextHopError:
                return
            if not accepts(reply):
                self.drop()
                return
            self.told = False
        if self.party is None:
            self._pool.give(self._client)

    def part(self) -> None:
        """See `Lane`."""
        self._pool.leave(self._client)

    def drop(self) -> None:
        """See `Lane`."""
        self._client.close()

    async def _ask(self, *commands: bytes) -> tuple[Reply, ...]:
        replies = await self._client.exchange(*commands)
        for reply in replies:
            if reply.closes:
                raise NextHopClosedError(f"ended the session: {reply}")
            if 300 <= reply.code < 400:
                raise NextHopProtocolError(f"answered MAIL or RCPT with {reply}")
        return replies


class LocalLane:
    """A lane that ends on this machine: in a Maildir, or nowhere."""

    def __init__(self, hop: str, maildir: Maildir | None) -> None:
        self.hop = hop
        self.final = False
        self.told = False
        self.party: Party | None = None
        self.identified = False
        self.single = False
        self.recipients = None
        self.usable = True
        self._maildir = maildir

    def serves(self, party: Party) -> bool:  # noqa: ARG002
        """See `Lane`. It belongs to nobody."""
        return False

    async def introduce(self, party: Party) -> Reply | None:
        """See `Lane`. Nobody can log in here, and a file has no rules of its own."""
        if party.credentials is not None:
            raise NextHopLoginError(f"{self.hop} takes no logins")
        return None

    async def begin(
        self,
        sender: Path,  # noqa: ARG002 - everybody may send
        recipients: Sequence[Path],
        *,
        size: int | None = None,  # noqa: ARG002 - the disk will tell
    ) -> tuple[Reply, list[Reply]]:
        """See `Lane`."""
        self.told = True
        return _SENDER_OK, [_RECIPIENT_OK] * len(recipients)

    async def add(self, recipient: Path) -> Reply:  # noqa: ARG002 - everybody is known
        """See `Lane`."""
        return _RECIPIENT_OK

    async def deliver(self, envelope: Envelope, message: Message) -> Reply:
        """See `Lane`."""
        if self._maildir is None:
            return _DISCARDED
        await self._maildir.deliver(envelope, message)
        return _STORED

    async def leave(self) -> None:
        """See `Lane`."""

    def part(self) -> None:
        """See `Lane`."""

    def drop(self) -> None:
        """See `Lane`."""


def _refusal(error: SMTPSyntaxError) -> Reply:
    text = {
        "5.6.7": "The next hop does not support internationalized mail",
        "4.6.3": "The next hop does not support binary messages",
        "4.3.3": "The next hop does not support delivery status notifications",
        "5.7.30": "REQUIRETLS support required",
    }.get(error.status, "Bad address or parameters")
    return Reply.of(error.code, f"{error.status} {text}")
