"""What a client may get wrong."""

import pytest

from milterchain.mail.replies import Reply
from milterchain.smtp import answers, budget
from milterchain.smtp.budget import Budget
from milterchain.smtp.options import ServerOptions


def make(**options: int) -> Budget:
    return Budget(ServerOptions(hostname=b"mx.example", **options))


def test_refusals_are_errors_until_a_message_is_taken() -> None:
    made = make(errors=2)
    for reply in (answers.OK, answers.GO_AHEAD, answers.UNKNOWN):
        made.count(reply)
    assert (made.errors, made.exhausted) == (1, False)
    made.count(answers.FAILED)
    assert made.exhausted
    made.clear()
    assert (made.errors, made.exhausted) == (0, False)


def test_later_errors_are_answered_late() -> None:
    made = make(soft_errors=1, error_delay=3)
    made.count(answers.UNKNOWN)
    assert made.delay(answers.UNKNOWN) == 0
    made.count(answers.UNKNOWN)
    assert (made.delay(answers.UNKNOWN), made.delay(answers.OK)) == (3, 0)


def test_junk() -> None:
    made = make(junk_commands=1)
    for expected in (0, 1, 2):
        assert made.junk(answers.OK) is answers.OK
        assert made.errors == expected
    made.junk(answers.REFUSED)  # counted as what it is
    assert made.errors == 2


@pytest.mark.parametrize(("recipients", "errors"), [(0, 4), (1, 2)])
def test_enough_recipients(monkeypatch: pytest.MonkeyPatch, recipients: int, errors: int) -> None:
    monkeypatch.setattr(budget, "MAX_OVERSHOOT", 2)
    made = make()
    for _ in range(4):
        made.count(Reply.of(452, "4.5.3 one at a time"), recipients=recipients)
    assert made.errors == errors
    made.begin()
    made.count(Reply.of(452, "4.5.3 one at a time"), recipients=recipients)
    assert made.errors == errors + (not recipients)
