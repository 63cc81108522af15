"""What content looks like on the wire and what responses to it add up to; `test_client.py` does it live."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import LocalProtocolError, RemoteProtocolError
from milterchain.milter.connection import Connection
from milterchain.milter.content import Content, ContentResult, Exchange, Outcome, encode_header, encode_macros
from milterchain.milter.flags import ALL_ACTIONS, Command, Protocol
from milterchain.milter.framing import PacketReader, encode_packet
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    Body,
    Continue,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Macros,
    OptNeg,
    Quarantine,
    Reject,
    ReplaceBody,
    Skip,
    decode_command,
)
from milterchain.milter.negotiation import Offer
from milterchain.milter.state import Role, State

text = st.binary(max_size=30).map(lambda value: value.replace(b"\0", b""))


def wire(message):
    return encode_packet(message.code, message.encode())


@given(text, text)
def test_headers_are_encoded_as_messages_are(name, value):
    stripped = value[1:] if value.startswith(b" ") else value
    limit = len(name) + len(value) + 2
    assert encode_header(name, value, leading_space=True, limit=limit) == wire(Header(name, value))
    assert encode_header(name, value, leading_space=False, limit=limit) == wire(Header(name, stripped))
    with pytest.raises(LocalProtocolError, match=f"of {limit} bytes, {limit - 1} are the most"):
        encode_header(name, value, leading_space=True, limit=limit - 1)


@pytest.mark.parametrize(("value", "sent"), [(b" x", b"x"), (b"  x", b" x"), (b"\tx", b"\tx"), (b"", b"")])
def test_one_space_is_left_out_and_no_tab(value, sent):
    assert encode_header(b"X", value, leading_space=False, limit=10) == wire(Header(b"X", sent))


@given(st.sampled_from(b"CHMRTNE"), st.lists(st.tuples(text, text)))
def test_macros_are_encoded_as_messages_are(command, values):
    packet = wire(Macros(command, tuple(values)))
    assert encode_macros(command, values, len(packet) - 5) == packet
    with pytest.raises(LocalProtocolError, match="are the most"):
        encode_macros(command, values, len(packet) - 6)


@pytest.mark.parametrize(
    "build",
    [
        lambda: encode_header(b"a\0", b"b", leading_space=True, limit=10),
        lambda: encode_header(b"a", b"\0b", leading_space=True, limit=10),
        lambda: encode_macros(ord("C"), [(b"a\0", b"b")], 10),
        lambda: encode_macros(ord("C"), [(b"a", b"b"), (b"c", b"\0")], 10),
    ],
)
def test_no_nul_travels(build):
    with pytest.raises(LocalProtocolError, match="NUL"):
        build()


class Recorder:
    """A link that takes all and answers nothing but the end of the message."""

    paused = False

    def __init__(self, connection):
        self.connection = connection
        self.outcome = Outcome(max_edits=10, max_edit_bytes=1000)
        self.writes = []

    def write(self, data):
        self.writes.append(data)

    def check(self):
        pass

    async def progress(self):
        answers = self.connection.outstanding
        self.connection.receive_data(wire(Continue()) * answers)
        for _ in range(answers):
            command = self.connection.awaited
            self.outcome.received(command, self.connection.next_event())

    @property
    def packets(self):
        reader = PacketReader(2**20)
        reader.feed(b"".join(self.writes))
        return [decode_command(*packet) for packet in reader]


def negotiated_connection(protocol=0):
    connection = Connection(Role.MTA)
    connection.send(Offer().message())
    answer = OptNeg(version=6, actions=ALL_ACTIONS, protocol=Protocol(protocol))
    connection.receive_data(wire(answer))
    connection.next_event()
    connection.state = State.DATA
    return connection


async def sent(protocol, content, *, pipelined, macros=None):
    connection = negotiated_connection(protocol)
    link = Recorder(connection)
    exchange = Exchange(link, connection, connection.negotiated, link.outcome, pipelined=pipelined)
    result = await exchange.run(content, macros or {})
    assert result.reply == Continue()
    return link


CONTENT = Content(
    headers=[(b"Subject", b" hello"), (b"X", b"\ty")],
    body=lambda size: [bytes(size), b"end"],
    body_size=65538,
)
MACROS = {
    Command.END_OF_HEADERS: [(b"i", b"1")],
    Command.END_OF_MESSAGE: [(b"i", b"2"), (b"{msg_id}", b"<a>")],
}
ALL = [
    Header(b"Subject", b"hello"),
    Header(b"X", b"\ty"),
    Macros(Command.END_OF_HEADERS, ((b"i", b"1"),)),
    EndOfHeaders(),
    Body(bytes(65535)),
    Body(b"end"),
    Macros(Command.END_OF_MESSAGE, ((b"i", b"2"), (b"{msg_id}", b"<a>"))),
    EndOfMessage(),
]


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize(
    ("protocol", "absent"),
    [
        (0, ()),
        (Protocol.NO_HEADERS, (Header,)),
        (Protocol.NO_END_OF_HEADERS, (EndOfHeaders,)),
        (Protocol.NO_BODY, (Body,)),
        (
            Protocol.NO_HEADERS | Protocol.NO_END_OF_HEADERS | Protocol.NO_BODY,
            (Header, EndOfHeaders, Body),
        ),
        (Protocol.NO_REPLY_HEADER, ()),
        (Protocol.NO_REPLY_HEADER | Protocol.NO_REPLY_END_OF_HEADERS | Protocol.NO_REPLY_BODY, ()),
    ],
)
async def test_what_travels(protocol, absent, pipelined):
    link = await sent(protocol, CONTENT, pipelined=pipelined, macros=MACROS)
    assert link.packets == [message for message in ALL if not isinstance(message, absent)]


async def test_the_wire_equals_the_connections_encoding():
    connection = negotiated_connection()
    expected = b"".join(connection.send(message) for message in ALL)
    link = await sent(0, CONTENT, pipelined=True, macros=MACROS)
    assert link.writes == [expected]


@pytest.mark.parametrize(
    ("protocol", "pipelined", "writes"),
    [
        (0, True, ["LLDNBBDE"]),
        (0, False, ["L", "L", "DN", "B", "B", "DE"]),
        (Protocol.NO_REPLY_HEADER, False, ["LLDN", "B", "B", "DE"]),
        (Protocol.NO_REPLY_END_OF_HEADERS, False, ["L", "L", "DNB", "B", "DE"]),
        (Protocol.NO_REPLY_BODY, False, ["L", "L", "DN", "BBDE"]),
        (Protocol.NO_HEADERS | Protocol.NO_END_OF_HEADERS, False, ["DB", "B", "DE"]),
    ],
)
async def test_writes(protocol, pipelined, writes):
    link = await sent(protocol, CONTENT, pipelined=pipelined, macros=MACROS)
    found = []
    for data in link.writes:
        reader = PacketReader(2**20)
        reader.feed(data)
        found.append("".join(chr(code) for code, _ in reader))
    assert [part.replace("DD", "D") for part in found] == writes


@pytest.mark.parametrize("pipelined", [True, False])
async def test_a_large_message_is_written_in_pieces(pipelined):
    chunks = 40
    content = Content(
        headers=[(b"A", bytes(60000).replace(b"\0", b"x"))] * 5,
        body=lambda size: [bytes(size)] * chunks,
        body_size=chunks * 65535,
    )
    link = await sent(Protocol.NO_REPLY_BODY, content, pipelined=pipelined)
    assert [len(link.packets)] == [5 + 1 + chunks + 1]
    assert all(len(data) <= 3 * 65540 for data in link.writes)


@pytest.mark.parametrize("pipelined", [True, False])
async def test_an_empty_message(pipelined):
    empty = Content(headers=[], body=lambda _: [], body_size=0)
    assert (await sent(0, empty, pipelined=pipelined)).packets == [EndOfHeaders(), EndOfMessage()]


async def test_nothing_is_written_if_one_header_cannot_be():
    connection = negotiated_connection()
    link = Recorder(connection)
    exchange = Exchange(link, connection, connection.negotiated, link.outcome, pipelined=True)
    content = Content(headers=[(b"A", b"b"), (b"A", b"x" * 65536)], body=lambda _: [], body_size=0)
    with pytest.raises(LocalProtocolError, match="header b'A' of 65539 bytes"):
        await exchange.run(content)
    assert not link.writes


# Outcomes

L, B, E = Command.HEADER, Command.BODY, Command.END_OF_MESSAGE
EDIT = AddHeader(b"X", b"1")


@pytest.mark.parametrize(
    ("responses", "result"),
    [
        ([(L, Continue()), (B, Continue())], None),
        ([(L, Skip()), (B, Skip())], None),
        ([(L, Reject())], (Reject(), L, (), None)),
        ([(B, Accept())], (Accept(), B, (), None)),
        ([(E, Continue())], (Continue(), E, (), None)),
        ([(E, Skip())], (Continue(), E, (), None)),
        ([(E, EDIT), (E, ReplaceBody(b"x")), (E, Accept())], (Accept(), E, (EDIT, ReplaceBody(b"x")), None)),
        ([(E, Quarantine(b"a")), (E, Quarantine(b"b")), (E, Continue())], (Continue(), E, (), b"b")),
    ],
)
def test_outcomes(responses, result):
    outcome = Outcome(max_edits=10, max_edit_bytes=1000)
    for command, event in responses:
        assert not outcome.over()
        outcome.received(command, event)
    if result is None:
        assert outcome.result is None
        assert outcome.skipped == {command for command, event in responses if event == Skip()}
    else:
        reply, stage, edits, quarantine = result
        assert outcome.result == ContentResult(reply=reply, stage=stage, edits=edits, quarantine=quarantine)


def test_too_many_edits():
    outcome = Outcome(max_edits=2, max_edit_bytes=1000)
    for edit in (EDIT, ReplaceBody(b"a"), EDIT, ReplaceBody(b"b")):
        outcome.received(E, edit)
    with pytest.raises(RemoteProtocolError, match="more than 2 modifications"):
        outcome.received(E, EDIT)


@pytest.mark.parametrize(
    "edit", [ReplaceBody(bytes(37)), AddHeader(b"X" * 10, b"1" * 25), ReplaceBody(b""), AddHeader(b"", b"")]
)
def test_too_large_edits(edit):
    outcome = Outcome(max_edits=1000, max_edit_bytes=1000)
    fitting = 1000 // (64 + len(edit.encode()))
    for _ in range(fitting):
        outcome.received(E, edit)
    with pytest.raises(RemoteProtocolError, match="modifications of more than 1000 bytes"):
        outcome.received(E, edit)
