"""The filter side against MTAs that say anything in any order."""

import asyncio
import logging
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milterchain.milter.endpoint import Endpoint
from milterchain.milter.filter import Milter
from milterchain.milter.flags import ALL_ACTIONS, Protocol
from milterchain.milter.messages import (
    Abort,
    AnyCommand,
    Body,
    Connect,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    Mail,
    OptNeg,
    Quit,
    QuitNewConnection,
    Rcpt,
    Unknown,
)
from milterchain.milter.server import MilterServer
from milterchain.milter.server_options import ServerOptions
from milterchain.testing import RawMta

OFFER = OptNeg(version=6, actions=ALL_ACTIONS, protocol=Protocol(0x1FFFFF))
COMMANDS: list[AnyCommand] = [
    Abort(),
    Body(b"x"),
    Connect(hostname=b"h"),
    Data(),
    EndOfHeaders(),
    EndOfMessage(b""),
    EndOfMessage(b"y"),
    Header(b"a", b"b"),
    Helo(b"h"),
    Macros(ord("M"), ((b"i", b"Q"),)),
    Mail(b"<>"),
    OFFER,
    Quit(),
    QuitNewConnection(),
    Rcpt(b"<>"),
    Unknown(b"?"),
]


CLIENT = [OFFER, Connect(hostname=b"h")]
MESSAGE = [Mail(b"<>"), Rcpt(b"<>"), Data(), Header(b"a", b"b"), EndOfHeaders(), Body(b"x"), EndOfMessage()]
PARTS = st.one_of(
    st.sampled_from(COMMANDS).map(lambda command: [command]),
    st.builds(lambda start, end: MESSAGE[start:end], st.integers(0, 3), st.integers(1, len(MESSAGE))),
)


IMPATIENT = ServerOptions(negotiation_timeout=0.2, idle_timeout=0.2)
"""Bytes may announce a long packet that never comes."""


class Strict(Milter):
    """Notices events that come where a filter does not expect them."""

    actions = ALL_ACTIONS

    def __init__(self) -> None:
        self.state = "no message"
        self.closed = 0

    def expect(self, state: str, *allowed: str) -> None:
        assert self.state in allowed, f"{state} after {self.state}"
        assert not self.closed
        self.state = state

    async def mail(self, _sender, _args):
        self.expect("mail", "no message")

    async def rcpt(self, _recipient, _args):
        self.expect("rcpt", "mail", "rcpt", "data")

    async def data(self):
        self.expect("data", "rcpt", "data")

    async def header(self, _name, _value):
        self.expect("header", "rcpt", "data", "header")

    async def end_of_headers(self):
        self.expect("body", "rcpt", "data", "header")

    async def body(self, _chunk):
        self.expect("body", "rcpt", "body")

    async def end_of_message(self, _modifier):
        self.expect("no message", "rcpt", "body")

    async def abort(self):
        assert self.state != "no message"
        self.state = "no message"

    async def close(self):
        assert self.state == "no message"
        self.closed += 1


async def converse(factory, sent: bytes | list[AnyCommand]) -> None:
    async with (
        MilterServer(factory, [Endpoint(host="127.0.0.1")], options=IMPATIENT) as server,
        RawMta(server.endpoints[0]) as mta,
    ):
        mta.send(*([sent] if isinstance(sent, bytes) else sent), b"\0\0\0\1Q\0\0\0\0")
        # What was sent may be the beginning of a packet that is longer still.
        mta._writer.write_eof()
        with suppress(ConnectionResetError):
            await mta.closed()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(parts=st.lists(PARTS, max_size=12), offered=st.booleans())
def test_commands_in_any_order(caplog: pytest.LogCaptureFixture, parts, offered):
    sent = [command for part in parts for command in part]
    made: list[Strict] = []

    def factory() -> Strict:
        made.append(Strict())
        return made[-1]

    caplog.clear()
    asyncio.run(converse(factory, [*CLIENT, *sent] if offered else sent))
    assert [milter.closed for milter in made] == [1] * len(made)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.WARNING] == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    sent=st.one_of(
        st.binary(max_size=100),
        st.builds(
            lambda packets: b"".join(struct.pack("!I", len(packet)) + packet for packet in packets),
            st.lists(st.binary(max_size=20), max_size=10),
        ),
    )
)
def test_any_bytes(caplog: pytest.LogCaptureFixture, sent):
    caplog.clear()
    asyncio.run(converse(Strict, sent))
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.WARNING] == []
