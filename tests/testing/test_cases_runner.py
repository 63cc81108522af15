"""Scenarios played with a scripted server that stands for the MTA, and with one that breaks its word."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from milterchain.testing import Close, ScriptedNextHop
from milterchain.testing.cases import (
    Arrival,
    Case,
    CaseFailure,
    CaseFilter,
    HopOutbox,
    Mta,
    parse,
    run_case,
    why_not,
)
from milterchain.testing.scripted_next_hop import HopScript

ENVELOPE = "> EHLO client.test\n> MAIL FROM:<a@x.test>\n> RCPT TO:<b@x.test>\n> DATA"
MESSAGE = "| Subject: hello\n|\n| .body"


def case_of(*lines: str) -> Case:
    (case,) = parse("\n".join(["case it", *lines]), "it.case")
    return case


@dataclass
class Box:
    """An outbox that a test fills."""

    messages: list[Arrival] = field(default_factory=list)
    in_quarantine: int = 0

    async def arrivals(self) -> Sequence[Arrival]:
        return self.messages

    async def settle(self) -> None:
        pass

    async def held(self) -> int:
        return self.in_quarantine


async def play(*lines: str, replies: HopScript | None = None) -> list[str]:
    """Play the steps with a server that delivers what it takes; the verbs that it was sent."""
    async with ScriptedNextHop(replies or {}) as hop:
        mta = Mta(name="hop", address=hop.address, outbox=HopOutbox(hop))
        await run_case(case_of(*lines), mta)
        await hop.wait_for(lambda: all(connection.closed for connection in hop.connections))
        return [connection.verbs for connection in hop.connections]


async def failure(*lines: str, replies: HopScript | None = None) -> str:
    with pytest.raises(CaseFailure) as caught:
        await play(*lines, replies=replies)
    return str(caught.value)


async def test_a_message_passes() -> None:
    block = f"from <a@x.test>\nto <b@x.test>\n{MESSAGE}"
    verbs = await play("connect", ENVELOPE, MESSAGE, "= accept", "arrives", block)
    assert verbs == ["EHLO MAIL RCPT DATA . QUIT"]


async def test_positive_is_the_default() -> None:
    assert await play("connect", "> NOOP") == ["NOOP QUIT"]
    text = await failure("connect", "> NOOP", replies={"NOOP": "450 4.0.0 no"})
    assert "it.case:3: 'it' with hop: expected a positive reply, got 450 4.0.0 no" in text
    assert "    > NOOP\n    < 450 4.0.0 no" in text


REFUSED = {"NOOP": "550-5.1.1 no\n550 5.1.1 such user"}


@pytest.mark.parametrize(
    "lines",
    [
        "= reject",
        "< 550",
        "< 5xx",
        "<[hop] 550",
        "<[other] 250",
        "< 550-5.1.1 no\n< 550 5.1.1 *user",
        "< 550-5.1.1 no\n< 550 5.1.1 *user\n= reject",
    ],
)
async def test_replies_that_fit(lines: str) -> None:
    expectation = f"{lines}\n= reject" if "other" in lines else lines
    await play("connect", "> NOOP", expectation, replies=REFUSED)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("= tempfail", "expected tempfail, got 550 5.1.1 no | 550 5.1.1 such user"),
        ("= accept", "expected accept"),
        ("< 551", "expected the reply 551, got"),
        ("< 4xx", "expected the reply 4xx, got"),
        ("< 550 5.1.1 no", "expected the reply 550 5.1.1 no, got"),
        ("< 550-5.1.1 no\n< 550 5.1.1 such", "expected the reply 550-5.1.1 no | 550 5.1.1 such, got"),
        ("< 550\n= tempfail", "expected tempfail"),
    ],
)
async def test_replies_that_do_not_fit(lines: str, text: str) -> None:
    assert text in await failure("connect", "> NOOP", lines, replies=REFUSED)


async def test_another_message_arrives() -> None:
    text = await failure("connect", ENVELOPE, MESSAGE, "arrives", "to <c@x.test>\nhas Subject: other")
    assert (
        "the message that arrived is not as expected:\nrecipients <b@x.test>; expected <c@x.test>\n" in text
    )
    assert "no header Subject: other; there is hello" in text


async def test_a_refused_message_does_not_arrive() -> None:
    await play("connect", ENVELOPE, MESSAGE, "= reject", replies={".": "550 5.7.1 no"})
    await play("connect", ENVELOPE, MESSAGE, "< 451", replies={".": "451 4.7.1 no"})


async def test_content_is_left_out_where_data_is_refused() -> None:
    verbs = await play("connect", ENVELOPE, "= reject", MESSAGE, "= accept", replies={"DATA": "554 no"})
    assert verbs == ["EHLO MAIL RCPT DATA QUIT"]


async def test_a_discarded_message_arrives() -> None:
    text = await failure("connect", ENVELOPE, MESSAGE, "= discard")
    assert "1 more arrived than should have" in text


async def test_several_connections() -> None:
    assert await play("connect", "> NOOP", "drop", "connect", "connect") == ["NOOP", "QUIT", "QUIT"]


async def test_a_greeting_is_judged() -> None:
    await play("connect", "= reject", replies={"CONNECT": "554 5.0.0 no"})
    assert "expected a positive reply" in await failure("connect", replies={"CONNECT": "554 5.0.0 no"})


async def test_the_server_closes() -> None:
    bye = {"MAIL": ["421 4.0.0 bye", Close()]}
    await play("connect", "> MAIL FROM:<a@x.test>", "= tempfail", "closed", replies=bye)
    text = await failure("connect", "> MAIL FROM:<a@x.test>", "= tempfail", "> NOOP", replies=bye)
    assert "it.case:5: " in text
    assert "no connection" in await failure("connect", "drop", "> NOOP")


async def test_the_server_says_more() -> None:
    more = {"NOOP": b"421 4.0.0 bye\r\n250 and more\r\n"}
    text = await failure("connect", "> NOOP", "= tempfail", "closed", replies=more)
    assert "the server said more instead of closing" in text


async def test_the_server_does_not_speak_smtp() -> None:
    assert "no SMTP reply" in await failure("connect", replies={"CONNECT": b"HTTP/1.1 400\r\n"})


async def test_nobody_listens() -> None:
    async with ScriptedNextHop() as hop:
        address = hop.address
    mta = Mta(name="gone", address=address, outbox=Box())
    with pytest.raises(CaseFailure, match="cannot connect to"):
        await run_case(case_of("connect"), mta)


async def test_a_deadline() -> None:
    async with ScriptedNextHop({"NOOP": ()}) as hop:
        mta = Mta(name="hop", address=hop.address, outbox=HopOutbox(hop))
        with pytest.raises(CaseFailure, match=r"it.case:3: .* not at its end after 0.05 s"):
            await run_case(case_of("connect", "> NOOP"), mta, timeout=0.05)


async def test_tls_needs_a_context() -> None:
    async with ScriptedNextHop() as hop:
        mta = Mta(name="hop", address=hop.address, outbox=HopOutbox(hop))
        with pytest.raises(ValueError, match="hop has no TLS for certificate 'client'"):
            await run_case(case_of("connect", "tls client"), mta)


async def test_tls_that_fails() -> None:
    async with ScriptedNextHop({"STARTTLS": ["220 2.0.0 go on", Close()]}) as hop:
        tls = {"": ssl.create_default_context()}
        mta = Mta(name="hop", address=hop.address, outbox=HopOutbox(hop), tls=tls)
        with pytest.raises(CaseFailure, match=r"it.case:4: .* no TLS: "):
            await run_case(case_of("connect", "> STARTTLS", "tls"), mta)


@pytest.fixture
async def hop() -> AsyncIterator[ScriptedNextHop]:
    async with ScriptedNextHop() as server:
        yield server


async def test_a_held_message(hop: ScriptedNextHop) -> None:
    box = Box()
    mta = Mta(name="hop", address=hop.address, outbox=box)
    case = case_of("connect", ENVELOPE, MESSAGE, "= quarantine")
    async with asyncio.TaskGroup() as group:
        run = group.create_task(run_case(case, mta))
        await hop.wait_for(lambda: hop.accepted)
        assert not run.done()
        box.in_quarantine = 1


async def test_a_message_that_is_held_without_need() -> None:
    box = Box()

    def hold(_: bytes) -> None:
        box.in_quarantine += 1

    async with ScriptedNextHop({"NOOP": hold}) as hop:
        mta = Mta(name="hop", address=hop.address, outbox=box)
        with pytest.raises(CaseFailure, match="1 more are held than should be"):
            await run_case(case_of("connect", "> NOOP"), mta)


async def test_a_message_that_does_not_arrive(hop: ScriptedNextHop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milterchain.testing.cases_runner.ARRIVAL_TIMEOUT", 0.05)
    mta = Mta(name="hop", address=hop.address, outbox=Box())
    with pytest.raises(CaseFailure, match="accepted and does not arrive"):
        await run_case(case_of("connect", ENVELOPE, MESSAGE), mta)
    with pytest.raises(CaseFailure, match="is not held"):
        await run_case(case_of("connect", ENVELOPE, MESSAGE, "= quarantine"), mta)


async def test_held_is_counted_from_the_start(hop: ScriptedNextHop) -> None:
    box = Box(in_quarantine=3)
    mta = Mta(name="hop", address=hop.address, outbox=box)
    await run_case(case_of("connect", "> NOOP"), mta)


async def test_the_filter_runs_for_as_long_as_the_scenario(hop: ScriptedNextHop) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def start(setup: CaseFilter, address: str) -> AsyncIterator[None]:
        events.append(f"{setup.name} {setup.get('at')} {address}")
        yield
        events.append("end")

    def starter(setup: CaseFilter, address: str) -> AbstractAsyncContextManager[None]:
        return start(setup, address)

    case = case_of("filter some", "    at mail", "connect", "> NOOP")
    mta = Mta(name="hop", address=hop.address, outbox=HopOutbox(hop), filter_address="inet:1")
    await run_case(case, mta, {"some": starter})
    assert events == ["some mail inet:1", "end"]
    with pytest.raises(ValueError, match=r"it.case:1: no filter is called 'some'"):
        await run_case(case, mta)
    await run_case(case, Mta(name="hop", address=hop.address, outbox=HopOutbox(hop)))


def test_for_whom_a_scenario_is_meant() -> None:
    mta = Mta(name="b", address="", outbox=Box(), like=frozenset(["a"]), tags=frozenset(["tls"]))
    assert why_not(case_of("connect"), mta) == ""
    assert why_not(case_of("on a", "connect"), mta) == ""
    assert why_not(case_of("on a -b", "connect"), mta) == "not meant for b"
    assert why_not(case_of("on c", "connect"), mta) == "not meant for b"
    assert why_not(case_of("needs tls", "connect"), mta) == ""
    assert why_not(case_of("needs tls auth utf8", "connect"), mta) == "b lacks auth, utf8"
