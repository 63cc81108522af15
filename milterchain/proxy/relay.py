"""The next hops: which one is used, and when it is tried again to reach one.

In order, those that failed lately after the others, each until one can be used. What is said there is
`milterchain.proxy.relay_session`'s.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_random,
)

from milterchain.errors import NextHopConnectError, NextHopError, NextHopLoginError, NextHopTLSError
from milterchain.mail.envelope import Path
from milterchain.proxy.delivery import Delivery
from milterchain.proxy.lanes import Lane
from milterchain.proxy.nexthop import Hop
from milterchain.proxy.relay_options import RelayOptions
from milterchain.proxy.relay_session import NextHopSession, NextHopTransaction
from milterchain.proxy.routes import HopStatus, Route, make_route
from milterchain.smtp.handler import Features

__all__ = ["Delivery", "NextHopSession", "NextHopTransaction", "NextHops", "RelayOptions"]

OPEN_ATTEMPTS = 3
"""Rounds over all hops before a recipient is tempfailed: a hop that restarts is back within a second."""
OPEN_ROUNDS_WITHIN = 5.0
"""No further round begins after these seconds: hops that do not even refuse make each round long."""
REST = 30.0
"""Seconds for which a hop that failed comes after the others."""

_HOPELESS: Final = (NextHopLoginError, NextHopTLSError)
"""What trying again at once does not help."""


class NextHops:
    """The next hops, in order of preference."""

    def __init__(self, hops: Sequence[Hop], options: RelayOptions | None = None) -> None:
        if not hops:
            raise ValueError("at least one next hop is needed")
        self.options = options or RelayOptions()
        self._routes = [make_route(hop, self.options) for hop in hops]
        self._last: Route | None = None

    @property
    def features(self) -> Features | None:
        """What was offered at the last greeting of any hop; None if that is not known yet."""
        return (self._last or self._routes[0]).features

    @property
    def tells_of_clients(self) -> bool:
        """Whether a hop may be told who the client is, as far as is known of what they offer."""
        return any(route.tells_of_clients for route in self._routes)

    def session(self) -> NextHopSession:
        """Begin a client's session. Nothing is sent yet."""
        return NextHopSession(self)

    def begin(self, sender: Path) -> NextHopTransaction:
        """Begin a transaction for nobody in particular. Nothing is sent yet."""
        return self.session().begin(sender)

    async def probe(self) -> list[HopStatus]:
        """Greet each hop once, without mail, all at the same time."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(route.probe()) for route in self._routes]
        statuses = [task.result() for task in tasks]
        for route, status in zip(self._routes, statuses, strict=True):
            if status.error is None:
                self._last = route
                break
        return statuses

    async def close(self) -> None:
        """Close the connections that are kept."""
        async with asyncio.TaskGroup() as group:
            for route in self._routes:
                group.create_task(route.close())

    async def lane(self, *, fresh: bool = False) -> Lane:
        """Find a hop for a transaction: in order, those that failed lately after the others.

        Args:
            fresh: do not use a connection that was kept.

        Raises:
            NextHopConnectError: none of them can be used; the text has a reason for each.
        """
        if not fresh and (lane := self._order()[0].kept()) is not None:
            return lane
        opening = AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(OPEN_ATTEMPTS) | stop_after_delay(OPEN_ROUNDS_WITHIN),
            wait=wait_exponential(multiplier=0.1, max=1.0) + wait_random(0, 0.1),
            reraise=True,
        )
        return await opening(self._round, fresh=fresh)

    def rest(self, hop: str) -> None:
        """Prefer other hops for a while."""
        until = asyncio.get_running_loop().time() + REST
        for route in self._routes:
            if route.hop == hop:
                route.resting_until = until

    def _order(self) -> list[Route]:
        now = asyncio.get_running_loop().time()
        return sorted(self._routes, key=lambda route: route.resting_until > now)

    async def _round(self, *, fresh: bool) -> Lane:
        reasons: list[str] = []
        errors: list[NextHopError] = []
        for route in self._order():
            if not fresh and (lane := route.kept()) is not None:
                return lane
            try:
                lane = await route.open()
            except NextHopError as error:
                self.rest(route.hop)
                reasons.append(f"{route.hop}: {error}")
                errors.append(error)
                continue
            self._last = route
            return lane
        # A password that is wrong now is wrong in a second, and servers count the attempts.
        hopeless = next(
            (kind for kind in _HOPELESS if all(isinstance(error, kind) for error in errors)), None
        )
        raise (hopeless or NextHopConnectError)("; ".join(reasons))


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, NextHopConnectError) and not isinstance(error, _HOPELESS)
