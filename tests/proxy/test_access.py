from ipaddress import ip_network

import pytest

from milterchain.mail.envelope import Path
from milterchain.mail.replies import Reply
from milterchain.proxy.access import AccessRule

RULE = AccessRule(
    [ip_network("127.0.0.0/8"), ip_network("fd00::/8")],
    ["example.org", ".example.net", "xn--bcher-kva.example"],
)


@pytest.mark.parametrize(
    ("family", "address", "trusted"),
    [
        ("4", "127.0.0.1", True),
        ("4", "127.255.0.9", True),
        ("4", "128.0.0.1", False),
        ("6", "fd12::1", True),
        ("6", "2001:db8::1", False),
        ("L", "/run/smtp.sock", True),
        ("U", "", False),
    ],
)
def test_trusted_clients(family: str, address: str, *, trusted: bool) -> None:
    assert RULE.trusts(family, address) is trusted


@pytest.mark.parametrize(
    "recipient",
    [
        b"<a@example.org>",
        b"a@example.org",
        b"<a@EXAMPLE.org>",
        b"<a@example.org.>",
        b"<@hop.test:a@example.org>",
        b"<a@sub.example.net>",
        b"<a@deep.sub.example.net>",
        "<a@bücher.example>".encode(),
        b"<a@xn--bcher-kva.example>",
        b"<postmaster>",
        b"<PostMaster>",
    ],
)
def test_recipients_that_anybody_may_send_to(recipient: bytes) -> None:
    assert RULE.refuse(Path(recipient)) is None


@pytest.mark.parametrize(
    "recipient",
    [
        b"<a@other.test>",
        b"<a@sub.example.org>",
        b"<a@example.net>",
        b"<a@notexample.org>",
        b"<a@example.org.other.test>",
        b"<a>",
        b"<a%other.test@example.org>",
        b"<other.test!a@example.org>",
        b'<"a@other.test"@example.org>',
        b"<@example.org:a@other.test>",
        b"<a@[127.0.0.1]>",
        b"<>",
    ],
)
def test_recipients_that_only_trusted_clients_may_send_to(recipient: bytes) -> None:
    assert RULE.refuse(Path(recipient)) == Reply(554, (b"5.7.1 %b: Relay access denied" % recipient,))


def test_nothing_is_relayed_by_default() -> None:
    rule = AccessRule([], [])
    assert not rule.trusts("4", "127.0.0.1")
    assert rule.refuse(Path(b"<a@example.org>"))
