"""The public tools that make load and count it: Postfix's smtp-source and smtp-sink."""

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from integration.services.process import Run, Service, ServiceError, answers, free_port, wait_for

ARRIVAL_TIMEOUT = 120.0
"""Seconds after the last 250 in which the last message has to reach the sink."""

COUNT = re.compile(rb"mesg=(\d+)")


@dataclass(frozen=True, slots=True)
class Source:
    """How smtp-source is run.

    Attributes:
        messages: how many in all.
        size: of the body, in bytes.
        sessions: how many at once.
        keep: send all messages of a session over one connection.
    """

    messages: int
    size: int
    sessions: int = 20
    keep: bool = False

    def send(self, address: str) -> float:
        """Send everything and return the seconds until the last reply.

        Raises:
            ServiceError: a message was refused, or smtp-source failed.
        """
        argv = ["smtp-source", "-4", "-s", str(self.sessions), "-m", str(self.messages), "-l", str(self.size)]
        argv += ["-f", "sender@example.test", "-t", "recipient@example.test", "-M", "client.example.test"]
        if self.keep:
            argv.append("-d")
        began = time.perf_counter()
        done = subprocess.run((*argv, address), check=False, capture_output=True, text=True)
        took = time.perf_counter() - began
        if done.returncode:
            raise ServiceError(f"smtp-source to {address}: {done.stderr.strip()}")
        return took


class CountingSink:
    """A running smtp-sink that counts what arrives."""

    def __init__(self, run: Run, name: str = "smtp-sink"):
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        # Its own limit of 256 connections would be met by the chains with the most sessions.
        argv = ("smtp-sink", "-4", "-c", "-u", "nobody", "-m", "1000", self.address, "1000")
        self._service: Service = run.spawn(name, argv)
        self._service.wait_ready(lambda: answers(f"inet:{self.address}"))

    @property
    def count(self) -> int:
        """Messages that arrived so far."""
        with self._service.log.open("rb") as log:
            log.seek(max(0, self._service.log.stat().st_size - 200))
            numbers = COUNT.findall(log.read())
        return int(numbers[-1]) if numbers else 0

    def wait_for(self, count: int) -> None:
        """Wait until so many messages are there.

        Raises:
            ServiceError: they are not, or there are more.
        """
        wait_for(lambda: self.count >= count, f"{count} messages in the sink", ARRIVAL_TIMEOUT)
        if self.count > count:
            raise ServiceError(f"{self.count} messages arrived, {count} were sent")


@dataclass(frozen=True, slots=True)
class Round:
    """What one run of smtp-source showed.

    Attributes:
        accepted: seconds until the client had its last reply.
        arrived: seconds until the last message was in the sink.
        cpu: seconds of CPU of the observed process, 0 when none was observed.
    """

    accepted: float
    arrived: float
    cpu: float


def run_round(source: Source, address: str, sink: CountingSink, pid: int | None = None) -> Round:
    """Send, wait for the arrival of every message, and return the times."""
    before = sink.count
    cpu = cpu_seconds(pid) if pid is not None else 0.0
    began = time.perf_counter()
    accepted = source.send(address)
    sink.wait_for(before + source.messages)
    arrived = time.perf_counter() - began
    return Round(accepted, arrived, cpu_seconds(pid) - cpu if pid is not None else 0.0)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    """The most bytes that a process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024
