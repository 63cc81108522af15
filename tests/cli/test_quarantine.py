"""`milterchain quarantine`: what it prints, what it does, and its exit code."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path as FilePath
from typing import Any

import pytest

from milterchain.cli.quarantine import text_lines
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import parse_message
from milterchain.proxy.quarantine import Quarantine, Record
from milterchain.testing import ScriptedNextHop
from milterchain.testing.faults import Close

RAW = b"Subject: x\r\n\r\n\xff\x1b[2Jbody\r\n"


class Place:
    """A configuration with messages in its quarantine."""

    def __init__(self, directory: FilePath) -> None:
        self.file = directory / "milterchain.toml"
        self.store = Quarantine(directory / "held")
        self.configure("discard:")

    def configure(self, hop: str) -> None:
        self.file.write_text(f'[quarantine]\ndirectory = "held"\n[relay]\nnext_hop = ["{hop}"]\n')

    async def hold(self, name: str, *recipients: bytes, reason: bytes = b"why") -> None:
        paths = tuple(Path(b"<%b>" % each, (b"NOTIFY=NEVER",)) for each in recipients)
        record = Record(
            id=name,
            milter="clamav",
            reason=reason,
            envelope=Envelope(Path(b"<a@client.test>"), paths),
            client="192.0.2.7",
            helo=b"client.test",
            held_at=1_700_000_000,
        )
        with parse_message(RAW) as message:
            await self.store.hold(record, message)


@pytest.fixture
async def place(tmp_path: FilePath) -> Place:
    place = Place(tmp_path)
    await place.hold("A1", b"b@x.test")
    await place.hold("A2", b"b@x.test", b"c@x.test", b"d@x.test", reason=b"a\x1b[2J\r\nb")
    return place


async def test_each_row_begins_with_the_id(command: Any, place: Place) -> None:
    code, out, err = await command("quarantine", "list", "-c", place.file)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.split() == [
        "A1",
        "2023-11-14T22:13:20Z",
        str(len(RAW)),
        "clamav",
        "<a@client.test>",
        "<b@x.test>",
        "why",
    ]
    assert second.startswith("A2  ")
    assert "<b@x.test> and 2 more" in second
    assert r"a\x1b[2J\r\nb" in second


async def test_a_terminal_has_titles(command: Any, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setattr("milterchain.cli.output._width", lambda _: 200)
    monkeypatch.setenv("TERM", "vt100")
    _, out, _ = await command("quarantine", "list", "-c", place.file)
    assert re.sub(r"\x1b\[\d*m", "", out).split()[0] == "ID"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_lines_on_a_terminal_do_not_depend_on_how_the_message_is_read(size: int) -> None:
    raw = "Subject: Größe\r\n\r\nüber\r\n\r\nend".encode() + b"\xff"
    chunks = [raw[start : start + size] for start in range(0, len(raw), size)]
    assert list(text_lines(chunks)) == ["Subject: Größe", "", "über", "", r"end\xff"]


def test_a_line_without_end_is_broken() -> None:
    lines = list(text_lines([b"x" * 50_000] * 3))
    assert (len(lines), sum(map(len, lines))) == (2, 150_000)


async def test_nothing_held(command: Any, tmp_path: FilePath) -> None:
    place = Place(tmp_path)
    assert await command("quarantine", "list", "-c", place.file) == (0, "", "")
    assert await command("quarantine", "release", "--all", "-c", place.file) == (0, "", "")


async def test_one_that_cannot_be_read_does_not_hide_the_others(command: Any, place: Place) -> None:
    (place.store.directory / "A1" / "envelope.json").write_text("?")
    code, out, err = await command("quarantine", "list", "-c", place.file)
    assert code == 1
    assert out.startswith("A2 ")
    assert err.startswith("A1: cannot be read: ")


async def test_show(place: Place) -> None:
    def show(*options: str) -> bytes:
        arguments = ["quarantine", "show", "A2", "-c", str(place.file), *options]
        done = subprocess.run(
            [sys.executable, "-m", "milterchain", *arguments], check=True, capture_output=True
        )
        return done.stdout

    out = await asyncio.to_thread(show)
    assert await asyncio.to_thread(show, "--raw") == RAW
    head, _, message = out.partition(b"\n\n")
    assert head.decode().splitlines() == [
        "id: A2",
        "held: 2023-11-14T22:13:20Z",
        "milter: clamav",
        r"reason: a\x1b[2J\r\nb",
        "client: 192.0.2.7",
        "helo: client.test",
        "sender: <a@client.test>",
        *(f"recipient: <{each}@x.test> NOTIFY=NEVER" for each in "bcd"),
        f"size: {len(RAW)}",
    ]
    assert message == RAW


async def test_release(command: Any, place: Place) -> None:
    async with ScriptedNextHop() as hop:
        place.configure(hop.next_hop)
        code, out, err = await command("quarantine", "release", "A1", "A2", "-c", place.file)
        assert (code, err) == (0, "")
        assert [line.split(":")[0] for line in out.splitlines()] == [
            "A1 released to smtp",
            "A2 released to smtp",
        ]
        assert [message.data for message in hop.accepted] == [RAW, RAW]
        assert place.store.ids() == []
        code, out, err = await command("quarantine", "release", "A1", "-c", place.file)
        assert (code, out, err) == (1, "", "A1: there is no such message\n")
        assert len(hop.accepted) == 2


async def test_what_fails_does_not_stop_the_others(command: Any, place: Place) -> None:
    async with ScriptedNextHop() as hop:
        place.configure(hop.next_hop)
        code, out, err = await command("quarantine", "release", "A0", "../A1", "A2", "-c", place.file)
    assert code == 1
    assert out.startswith("A2 released")
    assert err == "A0: there is no such message\n'../A1' is no message ID\n"
    assert place.store.ids() == ["A1"]


async def test_refused_recipients_are_named(command: Any, place: Place) -> None:
    script = {"RCPT": lambda argument: "550 5.1.1 who" if b"<c@" in argument else None}
    async with ScriptedNextHop(script) as hop:
        place.configure(hop.next_hop)
        code, out, err = await command("quarantine", "release", "A2", "-c", place.file)
    assert code == 1
    assert out.startswith("A2 released")
    assert err == "A2: still held for c@x.test: 550 5.1.1 who\n"
    assert hop.accepted[0].recipients == (b"b@x.test", b"d@x.test")
    assert place.store.ids() == ["A1", "A2"]


async def test_in_doubt(command: Any, place: Place) -> None:
    async with ScriptedNextHop({".": Close()}) as hop:
        place.configure(hop.next_hop)
        code, _, err = await command("quarantine", "release", "A1", "-c", place.file)
    assert code == 1
    assert "could have taken" in err
    _, out, _ = await command("quarantine", "list", "-c", place.file)
    assert out.splitlines()[0].endswith("why (release in doubt)")
    async with ScriptedNextHop() as hop:
        place.configure(hop.next_hop)
        code, out, _ = await command("quarantine", "release", "--all", "-c", place.file)
        assert code == 1
        assert out.startswith("A2 released")
        code, out, _ = await command("quarantine", "release", "--again", "A1", "-c", place.file)
        assert code == 0
    assert place.store.ids() == []


async def test_delete(command: Any, place: Place) -> None:
    assert await command("quarantine", "delete", "A1", "-c", place.file) == (0, "A1 deleted\n", "")
    assert place.store.ids() == ["A2"]
    with place.store.claim("A2"):
        code, out, err = await command("quarantine", "delete", "--all", "-c", place.file)
        assert (code, out, err) == (1, "", "A2: another command is at work on it\n")
    assert (await command("quarantine", "delete", "--all", "-c", place.file))[0] == 0
    assert list(place.store.directory.iterdir()) == []


@pytest.mark.parametrize("verb", ["show", "release", "delete"])
async def test_which_ones(command: Any, place: Place, verb: str) -> None:
    code, out, err = await command("quarantine", verb, "-c", place.file)
    assert (code, out) == (2, "")
    assert "ID" in err
    if verb != "show":
        assert (await command("quarantine", verb, "A1", "--all", "-c", place.file))[0] == 2
    assert place.store.ids() == ["A1", "A2"]
