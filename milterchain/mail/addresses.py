"""Mail addresses as bytes: their parts, and whether two of them mean the same.

Addresses travel as they were typed; this module only looks at them. It takes anything, never raises, and
treats what is no address as an address without a domain.

Local parts are compared byte for byte (RFC 5321 2.4). Domains are compared as DNS sees them: without regard
to case, a final dot, or whether they are written in Unicode or as A-labels (IDNA 2008); literals by the
address that they mean.
"""

import functools
import ipaddress
import re
from collections.abc import Iterable

import idna

from milterchain.mail.envelope import bare

__all__ = [
    "MAX_ADDRESS",
    "DomainSet",
    "address_key",
    "domain_matches",
    "domain_of",
    "extract_address",
    "is_routed",
    "is_safe",
    "normalize_domain",
    "same_address",
    "same_domain",
    "split_address",
]

MAX_ADDRESS = 1000
"""Octets of an address. RFC 5321 4.5.3.1.3 says 256; signed and rewritten senders exceed it."""

_CACHED_DOMAINS = 4096
_LABEL = 63
"""Octets of a label in DNS, hence characters that are worth encoding: it takes the square of the time."""
_QUOTED = rb'"(?:[^"\\]|\\.)*"'
# `@a,@b:` before the address proper (RFC 5321 4.1.1.3: to be ignored).
_ROUTE = re.compile(rb"@[^@:\"\s]+(?:,@[^@:\"\s]+)*:")
_ADDRESS = re.compile(rb"(?P<local>(?:%b|[^\"])*)@(?P<domain>[^@\"]*)" % _QUOTED, re.DOTALL)
_SAFE = re.compile(rb"(?:%b|[^\"<>\s])+" % _QUOTED)
_MAILBOX = re.compile(rb"(?:%b|[^\"<>])*<(?P<address>(?:%b|[^\"<>])*)>" % (_QUOTED, _QUOTED))
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_IPV6_TAG = b"ipv6:"


def split_address(address: bytes) -> tuple[bytes, bytes]:
    """Local part and domain, as typed; brackets and source route are left out.

    A quoted local part keeps its quotes and may contain `@`. The domain is empty where there is none.
    """
    address = bare(address)
    route = _ROUTE.match(address)
    if route:
        address = address[route.end() :]
    match = _ADDRESS.fullmatch(address)
    return (match["local"], match["domain"]) if match else (address, b"")


def domain_of(address: bytes) -> bytes:
    """The domain as typed; empty where there is none."""
    return split_address(address)[1]


@functools.lru_cache(_CACHED_DOMAINS)
def normalize_domain(domain: bytes) -> bytes:
    """The form of a domain that is equal for equal domains: lower case, A-labels, no final dot.

    What is no domain comes back in lower case.
    """
    if domain[:1] == b"[" and domain[-1:] == b"]":
        return _normalize_literal(domain[1:-1].lower())
    domain = domain.removesuffix(b".").lower()
    if domain.isascii() and b"xn--" not in domain:
        return domain
    try:
        text = domain.decode("utf-8")
        try:
            return idna.encode(text, uts46=True).removesuffix(b".")
        except idna.IDNAError:
            return _normalize_labels(text)
    except UnicodeError:  # includes idna.IDNAError
        return domain


def _normalize_labels(domain: str) -> bytes:
    """The same for what IDNA 2008 forbids and DNS has: emoji, underscores beside other scripts.

    Raises:
        idna.IDNAError: a character that no domain can have.
    """
    labels = idna.uts46_remap(domain, std3_rules=False).removesuffix(".").split(".")
    return b".".join(map(_normalize_label, labels))


def _normalize_label(label: str) -> bytes:
    if label.isascii() or len(label) > _LABEL:
        return label.encode("utf-8")
    return b"xn--" + label.encode("punycode")


def _normalize_literal(literal: bytes) -> bytes:
    tag = _IPV6_TAG if literal.startswith(_IPV6_TAG) else b""
    try:
        address = ipaddress.ip_address(literal.removeprefix(tag).decode("ascii"))
    except ValueError:  # includes UnicodeDecodeError
        return b"[%b]" % literal
    return b"[%b%b]" % (tag, address.compressed.encode("ascii"))


def same_domain(one: bytes, other: bytes) -> bool:
    """Whether two domains, as typed, are the same."""
    return one == other or normalize_domain(one) == normalize_domain(other)


def address_key(address: bytes) -> tuple[bytes, bytes]:
    """What is equal for addresses that reach the same mailbox, as far as one can know without its host."""
    local, domain = split_address(address)
    return local, normalize_domain(domain)


def same_address(one: bytes, other: bytes) -> bool:
    """Whether two addresses reach the same mailbox, as far as one can know without its host."""
    return address_key(one) == address_key(other)


class DomainSet:
    """Domains to compare with: `example.org` is itself, `.example.org` every domain below it."""

    __slots__ = ("_exact", "_parents")

    def __init__(self, domains: Iterable[bytes]) -> None:
        given = list(domains)
        self._exact = frozenset(normalize_domain(domain) for domain in given if domain[:1] != b".")
        self._parents = tuple(b"." + normalize_domain(domain[1:]) for domain in given if domain[:1] == b".")

    def matches(self, domain: bytes) -> bool:
        """Whether a domain, as typed, is among them; the empty domain never is."""
        domain = normalize_domain(domain)
        return bool(domain) and (domain in self._exact or domain.endswith(self._parents))


def domain_matches(domain: bytes, domains: Iterable[bytes]) -> bool:
    """Whether a domain is among others, as `DomainSet` understands them."""
    return DomainSet(domains).matches(domain)


def is_routed(address: bytes) -> bool:
    """Whether the local part may make a later host send the mail elsewhere (`a%b@c`, `b!a@c`, `"a@b"@c`).

    A relay that trusts the domain of such an address may find itself an open one.
    """
    return any(mark in split_address(address)[0] for mark in (b"@", b"%", b"!"))


def is_safe(address: bytes) -> bool:
    """Whether an address without brackets may be written into an SMTP command.

    It has no control characters, is UTF-8, and has blanks and angle brackets only inside quotes.
    """
    if not 0 < len(address) <= MAX_ADDRESS or _CONTROL.search(address) or not _SAFE.fullmatch(address):
        return False
    try:
        address.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def extract_address(text: bytes) -> bytes | None:
    """The address in what a milter gives as one: `a@b`, `<a@b>` or `Anyone <a@b>`, without brackets.

    Empty for `<>` and for nothing; None for what must not be written into an SMTP command.
    """
    if _CONTROL.search(text):
        return None
    text = text.strip(b" ")
    match = _MAILBOX.fullmatch(text)
    address = match["address"].strip(b" ") if match else text
    return address if not address or is_safe(address) else None
