"""A milter that writes down what it is told: `milterchain log-milter --json`."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from integration.services.process import Run, Service, answers, free_port
from integration.services.proxy import LAUNCH


@dataclass(frozen=True, slots=True)
class Witness:
    """A running one.

    Attributes:
        address: as milters' addresses are written.
    """

    address: str
    service: Service

    def events(self, name: str) -> Iterator[dict[str, Any]]:
        """The values of all events of this name so far, each with the number of its session."""
        for line in self.service.log.read_text(encoding="utf-8").splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == name:
                yield {**event["values"], "session": event["session"]}


def start_witness(run: Run, name: str = "witness", *, host: str = "127.0.0.1") -> Witness:
    """Start it."""
    address = f"{'inet6' if ':' in host else 'inet'}:{host}:{free_port(host)}"
    argv = (sys.executable, "-c", LAUNCH, "log-milter", "--json", "--listen", address)
    service = run.spawn(name, argv)
    service.wait_ready(lambda: answers(address))
    return Witness(address, service)
