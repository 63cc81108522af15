"""Connections that are kept: which one is taken, how long they are kept, and that none is lost."""

import asyncio
from collections.abc import Callable

import pytest

from milterchain.errors import NextHopConnectError, NextHopError, NextHopTimeoutError
from milterchain.proxy.nexthop import SMTPHop
from milterchain.proxy.pool import Pool, PoolOptions
from milterchain.smtp.client import SMTPClient
from milterchain.smtp.client_options import ClientOptions
from milterchain.testing.faults import Close, Late, Silence
from milterchain.testing.peer import PATIENCE, refusing_address
from milterchain.testing.scripted_next_hop import ScriptedNextHop


def pool_for(hop: ScriptedNextHop, **options: float) -> Pool:
    client = ClientOptions(quit_timeout=0.5)
    return Pool(SMTPHop("127.0.0.1", hop.port), client, PoolOptions(**options))  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for announces nothing
            await asyncio.sleep(0.002)


async def test_the_last_one_given_is_taken_first() -> None:
    async with ScriptedNextHop() as hop:
        pool = pool_for(hop)
        assert pool.features is None
        assert pool.take() is None
        one, two = await pool.open(), await pool.open()
        assert pool.features == one.features
        pool.give(one)
        pool.give(two)
        assert pool.idle == 2
        assert pool.take() is two
        assert pool.take() is one
        assert pool.take() is None
        one.close()
        two.close()
        await pool.close()


async def test_not_more_than_the_limit_are_kept() -> None:
    async with ScriptedNextHop() as hop:
        pool = pool_for(hop, max_idle=2)
        clients = [await pool.open() for _ in range(4)]
        for client in clients:
            pool.give(client)
        assert pool.idle == 2
        assert (await hop.wait_closed(0)).verbs == (await hop.wait_closed(1)).verbs == "EHLO QUIT"
        assert [client.usable for client in clients] == [False, False, True, True]
        await pool.close()
        assert [session.verbs for session in hop.connections] == ["EHLO QUIT"] * 4


async def test_idle_connections_are_closed_in_time_and_used_ones_are_not() -> None:
    async with ScriptedNextHop() as hop:
        pool = pool_for(hop, idle_timeout=0.1)
        used = await pool.open()
        for _ in range(3):
            pool.give(await pool.open())
        await hop.wait_closed(1)
        await hop.wait_closed(3)
        await until(lambda: pool.idle == 0)
        assert used.usable
        assert pool._timer is None
        pool.give(used)
        await hop.wait_closed(0)
        await pool.close()


async def test_the_sweep_keeps_what_is_young() -> None:
    async with ScriptedNextHop() as hop:
        pool = pool_for(hop, idle_timeout=60)
        old, young = await pool.open(), await pool.open()
        pool.give(old)
        pool.give(young)
        since, _ = pool._idle[0]
        pool._idle[0] = (since - 100, old)
        pool._sweep()
        assert pool.idle == 1
        assert pool._timer is not None
        assert pool.take() is young
        assert (await hop.wait_closed(0)).verbs == "EHLO QUIT"
        young.close()
        await pool.close()


async def test_an_old_connection_is_not_kept() -> None:
    async with ScriptedNextHop() as hop:
        pool = pool_for(hop, lifetime=-1.0)
        pool.give(await pool.open())
        assert pool.idle == 0
        assert (await hop.wait_closed()).verbs == "EHLO QUIT"
        await pool.close()


async def test_dead_connections_are_not_handed_out() -> None:
    go = asyncio.Event()
    async with ScriptedNextHop([{"NOOP": ["250 Ok", Late(go), Close()]}, {}]) as hop:
        pool = pool_for(hop)
        client, other = await pool.open(), await pool.open()
        await client.exchange(b"NOOP")
        pool.give(other)
        pool.give(client)
        go.set()
        await client.wait_closed()
        assert pool.take() is other
        other.close()
        pool.give(other)
        assert pool.idle == 0
        await pool.close()


async def failure_of(client: SMTPClient) -> NextHopError | None:
    try:
        await client.exchange(b"NOOP")
    except NextHopError as error:
        return error
    return None


async def test_a_connection_with_a_command_under_way_is_not_kept() -> None:
    async with ScriptedNextHop({"NOOP": Silence()}) as hop, asyncio.TaskGroup() as group:
        pool = pool_for(hop)
        client = await pool.open()
        waiting = group.create_task(failure_of(client))
        await hop.wait_for(lambda: "NOOP" in hop.connections[0].verbs)
        pool.give(client)
        assert pool.idle == 0
        assert await waiting is client.failure
        assert isinstance(client.failure, NextHopError)
        await pool.close()


async def test_what_comes_back_after_the_end_is_not_kept() -> None:
    async with ScriptedNextHop() as hop:
        pool = pool_for(hop)
        client = await pool.open()
        await pool.close()
        pool.give(client)
        assert pool.idle == 0
        assert (await hop.wait_closed()).verbs == "EHLO QUIT"
        await pool.close()


async def test_closing_does_not_wait_for_a_hop_that_ignores_quit() -> None:
    async with ScriptedNextHop({"QUIT": Silence()}) as hop:
        pool = pool_for(hop)
        for client in [await pool.open(), await pool.open()]:
            pool.give(client)
        async with asyncio.timeout(3):
            await pool.close()


async def test_opening_fails() -> None:
    with refusing_address() as address:
        pool = Pool(SMTPHop(*address), ClientOptions(), PoolOptions())
        with pytest.raises(NextHopConnectError, match="refused"):
            await pool.open()
    async with ScriptedNextHop({"EHLO": Silence()}) as hop:
        with pytest.raises(NextHopTimeoutError, match=r"within 0\.3 s"):
            await pool_for(hop, open_timeout=0.3).open()
        assert (await hop.wait_closed()).closed_by_peer
