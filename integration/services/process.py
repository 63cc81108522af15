"""Processes of one run: started with a log file, waited for by a condition, ended by pid.

A `Run` owns one temporary directory and everything that is started in it.  Leaving the context ends
the processes in reverse order and removes the directory; after a failure the tails of all logs are
printed first.
"""

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

READY_TIMEOUT = 30.0
"""Seconds a service gets to answer; rspamd, the slowest, needs two on an idle machine."""

STOP_TIMEOUT = 2.0
"""Seconds between SIGTERM and SIGKILL.  libmilter daemons would take up to four, but keep no state."""

LOG_TAIL = 4000
"""Bytes of each log that are shown after a failure."""


class ServiceError(Exception):
    """A service did not start, or ended by itself."""


def wait_for(condition: Callable[[], T], what: str, timeout: float = READY_TIMEOUT) -> T:
    """Poll until `condition` answers something true, and return that."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise ServiceError(f"{what}: not so after {timeout:g} s")
        time.sleep(0.005)
    return value


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now.

    It is below those that the kernel gives to outgoing connections: one of these could otherwise take
    the port of a server that is being restarted.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, lowest) if lowest > 11_000 else 0
        with socket.socket(_family(host)) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def answers(address: str) -> bool:
    """Whether somebody listens at `inet:HOST:PORT`, `inet6:HOST:PORT` or `unix:/PATH`."""
    family, _, rest = address.partition(":")
    where: str | tuple[str, int]
    if family == "unix":
        kind, where = socket.AF_UNIX, rest
    else:
        host, _, port = rest.rpartition(":")
        host = host.strip("[]")
        kind, where = _family(host), (host, int(port))
    with socket.socket(kind) as probe:
        probe.settimeout(1)
        try:
            probe.connect(where)
        except OSError:
            return False
        return True


class Service:
    """One child process in a process group of its own.

    Attributes:
        name: what messages call it.
        log: file with everything it printed.
        pid: of the child that was started.
    """

    def __init__(self, name: str, argv: Sequence[str], *, log: Path, directory: Path, env: Mapping[str, str]):
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=env,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process still exists."""
        return self._process.poll() is None

    def wait_ready(self, ready: Callable[[], object], timeout: float = READY_TIMEOUT) -> None:
        """Wait for `ready`; fail at once if the process ends before.

        Raises:
            ServiceError: it ended, or was not ready in time.
        """

        def check() -> bool:
            if ready():
                return True
            if not self.running:
                raise ServiceError(
                    f"{self.name} ended with status {self._process.returncode}:\n{self.tail()}"
                )
            return False

        wait_for(check, f"{self.name} answers", timeout)

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process and those that it started in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.signal_group(signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout: float) -> int:
        """Wait until it ends by itself, and return the exit status."""
        return self._process.wait(timeout)

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """Ask it to end, insist after `timeout`, and return the exit status."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()
        return self._process.returncode

    def tail(self, size: int = LOG_TAIL) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-size:].decode(errors="replace")


class Run:
    """The directory and the processes of one run.

    Attributes:
        directory: removed at the end; others may search it, because daemons drop their privileges.
        prefix: put before the argv of each service (names.py sets it).
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mc-"))
        self.directory.chmod(0o755)
        self.prefix: tuple[str, ...] = ()
        self._services: list[Service] = []
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not when the user interrupts: the logs say nothing about that.
        self.close(failed=isinstance(error, Exception))

    def close(self, *, failed: bool = False) -> None:
        """End everything, print the logs if the run failed, and remove the directory."""
        # All are asked first, so that slow ones end side by side.
        for service in self._services:
            if service.running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(service.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT
        for service in reversed(self._services):
            service.stop(max(0, deadline - time.monotonic()))
        if failed:
            self.print_logs()
        self._services.clear()
        self._closing.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def at_close(self, action: Callable[[], object]) -> None:
        """Run `action` after the processes have ended."""
        self._closing.callback(action)

    def print_logs(self) -> None:
        """Print the end of each log of this run."""
        for path in sorted(self.directory.rglob("*.log")):
            if text := path.read_bytes()[-LOG_TAIL:].decode(errors="replace").strip():
                print(f"--- {path.relative_to(self.directory)}\n{text}", file=sys.stderr)

    def place(self, name: str, owner: str | None = None) -> Path:
        """Make a directory for one service, owned by the user that it runs as."""
        path = self.directory / name
        path.mkdir()
        path.chmod(0o755)
        if owner is not None:
            user = pwd.getpwnam(owner)
            os.chown(path, user.pw_uid, user.pw_gid)
        return path

    def spawn(self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Service:
        """Start a process, its log beside the others'."""
        service = Service(
            name,
            (*self.prefix, *argv),
            log=self.directory / f"{name}.log",
            directory=self.directory,
            env={**os.environ, **(env or {})},
        )
        self._services.append(service)
        return service
