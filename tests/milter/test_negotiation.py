import pytest

from milterchain.errors import NegotiationError
from milterchain.milter.flags import (
    ALL_ACTIONS,
    ALL_PROTOCOL,
    DATA_SIZE_1M,
    DATA_SIZE_64K,
    DATA_SIZE_256K,
    Action,
    Command,
    Protocol,
    Stage,
)
from milterchain.milter.messages import OptNeg
from milterchain.milter.negotiation import (
    DECLINE,
    NO_REPLY,
    Negotiated,
    Offer,
    agreement,
    answer_as_milter,
    negotiate_as_mta,
)

NOTHING = Protocol(0)
ALL_SIZES = Protocol.DATA_SIZE_256K | Protocol.DATA_SIZE_1M
ANSWERED = {*NO_REPLY, Command.END_OF_MESSAGE}


def optneg(version=6, actions=0, protocol=0, macros=None):
    return OptNeg(version=version, actions=Action(actions), protocol=Protocol(protocol), macros=macros or {})


@pytest.mark.parametrize(("version", "bits"), [(2, 0x7F), (3, 0x17F), (4, 0x37F), (5, 0x37F), (6, 0x1FFFFF)])
def test_the_bits_that_a_version_offers(version, bits):
    assert Offer(version=version, max_data=DATA_SIZE_1M).message() == optneg(
        version, 0x1FF, bits | (ALL_SIZES if version == 6 else 0)
    )


@pytest.mark.parametrize(
    ("size", "bits"),
    [
        (DATA_SIZE_64K, 0),
        (DATA_SIZE_256K, Protocol.DATA_SIZE_256K),
        (DATA_SIZE_1M - 1, Protocol.DATA_SIZE_256K),
        (DATA_SIZE_1M, ALL_SIZES),
    ],
)
def test_the_sizes_that_are_offered(size, bits):
    assert Offer(protocol=NOTHING, max_data=size).message().protocol == bits


@pytest.mark.parametrize("version", [0, 1, 7])
def test_versions_that_cannot_be_offered(version):
    with pytest.raises(NegotiationError, match=f"version {version}"):
        Offer(version=version)


@pytest.mark.parametrize(
    ("offer", "answer", "agreed"),
    [
        (optneg(6, 0x1FF, 0x1FFFFF), optneg(6, 0x11, 0x100702), (6, 0x11, 0x100702, DATA_SIZE_64K)),
        # PMilter answers with version 2.
        (optneg(6, 0x1FF, 0x1FFFFF), optneg(2, 0x3F, 0), (2, 0x3F, 0, DATA_SIZE_64K)),
        # rspamd: all actions, all NR_* bits, whatever was offered.
        (optneg(6, 0x1FF, 0), optneg(6, 0x1FF, 0xFF080), (6, 0x1FF, 0xFF080, DATA_SIZE_64K)),
        # Unknown bits are ignored, as Postfix does.
        (optneg(6, 0x1FF, 0x1FFFFF), optneg(6, 0, 0xC0000001), (6, 0, 1, DATA_SIZE_64K)),
        # Sizes need both sides.
        (optneg(6, 0, ALL_SIZES), optneg(6, 0, 0x20000000), (6, 0, 0x20000000, DATA_SIZE_1M)),
        (optneg(6, 0, 0x10000000), optneg(6, 0, ALL_SIZES), (6, 0, 0x10000000, DATA_SIZE_256K)),
        (optneg(6, 0, 0), optneg(6, 0, ALL_SIZES), (6, 0, 0, DATA_SIZE_64K)),
    ],
)
def test_what_an_mta_agrees_on(offer, answer, agreed):
    negotiated = negotiate_as_mta(offer, answer)
    assert (
        negotiated.version,
        negotiated.actions,
        negotiated.protocol,
        negotiated.max_data,
    ) == agreed
    assert negotiated.macros == {}


def test_macro_lists_are_kept_even_if_they_were_not_offered():
    macros = {Stage.RCPT: (b"{rcpt_addr}",), 77: (b"i",)}
    assert negotiate_as_mta(optneg(2), optneg(2, macros=macros)).macros == macros


@pytest.mark.parametrize(
    ("offer", "answer", "text"),
    [
        (optneg(4), optneg(6), "version 6, offered were 2 to 4"),
        (optneg(6), optneg(1), "version 1"),
        (optneg(6), optneg(7), "version 7"),
        (optneg(6, 0x1), optneg(6, 0x13), r"actions 0x12 that were not offered \(0x1\)"),
        (optneg(6, 0x1FF), optneg(6, 0x200), "0x200"),
    ],
)
def test_what_an_mta_refuses(offer, answer, text):
    with pytest.raises(NegotiationError, match=text):
        negotiate_as_mta(offer, answer)


@pytest.mark.parametrize("names", [1, 2000])
def test_an_answer_as_it_travels(names):
    offer = Offer().message()
    answer = optneg(actions=1, protocol=2, macros={Stage.MAIL: (b"i",) * names})
    message, agreed = agreement(offer, answer.encode())
    assert (message, agreed) == (answer, negotiate_as_mta(offer, answer))
    # An ordinary answer is worked out once.
    assert (agreement(offer, answer.encode())[1] is agreed) == (names == 1)


def test_answers_to_different_offers_are_kept_apart():
    answer = optneg(actions=1).encode()
    assert agreement(Offer().message(), answer)[1].actions == 1
    with pytest.raises(NegotiationError):
        agreement(Offer(actions=Action(0)).message(), answer)


@pytest.mark.parametrize("command", list(Command))
def test_every_command_by_every_bit(command):
    for bit in Protocol:
        negotiated = Negotiated(version=6, actions=ALL_ACTIONS, protocol=bit)
        declined = DECLINE.get(command) == bit
        assert negotiated.wants(command) is not declined
        assert negotiated.replies(command) is (
            command in ANSWERED and not declined and NO_REPLY.get(command) != bit
        )


@pytest.mark.parametrize(
    ("version", "unknown"),
    [(2, {Command.UNKNOWN, Command.DATA}), (3, {Command.DATA}), (4, set()), (5, set()), (6, set())],
)
def test_commands_that_a_version_lacks(version, unknown):
    negotiated = Negotiated(version=version, actions=ALL_ACTIONS, protocol=NOTHING)
    for command in Command:
        assert negotiated.knows(command) is (command not in unknown)
        assert negotiated.wants(command) is (command not in unknown)
        assert negotiated.replies(command) is (command in ANSWERED - unknown)


@pytest.mark.parametrize(
    ("protocol", "leading_space", "rejected", "silent"),
    [
        (NOTHING, False, False, False),
        (Protocol.LEADING_SPACE, True, False, False),
        (Protocol.RCPT_REJECTED, False, True, False),
        (Protocol.NO_REPLY_HEADER | Protocol.NO_REPLY_END_OF_HEADERS, False, False, False),
        (
            Protocol.NO_REPLY_HEADER | Protocol.NO_REPLY_END_OF_HEADERS | Protocol.NO_REPLY_BODY,
            False,
            False,
            True,
        ),
        (Protocol.NO_HEADERS | Protocol.NO_END_OF_HEADERS | Protocol.NO_REPLY_BODY, False, False, True),
    ],
)
def test_questions(protocol, leading_space, rejected, silent):
    negotiated = Negotiated(version=6, actions=ALL_ACTIONS, protocol=protocol)
    assert negotiated.leading_space is leading_space
    assert negotiated.wants_rejected_recipients is rejected
    assert negotiated.no_content_verdicts is silent


def test_the_milters_answer():
    offer = Offer().message()
    answer = answer_as_milter(
        offer,
        actions=Action.ADD_HEADERS,
        protocol=Protocol.NO_HELO | Protocol.DATA_SIZE_1M,
        macros={Stage.MAIL: [b"i"]},
    )
    assert answer == optneg(6, Action.ADD_HEADERS | Action.SET_MACRO_LIST, Protocol.NO_HELO, {2: (b"i",)})
    assert negotiate_as_mta(offer, answer).macros == {Stage.MAIL: (b"i",)}


def test_the_milters_answer_to_old_mtas():
    old = optneg(2, 0x3F, 0x7F)
    answer = answer_as_milter(
        old, actions=Action.ADD_HEADERS, protocol=ALL_PROTOCOL, macros={Stage.MAIL: [b"i"]}
    )
    assert answer == optneg(2, 1, 0x7F)


@pytest.mark.parametrize(("version", "most"), [(2, 6), (5, 6), (6, 5), (6, 2)])
def test_the_milter_wants_nothing_that_came_with_a_later_version(version, most):
    offer = optneg(version, ALL_ACTIONS)
    answer = answer_as_milter(
        offer, actions=Action(0), optional=ALL_ACTIONS, macros={0: [b"i"]}, max_version=most
    )
    assert answer.actions == Action(0x13F)
    assert answer.macros == {0: (b"i",)}
    with pytest.raises(NegotiationError, match=r"actions 0x40 \(only 0x13f in version [25]\)"):
        answer_as_milter(offer, actions=Action.CHANGE_SENDER, max_version=most)


def test_the_milter_speaks_no_version_that_it_does_not_know():
    assert answer_as_milter(optneg(9, 0x1FF)).version == 6


@pytest.mark.parametrize(
    ("offer", "text"),
    [(optneg(1, 0x1FF), "version 1"), (optneg(6, 0x1), r"actions 0x1fe \(only 0x1 in")],
)
def test_what_a_milter_refuses(offer, text):
    with pytest.raises(NegotiationError, match=text):
        answer_as_milter(offer)
