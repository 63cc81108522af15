"""The filter side against the MTA side: both are ours, over real sockets."""

import asyncio
from collections.abc import Iterable

import pytest

from milterchain.errors import MilterError
from milterchain.milter.client import ClientOptions, MilterSession
from milterchain.milter.content import Content
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.filter import Milter, reply
from milterchain.milter.flags import Action, Command, Family, Protocol
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    Connect,
    Continue,
    Data,
    Helo,
    Mail,
    Rcpt,
    Reject,
    ReplaceBody,
    Skip,
)
from milterchain.milter.server import MilterServer

CLIENT = Connect(hostname=b"c.test", family=Family.INET, port=1, address=b"192.0.2.1")
LISTENERS = ["tcp", "unix"]


class Echo(Milter):
    """Sends the message back as edits."""

    actions = Action.ADD_HEADERS | Action.CHANGE_BODY

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.content = bytearray()

    async def mail(self, _sender, _args):
        self.headers.clear()
        self.content.clear()

    async def rcpt(self, recipient, _args):
        return reply(550, "5.1.1", "100% unknown") if b"bad" in recipient else None

    async def header(self, name, value):
        self.headers.append((name, value))

    async def body(self, chunk):
        self.content += chunk

    async def end_of_message(self, modifier):
        for name, value in self.headers:
            await modifier.add_header(name, value)
        await modifier.replace_body(bytes(self.content))
        return Accept()


class Silent(Echo):
    protocol = Protocol(0x0FF080) & ~Protocol.NO_REPLY_RCPT


class Leading(Echo):
    protocol = Protocol.LEADING_SPACE


class NoMail(Echo):
    mail = Milter.mail
    rcpt = Milter.rcpt


def content(
    body: bytes, headers: Iterable[tuple[bytes, bytes]] = ((b"A", b" 1"), (b"B", b" 2\n\t3"))
) -> Content:
    def pieces(size: int) -> Iterable[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    return Content(headers=list(headers), body=pieces, body_size=len(body))


async def say(session: MilterSession, *commands: Connect | Helo | Mail | Rcpt | Data) -> list[object]:
    return [await future if (future := session.command(command)) else None for command in commands]


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("factory", [Echo, Silent, Leading])
@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("size", [0, 10, 65535, 200_000])
async def test_a_message_comes_back(listener, factory, pipelined, size, tmp_path):
    endpoint = Endpoint(path=f"{tmp_path}/s") if listener == "unix" else Endpoint(host="127.0.0.1")
    space = b" " if factory is Leading else b""
    body = (b"0123456789abcd\r\n" * (size // 16 + 1))[:size]
    async with MilterServer(factory, [endpoint]) as server:
        session = await MilterSession.open(server.endpoints[0])
        await say(session, CLIENT, Helo(b"c"))
        for _ in range(3):
            replies = await say(session, Mail(b"<a@x>"), Rcpt(b"<b@x>"), Rcpt(b"<bad@x>"), Data())
            assert replies[2] == reply(550, "5.1.1", "100% unknown")
            result = await session.content(content(body), pipelined=pipelined)
            assert result.stage is Command.END_OF_MESSAGE
            assert result.reply == Accept()
            headers = [edit for edit in result.edits if isinstance(edit, AddHeader)]
            assert headers == [AddHeader(b"A", space + b"1"), AddHeader(b"B", space + b"2\n\t3")]
            replaced = [edit.chunk for edit in result.edits if isinstance(edit, ReplaceBody)]
            assert b"".join(replaced) == body
        await session.quit()


async def test_an_early_verdict_and_an_abort():
    class Filter(Echo):
        async def end_of_headers(self):
            return Reject()

    async with MilterServer(Filter, [Endpoint(host="127.0.0.1")]) as server:
        session = await MilterSession.open(server.endpoints[0])
        await say(session, CLIENT, Mail(b"<a@x>"), Rcpt(b"<b@x>"))
        session.send(Abort())
        await say(session, Mail(b"<a@x>"), Rcpt(b"<b@x>"), Data())
        result = await session.content(content(b"x"), pipelined=False)
        assert (result.reply, result.stage) == (Reject(), Command.END_OF_HEADERS)
        assert await say(session, Mail(b"<a@x>")) == [Continue()]
        await session.quit()


async def test_skip():
    class Filter(Echo):
        async def body(self, chunk):
            self.content += chunk
            return Skip()

    async with MilterServer(Filter, [Endpoint(host="127.0.0.1")]) as server:
        for pipelined in (False, True):
            session = await MilterSession.open(server.endpoints[0])
            await say(session, CLIENT, Mail(b"<a@x>"), Rcpt(b"<b@x>"), Data())
            result = await session.content(content(b"x" * 300_000), pipelined=pipelined)
            assert result.edits[-1] == ReplaceBody(b"x" * 65535)
            await session.quit()


@pytest.mark.parametrize("version", [2, 3, 4, 6])
@pytest.mark.parametrize("factory", [Echo, NoMail])
async def test_versions(version, factory):
    async with MilterServer(factory, [Endpoint(host="127.0.0.1")]) as server:
        session = await MilterSession.open(server.endpoints[0], ClientOptions(version=version))
        assert session.negotiated.version == version
        await say(session, CLIENT, Helo(b"c"), Mail(b"<a@x>"), Rcpt(b"<b@x>"), Data())
        result = await session.content(content(b"x"), pipelined=False)
        assert result.edits[-1] == ReplaceBody(b"x")
        await session.quit()


async def test_a_server_that_closes_is_seen_by_the_client():
    async with MilterServer(Echo, [Endpoint(host="127.0.0.1")]) as server:
        session = await MilterSession.open(server.endpoints[0])
        await say(session, CLIENT)
        await server.close()
        async with asyncio.timeout(5):
            await session.wait_closed()
        with pytest.raises(MilterError):
            await say(session, Mail(b"<>"))
