"""Filters of this library against those of others: `python -m integration.bench.filters`, see `--help`.

All do nothing, in one process each, and are driven by one and the same program in the same run, in
alternating rounds: `filter_driver.c`, which sends packets that were encoded before and waits for the reply to
each, as MTAs do. It has a core for itself, and all filters have the same others: where a scheduler puts two
processes that wake each other differs from run to run, and by more than the filters do. The table shows each
filter's best round, and the ratios of those: other work makes any filter slower and none faster.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from integration.bench.cases import KIB, MIB
from integration.bench.filter_script import HEADERS, script
from integration.bench.filter_servers import (
    FILTERS,
    FilterKind,
    Running,
    make_environment,
    python_version,
    start,
)
from integration.bench.load import cpu_seconds
from integration.bench.measure import progress
from integration.services.filters import build_c
from integration.services.packages import FILTER_BENCHMARK, require
from integration.services.process import Run, ServiceError

SESSIONS = 10
DRIVER = Path(__file__).with_name("filter_driver.c")
WARM_UP = 0.3
QUIET = 0.1
"""The part of the machine that other work may take before a round is tried again."""
TRIES = 3
"""How often a round is tried for that."""
GLANCE = 0.2
"""Seconds after which it is known whether the machine is quiet."""
PATIENCE = 120.0
"""Seconds of a whole run that are waited for that."""


class Case(NamedTuple):
    """Which messages are sent."""

    label: str
    size: int
    keep: bool


CASES = tuple(
    Case(f"{label}, {'kept connection' if keep else 'session per message'}", size, keep)
    for label, size in (("4 KiB", 4 * KIB), ("1 MiB", MIB))
    for keep in (False, True)
)


class Cores(NamedTuple):
    """Who runs where.

    Attributes:
        driver: the core that it has for itself.
        filters: those that all filters have.
    """

    driver: int
    filters: tuple[int, ...]


class Round(NamedTuple):
    """What the driver saw.

    Attributes:
        rate: messages a second.
        cpu: milliseconds of CPU for one message in the filter.
        driver: the part of one core that the driver itself took.
        others: the part of the machine that neither of them took, and that was not idle.
    """

    rate: float
    cpu: float
    driver: float
    others: float


@dataclass(frozen=True, slots=True)
class Row:
    """One filter in one case.

    Attributes:
        case: which messages.
        kind: which filter.
        best: its best round.
        ratio: our best rate divided by its; None for our own.
    """

    case: Case
    kind: FilterKind
    best: Round
    ratio: float | None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.kind.target is None or self.ratio is None:
            return None
        return self.ratio >= self.kind.target


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.bench.filters", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("--short", action="store_true", help="3 rounds of a second")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per filter and case (default: 5)")
    parser.add_argument("--seconds", type=float, default=2, help="length of a round (default: 2)")
    parser.add_argument(
        "--loop", choices=("uvloop", "asyncio"), default="uvloop", help="for all that need one"
    )
    parser.add_argument(
        "--share", action="store_true", help="let the driver run on the cores of the filters, and they on its"
    )
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    require(FILTER_BENCHMARK)
    if options.short:
        options.rounds, options.seconds = min(options.rounds, 3), min(options.seconds, 1)
    make_environment(progress)
    rows: list[Row] = []
    cores = None if options.share else divide_cores()
    with Run() as run:
        filters = [start(run, kind, options.loop) for kind in FILTERS]
        bench = Bench(run, build_c(run, DRIVER), options.seconds, cores)
        for case in CASES:
            if options.only in case.label:
                progress(f"measuring: {case.label}")
                rows += bench.compare(case, filters, options.rounds)
    print(_report(rows, options, cores))
    if options.json:
        _write_json(options.json, rows)
    return 1 if any(row.met is False for row in rows) else 0


def divide_cores() -> Cores | None:
    """Leave a core to the driver: this process, and what it starts from now on, keeps to the others.

    Returns:
        None if there is one core only, which all have to share.
    """
    *others, last = sorted(os.sched_getaffinity(0))
    if not others:
        return None
    os.sched_setaffinity(0, others)
    return Cores(last, tuple(others))


class Bench:
    """Runs the driver."""

    def __init__(self, run: Run, driver: Path, seconds: float, cores: Cores | None) -> None:
        self._run = run
        self._driver = ("taskset", "-c", str(cores.driver), str(driver)) if cores else (str(driver),)
        self._seconds = seconds
        self._patience = PATIENCE

    def compare(self, case: Case, filters: list[Running], rounds: int) -> list[Row]:
        """Measure all filters in one case, by turns."""
        results: dict[FilterKind, list[Round]] = {each.kind: [] for each in filters}
        for each in filters:
            self._drive(case, each, WARM_UP)
        for number in range(rounds):
            for each in filters if number % 2 == 0 else filters[::-1]:
                results[each.kind] += self._round(case, each)
        best = {kind: max(done, key=lambda each: each.rate) for kind, done in results.items()}
        ours = best[FILTERS[0]].rate
        return [Row(case, kind, done, None if kind.ours else ours / done.rate) for kind, done in best.items()]

    def _round(self, case: Case, each: Running) -> list[Round]:
        """One, or more where the machine is too busy."""
        tries: list[Round] = []
        while not tries or (tries[-1].others > QUIET and len(tries) < TRIES):
            self._await_quiet()
            tries.append(self._drive(case, each, self._seconds))
        return tries

    def _await_quiet(self) -> None:
        """Let others finish, within limits."""
        while self._patience > 0:
            before = _machine()
            time.sleep(GLANCE)
            busy, passed = (now - then for now, then in zip(_machine(), before, strict=True))
            if busy <= QUIET * passed:
                return
            self._patience -= GLANCE

    def _drive(self, case: Case, each: Running, seconds: float) -> Round:
        path = self._run.directory / "script"
        path.write_bytes(script(each.negotiated, case.size))
        numbers = (each.port, SESSIONS, seconds, int(case.keep))
        command = (*self._driver, "127.0.0.1", *map(str, numbers), str(path))
        before, machine = cpu_seconds(each.pid), _machine()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ServiceError(f"{each.kind.name}, {case.label}: {done.stderr.strip()}")
        messages, took, own = map(float, done.stdout.split())
        cpu = cpu_seconds(each.pid) - before
        busy, passed = (now - then for now, then in zip(_machine(), machine, strict=True))
        others = max((busy - cpu - own) / passed, 0)
        return Round(messages / took, cpu / messages * 1000, own / took, others)


def _machine() -> tuple[float, float]:
    """Seconds that all cores together have worked, and that they have had, since the machine started."""
    with Path("/proc/stat").open() as stat:
        times = [int(number) for number in stat.readline().split()[1:9]]
    idle = times[3] + times[4]
    ticks = os.sysconf("SC_CLK_TCK")
    return (sum(times) - idle) / ticks, sum(times) / ticks


def _report(rows: list[Row], options: argparse.Namespace, cores: Cores | None) -> str:
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
    rounds = f"{options.rounds} alternating rounds of {options.seconds:g} s"
    lines = [
        f"{machine}, {python_version()}, {options.loop}, {rounds}, {SESSIONS} sessions at once.",
        "",
        "| case | filter | messages/s | milterchain is faster by | target | | CPU ms | driver | others |",
        "|---|---|--:|--:|--:|---|--:|--:|--:|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"x {row.ratio:.2f}"
        target = "" if row.kind.target is None else f"≥ {row.kind.target:g}"
        mark = {None: "", True: "met", False: "**missed**"}[row.met]
        best = row.best
        measured = (f"{best.cpu:.2f}", f"{best.driver:.0%}", f"{best.others:.0%}")
        cells = (row.case.label, row.kind.name, f"{best.rate:.0f}", ratio, target, mark, *measured)
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"A message has {len(HEADERS)} headers. Every event is asked for and answered with CONTINUE, but",
        "milterchain.mailfilter asks for what it needs, and has most of it sent without a reply.",
        "CPU: what a message costs the process of the filter. libmilter has a thread for each session and",
        "milterchain one for all, so that it says more than the rate where the machine has other work.",
        f"Driver: the part of one core that the driver took, {_places(cores)}.",
        "Others: the part of the whole machine that other work took; where it took more than",
        f"{QUIET:.0%}, a round was tried {TRIES} times. The best round is shown.",
    ]
    return "\n".join(lines)


def _places(cores: Cores | None) -> str:
    if cores is None:
        return "which shared the cores with the filters"
    return f"which had core {cores.driver} for itself; the filters had {', '.join(map(str, cores.filters))}"


def _write_json(path: str, rows: list[Row]) -> None:
    numbers = [
        {
            "case": row.case.label,
            "filter": row.kind.name,
            "ratio": row.ratio,
            **row.best._asdict(),
        }
        for row in rows
    ]
    Path(path).write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    sys.exit(main())
