"""Running a filter's function: with a deadline, and with signs of life for the MTA that waits."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from milterchain.errors import MilterClosedError

__all__ = ["PROGRESS_INTERVAL", "run_with_progress"]

T = TypeVar("T")

PROGRESS_INTERVAL = 1.0
"""Seconds between two signs of life: well below the timeouts of all MTAs."""


async def run_with_progress(
    work: Awaitable[T], progress: Callable[[], Awaitable[None]], time_limit: float
) -> T:
    """Await a filter's function.

    Args:
        work: what it returned when it was called.
        progress: tells the MTA that it still works.
        time_limit: seconds that it may take.

    Raises:
        TimeoutError: it takes too long; it was cancelled.
        MilterClosedError: the MTA is gone; it was cancelled.
        Exception: whatever it raises.
    """
    failure: Exception | None = None
    try:
        async with asyncio.timeout(time_limit), asyncio.TaskGroup() as group:
            signs = group.create_task(_repeat(progress))
            try:
                return await work
            except Exception as error:  # noqa: BLE001 - raised again, but not as part of a group
                failure = error
            finally:
                signs.cancel()
    except* MilterClosedError as group_error:
        failure = group_error.exceptions[0]
    assert failure is not None
    raise failure


async def _repeat(progress: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(PROGRESS_INTERVAL)
        await progress()
