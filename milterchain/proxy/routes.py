"""The way to each kind of next hop: how lanes are opened, what the hop offers, whether it can be reached."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from milterchain.errors import NextHopError
from milterchain.proxy.introduction import IdentityMode
from milterchain.proxy.lanes import Lane, LocalLane, SMTPLane, recipients_allowed
from milterchain.proxy.maildir import Maildir
from milterchain.proxy.nexthop import Hop, LMTPHop, MaildirHop, SMTPHop
from milterchain.proxy.pool import Pool
from milterchain.proxy.relay_options import RelayOptions
from milterchain.smtp.client import SMTPClient
from milterchain.smtp.client_options import ClientOptions
from milterchain.smtp.client_tls import ClientTLS
from milterchain.smtp.handler import Features

__all__ = ["HopStatus", "Route", "make_route"]

_LOCAL_FEATURES: Final = Features(smtputf8=True)
"""What a file can keep. No DSN: nobody here could send a notification."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HopStatus:
    """What came of greeting a hop.

    Attributes:
        hop: its address.
        greeting: what it said of itself; empty if it failed or is on this machine.
        features: what it offers, None if it failed.
        extras: what else the connection can do, in words: TLS, a login, how it is told of clients.
        error: why it cannot be used, None if it can.
        seconds: how long that took.
    """

    hop: str
    greeting: str = ""
    features: Features | None = None
    extras: tuple[str, ...] = ()
    error: NextHopError | None = None
    seconds: float = 0.0


class Route(Protocol):
    """The way to one hop.

    Attributes:
        hop: its address.
        features: what it offered last; None before it was first reached.
        resting_until: when it may come first again, in the loop's time.
    """

    hop: str
    resting_until: float

    @property
    def features(self) -> Features | None:
        """See above."""

    @property
    def tells_of_clients(self) -> bool:
        """Whether the hop may be told who the client is, as far as is known of what it offers."""

    def kept(self) -> Lane | None:
        """A lane that costs nothing to open, None if there is none."""

    async def open(self) -> Lane:
        """A new lane.

        Raises:
            NextHopError: the hop cannot be used.
        """

    async def probe(self) -> HopStatus:
        """Reach the hop once, without mail."""

    async def close(self) -> None:
        """Close what is kept."""


class _SMTPRoute:
    def __init__(self, hop: SMTPHop | LMTPHop, options: RelayOptions) -> None:
        self.hop = str(hop)
        self.resting_until = 0.0
        mode = options.identity
        self._mode: IdentityMode = "xforward" if mode == "auto" and options.credentials else mode
        self._logs_in = options.credentials is not None
        self._single = isinstance(hop, LMTPHop)
        client = _client_options(hop, options.client)
        self._pool = Pool(hop, client, options.pool, options.credentials)

    @property
    def features(self) -> Features | None:
        offered = self._pool.features
        if offered is None:
            return None
        features = _features(offered)
        return replace(features, recipients=1) if self._single else features

    @property
    def tells_of_clients(self) -> bool:
        offered = self._pool.features
        return self._mode in {"auto", "xclient"} and (offered is None or b"XCLIENT" in offered)

    def kept(self) -> Lane | None:
        client = self._pool.take()
        return None if client is None else self._lane(client)

    async def open(self) -> Lane:
        return self._lane(await self._pool.open())

    def _lane(self, client: SMTPClient) -> Lane:
        return SMTPLane(self._pool, client, self._mode, single=self._single)

    async def probe(self) -> HopStatus:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            client = await self._pool.open()
        except NextHopError as error:
            return HopStatus(hop=self.hop, error=error, seconds=loop.time() - began)
        greeting, extras = str(client.greeting), self._extras(client)
        self._pool.give(client)
        return HopStatus(
            hop=self.hop,
            greeting=greeting,
            features=self.features,
            extras=extras,
            seconds=loop.time() - began,
        )

    def _extras(self, client: SMTPClient) -> tuple[str, ...]:
        extras = []
        if client.encrypted:
            extras.append("TLS, verified" if client.verified else "TLS, not verified")
        if self._logs_in:
            extras.append("logged in")
        if self.tells_of_clients:
            extras.append("told of clients by XCLIENT")
        elif self._mode in {"auto", "xforward"} and b"XFORWARD" in client.features:
            extras.append("told of clients by XFORWARD")
        return tuple(extras)

    async def close(self) -> None:
        await self._pool.close()


class _LocalRoute:
    def __init__(self, hop: str, maildir: Maildir | None) -> None:
        self.hop = hop
        self.features: Features | None = _LOCAL_FEATURES
        self.tells_of_clients = False
        self.resting_until = 0.0
        self._maildir = maildir

    def kept(self) -> Lane | None:
        return LocalLane(self.hop, self._maildir)

    async def open(self) -> Lane:
        return LocalLane(self.hop, self._maildir)

    async def probe(self) -> HopStatus:
        try:
            if self._maildir is not None:
                await self._maildir.check()
        except NextHopError as error:
            return HopStatus(hop=self.hop, error=error)
        return HopStatus(hop=self.hop, features=self.features)

    async def close(self) -> None:
        """Nothing is kept."""


def make_route(hop: Hop, options: RelayOptions) -> Route:
    """The way to a hop, by its kind."""
    if isinstance(hop, SMTPHop | LMTPHop):
        return _SMTPRoute(hop, options)
    return _LocalRoute(str(hop), Maildir(hop.path) if isinstance(hop, MaildirHop) else None)


def _client_options(hop: SMTPHop | LMTPHop, options: ClientOptions) -> ClientOptions:
    if isinstance(hop, LMTPHop):
        return replace(options, lmtp=True)
    if not hop.implicit_tls:
        return options
    return replace(options, tls=replace(options.tls or ClientTLS.of("encrypt"), implicit=True))


def _features(offered: Mapping[bytes, bytes]) -> Features:
    """What an EHLO says about the extensions that depend on the hop. SIZE 0 means no limit (RFC 1870)."""
    size = offered.get(b"SIZE", b"")
    return Features(
        smtputf8=b"SMTPUTF8" in offered,
        dsn=b"DSN" in offered,
        size=int(size) or None if size.isdigit() else None,
        binarymime={b"BINARYMIME", b"CHUNKING"} <= offered.keys(),
        recipients=recipients_allowed(offered),
        requiretls=b"REQUIRETLS" in offered,
        login=not {b"PLAIN", b"LOGIN"}.isdisjoint(offered.get(b"AUTH", b"").upper().split()),
    )
