"""Filters that need time: they say so, and stop when nobody waits any more."""

import asyncio
import logging
from contextlib import suppress

import pytest

from milterchain.errors import MilterClosedError
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.filter import Milter, no_reply
from milterchain.milter.flags import Command
from milterchain.milter.messages import (
    Accept,
    Body,
    Connect,
    Continue,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    Mail,
    Progress,
    Quit,
    Rcpt,
    Skip,
    Unknown,
)
from milterchain.milter.server import MilterServer
from milterchain.milter.server_options import ServerOptions
from milterchain.testing import PATIENCE, RawMta

LISTENERS = [Endpoint(host="127.0.0.1", port=0)]
CONNECT = Connect(hostname=b"h")
EVENTS = [
    CONNECT,
    Helo(b"h"),
    Mail(b"<>"),
    Rcpt(b"<>"),
    Data(),
    Header(b"a", b"b"),
    EndOfHeaders(),
    Body(b"x"),
    EndOfMessage(),
    Unknown(b"?"),
]
SENDMAIL = [
    Macros(Command.CONNECT, ((b"j", b"mx"), (b"{if_name}", b"localhost"))),
    Macros(Command.CONNECT, ((b"v", b"8.17.1.9"),)),
]
OTHERS = [
    Macros(Command.CONNECT, ((b"j", b"mx"), (b"v", b"Postfix 3.7.11"))),
    Macros(Command.CONNECT, ((b"v", b"milterchain"), (b"{if_name}", b"mx"))),
]


def everywhere(method):
    """A filter with the same method for every event."""
    names = [event.code.name.lower() for event in EVENTS]
    return type("Filter", (Milter,), dict.fromkeys(names, method))


async def slow(self, *_):
    await self.progress()
    await self.modifier.progress()


@pytest.mark.parametrize("macros", [None, *SENDMAIL, *OTHERS])
async def test_progress_at_any_time(macros):
    async with MilterServer(everywhere(slow), LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        for event in EVENTS:
            mta.send(*([macros] if macros and event is CONNECT else []), event)
            if macros not in SENDMAIL or isinstance(event, EndOfMessage):
                assert [await mta.receive(), await mta.receive()] == [Progress()] * 2
            assert await mta.receive() == Continue()


@pytest.mark.parametrize("macros", [None, *SENDMAIL, *OTHERS])
async def test_skip_at_any_time(macros):
    async def skip(*_):
        return Skip()

    async with MilterServer(everywhere(skip), LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        for event in EVENTS:
            mta.send(*([macros] if macros and event is CONNECT else []), event)
            plain = isinstance(event, EndOfMessage) or (macros in SENDMAIL and not isinstance(event, Body))
            assert await mta.receive() == (Continue() if plain else Skip())


async def test_progress_where_nobody_waits():
    class Filter(Milter):
        @no_reply
        async def mail(self, _sender, _args):
            await self.progress()

        async def abort(self):
            await self.progress()

        async def close(self):
            await self.progress()
            closed.set()

    closed = asyncio.Event()
    async with MilterServer(Filter, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        mta.send(Mail(b"<>"), Quit())
        assert await mta.closed() == b""
        await closed.wait()


async def test_progress_from_another_task():
    class Filter(Milter):
        async def mail(self, _sender, _args):
            async with asyncio.TaskGroup() as group:
                group.create_task(self.progress())
            await go.wait()

    go = asyncio.Event()
    async with MilterServer(Filter, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        assert await mta.ask(Mail(b"<>")) == Progress()
        go.set()
        assert await mta.receive() == Continue()


async def test_progress_that_nobody_reads_takes_no_room(tmp_path):
    class Filter(Milter):
        async def mail(self, _sender, _args):
            for _ in range(100):
                for _ in range(1000):
                    await self.progress()
                await asyncio.sleep(0)
            rest.append(self.modifier._sink._writer.transport.get_write_buffer_size())
            done.set()

    rest: list[int] = []
    done = asyncio.Event()
    async with (
        MilterServer(Filter, [f"unix:{tmp_path}/s"]) as server,
        RawMta(server.endpoints[0]) as mta,
    ):
        await mta.negotiate()
        mta._reader._transport.pause_reading()
        mta.send(Mail(b"<>"))
        async with asyncio.timeout(20):
            await done.wait()
    assert 60_000 < rest[0] < 70_000


async def test_progress_starts_the_timer_again():
    class Filter(Milter):
        async def mail(self, _sender, _args):
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await asyncio.Event().wait()
                await self.progress()

    options = ServerOptions(handler_timeout=0.2)
    async with (
        MilterServer(Filter, LISTENERS, options=options) as server,
        RawMta(server.endpoints[0]) as mta,
    ):
        await mta.negotiate()
        assert await mta.answers(Mail(b"<>")) == [Progress()] * 5 + [Continue()]


class Waiting(Milter):
    """Works until the MTA leaves, and writes down how that was."""

    log: list[str]
    called: asyncio.Event

    def __init_subclass__(cls) -> None:
        cls.log = []
        cls.called = asyncio.Event()

    async def mail(self, _sender, _args):
        self.called.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise

    async def abort(self):
        self.log.append("abort")

    async def close(self):
        self.log.append("close")


@pytest.mark.parametrize("reset", [False, True])
async def test_an_mta_that_leaves_ends_the_work_for_it(reset, caplog):
    class Filter(Waiting): ...

    caplog.set_level(logging.DEBUG)
    async with MilterServer(Filter, LISTENERS) as server:
        async with RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            mta.send(Mail(b"<>"))
            await Filter.called.wait()
            await (mta.reset() if reset else mta.__aexit__(None, None, None))
        await server.shutdown(5)
    assert Filter.log == ["cancelled", "abort", "close"]
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


async def test_work_that_the_mta_does_not_wait_for_goes_on():
    class Filter(Waiting):
        @no_reply
        async def mail(self, _sender, _args):
            self.called.set()
            await go.wait()
            self.log.append("done")

    go = asyncio.Event()
    async with MilterServer(Filter, LISTENERS) as server:
        async with RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            mta.send(Mail(b"<>"))
            await Filter.called.wait()
        go.set()
        await server.shutdown(5)
    assert Filter.log == ["done", "abort", "close"]


@pytest.mark.parametrize("end", ["overdue", "left", "stopped"])
async def test_work_that_goes_on_though_cancelled_is_cancelled_again(end):
    class Filter(Waiting):
        async def mail(self, _sender, _args):
            self.called.set()
            for _ in range(3):
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            self.log.append("done")

    options = ServerOptions(handler_timeout=0.05 if end == "overdue" else PATIENCE, close_timeout=0.05)
    async with MilterServer(Filter, LISTENERS, options=options) as server:
        async with RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            mta.send(Mail(b"<>"))
            await Filter.called.wait()
            if end == "overdue":
                assert await mta.receive() == Continue()
                assert await mta.ask(Mail(b"<>")) == Continue()
            elif end == "stopped":
                await server.close()
        await server.shutdown(5)
    assert Filter.log[0] == "done"
    assert Filter.log[-1] == "close"


async def test_an_mta_that_left_before_the_work_began_ends_it_too():
    class Filter(Waiting):
        @no_reply
        async def header(self, _name, _value):
            self.called.set()
            await go.wait()

        async def mail(self, _sender, _args): ...

        async def end_of_message(self, _modifier):
            await Waiting.mail(self, b"", ())

    go = asyncio.Event()
    async with MilterServer(Filter, LISTENERS) as server:
        async with RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            assert await mta.ask(Mail(b"<>")) == Continue()
            mta.send(Header(b"a", b"b"), EndOfMessage())
            await Filter.called.wait()
        go.set()
        await server.shutdown(5)
    assert Filter.log == ["cancelled", "abort", "close"]


async def test_a_filter_that_does_not_mind_that_the_mta_left():
    class Filter(Waiting):
        async def mail(self, _sender, _args):
            self.called.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                with pytest.raises(MilterClosedError):
                    await self.progress()
                return Accept()

    async with MilterServer(Filter, LISTENERS) as server:
        async with RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            mta.send(Mail(b"<>"))
            await Filter.called.wait()
        await server.shutdown(5)
    assert Filter.log[-1] == "close"
