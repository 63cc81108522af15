"""The command: measure, print a table in Markdown, exit with 1 if a target was missed."""

import argparse
import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from integration.bench.cases import Case, Measure, latency_cases, throughput_cases
from integration.bench.measure import (
    Comparison,
    Cost,
    compare,
    cpu_per_mib,
    memory_of_large_messages,
    progress,
)
from integration.services.packages import BENCHMARK, require


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m integration.bench", description=__doc__)
    parser.add_argument("--short", action="store_true", help="only the cases that have a target, 3 rounds")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per side and case (default: 5)")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--no-costs", action="store_true", help="leave out CPU and memory")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    options = parser.parse_args()
    # So that the servers are ended as well when the benchmark is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    require(BENCHMARK)
    rounds = min(options.rounds, 3) if options.short else options.rounds
    cases = [
        case
        for case in (*throughput_cases(), *latency_cases())
        if options.only in case.name and (case.short or not options.short)
    ]
    comparisons = [_compare(case, rounds) for case in cases]
    costs = [] if options.no_costs else _costs(rounds)
    print(_report(comparisons, costs, rounds))
    if options.json:
        _write_json(options.json, comparisons, costs)
    missed = any(row.met is False for row in comparisons) or not all(cost.met for cost in costs)
    return 1 if missed else 0


def _compare(case: Case, rounds: int) -> Comparison:
    progress(f"measuring: {case.name}")
    row = compare(case, rounds)
    unit = row.case.measure.value
    progress(f"  Postfix {row.postfix:.1f}, milterchain {row.milterchain:.1f} {unit}: {row.ratio:.2f}")
    return row


def _costs(rounds: int) -> list[Cost]:
    progress("measuring: CPU and memory")
    return [cpu_per_mib(rounds), memory_of_large_messages(0), memory_of_large_messages(3)]


def _report(comparisons: list[Comparison], costs: list[Cost], rounds: int) -> str:
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
    python = f"Python {platform.python_version()} in {sys.base_prefix}"
    lines = [
        f"{machine}, {python}, {rounds} alternating rounds, medians.",
        "",
        "| case | unit | Postfix | milterchain | ratio | by arrival | target | |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    lines += [_row(row) for row in comparisons]
    lines += [
        f"| {cost.name} | {cost.unit} | | {cost.value:.1f} | | | ≤ {cost.target:g} | {_mark(cost)} |"
        for cost in costs
    ]
    lines += [
        "",
        "ratio: milterchain / Postfix, up to the last reply to the client.  By arrival: up to the last",
        "message in the sink, which includes what Postfix had queued by then.",
    ]
    return "\n".join(lines)


def _row(row: Comparison) -> str:
    sign = "≥" if row.case.measure is Measure.RATE else "≤"
    target = f"{sign} {row.case.target:g}" if row.case.target is not None else ""
    values = f"{row.postfix:.1f} | {row.milterchain:.1f} | {row.ratio:.2f} | {row.arrival_ratio:.2f}"
    return f"| {row.case.name} | {row.case.measure.value} | {values} | {target} | {_mark(row)} |"


def _mark(row: Comparison | Cost) -> str:
    return {None: "", True: "met", False: "**missed**"}[row.met]


def _write_json(path: str, comparisons: list[Comparison], costs: list[Cost]) -> None:
    rows = [
        {
            "case": row.case.name,
            "unit": row.case.measure.value,
            "postfix": row.postfix,
            "milterchain": row.milterchain,
            "ratio": row.ratio,
            "arrival_ratio": row.arrival_ratio,
            "target": row.case.target,
        }
        for row in comparisons
    ]
    numbers = {"comparisons": rows, "costs": [asdict(cost) for cost in costs]}
    Path(path).write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    sys.exit(main())
