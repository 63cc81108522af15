import resource
from pathlib import Path

import pytest

from milterchain.config import parse
from milterchain.proxy.descriptors import allow, needed

ENDLESS = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    held = [1024, 4096]

    def change(_: int, pair: tuple[int, int]) -> None:
        held[:] = pair

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(held))
    monkeypatch.setattr(resource, "setrlimit", change)
    return held


def test_needed_grows_with_connections_and_milters() -> None:
    document = {
        "limits": {"connections": 10},
        "milter": [{"address": "unix:/a"}, {"address": "unix:/b"}],
    }
    assert needed(parse(document, "test", Path())) == 150


@pytest.mark.parametrize(
    ("held", "count", "allowed", "after"),
    [
        ((1024, 4096), 3000, 3000, 3000),
        ((1024, 4096), 9000, 4096, 4096),
        ((1024, 4096), 100, 1024, 1024),
        ((1024, ENDLESS), 9000, 9000, 9000),
        ((ENDLESS, ENDLESS), 9000, 9000, ENDLESS),
    ],
)
def test_the_limit_is_raised_and_never_lowered(
    limits: list[int], held: tuple[int, int], count: int, allowed: int, after: int
) -> None:
    limits[:] = held
    assert allow(count) == allowed
    assert limits == [after, held[1]]
