"""What a server answers to an MTA: what its filters say, and what its options say instead."""

import math
from typing import ClassVar

import pytest

from milterchain.errors import NegotiationError
from milterchain.milter.filter import Milter, no_reply
from milterchain.milter.flags import (
    ALL_ACTIONS,
    ALL_PROTOCOL,
    DATA_SIZE_1M,
    DATA_SIZE_64K,
    DATA_SIZE_256K,
    Action,
    Protocol,
    Stage,
)
from milterchain.milter.messages import OptNeg
from milterchain.milter.negotiation import Offer
from milterchain.milter.server_options import NegotiationOptions, ServerOptions

OFFER = Offer().message()
LARGE = Offer(max_data=DATA_SIZE_1M).message()


class Filter(Milter):
    actions = Action.ADD_HEADERS
    optional_actions = Action.CHANGE_BODY
    protocol = Protocol.LEADING_SPACE
    wanted_macros: ClassVar = {Stage.MAIL: [b"i", b"mail_addr", b"{auth_type}"]}

    @no_reply
    async def header(self, name, value): ...


DERIVED = Protocol(0x75F) | Protocol.NO_REPLY_HEADER | Protocol.LEADING_SPACE


def test_filters_say_what_they_need():
    for milter in (Filter, Filter()):
        answer = NegotiationOptions().answer(OFFER, milter)
        assert answer == OptNeg(
            version=6,
            actions=Action.ADD_HEADERS | Action.CHANGE_BODY | Action.SET_MACRO_LIST,
            protocol=DERIVED,
            macros={Stage.MAIL: (b"i", b"{mail_addr}", b"{auth_type}")},
        )


def test_who_is_not_known_gets_everything():
    answer = NegotiationOptions().answer(OFFER, None)
    assert answer == OptNeg(version=6, actions=Action(0xFF), protocol=Protocol.SKIP)
    old = OptNeg(version=2, actions=Action(0x3F), protocol=Protocol(0x7F))
    assert NegotiationOptions().answer(old, None) == OptNeg(
        version=2, actions=Action(0x3F), protocol=Protocol(0)
    )


def test_options_win():
    options = NegotiationOptions(
        actions=Action.QUARANTINE,
        optional_actions=Action(0),
        protocol=Protocol.NO_BODY | Protocol.NO_REPLY_MAIL,
        macros={},
    )
    for milter in (Filter, None):
        assert options.answer(OFFER, milter) == OptNeg(
            version=6, actions=Action.QUARANTINE, protocol=Protocol.NO_BODY | Protocol.NO_REPLY_MAIL
        )


def test_an_empty_list_of_macros_is_a_wish():
    options = NegotiationOptions(macros={Stage.HELO: ()})
    assert options.answer(OFFER, None).macros == {Stage.HELO: ()}


@pytest.mark.parametrize(
    ("offered", "most", "version", "protocol"),
    [
        (6, 6, 6, DERIVED),
        (7, 6, 6, DERIVED),
        (6, 4, 4, Protocol(0x35F)),
        (4, 6, 4, Protocol(0x35F)),
        (6, 2, 2, Protocol(0x5F)),
    ],
)
def test_versions(offered, most, version, protocol):
    offer = OptNeg(version=offered, actions=ALL_ACTIONS, protocol=ALL_PROTOCOL)
    answer = NegotiationOptions(max_version=most).answer(offer, Filter)
    assert (answer.version, answer.protocol) == (version, protocol)


@pytest.mark.parametrize(
    ("options", "offer"),
    [
        ({"min_version": 6}, OptNeg(version=4, actions=ALL_ACTIONS, protocol=Protocol(0))),
        ({}, OptNeg(version=1, actions=ALL_ACTIONS, protocol=Protocol(0))),
        ({"actions": Action.QUARANTINE}, OptNeg(version=6, actions=Action(0x1F), protocol=Protocol(0))),
    ],
)
def test_no_common_ground(options, offer):
    with pytest.raises(NegotiationError):
        NegotiationOptions(**options).answer(offer, None)


@pytest.mark.parametrize(
    ("offer", "size", "bits"),
    [
        (OFFER, DATA_SIZE_1M, 0),
        (LARGE, DATA_SIZE_64K, 0),
        (LARGE, DATA_SIZE_256K - 1, 0),
        (LARGE, DATA_SIZE_256K, Protocol.DATA_SIZE_256K),
        (LARGE, DATA_SIZE_1M, Protocol.DATA_SIZE_1M),
        (Offer(max_data=DATA_SIZE_256K).message(), DATA_SIZE_1M, Protocol.DATA_SIZE_256K),
    ],
)
def test_data_sizes(offer, size, bits):
    answer = NegotiationOptions(max_data=size, protocol=Protocol(0)).answer(offer, None)
    assert answer.protocol == bits
    assert (
        NegotiationOptions(max_data=size, max_version=4, protocol=Protocol(0)).answer(offer, None).protocol
        == 0
    )


def test_an_expert_has_the_last_word():
    seen = []

    def callback(offer, answer):
        seen.append((offer, answer))
        return OptNeg(version=4, actions=answer.actions, protocol=Protocol(0))

    answer = NegotiationOptions(callback=callback).answer(OFFER, Filter)
    assert answer.version == 4
    assert seen[0][0] == OFFER
    assert seen[0][1].protocol == DERIVED


@pytest.mark.parametrize(
    "options",
    [{"min_version": 1}, {"max_version": 7}, {"min_version": 6, "max_version": 4}, {"max_data": 1000}],
)
def test_what_cannot_be_negotiated(options):
    with pytest.raises(ValueError, match=r"versions|payloads"):
        NegotiationOptions(**options)


TIMEOUTS = ("negotiation_timeout", "idle_timeout", "handler_timeout", "write_timeout", "close_timeout")


@pytest.mark.parametrize("name", TIMEOUTS)
@pytest.mark.parametrize("value", [0, -1, -0.5, -math.inf, math.nan])
def test_a_timeout_that_would_end_all_at_once_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}: {value} s, a timeout is longer than 0$"):
        ServerOptions(**{name: value})


@pytest.mark.parametrize("connections", [0, -1])
def test_a_server_takes_one_connection_at_least(connections):
    with pytest.raises(ValueError, match=f"^connections: {connections}, 1 is the least$"):
        ServerOptions(connections=connections)


def test_limits_may_be_as_wide_as_one_likes():
    options = ServerOptions(connections=1, **dict.fromkeys(TIMEOUTS, math.inf))
    assert options.idle_timeout == math.inf
