import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.address import Address
from milterchain.mail.envelope import Path

A_LABEL = b"user@xn--zck5b2b.example"


def test_parts():
    address = Address("<Joe@スパム.Example>".encode(), (b"NOTIFY=NEVER", b"smtputf8"))
    assert address.bare == "Joe@スパム.Example".encode()
    assert address.local == b"Joe"
    assert address.domain == "スパム.Example".encode()
    assert address.ascii_domain == b"xn--zck5b2b.example"
    assert address.unicode_domain == "スパム.example"
    assert address.parameters == {b"NOTIFY": b"NEVER", b"SMTPUTF8": b""}
    assert address.path == Path(address.raw, address.args)
    assert str(address) == "Joe@スパム.example"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (A_LABEL, "user@スパム.example".encode()),
        (A_LABEL, b"<user@XN--ZCK5B2B.EXAMPLE.>"),
        (b"a@b", b"<a@B>"),
        (b"<>", b""),
    ],
)
def test_equal(one, other):
    assert Address(one) == Address(other, (b"SIZE=1",))
    assert len({Address(one), Address(other)}) == 1


@pytest.mark.parametrize(("one", "other"), [(b"a@b", b"A@b"), (b"a@b", b"a@c"), (b"", b"a")])
def test_unequal(one, other):
    assert Address(one) != Address(other)
    assert Address(one) != one


@pytest.mark.parametrize(
    ("raw", "ascii_domain", "unicode_domain", "text"),
    [
        (b"<>", b"", "", ""),
        (b"root", b"", "", "root"),
        (b"a@[192.0.2.1]", b"[192.0.2.1]", "[192.0.2.1]", "a@[192.0.2.1]"),
        (b"a@xn--a", b"xn--a", "xn--a", "a@xn--a"),
        ("a@💩.Example.".encode(), b"xn--ls8h.example", "💩.example", "a@💩.example"),
        (b"a@\xff", b"\xff", "\\xff", "a@\\xff"),
        (b"\xff@b", b"b", "b", "\\xff@b"),
        (b"\xff", b"", "", "\\xff"),
    ],
)
def test_what_is_odd(raw, ascii_domain, unicode_domain, text):
    address = Address(raw)
    assert (address.ascii_domain, address.unicode_domain, str(address)) == (
        ascii_domain,
        unicode_domain,
        text,
    )


def test_of_text():
    assert Address.of("<a@ü>", "SIZE=1") == Address("<a@ü>".encode())
    assert Address.of("a@b", "SIZE=1").args == (b"SIZE=1",)
    with pytest.raises(UnicodeEncodeError):
        Address.of("\ud800")


@given(st.binary(max_size=40), st.lists(st.binary(max_size=10), max_size=3))
def test_nothing_fails(raw, args):
    address = Address(raw, tuple(args))
    assert address == Address(raw)
    assert isinstance(str(address), str)
    assert isinstance(address.unicode_domain, str)
    assert len(address.parameters) <= len(args)
