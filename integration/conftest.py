"""What the integration tests share: one run with a name service for each test module."""

import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from integration.services.names import start_names
from integration.services.packages import ALL, ASIDE, require
from integration.services.process import Run

pytest_plugins = ["milterchain.testing.pytest_plugin"]

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and item.parent is not None:
        item.parent.stash[FAILED] = True
    return report


def pytest_sessionstart() -> None:
    require({**ALL, **ASIDE})
    # Whoever ends the tests wants the servers to end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Processes of this module; their logs are shown if one of its tests failed."""
    made = Run()
    try:
        yield made
    finally:
        made.close(failed=request.node.stash.get(FAILED, False))


@pytest.fixture(scope="module")
def nameserver(run: Run) -> str:
    """The address of the name service that everything in this run asks."""
    return start_names(run)
