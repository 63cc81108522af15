"""Releasing held messages: the next hop gets each of them once, whatever happens on the way."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest

from milterchain.errors import QuarantineError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import parse_message
from milterchain.proxy.nexthop import parse_hop
from milterchain.proxy.quarantine import Quarantine, Record
from milterchain.proxy.relay import NextHops, RelayOptions
from milterchain.proxy.release import Released, release
from milterchain.smtp.client_options import ClientOptions
from milterchain.testing import ScriptedNextHop, refusing_address
from milterchain.testing.faults import Close, InTurn, Late, Reset, Silence

RAW = b"Subject: x\r\n\r\n.dot\r\nlast\r\n"
NAME = "0B9ZKRT4XQ100001"
RECIPIENTS = (Path(b"<b@x.test>"), Path(b"<c@x.test>", (b"NOTIFY=NEVER",)))


@pytest.fixture
async def store(tmp_path: FilePath) -> Quarantine:
    return await filled(tmp_path / "held")


async def filled(directory: FilePath, *recipients: Path, raw: bytes = RAW) -> Quarantine:
    store = Quarantine(directory)
    envelope = Envelope(Path(b"<a@client.test>", (b"SIZE=10",)), recipients or RECIPIENTS)
    with parse_message(raw) as message:
        await store.hold(Record(id=NAME, milter="m", reason=b"why", envelope=envelope), message)
    return store


async def released(store: Quarantine, hop: str, *, patience: float = 20.0, **options: Any) -> Released:
    client = ClientOptions(hello=b"mx.test", data_done_timeout=patience)
    hops = NextHops([parse_hop(hop)], RelayOptions(client=client, on_refused_added_recipient="log"))
    try:
        async with asyncio.timeout(20):
            return await release(store, NAME, hops, **options)
    finally:
        await hops.close()


async def test_the_next_hop_gets_what_was_held(store: Quarantine) -> None:
    async with ScriptedNextHop() as hop:
        done = await released(store, hop.next_hop)
    (message,) = hop.accepted
    assert (message.sender, message.recipients) == (b"a@client.test", (b"b@x.test", b"c@x.test"))
    assert message.data == RAW
    assert b"SIZE=%d" % len(RAW) in message.mail
    assert message.rcpts[1].endswith(b" NOTIFY=NEVER")
    assert (done.hop, done.refused) == (hop.next_hop, ())
    assert list(store.directory.iterdir()) == []


@pytest.mark.parametrize("hop", ["maildir:{}/mail", "discard:"])
async def test_other_kinds_of_hops(store: Quarantine, tmp_path: FilePath, hop: str) -> None:
    await released(store, hop.format(tmp_path))
    assert store.ids() == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"MAIL": "550 5.7.1 go away"}, "550 5.7.1 go away"),
        ({"RCPT": "550 5.1.1 who"}, "b@x.test: 550 5.1.1 who, c@x.test: 550 5.1.1 who"),
        ({"DATA": "451 4.3.0 later"}, "451 4.3.0 later"),
        ({".": "554 5.6.0 too ugly"}, "554 5.6.0 too ugly"),
        ({"CONNECT": "554 5.3.2 no"}, "554 5.3.2 no"),
        ({"DATA": Close()}, "closed"),
    ],
    ids=str,
)
async def test_what_was_refused_is_still_held(store: Quarantine, script: Any, words: str) -> None:
    before = store.entry(NAME)
    async with ScriptedNextHop(script) as hop:
        with pytest.raises(QuarantineError, match="not released") as caught:
            await released(store, hop.next_hop)
    assert words in str(caught.value)
    assert store.entry(NAME) == before
    async with ScriptedNextHop() as hop:
        await released(store, hop.next_hop)
    assert len(hop.accepted) == 1


async def test_nobody_there(store: Quarantine) -> None:
    with refusing_address() as (host, port), pytest.raises(QuarantineError, match="not released"):
        await released(store, f"smtp:{host}:{port}")
    assert not store.entry(NAME).in_doubt


async def test_refused_recipients_stay(store: Quarantine) -> None:
    script = {"RCPT": lambda argument: "450 4.2.1 full" if b"<c@" in argument else None}
    async with ScriptedNextHop(script) as hop:
        done = await released(store, hop.next_hop)
    assert hop.accepted[0].recipients == (b"b@x.test",)
    assert done.refused == (("c@x.test", "450 4.2.1 full"),)
    entry = store.entry(NAME)
    assert (entry.record.envelope.recipients, entry.in_doubt) == (RECIPIENTS[1:], False)
    async with ScriptedNextHop() as hop:
        await released(store, hop.next_hop)
    assert hop.accepted[0].recipients == (b"c@x.test",)
    assert store.ids() == []


@pytest.mark.parametrize("fault", [Close(), Reset(), Silence()], ids=str)
async def test_what_may_have_been_taken_is_not_sent_again_by_itself(store: Quarantine, fault: Any) -> None:
    async with ScriptedNextHop({".": fault}) as hop:
        with pytest.raises(QuarantineError, match="could have taken the message"):
            await released(store, hop.next_hop, patience=0.3 if isinstance(fault, Silence) else 20.0)
    assert store.entry(NAME).in_doubt
    async with ScriptedNextHop() as hop:
        with pytest.raises(QuarantineError, match="--again"):
            await released(store, hop.next_hop)
        assert hop.accepted == []
        await released(store, hop.next_hop, again=True)
        assert len(hop.accepted) == 1
    assert store.ids() == []


async def test_nobody_to_send_to(tmp_path: FilePath) -> None:
    store = Quarantine(tmp_path)
    with parse_message(RAW) as message:
        envelope = Envelope(Path(b"<>"))
        await store.hold(Record(id=NAME, milter="m", reason=b"", envelope=envelope), message)
    with pytest.raises(QuarantineError, match="no recipients"):
        await released(store, "discard:")


LMTP_RECIPIENTS = tuple(Path(b"<%b@x.test>" % name) for name in (b"b", b"c", b"d"))


async def test_lmtp_answers_for_each_recipient(tmp_path: FilePath) -> None:
    store = await filled(tmp_path / "held", *LMTP_RECIPIENTS)
    async with ScriptedNextHop(
        {".": InTurn("250 2.0.0 Ok", "452 4.2.2 full", "250 2.0.0 Ok")}, lmtp=True
    ) as hop:
        done = await released(store, hop.next_hop, one_by_one=True)
        assert done.refused == (("c@x.test", "452 4.2.2 full"),)
        assert [message.recipients for message in hop.accepted] == [(b"b@x.test",), (b"d@x.test",)]
    assert store.entry(NAME).record.envelope.recipients == LMTP_RECIPIENTS[1:2]
    async with ScriptedNextHop(lmtp=True) as hop:
        await released(store, hop.next_hop, one_by_one=True)
        assert [message.recipients for message in hop.accepted] == [(b"c@x.test",)]
    assert store.ids() == []


async def test_lmtp_cut_off_in_the_middle(tmp_path: FilePath) -> None:
    """The first has it, for the second it is not known, the third was not asked."""
    store = await filled(tmp_path / "held", *LMTP_RECIPIENTS)
    async with ScriptedNextHop({".": InTurn("250 2.0.0 Ok", Close())}, lmtp=True) as hop:
        with pytest.raises(QuarantineError, match="could have taken"):
            await released(store, hop.next_hop, one_by_one=True)
    entry = store.entry(NAME)
    assert (entry.record.envelope.recipients, entry.in_doubt) == (LMTP_RECIPIENTS[1:], True)


async def test_ten_at_once_send_one(store: Quarantine) -> None:
    go = asyncio.Event()
    async with ScriptedNextHop({".": [Late(go), "250 2.0.0 Ok"]}) as hop, asyncio.TaskGroup() as group:
        tasks = [group.create_task(attempt(store, hop.next_hop)) for _ in range(10)]
        ended = asyncio.as_completed(tasks)
        for _ in range(9):
            assert await next(ended) is False
        go.set()
    assert sorted(task.result() for task in tasks) == [False] * 9 + [True]
    assert len(hop.accepted) == 1


async def attempt(store: Quarantine, hop: str) -> bool:
    try:
        await released(Quarantine(store.directory), hop)
    except QuarantineError as error:
        assert "another command" in str(error) or "no such message" in str(error)  # noqa: PT017
        return False
    return True


PROGRAM = """
import asyncio, sys
from pathlib import Path
from milterchain.proxy.nexthop import parse_hop
from milterchain.proxy.quarantine import Quarantine
from milterchain.proxy.relay import NextHops
from milterchain.proxy.release import release

async def main():
    await release(Quarantine(Path(sys.argv[1])), sys.argv[2], NextHops([parse_hop(sys.argv[3])]))

asyncio.run(main())
"""


async def killed(store: Quarantine, hop: ScriptedNextHop, ready: Callable[[], bool]) -> None:
    """Release in a process of its own, and kill that as soon as something has happened."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(store.directory), NAME, hop.next_hop
    )
    try:
        await hop.wait_for(ready, within=30)
        assert process.returncode is None, "it came to its end"
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("at", ["CONNECT", "MAIL", "RCPT", "DATA"])
async def test_killed_before_the_dot_it_can_be_released(store: Quarantine, at: str) -> None:
    async with ScriptedNextHop({at: Silence()}) as hop:
        verb = at.encode()
        await killed(
            store,
            hop,
            lambda: any(
                at == "CONNECT" or any(line.startswith(verb) for line in connection.commands)
                for connection in hop.connections
            ),
        )
    assert not store.entry(NAME).in_doubt
    async with ScriptedNextHop() as second:
        await released(store, second.next_hop)
    assert len(hop.accepted) + len(second.accepted) == 1


async def test_killed_after_the_dot_it_is_not_sent_twice(store: Quarantine) -> None:
    never = asyncio.Event()
    async with ScriptedNextHop({".": [Late(never), "250 2.0.0 Ok"]}) as hop:
        await killed(store, hop, lambda: any(b"." in connection.commands for connection in hop.connections))
    assert store.entry(NAME).in_doubt
    async with ScriptedNextHop() as second:
        with pytest.raises(QuarantineError, match="--again"):
            await released(store, second.next_hop)
    assert second.accepted == []
