"""The scenarios themselves are played from `cases/*.case`; here it is shown that they leave nothing out."""

from pathlib import Path

import pytest

from integration.case_events import EVENT_ANSWERS
from integration.case_filters import CASE_FILTERS, CHANGES, REPORTS, SIMPLE
from integration.case_mtas import MILTERCHAIN, POSTFIX, SENDMAIL
from milterchain.mailfilter import DecideAt, OnError, TooLarge
from milterchain.testing.cases import Case, Decision, load, why_not

MTAS = (POSTFIX, SENDMAIL, MILTERCHAIN)
NAMES = frozenset().union(*(mta.names for mta in MTAS))
CASES = [
    case
    for path in sorted(Path(__file__).with_name("cases").glob("*.case"))
    for case in load(path, mtas=NAMES)
]
BOTH = [
    case
    for case in CASES
    if all(case.mtas.fits(frozenset([name])) for name in ("postfix", "sendmail")) and "utf8" not in case.needs
]
"""Those that are played with Postfix and with Sendmail."""


def test_there_are_enough() -> None:
    assert len(BOTH) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_is_played_with_some_mta(case: Case) -> None:
    assert not all(why_not(case, mta) for mta in MTAS)


def options(name: str) -> set[tuple[str, str]]:
    return {
        (option.key, option.value)
        for case in BOTH
        if case.filter is not None and case.filter.name == name
        for option in case.filter.options
    }


DECIDE = options("decide")
KEYS = {key for key, _ in DECIDE}


@pytest.mark.parametrize("key", [*CHANGES, "validate", "sleep", "memory", "macro", "keep-order"])
def test_each_feature_is_played_with_both(key: str) -> None:
    assert key in KEYS


@pytest.mark.parametrize("what", REPORTS)
def test_each_fact_is_reported_by_both(what: str) -> None:
    assert ("report", what) in DECIDE


@pytest.mark.parametrize("policy", [policy.value for policy in OnError])
def test_each_policy_for_errors(policy: str) -> None:
    assert ("on-error", policy) in DECIDE


@pytest.mark.parametrize("limit", ["body", "headers"])
@pytest.mark.parametrize("what", [what.value for what in TooLarge])
def test_each_limit(limit: str, what: str) -> None:
    assert any(key == limit and value.endswith(f" {what}") for key, value in DECIDE)


def point(case: Case) -> str:
    return case.filter.get("at", "end-of-message") if case.filter is not None else ""


@pytest.mark.parametrize("at", [at.name.lower().replace("_", "-") for at in DecideAt])
@pytest.mark.parametrize("answer", [*SIMPLE, "quarantine", "5", "4"])
def test_each_decision_at_each_point(at: str, answer: str) -> None:
    found = [
        case
        for case in BOTH
        if case.filter is not None
        and case.filter.name == "decide"
        and point(case) == at
        and case.filter.get("answer", "accept").startswith(answer)
    ]
    assert found


@pytest.mark.parametrize("answer", sorted(EVENT_ANSWERS.keys() - {"continue", "shutdown"}))
def test_each_answer_to_an_event(answer: str) -> None:
    assert ("answer", answer) in options("event")


def test_each_decision_and_each_filter() -> None:
    seen = {decision.value for case in BOTH for step in case.steps for decision in step.decisions}
    assert seen == set(Decision)
    assert {case.filter.name for case in BOTH if case.filter is not None} == set(CASE_FILTERS)
