"""A milter that keeps failing is left alone for a short time; its default action applies meanwhile.

Closed, the breaker counts failures in a row. When there are too many it opens: the milter is not tried for a
while, and nobody waits for it. Then it is half open: one session may try. If that goes well the milter is
back, else it is left alone again, for twice as long: one that is restarted is back at once, and one that is
gone for good costs little.

A session without a fault, or a message that got its verdict, ends the row; if it was over messages that the
milter failed, only a message does. Each process has its own breakers.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from milterchain.errors import LocalProtocolError, MilterError, MilterRestingError

__all__ = ["Breaker", "BreakerChange", "BreakerOptions"]

FIRST_REST = 1.0
"""Seconds for which a milter is left alone at first; a restart takes less."""
PROBE_TIME = 1.0
"""Seconds after which another session may try, if the one that tries has not come to an end: it may belong to
an idle client, or be refused by another milter before it has anything to say about this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOptions:
    """When a milter is left alone.

    Attributes:
        failures: in a row, after which it is.
        rest: seconds at most; less at first.
    """

    failures: int = 5
    rest: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChange:
    """A milter is left alone from now on, or is back.

    Attributes:
        milter: its name.
        rest: seconds for which it is left alone; 0 if it is back.
        failures: how many there were in a row.
        error: the last one; empty if it is back.
    """

    milter: str
    rest: float
    failures: int
    error: str = ""


class Breaker:
    """The breaker of one milter.

    Args:
        milter: its name.
        options: when it opens.
        tell: is told when it opens and closes.
    """

    __slots__ = (
        "_failures",
        "_in_content",
        "_milter",
        "_options",
        "_probing",
        "_rest",
        "_resting_until",
        "_tell",
    )

    def __init__(self, milter: str, options: BreakerOptions, tell: Callable[[BreakerChange], None]) -> None:
        self._milter = milter
        self._options = options
        self._tell = tell
        self._failures = 0
        self._in_content = False
        self._resting_until: float | None = None
        self._probing = False
        self._rest = min(FIRST_REST, options.rest)

    @property
    def resting(self) -> bool:
        """Whether the milter is left alone at this moment."""
        return self._resting_until is not None and asyncio.get_running_loop().time() < self._resting_until

    def enter(self) -> None:
        """A session wants to use the milter.

        Raises:
            MilterRestingError: it is left alone.
        """
        if self._resting_until is None:
            return
        if self.resting:
            raise MilterRestingError(f"left alone after {self._failures} failures in a row")
        self._resting_until = asyncio.get_running_loop().time() + PROBE_TIME
        self._probing = True

    def failed(self, error: MilterError, *, in_content: bool) -> None:
        """The milter failed in a session."""
        if isinstance(error, MilterRestingError | LocalProtocolError):
            return
        self._failures += 1
        self._in_content = in_content
        if self._failures < self._options.failures:
            return
        # Sessions that began before it opened may fail later: they say nothing new.
        known = self.resting and not self._probing
        if not known:
            rest, self._rest = self._rest, min(2 * self._rest, self._options.rest)
            self._resting_until = asyncio.get_running_loop().time() + rest
            self._probing = False
            self._change(rest, str(error))

    def worked(self, *, in_content: bool) -> None:
        """The milter served a session, or a message, to the end."""
        if not self._failures or (self._in_content and not in_content):
            return
        was_open, self._resting_until = self._resting_until is not None, None
        if was_open:
            self._change(0.0)
        self._failures = 0
        self._in_content = False
        self._rest = min(FIRST_REST, self._options.rest)

    def _change(self, rest: float, error: str = "") -> None:
        self._tell(BreakerChange(milter=self._milter, rest=rest, failures=self._failures, error=error))
