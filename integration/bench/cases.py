"""What is measured: each case compares Postfix and milterchain in front of the same filters and sink."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from integration.bench.load import Source
from integration.services.filters import (
    Filter,
    build_noop,
    make_key,
    start_noop,
    start_opendkim,
    start_opendmarc,
    start_pyspf,
    start_rspamd,
)
from integration.services.process import Run

KIB = 1024
MIB = 1024 * KIB


class Measure(Enum):
    """What the numbers of a case are; the value is the column's unit."""

    RATE = "messages/s"
    LATENCY = "ms/message"


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table.

    Attributes:
        name: as the table shows it.
        source: how smtp-source is run.
        filters: starts the filters of the chain, in their order, in a run; the second argument is the
            name server that they ask.
        measure: rate or latency.
        target: for milterchain's value divided by Postfix's: at least that for a rate, at most that for
            a latency; None where no target is set.
        short: whether the short run has it too.
        reuse: whether milterchain keeps its connections to the filters, which Postfix cannot.
    """

    name: str
    source: Source
    filters: Callable[[Run, str], list[Filter]]
    measure: Measure = Measure.RATE
    target: float | None = None
    short: bool = field(default=False)
    reuse: bool = field(default=False)


def noops(count: int, *options: str, unix: bool = True) -> Callable[[Run, str], list[Filter]]:
    """So many C filters that do nothing."""

    def start(run: Run, _nameserver: str) -> list[Filter]:
        if not count:
            return []
        program = build_noop(run)
        return [start_noop(run, program, f"noop{n}", *options, unix=unix) for n in range(count)]

    return start


def real_chain(run: Run, nameserver: str) -> list[Filter]:
    """The filters that a mail server has, all on TCP."""
    return [
        start_pyspf(run),
        start_opendkim(run, make_key(run)),
        start_opendmarc(run),
        start_rspamd(run, nameserver),
    ]


def throughput_cases() -> list[Case]:
    """4 and 100 KiB, new session per message and kept sessions, 0, 1 and 3 no-op filters, unix and TCP."""
    cases: list[Case] = []
    for size, messages, label in ((4 * KIB, 2000, "4 KiB"), (100 * KIB, 600, "100 KiB")):
        for keep in (False, True):
            for count, unix in ((0, True), (1, True), (3, True), (1, False), (3, False)):
                chain = f"{count} no-op, {'unix' if unix else 'TCP'}" if count else "no filters"
                required = count == 3 and not keep
                cases.append(
                    Case(
                        f"{label}, {'kept sessions' if keep else 'session per message'}, {chain}",
                        Source(messages, size, keep=keep),
                        noops(count, unix=unix),
                        target=1.5 if required else None,
                        short=required and unix,
                    )
                )
    return [*cases, *map(_reusing, filter(lambda case: case.target is not None, cases))]


def _reusing(case: Case) -> Case:
    return replace(case, name=f"{case.name}, reuse", reuse=True)


def latency_cases() -> list[Case]:
    """One message at a time."""
    single = Source(200, 4 * KIB, sessions=1)
    slow = Source(25, 4 * KIB, sessions=1)
    plain = (
        Case("one at a time, no filters", single, noops(0), Measure.LATENCY),
        Case("one at a time, 3 no-op, unix", single, noops(3), Measure.LATENCY),
        Case("one at a time, 3 no-op, TCP", single, noops(3, unix=False), Measure.LATENCY),
        Case("one at a time, 3 no-op with NR_*, unix", single, noops(3, "-n"), Measure.LATENCY),
    )
    required = (
        Case(
            "one at a time, 3 sleeping 20 ms at connect, MAIL, RCPT",
            slow,
            noops(3, "-s", "20"),
            Measure.LATENCY,
            target=0.4,
            short=True,
        ),
        Case(
            "one at a time, pyspf + OpenDKIM + OpenDMARC + rspamd, TCP",
            Source(40, 4 * KIB, sessions=1),
            real_chain,
            Measure.LATENCY,
            target=0.3,
            short=True,
        ),
    )
    return [*plain, *required]
