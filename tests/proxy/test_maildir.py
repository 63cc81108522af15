"""Maildir delivery: what is in the file, and that nothing half-done is ever seen."""

import asyncio
import errno
import mailbox
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path as FilePath

import pytest

from milterchain.errors import NextHopError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message, parse_message
from milterchain.proxy import maildir as module
from milterchain.proxy.maildir import Maildir
from milterchain.proxy.nexthop import MaildirHop
from milterchain.proxy.relay import NextHops
from milterchain.proxy.relay_replies import failure_reply

SENDER = Path(b"<a@client.test>", (b"SIZE=10",))
ONE, TWO = Path(b"<one@x.test>"), Path(b"two@x.test")
ENVELOPE = Envelope(SENDER, (ONE, TWO))
CONTENT = b"Subject: x\r\n\r\n.dot\r\n\r\r\n\xff\x00\r\nlast"


@pytest.fixture
def message():
    with parse_message(CONTENT) as message:
        yield message


def files(root: FilePath) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_a_message_is_stored_whole(tmp_path: FilePath, message: Message) -> None:
    root = tmp_path / "deep" / "mail"
    name = await Maildir(root).deliver(ENVELOPE, message)
    assert files(root) == [f"new/{name}"]
    stored = (root / "new" / name).read_bytes()
    assert stored == (
        b"Return-Path: <a@client.test>\nDelivered-To: one@x.test\nDelivered-To: two@x.test\n"
        b"Subject: x\n\n.dot\n\r\n\xff\x00\nlast"
    )
    assert re.fullmatch(r"\d+\.M\d{6}P\d+Q\d+\.[^/:]+,S=(\d+)", name)
    assert name.endswith(f",S={len(stored)}")
    assert stat.S_IMODE((root / "new" / name).stat().st_mode) == 0o600
    for directory in (root, root / "tmp", root / "new", root / "cur"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (read,) = mailbox.Maildir(root)
    assert read["Subject"] == "x"


async def test_names_are_unique(tmp_path: FilePath, message: Message) -> None:
    maildir = Maildir(tmp_path)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(maildir.deliver(ENVELOPE, message)) for _ in range(50)]
    assert len({task.result() for task in tasks}) == 50
    assert len(files(tmp_path)) == 50


async def test_a_host_name_cannot_change_the_path(
    tmp_path: FilePath, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "../a:b")
    name = await Maildir(tmp_path).deliver(ENVELOPE, message)
    assert r"...\057a\072b,S=" in name
    assert files(tmp_path) == [f"new/{name}"]


async def test_an_address_cannot_add_a_header(tmp_path: FilePath, message: Message) -> None:
    envelope = Envelope(Path(b"<>"), (Path(b"<a\nEvil: x\r@b\x00>"),))
    name = await Maildir(tmp_path).deliver(envelope, message)
    stored = (tmp_path / "new" / name).read_bytes()
    assert stored.startswith(b"Return-Path: <>\nDelivered-To: a?Evil: x?@b?\nSubject")


class Pieces:
    """Stands for a message: yields given chunks, and may do something between them."""

    def __init__(self, *chunks: bytes | BaseException | threading.Event) -> None:
        self.reading = threading.Event()
        self._chunks = chunks

    def chunks(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, threading.Event):
                self.reading.set()
                chunk.wait(10)
            elif isinstance(chunk, BaseException):
                raise chunk
            else:
                yield chunk


@pytest.mark.parametrize("content", [b"a\r\nb\r\n", b"\r\r\n\r", b"\r\n\r\n", b"a\rb\nc\r\n\r", b""])
async def test_line_ends_are_converted_across_chunks(content: bytes, tmp_path: FilePath) -> None:
    for cut in range(len(content) + 1):
        pieces = Pieces(content[:cut], content[cut:])
        name = await Maildir(tmp_path).deliver(ENVELOPE, pieces)  # type: ignore[arg-type]
        stored = (tmp_path / "new" / name).read_bytes()
        assert stored.split(b"two@x.test\n", 1)[1] == content.replace(b"\r\n", b"\n")


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [(errno.ENOSPC, 452, b"4.3.1"), (errno.EDQUOT, 452, b"4.3.1"), (errno.EIO, 451, b"4.3.0")],
)
@pytest.mark.parametrize("function", ["write", "fsync", "rename", "open", "mkdir"])
async def test_an_error_leaves_nothing(
    function: str,
    number: int,
    code: int,
    status: bytes,
    tmp_path: FilePath,
    message: Message,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "secret")

    hops = NextHops([MaildirHop(tmp_path / "mail")])
    transaction = hops.begin(SENDER)
    assert (await transaction.rcpt(ONE)).code == 250
    with monkeypatch.context() as patch:
        patch.setattr(module.os, function, fail)
        with pytest.raises(NextHopError, match="cannot store in") as caught:
            await transaction.send(ENVELOPE, message)
    reply = failure_reply(caught.value)
    assert (reply.code, reply.status) == (code, status)
    assert files(tmp_path) == []
    await hops.close()


async def test_a_write_that_stops_short_goes_on(
    tmp_path: FilePath, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "write", lambda file, data: write(file, data[:3]))
        name = await Maildir(tmp_path).deliver(ENVELOPE, message)
    assert (tmp_path / "new" / name).read_bytes().endswith(b"\nlast")


async def test_a_message_that_cannot_be_read_leaves_nothing(tmp_path: FilePath) -> None:
    for error in (OSError(errno.EIO, "x"), ValueError("closed")):
        with pytest.raises((NextHopError, ValueError)):
            await Maildir(tmp_path).deliver(ENVELOPE, Pieces(b"a", error))  # type: ignore[arg-type]
    assert files(tmp_path) == []


async def test_cancellation_waits_for_the_thread_and_leaves_nothing(tmp_path: FilePath) -> None:
    go = threading.Event()
    pieces = Pieces(b"Subject: x\r\n", go, b"\r\n", b"text\r\n")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Maildir(tmp_path).deliver(ENVELOPE, pieces))  # type: ignore[arg-type]
        await asyncio.to_thread(pieces.reading.wait, 10)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
    assert task.cancelled()
    assert files(tmp_path) == []


async def test_through_the_relay(tmp_path: FilePath, message: Message) -> None:
    hops = NextHops([MaildirHop(tmp_path)])
    transaction = hops.begin(SENDER)
    await transaction.rcpt(ONE)
    delivery = await transaction.send(ENVELOPE, message)
    assert str(delivery.reply) == "250 2.0.0 Ok: stored"
    assert delivery.hop == f"maildir:{tmp_path}"
    assert len(files(tmp_path)) == 1
    await hops.close()


async def test_probe(tmp_path: FilePath) -> None:
    (status,) = await NextHops([MaildirHop(tmp_path / "mail")]).probe()
    assert status.error is None
    assert files(tmp_path) == []
    assert (tmp_path / "mail" / "new").is_dir()
    (tmp_path / "file").touch()
    (status,) = await NextHops([MaildirHop(tmp_path / "file")]).probe()
    assert "cannot store in" in str(status.error)
    assert status.features is None
