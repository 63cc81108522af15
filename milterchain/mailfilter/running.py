"""Running a filter's function: with a deadline, and with signs of life for the MTA that waits."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from milterchain.errors import MilterClosedError

__all__ = ["PROGRESS_INTERVAL", "MTALeftError", "run_with_progress"]

T = TypeVar("T")

PROGRESS_INTERVAL = 1.0
"""Seconds between two signs of life: well below the timeouts of all MTAs."""


class MTALeftError(MilterClosedError):
    """The MTA that waits for the filter is gone; a filter that asks other milters may lose those, too."""


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
        MTALeftError: the MTA is gone; it was cancelled.
        RuntimeError: it was not cancelled, but something that it waited for.
        Exception: whatever it raises.
    """
    failure: Exception | None = None
    task = asyncio.current_task()
    assert task is not None
    try:
        async with asyncio.timeout(time_limit), asyncio.TaskGroup() as group:
            signs = group.create_task(_repeat(progress))
            try:
                return await work
            except Exception as error:  # noqa: BLE001 - raised again, but not as part of a group
                failure = error
            except asyncio.CancelledError as error:
                if task.cancelling():
                    raise
                failure = RuntimeError("what it waited for was cancelled")
                failure.__cause__ = error
            finally:
                signs.cancel()
    except* MTALeftError as group_error:
        failure = group_error.exceptions[0]
    assert failure is not None
    raise failure


async def _repeat(progress: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(PROGRESS_INTERVAL)
        try:
            await progress()
        except MilterClosedError as error:
            raise MTALeftError(str(error)) from error
