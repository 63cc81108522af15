"""`milterchain check`: does everything that the configuration names answer?

One row for each milter and next hop, one with the settings of the breaker, and one for the quarantine if
nothing can be held there. All are asked at once; what cannot be used says why, with its address.
"""

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from milterchain.chain.plan import MilterPlan
from milterchain.cli.options_in_words import in_words
from milterchain.cli.output import Cell, console, print_rows, safe
from milterchain.config import Config, MilterConfig
from milterchain.errors import MilterError
from milterchain.milter.client import MilterSession
from milterchain.proxy.app import milter_settings
from milterchain.proxy.breaker_notice import Resting, read_notices
from milterchain.proxy.listeners import build_listeners
from milterchain.proxy.next_hops import build_next_hops
from milterchain.proxy.routes import HopStatus

__all__ = ["Row", "check", "check_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one of them answered.

    Attributes:
        kind: `milter`, `breaker`, `next hop` or `quarantine`.
        name: of the milter; empty for a next hop.
        version: of the milter protocol; empty for a next hop and after a failure.
        details: what was agreed on, or why it cannot be used.
    """

    kind: str
    name: str
    address: str
    ok: bool
    version: str
    details: str
    seconds: float


def _left_alone(resting: Resting | None) -> str:
    if resting is None:
        return ""
    until = time.strftime("%H:%M:%SZ", time.gmtime(resting.until))
    return f"; left alone until {until} after {resting.failures} failures: {resting.error}"


async def _check_milter(milter: MilterConfig, resting: Resting | None) -> Row:
    start = time.perf_counter()
    try:
        session = await MilterSession.open(milter.address, MilterPlan(milter_settings(milter)).options)
    except MilterError as error:
        ok, version, details = False, "", str(error)
    else:
        agreed = session.negotiated
        await session.quit()
        ok, version = True, str(agreed.version)
        details = in_words(agreed.actions, agreed.protocol)
    return Row(
        kind="milter",
        name=milter.name,
        address=str(milter.address),
        ok=ok,
        version=version,
        details=details + _left_alone(resting),
        seconds=time.perf_counter() - start,
    )


def _next_hop(status: HopStatus) -> Row:
    features = status.features
    offers = (
        []
        if features is None
        else [
            *(["SMTPUTF8"] if features.smtputf8 else []),
            *(["DSN"] if features.dsn else []),
            *(["BINARYMIME"] if features.binarymime else []),
            *(["REQUIRETLS"] if features.requiretls else []),
            *([f"SIZE {features.size}"] if features.size is not None else []),
        ]
    )
    details = [status.greeting, f"offers {', '.join(offers)}" if offers else "", *status.extras]
    return Row(
        kind="next hop",
        name="",
        address=status.hop,
        ok=status.error is None,
        version="",
        details=str(status.error)
        if status.error
        else "; ".join(part for part in details if part) or "usable",
        seconds=status.seconds,
    )


def _unusable(directory: Path) -> str:
    """What is in the way of writing to a directory that is made when it is first needed; else nothing."""
    there = next(path for path in (directory, *directory.parents) if os.access(path, os.F_OK))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return ""
    return f"{there} is no directory that this user may write to"


def _breaker(config: Config) -> list[Row]:
    """A row with the settings, if there are milters."""
    if not config.milter:
        return []
    breaker = config.breaker
    details = (
        f"leaves a milter alone after {breaker.failures} failures in a row, for {breaker.rest:g} s at most"
    )
    if unusable := _unusable(breaker.directory):
        details += f"; check cannot be told of that: {unusable}"
    return [_place("breaker", breaker.directory, details)]


def _quarantine(config: Config) -> list[Row]:
    """A row if messages could not be held."""
    directory = config.quarantine.directory
    if config.quarantine.action != "hold" or not (unusable := _unusable(directory)):
        return []
    return [_place("quarantine", directory, f"messages cannot be held there: {unusable}", ok=False)]


def _place(kind: str, directory: Path, details: str, *, ok: bool = True) -> Row:
    return Row(kind=kind, name="", address=str(directory), ok=ok, version="", details=details, seconds=0.0)


async def check_all(config: Config) -> tuple[Row, ...]:
    """Ask all milters and next hops."""
    hops = build_next_hops(config)
    resting = read_notices(config.breaker.directory)
    try:
        async with asyncio.TaskGroup() as group:
            milters = [
                group.create_task(_check_milter(milter, resting.get(milter.name))) for milter in config.milter
            ]
            probe = group.create_task(hops.probe())
    finally:
        await hops.close()
    hop_rows = [_next_hop(status) for status in probe.result()]
    return (*(task.result() for task in milters), *_breaker(config), *hop_rows, *_quarantine(config))


def _cells(row: Row) -> list[Cell]:
    return [
        Text("ok", style="green") if row.ok else Text("FAILED", style="bold red"),
        row.kind,
        Text(safe(row.name)),
        Text(safe(row.address)),
        row.version,
        f"{row.seconds * 1000:.1f} ms",
        Text(safe(row.details)),
    ]


def check(config: Config) -> bool:
    """Ask all and print the table; whether all can be used.

    Raises:
        ConfigurationError: a file that the configuration names cannot be used.
    """
    build_listeners(config.listen)
    out = console()
    with console(error=True).status("asking milters and next hops"):
        rows = asyncio.run(check_all(config))
    titles = ("", "What", "Name", "Address", "Version", "Time", "Details")
    print_rows(out, titles, [_cells(row) for row in rows])
    return all(row.ok for row in rows)
