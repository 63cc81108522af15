"""Who takes part in a message, with members that nobody has opened."""

import pytest

from milterchain.chain.attendance import Attendance
from milterchain.chain.conditions import Conditions, domains
from milterchain.chain.line import Step
from milterchain.chain.member import Member
from milterchain.chain.plan import MilterPlan
from milterchain.mail.envelope import Path

SENDER = Path(b"<s@a.test>")
X, Y = Path(b"<r@x.test>"), Path(b"<r@y.test>")
CONDITIONS = {
    "every": Conditions(),
    "users": Conditions(authenticated="only"),
    "from a": Conditions(senders=domains(["a.test"])),
    "to x": Conditions(recipients=domains(["x.test"])),
    "to y": Conditions(recipients=domains(["y.test"]), authenticated="never"),
}


@pytest.fixture
def roll(make_lab):
    return Attendance(
        Member(MilterPlan(make_lab.settings("unix:/nowhere", name, conditions=conditions)), None)
        for name, conditions in CONDITIONS.items()
    )


def names(members):
    return [member.name for member in members]


def test_those_with_a_late_condition_are_opened_later(roll):
    assert names(roll.early) == ["every"]
    assert names(roll.late) == ["users", "from a", "to x", "to y"]
    assert [member.must_reopen for member in roll.members] == [False, True, True, True, True]


def test_at_mail(roll):
    assert names(roll.begin(SENDER, authenticated=False)) == ["every", "from a"]
    assert names(roll.begin(SENDER, authenticated=True)) == ["every", "users", "from a"]
    assert names(roll.begin(Path(b"<>"), authenticated=False)) == ["every"]


def test_at_recipients(roll):
    roll.begin(SENDER, authenticated=False)
    assert names(roll.joining(Path(b"<r@z.test>"))) == []
    (joining,) = roll.joining(X)
    assert names(member for member, _ in roll.hearing(X)) == ["every", "from a"]
    mail = Step(None)
    roll.joined(joining, mail)
    assert roll.joining(X) == []
    assert [(member.name, step) for member, step in roll.hearing(X)] == [
        ("every", None),
        ("from a", None),
        ("to x", mail),
    ]
    assert names(member for member, _ in roll.hearing(Y)) == ["every", "from a"]
    assert names(roll.taking_part([X, Y])) == ["every", "from a", "to x"]
    assert names(roll.taking_part([Y])) == ["every", "from a"]


def test_the_next_message_begins_anew(roll):
    roll.begin(SENDER, authenticated=False)
    roll.joined(roll.joining(Y)[0], Step(None))
    roll.begin(SENDER, authenticated=True)
    assert roll.joining(Y) == []
    assert names(roll.taking_part([Y])) == ["every", "users", "from a"]
