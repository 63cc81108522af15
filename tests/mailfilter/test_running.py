import asyncio

import pytest

from milterchain.errors import MilterClosedError
from milterchain.mailfilter import running
from milterchain.mailfilter.running import MTALeftError, run_with_progress


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(running, "PROGRESS_INTERVAL", 0.001)


class Mta:
    def __init__(self, *, leaves_after: int = 1000) -> None:
        self.told = 0
        self.enough = asyncio.Event()
        self._leaves_after = leaves_after

    async def progress(self) -> None:
        self.told += 1
        if self.told >= self._leaves_after:
            raise MilterClosedError("gone")
        if self.told >= 3:
            self.enough.set()


async def test_the_result_comes_back_and_signs_stop():
    mta = Mta()

    async def work() -> str:
        await mta.enough.wait()
        return "done"

    assert await run_with_progress(work(), mta.progress, 10) == "done"
    told = mta.told
    await asyncio.sleep(0.01)
    assert mta.told == told
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_is_quick_gives_no_signs():
    mta = Mta()

    async def work() -> int:
        return 1

    assert await run_with_progress(work(), mta.progress, 10) == 1
    assert mta.told == 0


async def test_what_it_raises_comes_as_it_is():
    async def work() -> int:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await run_with_progress(work(), Mta().progress, 10)


class Endless:
    def __init__(self) -> None:
        self.cancelled = False

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


async def test_it_has_a_time_limit():
    work = Endless()
    with pytest.raises(TimeoutError):
        await run_with_progress(work.run(), Mta().progress, 0.01)
    assert work.cancelled


async def test_it_is_cancelled_when_the_mta_is_gone():
    work = Endless()
    with pytest.raises(MTALeftError, match="gone"):
        await run_with_progress(work.run(), Mta(leaves_after=2).progress, 10)
    assert work.cancelled


async def test_what_it_waits_for_may_be_cancelled():
    async def work() -> None:
        other = asyncio.get_running_loop().create_future()
        other.cancel()
        await other

    with pytest.raises(RuntimeError, match="what it waited for was cancelled"):
        await run_with_progress(work(), Mta().progress, 10)


async def test_it_may_lose_a_connection_of_its_own():
    async def work() -> None:
        raise MilterClosedError("that of another milter")

    with pytest.raises(MilterClosedError, match="another") as caught:
        await run_with_progress(work(), Mta().progress, 10)
    assert not isinstance(caught.value, MTALeftError)


async def test_other_cancellations_pass():
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run_with_progress(work(), Mta().progress, 10))
        await started.wait()
        task.cancel()
    assert task.cancelled()
