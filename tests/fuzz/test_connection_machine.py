"""The sans-IO connection: two of them that talk to each other, and one against a peer that says anything.

Both send whatever hypothesis thinks of. What is legal must arrive in order, and never looks to the other side
like a breach of the protocol; what is not must be refused and leave no trace.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milterchain.errors import LocalProtocolError, NegotiationError, RemoteProtocolError
from milterchain.milter.connection import Connection
from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, Action, Command, Protocol, Response
from milterchain.milter.framing import encode_packet
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    AnyCommand,
    AnyResponse,
    Connect,
    Continue,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Macros,
    Mail,
    OptNeg,
    Progress,
    Quarantine,
    Rcpt,
    Reject,
    ReplaceBody,
    Skip,
)
from milterchain.milter.negotiation import Offer, answer_as_milter
from milterchain.milter.state import PIPELINED, Role, State
from milterchain.milter.state import RESPONSES as ANSWERS

FUZZ = settings.get_profile("fuzz-machines")

COMMANDS = st.from_type(AnyCommand)
RESPONSES = st.from_type(AnyResponse)
USUAL = [
    Connect(hostname=b"h"),
    Mail(b"<a@x.test>"),
    Rcpt(b"<b@x.test>"),
    Data(),
    Header(b"A", b" b"),
    EndOfHeaders(),
    EndOfMessage(),
]
SOME_RESPONSES = [
    *[Continue()] * 6,
    OptNeg(version=6, actions=ALL_ACTIONS, protocol=Protocol(0)),
    *(AddHeader(b"A", b"b"), ReplaceBody(b"x"), Quarantine(b""), Progress(), Skip(), Accept(), Reject()),
]
CHOICES = st.lists(st.integers(0, 23), min_size=1, max_size=16)
PROTOCOL = st.sets(st.sampled_from(list(Protocol))).map(lambda bits: Protocol(sum(bits)) & ALL_PROTOCOL)


def snapshot(connection):
    return (
        connection.state,
        connection.outstanding,
        connection.awaited,
        connection.negotiated,
        connection.unread,
    )


def events(connection):
    found = []
    while (event := connection.next_event()) is not None:
        found.append(event)
    return found


def legal(connection):
    """The usual commands that are possible now."""
    if connection.outstanding and connection.awaited not in PIPELINED:
        return []
    return [command for command in USUAL if command.code in connection._table[connection.state]]


def usual_response(command, choice):
    """One that is possible; a choice of 0 to 5 is Continue where that is possible."""
    possible = [response for response in SOME_RESPONSES if response.code in ANSWERS[command]]
    return possible[choice % len(possible)]


class Conversation(RuleBasedStateMachine):
    """Two connections; what they sent is on its way until it is delivered, in any pieces."""

    def __init__(self):
        super().__init__()
        self.mta = Connection(Role.MTA)
        self.shortcut = Connection(Role.MTA)
        """Gets and sends the same as `mta`, but by the shortcuts that busy clients take."""
        self.milter = Connection(Role.MILTER)
        self.to_milter = bytearray()
        self.to_mta = bytearray()
        self.commands: list[AnyCommand] = []
        """Sent and not yet arrived."""
        self.responses: list[AnyResponse] = []

    @initialize(protocol=PROTOCOL, version=st.sampled_from([6, 6, 6, 4, 3, 2]))
    def negotiate(self, protocol, version):
        offer = Offer(version=version).message()
        self.tell(offer)
        self.arrive_at_milter(len(self.to_milter))
        self.answer(answer_as_milter(offer, actions=Action(0), optional=ALL_ACTIONS, protocol=protocol))
        self.arrive_at_mta(len(self.to_mta))
        assert self.mta.negotiated == self.milter.negotiated is not None

    def tell(self, command):
        before = snapshot(self.mta)
        try:
            sent = self.mta.send(command)
        except LocalProtocolError:
            assert snapshot(self.mta) == before
            if not isinstance(command, Macros):
                with pytest.raises(LocalProtocolError):
                    self.shortcut.advance(command.code)
            return
        if isinstance(command, OptNeg):
            self.shortcut.send(command)
        elif not isinstance(command, Macros):
            self.shortcut.advance(command.code)
        self.to_milter += sent
        self.commands.append(command)

    def answer(self, response):
        before = snapshot(self.milter)
        try:
            sent = self.milter.send(response)
        except LocalProtocolError:
            assert snapshot(self.milter) == before
            return
        self.to_mta += sent
        self.responses.append(response)
        self.look_at_milter()

    @rule(command=COMMANDS)
    def send_any_command(self, command):
        self.tell(command)

    @rule(choices=CHOICES)
    def go_on(self, choices):
        """Get somewhere: commands that are possible, and mostly Continue for an answer."""
        for choice in choices:
            possible = legal(self.mta)
            if possible and (choice % 2 or not (self.to_milter or self.to_mta or self.milter.outstanding)):
                self.tell(possible[choice % len(possible)])
            elif self.to_milter:
                self.arrive_at_milter(10**6)
            elif self.milter.outstanding:
                self.answer(usual_response(self.milter.awaited, choice))
            elif self.to_mta:
                self.arrive_at_mta(10**6)

    @rule(response=RESPONSES)
    def send_any_response(self, response):
        self.answer(response)

    @precondition(lambda self: self.milter.outstanding)
    @rule(times=st.integers(1, 5))
    def send_continue(self, times):
        for _ in range(times):
            self.answer(Continue())

    @precondition(lambda self: self.to_milter)
    @rule(size=st.integers(1, 30) | st.just(10**6))
    def arrive_at_milter(self, size):
        self.milter.receive_data(bytes(self.to_milter[:size]))
        del self.to_milter[:size]
        self.look_at_milter()

    def look_at_milter(self):
        for event in events(self.milter):
            if isinstance(event, Abort) and (not self.commands or not isinstance(self.commands[0], Abort)):
                raise AssertionError("an MTA that obeys the rules needs no ABORT to be invented")
            while (sent := self.commands.pop(0)) != event:
                # Content that followed a verdict.
                assert sent.code in PIPELINED, f"{sent} did not arrive"

    @precondition(lambda self: self.to_mta)
    @rule(size=st.integers(1, 30) | st.just(10**6))
    def arrive_at_mta(self, size):
        data = bytes(self.to_mta[:size])
        del self.to_mta[:size]
        self.mta.receive_data(data)
        arrived = events(self.mta)
        assert arrived == self.responses[: len(arrived)]
        del self.responses[: len(arrived)]
        if self.shortcut.continued(data):
            assert arrived == [Continue()]
        else:
            self.shortcut.receive_data(data)
            skipped = self.shortcut.continues()
            assert [Continue()] * skipped + events(self.shortcut) == arrived

    @invariant()
    def both_ways_of_an_mta_are_the_same(self):
        assert snapshot(self.mta) == snapshot(self.shortcut)

    @invariant()
    def both_sides_agree_when_nothing_is_on_its_way(self):
        if self.to_milter or self.to_mta or State.CLOSED in {self.mta.state, self.milter.state}:
            return
        assert (self.mta.outstanding > 0) == (self.milter.outstanding > 0)
        if not self.mta.outstanding:
            assert self.mta.state is self.milter.state
            assert not self.mta.unread
            assert not self.milter.unread

    @invariant()
    def a_milter_sees_one_command_at_a_time(self):
        assert self.milter.outstanding <= 1


LIMIT = 64
PACKETS = st.one_of(
    COMMANDS.map(lambda message: encode_packet(message.code, message.encode())),
    RESPONSES.map(lambda message: encode_packet(message.code, message.encode())),
    st.builds(encode_packet, st.sampled_from([*Command, *Response]), st.binary(max_size=20)),
    st.builds(encode_packet, st.integers(0, 255), st.binary(max_size=2 * LIMIT)),
    st.binary(max_size=12),
)


class Hostile(RuleBasedStateMachine):
    """One connection of either role; its peer says anything, and this side tries anything."""

    @initialize(role=st.sampled_from(Role), negotiated=st.booleans(), protocol=PROTOCOL)
    def begin(self, role, negotiated, protocol):
        self.whole = Connection(role, max_payload=LIMIT)
        self.pieces = Connection(role, max_payload=LIMIT)
        """Hears the same, byte by byte."""
        if not negotiated:
            return
        offer = Offer().message()
        answer = answer_as_milter(offer, actions=ALL_ACTIONS, protocol=protocol)
        if role is Role.MTA:
            self.say(offer)
            self.hear(answer)
        else:
            self.hear(offer)
            self.say(answer)
        assert self.whole.negotiated is not None

    @precondition(lambda self: self.whole.state is State.CLOSED)
    @rule(role=st.sampled_from(Role), protocol=PROTOCOL)
    def begin_again(self, role, protocol):
        self.begin(role, True, protocol)

    def both(self, action):
        """Do it to both, and return what both say."""
        first, second = action(self.whole), action(self.pieces)
        assert first == second
        return first

    def events(self, connection):
        """What came, and whether that was the end."""
        found = []
        try:
            while (event := connection.next_event()) is not None:
                found.append(event)
        except (RemoteProtocolError, NegotiationError):
            assert connection.state is State.CLOSED
            return found, True
        return found, False

    def hear(self, *messages):
        data = b"".join(
            each if isinstance(each, bytes) else encode_packet(each.code, each.encode()) for each in messages
        )
        self.whole.receive_data(data)
        found, _ = self.events(self.whole)
        piecemeal = []
        for byte in data:
            self.pieces.receive_data(bytes((byte,)))
            piecemeal += self.events(self.pieces)[0]
        assert piecemeal == found

    def say(self, message):
        self.both(lambda each: self.said(each, message))
        self.both(self.events)

    def said(self, connection, message):
        before = snapshot(connection)
        try:
            return connection.send(message)
        except RemoteProtocolError as error:
            assert connection.role is Role.MTA
            assert connection.state is State.CLOSED
            return type(error)
        except LocalProtocolError as error:
            assert snapshot(connection) == before
            return type(error)

    @rule(choices=CHOICES)
    def both_sides_obey(self, choices):
        """Get somewhere: commands that are possible, and mostly Continue for an answer."""
        commands, responses = (self.say, self.hear) if self.whole.role is Role.MTA else (self.hear, self.say)
        for choice in choices:
            if self.whole.outstanding:
                responses(usual_response(self.whole.awaited, choice))
            elif possible := legal(self.whole):
                commands(possible[choice % len(possible)])

    @rule(messages=st.lists(PACKETS, min_size=1, max_size=4))
    def hear_anything(self, messages):
        self.hear(*messages)

    @rule(message=COMMANDS | RESPONSES)
    def say_anything(self, message):
        self.say(message)

    @precondition(lambda self: self.whole.state is State.CLOSED)
    @rule(message=COMMANDS | RESPONSES)
    def nothing_is_possible_after_the_end(self, message):
        self.both(lambda each: each.receive_data(b"\0\0\0\1c"))
        assert self.both(lambda each: each.next_event()) is None
        assert issubclass(self.both(lambda each: self.said(each, message)), LocalProtocolError)

    @invariant()
    def both_are_the_same(self):
        self.both(lambda each: (each.state, each.outstanding, each.awaited, each.negotiated))

    @invariant()
    def nothing_grows(self):
        if self.whole.state is not State.CLOSED and not (
            self.whole.role is Role.MILTER and self.whole.outstanding
        ):
            assert self.whole.unread <= 4 + LIMIT


class TestConversation(Conversation.TestCase):
    settings = FUZZ


class TestHostile(Hostile.TestCase):
    settings = FUZZ
