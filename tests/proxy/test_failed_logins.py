"""Clients that fail to log in, whatever session they do it in."""

import pytest

from milterchain.proxy import failed_logins
from milterchain.proxy.failed_logins import FORGIVEN_EACH, FailedLogins


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(failed: FailedLogins, client: str, times: int) -> None:
    for _ in range(times):
        assert not failed.blocks(client)
        failed.add(client)


def test_so_many_at_once_then_one_each_while(clock: Clock) -> None:
    failed = FailedLogins(3, clock)
    fail(failed, "192.0.2.1", 3)
    assert failed.blocks("192.0.2.1")
    assert not failed.blocks("192.0.2.2")
    for _ in range(5):
        clock.now += FORGIVEN_EACH - 1
        assert failed.blocks("192.0.2.1")
        clock.now += 1
        fail(failed, "192.0.2.1", 1)
        assert failed.blocks("192.0.2.1")


def test_all_is_forgiven_in_the_end(clock: Clock) -> None:
    failed = FailedLogins(3, clock)
    fail(failed, "192.0.2.1", 3)
    clock.now += 3 * FORGIVEN_EACH
    fail(failed, "192.0.2.1", 3)
    assert failed.blocks("192.0.2.1")


def test_one_now_and_then_is_never_too_many(clock: Clock) -> None:
    failed = FailedLogins(1, clock)
    for _ in range(100):
        fail(failed, "192.0.2.1", 1)
        clock.now += FORGIVEN_EACH


def test_more_than_allowed_at_the_same_time_take_longer(clock: Clock) -> None:
    failed = FailedLogins(2, clock)
    for _ in range(4):
        failed.add("192.0.2.1")
    clock.now += 2 * FORGIVEN_EACH
    assert failed.blocks("192.0.2.1")
    clock.now += FORGIVEN_EACH
    assert not failed.blocks("192.0.2.1")


def test_those_who_failed_last_are_remembered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_logins, "REMEMBERED", 2)
    failed = FailedLogins(2, clock)
    for client in ("one", "two", "one", "two", "one", "three"):
        failed.add(client)
    assert [failed.blocks(client) for client in ("one", "two", "three")] == [True, False, False]
