"""Telling `check` of milters that are left alone."""

import json
import os
import time
from pathlib import Path

import pytest

from milterchain.chain.breaker import BreakerChange
from milterchain.proxy.breaker_notice import BreakerNotice, read_notices

OPENED = BreakerChange(milter="m", rest=60.0, failures=5, error="gone\x1b")
BACK = BreakerChange(milter="m", rest=0.0, failures=5)


def test_what_is_told_can_be_read(tmp_path: Path) -> None:
    directory = tmp_path / "breaker"
    assert read_notices(directory) == {}
    notice = BreakerNotice(directory)
    assert not directory.exists()
    notice(OPENED)
    notice(BreakerChange(milter="n", rest=60.0, failures=7, error="x"))
    resting = read_notices(directory)
    assert set(resting) == {"m", "n"}
    assert (resting["m"].failures, resting["m"].error) == (5, "gone\x1b")
    assert 50 < resting["m"].until - time.time() <= 60
    notice(BACK)
    assert set(read_notices(directory)) == {"n"}
    assert [path.name for path in directory.iterdir()] == [f"{os.getpid()}.json"]


def test_what_is_over_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(
        json.dumps([{"milter": "m", "until": time.time() - 1, "failures": 5, "error": "x"}])
    )
    assert read_notices(tmp_path) == {}


@pytest.mark.parametrize("content", ["", "?", "{}", "[1]", '[{"milter": 1}]', "[" * 100_000])
def test_what_cannot_be_read_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "1.json").write_text(content)
    assert read_notices(tmp_path) == {}


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    notice = BreakerNotice(tmp_path / "file")
    notice(OPENED)
    notice(BACK)
