import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.address import Address
from milterchain.mail.edits import apply_edits
from milterchain.mail.header_list import HeaderList
from milterchain.mail.headers import MAX_HEADER
from milterchain.mail.mailboxes import Mailbox
from milterchain.mail.message import parse_message
from milterchain.milter.messages import AddHeader, ChangeHeader, InsertHeader

ROWS = [
    (b"Received", b"from a\n\tby b"),
    (b"From", b"Joe <joe@example.org>"),
    (b"SUBJECT", b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=\n aus Bonn"),
    (b"To", b"a@b, =?utf-8?b?SsO2?= <c@d>"),
    (b"Received", b"from c"),
    (b"to", b"e@f"),
]


@pytest.fixture
def headers():
    return HeaderList(ROWS)


def test_reading(headers):
    assert len(headers) == 6
    assert headers.names == [name for name, _ in ROWS]
    assert headers.items() == ROWS
    assert [(field.name, field.value) for field in headers] == ROWS
    assert b"subject" in headers
    assert b"Cc" not in headers
    assert headers.raw(b"subject") == b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=\n aus Bonn"
    assert headers.unfolded(b"received") == b"from a\tby b"
    assert headers.text(b"Subject") == headers.subject == "Grüße aus Bonn"
    assert [str(mailbox) for mailbox in headers.addresses(b"To")] == ["a@b", "Jö <c@d>", "e@f"]
    assert [field.value for field in headers.fields(b"RECEIVED")] == [b"from a\n\tby b", b"from c"]
    assert headers.raw(b"Received", 1) == headers.raw(b"Received", -1) == b"from c"
    assert headers.field(b"Received", 2) is headers.field(b"Received", -3) is None
    assert not headers.changed
    assert headers.edits() == []


def test_what_is_not_there():
    headers = HeaderList()
    assert headers.raw(b"X") is headers.unfolded(b"X") is headers.text(b"X") is None
    assert headers.subject is headers.date() is None
    assert headers.addresses(b"To") == []
    assert headers.delete(b"X") == 0


def test_a_field(headers):
    field = headers.field(b"from")
    assert field is not None
    assert (field.name, field.value) == ROWS[1]
    assert field.unfolded == b"Joe <joe@example.org>"
    assert field.text == "Joe <joe@example.org>"
    assert field.addresses == [Mailbox(name="Joe", address=Address.of("joe@example.org"))]
    assert repr(field) == "<Field b'From': b'Joe <joe@example.org>'>"


def test_bytes_are_those_of_the_message():
    data = b"A:1\r\nb :  2\r\n\t3 \r\nC:\r\n"
    message = parse_message(data + b"\r\nbody\r\n")
    headers = HeaderList(message.milter_headers(), leading_space=True)
    assert bytes(headers) == data.replace(b"b :", b"b:")
    headers = HeaderList([(b"A", b"1\n 2")])
    assert bytes(headers) == b"A: 1\r\n 2\r\n"
    assert repr(headers) == "HeaderList([(b'A', b'1\\n 2')])"


def test_setting(headers):
    headers.set(b"from", b"x@y")
    headers.set(b"received", b"new", index=1)
    headers.set(b"X-New", b"1")
    headers.set_addresses(b"To", [Mailbox(address=Address.of("g@h"))])
    assert headers.changed
    assert headers.edits() == [
        ChangeHeader(2, b"Received", b"new"),
        ChangeHeader(1, b"To", b"g@h"),
        ChangeHeader(1, b"From", b"x@y"),
        AddHeader(b"X-New", b"1"),
    ]


def test_setting_text(headers):
    headers.subject = "[EXT] " + headers.subject
    headers.set_text(b"x-text", "a text")
    headers.add_text(b"X-Text", "ü")
    assert headers.subject == "[EXT] Grüße aus Bonn"
    assert headers.items()[-2:] == [(b"x-text", b"a text"), (b"X-Text", b"=?utf-8?b?w7w=?=")]
    headers.set_text(b"X-text", "another")
    assert headers.raw(b"x-text") == b"another"


def test_the_same_again_changes_no_byte(headers):
    headers.subject = "Grüße aus Bonn"
    headers.set(b"From", b"Joe <joe@example.org>")
    for field in headers:
        field.replace(field.value)
        field.replace_text(field.text)
    assert not headers.changed


def test_long_text_is_folded(headers):
    headers.subject = "word " * 30 + "end"
    value = headers.raw(b"Subject")
    assert value is not None
    assert max(map(len, (b"Subject: " + value).split(b"\n"))) <= 78
    headers.set_addresses(b"Cc", [Mailbox(name="Some Body", address=Address.of(f"{i}@b")) for i in range(9)])
    assert len(headers.addresses(b"Cc")) == 9
    assert max(map(len, bytes(headers).split(b"\r\n"))) <= 78


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Sun, 22 Nov 2026 10:00:00 +0100", datetime(2026, 11, 22, 10, tzinfo=timezone(timedelta(hours=1)))),
        (b"22 Nov 2026\n 10:00:00 GMT", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        (b"22 Nov 2026 10:00:00 -0000", datetime(2026, 11, 22, 10)),  # noqa: DTZ001 - it is naive
        (b"yesterday", None),
        (b"", None),
        (b"99 Nov 2026 10:00:00 GMT", None),
        (b"22 Nov 2026 10:00:00 +99999999999999999", None),
        (b"\xff 22 Nov", None),
    ],
)
def test_date(value, expected):
    assert HeaderList([(b"date", value)]).date() == expected


@given(st.binary(max_size=30) | st.text("0123456789: +-,NovSunGMT", max_size=40).map(str.encode))
def test_date_never_fails(value):
    HeaderList([(b"Date", value)]).date()


def test_setting_the_date(headers):
    date = datetime(2026, 11, 22, 10, tzinfo=UTC)
    headers.set_date(date)
    assert headers.raw(b"Date") == b"Sun, 22 Nov 2026 10:00:00 +0000"
    assert headers.date() == date


def test_changing_while_going_through():
    headers = HeaderList([(b"A", b"%d" % i) for i in range(6)])
    seen = []
    for field in headers:
        seen.append(field.value)
        if field.value == b"0":
            field.insert_before(b"B", b"before 0")
            field.insert_after(b"B", b"after 0")
        elif field.value == b"1":
            field.delete()
        elif field.value == b"2":
            headers.field(b"A", 2).delete()
            field.replace(b"two")
        elif field.value == b"4":
            field.replace_text("vier")
            field.insert_after(b"C", b"last but one")
    assert seen == [b"0", b"1", b"2", b"4", b"5"]
    assert [value for _, value in headers.items()] == [
        *(b"before 0", b"0", b"after 0", b"two", b"vier", b"last but one", b"5"),
    ]


def test_many_are_changed_as_quickly_as_few():
    headers = HeaderList([(b"A", b"%d" % i) for i in range(20_000)])
    start = time.perf_counter()
    for field in headers:
        field.insert_before(b"B", b"new")
        field.insert_after(b"C", b"new")
        field.delete()
    assert time.perf_counter() - start < 3
    assert len(headers) == 40_000
    assert headers.names == [b"B", b"C"] * 20_000


def test_inserting(headers):
    headers.insert(0, b"X", b"first")
    headers.insert(99, b"X", b"last")
    headers.insert(-1, b"X", b"last but one")
    assert [place for place, name in enumerate(headers.names) if name == b"X"] == [0, 7, 8]
    assert headers.edits() == [
        InsertHeader(1, b"X", b"first"),
        AddHeader(b"X", b"last but one"),
        AddHeader(b"X", b"last"),
    ]


def test_deleting(headers):
    assert headers.delete(b"received") == 2
    assert headers.delete(b"received") == 0
    assert headers.edits() == [ChangeHeader(2, b"Received", b""), ChangeHeader(1, b"Received", b"")]


def test_what_was_deleted_cannot_be_changed(headers):
    field = headers.field(b"From")
    assert not field.deleted
    field.delete()
    field.delete()
    assert field.deleted
    for change in (
        lambda: field.replace(b"x"),
        lambda: field.replace_text("x"),
        lambda: field.replace_addresses([Mailbox(address=Address.of("a@b"))]),
        lambda: field.insert_before(b"X", b"1"),
        lambda: field.insert_after(b"X", b"1"),
    ):
        with pytest.raises(ValueError, match="was deleted"):
            change()


def test_values_change_only_by_methods_that_check_them(headers):
    with pytest.raises(AttributeError):
        headers.field(b"From").value = b"\0"


@pytest.mark.parametrize(
    "look",
    [
        lambda headers, name: headers.text(name),
        lambda headers, name: name in headers,
        lambda headers, name: headers.delete(name),
        lambda headers, name: headers.set(name, b""),
        lambda headers, name: headers.add(name, b""),
    ],
)
def test_a_text_is_no_name(headers, look):
    with pytest.raises(TypeError, match="bytes"):
        look(headers, "Subject")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (b"", b"", "is no header name"),
        (b"A:", b"", "is no header name"),
        (b"A\r\nB", b"", "is no header name"),
        (b"A", b"\0", "NUL"),
        (b"A", b"x" * MAX_HEADER, "larger than"),
        (b"A", b"\n " * (MAX_HEADER // 3), "larger than"),
    ],
)
def test_what_cannot_be(headers, name, value, message):
    for change in (headers.add, headers.set, lambda name, value: headers.insert(0, name, value)):
        with pytest.raises(ValueError, match=message):
            change(name, value)
    with pytest.raises(ValueError, match=message):
        next(iter(headers)).insert_after(name, value)
    assert not headers.changed


def test_the_largest_header_can_be_applied():
    message = parse_message(b"\r\n")
    headers = HeaderList(message.milter_headers())
    headers.add(b"A", b"x" * (MAX_HEADER - 5))
    assert apply_edits(message, headers.edits()).warnings == ()


@pytest.mark.parametrize(
    ("given", "plain", "spaced"),
    [
        (b"x", b"x", b" x"),
        (b" x", b" x", b" x"),
        (b"\tx", b"\tx", b"\tx"),
        (b"", b"", b""),
        (b"x\r\ny\r\n", b"x\n\ty", b" x\n\ty"),
        (b"\n x", b"\n x", b"\n x"),
    ],
)
def test_values(given, plain, spaced):
    assert HeaderList().add(b"A", given).value == plain
    assert HeaderList(leading_space=True).add(b"A", given).value == spaced


def test_with_leading_space():
    headers = HeaderList([(b"Subject", b"  two"), (b"To", b"a@b")], leading_space=True)
    assert headers.subject == "two"
    headers.subject = "three"
    headers.field(b"To").replace(b"a@b")
    assert headers.items() == [(b"Subject", b" three"), (b"To", b"a@b")]


NAMES = st.sampled_from([b"A", b"a", b"B", b"Received"])
VALUES = st.sampled_from([b"", b"1", b"2\r\n3", b" x", b"\ty\n z"])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "insert", "delete", "replace", "before", "after", "all"]), st.integers(0, 7)
    ),
    max_size=12,
)


@given(
    st.lists(st.tuples(NAMES, st.sampled_from([b"", b"1", b" x", b"y\n z"])), max_size=6),
    *(STEPS, st.data(), st.booleans(), st.booleans()),
    st.sampled_from(["postfix", "sendmail"]),
)
def test_the_mta_has_in_the_end_what_the_list_has(rows, steps, data, leading_space, keep_order, rule):
    colon = b":" if leading_space else b": "
    raw = b"".join(name + colon + value + b"\n" for name, value in rows).replace(b"\n", b"\r\n") + b"\r\n"
    message = parse_message(raw)
    headers = HeaderList(rows, leading_space=leading_space)
    for step, place in steps:
        name, value = data.draw(NAMES), data.draw(VALUES)
        field = list(headers)[place % len(headers)] if len(headers) else None
        if step == "add":
            headers.add(name, value)
        elif step == "insert":
            headers.insert(place, name, value)
        elif step == "all":
            headers.delete(name)
        elif field is not None:
            {
                "delete": field.delete,
                "replace": lambda field=field, value=value: field.replace(value),
                "before": lambda field=field, name=name, value=value: field.insert_before(name, value),
                "after": lambda field=field, name=name, value=value: field.insert_after(name, value),
            }[step]()
    edits = headers.edits(header_index=rule, keep_order=keep_order)
    edited = apply_edits(message, edits, header_index=rule, leading_space=leading_space)
    assert edited.warnings == ()
    assert edited.message.headers.raw == bytes(headers)
    assert bool(edits) == headers.changed
