"""A pytest plugin: each scenario of a `*.case` file is a test, with each MTA.

Load it in the topmost conftest.py (or by `-p milterchain.testing.pytest_plugin`), say in a conftest.py near
the scenarios which MTAs there are, and make them in fixtures::

    pytest_plugins = ["milterchain.testing.pytest_plugin"]

    def pytest_case_mtas() -> list[str]:
        return ["postfix"]

    @pytest.fixture(scope="session")
    def case_mta_postfix() -> Iterator[Mta]:
        # Start it, with `smtpd_milters = inet:127.0.0.1:8890`.
        yield Mta(
            name="postfix", address="127.0.0.1:2525", filter_address="inet:127.0.0.1:8890", outbox=...
        )
        # End it.

    @asynccontextmanager
    async def start_footer(wanted: CaseFilter, address: str) -> AsyncIterator[None]:
        async with MailFilter(decide, [address]):
            yield

    @pytest.fixture(scope="session")
    def case_filters() -> Mapping[str, FilterStarter]:
        return {"footer": start_footer}

A scenario with the line `filter footer` has that filter for as long as it is played. The outbox (an `Outbox`)
says what the MTA has delivered; `HopOutbox` is one for an MTA that relays to a `ScriptedNextHop`, which must
run in a thread: every scenario has an event loop of its own. The project's `integration/case_mtas.py` has
outboxes for Postfix and Sendmail.

The fixture for MTA `NAME` is called `case_mta_NAME`, and makes a `milterchain.testing.cases.Mta`; without
`pytest_case_mtas` there is one MTA called `mta`, and with an empty list no test at all. `case_filters` may be
left out if the filter under test runs already. Scenarios that are not meant for an MTA are skipped; if
`pytest_case_mtas` returns `MtaTraits` and no names, they are no tests, and a line for any other MTA is a
mistake. The language is described in `milterchain.testing.cases`.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from milterchain.testing.cases_model import Case
from milterchain.testing.cases_mta import MtaTraits
from milterchain.testing.cases_parser import CaseSyntaxError, load
from milterchain.testing.cases_runner import CaseFailure, FilterStarter, run_case, why_not

__all__ = ["CaseFile", "Hooks", "case_filters", "pytest_addhooks", "pytest_collect_file"]


class Hooks:
    """What a conftest.py may define."""

    @staticmethod
    @pytest.hookspec(firstresult=True)
    def pytest_case_mtas() -> Sequence[str | MtaTraits] | None:
        """The MTAs with which the scenarios of this directory are played: names, or what they can do."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare `Hooks`."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "CaseFile | None":
    """Collect `*.case`."""
    if file_path.suffix != ".case":
        return None
    collected: CaseFile = CaseFile.from_parent(parent, path=file_path)
    return collected


@pytest.fixture(scope="session")
def case_filters() -> Mapping[str, FilterStarter]:
    """The filters that scenarios may name; override it."""
    return {}


class CaseFile(pytest.Module):
    """A file of scenarios; a module, so that fixtures of every scope work."""

    obj = None

    def collect(self) -> Iterator[pytest.Function]:
        """Make a test of each scenario with each MTA.

        Raises:
            CollectError: the file has a mistake.
        """
        named: Sequence[str | MtaTraits] | None = self.ihook.pytest_case_mtas()
        mtas = ["mta"] if named is None else named
        try:
            cases = load(self.path, mtas=_known(mtas))
        except (CaseSyntaxError, OSError) as error:
            raise self.CollectError(str(error)) from None
        for case in cases:
            for mta in mtas:
                if isinstance(mta, MtaTraits) and why_not(case, mta):
                    continue
                name = mta if isinstance(mta, str) else mta.name
                yield _CaseFunction.from_parent(self, name=f"{case.name}[{name}]", callobj=_test(case, name))


def _known(mtas: Sequence[str | MtaTraits]) -> frozenset[str] | None:
    """All names that scenarios can mean, if the MTAs say so."""
    traits = [mta for mta in mtas if isinstance(mta, MtaTraits)]
    if not traits or len(traits) < len(mtas):
        return None
    return frozenset().union(*(mta.names for mta in traits))


class _CaseFunction(pytest.Function):
    """One scenario with one MTA."""

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:  # type: ignore[override]
        """What a failed scenario says is enough; how pytest came there is not its reader's business."""
        return str(excinfo.value) if isinstance(excinfo.value, CaseFailure) else super().repr_failure(excinfo)


def _test(case: Case, name: str) -> Callable[[pytest.FixtureRequest], None]:
    def play(request: pytest.FixtureRequest) -> None:
        mta = request.getfixturevalue(f"case_mta_{name}")
        if reason := why_not(case, mta):
            pytest.skip(reason)
        filters = request.getfixturevalue("case_filters")
        asyncio.run(run_case(case, mta, filters))

    return play
