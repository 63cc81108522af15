"""Run the cases and turn rounds into results."""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from integration.bench.cases import MIB, Case, Measure, noops
from integration.bench.load import CountingSink, Round, Source, peak_memory, run_round
from integration.services.names import start_names
from integration.services.postfix import start_postfix
from integration.services.process import Run
from integration.services.proxy import milter_table, start_proxy

CPU_TARGET_MS = 15.0
MEMORY_TARGET_MIB = 300.0
WARM_UP = 40


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row: medians over the rounds, in the unit of the case.

    Attributes:
        ratio: the median of the ratios of neighbouring rounds.
        arrival_ratio: the same, with the time until the last message was in the sink, which counts what
            Postfix still had in its queue when it had answered everything.
    """

    case: Case
    postfix: float
    milterchain: float
    ratio: float
    arrival_ratio: float

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.case.target is None:
            return None
        if self.case.measure is Measure.RATE:
            return self.ratio >= self.case.target
        return self.ratio <= self.case.target


@dataclass(frozen=True, slots=True)
class Cost:
    """What milterchain used: one number against its target."""

    name: str
    value: float
    unit: str
    target: float

    @property
    def met(self) -> bool:
        """Whether it is at most the target."""
        return self.value <= self.target


def compare(case: Case, rounds: int) -> Comparison:
    """Measure one case, both sides by turns."""
    with Run() as run:
        nameserver = start_names(run)
        sink = CountingSink(run)
        filters = case.filters(run, nameserver)
        postfix = start_postfix(run, "postfix", relay_to=sink.address, milters=[f.address for f in filters])
        settings = {"reuse": "true"} if case.reuse else {}
        tables = [milter_table(f.name, f.address, settings) for f in filters]
        # As Postfix, which by default does not tell a next hop of the client (smtp_send_xforward_command).
        untold = 'client_identity = "none"'
        proxy = start_proxy(run, next_hop=f"smtp:{sink.address}", milters=tables, relay=untold)
        sides = {"postfix": postfix.address, "milterchain": proxy.address}
        results: dict[str, list[Round]] = {name: [] for name in sides}
        warm_up = replace(case.source, messages=min(WARM_UP, case.source.messages))
        for address in sides.values():
            run_round(warm_up, address, sink)
        for number in range(rounds):
            order = list(sides) if number % 2 == 0 else list(sides)[::-1]
            for name in order:
                results[name].append(run_round(case.source, sides[name], sink))
    return _summarise(case, results["postfix"], results["milterchain"])


def _summarise(case: Case, postfix: list[Round], milterchain: list[Round]) -> Comparison:
    def value(seconds: float) -> float:
        messages = case.source.messages
        return messages / seconds if case.measure is Measure.RATE else seconds / messages * 1000

    def ratio(seconds: Callable[[Round], float]) -> float:
        pairs = zip(postfix, milterchain, strict=True)
        return statistics.median(value(seconds(ours)) / value(seconds(theirs)) for theirs, ours in pairs)

    return Comparison(
        case,
        statistics.median(value(each.accepted) for each in postfix),
        statistics.median(value(each.accepted) for each in milterchain),
        ratio(lambda each: each.accepted),
        ratio(lambda each: each.arrived),
    )


def cpu_per_mib(rounds: int) -> Cost:
    """CPU of milterchain for each MiB of a 1 MiB message, without filters."""
    source = Source(100, MIB, sessions=4)
    with Run() as run:
        start_names(run)
        sink = CountingSink(run)
        proxy = start_proxy(run, next_hop=f"smtp:{sink.address}")
        run_round(replace(source, messages=10), proxy.address, sink)
        costs = [run_round(source, proxy.address, sink, proxy.pid).cpu for _ in range(rounds)]
    value = statistics.median(costs) / source.messages * 1000
    return Cost("CPU for 1 MiB, no filters", value, "ms/MiB", CPU_TARGET_MS)


def memory_of_large_messages(filters: int) -> Cost:
    """Peak resident size while 20 sessions send 30 MiB each at once."""
    with Run() as run:
        nameserver = start_names(run)
        sink = CountingSink(run)
        started = noops(filters)(run, nameserver)
        tables = [milter_table(each.name, each.address) for each in started]
        proxy = start_proxy(run, next_hop=f"smtp:{sink.address}", milters=tables)
        run_round(Source(20, 30 * MIB, sessions=20), proxy.address, sink)
        peak = peak_memory(proxy.pid) / MIB
    name = f"peak memory, 20 sessions of 30 MiB, {filters} no-op filters"
    return Cost(name, peak, "MiB", MEMORY_TARGET_MIB)


def progress(text: str) -> None:
    """Say what is being measured, on stderr, so that the table can be piped."""
    print(text, file=sys.stderr, flush=True)
