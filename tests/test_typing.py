"""The public API as mypy sees it from outside: a program that is right, and one full of mistakes."""

import asyncio
import importlib.util
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("typing")
REPORT = re.compile(r"(?P<file>[^:]+):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]")
EXPECTED = re.compile(r"# error: \[(.+)\]")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def mypy(program: Path, cache: Path) -> tuple[list[tuple[int, str]], str]:
    """Line and code of each error, and all that was said; against the installed package, from elsewhere."""
    done = subprocess.run(
        (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache, program),
        check=False,
        capture_output=True,
        text=True,
        cwd=cache,
    )
    errors = [(int(found["line"]), found["code"]) for found in REPORT.finditer(done.stdout)]
    return errors, done.stdout + done.stderr


def test_types_are_shipped():
    assert files("milterchain").joinpath("py.typed").is_file()


@pytest.mark.slow
def test_a_program_that_is_right(cache):
    errors, said = mypy(PROGRAMS / "user_program.py", cache)
    assert errors == []
    assert "Success" in said, said


@pytest.mark.slow
def test_mistakes_are_found(cache):
    program = PROGRAMS / "wrong_uses.py"
    expected = [
        (number, code)
        for number, line in enumerate(program.read_text().splitlines(), start=1)
        if (found := EXPECTED.search(line))
        for code in sorted(found[1].split(", "))
    ]
    errors, said = mypy(program, cache)
    assert sorted(errors) == expected, said


def test_the_program_works():
    spec = importlib.util.spec_from_file_location("user_program", PROGRAMS / "user_program.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    asyncio.run(program.main())
