import pytest

from milterchain.smtp.recent import WINDOW, RecentConnections


async def test_only_the_last_minute_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = RecentConnections()
    recent.add("a")
    recent.add("a")
    recent.add("b")
    assert [recent.of(client) for client in "abc"] == [2, 1, 0]
    monkeypatch.setattr("milterchain.smtp.recent.WINDOW", 0.0)
    assert [recent.of(client) for client in "abc"] == [0, 0, 0]
    assert WINDOW == 60.0


async def test_a_flood_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milterchain.smtp.recent.MOST", 3)
    recent = RecentConnections()
    for client in "aabbb":
        recent.add(client)
    assert [recent.of(client) for client in "ab"] == [0, 3]
