import pytest

from milterchain.mailfilter import ACCEPT, DISCARD, REJECT, TEMPFAIL, Decision, custom, quarantine
from milterchain.mailfilter.decision import MAX_REASON
from milterchain.milter.messages import Accept, Discard, Reject, ReplyCode, TempFail

TEXTS = [
    (ACCEPT, "accept"),
    (REJECT, "reject"),
    (TEMPFAIL, "tempfail"),
    (DISCARD, "discard"),
    (custom(550, "5.7.1", "not today"), 'reply_code code=550 status=5.7.1 text="not today"'),
    (custom(451, None, "later"), "reply_code code=451 text=later"),
    (quarantine("train as spam"), 'quarantine reason="train as spam"'),
]


@pytest.mark.parametrize(("decision", "text"), TEXTS)
def test_the_text_form_is_stable(decision, text):
    assert str(decision) == text


def test_equal_decisions_are_equal():
    again = [Decision(Accept()), Decision(Reject()), Decision(TempFail()), Decision(Discard())]
    again += [custom(550, "5.7.1", "not today"), custom(451, None, "later"), quarantine("train as spam")]
    decisions = [decision for decision, _ in TEXTS]
    assert decisions == again
    assert len({*decisions, *again}) == len(decisions)
    assert quarantine("") != ACCEPT


def test_only_accepted_messages_are_changed():
    accepting = [decision for decision, _ in TEXTS if decision.accepts]
    assert accepting == [ACCEPT, quarantine("train as spam")]


def test_custom_builds_a_reply_that_mtas_take():
    assert custom(550, "5.7.1", "100%", "second").reply == ReplyCode(b"550-5.7.1 100%%\r\n550 5.7.1 second")


@pytest.mark.parametrize(("code", "status"), [(250, "2.0.0"), (399, None), (600, None), (550, "4.0.0")])
def test_custom_is_a_refusal(code, status):
    with pytest.raises(ValueError, match=r"refusal|enhanced"):
        custom(code, status, "x")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("spam", b"spam"),
        (b"spam\xff", b"spam\xff"),
        ("two\r\nlines\0", b"two lines "),
        ("x" * 600, b"x" * MAX_REASON),
        ("é" * 600, "é".encode() * (MAX_REASON // 2)),
        ("x" + "é" * 600, b"x" + "é".encode() * ((MAX_REASON - 1) // 2)),
    ],
)
def test_reasons_are_made_safe(given, reason):
    assert quarantine(given).reason == reason
