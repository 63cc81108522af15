"""A whole proxy over real sockets: a client, scripted milters, a scripted next hop."""

import asyncio
import io
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import structlog

from milterchain.config import parse
from milterchain.proxy.app import App
from milterchain.proxy.logs import configure
from milterchain.proxy.lookup import Server
from milterchain.testing import ScriptedMilter, ScriptedNextHop

PATIENCE = 10.0
"""Seconds after which a test gives up on the proxy."""

MESSAGE = b"Subject: hi\r\nFrom: a@example.org\r\n\r\nHello\r\n"


class Client:
    """An SMTP client that says what it is told to say."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.heard: list[str] = []

    async def reply(self) -> str:
        """The next reply; its lines joined by LF; empty at the end of the connection."""
        lines = []
        async with asyncio.timeout(PATIENCE):
            while line := await self._reader.readline():
                lines.append(line.decode().rstrip("\r\n"))
                if line[3:4] == b" ":
                    break
        self.heard.append("\n".join(lines))
        return self.heard[-1]

    async def say(self, *commands: str) -> str:
        """Send each command and wait for its reply; the last reply."""
        reply = ""
        for command in commands:
            self._writer.write(command.encode() + b"\r\n")
            reply = await self.reply()
        return reply

    async def begin_mail(self) -> None:
        """From the greeting to MAIL, which must be accepted."""
        assert (await self.reply()).startswith("220 ")
        assert (await self.say("EHLO client.example")).startswith("250-")
        assert (await self.say("MAIL FROM:<a@example.org>")).startswith("250 ")

    async def begin(self, *recipients: str) -> None:
        """From the greeting to the last RCPT, all of which must be accepted."""
        assert (await self.reply()).startswith("220 ")
        assert (await self.say("EHLO client.example")).startswith("250-")
        await self.envelope(*recipients)

    async def envelope(self, *recipients: str) -> None:
        """MAIL and RCPT, all of which must be accepted."""
        assert (await self.say("MAIL FROM:<a@example.org>")).startswith("250 ")
        for recipient in recipients or ("b@example.net",):
            assert (await self.say(f"RCPT TO:<{recipient}>")).startswith("250 ")

    async def send(self, message: bytes = MESSAGE) -> str:
        """DATA and the message; the reply to it, or to DATA if that was refused."""
        if not (reply := await self.say("DATA")).startswith("354 "):
            return reply
        self._writer.write(message + b".\r\n")
        return await self.reply()

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    async def at_end(self) -> bool:
        """Whether the server closes the connection now."""
        async with asyncio.timeout(PATIENCE):
            return not await self._reader.read(1)

    def abort(self) -> None:
        """Vanish."""
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()


class World:
    """What a test builds and takes part in; everything ends with the test."""

    def __init__(self, stack: AsyncExitStack, directory: Path) -> None:
        self._stack = stack
        self.directory = directory
        self.app: App
        self.hop: ScriptedNextHop
        self.milters: list[ScriptedMilter] = []

    async def start(
        self, *scripts: Any, hop: Mapping[str, Any] | None = None, milter: Any = None, **tables: Any
    ) -> None:
        """Start next hop, milters and proxy.

        Args:
            scripts: one for each milter: a script, or a `ScriptedMilter` to be started.
            hop: the next hop's script.
            milter: keys for all milters, or a list of keys for each.
            tables: the rest of the configuration.
        """
        self.hop = await self._stack.enter_async_context(ScriptedNextHop(hop or {}))
        entries = []
        for index, script in enumerate(scripts):
            made = script if isinstance(script, ScriptedMilter) else ScriptedMilter(script)
            self.milters.append(await self._stack.enter_async_context(made))
            keys = milter[index] if isinstance(milter, list) else milter or {}
            entries.append({"name": f"m{index + 1}", "address": made.endpoint, **keys})
        document = {
            "hostname": "mx.test",
            "listen": [{"address": "127.0.0.1:0"}],
            "milter": entries,
            "dns": {"lookup": False},
            **tables,
            "relay": {"next_hop": [self.hop.next_hop], **tables.get("relay", {})},
        }
        self.app = App(parse(document, "test", self.directory))
        await self._stack.enter_async_context(self.app)

    async def client(self) -> Client:
        """Connect to the proxy."""
        address = self.app.addresses[0]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        client = Client(reader, writer)
        self._stack.push_async_callback(client.close)
        return client


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(stack, tmp_path)


@pytest.fixture
async def more_worlds(tmp_path: Path) -> AsyncIterator[Callable[[], World]]:
    """Worlds beside each other."""
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        def make() -> World:
            directory = tmp_path / f"world{next(numbers)}"
            directory.mkdir()
            return World(stack, directory)

        yield make


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged, as JSON lines."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure("json", "info", stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("mail").setLevel(logging.NOTSET)


Zone = dict[tuple[str, str], list[str] | str]


class DNSServer(asyncio.DatagramProtocol):
    """A DNS server: records by name and type, or an error code, or `silence`."""

    def __init__(self, zone: Zone, ttl: int) -> None:
        self.zone = zone
        self.ttl = ttl
        self.asked: list[tuple[str, str]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The loops do not make it a subclass of DatagramTransport.
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        key = (question.name.to_text(), dns.rdatatype.to_text(question.rdtype))
        self.asked.append(key)
        found = self.zone.get(key, "NXDOMAIN")
        if found == "silence":
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if isinstance(found, str):
            answer.set_rcode(dns.rcode.from_text(found))
        else:
            alias = self.zone.get((key[0], "CNAME"))
            name = key[0]
            if alias:
                answer.answer.append(dns.rrset.from_text(name, self.ttl, "IN", "CNAME", alias[0]))
                name = alias[0]
            if found:
                answer.answer.append(dns.rrset.from_text(name, self.ttl, "IN", key[1], *found))
        self.transport.sendto(answer.to_wire(), addr)


@asynccontextmanager
async def names(zone: Zone, ttl: int = 600) -> AsyncIterator[tuple[DNSServer, Server]]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: DNSServer(zone, ttl), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server, Server(*transport.get_extra_info("sockname"))
    finally:
        transport.close()


@pytest.fixture
def dns_server() -> Any:
    """`async with dns_server(zone, ttl) as (server, address)`."""
    return names
