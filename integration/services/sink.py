"""An SMTP server that takes everything and writes down what it got, byte for byte.

Run as a program it listens, and appends one JSON line per message to DIRECTORY/index.jsonl: envelope
with parameters, size, SHA-256 of the whole and of the body, names of the headers, the message's
Postfix queue id.  The bytes themselves go to DIRECTORY/N.eml unless `--index-only` is given.
"""

import argparse
import asyncio
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from integration.services.process import Run, Service, answers, free_port, wait_for

FEATURES = (b"PIPELINING", b"SIZE 104857600", b"8BITMIME", b"ENHANCEDSTATUSCODES", b"SMTPUTF8", b"DSN")
QUEUE_ID = re.compile(rb"^Received:[^\r]*(?:\r\n[ \t][^\r]*)*?with \w+ id (\w+)", re.MULTILINE)
NAME = re.compile(rb"^([!-9;-~]+)[ \t]*:", re.MULTILINE)
END = b"\r\n.\r\n"


class _Store:
    def __init__(self, directory: Path, *, index_only: bool):
        self._directory = directory
        self._index_only = index_only
        self._index = (directory / "index.jsonl").open("a", encoding="utf-8")
        self._count = 0

    def add(self, sender: str, recipients: list[str], content: bytes) -> None:
        self._count += 1
        if not self._index_only:
            (self._directory / f"{self._count}.eml").write_bytes(content)
        head, _, body = content.partition(b"\r\n\r\n")
        queue_id = QUEUE_ID.search(head)
        record = {
            "number": self._count,
            "sender": sender,
            "recipients": recipients,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "body_sha256": hashlib.sha256(body).hexdigest(),
            "queue_id": queue_id[1].decode() if queue_id else "",
            "headers": [name.decode("latin-1") for name in NAME.findall(head)],
        }
        self._index.write(json.dumps(record) + "\n")
        self._index.flush()


class _Session(asyncio.Protocol):
    def __init__(self, store: _Store):
        self._store = store
        self._buffer = bytearray()
        self._searched = 0
        self._data = self._ended = False
        self._sender = ""
        self._recipients: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 sink.example.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        answer = b""
        while not self._ended and (part := self._data_reply() if self._data else self._command_reply()):
            answer += part
        if answer:
            self._transport.write(answer)
        if self._ended:
            self._transport.close()

    def _command_reply(self) -> bytes | None:
        line, found, _ = bytes(self._buffer[:4096]).partition(b"\r\n")
        if not found:
            return None
        del self._buffer[: len(line) + 2]
        verb = line[:4].upper()
        argument = line.partition(b":")[2].decode("utf-8", "surrogateescape").strip()
        match verb:
            case b"EHLO":
                lines = (b"sink.example.test", *FEATURES)
                marks = (b"-",) * (len(lines) - 1) + (b" ",)
                return b"".join(b"250%b%b\r\n" % pair for pair in zip(marks, lines, strict=True))
            case b"MAIL":
                self._sender, self._recipients = argument, []
            case b"RCPT":
                self._recipients.append(argument)
            case b"DATA":
                # The separator makes an empty message end like any other.
                self._buffer[:0] = b"\r\n"
                self._data, self._searched = True, 0
                return b"354 go on\r\n"
            case b"QUIT":
                self._ended = True
                return b"221 2.0.0 bye\r\n"
        return b"250 2.0.0 fine\r\n"

    def _data_reply(self) -> bytes | None:
        end = self._buffer.find(END, self._searched)
        if end < 0:
            self._searched = max(0, len(self._buffer) - len(END) + 1)
            return None
        content = bytes(self._buffer[: end + 2]).replace(b"\r\n.", b"\r\n")[2:]
        del self._buffer[: end + len(END)]
        self._data = False
        self._store.add(self._sender, self._recipients, content)
        return b"250 2.0.0 stored\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One message that the sink took; paths carry their parameters as typed."""

    number: int
    sender: str
    recipients: list[str]
    size: int
    sha256: str
    body_sha256: str
    queue_id: str
    headers: list[str]


@dataclass(slots=True)
class Sink:
    """A running sink.

    Attributes:
        address: as `HOST:PORT`.
        directory: where the messages are.
    """

    address: str
    directory: Path
    service: Service
    _offset: int = field(default=0, init=False)
    _seen: list[Received] = field(default_factory=list, init=False)

    def received(self) -> list[Received]:
        """All messages so far."""
        with (self.directory / "index.jsonl").open("rb") as index:
            index.seek(self._offset)
            for line in index:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._seen.append(Received(**json.loads(line)))
        return self._seen

    def content(self, received: Received) -> bytes:
        """The message's bytes, after dot-unstuffing."""
        return (self.directory / f"{received.number}.eml").read_bytes()

    def to(self, recipient: str) -> Iterator[Received]:
        """The messages to one address (without angle brackets)."""
        return (r for r in self.received() if any(_bare(path) == recipient for path in r.recipients))

    def wait_for_mail_to(self, recipient: str, timeout: float = 60) -> Received:
        """Wait until a message to this address is there."""
        return wait_for(lambda: next(self.to(recipient), None), f"mail to {recipient} arrives", timeout)  # type: ignore[return-value]


def _bare(path: str) -> str:
    return path.partition("<")[2].rpartition(">")[0]


def start_sink(run: Run, name: str = "sink", *, index_only: bool = False) -> Sink:
    """Start a sink as a process of its own, so that it does not share the test's interpreter."""
    directory = run.place(name)
    (directory / "index.jsonl").touch()
    port = free_port()
    root = Path(__file__).resolve().parents[2]
    argv = [sys.executable, "-m", "integration.services.sink", str(port), str(directory)]
    service = run.spawn(name, [*argv, "--index-only"] if index_only else argv, env={"PYTHONPATH": str(root)})
    service.wait_ready(lambda: answers(f"inet:127.0.0.1:{port}"))
    return Sink(f"127.0.0.1:{port}", directory, service)


async def _serve(port: int, store: _Store) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Session(store), "127.0.0.1", port, backlog=512)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--index-only", action="store_true")
    options = parser.parse_args()
    asyncio.run(_serve(options.port, _Store(options.directory, index_only=options.index_only)))


if __name__ == "__main__":
    main()
