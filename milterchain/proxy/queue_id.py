"""Queue ids: what names one message in logs, in macro `i` and in Received headers.

An id is 16 letters and digits, no vowels (so that it spells nothing). Ids sort by the time at which they
were made, and no two of them are equal: within a process the time never repeats, and the process is part of
the id.
"""

import os
import time
from collections.abc import Callable

__all__ = ["QueueIds"]

_ALPHABET = b"0123456789BCDFGHJKLMNPQRSTVWXYZ"
"""In ASCII order, so that ids sort as numbers do."""
_PROCESS_WIDTH = 5
"""31**5 is above Linux's largest process id, 2**22."""
_PAIRS = [bytes((first, second)) for first in _ALPHABET for second in _ALPHABET]
_SLOW_WIDTH = 5
"""Digits of the time that stay the same for a quarter of an hour. Six follow: 31**11 microseconds reach to
the year 2775."""


def _digits(number: int, width: int) -> bytes:
    digits = bytearray(width)
    for position in range(width - 1, -1, -1):
        number, digit = divmod(number, len(_ALPHABET))
        digits[position] = _ALPHABET[digit]
    return bytes(digits)


class QueueIds:
    """Makes the ids of one process; must be made after forking.

    Args:
        clock: nanoseconds since 1970.
        process: what tells this process from others.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns, process: int | None = None) -> None:
        self._clock = clock
        self._process = _digits(os.getpid() if process is None else process, _PROCESS_WIDTH)
        self._last = 0
        self._slow = -1
        self._head = b""

    def __call__(self) -> bytes:
        """Make the next id."""
        # Later than the last one even if the clock stands still or is set back.
        self._last = max(self._clock() // 1000, self._last + 1)
        rest, low = divmod(self._last, len(_PAIRS))
        rest, middle = divmod(rest, len(_PAIRS))
        slow, high = divmod(rest, len(_PAIRS))
        if slow != self._slow:
            self._slow, self._head = slow, _digits(slow, _SLOW_WIDTH)
        return self._head + _PAIRS[high] + _PAIRS[middle] + _PAIRS[low] + self._process
