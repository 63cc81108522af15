from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.body import SpoolSettings
from milterchain.mail.canonical import canonical
from milterchain.mail.edits import apply_edits, apply_envelope_edits
from milterchain.mail.envelope import Envelope
from milterchain.mail.envelope import Path as MailPath
from milterchain.mail.headers import MAX_HEADER
from milterchain.mail.message import parse_message
from milterchain.milter.messages import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    ReplaceBody,
)

RULES = ["postfix", "sendmail"]
OWN = b"Received: us\r\n"


def message_of(*headers, body=b"body\r\n", own=True):
    data = b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body
    message = parse_message(data)
    return message.with_own_received(OWN) if own else message


def lines(message):
    """The headers without the own one's text: `*` is where it stands."""
    return [b"*" if header.own else header.raw.removesuffix(b"\r\n") for header in message.headers]


def edit(message, *edits, **options):
    return lines(apply_edits(message, edits, **options).message)


BASE = [b"A: 1", b"B: 1", b"A: 2", b"C: 1", b"a: 3"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([], [b"*", *BASE]),
        ([AddHeader(b"A", b"new")], [b"*", *BASE, b"A: new"]),
        ([InsertHeader(0, b"X", b"1")], [b"X: 1", b"*", *BASE]),
        ([InsertHeader(1, b"X", b"1")], [b"*", b"X: 1", *BASE]),
        ([InsertHeader(0, b"X", b"1"), InsertHeader(1, b"Y", b"1")], [b"X: 1", b"Y: 1", b"*", *BASE]),
        ([InsertHeader(1, b"X", b"1"), InsertHeader(2, b"Y", b"1")], [b"*", b"X: 1", b"Y: 1", *BASE]),
        ([InsertHeader(5, b"X", b"1")], [b"*", *BASE[:4], b"X: 1", BASE[4]]),
        ([InsertHeader(6, b"X", b"1")], [b"*", *BASE, b"X: 1"]),
        ([InsertHeader(2**32 - 1, b"X", b"1")], [b"*", *BASE, b"X: 1"]),
        ([ChangeHeader(1, b"A", b"new")], [b"*", b"A: new", *BASE[1:]]),
        ([ChangeHeader(0, b"A", b"new")], [b"*", b"A: new", *BASE[1:]]),
        ([ChangeHeader(3, b"A", b"new")], [b"*", *BASE[:4], b"A: new"]),
        ([ChangeHeader(2, b"a", b"new")], [b"*", *BASE[:2], b"a: new", *BASE[3:]]),
        ([ChangeHeader(4, b"A", b"new")], [b"*", *BASE, b"A: new"]),
        ([ChangeHeader(4, b"A", b"")], [b"*", *BASE]),
        ([ChangeHeader(1, b"X", b"new")], [b"*", *BASE, b"X: new"]),
        ([ChangeHeader(0, b"X", b"new")], [b"*", *BASE, b"X: new"]),
        ([ChangeHeader(0, b"X", b"")], [b"*", *BASE]),
        ([ChangeHeader(2, b"A", b"")], [b"*", *BASE[:2], *BASE[3:]]),
        ([ChangeHeader(1, b"Received", b"new")], [b"*", *BASE, b"Received: new"]),
        ([ChangeHeader(1, b"Received", b"")], [b"*", *BASE]),
        # What this milter inserted counts for it from then on.
        (
            [InsertHeader(4, b"A", b"new"), ChangeHeader(3, b"A", b"third")],
            [b"*", *BASE[:3], b"A: third", *BASE[3:]],
        ),
        ([InsertHeader(0, b"A", b"new"), ChangeHeader(1, b"A", b"first")], [b"A: first", b"*", *BASE]),
        ([AddHeader(b"A", b"new"), ChangeHeader(4, b"A", b"")], [b"*", *BASE]),
    ],
)
def test_headers(rule, own, edits, expected):
    assert edit(message_of(*BASE, own=own), *edits, header_index=rule) == expected


@pytest.mark.parametrize(
    ("edits", "postfix", "sendmail"),
    [
        # Index 1 twice.
        ([ChangeHeader(1, b"A", b"")] * 2, [b"B: 1", b"C: 1", b"a: 3"], [b"B: 1", b"A: 2", b"C: 1", b"a: 3"]),
        # A deleted header is revived in its place, or the value goes to the next one.
        (
            [ChangeHeader(1, b"A", b""), ChangeHeader(1, b"A", b"new")],
            [b"B: 1", b"A: new", b"C: 1", b"a: 3"],
            [b"A: new", b"B: 1", b"A: 2", b"C: 1", b"a: 3"],
        ),
        # A deleted header counts for positions, or not.
        (
            [ChangeHeader(1, b"A", b""), InsertHeader(2, b"X", b"1")],
            [b"B: 1", b"X: 1", b"A: 2", b"C: 1", b"a: 3"],
            [b"X: 1", b"B: 1", b"A: 2", b"C: 1", b"a: 3"],
        ),
        # Index 0 is the first that is left; where none is left the value is appended.
        (
            [*[ChangeHeader(0, b"A", b"")] * 4, ChangeHeader(0, b"A", b"new")],
            [b"B: 1", b"C: 1", b"A: new"],
            [b"B: 1", b"C: 1", b"A: new"],
        ),
        (
            [ChangeHeader(1, b"A", b""), ChangeHeader(0, b"A", b"new")],
            [b"B: 1", b"A: new", b"C: 1", b"a: 3"],
            [b"B: 1", b"A: new", b"C: 1", b"a: 3"],
        ),
    ],
)
def test_index_rules_differ(edits, postfix, sendmail):
    message = message_of(*BASE)
    assert edit(message, *edits, header_index="postfix") == [b"*", *postfix]
    assert edit(message, *edits, header_index="sendmail") == [b"*", *sendmail]


AR = b"Authentication-Results"
FORGED = [b"From: joe", AR + b": mx; 1", b"To: joe", AR + b": other", AR + b": mx; 3", AR + b": mx; 4"]


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        # With shifting indices the second deletion hits the former fourth, and the third nothing.
        ("sendmail", [b"From: joe", b"To: joe", AR + b": other"]),
        ("postfix", [b"From: joe", b"To: joe", AR + b": other", AR + b": mx; 3"]),
    ],
)
def test_opendkim_deletes_forged_results_at_ascending_indices(rule, left):
    edits = [
        ChangeHeader(1, AR, b""),
        ChangeHeader(3, AR, b""),
        ChangeHeader(4, AR, b""),
        InsertHeader(1, AR, b"mx; dkim=pass"),
    ]
    assert edit(message_of(*FORGED), *edits, header_index=rule) == [b"*", AR + b": mx; dkim=pass", *left]


@pytest.mark.parametrize("rule", RULES)
def test_opendkim_deletes_old_signatures_by_repeating_index_0(rule):
    message = message_of(b"DKIM-Signature: 1", b"From: joe", b"DKIM-Signature: 2", b"dkim-signature: 3")
    edits = [ChangeHeader(0, b"DKIM-Signature", b"")] * 3
    edits.append(InsertHeader(1, b"DKIM-Signature", b" v=1;\n\tb=x"))
    assert edit(message, *edits, header_index=rule, leading_space=True) == [
        b"*",
        b"DKIM-Signature: v=1;\r\n\tb=x",
        b"From: joe",
    ]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("postfix", [b"From: joe", b"To: joe", b"X-Spam: no"]),
        ("sendmail", [b"X-Spam: no", b"From: joe", b"To: joe"]),
    ],
)
def test_rspamd_deletes_from_the_last_and_puts_one_back(rule, expected):
    message = message_of(b"X-Spam: 1", b"From: joe", b"X-Spam: 2", b"To: joe", b"X-Spam: 3")
    edits = [ChangeHeader(index, b"X-Spam", b"") for index in (3, 2, 1)]
    assert edit(message, *edits, ChangeHeader(1, b"X-Spam", b"no"), header_index=rule) == [b"*", *expected]


@pytest.mark.parametrize("rule", RULES)
def test_signatures_at_1_2_3_come_above_the_clients_headers(rule):
    edits = [InsertHeader(index, b"DKIM-Signature", b"%d" % index) for index in (1, 2, 3)]
    expected = [b"*", *(b"DKIM-Signature: %d" % index for index in (1, 2, 3)), b"From: joe"]
    assert edit(message_of(b"From: joe"), *edits, header_index=rule) == expected


def test_the_next_milter_counts_anew():
    message = message_of(*BASE)
    first = apply_edits(message, [ChangeHeader(1, b"A", b"")], header_index="sendmail").message
    assert edit(first, ChangeHeader(1, b"A", b""), header_index="sendmail") == [
        b"*",
        b"B: 1",
        b"C: 1",
        b"a: 3",
    ]


class Model:
    """Both rules, told as plainly as possible: a list of [name, text] where text is None once deleted."""

    def __init__(self, message, *, keep_deleted):
        self.rows = [[header.name, header.raw, header.own] for header in message.headers]
        self.keep_deleted = keep_deleted

    def apply(self, edit):
        raw = edit.name + b": " + edit.value + b"\r\n"
        row = [edit.name, raw, False]
        if isinstance(edit, AddHeader):
            self.rows.append(row)
        elif isinstance(edit, InsertHeader):
            self.rows.insert(min(edit.index, len(self.rows)), row)
        else:
            same = [old for old in self.rows if old[0].lower() == edit.name.lower() and not old[2]]
            if edit.index == 0:
                same = [old for old in same if old[1] is not None]
            target = same[max(edit.index, 1) - 1 :][:1]
            if not target:
                self.rows += [row] if edit.value else []
            else:
                index = [id(old) for old in self.rows].index(id(target[0]))
                self.rows[index] = row if edit.value else [target[0][0], None, False]
        if not self.keep_deleted:
            self.rows = [old for old in self.rows if old[1] is not None]

    def result(self):
        return [text for _, text, _ in self.rows if text is not None]


NAMES = st.sampled_from([b"A", b"a", b"B", b"Received", b"X"])
VALUES = st.sampled_from([b"", b"", b"1", b"2"])
EDITS = st.lists(
    st.one_of(
        st.builds(AddHeader, NAMES, VALUES),
        st.builds(InsertHeader, st.integers(0, 8), NAMES, VALUES),
        st.builds(ChangeHeader, st.integers(0, 6), NAMES, VALUES),
    ),
    max_size=12,
)
HEADERS = st.lists(st.sampled_from([b"A: 0", b"a: 0", b"B: 0", b"Received: other"]), max_size=6)


@given(HEADERS, EDITS, st.sampled_from(RULES), st.booleans())
def test_against_a_model(headers, edits, rule, own):
    message = message_of(*headers, own=own)
    model = Model(message, keep_deleted=rule == "sendmail")
    for one in edits:
        model.apply(one)
    edited = apply_edits(message, edits, header_index=rule)
    assert [header.raw for header in edited.message.headers] == model.result()
    assert edited.warnings == ()
    with parse_message(b"".join(edited.message.chunks())) as again:
        kept = [header.raw for header in edited.message.headers if header.raw]
        assert [header.raw for header in again.headers[1:]] == kept
        assert bytes(again.body) == b"body\r\n"


@pytest.mark.parametrize(
    ("value", "leading_space", "raw"),
    [
        (b"v", False, b"X: v"),
        (b"v", True, b"X:v"),
        (b" v", True, b"X: v"),
        (b" v", False, b"X:  v"),
        (b"\tv ", False, b"X: \tv "),
        (b"a\nb", False, b"X: a\r\n\tb"),
        (b"a\n b\n\tc", False, b"X: a\r\n b\r\n\tc"),
        (b"a\r\n\tb", False, b"X: a\r\n\tb"),
        (b"a\rb\r", False, b"X: a b "),
        (b"a\r\r\n\tb", False, b"X: a \r\n\tb"),
        (b"a\n", False, b"X: a\r\n\t"),
        (b"a\n\nEvil: x", False, b"X: a\r\n\t\r\n\tEvil: x"),
        (b"a\r\n\r\nbody", False, b"X: a\r\n\t\r\n\tbody"),
        (b"", False, b"X: "),
        (b"\xff", False, b"X: \xff"),
    ],
)
@pytest.mark.parametrize("make", [lambda v: AddHeader(b"X", v), lambda v: InsertHeader(1, b"X", v)])
def test_values(make, value, leading_space, raw):
    assert edit(message_of(), make(value), leading_space=leading_space) == [b"*", raw]


@given(st.binary(max_size=40).map(lambda value: value.replace(b"\0", b"\n")), st.booleans())
def test_no_value_escapes_its_header(value, leading_space):
    edited = apply_edits(message_of(b"A: 1"), [AddHeader(b"X", value)], leading_space=leading_space).message
    with parse_message(b"".join(edited.chunks())) as again:
        assert [name for name, _ in again.milter_headers()] == [b"Received", b"A", b"X"]
        assert again.headers[3].raw == edited.headers[2].raw
        assert bytes(again.body) == b"body\r\n"
        assert canonical(edited.headers.raw) == edited.headers.raw


@pytest.mark.parametrize("name", [b"", b"X Y", b"X:", b"X\r\nY", b" X", b"X ", b"\xc3\xbc"])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: AddHeader(n, b"v"),
        lambda n: InsertHeader(0, n, b"v"),
        lambda n: ChangeHeader(1, n, b"v"),
    ],
)
def test_a_bad_name_is_left_out_and_reported(make, name):
    edited = apply_edits(message_of(b"A: 1"), [make(name), AddHeader(b"X", b"v")])
    assert lines(edited.message) == [b"*", b"A: 1", b"X: v"]
    assert edited.warnings == (f"header name {name!r} is not valid",)


def test_a_header_too_large_is_left_out_and_reported():
    room = MAX_HEADER - len(b"X: \r\n")
    message = message_of()
    assert len(edit(message, AddHeader(b"X", b"x" * room))) == 2
    edited = apply_edits(message, [AddHeader(b"X", b"x" * (room + 1))])
    assert edited.message is message
    assert edited.warnings == ("header b'X' of 60001 octets is larger than 60000",)


@pytest.mark.parametrize(
    "edits",
    [
        [],
        [ChangeHeader(1, b"X", b"")],
        [ChangeHeader(1, b"A", b"1")],
        [AddRecipient(b"<a@b>"), DeleteRecipient(b"a@b"), ChangeSender(b"<>")],
    ],
)
def test_nothing_changed(edits):
    message = message_of(b"A: 1")
    assert apply_edits(message, edits) == (message, ())
    assert apply_edits(message, edits).message is message


def test_a_header_edit_shares_the_body():
    message = message_of(b"A: 1")
    edited = apply_edits(message, [AddHeader(b"X", b"1")]).message
    assert edited.body is message.body
    assert lines(message) == [b"*", b"A: 1"]


@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        ([b""], b""),
        ([b"new\r\n"], b"new\r\n"),
        ([b"a\r", b"\nb"], b"a\r\nb\r\n"),
        ([b"a\nb\rc\r", b""], b"a\r\nb c \r\n"),
        ([b"a", b"", b"b\r\n"], b"ab\r\n"),
        ([b"\0\xff\n"], b"\0\xff\r\n"),
    ],
)
def test_body(chunks, body):
    message = message_of(b"A: 1")
    edited = apply_edits(message, [ReplaceBody(chunk) for chunk in chunks]).message
    assert bytes(edited.body) == body
    assert bytes(message.body) == b"body\r\n"
    assert b"".join(edited.chunks()) == OWN + b"A: 1\r\n\r\n" + body


def test_body_edits_may_be_interleaved():
    edits = [ReplaceBody(b"one "), AddHeader(b"X", b"1"), AddRecipient(b"a@b"), ReplaceBody(b"two")]
    edited = apply_edits(message_of(), edits).message
    assert b"".join(edited.chunks()) == OWN + b"X: 1\r\n\r\none two\r\n"


@pytest.mark.parametrize(
    ("data", "edits", "expected"),
    [
        (b"A: 1\r\n", [ReplaceBody(b"B: 2")], b"A: 1\r\n\r\nB: 2\r\n"),
        (b"A: 1\r\n", [ReplaceBody(b"")], b"A: 1\r\n\r\n"),
        (b"A: 1\r\n", [AddHeader(b"B", b"2")], b"A: 1\r\nB: 2\r\n"),
        (b"A: 1\r\nbody\r\n", [AddHeader(b"B", b"2")], b"A: 1\r\nB: 2\r\n\r\nbody\r\n"),
        (b" body\r\n", [AddHeader(b"B", b"2")], b"B: 2\r\n\r\n body\r\n"),
        (b"", [AddHeader(b"B", b"2")], b"B: 2\r\n"),
        (b"", [ReplaceBody(b"new")], b"\r\nnew\r\n"),
    ],
)
def test_separator(data, edits, expected):
    assert b"".join(apply_edits(parse_message(data), edits).message.chunks()) == expected


def test_a_large_new_body_is_spooled(tmp_path):
    before = len(list(Path("/dev/fd").iterdir()))
    edits = [ReplaceBody(b"x" * 100)] * 20
    spool = SpoolSettings(threshold=1000, directory=str(tmp_path))
    with apply_edits(message_of(), edits, spool=spool).message as edited:
        assert not edited.body.in_memory
        assert bytes(edited.body) == b"x" * 2000 + b"\r\n"
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_many_edits_of_many_headers_are_bearable():
    message = message_of(*[b"Name-%d: x" % (number % 50) for number in range(5000)])
    edits = [
        one
        for number in range(250)
        for one in (
            InsertHeader(number * 20, b"Name-%d" % (number % 50), b"new"),
            ChangeHeader(number % 90 + 1, b"Name-%d" % (number % 50), b""),
        )
    ]
    for rule in RULES:
        assert len(edit(message, *edits, header_index=rule)) == 5001


ENVELOPE = Envelope(
    MailPath(b"<joe@example.org>", (b"SIZE=100", b"RET=FULL", b"Body=8BITMIME")),
    (
        MailPath(b"<a@example.org>", (b"NOTIFY=NEVER",)),
        MailPath(b"b@example.org"),
        MailPath(b"<a@example.org>"),
    ),
)


def addresses(envelope):
    return [recipient.address for recipient in envelope.recipients]


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([DeleteRecipient(b"a@example.org")], [b"b@example.org"]),
        ([DeleteRecipient(b"<a@example.org>")], [b"b@example.org"]),
        ([DeleteRecipient(b"A@example.org"), DeleteRecipient(b"a@Example.org")], None),
        ([DeleteRecipient(b"c@example.org"), DeleteRecipient(b"")], None),
        ([AddRecipient(b"b@EXAMPLE.org"), AddRecipient(b"<>"), AddRecipient(b"")], None),
        ([AddRecipient(b"B@example.org")], [*addresses(ENVELOPE), b"<B@example.org>"]),
        ([AddRecipient(b"Any <c@d>"), AddRecipient(b"<c@d>")], [*addresses(ENVELOPE), b"<c@d>"]),
        ([AddRecipient(b"<c@d>"), DeleteRecipient(b"c@d")], None),
        (
            [DeleteRecipient(b"b@example.org"), AddRecipient(b"b@example.org")],
            [b"<a@example.org>", b"<a@example.org>", b"<b@example.org>"],
        ),
        ([AddHeader(b"X", b"1"), ReplaceBody(b"x")], None),
    ],
)
def test_recipients(edits, expected):
    envelope, warnings, _ = apply_envelope_edits(ENVELOPE, edits)
    assert warnings == ()
    if expected is None:
        assert envelope is ENVELOPE
    else:
        assert addresses(envelope) == expected
        assert envelope.sender == ENVELOPE.sender


@pytest.mark.parametrize(
    ("args", "kept", "dropped"),
    [
        (b"", (), 0),
        (b"NOTIFY=NEVER", (b"NOTIFY=NEVER",), 0),
        (
            b" notify=success,DELAY  ORCPT=rfc822;a+40b ",
            (b"notify=success,DELAY", b"ORCPT=rfc822;a+40b"),
            0,
        ),
        (b"NOTIFY=NEVER,SUCCESS", (), 1),
        (b"NOTIFY=", (), 1),
        (b"NOTIFY", (), 1),
        (b"ORCPT=rfc822;a=b", (), 1),
        (b"ORCPT=rfc822;a+4", (), 1),
        (b"ORCPT=" + b"x" * 600, (), 1),
        (b"SIZE=1 RET=FULL\r\nDATA", (), 3),
        (b"NOTIFY=NEVER\r\nNOTIFY=DELAY", (b"NOTIFY=DELAY",), 0),
    ],
)
def test_recipient_arguments(args, kept, dropped):
    envelope, warnings, _ = apply_envelope_edits(ENVELOPE, [AddRecipient(b"c@d", args)])
    assert envelope.recipients[-1] == MailPath(b"<c@d>", kept)
    assert len(warnings) == dropped


@pytest.mark.parametrize(
    ("edit", "sender", "dropped"),
    [
        (ChangeSender(b"<x@y>"), MailPath(b"<x@y>", ENVELOPE.sender.args), 0),
        (ChangeSender(b"x@y"), MailPath(b"<x@y>", ENVELOPE.sender.args), 0),
        (ChangeSender(b"<>"), MailPath(b"<>", ENVELOPE.sender.args), 0),
        (ChangeSender(b""), MailPath(b"<>", ENVELOPE.sender.args), 0),
        (
            ChangeSender(b"x@y", b"ret=hdrs ENVID=a+20b SIZE=1 ENVID=+2"),
            MailPath(b"<x@y>", (b"SIZE=100", b"ret=hdrs", b"Body=8BITMIME", b"ENVID=a+20b")),
            2,
        ),
    ],
)
def test_sender(edit, sender, dropped):
    envelope, warnings, _ = apply_envelope_edits(ENVELOPE, [edit])
    assert envelope == Envelope(sender, ENVELOPE.recipients)
    assert len(warnings) == dropped


def test_many_edits_of_many_recipients_are_bearable():
    paths = tuple(MailPath(b"<%d@example.org>" % number) for number in range(1000))
    edits = [
        one
        for number in range(500)
        for one in (DeleteRecipient(b"%d@example.org" % number), AddRecipient(b"%d@example.net" % number))
    ]
    envelope, *_ = apply_envelope_edits(Envelope(MailPath(b"<>"), paths), edits)
    assert len(envelope.recipients) == 1000
    assert envelope.recipients[0].address == b"<500@example.org>"


@pytest.mark.parametrize("make", [AddRecipient, ChangeSender])
@pytest.mark.parametrize(
    "address",
    [
        b"a@b\r\nDATA",
        b"a@b>\r\nRCPT TO:<evil@c",
        b"a@b> SIZE=1",
        b"a b@c",
        b"a@b, c@d",
        b"\xff@b",
        b"a\x7f@b",
    ],
)
def test_a_bad_address_is_left_out_and_reported(make, address):
    envelope, warnings, unusable = apply_envelope_edits(ENVELOPE, [make(address)])
    assert envelope is ENVELOPE
    assert warnings == (f"address {address!r} is not valid",)
    assert unusable == ((address,) if make is AddRecipient else ())


@given(st.binary(max_size=30), st.binary(max_size=30), st.sampled_from([AddRecipient, ChangeSender]))
def test_no_address_escapes_its_command(address, args, make):
    edit = make(address.replace(b"\0", b"\r"), args.replace(b"\0", b"\n"))
    envelope, *_ = apply_envelope_edits(Envelope(MailPath(b"<>")), [edit])
    for path in (envelope.sender, *envelope.recipients):
        command = b" ".join((path.bracketed, *path.args))
        assert b"\r" not in command
        assert b"\n" not in command


def test_a_new_body_that_is_no_text():
    message = replace(parse_message(b"A: b\r\n\r\nx\r\n"), binary=True)
    edits = [AddHeader(b"X", b"y"), ReplaceBody(b"a\nb\r"), ReplaceBody(b"c")]
    edited = apply_edits(message, edits).message
    assert b"".join(edited.chunks()) == b"A: b\r\nX: y\r\n\r\na\nb\rc"
    assert edited.binary
