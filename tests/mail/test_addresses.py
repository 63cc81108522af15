import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.addresses import (
    MAX_ADDRESS,
    DomainSet,
    domain_matches,
    domain_of,
    extract_address,
    is_routed,
    is_safe,
    normalize_domain,
    same_address,
    same_domain,
    split_address,
)

GARBAGE = st.one_of(
    st.binary(max_size=30),
    st.text('ab@<>"\\.,:[]% xn-üÜß。\u200d', max_size=20).map(str.encode),
    st.sampled_from([b"xn--", b"xn--\xff", b"xn--zzzzzz99999", b"." * 300, b"[IPv6:]", b"[" + b"1" * 400]),
)


@pytest.mark.parametrize(
    ("address", "local", "domain"),
    [
        (b"a@b.example", b"a", b"b.example"),
        (b"<A@B.Example>", b"A", b"B.Example"),
        (b"<>", b"", b""),
        (b"", b"", b""),
        (b"postmaster", b"postmaster", b""),
        (b'"a@b"@c', b'"a@b"', b"c"),
        (rb'"a\"@b"@c', rb'"a\"@b"', b"c"),
        (b"a@b@c", b"a@b", b"c"),
        (b"<@one,@two:a@b>", b"a", b"b"),
        (b"@one:a@b", b"a", b"b"),
        (b'@one:"x@y"@b', b'"x@y"', b"b"),
        (b"@one", b"", b"one"),
        (b"a@[192.0.2.1]", b"a", b"[192.0.2.1]"),
        (b"a@[IPv6:2001:db8::1]", b"a", b"[IPv6:2001:db8::1]"),
        (b'"open@b', b'"open@b', b""),
        (b'a@"b"', b'a@"b"', b""),
        ("ü@ü.example".encode(), "ü".encode(), "ü.example".encode()),
    ],
)
def test_split(address, local, domain):
    assert split_address(address) == (local, domain)
    assert domain_of(address) == domain


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b"example.org", b"EXAMPLE.org.", True),
        ("bücher.example".encode(), b"xn--bcher-kva.example", True),
        ("BÜCHER.example".encode(), b"XN--BCHER-KVA.Example", True),
        ("straße.example".encode(), b"xn--strae-oqa.example", True),
        (b"example.org", b"example.com", False),
        (b"a.example.org", b"example.org", False),
        (b"", b"", True),
        (b"[192.0.2.1]", b"[192.0.2.1]", True),
        (b"[192.0.2.1]", b"192.0.2.1", False),
        (b"[IPv6:2001:DB8:0::1]", b"[ipv6:2001:db8::1]", True),
        (b"[IPv6:2001:db8::1]", b"[2001:db8::1]", False),
        (b"[general:X]", b"[General:x]", True),
        (b"[\xff]", b"[\xfe]", False),
        (b"\xff", b"\xff.", True),
        ("bücher。example。".encode(), b"xn--bcher-kva.example", True),
        (b"under_score.example", b"Under_Score.example", True),
        ("under_score.スパム".encode(), b"Under_Score.XN--ZCK5B2B.", True),
        ("💩.La".encode(), b"xn--ls8h.la", True),
        ("💩。スパム".encode(), b"xn--ls8h.xn--zck5b2b", True),
        ("-Bücher.example".encode(), "-bücher.example.".encode(), True),
        ("Ü".encode() * 64, "ü".encode() * 64, True),
        ("Ü".encode() * 64, "ü".encode() * 65, False),
        ("\u2488.example".encode(), b"1..example", False),
    ],
)
def test_same_domain(one, other, same):
    assert same_domain(one, other) is same
    assert same_domain(other, one) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b"<a@Example.org>", b"a@example.ORG", True),
        (b"A@example.org", b"a@example.org", False),
        (b"<@x:a@b>", b"a@b", True),
        (b"a", b"a", True),
        (b"a@b", b"a", False),
    ],
)
def test_same_address(one, other, same):
    assert same_address(one, other) is same


@pytest.mark.parametrize(
    ("domain", "matches"),
    [
        (b"example.org", True),
        (b"Example.ORG.", True),
        (b"sub.example.org", False),
        (b"example.com", False),
        (b"sub.example.com", True),
        (b"a.sub.example.com", True),
        (b"badexample.com", False),
        (b"xn--bcher-kva.example", True),
        ("x.bücher.test".encode(), True),
        (b"", False),
        (b".", False),
    ],
)
def test_domain_set(domain, matches):
    domains = [b"example.org", b".example.com", "bücher.example".encode(), b".xn--bcher-kva.test", b""]
    assert DomainSet(domains).matches(domain) is matches
    assert domain_matches(domain, iter(domains)) is matches


def test_no_domains():
    assert not DomainSet([]).matches(b"example.org")


@pytest.mark.parametrize(
    ("address", "routed"),
    [
        (b"a@b", False),
        (b"a%c@b", True),
        (b"c!a@b", True),
        (b'"a@c"@b', True),
        (b"a@c@b", True),
        (b"<@c:a@b>", False),
    ],
)
def test_is_routed(address, routed):
    assert is_routed(address) is routed


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (b"a@b", b"a@b"),
        (b"<a@b>", b"a@b"),
        (b" < a@b > ", b"a@b"),
        (b"Any One <a@b>", b"a@b"),
        (b'"One, <Any>" <a@b>', b"a@b"),
        (b'<"a b>"@c>', b'"a b>"@c'),
        (b"<>", b""),
        (b"", b""),
        ("ü@b".encode(), "ü@b".encode()),
        (b"a@b, c@d", None),
        (b"a@b> SIZE=1", None),
        (b"<a@b> NOTIFY=NEVER", None),
        (b"<<a@b>>", None),
        (b"a@b\r\nRCPT TO:<evil@c>", None),
        (b"<a@b\r\n>", None),
        (b'"a\r\n"@b', None),
        (b"a\0@b", None),
        (b"a@b\x7f", None),
        (b"\xff@b", None),
        (b'"open@b', None),
        (b"a" * MAX_ADDRESS, b"a" * MAX_ADDRESS),
        (b"a" * (MAX_ADDRESS + 1), None),
    ],
)
def test_extract_address(text, address):
    assert extract_address(text) == address


@given(st.text(max_size=70) | st.text("aÜ💩_-.。xn\u0300\u200d", max_size=70))
def test_what_is_normal_stays_so(text):
    domain = normalize_domain(f"{text}x".encode("utf-8", "replace"))
    assert normalize_domain(domain) == domain


@given(GARBAGE, GARBAGE)
def test_nothing_raises(one, other):
    for text in (one, other, b"<" + one + b">", one + b"@" + other):
        local, domain = split_address(text)
        assert isinstance(normalize_domain(domain), bytes)
        assert same_address(text, text)
        assert same_domain(text, text)
        is_routed(local)
        domain_matches(domain, [text])
        address = extract_address(text)
        assert not address or is_safe(address)


@given(GARBAGE)
def test_same_domain_is_symmetric(domain):
    assert same_domain(domain, domain.upper()) == same_domain(domain.upper(), domain)
