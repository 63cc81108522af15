"""Files that survive a power cut, written in a thread, as disks block.

What is made here is for the owner only. A name that appears after `sync_directory` is there for good.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

__all__ = [
    "create",
    "go_on_unless",
    "in_thread",
    "make_directory",
    "sync_directory",
    "write_all",
    "write_file",
]

Result = TypeVar("Result")


async def in_thread(work: Callable[[threading.Event], Result]) -> Result:
    """Run something that blocks; it is given an event that asks it to give up.

    When cancelled it waits for the thread all the same: what the thread reads is the caller's to close, and
    nobody must read from it then.
    """
    stop = threading.Event()
    running = asyncio.get_running_loop().run_in_executor(None, work, stop)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        running.exception()
        raise


def go_on_unless(stop: threading.Event) -> None:
    """Give up if that was asked for.

    Raises:
        InterruptedError: it was.
    """
    if stop.is_set():
        raise InterruptedError("given up")


def create(path: Path) -> int:
    """Make a file that is not there yet, and open it for writing."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_all(file: int, data: bytes) -> int:
    """Write all; a single write may stop short when the disk gets full."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
    return len(data)


def write_file(path: Path, chunks: Iterable[bytes], stop: threading.Event | None = None) -> None:
    """Make a file with this content, and sync it."""
    file = create(path)
    try:
        for chunk in chunks:
            write_all(file, chunk)
            if stop is not None:
                go_on_unless(stop)
        os.fsync(file)
    finally:
        os.close(file)


def sync_directory(directory: Path) -> None:
    """Make sure that the names in a directory are on the disk."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, if they are missing."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    sync_directory(directory.parent)
