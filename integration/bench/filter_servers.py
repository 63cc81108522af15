"""The filters that the filter benchmark compares, and the environment that the foreign ones live in.

All Python filters run in Debian's interpreter, for which there is a pymilter, in one environment that is made
when it is missing; nothing of it is a dependency of the project.
"""

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from integration.bench.filter_script import OFFER
from integration.services.filters import DEBIAN_PYTHON, build_noop
from integration.services.process import Run, ServiceError, answers, free_port
from milterchain.milter.connection import Connection, Role
from milterchain.milter.flags import Command
from milterchain.milter.negotiation import Negotiated

__all__ = ["FILTERS", "FilterKind", "Running", "make_environment", "python_version", "start"]

REQUIREMENTS = (
    "purepythonmilter==0.0.1",
    "kilter.service==0.3.1",
    "kilter.protocol==0.6.0",
    "anyio==4.16.0",
    "attrs==26.1.0",
    "uvloop==0.23.0",
    # What milterchain.mailfilter stands on.
    "idna==3.20",
)
"""What is installed there; the whole of it is made anew when this changes."""

_ROOT = Path(__file__).resolve().parents[2]
_PLACE = Path(__file__).with_name("build") / "filters"
_STAMP = _PLACE / "requirements.txt"
_PYTHON = _PLACE / "bin" / "python"
_PROGRAMS = Path(__file__).with_name("noop_filters")

_EVENTS = frozenset(
    {
        *(Command.CONNECT, Command.HELO, Command.MAIL, Command.RCPT, Command.DATA),
        *(Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE),
    }
)


@dataclass(frozen=True, slots=True)
class FilterKind:
    """A filter that is measured.

    Attributes:
        name: as the table shows it.
        program: in `noop_filters`; None for the one that is compiled.
        target: what our rates divided by those of this one must at least be; None where no target is set.
        ours: whether it is of this project.
        every_event: whether it takes and answers every event; the others do as their library asks for.
    """

    name: str
    program: str | None
    target: float | None = None
    ours: bool = False
    every_event: bool = True


FILTERS = (
    FilterKind("milterchain.milter", "with_milterchain.py", ours=True),
    FilterKind("milterchain.mailfilter", "with_mailfilter.py", ours=True, every_event=False),
    FilterKind("pymilter", "with_pymilter.py", target=1.0),
    FilterKind("purepythonmilter", "with_purepythonmilter.py", target=2.0),
    FilterKind("kilter.service", "with_kilter.py", target=2.0),
    FilterKind("libmilter, in C", None),
)


def make_environment(say: Callable[[str], None]) -> None:
    """Make the environment, unless it is there.

    Raises:
        ServiceError: it cannot be made; says why.
    """
    wanted = "\n".join(REQUIREMENTS) + "\n"
    if _STAMP.exists() and _STAMP.read_text() == wanted:
        return
    say(f"making {_PLACE}")
    shutil.rmtree(_PLACE, ignore_errors=True)
    # Debian's interpreter has no pip of its own, and may not have ensurepip: that of this environment serves.
    make = (DEBIAN_PYTHON, "-m", "venv", "--without-pip", "--system-site-packages", str(_PLACE))
    fill = (sys.executable, "-m", "pip", "--python", str(_PYTHON), "install", "--quiet", *REQUIREMENTS)
    for command in (make, fill):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ServiceError(f"{' '.join(command)}: {done.stderr.strip()}")
    _STAMP.write_text(wanted)


def python_version() -> str:
    """That of the interpreter which runs the filters."""
    command = (str(_PYTHON), "--version")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True, slots=True)
class Running:
    """A filter that listens.

    Attributes:
        kind: which.
        port: on loopback.
        pid: of its process.
        negotiated: what it wants of an MTA like Postfix.
    """

    kind: FilterKind
    port: int
    pid: int
    negotiated: Negotiated


def start(run: Run, kind: FilterKind, loop: str) -> Running:
    """Start a filter.

    Raises:
        ServiceError: it does not start, or asks for other events than it should.
    """
    port = free_port()
    if kind.program is None:
        argv: tuple[str, ...] = (str(build_noop(run)), "-p", f"inet:{port}@127.0.0.1")
    else:
        argv = (str(_PYTHON), str(_PROGRAMS / kind.program), "127.0.0.1", str(port), loop)
    service = run.spawn(kind.name.replace(", ", "-"), argv, env={"PYTHONPATH": str(_ROOT)})
    service.wait_ready(lambda: answers(f"inet:127.0.0.1:{port}"))
    negotiated = _negotiate(port)
    missing = _EVENTS - negotiated.answered
    if kind.every_event and missing:
        raise ServiceError(
            f"{kind.name} does not answer {', '.join(sorted(event.name for event in missing))}"
        )
    return Running(kind, port, service.pid, negotiated)


def _negotiate(port: int) -> Negotiated:
    """What a filter wants."""
    connection = Connection(Role.MTA)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as mta:
        mta.sendall(connection.send(OFFER))
        while connection.next_event() is None:
            data = mta.recv(4096)
            if not data:
                raise ServiceError("a filter closed the connection instead of negotiating")
            connection.receive_data(data)
    assert connection.negotiated is not None
    return connection.negotiated
