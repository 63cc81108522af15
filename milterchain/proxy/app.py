"""The application: a configuration becomes listeners, milters and next hops; it starts, drains and stops.

`App` is one proxy. `run_proxy` runs one until SIGTERM or SIGINT: then it takes no more connections, lets open
messages come to their end for `DRAIN` seconds, and stops. A second signal stops it at once.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, Self

from milterchain.chain.breaker import BreakerOptions
from milterchain.chain.conditions import Conditions, domains
from milterchain.chain.observer import Observer
from milterchain.chain.session import Chain
from milterchain.chain.settings import MESSAGE_SIZE, DefaultAction, MilterSettings
from milterchain.config import Config, DNSConfig, MilterConfig
from milterchain.errors import ConfigurationError
from milterchain.proxy import descriptors
from milterchain.proxy.access import AccessRule
from milterchain.proxy.breaker_notice import BreakerNotice
from milterchain.proxy.failed_logins import FailedLogins
from milterchain.proxy.holding import Holding
from milterchain.proxy.listeners import build_listeners
from milterchain.proxy.logs import configure, get_logger
from milterchain.proxy.lookup import DNSLookup, Lookup, Server
from milterchain.proxy.next_hops import build_next_hops
from milterchain.proxy.quarantine import Quarantine
from milterchain.proxy.session import ProxySession
from milterchain.proxy.transaction import Services
from milterchain.smtp.handler import SessionHandler, SessionInfo
from milterchain.smtp.options import Listener, ServerOptions
from milterchain.smtp.server import SMTPServer

__all__ = [
    "DRAIN",
    "App",
    "build_chain",
    "build_holding",
    "build_lookup",
    "milter_settings",
    "run",
    "run_proxy",
    "serve",
]

DRAIN: Final = 60.0
"""Seconds that open messages have after SIGTERM; below the 90 after which systemd kills."""

FIRST_LOOK: Final = 3.0
"""Seconds that the start may wait for the next hops to say what they offer."""


GARBAGE: Final = 10_000
"""Objects made before the garbage collector looks for cycles. A session leaves few, and makes many objects
that go by themselves: at Python's 700 it looks several times a message and finds next to nothing (measured:
5 % of the CPU time)."""


def milter_settings(milter: MilterConfig, message_size: int = MESSAGE_SIZE) -> MilterSettings:
    """What the chain needs to know of one milter."""
    return MilterSettings(
        name=milter.name,
        endpoint=milter.address,
        default_action=DefaultAction(milter.default_action),
        connect_timeout=milter.connect_timeout,
        command_timeout=milter.command_timeout,
        content_timeout=milter.content_timeout,
        # There never was a version 5; 4 is all that a peer can mean by it.
        version=4 if milter.protocol == 5 else milter.protocol,
        header_index=milter.header_index,
        on_rejected_recipient=milter.on_rejected_recipient,
        pipeline=milter.pipeline,
        reuse=milter.reuse,
        message_size=message_size,
        observed=milter.mode == "observe",
        conditions=Conditions(
            clients=milter.clients,
            not_clients=milter.not_clients,
            listeners=frozenset(name.encode("utf-8") for name in milter.listeners),
            authenticated=milter.authenticated,
            senders=domains(milter.sender_domains),
            recipients=domains(milter.recipient_domains),
        ),
        macros=milter.macros,
    )


def build_chain(
    config: Config, observer: Observer | None = None, notice: BreakerNotice | None = None
) -> Chain:
    """The milters of a configuration.

    Args:
        config: the configuration.
        observer: hears of all sessions.
        notice: tells of milters that are left alone; without it none ever is.
    """
    breaker = BreakerOptions(failures=config.breaker.failures, rest=config.breaker.rest)
    return Chain(
        [milter_settings(milter, config.limits.message_size) for milter in config.milter],
        hostname=config.hostname.encode("ascii"),
        message_timeout=config.limits.message_timeout,
        observer=observer,
        breaker=breaker if notice else None,
        on_breaker=notice or (lambda _: None),
    )


def build_holding(config: Config) -> Holding:
    """What becomes of messages that are to be held."""
    quarantine = config.quarantine
    next_hops = None
    if quarantine.action == "next-hop":
        relay = config.relay.model_copy(
            # The login is the smarthost's business, and nobody else's.
            update={
                "next_hop": (quarantine.next_hop,),
                "on_refused_added_recipient": "tempfail",
                "auth": None,
            }
        )
        next_hops = build_next_hops(config.model_copy(update={"relay": relay}))
    return Holding(quarantine.action, store=Quarantine(quarantine.directory), next_hops=next_hops)


def server_options(config: Config) -> ServerOptions:
    """What the front end allows. The number of connections is not limited for trusted clients."""
    limits = config.limits
    return ServerOptions(
        hostname=config.hostname.encode("ascii"),
        message_size=limits.message_size,
        recipients=limits.recipients,
        connections=limits.connections,
        connections_per_client=limits.connections_per_client,
        unlimited_clients=config.access.trusted_networks,
        command_timeout=limits.command_timeout,
        errors=limits.errors,
        received_hops=limits.received_hops,
        mails=limits.messages_per_connection,
    )


def build_lookup(config: DNSConfig) -> Lookup | None:
    """What finds the names of clients; None if nobody is to be asked, or can be."""
    if not config.lookup:
        return None
    try:
        return DNSLookup([Server(*server) for server in config.servers], config.timeout)
    except OSError as error:
        get_logger().warning("clients are not looked up", error=str(error))
        return None


class App:
    """One proxy, as an async context manager: it listens inside, and leaving stops it at once.

    Raises:
        ConfigurationError: a file that the configuration names cannot be used.

    Attributes:
        config: what it does.
        addresses: where it listens, with the ports that the system chose.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.addresses: tuple[Listener, ...] = ()
        self._listeners = build_listeners(config.listen)
        self._next_hops = build_next_hops(config)
        self._holding = build_holding(config)
        self._services = Services(
            chain=build_chain(config, notice=BreakerNotice(config.breaker.directory)),
            next_hops=self._next_hops,
            access=AccessRule(config.access.trusted_networks, config.access.relay_domains),
            hostname=config.hostname.encode("ascii"),
            message_timeout=config.limits.message_timeout,
            received=config.relay.received,
            lookup=build_lookup(config.dns),
            holding=self._holding,
            failed_logins=FailedLogins(config.limits.failed_logins),
        )
        self._server = SMTPServer(self._session, server_options(config))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: an address cannot be listened on.
        """
        await self._look_at_next_hops()
        try:
            self.addresses = await self._server.start(self._listeners)
        except OSError as error:
            raise ConfigurationError([f"cannot listen on {error.strerror}"]) from error

    @property
    def observed(self) -> Mapping[str, Mapping[str, int]]:
        """What milters that are only observed would have done, in numbers."""
        return self._services.chain.observed

    async def drain(self, within: float = DRAIN) -> None:
        """Take no more connections, let open messages come to their end, and stop."""
        await self._server.drain(within)
        await self.stop()

    async def stop(self) -> None:
        """Stop now. May be called again."""
        await self._server.close()
        await self._services.chain.close()
        await self._next_hops.close()
        await self._holding.close()

    async def _look_at_next_hops(self) -> None:
        """Learn what can be offered to the first clients; a next hop that is not there yet is no failure."""
        log = get_logger()
        try:
            async with asyncio.timeout(FIRST_LOOK):
                for status in await self._next_hops.probe():
                    if status.error is not None:
                        log.warning("next hop does not answer", hop=status.hop, error=str(status.error))
        except TimeoutError:
            log.warning("next hops do not answer in time")

    def _session(self, info: SessionInfo) -> SessionHandler:
        return ProxySession(info, self._services)


async def serve(config: Config, ready: Callable[[App], None] | None = None) -> None:
    """Run a proxy until a signal, then drain it; a second signal ends that."""
    log = get_logger()
    signals: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number.name)
    app = App(config)
    needed = descriptors.needed(config)
    if (allowed := descriptors.allow(needed)) < needed:
        log.warning("too few file descriptors for limits.connections", allowed=allowed, needed=needed)
    try:
        await app.start()
        log.info("listening", addresses=[str(address) for address in app.addresses])
        if ready is not None:
            ready(app)
        log.info("stopping", signal=await signals.get(), within=DRAIN)
        async with asyncio.TaskGroup() as group:
            drain = group.create_task(app.drain())
            again = group.create_task(signals.get())
            await asyncio.wait([drain, again], return_when=asyncio.FIRST_COMPLETED)
            drain.cancel()
            again.cancel()
        for name, counts in app.observed.items():
            log.info("observed in all", milter=name, **counts)
    finally:
        await app.stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    log.info("stopped")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where there is one."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415 - not on every platform

        factory = uvloop.new_event_loop
    # What was imported stays to the end: no need to look through it again and again.
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 20)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def run_proxy(config: Config) -> None:
    """`milterchain run`.

    Raises:
        ConfigurationError: an address cannot be listened on.
    """
    configure(config.log.format, config.log.level, sys.stderr)
    run(serve(config))
