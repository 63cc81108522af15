"""The corpus through milterchain and through Postfix's own milters: the same arrives, byte by byte."""

import pytest

from integration.compare import Side, both_sides
from integration.corpus import Sample, all_samples
from integration.services.filters import (
    make_key,
    start_editor,
    start_opendkim,
    start_opendmarc,
)
from integration.services.process import Run
from integration.services.smtp import Answer

SAMPLES = all_samples()


@pytest.fixture(scope="module")
def sides(run: Run, nameserver: str) -> tuple[Side, Side]:
    """OpenDKIM signs what `red` edited, `blue` keeps leading blanks and sees everything that came of it."""
    del nameserver
    filters = [
        start_editor(run, "red", unix=True),
        start_opendkim(run, make_key(run), unix=True),
        start_opendmarc(run, unix=True),
        start_editor(run, "blue", "--leading-space", unix=True),
    ]
    return both_sides(run, filters)


def test_corpus_is_large_enough() -> None:
    assert len(SAMPLES) >= 40
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_same_as_postfix(sides: tuple[Side, Side], sample: Sample) -> None:
    proxied, direct = (side.pass_on(sample) for side in sides)
    assert _codes(proxied.outcome.rcpt) == _codes(direct.outcome.rcpt)
    assert _code(proxied.outcome.data) == _code(direct.outcome.data)
    assert _code(proxied.outcome.end) == _code(direct.outcome.end)
    if direct.arrival is None or proxied.arrival is None:
        assert proxied.arrival is direct.arrival
        return
    assert proxied.arrival.sender == direct.arrival.sender
    assert proxied.arrival.recipients == direct.arrival.recipients
    _assert_same_bytes(proxied.arrival.content, direct.arrival.content)


def test_nothing_arrived_twice(sides: tuple[Side, Side]) -> None:
    proxied, direct = sides
    for side in sides:
        side.postfix.wait_until_empty()
    assert len(proxied.sink.received()) == len(direct.sink.received())


def _assert_same_bytes(proxied: bytes, direct: bytes) -> None:
    if proxied == direct:
        return
    # Comparing lines keeps pytest from printing megabytes.
    ours, theirs = proxied.splitlines(keepends=True), direct.splitlines(keepends=True)
    at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
    assert ours[max(0, at - 3) : at + 5] == theirs[max(0, at - 3) : at + 5]
    assert len(ours) == len(theirs)


def _code(answer: Answer | None) -> int | None:
    return None if answer is None else answer.code


def _codes(answers: tuple[Answer, ...]) -> list[int]:
    return [answer.code for answer in answers]
