import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.address import Address
from milterchain.mail.header_text import MAX_LINE, normalize_value
from milterchain.mail.mailboxes import Mailbox, encode_mailboxes, parse_mailboxes


def parsed(value):
    return [(mailbox.name, mailbox.address.raw) for mailbox in parse_mailboxes(value)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", []),
        (b"joe@example.org", [("", b"joe@example.org")]),
        (b"root", [("", b"root")]),
        (b" Joe  Doe\n <joe@example.org> ", [("Joe Doe", b"joe@example.org")]),
        (b'"Doe, Joe" <a@b>, c@d', [("Doe, Joe", b"a@b"), ("", b"c@d")]),
        (b'"a \\"b\\" \\\\" <a@b>', [('a "b" \\', b"a@b")]),
        (b"=?utf-8?q?J=C3=B6?= <a@b>", [("Jö", b"a@b")]),
        ("Jö <ö@b>".encode(), [("Jö", "ö@b".encode())]),
        (b"J.D. <a@b>", [("J.D.", b"a@b")]),
        (b"group: a@b, Joe <c@d>;, e@f", [("", b"a@b"), ("Joe", b"c@d"), ("", b"e@f")]),
        (b"undisclosed-recipients:;", []),
        (b"undisclosed recipients", []),
        (b"a@b (Joe (the one) Doe)", [("Joe (the one) Doe", b"a@b")]),
        (b"(first) a@b (Joe \\) Doe)", [("Joe ) Doe", b"a@b")]),
        (b"Joe (him) <a@b>", [("Joe", b"a@b")]),
        (b"a (x) @ (y) b", [("y", b"a@b")]),
        (b'"a b"@c', [("", b'"a b"@c')]),
        (b'Joe <"a, b"@c>', [("Joe", b'"a, b"@c')]),
        (
            b"a@[192.0.2.1], Joe <b@[IPv6:2001:db8::1]>",
            [("", b"a@[192.0.2.1]"), ("Joe", b"b@[IPv6:2001:db8::1]")],
        ),
        (b"Joe <@a,@b:c@d>", [("Joe", b"@a,@b:c@d")]),
        # Broken in usual ways.
        (b"Joe <a@b, Ann <c@d>", [("Joe", b"a@b"), ("Ann", b"c@d")]),
        (b"Joe <a@b", [("Joe", b"a@b")]),
        (b"Joe <a@b> junk, c@d", [("Joe", b"a@b"), ("", b"c@d")]),
        (b"Joe <<a@b>>", [("Joe", b"a@b")]),
        (b"Joe <>, <>", []),
        (b",,; a@b ;,", [("", b"a@b")]),
        (b'"Joe <a@b>', []),
        (b'"Joe\\', []),
        (b"a@b (Joe", [("Joe", b"a@b")]),
        (b"a@[1.2", [("", b"a@[1.2")]),
        (b"Joe < @a,@b:c@d , e@f", [("Joe", b"@a,@b:c@d"), ("", b"e@f")]),
        (b"a\x01@b, \xff@b, " + b"a" * 1001, []),
    ],
)
def test_reading(value, expected):
    assert parsed(value) == expected


@given(st.binary(max_size=80) | st.text('"\\()<>[]@,;: a.', max_size=40).map(str.encode))
def test_reading_never_fails(value):
    for mailbox in parse_mailboxes(value):
        assert mailbox.address.raw
        str(mailbox)


@pytest.mark.parametrize(
    "piece", [b"(", b"()", b'"', b'\\"', b"<", b"<@a,", b"@a,", b"[", b"a@b,", b"a ", b'"\\', b"(a)b "]
)
def test_reading_takes_no_time(piece):
    start = time.perf_counter()
    parse_mailboxes(piece * (60_000 // len(piece)))
    parse_mailboxes(b"<" + piece * (60_000 // len(piece)))
    assert time.perf_counter() - start < 2


def mailbox(name, address="a@b"):
    return Mailbox(name=name, address=Address.of(address))


@pytest.mark.parametrize(
    ("mailboxes", "expected"),
    [
        ([], b""),
        ([mailbox("")], b"a@b"),
        ([mailbox("", "<a@b>")], b"a@b"),
        ([mailbox("Joe Doe")], b"Joe Doe <a@b>"),
        ([mailbox("Doe, Joe")], b'"Doe, Joe" <a@b>'),
        ([mailbox('J. "D"')], b'"J. \\"D\\"" <a@b>'),
        ([mailbox("Jö")], b"=?utf-8?b?SsO2?= <a@b>"),
        ([mailbox("=?x?=")], b"=?utf-8?b?PT94Pz0=?= <a@b>"),
        ([mailbox("two\n lines")], b"two lines <a@b>"),
        ([mailbox(""), mailbox("Joe")], b"a@b, Joe <a@b>"),
    ],
)
def test_writing(mailboxes, expected):
    assert encode_mailboxes(mailboxes) == expected


@pytest.mark.parametrize("address", ["", "<>", "a b@c", "a@b\nBcc: c@d", "a>,<b@c", "\0"])
def test_only_addresses_are_written(address):
    with pytest.raises(ValueError, match="is no address"):
        encode_mailboxes([mailbox("Joe", address)])


MAILBOXES = st.lists(
    st.builds(
        mailbox,
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60).map(
            lambda name: " ".join(name.split())
        ),
        st.sampled_from(["a@b", '"a, b"@c', "a@スパム.example", "root", "x" * 40 + "@y", "a@[192.0.2.1]"]),
    ),
    max_size=6,
)


@given(MAILBOXES, st.integers(0, 30))
def test_writing_and_back(mailboxes, indent):
    value = encode_mailboxes(mailboxes, indent=indent)
    assert parse_mailboxes(value) == mailboxes
    assert normalize_value(value) == value
    lines = (b"." * indent + value).split(b"\n")
    assert all(len(line) <= MAX_LINE or line.count(b" ") < 4 for line in lines)


def test_text():
    assert str(mailbox("Joe", "a@xn--zck5b2b.example")) == "Joe <a@スパム.example>"
    assert str(mailbox("")) == "a@b"
