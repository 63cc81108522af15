"""A message that arrived against the one that a scenario expects."""

import pytest

from milterchain.testing.cases import Arrival, Arrives, Content, parse
from milterchain.testing.cases_message import differences

HOSTNAME = "mx.example.test"
OWN = b"Received: from client (localhost [127.0.0.1])\r\n\tby mx.example.test (Postfix) id 1\r\n"
OTHER = b"Received: from x by other.example.test\r\n"
GENERATED = b"Date: now\r\nMessage-ID: <1@x>\r\nFrom: a@b\r\nTo: x\r\nReturn-Path: <a@b>\r\n"
MESSAGE = b"Subject: hello\r\nX-Folded: one\r\n two\r\n\r\nbody\r\n"


def expected(lines: str) -> Arrives:
    (case,) = parse(f"case x\nconnect\n> DATA\n| x\narrives\n{lines}")
    step = case.steps[-1]
    assert isinstance(step.action, Content)
    return step.arrives[0]


def check(lines: str, content: bytes = MESSAGE, names: frozenset[str] = frozenset(["postfix"])) -> list[str]:
    arrival = Arrival(
        b"<a@x.test> SIZE=9", (b"<b@x.test> ORCPT=rfc822;b NOTIFY=NEVER", b"<c@x.test>"), content
    )
    return differences(expected(lines), names, arrival, HOSTNAME)


SAME = "| Subject: hello\n| X-Folded: one\n|  two\n|\n| body"

GOOD = [
    "",
    "from <a@x.test>",
    "from <a@x.test> size=9",
    "from[sendmail] <other@x.test>\nfrom[postfix] <a@x.test>",
    "to <c@x.test>\nto <b@x.test>",
    "to <c@x.test>\nto <b@x.test> NOTIFY=NEVER",
    "has Subject: hello",
    "has subject: h*o",
    "has X-Folded: one\\n two",
    "lacks X-Other",
    SAME,
]


@pytest.mark.parametrize("lines", GOOD)
def test_as_expected(lines: str) -> None:
    assert check(lines) == []


BAD = [
    ("from <b@x.test>", "sender <a@x.test> SIZE=9, expected <b@x.test>"),
    ("from <a@x.test> BODY=8BITMIME", "sender <a@x.test> SIZE=9, expected <a@x.test> BODY=8BITMIME"),
    ("to <b@x.test>", "recipients <b@x.test> ORCPT=rfc822;b NOTIFY=NEVER, <c@x.test>; expected <b@x.test>"),
    ("to <b@x.test>\nto <d@x.test>", "expected <b@x.test>, <d@x.test>"),
    ("has Subject: h", "no header Subject: h; there is hello"),
    ("has X-Other: *", "no header X-Other: *"),
    ("lacks SUBJECT", "there is a header SUBJECT"),
    ("| Subject: hello\n|\n| body", "+X-Folded: one\n+ two"),
    (f"received\n{SAME}", "-\x00received"),
]


@pytest.mark.parametrize(("lines", "text"), BAD)
def test_not_as_expected(lines: str, text: str) -> None:
    (found,) = check(lines)
    assert text in found


def test_what_mtas_add_is_left_out() -> None:
    assert check(SAME, OWN + OTHER + GENERATED + MESSAGE) == []


def test_what_is_expected_is_not_left_out() -> None:
    lines = f"| Date: then\n{SAME}"
    (found,) = check(lines, GENERATED + MESSAGE)
    assert "+Date: now" in found


def test_the_place_of_the_own_received() -> None:
    assert check(f"| X-First: 1\nreceived\n{SAME}", b"X-First: 1\r\n" + OWN + MESSAGE) == []
    assert check(f"received\n| X-First: 1\n{SAME}", b"X-First: 1\r\n" + OWN + MESSAGE) != []
    assert check(f"| Received: from x by other.example.test\n{SAME}", OWN + OTHER + MESSAGE) == []


def test_repeated_lines_and_messages_without_a_body() -> None:
    assert check("|*2 X-A: 1\n|", b"X-A: 1\r\nX-A: 1\r\n") == []
    assert check("|\n|*3 line", b"\r\nline\r\nline\r\nline\r\n") == []
    assert check("| X-A: 1\n|\n|", b"X-A: 1\r\n\r\n\r\n") == []


def test_nothing_arrived_but_a_null_path() -> None:
    arrival = Arrival(b"", (), b"\r\n")
    assert differences(expected("from <>"), frozenset(), arrival, HOSTNAME) == ["sender , expected <>"]
