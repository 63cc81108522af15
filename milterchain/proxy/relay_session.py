"""What belongs to one client on the next hops, and what one SMTP transaction does with them.

Recipients are asked for live: the first one brings MAIL with it, in one write. When the message is there, and
the milters are done, the hop is brought in line with the envelope as it is then: if that differs from what
the hop was told, it gets RSET, MAIL and all RCPTs in one group. Then DATA, once the hop has accepted whom it
must.

What a hop answers is a value, and stands. A refused MAIL is the answer to the RCPT that brought it (Postfix's
smtpd answers in the same place); the next RCPT tries MAIL again. 421 and 521 are no answers but the end of
the session, except to the final dot.

What goes wrong is tried again only while nothing can have been accepted, that is before the final dot: on a
fresh connection, to a hop that has not failed lately if there is one. What the hop knew is told again; if it
refuses now whom it accepted before, that is an error. After the final dot nothing is tried again: the client
will send the message once more and the hop may get it twice (RFC 1047). A hop that lets a deadline pass is
not tried again either: the client's own patience is used up by then.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from milterchain.errors import (
    NextHopClosedError,
    NextHopConnectError,
    NextHopError,
    NextHopProtocolError,
)
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.proxy.delivery import ONE_AT_A_TIME, TOO_MANY, Delivery, deliver_each
from milterchain.proxy.identity import Identity
from milterchain.proxy.introduction import Party
from milterchain.proxy.lanes import Lane, accepts
from milterchain.proxy.relay_options import RelayOptions
from milterchain.proxy.relay_replies import as_final, as_temporary
from milterchain.smtp.client_auth import Credentials
from milterchain.smtp.handler import Features

__all__ = ["Hops", "NextHopSession", "NextHopTransaction"]

REPLACEMENTS = 2
"""Lanes that one transaction may lose: a kept connection that had died, and a hop that dies."""

_T = TypeVar("_T")
_LOGGED_IN: Final = Reply.of(235, "2.7.0 Authentication successful")


class Hops(Protocol):
    """What sessions need of `milterchain.proxy.relay.NextHops`."""

    options: RelayOptions

    @property
    def features(self) -> Features | None:
        """What was offered at the last greeting of any hop."""

    @property
    def tells_of_clients(self) -> bool:
        """Whether a hop may be told who the client is."""

    async def lane(self, *, fresh: bool = False) -> Lane:
        """Find a hop."""

    def rest(self, hop: str) -> None:
        """Prefer other hops for a while."""


class NextHopTransaction(Protocol):
    """One transaction of a client, seen from the next hop. The methods are called one at a time.

    Attributes:
        hop: the address of the hop that was spoken to last; None if none could be.
    """

    hop: str | None

    @property
    def features(self) -> Features | None:
        """What the hops were last seen to offer."""

    async def knows_client(self) -> bool:
        """Whether the hop decides who may relay: it has been told who the client is, and believes it."""

    async def rcpt(self, path: Path, *, foreign: bool = False) -> Reply:
        """Ask for one recipient.

        Args:
            path: the argument of RCPT.
            foreign: only a hop that knows the client may be asked, from now on.

        Raises:
            NextHopError: nobody can be asked; the transaction may go on.
        """

    async def send(self, envelope: Envelope, message: Message) -> Delivery:
        """Relay the message to the envelope as it is now. Ends the transaction.

        Raises:
            NextHopError: nobody took it for certain. `failure_reply` has the words for the client.
            ValueError: the envelope has no recipient.
        """

    async def abort(self) -> None:
        """End the transaction. May be called in any state, and again."""


class NextHopSession:
    """What belongs to one client: its login, and a connection that no other client may use.

    One method at a time, and no transaction may be open when `login` is called; `close` comes last.
    """

    def __init__(self, hops: Hops) -> None:
        self.hops = hops
        self._credentials: Credentials | None = None
        self._kept: Lane | None = None

    def begin(self, sender: Path, identity: Identity | None = None) -> NextHopTransaction:
        """Begin a transaction. Nothing is sent yet.

        Args:
            sender: the argument of MAIL.
            identity: what the hop may learn of the client.
        """
        return _Transaction(self, sender, self._party(identity))

    async def login(self, credentials: Credentials, identity: Identity | None = None) -> Reply:
        """Try a login on a hop. If it succeeds, the connection stays with this client.

        Returns 235, or the hop's refusal. The login is made again if a later message needs a new connection.

        Raises:
            NextHopError: no hop can be asked, or none takes logins.
        """
        self._part()
        party = Party(identity=identity and identity.without_login(), credentials=credentials)
        lost = 0
        while True:
            lane = await self.hops.lane(fresh=lost > 0)
            try:
                refusal = await lane.introduce(party)
            except (NextHopClosedError, NextHopProtocolError):
                lane.drop()
                if lost >= REPLACEMENTS:
                    raise
                lost += 1
                continue
            except BaseException:
                lane.drop()
                raise
            if refusal is not None:
                lane.part()
                return as_final(refusal)
            self._credentials, self._kept = credentials, lane
            return _LOGGED_IN

    async def lane(self, party: Party, *, fresh: bool) -> Lane:
        """A lane for a transaction: the one that was kept, if it belongs to this party, or another one.

        Raises:
            NextHopConnectError: no hop can be used.
        """
        kept, self._kept = self._kept, None
        if kept is not None and not fresh and kept.usable and kept.serves(party):
            return kept
        if kept is not None:
            kept.part()
        return await self.hops.lane(fresh=fresh)

    def keep(self, lane: Lane) -> None:
        """Keep a lane after a transaction, if it must not serve others."""
        if lane.party is not None:
            self._kept = lane

    async def close(self) -> None:
        """The client is gone. May be called again."""
        self._part()

    def _party(self, identity: Identity | None) -> Party:
        # Whoever logs in on the hop itself must not be introduced as logged in already.
        if identity is not None and self._credentials is not None:
            identity = identity.without_login()
        return Party(identity=identity, credentials=self._credentials)

    def _part(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.part()


class _Transaction:
    """See `NextHopTransaction`."""

    def __init__(self, session: NextHopSession, sender: Path, party: Party) -> None:
        self._session = session
        self._hops = session.hops
        self._party = party
        self._sender = sender
        self._accepted: list[Path] = []
        self._foreign = False
        self.hop: str | None = None
        self._lane: Lane | None = None
        self._replacements = 0

    @property
    def features(self) -> Features | None:
        return self._hops.features

    async def knows_client(self) -> bool:
        if not self._hops.tells_of_clients:
            return False
        try:
            lane = await self._have_lane()
            refusal = await lane.introduce(self._party)
        except NextHopError:
            if self._lane is not None:
                self._drop(self._lane)
            return False
        if refusal is not None:
            self._part(lane)
        return _decides(lane)

    async def rcpt(self, path: Path, *, foreign: bool = False) -> Reply:
        self._foreign |= foreign
        reply = await self._on_a_lane(lambda lane: self._rcpt(lane, path))
        if accepts(reply):
            self._accepted.append(path)
        return reply

    async def send(self, envelope: Envelope, message: Message) -> Delivery:
        if not envelope.recipients:
            raise ValueError("nobody to send to")
        delivery = await self._on_a_lane(lambda lane: self._send(lane, envelope, message))
        await self.abort()
        return delivery

    async def abort(self) -> None:
        lane, self._lane = self._lane, None
        self._accepted = []
        if lane is not None:
            await lane.leave()
            self._session.keep(lane)

    async def _have_lane(self) -> Lane:
        if self._lane is None:
            self.hop = None
            self._lane = await self._session.lane(self._party, fresh=self._replacements > 0)
            self.hop = self._lane.hop
        return self._lane

    async def _on_a_lane(self, work: Callable[[Lane], Awaitable[_T]]) -> _T:
        """Do something with a hop; with another one if the connection breaks, unless it may have the mail."""
        while True:
            lane = await self._have_lane()
            try:
                return await work(lane)
            except (NextHopClosedError, NextHopProtocolError) as error:
                if lane.final:
                    self._drop(lane)
                    raise
                self._replace(lane, error)
            except BaseException:
                self._drop(lane)
                raise

    async def _introduce(self, lane: Lane) -> Reply | None:
        """Say whom it is for; after a refusal, which is returned, the lane is gone."""
        refusal = await lane.introduce(self._party)
        if refusal is None and self._foreign and not _decides(lane):
            raise NextHopConnectError(f"{lane.hop} cannot decide for whom this client may relay")
        if lane.single and len(self._accepted) > 1:  # on a hop that took them all, and is gone
            raise NextHopConnectError(f"{lane.hop} takes one recipient at a time")
        if refusal is not None:
            self._part(lane)
        return refusal

    def _drop(self, lane: Lane) -> None:
        self._lane = None
        lane.drop()

    def _part(self, lane: Lane) -> None:
        self._lane = None
        lane.part()

    def _replace(self, lane: Lane, error: NextHopError) -> None:
        """Go on without this lane, unless too many have been lost."""
        self._drop(lane)
        if self._replacements:
            self._hops.rest(lane.hop)
        if self._replacements >= REPLACEMENTS:
            raise error
        self._replacements += 1

    async def _rcpt(self, lane: Lane, path: Path) -> Reply:
        refusal = await self._introduce(lane)
        if refusal is not None:
            return refusal
        if lane.recipients is not None and len(self._accepted) >= lane.recipients:
            return ONE_AT_A_TIME if lane.single else TOO_MANY
        if lane.told:
            return await lane.add(path)
        mail, replies = await lane.begin(self._sender, [*self._accepted, path])
        if self._accepted and not all(map(accepts, [mail, *replies[:-1]])):
            raise NextHopError(f"{lane.hop} does not accept again what was accepted before")
        return replies[-1] if accepts(mail) else mail

    async def _send(self, lane: Lane, envelope: Envelope, message: Message) -> Delivery:
        refusal = await self._introduce(lane)
        if refusal is not None:
            return Delivery(reply=as_temporary(refusal) if self._accepted else refusal, hop=lane.hop)
        refused: tuple[tuple[Path, Reply], ...] = ()
        if not (lane.told and self._is_told(envelope)):
            recipients = envelope.recipients
            mail, replies = await lane.begin(envelope.sender, recipients, size=message.size)
            if not accepts(mail):
                return Delivery(reply=as_temporary(mail) if self._accepted else mail, hop=lane.hop)
            refused = tuple(
                (path, reply) for path, reply in zip(recipients, replies, strict=True) if not accepts(reply)
            )
            if refused and (reply := self._refusal(refused, len(recipients))) is not None:
                return Delivery(reply=reply, hop=lane.hop, refused=refused)
        if lane.single and len(envelope.recipients) - len(refused) > 1:
            if not self._accepted and self._hops.options.on_refused_added_recipient == "tempfail":
                raise NextHopConnectError(f"{lane.hop} takes one recipient at a time")
            return await deliver_each(lane, envelope, message, refused)
        return Delivery(reply=as_final(await lane.deliver(envelope, message)), hop=lane.hop, refused=refused)

    def _is_told(self, envelope: Envelope) -> bool:
        told = tuple(self._accepted)
        return envelope.sender == self._sender and (
            envelope.recipients == told or Counter(envelope.recipients) == Counter(told)
        )

    def _refusal(self, refused: Sequence[tuple[Path, Reply]], recipients: int) -> Reply | None:
        """What refused recipients mean for the message; None: it goes to the others."""
        for path, reply in refused:
            if path in self._accepted:
                return as_temporary(reply)
        if self._hops.options.on_refused_added_recipient == "log" and len(refused) < recipients:
            return None
        return as_temporary(refused[0][1])


def _decides(lane: Lane) -> bool:
    # A host that takes LMTP delivers: that it knows a recipient is no permission to relay.
    return lane.identified and not lane.single
