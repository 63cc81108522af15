"""How often each client has connected lately."""

import asyncio
from collections import Counter, deque

__all__ = ["WINDOW", "RecentConnections"]

WINDOW = 60.0
"""Seconds that count, as in Sendmail (ConnectionRateWindowSize)."""
MOST = 100_000
"""Connections that are remembered; what came before them is forgotten early."""


class RecentConnections:
    """Counts the connections of the last minute, by client."""

    __slots__ = ("_counts", "_times")

    def __init__(self) -> None:
        self._times: deque[tuple[float, str]] = deque()
        self._counts: Counter[str] = Counter()

    def add(self, client: str) -> None:
        """A client has connected."""
        now = asyncio.get_running_loop().time()
        self._times.append((now, client))
        self._counts[client] += 1
        self._forget(now)

    def of(self, client: str) -> int:
        """How often it has."""
        self._forget(asyncio.get_running_loop().time())
        return self._counts[client]

    def _forget(self, now: float) -> None:
        while self._times and (self._times[0][0] <= now - WINDOW or len(self._times) > MOST):
            _, client = self._times.popleft()
            self._counts[client] -= 1
            if not self._counts[client]:
                del self._counts[client]
