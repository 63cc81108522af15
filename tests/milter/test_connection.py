"""Two connections linked in memory, and single ones fed by hand; every cell of the tables of `state`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import (
    LocalProtocolError,
    MilterError,
    NegotiationError,
    NotAMilterError,
    NotNegotiatedError,
    PacketTooLargeError,
    RemoteProtocolError,
    WrongStageError,
)
from milterchain.milter.connection import MAX_COMMAND, MAX_RESPONSE, Connection
from milterchain.milter.flags import (
    ALL_ACTIONS,
    ALL_PROTOCOL,
    DATA_SIZE_1M,
    DATA_SIZE_256K,
    Action,
    Command,
    Protocol,
    Response,
)
from milterchain.milter.framing import encode_packet
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    AddRecipient,
    Body,
    ChangeHeader,
    ChangeSender,
    Connect,
    ConnFail,
    Continue,
    Data,
    DeleteRecipient,
    Discard,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    InsertHeader,
    Macros,
    Mail,
    OptNeg,
    Progress,
    Quarantine,
    Quit,
    QuitNewConnection,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
    Unknown,
)
from milterchain.milter.negotiation import Offer, answer_as_milter
from milterchain.milter.state import (
    FINAL,
    IDLE_AFTER,
    PIPELINED,
    RESPONSES,
    TOLERATED,
    TRANSITIONS,
    Role,
    State,
)

CONTINUE = encode_packet(Response.CONTINUE)
NOTHING = Protocol(0)

COMMANDS = {
    message.code: message
    for message in (
        Offer().message(),
        Connect(hostname=b"h"),
        Helo(b"h"),
        Mail(b"<a@b>"),
        Rcpt(b"<a@b>"),
        Data(),
        Header(b"A", b"b"),
        EndOfHeaders(),
        Body(b"x"),
        EndOfMessage(),
        Unknown(b"X"),
        Abort(),
        Quit(),
        QuitNewConnection(),
    )
}
RESPONSE = {
    message.code: message
    for message in (
        OptNeg(version=6, actions=ALL_ACTIONS, protocol=NOTHING),
        Continue(),
        Accept(),
        Reject(),
        TempFail(),
        Discard(),
        Skip(),
        ConnFail(),
        Shutdown(),
        ReplyCode(b"550 no"),
        Progress(),
        Quarantine(b"q"),
        AddHeader(b"a", b"b"),
        InsertHeader(0, b"a", b"b"),
        ChangeHeader(1, b"a", b"b"),
        AddRecipient(b"a"),
        AddRecipient(b"a", b"x"),
        DeleteRecipient(b"a"),
        ChangeSender(b"a"),
        ReplaceBody(b"x"),
    )
}


class Pair:
    """Both ends; messages travel at once."""

    def __init__(self, protocol=Protocol.SKIP, actions=ALL_ACTIONS, offer=None):
        self.mta = Connection(Role.MTA)
        self.milter = Connection(Role.MILTER)
        offer = offer or Offer().message()
        assert self.tell(offer) == [offer]
        answer = answer_as_milter(offer, actions=actions, protocol=protocol)
        assert self.answer(answer) == [answer]

    def tell(self, message):
        self.milter.receive_data(self.mta.send(message))
        return events(self.milter)

    def answer(self, message):
        self.mta.receive_data(self.milter.send(message))
        return events(self.mta)

    def dialogue(self, *messages):
        """Commands and responses in turn; each must arrive as it was sent."""
        for message in messages:
            side = self.tell if isinstance(message.code, Command) else self.answer
            assert side(message) == [message]
        return self

    def play(self, letters):
        """Commands by their letters, each answered with Continue where a reply is due."""
        for letter in letters.encode():
            self.dialogue(COMMANDS[letter])
            if self.milter.outstanding:
                self.dialogue(Continue())
        return self

    @property
    def states(self):
        return self.mta.state, self.milter.state


def events(connection):
    found = []
    while (event := connection.next_event()) is not None:
        found.append(event)
    return found


PATHS = {
    State.NEW: "",
    State.IDLE: "CH",
    State.MAIL: "CHM",
    State.RCPT: "CHMR",
    State.DATA: "CHMRT",
    State.HEADERS: "CHMRTL",
    State.BODY: "CHMRTLN",
    State.CLOSED: "CHQ",
}


def in_state(state):
    if state in PATHS:
        return Pair().play(PATHS[state])
    pair = Pair()
    pair.mta, pair.milter = Connection(Role.MTA), Connection(Role.MILTER)
    if state is State.OFFERED:
        pair.tell(COMMANDS[Command.OPTNEG])
    return pair


every_state = pytest.mark.parametrize("state", list(State))
every_command = pytest.mark.parametrize("command", list(COMMANDS))


@every_state
def test_paths_lead_where_they_say(state):
    assert in_state(state).states == (state, state)


@every_state
@every_command
def test_an_mta_sends_what_is_legal_and_nothing_else(state, command):
    connection = in_state(state).mta
    message = COMMANDS[command]
    after = TRANSITIONS[state].get(command)
    if after is None or (state is State.OFFERED):
        with pytest.raises(LocalProtocolError):
            connection.send(message)
        assert connection.state is state
    else:
        assert connection.send(message) == encode_packet(command, message.encode())
        assert connection.state is after
        assert connection.awaited == (command if command in RESPONSES else None)


@every_state
@every_command
def test_a_milter_takes_what_is_legal_or_tolerated(state, command):
    connection = in_state(state).milter
    message = COMMANDS[command]
    connection.receive_data(encode_packet(command, message.encode()))
    if state is State.OFFERED or state is State.CLOSED:
        assert connection.next_event() is None  # it answers first
    elif command in TRANSITIONS[state]:
        assert connection.next_event() == message
        assert connection.state is TRANSITIONS[state][command]
    elif command in TOLERATED.get(state, {}):
        if command in b"HM":
            assert connection.next_event() == Abort()
            assert connection.state is State.IDLE
        assert connection.next_event() == message
        assert connection.state is TOLERATED[state][command]
    elif state is State.IDLE and command in b"RTLNBE":
        assert connection.next_event() is None
        assert connection.unread == 0
        assert connection.state is State.IDLE
    else:
        with pytest.raises(RemoteProtocolError, match="not possible now"):
            connection.next_event()
        assert connection.state is State.CLOSED


AWAITING = {
    Command.CONNECT: "",
    Command.HELO: "C",
    Command.MAIL: "CH",
    Command.RCPT: "CHM",
    Command.DATA: "CHMR",
    Command.HEADER: "CHMRT",
    Command.END_OF_HEADERS: "CHMRTL",
    Command.BODY: "CHMRTLN",
    Command.END_OF_MESSAGE: "CHMRTLNB",
    Command.UNKNOWN: "CHMR",
}


def awaiting(command):
    if command == Command.OPTNEG:
        return in_state(State.OFFERED)
    return Pair().play(AWAITING[command]).dialogue(COMMANDS[command])


@pytest.mark.parametrize("command", [*AWAITING, Command.OPTNEG])
@pytest.mark.parametrize("response", list(RESPONSE))
def test_every_response_to_every_command(command, response):
    pair = awaiting(command)
    before = pair.mta.state
    message = RESPONSE[response]
    if response not in RESPONSES[command]:
        with pytest.raises(WrongStageError):
            pair.milter.send(message)
        assert pair.milter.outstanding == 1
        pair.mta.receive_data(encode_packet(response, message.encode()))
        with pytest.raises(RemoteProtocolError, match="in reply to"):
            pair.mta.next_event()
        assert pair.mta.state is State.CLOSED
        return
    assert pair.answer(message) == [message]
    if response == Response.OPTNEG:
        after = State.NEW
    elif response in IDLE_AFTER.get(command, ()):
        after = State.IDLE
    else:
        after = before
    assert pair.states == (after, after)
    due = 0 if response in FINAL or response == Response.OPTNEG else 1
    assert (pair.mta.outstanding, pair.milter.outstanding) == (due, due)


@pytest.mark.parametrize("command", list(AWAITING))
@pytest.mark.parametrize("bit", [bit for bit in Protocol if "NO_REPLY" in str(bit.name)])
def test_no_reply_bits(command, bit):
    pair = Pair(protocol=bit).play(AWAITING[command]).dialogue(COMMANDS[command])
    silent = {"NO_REPLY_HEADER": Command.HEADER}.get(str(bit.name)) or Command[str(bit.name)[9:]]
    due = 0 if command == silent else 1
    assert (pair.mta.outstanding, pair.milter.outstanding) == (due, due)


def test_a_whole_session():
    pair = Pair().play("CHMRRTLLNBBE").play("MRRTLLNBE").play("MRA").play("UMRTNE").play("KCHMRTNEQ")
    assert pair.states == (State.CLOSED, State.CLOSED)
    assert events(pair.milter) == events(pair.mta) == []


def test_macros_travel_before_their_command():
    macros = Macros(Command.CONNECT, ((b"j", b"mx"),))
    pair = Pair().dialogue(macros).play("C").dialogue(Macros(Command.HEADER, ())).play("H")
    assert pair.states == (State.IDLE, State.IDLE)


@pytest.mark.parametrize("state", [State.START, State.OFFERED, State.CLOSED])
def test_macros_out_of_place(state):
    with pytest.raises(LocalProtocolError, match="macros are not possible now"):
        in_state(state).mta.send(Macros(Command.CONNECT, ()))


def test_macros_while_a_reply_is_due():
    pair = Pair().play("CHMR")
    pair.mta.send(Data())
    with pytest.raises(LocalProtocolError, match="macros before the reply to DATA came"):
        pair.mta.send(Macros(Command.END_OF_HEADERS, ()))


def test_a_milter_that_gets_macros_first():
    connection = Connection(Role.MILTER)
    connection.receive_data(encode_packet(Command.MACRO, b"C"))
    with pytest.raises(RemoteProtocolError, match="macros before option negotiation"):
        connection.next_event()


def test_commands_that_nobody_has_read_yet():
    pair = Pair().play("CHM")
    pair.milter.receive_data(
        pair.mta.send(Macros(Command.RCPT, ((b"i", b"1"),))) + pair.mta.send(Rcpt(b"<x>"))
    )
    assert pair.milter.next_command() == (Command.MACRO, b"Ri\0001\0")
    assert pair.milter.next_command() == (Command.RCPT, b"<x>\0")
    assert pair.milter.next_command() is None  # it answers first
    assert pair.milter.proceed() == encode_packet(Response.CONTINUE)
    pair.milter.receive_data(encode_packet(Command.HELO, b"h\0"))
    assert pair.milter.next_command() == (Command.ABORT, b"")
    assert pair.milter.next_command() == (Command.HELO, b"h\0")
    pair.milter.proceed()
    pair.milter.receive_data(encode_packet(Command.DATA))  # of the message that is no more
    assert pair.milter.next_command() is None
    pair.milter.receive_data(encode_packet(ord("?")))
    with pytest.raises(RemoteProtocolError, match="unknown command"):
        pair.milter.next_command()
    assert pair.milter.next_command() is None
    assert pair.milter.state is State.CLOSED


def test_a_stream_that_is_no_milter_s_is_the_end():
    connection = Connection(Role.MILTER)
    connection.packets.feed_from(memoryview(b"EHLO x\r\n"), 8)
    with pytest.raises(NotAMilterError):
        connection.next_command()
    assert connection.state is State.CLOSED


# Streams


CONTENT = [
    *[
        Header(b"A", b"1"),
        Header(b"B", b"2"),
        Macros(Command.END_OF_HEADERS, ((b"i", b"1"),)),
        EndOfHeaders(),
    ],
    *[Body(b"x"), Body(b"y"), Macros(Command.END_OF_MESSAGE, ()), EndOfMessage()],
]


def test_content_in_one_stream():
    pair = Pair().play("CHMRT")
    pair.milter.receive_data(b"".join(pair.mta.send(message) for message in CONTENT))
    assert pair.mta.outstanding == 6
    for message in CONTENT:
        assert pair.milter.next_event() == message
        if not isinstance(message, Macros):
            assert pair.milter.next_event() is None
            pair.dialogue(Continue())
    assert pair.states == (State.IDLE, State.IDLE)
    pair.play("MRTNE")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_nothing_overtakes_a_reply_but_content(command):
    for message in (Data(), *(m for m in CONTENT if not isinstance(m, Macros))):
        pair = Pair().play(AWAITING[message.code])
        pair.mta.send(message)
        may = message.code in b"LNB" and command in PIPELINED and command in TRANSITIONS[pair.mta.state]
        if may:
            assert pair.mta.send(COMMANDS[command])
        else:
            with pytest.raises(LocalProtocolError):
                pair.mta.send(COMMANDS[command])


@pytest.mark.parametrize("verdict", [Accept(), Reject(), ReplyCode(b"550 no"), Discard()])
def test_a_verdict_in_the_middle_of_a_stream(verdict):
    pair = Pair().play("CHMRT")
    pair.milter.receive_data(b"".join(pair.mta.send(message) for message in CONTENT))
    pair.milter.next_event()
    assert pair.answer(verdict) == [verdict]
    assert pair.mta.state is State.CLOSED
    # The milter drops the rest of the message and takes another one.
    assert events(pair.milter) == [m for m in CONTENT if isinstance(m, Macros)]
    assert pair.milter.state is State.IDLE
    pair.milter.receive_data(encode_packet(Command.MAIL, b"<>\0"))
    assert events(pair.milter) == [Mail(b"<>")]


def test_continues_are_taken_at_once():
    connection = Pair().play("CHMRT").mta
    assert connection.continues() == 0
    connection.advance(Command.HEADER, 3)
    connection.advance(Command.END_OF_HEADERS)
    connection.advance(Command.END_OF_MESSAGE)
    connection.receive_data(CONTINUE * 2)
    assert connection.continues() == 2
    assert connection.continues() == 0
    connection.receive_data(CONTINUE * 3)
    assert connection.continues() == 2
    assert connection.awaited == Command.END_OF_MESSAGE
    assert connection.next_event() == Continue()
    assert connection.outstanding == 0
    connection.advance(Command.MAIL)
    connection.receive_data(CONTINUE)
    assert connection.continues() == 0
    connection.close()
    assert connection.continues() == 0
    assert connection.next_event() is None


def test_continues_before_the_end_of_message_was_sent():
    connection = Pair().play("CHMRT").mta
    connection.advance(Command.HEADER, 2)
    connection.receive_data(CONTINUE * 2)
    assert connection.continues() == 2
    assert connection.outstanding == 0


@pytest.mark.parametrize("path", ["C", "CH", "CHM", "CHMR", "CHMRT", "CHMRTL"])
def test_a_continue_by_itself(path):
    fast, slow = (Pair().play(path[:-1]).mta for _ in range(2))
    for connection in (fast, slow):
        connection.advance(Command(ord(path[-1])))
    assert fast.continued(CONTINUE)
    slow.receive_data(CONTINUE)
    assert events(slow) == [Continue()]
    assert (fast.state, fast.outstanding, fast.unread) == (slow.state, slow.outstanding, slow.unread)


def test_what_is_no_continue_by_itself():
    offering = Connection(Role.MTA)
    offering.send(Offer().message())
    assert not offering.continued(CONTINUE)
    connection = Pair().play("CH").mta
    assert not connection.continued(CONTINUE)
    connection.send(Mail(b"<>"))
    assert not connection.continued(CONTINUE[:3])
    assert not connection.continued(CONTINUE * 2)
    assert not connection.continued(encode_packet(Response.ACCEPT))
    connection.receive_data(CONTINUE[:3])
    assert not connection.continued(CONTINUE)
    assert (connection.unread, connection.outstanding) == (3, 1)
    closed = Pair().play("CH").mta
    closed.send(Mail(b"<>"))
    closed.close()
    assert not closed.continued(CONTINUE)
    assert closed.next_event() is None


# Faults


def test_a_packet_that_nobody_asked_for():
    pair = Pair().play("CH")
    pair.mta.receive_data(CONTINUE)
    with pytest.raises(RemoteProtocolError, match="CONTINUE came unasked"):
        pair.mta.next_event()


@pytest.mark.parametrize("late", [b"\0", CONTINUE[:-1], b"\0\x10\0\0b half"])
def test_the_beginning_of_a_packet_that_nobody_asked_for(late):
    pair = Pair().play("CH")
    pair.mta.receive_data(late)
    with pytest.raises(RemoteProtocolError, match=f"{len(late)} bytes came unasked"):
        pair.mta.next_event()
    assert pair.mta.state is State.CLOSED


@pytest.mark.parametrize("late", [b"\0", CONTINUE])
def test_unread_bytes_before_a_command(late):
    pair = Pair().play("CH")
    pair.mta.receive_data(late)
    with pytest.raises(RemoteProtocolError, match=f"{len(late)} bytes came unasked"):
        pair.mta.send(Mail(b"<>"))
    assert pair.mta.state is State.CLOSED
    with pytest.raises(LocalProtocolError, match="MAIL is not possible now: over"):
        pair.mta.send(Mail(b"<>"))


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"\0\0\0\2ca", RemoteProtocolError, "1 bytes of payload"),
        (b"\0\0\0\3y550", RemoteProtocolError, "missing NUL"),
        (b"\0\0\0\1Z", RemoteProtocolError, "unknown response b'Z'"),
        (b"\0\0\0\0", RemoteProtocolError, "length 0"),
        (b"\xff\xff\xff\xff", PacketTooLargeError, "announced"),
    ],
)
def test_what_an_mta_does_not_take(data, error, text):
    pair = Pair()
    pair.mta.send(Connect(hostname=b"h"))
    pair.mta.receive_data(data)
    with pytest.raises(error, match=text):
        pair.mta.next_event()
    assert pair.mta.state is State.CLOSED


def test_what_is_no_milter():
    connection = Connection(Role.MTA)
    connection.send(Offer().message())
    connection.receive_data(b"220 mx.example ESMTP\r\n")
    with pytest.raises(NotAMilterError, match="an SMTP or FTP server"):
        connection.next_event()


@pytest.mark.parametrize("data", [b"\0\0\0\1Z", b"\0\0\0\2Hx", b"EHLO me\r\n"])
def test_what_a_milter_does_not_take(data):
    connection = Connection(Role.MILTER)
    connection.receive_data(data)
    with pytest.raises(RemoteProtocolError):
        connection.next_event()
    assert connection.state is State.CLOSED


def test_a_command_that_the_milter_declined():
    pair = Pair(protocol=Protocol.NO_HELO).play("C")
    with pytest.raises(LocalProtocolError, match="HELO is not possible"):
        pair.mta.send(Helo(b"x"))
    pair.milter.receive_data(encode_packet(Command.HELO, b"x\0"))
    with pytest.raises(RemoteProtocolError, match="HELO is not possible"):
        pair.milter.next_event()


def test_the_mta_cannot_agree():
    connection = Connection(Role.MTA)
    connection.send(Offer(version=4).message())
    connection.receive_data(encode_packet(Command.OPTNEG, Offer().message().encode()))
    with pytest.raises(NegotiationError, match="version 6"):
        connection.next_event()
    assert connection.state is State.CLOSED
    assert connection.negotiated is None


def test_the_milter_cannot_answer_so():
    connection = Connection(Role.MILTER)
    offer = Offer(version=4).message()
    connection.receive_data(encode_packet(Command.OPTNEG, offer.encode()))
    assert connection.next_event() == offer
    with pytest.raises(LocalProtocolError, match="version 6"):
        connection.send(Offer().message())
    assert connection.send(OptNeg(version=4, actions=Action(0), protocol=NOTHING))


@pytest.mark.parametrize("state", [State.START, State.NEW, State.RCPT, State.CLOSED])
def test_a_response_that_no_command_awaits(state):
    with pytest.raises(LocalProtocolError, match="Continue though no reply is due"):
        in_state(state).milter.send(Continue())


def test_a_response_after_the_end():
    pair = awaiting(Command.HELO)
    pair.milter.close()
    with pytest.raises(LocalProtocolError, match="no reply is due"):
        pair.milter.send(Continue())


@pytest.mark.parametrize("response", [r for r in RESPONSE if r in b"him+2-ebq"])
def test_edits_need_permission(response):
    pair = Pair(actions=Action(0)).play("CHMRTLNB").dialogue(EndOfMessage())
    with pytest.raises(NotNegotiatedError, match="not negotiated"):
        pair.milter.send(RESPONSE[response])


def test_skip_needs_negotiation():
    pair = Pair(protocol=NOTHING).play("CHMRTLN").dialogue(Body(b"x"))
    with pytest.raises(NotNegotiatedError, match="SKIP was not negotiated"):
        pair.milter.send(Skip())


@pytest.mark.parametrize(
    ("max_data", "bit", "limit"),
    [
        (65535, NOTHING, 65535),
        (DATA_SIZE_1M, Protocol.DATA_SIZE_256K, DATA_SIZE_256K),
        (DATA_SIZE_1M, Protocol.DATA_SIZE_1M, DATA_SIZE_1M),
    ],
)
def test_the_data_size_holds_both_ways(max_data, bit, limit):
    pair = Pair(protocol=bit, offer=Offer(max_data=max_data).message()).play("CHMRTLN")
    with pytest.raises(LocalProtocolError, match=f"Body of {limit + 1} bytes, {limit} are the most"):
        pair.mta.send(Body(bytes(limit + 1)))
    pair.dialogue(Body(bytes(limit)), Continue(), EndOfMessage(), ReplaceBody(bytes(limit)))
    with pytest.raises(LocalProtocolError, match="ReplaceBody"):
        pair.milter.send(ReplaceBody(bytes(limit + 1)))


def test_before_negotiation_the_smallest_size_holds():
    lists = dict.fromkeys(range(7), (b"x" * 10000,))
    with pytest.raises(LocalProtocolError, match="are the most"):
        Connection(Role.MTA).send(OptNeg(version=6, actions=Action(0), protocol=NOTHING, macros=lists))


@pytest.mark.parametrize(("role", "limit"), [(Role.MTA, MAX_RESPONSE), (Role.MILTER, MAX_COMMAND)])
def test_the_largest_packet(role, limit):
    for given_limit, most in ((None, limit), (100, 100)):
        connection = Connection(role, max_payload=given_limit)
        if role is Role.MTA:
            connection.send(Offer().message())
        connection.receive_data((most + 1).to_bytes(4, "big"))
        if most < 2**24 - 1:
            assert connection.next_event() is None
        else:
            continue
        connection = Connection(role, max_payload=given_limit)
        if role is Role.MTA:
            connection.send(Offer().message())
        connection.receive_data((most + 2).to_bytes(4, "big"))
        with pytest.raises(PacketTooLargeError):
            connection.next_event()


@given(st.sampled_from(list(Role)), st.lists(st.binary(max_size=40), max_size=8), st.booleans())
def test_hostile_bytes_end_in_milter_errors_only(role, pieces, negotiated):
    pair = Pair()
    connection = pair.mta if role is Role.MTA else pair.milter
    if not negotiated:
        connection = Connection(role)
    try:
        for piece in pieces:
            connection.receive_data(piece)
            events(connection)
    except MilterError:
        assert connection.state is State.CLOSED
    assert connection.next_event() is None


@given(st.lists(st.sampled_from(list(COMMANDS.values())), max_size=30), st.data())
def test_any_pieces_give_the_same_events(messages, data):
    stream = b"".join(encode_packet(message.code, message.encode()) for message in messages)
    protocol = ALL_PROTOCOL & ~Protocol(0x37F)  # nothing is answered, nothing declined

    def heard(cuts):
        connection = Pair(protocol=protocol).milter
        found = []
        try:
            for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                connection.receive_data(stream[start:end])
                while (event := connection.next_event()) is not None:
                    found.append(event)
        except MilterError as error:
            found.append(str(error))
        return found

    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    assert heard(cuts) == heard([])


def test_names_of_codes_that_nobody_defined():
    with pytest.raises(LocalProtocolError, match=r"b'\\x01' is not possible now"):
        Connection(Role.MTA).advance(1)


@pytest.mark.parametrize("path", ["C", "CH", "CHM", "CHMR", "CHMRT", "CHMRTL", "CHMRTLNBE"])
def test_a_continue_without_its_message(path):
    fast, slow = (Pair().play(path[:-1]) for _ in range(2))
    for pair in (fast, slow):
        pair.milter.receive_data(pair.mta.send(COMMANDS[Command(ord(path[-1]))]))
        assert events(pair.milter)
    assert fast.milter.proceed() == slow.milter.send(Continue()) == CONTINUE
    assert (fast.milter.state, fast.milter.outstanding) == (slow.milter.state, slow.milter.outstanding)


def test_a_continue_that_is_not_due():
    negotiating = Connection(Role.MILTER)
    negotiating.receive_data(Connection(Role.MTA).send(Offer().message()))
    assert events(negotiating)
    idle = Pair().play("CH").milter
    closed = Pair().play("CH").milter
    closed.close()
    for connection in (negotiating, idle, closed):
        with pytest.raises(LocalProtocolError):
            connection.proceed()
    with pytest.raises(LocalProtocolError):
        Pair().play("CH").mta.proceed()
