"""Runs a filter in the event loop that the benchmark names."""

import asyncio
import sys
from collections.abc import Coroutine


def run(main: Coroutine[object, object, None], loop: str) -> None:
    """Run `main` in a loop of asyncio or of uvloop, until it is interrupted."""
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415 - not where the other loop is to be measured

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    else:
        runner = asyncio.Runner()
    with runner:
        sys.exit(runner.run(main))
