"""What MTAs hardly ever do to the filter of a session; the ordinary is in `test_filter`."""

import asyncio

import pytest

from milterchain.errors import MilterClosedError
from milterchain.mailfilter import (
    ACCEPT,
    DecideAt,
    Decision,
    FilterOptions,
    HeaderOptions,
    Sender,
    Transaction,
    running,
)
from milterchain.mailfilter.session import FilterSession
from milterchain.milter.flags import ALL_ACTIONS, Protocol
from milterchain.milter.macros import MacroStore
from milterchain.milter.messages import Accept, Modification, Quarantine
from milterchain.milter.modifier import Modifier
from milterchain.milter.negotiation import Negotiated


class LostMta:
    """Is gone when the filter wants to tell it something."""

    async def emit(self, message: Modification | Quarantine) -> None:
        raise AssertionError(message)

    async def progress(self) -> None:
        raise MilterClosedError("gone")


def session(function, **options) -> FilterSession:
    made = FilterSession(function, FilterOptions(**options))
    made.negotiated = Negotiated(version=6, actions=ALL_ACTIONS, protocol=Protocol(0))
    made.macros = MacroStore()
    made.modifier = Modifier(LostMta(), made.negotiated)
    return made


async def forever(_what) -> Decision:
    await asyncio.Event().wait()
    raise AssertionError


async def accept(_what) -> Decision:
    return ACCEPT


async def test_the_mta_is_found_to_be_gone(monkeypatch):
    monkeypatch.setattr(running, "PROGRESS_INTERVAL", 0.001)
    deciding = session(forever)
    with pytest.raises(MilterClosedError):
        await deciding.end_of_message(deciding.modifier)
    validating = session(accept, validate_recipient=forever)
    with pytest.raises(MilterClosedError):
        await validating.rcpt(b"a@x.test", ())


async def test_a_message_may_come_without_a_sender():
    seen: list[Transaction] = []

    async def look(trx: Transaction) -> Decision:
        seen.append(trx)
        return ACCEPT

    serving = session(look)
    await serving.header(b"A", b"1")
    assert await serving.end_of_message(serving.modifier) == Accept()
    assert await serving.end_of_message(serving.modifier) == Accept()
    assert [(trx.sender, len(trx.headers)) for trx in seen] == [(Sender(b""), 1), (Sender(b""), 0)]


async def test_what_was_not_asked_for_is_not_collected():
    early = session(accept, decide_at=DecideAt.MAIL, headers=HeaderOptions(max_count=0))
    await early.mail(b"<a@x.test>", ())
    assert await early.header(b"A", b"1") is None
    assert await early.body(b"x") is None
    without = session(accept, body=None)
    assert await without.body(b"x") is None
    await without.close()
    await without.close()
