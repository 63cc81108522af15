"""What follows from the methods of a filter."""

import pytest

from milterchain.milter.filter import Milter, derived_protocol, no_reply
from milterchain.milter.flags import Protocol
from milterchain.milter.negotiation import DECLINE, NO_REPLY

METHODS = {command: command.name.lower() for command in DECLINE}
NOTHING = derived_protocol(Milter)


def test_nothing_is_asked_for_that_no_method_needs():
    assert Protocol(0x77F) == NOTHING


@pytest.mark.parametrize("command", DECLINE)
def test_what_is_overridden_is_asked_for(command):
    async def method(*_): ...

    kind = type("Filter", (Milter,), {METHODS[command]: method})
    assert derived_protocol(kind) == NOTHING & ~DECLINE[command]
    assert derived_protocol(type("Child", (kind,), {})) == NOTHING & ~DECLINE[command]


@pytest.mark.parametrize("command", NO_REPLY)
def test_methods_that_never_answer(command):
    async def method(*_): ...

    method.__name__ = METHODS[command]
    kind = type("Filter", (Milter,), {method.__name__: no_reply(method)})
    expected = NOTHING & ~DECLINE[command] | NO_REPLY[command]
    assert derived_protocol(kind) == expected
    assert derived_protocol(type("Child", (kind,), {})) == expected

    async def other(*_): ...

    assert derived_protocol(type("Child", (kind,), {METHODS[command]: other})) == NOTHING & ~DECLINE[command]


@pytest.mark.parametrize("name", ["end_of_message", "abort", "close", "new_connection", "body_"])
def test_no_mta_goes_on_without_other_replies(name):
    async def method(*_): ...

    method.__name__ = name
    with pytest.raises(ValueError, match=f"{name} is none of connect, helo"):
        no_reply(method)
