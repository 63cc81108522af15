"""Logins that failed, by client: who guesses passwords must not get more guesses by connecting again. No I/O.

A client may fail `allowed` times at once; after that only as often as failures are forgotten, one each
`FORGIVEN_EACH` seconds. So a device with an old password, which tries each few minutes, locks nobody out who
shares its address, and a guesser gets nowhere.

A login that succeeds forgives nothing: guessers may have an account of their own. Logins that are tried at
the same time may be a few more than allowed, as many as the client may have connections.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

__all__ = ["FailedLogins"]

FORGIVEN_EACH: Final = 30.0
REMEMBERED: Final = 10_000
"""Clients: a megabyte or two. Of more than that, those are forgotten that have not failed for longest."""


class FailedLogins:
    """The failed logins of all clients of a process.

    Args:
        allowed: failures that one client may have.
        clock: seconds, for tests.
    """

    def __init__(self, allowed: int = 20, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = allowed * FORGIVEN_EACH
        self._clock = clock
        self._forgiven_at: OrderedDict[str, float] = OrderedDict()

    def blocks(self, client: str) -> bool:
        """Whether the client must not try now."""
        at = self._forgiven_at.get(client)
        return at is not None and at - self._clock() + FORGIVEN_EACH > self._patience

    def add(self, client: str) -> None:
        """The client has failed."""
        now = self._clock()
        self._forgiven_at[client] = max(now, self._forgiven_at.get(client, now)) + FORGIVEN_EACH
        self._forgiven_at.move_to_end(client)
        if len(self._forgiven_at) > REMEMBERED:
            self._forgiven_at.popitem(last=False)
