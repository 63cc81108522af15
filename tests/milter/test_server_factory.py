"""How filters are made: for each SMTP session one, before or after it is known what the MTA offers."""

import asyncio
import logging

import pytest

from milterchain.milter.endpoint import Endpoint
from milterchain.milter.filter import Milter
from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, DATA_SIZE_64K, Action, Protocol
from milterchain.milter.messages import (
    Accept,
    Connect,
    Continue,
    EndOfMessage,
    Header,
    OptNeg,
    Progress,
    Quit,
    QuitNewConnection,
)
from milterchain.milter.negotiation import Negotiated
from milterchain.milter.server import MilterServer
from milterchain.milter.server_options import NegotiationOptions
from milterchain.testing import RawMta

LISTENERS = [Endpoint(host="127.0.0.1", port=0)]
CONNECT = Connect(hostname=b"h")


class Aware(Milter):
    """Knows from the start what was negotiated."""

    actions = Action.ADD_HEADERS
    made: list["Aware"]

    def __init__(self, negotiated: Negotiated) -> None:
        self.seen = negotiated
        self.made.append(self)

    async def connect(self, client): ...

    async def header(self, _name, _value):
        return Accept()


@pytest.fixture(autouse=True)
def _nothing_made():
    Aware.made = []


async def test_a_factory_that_is_a_class_says_what_to_negotiate():
    async with MilterServer.dynamic(Aware, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
        answer = await mta.negotiate()
        assert (answer.actions, answer.protocol) == (Action.ADD_HEADERS, Protocol(0x75E))
        assert await mta.ask(CONNECT) == Continue()
        assert await mta.ask(Header(b"a", b"b")) == Accept()
    (milter,) = Aware.made
    assert milter.seen is milter.negotiated
    assert (milter.seen.version, milter.seen.max_data) == (6, DATA_SIZE_64K)


async def test_a_factory_that_chooses():
    class Old(Milter): ...

    def make(negotiated: Negotiated) -> Milter:
        return Aware(negotiated) if negotiated.version == 6 else Old()

    options = NegotiationOptions(protocol=Protocol.LEADING_SPACE)
    async with MilterServer.dynamic(make, LISTENERS, negotiation=options) as server:
        for version in (4, 6):
            async with RawMta(server.endpoints[0]) as mta:
                answer = await mta.negotiate(version=version)
                assert answer.actions == Action(0xFF if version == 6 else 0x3F)
                assert answer.protocol == (Protocol.LEADING_SPACE if version == 6 else 0)
                assert await mta.ask(CONNECT) == Continue()
                assert len(Aware.made) == (version == 6)
        assert server.handlers_made == 2


@pytest.mark.parametrize("dynamic", [False, True])
async def test_each_session_has_its_own(dynamic):
    class Plain(Milter):
        async def connect(self, client): ...

    make = MilterServer.dynamic if dynamic else MilterServer
    async with make(Aware if dynamic else Plain, LISTENERS) as server:
        assert server.handlers_made == 0
        async with RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            for _ in range(3):
                assert await mta.ask(CONNECT) == Continue()
                assert await mta.ask(EndOfMessage()) == Continue()
                assert await mta.ask(EndOfMessage()) == Continue()
                mta.send(QuitNewConnection())
            assert await mta.ask(CONNECT) == Continue()
        assert server.handlers_made == 4


async def test_no_filter_is_made_for_a_session_that_does_not_come():
    async with MilterServer.dynamic(Aware, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        assert await mta.ask(CONNECT) == Continue()
        mta.send(QuitNewConnection(), Quit())
        assert await mta.closed() == b""
        assert server.handlers_made == 1


@pytest.mark.parametrize("failing", [False, True])
async def test_a_filter_that_the_mta_cannot_serve_is_closed(failing):
    """It was made to know what it needs, and may hold something already."""
    closed = []

    class Filter(Milter):
        actions = Action.ADD_HEADERS

        async def close(self):
            closed.append(self)

    def callback(_offer, _answer):
        raise ZeroDivisionError

    negotiation = NegotiationOptions(callback=callback if failing else None)
    async with (
        MilterServer(Filter, LISTENERS, negotiation=negotiation) as server,
        RawMta(server.endpoints[0]) as mta,
    ):
        mta.send(OptNeg(version=6, actions=ALL_ACTIONS if failing else Action(0), protocol=ALL_PROTOCOL))
        assert await mta.closed() == b""
    assert len(closed) == server.handlers_made == 1


async def test_a_dynamic_factory_that_fails(caplog):
    async with (
        MilterServer.dynamic(lambda _: 1 // 0, LISTENERS) as server,
        RawMta(server.endpoints[0]) as mta,
    ):
        await mta.negotiate()
        assert await mta.closed() == b""
    assert "could not be started" in caplog.text


async def test_a_filter_may_be_false():
    class Filter(Milter):
        def __init__(self):
            self.recipients = []

        def __len__(self):
            return len(self.recipients)

        async def header(self, _name, _value): ...

    async with MilterServer(Filter, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        assert await mta.ask(Header(b"A", b"b")) == Continue()
        assert await mta.ask(EndOfMessage()) == Continue()
        assert server.handlers_made == 1


class TestNewConnection:
    """`Milter.new_connection`: before everything else, once for each object."""

    async def test_comes_once_before_all_events(self):
        events = []

        class Filter(Milter):
            async def new_connection(self):
                events.append(("new", self.negotiated.version, self.macros.as_dict()))
                await self.progress()

            async def connect(self, client):
                events.append(client)

            async def close(self):
                events.append("close")

        async with MilterServer(Filter, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            assert await mta.ask(CONNECT) == Continue()
            mta.send(QuitNewConnection())
            assert await mta.answers(CONNECT) == [Progress(), Continue()]  # made when it is needed
            mta.send(Quit())
            assert await mta.closed() == b""
        assert events == [("new", 6, {}), CONNECT, "close"] * 2

    async def test_does_not_hold_up_the_answer(self):
        go = asyncio.Event()

        class Filter(Milter):
            async def new_connection(self):
                await go.wait()

        async with MilterServer(Filter, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            go.set()
            assert await mta.ask(EndOfMessage()) == Continue()

    async def test_that_fails_ends_the_connection(self, caplog):
        closed = []

        class Filter(Milter):
            async def new_connection(self):
                raise ZeroDivisionError

            async def close(self):
                closed.append(self)

        async with MilterServer(Filter, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
            await mta.negotiate()
            assert await mta.closed() == b""
        assert len(closed) == 1
        assert "ZeroDivisionError" in caplog.text
        assert [record.levelno for record in caplog.records if "not ready" in record.getMessage()] == [
            logging.WARNING
        ]
