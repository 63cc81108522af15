"""Commands run as their script does, with arguments, output and exit code."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from milterchain.cli import main


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Awaitable[Outcome]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs one in a thread, so that scripted servers can answer it."""

    def invoke(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["milterchain", *arguments])
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        else:
            code = 0
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    async def run(*arguments: object) -> Outcome:
        return await asyncio.to_thread(invoke, *map(str, arguments))

    return run
