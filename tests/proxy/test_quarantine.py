"""The quarantine on disk: what is kept, that nothing half-done is ever seen, and who may have what."""

import asyncio
import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import QuarantineError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message, parse_message
from milterchain.proxy import disk
from milterchain.proxy.quarantine import Quarantine, Record

RAW = b"Subject: x\r\n\r\n.dot\r\n\xff\x00\r\nlast"
RECORD = Record(
    id="0B9ZKRT4XQ100001",
    milter="clamav",
    reason=b"Eicar \xff\r\n",
    envelope=Envelope(
        Path(b"<a@client.test>", (b"SIZE=10", b"BODY=8BITMIME")),
        (Path(b"<b@x.test>", (b"NOTIFY=NEVER",)), Path("<ü@x.test>".encode()), Path(b"<\xff@x.test>")),
    ),
    client="192.0.2.7",
    helo=b"client.test",
    held_at=1_700_000_000.5,
)


@pytest.fixture
def message() -> Iterator[Message]:
    with parse_message(RAW) as message:
        yield message


@pytest.fixture
def store(tmp_path: FilePath) -> Quarantine:
    return Quarantine(tmp_path / "var" / "held")


def everything(root: FilePath) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


async def test_a_message_is_held_whole(store: Quarantine, message: Message) -> None:
    await store.hold(RECORD, message)
    assert everything(store.directory) == [
        RECORD.id,
        f"{RECORD.id}/envelope.json",
        f"{RECORD.id}/message.eml",
    ]
    assert store.ids() == [RECORD.id]
    entry = store.entry(RECORD.id)
    assert (entry.record, entry.size, entry.in_doubt) == (RECORD, len(RAW), False)
    with store.message(RECORD.id) as held:
        assert b"".join(held.chunks()) == RAW
        assert held.size == len(RAW)
    assert stat.S_IMODE((store.directory / RECORD.id).stat().st_mode) == 0o700
    for path in (store.directory / RECORD.id).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_all_is_synced_before_it_is_said_to_be_safe(
    store: Quarantine, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    fsync, rename = os.fsync, FilePath.rename

    def synced(file: int) -> None:
        fsync(file)
        happened.append("sync " + FilePath(f"/proc/self/fd/{file}").readlink().name)

    def renamed(path: FilePath, target: FilePath) -> FilePath:
        happened.append(f"rename {path.name} {target.name}")
        return rename(path, target)

    monkeypatch.setattr(disk.os, "fsync", synced)
    monkeypatch.setattr(FilePath, "rename", renamed)
    await store.hold(RECORD, message)
    unfinished = f".{RECORD.id}.new"
    assert happened == [
        f"sync {store.directory.parent.parent.name}",
        "sync var",
        "sync message.eml",
        "sync envelope.json",
        f"sync {unfinished}",
        f"rename {unfinished} {RECORD.id}",
        "sync held",
    ]


@pytest.mark.parametrize("function", ["write", "fsync"])
@pytest.mark.parametrize("after", range(5))
async def test_a_full_disk_leaves_nothing(
    store: Quarantine, message: Message, monkeypatch: pytest.MonkeyPatch, function: str, after: int
) -> None:
    store.directory.mkdir(parents=True)
    real, calls = getattr(os, function), 0

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, "full")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, function, fail)
        with contextlib.suppress(OSError):
            await store.hold(RECORD, message)
            assert calls <= after
    assert bool(store.ids()) == (calls <= after)
    assert store.ids() or everything(store.directory) == []


async def test_nothing_is_written_over(store: Quarantine, message: Message) -> None:
    await store.hold(RECORD, message)
    with parse_message(b"Subject: other\r\n\r\n") as other, pytest.raises(OSError, match="not empty"):
        await store.hold(RECORD, other)


async def test_what_crashes_left_behind_goes_when_it_is_old(store: Quarantine, message: Message) -> None:
    for name, age in ((".A.new", 7200), (".B.gone", 7200), (".C.new", 10), ("D", 7200)):
        (store.directory / name).mkdir(parents=True)
        os.utime(store.directory / name, (time.time() - age,) * 2)
    await store.hold(RECORD, message)
    assert sorted(path.name for path in store.directory.iterdir()) == [".C.new", RECORD.id, "D"]


def test_a_quarantine_that_was_never_needed_is_empty(store: Quarantine) -> None:
    assert store.ids() == []
    assert not store.directory.parent.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "A\n", "é", "x" * 65, ".A.new"])
def test_what_is_no_id(store: Quarantine, name: str) -> None:
    for use in (store.entry, store.message, lambda name: store.claim(name).__enter__()):
        with pytest.raises(QuarantineError, match="is no message ID"):
            use(name)


def test_what_is_not_there(store: Quarantine) -> None:
    with pytest.raises(QuarantineError, match="A1: there is no such message"):
        store.entry("A1")
    with pytest.raises(QuarantineError, match="A1: there is no such message"), store.claim("A1"):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"version": 2}', b"\xff", b"[" * 100_000, b'{"version": 1, "id": "x"}']
)
async def test_an_envelope_that_is_none(store: Quarantine, message: Message, content: bytes) -> None:
    await store.hold(RECORD, message)
    (store.directory / RECORD.id / "envelope.json").write_bytes(content)
    with pytest.raises(QuarantineError, match=f"{RECORD.id}: cannot be read"):
        store.entry(RECORD.id)


@given(st.binary(max_size=50), st.binary(max_size=50), st.lists(st.binary(max_size=50), max_size=5))
def test_octets_come_back_as_they_were(reason: bytes, sender: bytes, others: list[bytes]) -> None:
    envelope = Envelope(Path(sender, tuple(others)), tuple(Path(other, (reason,)) for other in others))
    record = Record(id="A", milter="m", reason=reason, envelope=envelope, helo=sender)
    assert Record.decode(record.encode()) == record
    assert json.loads(record.encode())["version"] == 1


@given(st.binary(max_size=300))
def test_hostile_envelopes_are_values_or_value_errors(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        Record.decode(data)


async def test_only_one_has_a_message(store: Quarantine, message: Message) -> None:
    await store.hold(RECORD, message)
    with store.claim(RECORD.id):
        with pytest.raises(QuarantineError, match="another command"), store.claim(RECORD.id):
            pass
        assert store.entry(RECORD.id).record == RECORD  # looking is free
    with store.claim(RECORD.id) as claim:
        claim.remove()
    assert everything(store.directory) == []


async def test_who_comes_too_late_is_told(store: Quarantine, message: Message) -> None:
    """The lock can be had, but the message has gone meanwhile."""
    await store.hold(RECORD, message)
    second = Quarantine(store.directory)
    flock = disk.os.open(store.directory / RECORD.id, os.O_RDONLY)
    try:
        with store.claim(RECORD.id) as claim:
            claim.remove()
        with pytest.raises(QuarantineError, match="there is no such message"), second.claim(RECORD.id):
            pass
    finally:
        os.close(flock)


async def test_the_mark_stands_while_somebody_may_have_the_message(
    store: Quarantine, message: Message
) -> None:
    await store.hold(RECORD, message)
    with store.claim(RECORD.id) as claim, claim.message() as held:
        pieces = held.chunks(4)
        for _ in range(3):
            next(pieces)
            assert not store.entry(RECORD.id).in_doubt
        list(pieces)
        assert store.entry(RECORD.id).in_doubt
        next(held.chunks(4))  # who begins again has not sent the dot
        assert not store.entry(RECORD.id).in_doubt
        list(held.chunks())
        claim.keep_for(RECORD.envelope.recipients[1:2])
        assert not store.entry(RECORD.id).in_doubt
    assert store.entry(RECORD.id).record.envelope.recipients == RECORD.envelope.recipients[1:2]
    assert everything(store.directory) == [
        RECORD.id,
        f"{RECORD.id}/envelope.json",
        f"{RECORD.id}/message.eml",
    ]


async def test_when_cancelled_it_waits_and_leaves_nothing(store: Quarantine, message: Message) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(store.hold(RECORD, message))
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    # It may have been finished before it could be given up; half of it is never there.
    assert everything(store.directory) in (
        [],
        [RECORD.id, *(f"{RECORD.id}/{name}" for name in ("envelope.json", "message.eml"))],
    )
