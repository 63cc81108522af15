"""Telling of milters that are left alone: in the log, and to `milterchain check`.

Each process keeps one file, named after its process id, with the milters that it leaves alone and until when.
The directory and the file are made when there is something to tell, and a process that died has nothing to
tell once that time is over. Where the file cannot be written, the log says so, and mail goes on.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from milterchain.chain.breaker import BreakerChange
from milterchain.proxy.logs import get_logger

__all__ = ["BreakerNotice", "Resting", "read_notices"]

_MAX_FILE: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Resting:
    """A milter that a process leaves alone.

    Attributes:
        milter: its name.
        until: seconds since 1970.
        failures: how many there were in a row.
        error: the last one.
    """

    milter: str
    until: float
    failures: int
    error: str


class BreakerNotice:
    """What one process tells."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._resting: dict[str, Resting] = {}

    def __call__(self, change: BreakerChange) -> None:
        """A milter is left alone from now on, or is back."""
        log = get_logger().bind(milter=change.milter, failures=change.failures)
        if change.rest:
            log.warning("milter left alone", seconds=change.rest, error=change.error)
            self._resting[change.milter] = Resting(
                milter=change.milter,
                until=time.time() + change.rest,
                failures=change.failures,
                error=change.error,
            )
        else:
            log.info("milter is back")
            self._resting.pop(change.milter, None)
        try:
            self._write()
        except OSError as error:
            log.warning("check cannot be told", error=str(error))

    def _write(self) -> None:
        file = self._directory / f"{os.getpid()}.json"
        if not self._resting:
            file.unlink(missing_ok=True)
            return
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps([asdict(each) for each in self._resting.values()]), encoding="ascii")
        fresh.rename(file)


def read_notices(directory: Path) -> dict[str, Resting]:
    """The milters that any process leaves alone now, by name; what cannot be read is passed over."""
    resting: dict[str, Resting] = {}
    now = time.time()
    for path in sorted(directory.glob("*.json")):
        for each in _read(path):
            if each.until > max(now, resting[each.milter].until if each.milter in resting else 0.0):
                resting[each.milter] = each
    return resting


def _read(path: Path) -> Iterator[Resting]:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_FILE))
        for each in document:
            yield Resting(
                milter=str(each["milter"]),
                until=float(each["until"]),
                failures=int(each["failures"]),
                error=str(each["error"]),
            )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
