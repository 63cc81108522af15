"""Deliver into a Maildir: each message is a file that appears in `new/` at once and whole, or not at all.

The file is written in `tmp/`, synced, renamed into `new/`, and the directory synced: when success is reported
the message survives a power cut. Lines end in LF there, as on any Unix system; `Return-Path` and one
`Delivered-To` per recipient are put on top; the rest is the message as it came. Directories that are missing
are made, for the owner only.

The work is done in a thread, as disks block.
"""

import asyncio
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from milterchain.errors import NextHopError
from milterchain.mail.envelope import Envelope
from milterchain.mail.message import Message
from milterchain.proxy.disk import create, go_on_unless, in_thread, sync_directory, write_all

__all__ = ["Maildir"]

_counter = itertools.count(1)
_PRINTABLE = bytes(octet if 0x20 <= octet != 0x7F else 0x3F for octet in range(256))
"""Control characters become `?`: no address can begin a header of its own."""


class Maildir:
    """A Maildir that takes every message."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # The specification wants `/` and `:` of the host name written like this.
        self._host = socket.gethostname().replace("/", "\\057").replace(":", "\\072")

    async def deliver(self, envelope: Envelope, message: Message) -> str:
        """Store one message; return its name in `new/`.

        When cancelled it waits for the thread, which gives up if it can: the message's file is the caller's
        to close, and a thread must not read from it then.

        Raises:
            NextHopError: it could not be stored; the cause is the OSError.
        """
        trace = _trace(envelope)
        try:
            return await in_thread(lambda stop: self._deliver(trace, message, stop))
        except OSError as error:
            raise NextHopError(f"cannot store in {self._path}: {error}") from error

    async def check(self) -> None:
        """Make the directories if they are missing, and see that files can be made there.

        Raises:
            NextHopError: they cannot; the cause is the OSError.
        """
        try:
            await asyncio.to_thread(self._check)
        except OSError as error:
            raise NextHopError(f"cannot store in {self._path}: {error}") from error

    def _check(self) -> None:
        self._make()
        name = self._path / "tmp" / self._name()
        os.close(create(name))
        name.unlink()

    def _deliver(self, trace: bytes, message: Message, stop: threading.Event) -> str:
        name = self._name()
        temporary = self._path / "tmp" / name
        try:
            file = create(temporary)
        except FileNotFoundError:
            self._make()
            file = create(temporary)
        try:
            try:
                size = write_all(file, trace)
                for chunk in _unix_lines(message.chunks()):
                    size += write_all(file, chunk)
                    go_on_unless(stop)
                os.fsync(file)
            finally:
                os.close(file)
            name = f"{name},S={size}"
            temporary.rename(self._path / "new" / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(self._path / "new")
        return name

    def _make(self) -> None:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in ("tmp", "new", "cur"):
            (self._path / directory).mkdir(mode=0o700, exist_ok=True)
        sync_directory(self._path)
        sync_directory(self._path.parent)

    def _name(self) -> str:
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        return f"{seconds}.M{nanoseconds // 1000:06d}P{os.getpid()}Q{next(_counter)}.{self._host}"


def _trace(envelope: Envelope) -> bytes:
    lines = [b"Return-Path: " + envelope.sender.bracketed]
    lines += [b"Delivered-To: " + recipient.bare for recipient in envelope.recipients]
    return b"".join(line.translate(_PRINTABLE) + b"\n" for line in lines)


def _unix_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """CRLF becomes LF, also where a chunk ends between the two."""
    held = b""
    for chunk in chunks:
        piece = held + chunk
        held = b"\r" if piece.endswith(b"\r") else b""
        yield (piece[:-1] if held else piece).replace(b"\r\n", b"\n")
    yield held
