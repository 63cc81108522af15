"""The plugin in a pytest of its own."""

import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
import asyncio
import threading

import pytest

from milterchain.testing import ScriptedNextHop
from milterchain.testing.cases import HopOutbox, Mta

pytest_plugins = ["milterchain.testing.pytest_plugin"]


@pytest.fixture(scope="module")
def case_mta_{name}():
    ready = threading.Event()
    found = {{}}

    async def serve():
        stop = asyncio.Event()
        async with ScriptedNextHop() as hop:
            found.update(hop=hop, stop=stop, loop=asyncio.get_running_loop())
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    hop = found["hop"]
    yield Mta(name="{name}", address=hop.address, outbox=HopOutbox(hop))
    found["loop"].call_soon_threadsafe(found["stop"].set)
    thread.join()
"""

CASES = """
case fine
connect
> NOOP

case not meant
on other
connect

case wrong
connect
> NOOP
= reject
"""


def test_scenarios_are_tests(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.format(name="mta"))
    pytester.makefile(".case", some=CASES)
    pytester.makefile(".txt", other="no scenario")
    result = pytester.runpytest_inprocess("-p", "no:asyncio", "-rs")
    result.assert_outcomes(passed=1, skipped=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*wrong?mta?*",
            "*some.case:11: 'wrong' with mta: expected reject, got 250 *",
            "*SKIPPED*not meant for mta",
        ]
    )
    result.stdout.no_fnmatch_line("*run_case(*")


def test_several_mtas(pytester: pytest.Pytester) -> None:
    hook = "def pytest_case_mtas():\n    return ['one', 'two']\n"
    pytester.makeconftest(CONFTEST.format(name="one") + hook)
    pytester.makefile(".case", some="case fine\nconnect\n> NOOP\n")
    result = pytester.runpytest_inprocess("-p", "no:asyncio", "-v")
    # There is no fixture for the second one.
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*fine?one?*PASSED*", "*fine?two?*FAILED*", "*case_mta_two*not found*"])


def test_no_mta_at_all(pytester: pytest.Pytester) -> None:
    """As where none is installed."""
    pytester.makeconftest(CONFTEST.format(name="mta") + "def pytest_case_mtas():\n    return []\n")
    pytester.makefile(".case", some="case fine\nconnect\n> NOOP\n")
    pytester.runpytest_inprocess("-p", "no:asyncio").assert_outcomes()


def test_what_an_mta_cannot_do_is_no_test(pytester: pytest.Pytester) -> None:
    hook = (
        "from milterchain.testing.cases import MtaTraits\n"
        "def pytest_case_mtas():\n"
        "    return [MtaTraits(name='one', tags=frozenset(['tls'])), MtaTraits(name='two')]\n"
    )
    pytester.makeconftest(CONFTEST.format(name="one") + hook)
    pytester.makefile(".case", some="case fine\nneeds tls\nconnect\n> NOOP\n")
    result = pytester.runpytest_inprocess("-p", "no:asyncio", "--collect-only", "-q")
    assert [line for line in result.outlines if "::" in line] == ["some.case::fine[one]"]


@pytest.mark.parametrize(("name", "errors"), [("one", 0), ("two", 0), ("family", 0), ("oen", 1)])
def test_where_all_mtas_are_known_a_misspelt_one_is_a_mistake(
    pytester: pytest.Pytester, name: str, errors: int
) -> None:
    hook = (
        "from milterchain.testing.cases import MtaTraits\n"
        "def pytest_case_mtas():\n"
        "    return [MtaTraits(name='one'), MtaTraits(name='two', like=frozenset(['family']))]\n"
    )
    pytester.makeconftest(CONFTEST.format(name="one") + hook)
    pytester.makefile(".case", some=f"case fine\nconnect\n<[{name}] 220\n")
    result = pytester.runpytest_inprocess("-p", "no:asyncio", "--collect-only", "-q")
    assert result.parseoutcomes().get("errors", 0) == errors
    if errors:
        result.stdout.fnmatch_lines(["*some.case:3: no MTA is called 'oen'; there are: family, one, two"])


def test_a_mistake_is_told_when_tests_are_collected(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["milterchain.testing.pytest_plugin"]')
    pytester.makefile(".case", bad="case one\nwhat\n")
    result = pytester.runpytest_inprocess("-p", "no:asyncio")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*bad.case:2: 'what' begins no line*"])
