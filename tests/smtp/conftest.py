"""A server on a real socket, a handler that records what it is asked, a client that says what it is told."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import Counter
from pathlib import Path

import pytest
import uvloop

from milterchain.mail.replies import Reply
from milterchain.smtp.handler import Features
from milterchain.smtp.options import Listener, ServerOptions
from milterchain.smtp.server import SMTPServer

PATIENCE = 10

CERTIFICATES = Path(__file__).parents[1] / "certificates"

ON_BOTH_LOOPS = {
    "test_channel_tls.py",
    "test_client_tls.py",
    "test_server.py",
    "test_session.py",
    "test_speaker.py",
}


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config, item):  # noqa: ARG001
    """Run what depends on the transport under uvloop, too."""
    factories = {"asyncio": asyncio.new_event_loop}
    if item.path.name in ON_BOTH_LOOPS:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


class RecordingHandler:
    """Answers from a script: method -> reply, None, exception, or coroutine function (given the handler)."""

    def __init__(self, info, script=None, features=None):
        self.info = info
        self.minimal_ehlo = False
        self.calls = []
        self.messages = []
        self.not_taken = None
        self.script = script or {}
        self.offer = features or Features()

    def names(self):
        return [name for name, *_ in self.calls]

    def count(self, name):
        return Counter(self.names())[name]

    async def _answer(self, name, *args):
        self.calls.append((name, *args))
        answer = self.script.get(name)
        if isinstance(answer, BaseException):
            raise answer
        return await answer(self) if callable(answer) else answer

    def features(self):
        return self.offer

    async def connect(self):
        return await self._answer("connect")

    async def helo(self, name, esmtp):
        return await self._answer("helo", name, esmtp)

    def security_refusal(self):
        return self.script.get("security_refusal")

    async def tls(self, session):
        return await self._answer("tls", session)

    async def auth(self, credentials):
        return await self._answer("auth", credentials)

    def forward(self, origin):
        self.calls.append(("forward", origin.address, origin.helo) if origin else ("forward", None))

    async def mail(self, path, params):
        return await self._answer("mail", path, dict(params))

    async def rcpt(self, path, params):
        return await self._answer("rcpt", path, dict(params))

    async def data(self):
        return await self._answer("data")

    async def message(self, message):
        self.messages.append(b"".join(message.chunks()))
        return await self._answer("message") or Reply.of(250, "2.0.0 Taken")

    async def vrfy(self, address):
        return await self._answer("vrfy", address)

    async def unknown(self, line):
        return await self._answer("unknown", line)

    async def reset(self, reply=None):
        self.not_taken = reply or self.not_taken
        await self._answer("reset")

    async def close(self):
        await self._answer("close")


class Client:
    """A raw SMTP client."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    def send(self, data):
        self.writer.write(data)

    async def reply(self):
        """One reply, all lines."""
        async with asyncio.timeout(PATIENCE):
            lines = [await self.reader.readline()]
            while lines[-1][3:4] == b"-":
                lines.append(await self.reader.readline())
        return b"".join(lines)

    async def say(self, line):
        """Send a line; return the reply."""
        self.send(line + b"\r\n")
        return await self.reply()

    async def hello(self, name=b"client.example"):
        """Greeting and EHLO; return the reply to EHLO."""
        assert (await self.reply()).startswith(b"220 ")
        return await self.say(b"EHLO " + name)

    async def transaction(self):
        """Come as far as the 354."""
        assert await self.say(b"MAIL FROM:<a@b>") == b"250 2.1.0 Ok\r\n"
        assert await self.say(b"RCPT TO:<c@d>") == b"250 2.1.5 Ok\r\n"
        assert (await self.say(b"DATA")).startswith(b"354 ")

    async def starttls(self, context):
        """Shake hands after a 220."""
        async with asyncio.timeout(PATIENCE):
            await self.writer.start_tls(context, server_hostname="mx.example")

    @contextlib.asynccontextmanager
    async def dripping(self):
        """Send an octet now and then, for as long as the context is open."""

        async def drip():
            while True:
                self.send(b"x")
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(drip())
            yield
            task.cancel()

    async def rest(self):
        """All until the server closes."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    def reset(self):
        """Let the connection break with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Gate:
    """In a handler's script: nothing is answered until the test opens it."""

    def __init__(self):
        self._opened = asyncio.Event()

    async def __call__(self, _):
        await self._opened.wait()

    def open(self):
        self._opened.set()


class Site:
    """A running server with what happened there."""

    def __init__(self, script, features, options):
        self.handlers = []
        self.clients = []
        self.script = script
        self.features = features
        self.server = SMTPServer(self.make, ServerOptions(hostname=b"mx.example", **options))

    def make(self, info):
        if isinstance(self.script.get("factory"), Exception):
            raise self.script["factory"]
        self.handlers.append(RecordingHandler(info, self.script, self.features))
        return self.handlers[-1]

    @property
    def handler(self):
        return self.handlers[-1]

    async def connect(self, **where):
        if self.bound.path is not None:
            streams = await asyncio.open_unix_connection(self.bound.path)
        else:
            streams = await asyncio.open_connection(self.bound.host, self.bound.port, **where)
        self.clients.append(Client(*streams))
        return self.clients[-1]

    async def greeted(self):
        """A client that has said EHLO."""
        client = await self.connect()
        await client.hello()
        return client

    async def in_data(self):
        """A client that has come as far as the 354."""
        client = await self.greeted()
        await client.transaction()
        return client

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - the server has no event for each of them
                await asyncio.sleep(0.001)

    async def all_closed(self):
        await self.until(lambda: not self.server.connections)
        assert all(handler.count("close") == 1 for handler in self.handlers)


@pytest.fixture
def smtp_site():
    """`async with smtp_site(script, features=, listener=, **options) as site`."""

    @contextlib.asynccontextmanager
    async def run(script=None, *, features=None, listener=None, **options):
        site = Site(script or {}, features, options)
        async with site.server:
            (site.bound,) = await site.server.start([listener or Listener(host="127.0.0.1")])
            try:
                yield site
            finally:
                for client in site.clients:
                    client.writer.close()
        assert not site.server.connections
        assert all(handler.count("close") == 1 for handler in site.handlers)

    return run


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def certificates():
    return CERTIFICATES


@pytest.fixture
def client_context():
    """`client_context(certificate name)`: what a client needs for TLS with mx.example."""

    def make(name=None):
        context = ssl.create_default_context(cafile=CERTIFICATES / "authority.pem")
        if name is not None:
            context.load_cert_chain(CERTIFICATES / f"{name}.pem", CERTIFICATES / f"{name}.key")
        return context

    return make


@pytest.fixture
def recording_handler():
    return RecordingHandler
