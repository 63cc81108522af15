"""One SMTP session: what the server asks is answered by the chain and by the transaction that is open.

A verdict at connect or HELO stands for the session (or until the next HELO); `chain.verdict` knows what it
means for each part of the dialogue. What a milter refuses is logged where it is refused, and again for each
sender that this keeps out.

The client is looked up before the milters hear of it. A message that XFORWARD tells of is another client's,
to the milters, in the log and for the next hop. Who may send where depends on who hands it in, and our
Received header names that one, too.
"""

from typing import Final

from milterchain.chain.client import AuthInfo
from milterchain.chain.session import ChainSession
from milterchain.chain.values import protocol_name
from milterchain.chain.verdict import (
    Kind,
    Verdict,
    auth_reply,
    banner_reply,
    helo_reply,
    mail_reply,
    minimal_ehlo,
    unknown_reply,
)
from milterchain.errors import NextHopError
from milterchain.mail.envelope import Path
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.proxy.caller import Caller, client_info, tls_info
from milterchain.proxy.identity import identity_of
from milterchain.proxy.logs import ChainLog, text
from milterchain.proxy.transaction import Origin, Services, Transaction
from milterchain.smtp import client_auth
from milterchain.smtp.handler import Features, Parameters, SessionInfo
from milterchain.smtp.peer import counted_as
from milterchain.smtp.sasl import Credentials
from milterchain.smtp.tls import TLSSession

__all__ = ["ProxySession"]

WRONG_LOGIN: Final = Reply.of(535, "5.7.8 Error: authentication failed")
NO_LOGIN: Final = Reply.of(454, "4.7.0 Temporary authentication failure")
TOO_MANY_FAILED: Final = Reply.of(454, "4.7.0 Error: too many failed logins, try again later")


class ProxySession:
    """A `SessionHandler`.

    Attributes:
        minimal_ehlo: a milter has refused the client for good.
    """

    def __init__(self, info: SessionInfo, services: Services) -> None:
        self.minimal_ehlo = False
        self._services = services
        self._log = services.log.bind(session=services.queue_ids().decode("ascii"))
        self._info = info
        self._own = self._told = Caller(client=client_info(info))
        self._forwarded: Caller | None = None
        self._chain_log = ChainLog(self._log)
        self._chain: ChainSession = services.chain.session(self._own.client, observer=self._chain_log)
        self._hops = services.next_hops.session()
        trusted = services.access.trusts(info.family, info.address)
        self._trusted = trusted or info.login is not None
        # Behind one trusted address are many users, who must not lock each other out.
        self._guesser = None if trusted or info.family not in {"4", "6"} else counted_as(info)
        self._verify = info.auth.verify if info.auth is not None else None
        self._tls: TLSSession | None = None
        self._transaction: Transaction | None = None
        self._messages = 0

    def features(self) -> Features:
        """What the next hop was last seen to offer."""
        return self._services.next_hops.features or Features()

    async def connect(self) -> Reply | None:
        """Look the client up, and ask the milters about it."""
        await self._look_up()
        verdict = await self._chain.connect()
        self.minimal_ehlo = minimal_ehlo(verdict)
        self._tell("connect", verdict)
        return banner_reply(verdict, self._services.hostname)

    async def helo(self, name: bytes, esmtp: bool) -> Reply | None:  # noqa: FBT001 - positional by contract
        """Ask the milters about the name, unless the client is refused anyway."""
        if not self._own.helo:
            self._log.debug(
                "client", client=self._told.client.address, port=self._told.client.port, helo=text(name)
            )
        if self._told is not self._own and self._told != self._own:
            await self._begin_anew(self._own)
        self._know(self._own.greeted(name, esmtp=esmtp))
        refused_before = self._chain.standing.decides
        verdict = await self._chain.helo(name, esmtp=esmtp)
        if not refused_before:
            self._tell("helo", verdict)
        self.minimal_ehlo = minimal_ehlo(verdict)
        return helo_reply(verdict)

    def security_refusal(self) -> Reply | None:
        """Repeat a refusal that stands."""
        return auth_reply(self._chain.standing)

    async def tls(self, session: TLSSession) -> None:
        """Begin again; milters hear of it at the next HELO."""
        self._tls = session
        info = tls_info(session)
        if self._know(self._own.greeted(b"", esmtp=False).secured(info)):
            self._chain.tls(info)
        self._log.debug(
            "tls", client=self._own.client.address, version=session.version, cipher=session.cipher
        )

    async def auth(self, credentials: Credentials) -> Reply | None:
        """Ask who knows the passwords. Whoever has logged in may send to anybody."""
        login = self._log.bind(
            client=self._own.client.address, mechanism=credentials.mechanism, user=text(credentials.login)
        )
        try:
            refusal = await self._try_within_limits(credentials)
        except NextHopError as error:
            login.warning("login failed", error=str(error))
            return NO_LOGIN
        if refusal is not None:
            login.warning("login failed", reply=str(refusal))
            return refusal
        login.info("login")
        self._trusted = True
        info = AuthInfo(mechanism=credentials.mechanism.encode("ascii"), identity=credentials.login)
        if self._know(self._own.logged_in(info)):
            self._chain.auth(info)
        return None

    async def _try_within_limits(self, credentials: Credentials) -> Reply | None:
        failed, client = self._services.failed_logins, self._guesser
        if client is not None and failed.blocks(client):
            return TOO_MANY_FAILED
        refusal = await self._try(credentials)
        if client is not None and refusal is not None and refusal.code >= 500:
            failed.add(client)
        return refusal

    async def _try(self, credentials: Credentials) -> Reply | None:
        """The refusal of a login, None if it is right."""
        if self._verify is None:
            reply = await self._hops.login(
                client_auth.Credentials(
                    user=credentials.login, password=credentials.password, authorize=credentials.identity
                ),
                identity_of(self._own.client, self._own.helo, esmtp=self._own.esmtp),
            )
            return None if reply.positive else reply
        # Nobody may act for somebody else: the file does not say who could.
        allowed = credentials.identity in {b"", credentials.login}
        return None if allowed and await self._verify(credentials) else WRONG_LOGIN

    def forward(self, origin: SessionInfo | None) -> None:
        """Remember where the next message comes from; the milters hear of it with the message."""
        self._forwarded = None if origin is None else Caller.forwarded(origin)
        if origin is not None:
            self._log.debug(
                "forwarded",
                client=origin.address,
                port=origin.port,
                helo=text(origin.helo),
                ident=text(origin.ident),
            )

    async def mail(self, path: Path, params: Parameters) -> Reply | None:
        """Begin a transaction, if no refusal stands; the next hop is not asked yet."""
        sender = self._forwarded or self._own
        if sender is not self._told and sender != self._told:
            await self._begin_anew(sender)
            if sender.helo and not self._chain.standing.decides:
                self._tell("helo", await self._chain.helo(sender.helo, esmtp=sender.esmtp))
        if self._chain.standing.decides:
            self._tell("mail", self._chain.standing, sender=text(path.bare))
            return mail_reply(self._chain.standing)
        queue_id = self._services.queue_ids()
        if self._own.client.auth is None:
            path = _without_claim(path)
        log = self._chain_log.log = self._log.bind(queue_id=queue_id.decode("ascii"))
        verdict = await self._chain.mail(path, queue_id)
        if verdict.decides and verdict.kind is not Kind.DISCARD:
            self._tell("mail", verdict, sender=text(path.bare))
            return verdict.reply
        origin = Origin(
            client=sender.client,
            trusted=self._trusted,
            helo=sender.helo,
            handed_in_by=self._own,
            protocol=_protocol(self._own, params),
            queue_id=queue_id,
            tls=self._tls,
        )
        identity = identity_of(sender.client, sender.helo, esmtp=sender.esmtp, queue_id=queue_id)
        hop = self._hops.begin(path, identity)
        self._transaction = Transaction(self._services, self._chain, origin, hop, path, log)
        if verdict.kind is Kind.DISCARD:
            self._transaction.discard(verdict)
        return None

    async def rcpt(self, path: Path, params: Parameters) -> Reply | None:  # noqa: ARG002 - in `path.args` too
        """Ask for one recipient."""
        return await self._open.rcpt(path)

    async def data(self) -> Reply | None:
        """Ask the milters whether the message may come."""
        return await self._open.data()

    async def message(self, message: Message) -> Reply:
        """Bring the message through the milters to the next hop."""
        transaction, self._transaction = self._open, None
        self._messages += 1
        try:
            return await transaction.message(message)
        finally:
            self._chain_log.log = self._log

    async def vrfy(self, address: bytes) -> Reply | None:  # noqa: ARG002 - nobody is looked up
        """Repeat a refusal that stands."""
        return mail_reply(self._chain.standing)

    async def unknown(self, line: bytes) -> Reply | None:
        """Ask the milters about a line that is no command."""
        if self._chain.standing.decides:
            return None
        verdict = await self._chain.unknown(line)
        self._tell("unknown", verdict)
        return unknown_reply(verdict)

    async def reset(self, reply: Reply | None = None) -> None:
        """End the transaction without a message, or with one that could not be taken."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            if reply is not None:
                transaction.not_taken(reply)
            await transaction.abort()
        self._chain_log.log = self._log

    async def close(self) -> None:
        """Let go of all that the session holds."""
        try:
            if self._transaction is not None:
                self._transaction.broken_off()
            await self.reset()
        finally:
            await self._chain.close()
            await self._hops.close()
        self._log.debug(
            "disconnect",
            client=self._told.client.address,
            port=self._told.client.port,
            messages=self._messages,
        )

    async def _look_up(self) -> None:
        info, lookup = self._info, self._services.lookup
        if info.peer:
            self._log.debug("client of a proxy", client=info.address, port=info.port, proxy=info.peer)
        if info.names is None and lookup is not None and info.family in {"4", "6"}:
            self._own = self._told = self._own.named(await lookup(info.address))
            self._chain.identify(self._own.client)

    def _know(self, own: Caller) -> bool:
        """Remember more of the client that is connected; whether the milters' present session is about it."""
        present = self._told is self._own or self._told == self._own
        if present:
            self._told = own
        self._own = own
        return present

    async def _begin_anew(self, caller: Caller) -> None:
        """Begin new sessions with the milters: they hear of a client only at the beginning."""
        predecessor, self._told = self._chain, caller
        self._chain = self._services.chain.session(caller.client, observer=self._chain_log)
        await predecessor.close()
        self._tell("connect", await self._chain.connect())

    @property
    def _open(self) -> Transaction:
        assert self._transaction is not None, "the server takes no RCPT or DATA without MAIL"
        return self._transaction

    def _tell(self, stage: str, verdict: Verdict, **more: object) -> None:
        if verdict.decides:
            reply = str(verdict.reply) if verdict.reply else verdict.kind.name.lower()
            self._chain_log.log.info(
                "refused",
                stage=stage,
                client=self._told.client.address,
                helo=text(self._told.helo),
                milter=verdict.milter,
                reply=reply,
                **more,
            )


def _protocol(caller: Caller, params: Parameters) -> bytes:
    """What the Received header calls the protocol (RFC 3848, RFC 6531 section 4.3)."""
    client = caller.client
    name = protocol_name(esmtp=caller.esmtp, tls=client.tls is not None, auth=client.auth is not None)
    return name.replace(b"ESMTP", b"UTF8SMTP") if b"SMTPUTF8" in params else name


def _without_claim(path: Path) -> Path:
    """The sender, without a word on who wrote the mail: only who has logged in is believed (RFC 4954 5)."""
    if not path.args:
        return path
    return Path(path.address, tuple(b"AUTH=<>" if arg[:5].upper() == b"AUTH=" else arg for arg in path.args))
