"""The two ways of one message, side by side: through milterchain, and through Postfix's own milters.

    client → milterchain [filters] → Postfix → sink
    client → Postfix [smtpd_milters: the same filters] → sink

What differs by nature, and is taken out before the comparison:

- the Received header of the machine that the client spoke to: its text is the other program's, but it
  has to be at the same place among the others;
- behind milterchain, Postfix's Received header, which is the topmost line there;
- in a DKIM signature the time and what follows from it: `t=` and `b=`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from integration.corpus import Sample
from integration.services.filters import Filter
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run, wait_for
from integration.services.proxy import milter_table, start_proxy
from integration.services.sink import Received, Sink, start_sink
from integration.services.smtp import Client, Outcome

PROXY_HOST = b"proxy.example.test"
POSTFIX_HOST = b"mx.example.test"
OWN_RECEIVED = rb"Received: [^\r]*(?:\r\n[ \t][^\r]*)*?\bby %b\b[^\r]*(?:\r\n[ \t][^\r]*)*\r\n"
SIGNATURE = re.compile(rb"^DKIM-Signature:[^\r]*(?:\r\n[ \t][^\r]*)*\r\n", re.MULTILINE)
SIGNATURE_TIME = re.compile(rb"\bt=\d+;")
SIGNATURE_BYTES = re.compile(rb"\bb=[A-Za-z0-9+/=\s]*")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message in a sink, without what differs by nature.

    Attributes:
        sender: path with parameters.
        recipients: likewise, sorted.
        content: header and body.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes


@dataclass(frozen=True, slots=True)
class Passage:
    """What the client was told, and what arrived."""

    outcome: Outcome
    arrival: Arrival | None


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two ways."""

    address: str
    postfix: Postfix
    sink: Sink
    proxied: bool

    def pass_on(self, sample: Sample) -> Passage:
        """Send a sample in a session of its own and wait for what becomes of it.

        Raises:
            ServiceError: it was accepted and did not arrive.
        """
        before = len(self.sink.received())
        with Client(self.address) as client:
            outcome = client.send(sample.sender, sample.paths, sample.content, stuffed=sample.raw)
            client.quit()
        if not outcome.accepted:
            return Passage(outcome, None)
        wait_for(lambda: len(self.sink.received()) > before, f"{sample.name} arrives behind {self.address}")
        return Passage(outcome, self.arrival(self.sink.received()[before]))

    def arrived_since(self, before: int) -> list[Arrival]:
        """Wait for the queue to run empty, and return what came after the first `before` messages."""
        self.postfix.wait_until_empty()
        return [self.arrival(received) for received in self.sink.received()[before:]]

    def arrival(self, received: Received) -> Arrival:
        """A message without what differs by nature."""
        content = self.sink.content(received)
        if self.proxied:
            content = _without_received(content, POSTFIX_HOST, b"")
            content = _without_received(content, PROXY_HOST, b"Received: (here)\r\n")
        else:
            content = _without_received(content, POSTFIX_HOST, b"Received: (here)\r\n")
        return Arrival(
            _without_size(received.sender),
            tuple(sorted(received.recipients)),
            SIGNATURE.sub(_without_time, content),
        )


def _without_received(content: bytes, host: bytes, instead: bytes) -> bytes:
    return re.sub(OWN_RECEIVED % re.escape(host), lambda _: instead, content, count=1)


def _without_time(signature: re.Match[bytes]) -> bytes:
    return SIGNATURE_BYTES.sub(b"b=", SIGNATURE_TIME.sub(b"t=;", signature[0]))


def _without_size(path: str) -> str:
    # Postfix adds SIZE itself; the Received header counts.
    return re.sub(r" SIZE=\d+", "", path)


def both_sides(run: Run, filters: Sequence[Filter]) -> tuple[Side, Side]:
    """Start both ways with the same filters: milterchain's first."""
    sinks = [start_sink(run, name) for name in ("sink-proxied", "sink-direct")]
    hop = start_postfix(run, "next-hop", relay_to=sinks[0].address)
    peer = start_postfix(run, "peer", relay_to=sinks[1].address, milters=[f.address for f in filters])
    tables = [milter_table(f.name, f.address) for f in filters]
    proxy = start_proxy(
        run,
        next_hop=f"smtp:{hop.address}",
        milters=tables,
        hostname=PROXY_HOST.decode(),
        message_size="100MiB",
    )
    return Side(proxy.address, hop, sinks[0], proxied=True), Side(peer.address, peer, sinks[1], proxied=False)
