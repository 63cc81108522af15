"""Addresses of next hops: what is read, how it is written again, and what is refused in which words."""

from pathlib import Path

import pytest

from milterchain.proxy.nexthop import DiscardHop, Hop, LMTPHop, MaildirHop, SMTPHop, parse_hop

HOPS = [
    ("smtp:127.0.0.1:10025", SMTPHop("127.0.0.1", 10025)),
    ("smtp:mx_1.example.org:25", SMTPHop("mx_1.example.org", 25)),
    ("smtp:[::1]:65535", SMTPHop("::1", 65535)),
    ("smtp:[fe80::1.2.3.4]:1", SMTPHop("fe80::1.2.3.4", 1)),
    ("smtps:mx.example.org:465", SMTPHop("mx.example.org", 465, implicit_tls=True)),
    ("lmtp:[::1]:24", LMTPHop(("::1", 24))),
    ("lmtp:127.0.0.1:24", LMTPHop(("127.0.0.1", 24))),
    ("lmtp:unix:/run/dovecot/lmtp", LMTPHop("/run/dovecot/lmtp")),
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
    "lmtp:mx",
    "lmtp:unix:",
    "lmtp:unix:/a\0b",
    "smtps:",
    "smtps:unix:/path",
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
