"""Addresses of next hops: what is read, how it is written again, and what is refused in which words."""

from pathlib import Path

import pytest

from milterchain.proxy.nexthop import DiscardHop, Hop, MaildirHop, SMTPHop, parse_hop

HOPS = [
    ("smtp:127.0.0.1:10025", SMTPHop("127.0.0.1", 10025)),
    ("smtp:mx_1.example.org:25", SMTPHop("mx_1.example.org", 25)),
    ("smtp:[::1]:65535", SMTPHop("::1", 65535)),
    ("smtp:[fe80::1.2.3.4]:1", SMTPHop("fe80::1.2.3.4", 1)),
    ("maildir:/var/mail/all", MaildirHop(Path("/var/mail/all"))),
    ("maildir:here", MaildirHop(Path("here"))),
    ("discard:", DiscardHop()),
]

MISTAKES = [
    "",
    "smtp",
    "smtp:",
    "smtp:mx.example.org",
    "smtp:mx.example.org:",
    "smtp:mx.example.org:0",
    "smtp:mx.example.org:65536",
    "smtp:mx.example.org:smtp",
    "smtp:mx.example.org:25 ",
    "smtp:mx.example.org:\uff12\uff15",
    "smtp::25",
    "smtp:::1:25",
    "smtp:[]:25",
    "smtp:a b:25",
    "smtp:a\n:25",
    "smtp:unix:/path",
    "SMTP:mx:25",
    "inet:127.0.0.1:25",
    "maildir:",
    "maildir:/a\0b",
    "discard",
    "discard:all",
    "lmtp:",
    "/var/mail",
]


@pytest.mark.parametrize(("text", "hop"), HOPS)
def test_an_address_is_read_and_written_again(text: str, hop: Hop) -> None:
    assert parse_hop(text) == hop
    assert str(hop) == text


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a next hop; allowed: smtp:HOST:PORT, .*discard:$"):
        parse_hop(text)


@pytest.mark.parametrize("text", ["smtps:mx:465", "lmtp:mx:24", "lmtp:unix:/run/lmtp"])
def test_what_is_not_there_yet_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="is not available yet; allowed: smtp:HOST:PORT"):
        parse_hop(text)
