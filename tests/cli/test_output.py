"""Standard streams that are closed, that nobody reads any more, or that cannot be written."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from milterchain.mail.envelope import Envelope
from milterchain.mail.envelope import Path as Address
from milterchain.mail.message import parse_message
from milterchain.proxy.quarantine import Quarantine, Record

IDS = ("A1", "A2", "A3")
SHOWING = (
    "quarantine list",
    "quarantine show A1",
    "check",
    "trace --milter unix:/none --from a@b.test --to c@d.test message.eml",
    "milter-check --connect unix:/none",
)
DOING = ("quarantine delete A1 A2", "quarantine release A1 A2")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where there is a configuration, and messages are held."""
    (tmp_path / "milterchain.toml").write_text('[relay]\nnext_hop = ["discard:"]\n')
    (tmp_path / "message.eml").write_bytes(b"Subject: x\r\n\r\nbody\r\n")
    store = Quarantine(tmp_path / "quarantine")

    async def hold() -> None:
        for name in IDS:
            envelope = Envelope(Address(b"<a@b.test>"), (Address(b"<c@d.test>"),))
            record = Record(id=name, milter="m", reason=b"why", envelope=envelope)
            with parse_message(b"Subject: x\r\n\r\n" + b"line\r\n" * 50_000) as message:
                await store.hold(record, message)

    asyncio.run(hold())
    return tmp_path


def play(place: Path, command: str, stdout: str, *, unbuffered: str = "") -> tuple[int, str]:
    """The exit code, and what is on standard error."""
    words = command.split()
    configured = words[0] in {"quarantine", "check", "trace"} and "--help" not in words
    argv = [sys.executable, "-m", "milterchain", *words, *(["-c", "milterchain.toml"] if configured else [])]
    quoted = " ".join(f"'{word}'" for word in argv)
    done = subprocess.run(
        ["sh", "-c", f"{quoted} {stdout}"],
        cwd=place,
        input="password\n",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": unbuffered},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", SHOWING)
def test_closed(place: Path, command: str) -> None:
    code, errors = play(place, command, ">&-")
    # There is no such milter.
    assert (code, errors) == ("unix:/none" in command, "")


def test_all_closed(place: Path) -> None:
    assert play(place, "quarantine delete A1", ">&- 2>&- <&-") == (0, "")
    assert Quarantine(place / "quarantine").ids() == ["A2", "A3"]


@pytest.mark.parametrize("command", [*SHOWING[:3], "--version"])
def test_nobody_reads_it(place: Path, command: str) -> None:
    assert play(place, command, "| true")[1] == ""


@pytest.mark.parametrize("command", DOING)
def test_what_is_to_be_done_is_done_though_nobody_reads_of_it(place: Path, command: str) -> None:
    assert play(place, command, "| true")[1] == ""
    assert Quarantine(place / "quarantine").ids() == ["A3"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("command", [*SHOWING[:2], "hash-password me"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_no_room(place: Path, command: str, unbuffered: str) -> None:
    code, errors = play(place, command, "> /dev/full", unbuffered=unbuffered)
    assert len(errors.splitlines()) == 1, errors
    assert code == 1
    assert errors.endswith("No space left on device\n")
