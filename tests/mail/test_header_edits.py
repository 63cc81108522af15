import functools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milterchain.mail.edits import apply_edits
from milterchain.mail.header_edits import END, MAX_COST, header_edits
from milterchain.mail.message import parse_message
from milterchain.milter.messages import AddHeader, ChangeHeader, InsertHeader

RULES = ["postfix", "sendmail"]


def rows(text):
    """`A1 B A2` is three headers; the first letter is the name, the rest the value."""
    return [(word[:1].encode(), word[1:].encode()) for word in text.split()]


def applied(before, edits, *, rule, leading_space=False):
    """What the MTA has after the edits, in the form in which milters see it."""
    space = b"" if leading_space else b" "
    data = b"".join(b"%b:%b%b\n" % (name, space, value) for name, value in before).replace(b"\n", b"\r\n")
    message = parse_message(data + b"\r\n").with_own_received(b"Received: us\r\n")
    assert [(name, value.removeprefix(space)) for name, value in message.milter_headers()] == before
    edited = apply_edits(message, edits, header_index=rule, leading_space=leading_space)
    assert edited.warnings == ()
    assert edited.message.headers[0].own
    return [(name, value.removeprefix(space)) for name, value in edited.message.milter_headers()]


add, insert, change = AddHeader, InsertHeader, ChangeHeader


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", []),
        ("A1 B1", "A1 B1", []),
        ("A1 B1 C1", "A1 B2 C1", [change(1, b"B", b"2")]),
        ("A1 A2 A3", "A1 A4 A3", [change(2, b"A", b"4")]),
        ("A1 A2 A3", "A2 A3", [change(1, b"A", b"")]),
        ("A1 A2 A3", "A1", [change(3, b"A", b""), change(2, b"A", b"")]),
        ("A1 B1", "X1 A1 B1", [insert(1, b"X", b"1")]),
        ("A1 B1", "A1 X1 B1", [insert(2, b"X", b"1")]),
        ("A1 B1", "A1 B1 X1", [add(b"X", b"1")]),
        ("A1", "X1 Y1 A1", [insert(1, b"Y", b"1"), insert(1, b"X", b"1")]),
        ("", "X1 Y1", [add(b"X", b"1"), add(b"Y", b"1")]),
        ("A1 B1", "B1 C1", [change(1, b"A", b""), add(b"C", b"1")]),
        # Deleted and made again in its place is the same as changed.
        ("A1 B1 a3", "A1 B1 A4", [change(2, b"A", b"4")]),
        # One cannot be changed to nothing: that deletes it.
        ("A1 B1", "A B1", [change(1, b"A", b""), insert(1, b"A", b"")]),
        ("A B1", "A2 B1", [change(1, b"A", b"2")]),
    ],
)
def test_edits(rule, before, after, expected):
    edits = header_edits(rows(before), rows(after), header_index=rule)
    assert applied(rows(before), edits, rule=rule) == rows(after)
    if rule == "postfix":
        assert edits == expected
    else:
        wanted = {name.lower() for name, _ in rows(before)}
        assert edits == [
            insert(END, edit.name, edit.value) if type(edit) is add and edit.name.lower() in wanted else edit
            for edit in expected
        ]


def test_sendmail_adds_a_second_one_of_a_name_where_it_was_told():
    edits = header_edits(rows("A1"), rows("A1 X1 A2 X2"), header_index="sendmail")
    assert edits == [add(b"X", b"1"), insert(END, b"A", b"2"), insert(END, b"X", b"2")]


def test_sendmail_has_a_received_header_whether_we_see_one_or_not():
    edits = header_edits(rows("A1"), [*rows("A1"), (b"Received", b"x")], header_index="sendmail")
    assert edits == [insert(END, b"Received", b"x")]


@pytest.mark.parametrize("keep_order", [False, True])
def test_sendmail_is_not_made_to_generate_what_is_there(keep_order):
    new = [(name, b"x") for name in (b"Date", b"FROM", b"Message-ID", b"Sender", b"date")]
    edits = header_edits(
        rows("A1 B1"), [*new, *rows("A1 B1")], header_index="sendmail", keep_order=keep_order
    )
    assert edits[::-1] == [*(add(*row) for row in new[:3]), *(insert(1, *row) for row in new[3:])]
    # One that was there is known, also if it is deleted.
    before, after = [new[0], *rows("A1 B1")], [*rows("A1 B1 X1"), new[0]]
    edits = header_edits(before, after, header_index="sendmail", keep_order=keep_order)
    assert edits == [change(1, b"Date", b""), add(b"X", b"1"), insert(END, *new[0])]


def test_sendmail_inserts_nothing_before_all_indices_are_used():
    # It inserts far above the position that it is told, perhaps above a header of that name.
    edits = header_edits(rows("A1 B1 A2 C1"), rows("A3 B1 A4 C1"), header_index="sendmail")
    assert edits == [change(2, b"A", b"4"), change(1, b"A", b"3")]
    edits = header_edits(rows("A1 B1 C1"), rows("A2 B1 A3 C1"), header_index="sendmail")
    assert edits == [change(1, b"A", b"2"), insert(3, b"A", b"3")]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("A1 B1 C1", "X1 A1 B1 C1 Y1", [insert(1, b"X", b"1"), add(b"Y", b"1")]),
        ("A1 B1 C1", "A1 B2 C1", [change(1, b"B", b"2")]),
        ("A1 B1 C1", "A1 C1", [change(1, b"B", b"")]),
        ("A1 B1 C1", "A1 B1 X1 C1", [change(1, b"C", b""), add(b"X", b"1"), insert(END, b"C", b"1")]),
        (
            "A1 B1 C1",
            "A1 X1 B1 C1",
            [insert(1, b"X", b"1"), insert(1, b"A", b"1"), change(1, b"A", b"")],
        ),
        (
            "A1 B1 C1 D1",
            "A1 X1 B1 C1 Y1 D1",
            [
                change(1, b"D", b""),
                *(insert(1, b"X", b"1"), insert(1, b"A", b"1"), change(1, b"A", b"")),
                *(add(b"Y", b"1"), insert(END, b"D", b"1")),
            ],
        ),
    ],
)
def test_keeping_the_order_on_sendmail(before, after, expected):
    edits = header_edits(rows(before), rows(after), header_index="sendmail", keep_order=True)
    assert sorted(map(repr, edits)) == sorted(map(repr, expected))
    assert applied(rows(before), edits, rule="sendmail") == rows(after)


NAMES = st.sampled_from([b"A", b"a", b"B", b"Received", b"X"])
VALUES = st.sampled_from([b"", b"1", b"2", b"3\n 4", b" x"])
ROWS = st.lists(st.tuples(NAMES, VALUES), max_size=9)
FLAGS = st.booleans()


@settings(max_examples=500)
@given(ROWS, ROWS, st.sampled_from(RULES), FLAGS, FLAGS)
def test_applying_the_edits_gives_the_result(before, after, rule, leading_space, keep_order):
    edits = header_edits(before, after, header_index=rule, keep_order=keep_order)
    assert applied(before, edits, rule=rule, leading_space=leading_space) == after


@given(ROWS, st.data(), st.sampled_from(RULES))
def test_a_few_changes_of_many(before, data, rule):
    after = list(before)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(after)))
        kind = data.draw(st.sampled_from(["insert", "delete", "change"]))
        if kind == "insert" or place == len(after):
            after.insert(place, data.draw(st.tuples(NAMES, VALUES)))
        elif kind == "delete":
            del after[place]
        else:
            after[place] = after[place][0], data.draw(VALUES)
    edits = header_edits(before, after, header_index=rule)
    assert applied(before, edits, rule=rule) == after
    assert len(edits) == fewest(before, after)


def fewest(before, after):
    """The textbook's way, to compare with."""

    @functools.cache
    def cost(old, new):
        if old == len(before):
            return len(after) - new
        if new == len(after):
            return len(before) - old
        if before[old] == after[new]:
            return cost(old + 1, new + 1)
        least = 1 + min(cost(old + 1, new), cost(old, new + 1))
        if before[old][0].lower() == after[new][0].lower() and after[new][1]:
            least = min(least, 1 + cost(old + 1, new + 1))
        return least

    return cost(0, 0)


@given(ROWS, ROWS)
def test_no_way_is_shorter(before, after):
    assert len(header_edits(before, after)) == fewest(before, after)


@given(ROWS, ROWS, st.sampled_from(RULES))
def test_keeping_the_order_inserts_only_at_the_ends(before, after, rule):
    edits = header_edits(before, after, header_index=rule, keep_order=True)
    if rule == "sendmail":
        assert {edit.index for edit in edits if isinstance(edit, InsertHeader)} <= {1, END}
    else:
        assert edits == header_edits(before, after)


MANY = MAX_COST * 8


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("after", "most"),
    [
        (lambda before: before[::2], MANY // 2),
        (lambda before: [(name, value + b"!") for name, value in before], MANY),
        (lambda before: [row for old in before for row in ((b"X", b"new"), old)], MANY),
        (lambda before: [row for old in before[::2] for row in (old, (b"A", b"new"))], MANY),
        (lambda before: before[::-1], 2 * MANY),
        (lambda before: [(b"A", b"") for _ in before], 2 * MANY),
        (lambda _: [], MANY),
    ],
)
def test_very_many_changes_are_right_and_take_no_time(rule, after, most):
    before = [(b"ABC"[i % 3 : i % 3 + 1], b"%d" % (i // 7)) for i in range(MANY)]
    wanted = after(before)
    start = time.perf_counter()
    edits = header_edits(before, wanted, header_index=rule)
    assert time.perf_counter() - start < 5
    assert applied(before, edits, rule=rule) == wanted
    assert len(edits) <= most
