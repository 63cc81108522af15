"""The quarantine on disk: messages that are held until somebody releases or deletes them.

Each message is a directory `ID` with two files, `message.eml` (the octets that would have been relayed) and
`envelope.json` (sender, recipients, who sent it, who wants it held and why). The directory is made under
another name, its files are synced, it is renamed and the parent is synced: once `hold` returns, the message
survives a power cut, and no command ever sees half of one. What a crash left behind is removed later.

Commands may run at the same time, and beside the proxy: whoever releases or deletes a message holds a lock on
its directory (`claim`). A third file, `releasing`, appears before a next hop can have the whole message, and
goes when it is known what became of it. Where it is found, a release was interrupted exactly there.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path as FilePath
from typing import Any, Final, Self

from milterchain.errors import QuarantineError
from milterchain.mail.body import Body
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.headers import VIRTUAL_RECEIVED, Headers
from milterchain.mail.message import RELAY_CHUNK, Message
from milterchain.proxy.disk import go_on_unless, in_thread, make_directory, sync_directory, write_file

__all__ = ["Claim", "Entry", "Quarantine", "Record"]

_ID: Final = re.compile(r"[0-9A-Za-z]{1,64}", re.ASCII)
_MESSAGE: Final = "message.eml"
_ENVELOPE: Final = "envelope.json"
_MARK: Final = "releasing"
_VERSION: Final = 1
_LEFTOVER_AGE: Final = 3600.0
"""Seconds after which an unfinished directory is nobody's: messages have ten minutes."""
_MAX_ENVELOPE: Final = 16 * 2**20
"""Octets of an envelope that are read; a thousand recipients of a thousand octets fit many times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a held message.

    Attributes:
        id: its queue id.
        milter: who wants it held.
        reason: the milter's own words.
        envelope: as the milters left it.
        client: the address of the client.
        helo: what the client called itself.
        held_at: seconds since 1970.
    """

    id: str
    milter: str
    reason: bytes
    envelope: Envelope
    client: str = ""
    helo: bytes = b""
    held_at: float = 0.0

    def encode(self) -> bytes:
        """The content of `envelope.json`."""
        document = {
            "version": _VERSION,
            "id": self.id,
            "held_at": self.held_at,
            "milter": self.milter,
            "reason": _text(self.reason),
            "sender": _path(self.envelope.sender),
            "recipients": [_path(path) for path in self.envelope.recipients],
            "client": self.client,
            "helo": _text(self.helo),
        }
        return json.dumps(document, indent=1).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it back.

        Raises:
            ValueError: it is something else.
        """
        try:
            document = json.loads(data)
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']!r} of {_ENVELOPE} is unknown")
            return cls(
                id=str(document["id"]),
                milter=str(document["milter"]),
                reason=_octets(document["reason"]),
                envelope=Envelope(
                    _read_path(document["sender"]),
                    tuple(_read_path(path) for path in document["recipients"]),
                ),
                client=str(document["client"]),
                helo=_octets(document["helo"]),
                held_at=float(document["held_at"]),
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{_ENVELOPE} is not what was written: {error!r}") from error


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _octets(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _path(path: Path) -> dict[str, Any]:
    return {"address": _text(path.address), "args": [_text(argument) for argument in path.args]}


def _read_path(document: dict[str, Any]) -> Path:
    return Path(_octets(document["address"]), tuple(_octets(argument) for argument in document["args"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A held message, as lists show it.

    Attributes:
        size: octets of the message.
        in_doubt: whether a release was interrupted when the next hop could have the message.
    """

    record: Record
    size: int
    in_doubt: bool


class Quarantine:
    """The messages in one directory, which is made when it is first needed."""

    def __init__(self, directory: FilePath) -> None:
        self.directory = directory
        self._swept = False

    async def hold(self, record: Record, message: Message) -> None:
        """Keep a message; it is safe when this returns.

        Raises:
            OSError: it could not be stored, and is not.
        """
        await in_thread(lambda stop: self._store(record, message, stop))

    def _store(self, record: Record, message: Message, stop: threading.Event) -> None:
        make_directory(self.directory)
        if not self._swept:
            self._swept = True
            self._sweep()
        unfinished = self.directory / f".{record.id}.new"
        finished = self.directory / record.id
        try:
            unfinished.mkdir(mode=0o700)
            write_file(unfinished / _MESSAGE, message.chunks(), stop)
            write_file(unfinished / _ENVELOPE, [record.encode()], stop)
            sync_directory(unfinished)
            go_on_unless(stop)
            unfinished.rename(finished)
            sync_directory(self.directory)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(finished, ignore_errors=True)
            raise

    def _sweep(self) -> None:
        """Remove what crashes left behind."""
        oldest = time.time() - _LEFTOVER_AGE
        for path in self.directory.glob(".*"):
            with contextlib.suppress(OSError):
                if path.suffix in {".new", ".gone"} and path.stat().st_mtime < oldest:
                    shutil.rmtree(path, ignore_errors=True)

    def ids(self) -> list[str]:
        """The ids of all messages, oldest first.

        Raises:
            QuarantineError: the directory cannot be read.
        """
        try:
            names = [path.name for path in self.directory.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise QuarantineError(f"{self.directory}: cannot be read: {error.strerror}") from error
        return sorted(name for name in names if _ID.fullmatch(name))

    def entry(self, name: str) -> Entry:
        """What is known of one message.

        Raises:
            QuarantineError: there is no such message, or it cannot be read.
        """
        place = self._place(name)
        try:
            return Entry(
                record=_read_record(place),
                size=(place / _MESSAGE).stat().st_size,
                in_doubt=(place / _MARK).exists(),
            )
        except FileNotFoundError as error:
            raise QuarantineError(f"{name}: there is no such message") from error
        except (OSError, ValueError) as error:
            raise QuarantineError(f"{name}: cannot be read: {error}") from error

    def message(self, name: str) -> Message:
        """The octets of one message, whose body is the caller's to close. All of it is body.

        Raises:
            QuarantineError: there is no such message, or it cannot be read.
        """
        return _open_message(self._place(name), name)

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator["Claim"]:
        """Have a message for oneself.

        Raises:
            QuarantineError: there is no such message, it cannot be read, or another command has it.
        """
        place = self._place(name)
        try:
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise QuarantineError(f"{name}: there is no such message") from error
        except OSError as error:
            raise QuarantineError(f"{name}: cannot be read: {error.strerror}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise QuarantineError(f"{name}: another command is at work on it") from error
            # Whoever had the lock before may have taken the message away under this name.
            yield Claim(place, self.entry(name))
        finally:
            os.close(lock)

    def _place(self, name: str) -> FilePath:
        if not _ID.fullmatch(name):
            raise QuarantineError(f"{name!r} is no message ID")
        return self.directory / name


class Claim:
    """A message that nobody else can release or delete meanwhile. Made by `Quarantine.claim`.

    Attributes:
        record: what is known of it.
        in_doubt: whether a next hop may have it.
    """

    def __init__(self, place: FilePath, entry: Entry) -> None:
        self.record = entry.record
        self.in_doubt = entry.in_doubt
        self._place = place

    def message(self) -> Message:
        """Its octets; reading them to the end sets the mark, as a next hop can have them all then.

        Raises:
            QuarantineError: they cannot be read.
        """
        plain = _open_message(self._place, self.record.id)
        return _Watched(plain.headers, plain.separator, plain.body, self)

    def mark(self) -> None:
        """Note that a next hop may have the message from now on."""
        if not self.in_doubt:
            write_file(self._place / _MARK, [b""])
            sync_directory(self._place)
            self.in_doubt = True

    def unmark(self) -> None:
        """Note that no next hop has the message."""
        if self.in_doubt:
            (self._place / _MARK).unlink()
            sync_directory(self._place)
            self.in_doubt = False

    def keep_for(self, recipients: Sequence[Path]) -> None:
        """Hold the message for these recipients only; the others have it. For nobody, it is removed."""
        if not recipients:
            self.remove()
            return
        envelope = Envelope(self.record.envelope.sender, tuple(recipients))
        self.record = replace(self.record, envelope=envelope)
        fresh = self._place / f"{_ENVELOPE}.new"
        fresh.unlink(missing_ok=True)
        write_file(fresh, [self.record.encode()])
        fresh.rename(self._place / _ENVELOPE)
        sync_directory(self._place)
        self.unmark()

    def remove(self) -> None:
        """Take the message out of the quarantine, for good."""
        gone = self._place.with_name(f".{self._place.name}.gone")
        self._place.rename(gone)
        sync_directory(gone.parent)
        shutil.rmtree(gone, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Watched(Message):
    """A message that tells its claim when it was read to the end."""

    claim: Claim

    def chunks(self, size: int = RELAY_CHUNK) -> Iterator[bytes]:
        """See `Message.chunks`. Who begins again has not handed over what was read before."""
        self.claim.unmark()
        yield from Message.chunks(self, size)
        self.claim.mark()


def _read_record(place: FilePath) -> Record:
    with (place / _ENVELOPE).open("rb") as file:
        return Record.decode(file.read(_MAX_ENVELOPE))


def _open_message(place: FilePath, name: str) -> Message:
    try:
        file = FileIO(place / _MESSAGE)
        body = Body(b"", file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise QuarantineError(f"{name}: cannot be read: {error.strerror}") from error
    return Message(Headers((VIRTUAL_RECEIVED,)), b"", body)
