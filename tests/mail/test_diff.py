import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail import diff
from milterchain.mail.body import SpoolSettings
from milterchain.mail.diff import EnvelopeDiff, MessageDiff, PathText, diff_envelopes, diff_messages
from milterchain.mail.edits import apply_edits
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import parse_message
from milterchain.milter.messages import AddHeader, ChangeHeader, InsertHeader, ReplaceBody

DATA = b"A: 1\r\nB: 1\r\n\tmore\r\nA: 2\r\nC: 1\r\n\r\none\r\ntwo\r\nthree\r\n"


def changes(*edits, data=DATA, **options):
    message = parse_message(data)
    return diff_messages(message, apply_edits(message, edits, **options).message)


def rows(found):
    return [(one.kind, one.position, one.before, one.after) for one in found.headers]


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([], []),
        ([InsertHeader(0, b"X", b"1")], [("added", 0, None, "X: 1")]),
        ([InsertHeader(1, b"X", b"1")], [("added", 1, None, "X: 1")]),
        ([AddHeader(b"X", b"1")], [("added", 5, None, "X: 1")]),
        ([ChangeHeader(1, b"B", b"")], [("removed", 2, "B: 1\r\n\tmore", None)]),
        ([ChangeHeader(1, b"b", b"2")], [("changed", 2, "B: 1\r\n\tmore", "b: 2")]),
        (
            [ChangeHeader(2, b"A", b""), ChangeHeader(1, b"A", b"x"), AddHeader(b"\x7eX", b"\xff")],
            [("changed", 1, "A: 1", "A: x"), ("removed", 3, "A: 2", None), ("added", 4, None, "~X: \\xff")],
        ),
        (
            [ChangeHeader(1, b"A", b"x"), ChangeHeader(1, b"B", b""), ChangeHeader(2, b"A", b"y")],
            [
                ("changed", 1, "A: 1", "A: x"),
                ("changed", 2, "A: 2", "A: y"),
                ("removed", 2, "B: 1\r\n\tmore", None),
            ],
        ),
    ],
)
def test_headers(edits, expected):
    found = changes(*edits)
    assert rows(found) == expected
    assert found.body is None
    assert bool(found) is bool(expected)


def test_our_own_received():
    without = parse_message(DATA)
    one = without.with_own_received(b"Received: one\r\n")
    other = without.with_own_received(b"Received: other\r\n")
    assert rows(diff_messages(without, one)) == [("added", 0, None, "Received: one")]
    assert rows(diff_messages(one, other)) == [("changed", 0, "Received: one", "Received: other")]
    assert rows(diff_messages(one, without)) == [("removed", 0, "Received: one", None)]
    moved = apply_edits(without, [InsertHeader(0, b"X", b"1")]).message
    assert rows(diff_messages(without, moved)) == [("added", 0, None, "X: 1")]


def test_only_the_place_holder_was_elsewhere():
    top = apply_edits(parse_message(b"A: 1\r\n\r\n"), [InsertHeader(0, b"B", b"1")]).message
    below = apply_edits(parse_message(b"A: 1\r\n\r\n"), [InsertHeader(1, b"B", b"1")]).message
    assert b"".join(top.chunks()) == b"".join(below.chunks())
    assert {kind for kind, *_ in rows(diff_messages(top, below))} <= {"added", "removed"}


@pytest.mark.parametrize(
    ("new", "lines"),
    [
        (b"one\ntwo\nthree\n", None),
        (b"one\n2\nthree\n", ("@@ -2,1 +2,1 @@", "-two", "+2")),
        (b"zero\none\ntwo\nthree\n", ("@@ -1,0 +1,1 @@", "+zero")),
        (b"", ("@@ -1,3 +1,0 @@", "-one", "-two", "-three")),
        (b"one\n\xff\nthree\nfour", ("@@ -2,1 +2,1 @@", "-two", "+\\xff", "@@ -4,0 +4,1 @@", "+four")),
    ],
)
def test_body(new, lines):
    found = changes(ReplaceBody(new)).body
    if lines is None:
        assert found is None
    else:
        assert found.lines == lines
        assert not found.truncated
        assert found.before == 17


def test_bodies_of_the_same_size_in_files():
    spool = SpoolSettings(threshold=10)
    data = b"\r\n" + b"x" * 100 + b"\r\n"
    with parse_message(data, spool=spool) as one, parse_message(data, spool=spool) as other:
        assert not diff_messages(one, other)
    with parse_message(data, spool=spool) as one, parse_message(data.replace(b"x\r", b"y\r")) as other:
        assert diff_messages(one, other)


def test_a_large_body_is_only_measured(monkeypatch):
    monkeypatch.setattr(diff, "MAX_BODY", 20)
    found = changes(ReplaceBody(b"x" * 30)).body
    assert (found.before, found.after, found.lines, found.truncated) == (17, 32, (), True)


def test_a_long_diff_is_cut():
    found = changes(ReplaceBody(b"new\n" * 1000)).body
    assert len(found.lines) == diff.MAX_DIFF_LINES
    assert found.truncated


def test_too_many_differences_are_not_compared(monkeypatch):
    monkeypatch.setattr(diff, "MAX_COMPARED", 2)
    found = changes(
        ChangeHeader(1, b"A", b"x"), ChangeHeader(1, b"C", b"x"), ReplaceBody(b"0\none\n2\nthree\n4\n")
    )
    assert rows(found) == [("changed", 1, "A: 1", "A: x"), ("changed", 4, "C: 1", "C: x")]
    assert found.body.lines == (
        "@@ -1,3 +1,5 @@",
        "-one",
        "-two",
        "-three",
        "+0",
        "+one",
        "+2",
        "+three",
        "+4",
    )


def test_hostile_input_does_not_take_long():
    data = b"".join(b"A: %d\r\n" % (number % 3) for number in range(5000)) + b"\r\n" + b"a\r\nb\r\n" * 5000
    edits = [ChangeHeader(1, b"A", b""), ChangeHeader(4000, b"A", b"x"), ReplaceBody(b"b\nb\na\n" * 5000)]
    assert changes(*edits, data=data)


PATHS = st.builds(Path, st.sampled_from([b"<a@b>", b"c@d", b"<>", b"\xff"]), st.sampled_from([(), (b"X=1",)]))
ENVELOPES = st.builds(Envelope, PATHS, st.lists(PATHS, max_size=4).map(tuple))


@given(ENVELOPES, ENVELOPES)
def test_envelopes(before, after):
    found = diff_envelopes(before, after)
    assert (found.sender is None) is (before.sender == after.sender)
    assert len(found.added) == sum(path not in before.recipients for path in after.recipients)
    assert len(found.removed) == sum(path not in after.recipients for path in before.recipients)
    assert bool(found) is (before.sender != after.sender or set(before.recipients) != set(after.recipients))
    assert not diff_envelopes(before, before)


def test_envelope_text():
    before = Envelope(Path(b"a@b"), (Path(b"<c@d>"),))
    after = Envelope(Path(b"<>", (b"SIZE=1",)), (Path(b"<e@f>", (b"NOTIFY=NEVER", b"ORCPT=rfc822;x")),))
    found = diff_envelopes(before, after)
    assert found == EnvelopeDiff(
        sender=(PathText(address="<a@b>"), PathText(address="<>", args=("SIZE=1",))),
        added=(PathText(address="<e@f>", args=("NOTIFY=NEVER", "ORCPT=rfc822;x")),),
        removed=(PathText(address="<c@d>"),),
    )
    assert str(found.added[0]) == "<e@f> NOTIFY=NEVER ORCPT=rfc822;x"
    assert json.loads(json.dumps(found.to_json())) == {
        "sender": {
            "before": {"address": "<a@b>", "args": []},
            "after": {"address": "<>", "args": ["SIZE=1"]},
        },
        "added": [{"address": "<e@f>", "args": ["NOTIFY=NEVER", "ORCPT=rfc822;x"]}],
        "removed": [{"address": "<c@d>", "args": []}],
    }
    assert EnvelopeDiff().to_json() == {"sender": None, "added": [], "removed": []}


def test_message_json():
    found = changes(ChangeHeader(1, b"B", b""), ReplaceBody(b"one\n"))
    assert json.loads(json.dumps(found.to_json())) == {
        "headers": [
            {"kind": "removed", "position": 3, "name": "B", "before": "B: 1\r\n\tmore", "after": None}
        ],
        "body": {
            "before": 17,
            "after": 5,
            "lines": ["@@ -2,2 +2,0 @@", "-two", "-three"],
            "truncated": False,
        },
    }
    assert MessageDiff().to_json() == {"headers": [], "body": None}
