"""Every key's default, what may be written, and one clear line for each mistake."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from milterchain.config import Config, load, parse
from milterchain.config_types import (
    ListenAddress,
    parse_duration,
    parse_listen,
    parse_nameserver,
    parse_size,
)
from milterchain.errors import ConfigurationError
from milterchain.milter.flags import Stage

MILTER = '[[milter]]\naddress = "inet:127.0.0.1:8891"\n'
LATER = "is not supported by this version yet; leave it out"
STAGES = "connect, helo, mail, rcpt, data, end_of_message, end_of_headers"


def write(directory: Path, text: str) -> Path:
    path = directory / "milterchain.toml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(directory: Path, text: str) -> list[str]:
    path = write(directory, text)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    for line in caught.value.mistakes:
        assert "\n" not in line
        assert line.startswith(f"{path}: ")
    return [line.removeprefix(f"{path}: ") for line in caught.value.mistakes]


def test_every_key_but_the_address_has_a_default(tmp_path: Path) -> None:
    config = load(write(tmp_path, MILTER))
    milter = config.milter[0]
    assert str(config.listen[0].address) == "127.0.0.1:2525"
    assert config.access.trusted_networks == (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    assert config.access.relay_domains == ()
    assert milter.name == "inet:127.0.0.1:8891"
    assert (milter.default_action, milter.mode, milter.protocol) == ("tempfail", "enforce", 6)
    assert (milter.connect_timeout, milter.command_timeout, milter.content_timeout) == (30, 30, 300)
    assert (milter.header_index, milter.on_rejected_recipient, milter.pipeline) == (
        "postfix",
        "replay",
        "auto",
    )
    assert milter.reuse is False
    assert (config.relay.received, config.relay.on_refused_added_recipient) == (True, "tempfail")
    assert config.limits.message_size == 50 * 2**20
    assert config.limits.message_timeout == 540
    assert (config.limits.recipients, config.limits.connections) == (1000, 1000)
    assert (config.limits.connections_per_client, config.limits.errors) == (50, 20)
    assert (config.limits.received_hops, config.limits.messages_per_connection) == (100, None)
    assert (config.log.format, config.log.level) == ("auto", "info")
    assert (config.listen[0].proxy_protocol_from, config.listen[0].xclient_from) == ((), ())
    assert (config.dns.lookup, config.dns.servers, config.dns.timeout) == (True, (), 3)
    assert config.metrics.address is None
    assert config.hostname


EVERYTHING = """
hostname = "mx.example.org"
workers = 1
[[listen]]
name = "smtp"
address = "[::1]:25"
[[listen]]
address = "unix:run/smtp.sock"
[[listen]]
address = "[::1]:465"
[listen.tls]
certificate = "cert.pem"
key = "/key.pem"
mode = "implicit"
required = true
minimum_version = "1.3"
ciphers = "HIGH"
client_certificates = "require"
client_ca = "ca.pem"
[listen.auth]
backend = "file"
path = "users"
allow_plaintext = true
required = true
[access]
trusted_networks = ["10.0.0.0/8", "fd00::1"]
relay_domains = ["example.org", ".example.net", "bücher.example"]
[[milter]]
name = "opendkim"
address = "unix:run/opendkim.sock"
mode = "observe"
default_action = "shutdown"
connect_timeout = "1s"
command_timeout = "2m"
content_timeout = 3
protocol = 2
header_index = "sendmail"
on_rejected_recipient = "keep"
pipeline = "off"
reuse = true
macros = { mail = ["i", "{mail_addr}"], end_of_message = [] }
authenticated = "never"
clients = ["10.0.0.0/8"]
not_clients = ["10.0.0.5", "fd00::/8"]
listeners = ["smtp"]
sender_domains = ["bücher.example"]
recipient_domains = [".example.org"]
[breaker]
failures = 3
rest = "2s"
directory = "state"
[relay]
next_hop = ["smtp:127.0.0.1:10025", "maildir:mail"]
tls = "none"
client_identity = "none"
received = false
connect_timeout = "500ms"
command_timeout = "1.5h"
data_done_timeout = "10m"
on_refused_added_recipient = "log"
[quarantine]
action = "hold"
directory = "held"
next_hop = "maildir:spam"
[limits]
message_size = "10MB"
recipients = 5
connections = 6
connections_per_client = 7
messages_per_connection = 12
command_timeout = "8s"
message_timeout = "9s"
errors = 10
failed_logins = 13
received_hops = 11
[log]
format = "json"
level = "debug"
"""


def test_everything_that_this_version_can_do(tmp_path: Path) -> None:
    config = load(write(tmp_path, EVERYTHING))
    assert config.hostname == "mx.example.org"
    assert [str(listen.address) for listen in config.listen] == [
        "[::1]:25",
        f"unix:{tmp_path}/run/smtp.sock",
        "[::1]:465",
    ]
    tls, auth = config.listen[2].tls, config.listen[2].auth
    assert tls is not None
    assert (tls.certificate, tls.key, tls.client_ca) == (
        tmp_path / "cert.pem",
        Path("/key.pem"),
        tmp_path / "ca.pem",
    )
    assert (tls.mode, tls.required, tls.minimum_version, tls.ciphers) == ("implicit", True, "1.3", "HIGH")
    assert auth is not None
    assert (auth.path, auth.allow_plaintext, auth.required) == (tmp_path / "users", True, True)
    assert config.access.relay_domains == ("example.org", ".example.net", "xn--bcher-kva.example")
    milter = config.milter[0]
    assert str(milter.address) == f"unix:{tmp_path}/run/opendkim.sock"
    assert (milter.connect_timeout, milter.command_timeout, milter.content_timeout) == (1, 120, 3)
    assert milter.reuse is True
    assert (milter.sender_domains, milter.recipient_domains) == (
        ("xn--bcher-kva.example",),
        (".example.org",),
    )
    assert (config.breaker.failures, config.breaker.directory) == (3, tmp_path / "state")
    assert milter.macros == {Stage.MAIL: (b"i", b"{mail_addr}"), Stage.END_OF_MESSAGE: ()}
    assert str(tmp_path / "mail") in str(config.relay.next_hop[1])
    assert config.quarantine.directory == tmp_path / "held"
    assert str(config.quarantine.next_hop) == f"maildir:{tmp_path}/spam"
    assert (config.relay.connect_timeout, config.relay.command_timeout) == (0.5, 5400)
    assert config.limits.message_size == 10_000_000
    assert (config.limits.messages_per_connection, config.limits.failed_logins) == (12, 13)


def test_the_quarantine_is_beside_the_file(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")).quarantine.directory == tmp_path / "quarantine"


MISTAKES = {
    "unknown key, near": ("lisen = 1", "lisen: there is no such key; did you mean listen?"),
    "unknown key, deep": (
        MILTER + "defualt_action = 1",
        "milter[1].defualt_action: there is no such key; did you mean default_action?",
    ),
    "unknown key, far": ("[log]\nzzz = 1", "log.zzz: there is no such key; allowed are format, level"),
    "unknown key, and keys for later": (
        "[[listen]]\nzzz = 1",
        (
            "listen[1].zzz: there is no such key; allowed are address, auth, name, proxy_protocol_from, tls,"
            " xclient_from"
        ),
    ),
    "key of a table": (
        'relay_domains = ["example.org"]',
        "relay_domains: there is no such key; did you mean access.relay_domains?",
    ),
    "key of several tables": (
        'address = "127.0.0.1:25"',
        "address: there is no such key; did you mean address in [[listen]] or address in [[milter]]?",
    ),
    "choice of actions": (
        '[quarantine]\naction = "keep"',
        "quarantine.action: 'keep' is not one of hold, next-hop, header, tempfail, reject",
    ),
    "quarantine by LMTP": (
        '[quarantine]\nnext_hop = "lmtp:unix:/x"',
        (
            "quarantine.next_hop: 'lmtp:unix:/x' would answer for each recipient, the client hears one answer"
            " for all; allowed are smtp:HOST:PORT, smtps:HOST:PORT, maildir:/PATH and discard:"
        ),
    ),
    "no directory": (
        "[quarantine]\ndirectory = 5",
        "quarantine.directory: 5 is not a directory; write it as /var/lib/milterchain/quarantine",
    ),
    "choice of one": (
        MILTER + 'mode = "watch"',
        "milter[1].mode: 'watch' is not one of enforce, observe",
    ),
    "choice": (
        MILTER + MILTER + 'name = "b"\ndefault_action = "acept"',
        "milter[2].default_action: 'acept' is not one of accept, reject, tempfail, quarantine, shutdown",
    ),
    "no such listener": (
        MILTER + 'listeners = ["smtp", "submission"]',
        "milter[1].listeners[2]: 'submission' is not the name of a listener; there are smtp",
    ),
    "no domain": (
        MILTER + 'recipient_domains = ["a b"]',
        (
            "milter[1].recipient_domains[1]: 'a b' is not a domain; write it as example.org,"
            " or .example.org for its subdomains"
        ),
    ),
    "missing": ('[[milter]]\nname = "x"', "milter[1].address: is missing; it has no default"),
    "too small": ("[limits]\nerrors = 0", "limits.errors: 0 is too small; the least is 1"),
    "too large": (MILTER + "protocol = 7", "milter[1].protocol: 7 is too large; the most is 6"),
    "no number": ('[limits]\nerrors = "5"', "limits.errors: '5' is not a whole number"),
    "no boolean": ("[relay]\nreceived = 1", "relay.received: 1 is not true or false"),
    "no table": ("access = 1", "access: 1 is not a table"),
    "no list": ("listen = 1", "listen: 1 is not a list; write [[listen]] above each table"),
    "no string": (MILTER + "name = 1", "milter[1].name: 1 is not a string"),
    "no macros table": (MILTER + "macros = 1", "milter[1].macros: 1 is not a table"),
    "bad name": (
        MILTER + 'name = "a b"',
        "milter[1].name: 'a b' is not a name; printable ASCII without spaces is allowed",
    ),
    "long name": (
        f'{MILTER}name = "{"n" * 101}"',
        f"milter[1].name: '{'n' * 56}... is too long; 100 characters are allowed",
    ),
    "same name": (
        MILTER + 'name = "a"\n' + MILTER.replace("8891", "8892") + 'name = "a"',
        "milter[2].name: 'a' is the name of milter[1] too; names must differ",
    ),
    "same milter without names": (
        MILTER + MILTER,
        (
            "milter[2].name: 'inet:127.0.0.1:8891' is the name of milter[1] too; names must differ"
            " (the address is the default: set name)"
        ),
    ),
    "same listener": (
        '[[listen]]\naddress = "localhost:25"\n[[listen]]\nname = "b"\naddress = "127.0.0.1:25"',
        "listen[2].address: '127.0.0.1:25' is the address of listen[1] too; addresses must differ",
    ),
    "no listener": ("listen = []", "listen: is empty; at least one is needed"),
    "no next hop": ("[relay]\nnext_hop = []", "relay.next_hop: is empty; at least one is needed"),
    "host name": (
        'hostname = "a b"',
        "hostname: 'a b' is not a host name; letters, digits, hyphens and dots are allowed",
    ),
    "size": (
        '[limits]\nmessage_size = "5 stones"',
        "limits.message_size: '5 stones' is not a size; write it as 50MiB, 64KiB, 10MB or a number of bytes",
    ),
    "time": (
        '[limits]\nmessage_timeout = "0s"',
        "limits.message_timeout: '0s' is not a time; write it as 30s, 5m, 1h or a number of seconds above 0",
    ),
    "listen address": (
        '[[listen]]\naddress = "example.org:25"',
        (
            "listen[1].address: 'example.org:25' is not an address to listen on;"
            " write it as 127.0.0.1:2525, [::]:25 or unix:/path"
        ),
    ),
    "host bits": (
        '[access]\ntrusted_networks = ["::1", "10.0.0.1/8"]',
        "access.trusted_networks[2]: '10.0.0.1/8' is not a network; its host bits must be 0",
    ),
    "network": (
        '[access]\ntrusted_networks = ["lan"]',
        "access.trusted_networks[1]: 'lan' is not a network; write it as 10.0.0.0/8 or ::1",
    ),
    "domain": (
        '[access]\nrelay_domains = ["a..b"]',
        (
            "access.relay_domains[1]: 'a..b' is not a domain;"
            " write it as example.org, or .example.org for its subdomains"
        ),
    ),
    "macro": (
        MILTER + 'macros = { mail = ["mail_addr"] }',
        (
            "milter[1].macros.mail[1]: 'mail_addr' is not the name of a macro;"
            " write one letter bare (i) and longer names in braces ({mail_addr})"
        ),
    ),
    "workers": ('workers = "many"', "workers: 'many' is not a number of processes; write 1 or more, or auto"),
    "no worker": ("workers = 0", "workers: 0 is not a number of processes; write 1 or more, or auto"),
    "a table that should be several": (
        '[milter]\naddress = "inet:127.0.0.1:8891"',
        "milter: {'address': 'inet:127.0.0.1:8891'} is not a list; write [[milter]] above each table",
    ),
    "a value that should be several tables": (
        'listen = "127.0.0.1:25"',
        "listen: '127.0.0.1:25' is not a list; write [[listen]] above each table",
    ),
    "one value that should be a list": (
        '[relay]\nnext_hop = "discard:"',
        "relay.next_hop: 'discard:' is not a list; write it in [brackets]",
    ),
    "a key that is more than a word": (
        '[limits]\n"a\\u001b[31m\\nb.c" = 1',
        (
            r"limits.'a\x1b[31m\nb.c': there is no such key; allowed are command_timeout, connections,"
            " connections_per_client, errors, failed_logins, message_size, message_timeout,"
            " messages_per_connection, received_hops, recipients"
        ),
    ),
    "one macro that should be a list": (
        MILTER + 'macros = { mail = "i" }',
        "milter[1].macros.mail: 'i' is not a list; write it in [brackets]",
    ),
    "TLS without a certificate": (
        '[[listen]]\ntls = { key = "k" }',
        "listen[1].tls.certificate: is missing; it has no default",
    ),
    "an empty path": (
        '[[listen]]\ntls = { certificate = "" }',
        "listen[1].tls.certificate: '' is not the path of a file",
    ),
    "an old protocol": (
        '[[listen]]\ntls = { certificate = "c", minimum_version = "1.0" }',
        "listen[1].tls.minimum_version: '1.0' is not one of 1.2, 1.3",
    ),
    "client certificates that nobody signs": (
        '[[listen]]\ntls = { certificate = "c", client_certificates = "require" }',
        "listen[1].tls: client_certificates and client_ca need each other; set both or none",
    ),
    "passwords in the clear": (
        '[[listen]]\nauth = { backend = "next-hop" }',
        "listen[1].auth: needs tls, lest passwords are read on the way; or set allow_plaintext = true",
    ),
    "users without a file": (
        '[[listen]]\nauth = { backend = "file", allow_plaintext = true }',
        "listen[1].auth: path belongs to the backend file, and to no other; set both or none",
    ),
    "macro stage": (
        MILTER + 'macros = { eom = ["i"] }',
        f"milter[1].macros.eom: 'eom' is not one of {STAGES}",
    ),
}


@pytest.mark.parametrize(("text", "line"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_clear_line(tmp_path: Path, text: str, line: str) -> None:
    assert mistakes(tmp_path, text) == [line]


NOT_YET = {
    "workers = 2": "workers: 2: more than one worker",
    'workers = "auto"': "workers: 'auto': more than one worker",
    '[metrics]\naddress = "127.0.0.1:9125"': "metrics.address: metrics",
}


@pytest.mark.parametrize(("text", "line"), NOT_YET.items(), ids=NOT_YET.values())
def test_a_key_of_a_later_version_is_refused_in_plain_words(tmp_path: Path, text: str, line: str) -> None:
    assert mistakes(tmp_path, text) == [f"{line} {LATER}"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (MILTER.replace("inet:127.0.0.1:8891", "inet:nowhere"), "milter[1].address: "),
        ("[[milter]]\naddress = 5", "milter[1].address: "),
        ('[relay]\nnext_hop = ["127.0.0.1"]', "relay.next_hop[1]: "),
        ('[relay]\nnext_hop = ["smtps:127.0.0.1"]', "relay.next_hop[1]: "),
    ],
)
def test_addresses_are_read(tmp_path: Path, text: str, part: str) -> None:
    (line,) = mistakes(tmp_path, text)
    assert line.startswith(part)


def test_ports_that_the_system_chooses_differ_anyway(tmp_path: Path) -> None:
    config = load(write(tmp_path, '[[listen]]\naddress = "127.0.0.1:0"\n' * 2))
    assert len(config.listen) == 2


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    assert len(mistakes(tmp_path, MILTER + 'mode = "x"\nprotocol = 1\n[log]\nlevel = "loud"')) == 3


def test_what_is_no_configuration_file(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "a = ")[0].startswith("is not TOML: ")
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        load(tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'hostname = "\xe9"')
    with pytest.raises(ConfigurationError, match="byte 12 is not UTF-8"):
        load(latin)
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (4 * 2**20 + 1))
    with pytest.raises(ConfigurationError, match="is too large"):
        load(huge)


def test_a_configuration_cannot_be_changed() -> None:
    config = parse({}, "test", Path())
    with pytest.raises(ValueError, match="frozen"):
        config.hostname = "x"
    assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (17, 17),
        ("17", 17),
        ("2KiB", 2048),
        ("1.5 MiB", 1572864),
        ("2kB", 2000),
        ("1GB", 10**9),
        ("8B", 8),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", [-1, True, None, "", "MiB", "5 XiB", "1e3", "٣"])
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(3, 3), (0.5, 0.5), ("30s", 30), ("5m", 300), ("2h", 7200), ("250ms", 0.25), ("7", 7)],
)
def test_times(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [0, -1, True, None, "", "s", "5d", "-5s", float("inf"), float("nan")])
def test_no_times(text: object) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:2525", ListenAddress(host="127.0.0.1", port=2525)),
        ("localhost:0", ListenAddress(host="127.0.0.1", port=0)),
        ("[::]:25", ListenAddress(host="::", port=25)),
        ("unix:/a/b", ListenAddress(path=Path("/a/b"))),
        ("unix:b", ListenAddress(path=Path("/base/b"))),
    ],
)
def test_listen_addresses(text: str, address: ListenAddress) -> None:
    assert parse_listen(text, Path("/base")) == address
    assert parse_listen(str(address), Path("/base")) == address


@pytest.mark.parametrize(
    "text", [5, "", "25", ":25", "::1:25", "[127.0.0.1]:25", "127.0.0.1", "127.0.0.1:65536", "unix:", "[::]"]
)
def test_no_listen_addresses(text: object) -> None:
    with pytest.raises(ValueError, match="is not an address to listen on"):
        parse_listen(text, Path("/base"))


def test_files_of_the_relay_are_under_the_configuration(tmp_path: Path) -> None:
    text = """
        [relay]
        next_hop = ["smtps:mx.example.org:465", "lmtp:unix:lmtp"]
        tls = "verify"
        tls_ca_file = "ca.pem"
        auth = { user = "me", password_file = "/etc/password" }
    """
    relay = load(write(tmp_path, text)).relay
    assert relay.tls_ca_file == str(tmp_path / "ca.pem")
    assert relay.auth is not None
    assert relay.auth.password_file == "/etc/password"
    assert str(relay.next_hop[1]) == f"lmtp:unix:{tmp_path / 'lmtp'}"


LOGIN = '[relay]\nauth = { user = "me", password_file = "p" }\n'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (LOGIN + 'client_identity = "xclient"', "relay.client_identity: 'xclient' would undo the login"),
        ('[relay]\ntls = "must"', "relay.tls: 'must' is not one of none, may, encrypt, verify"),
        ("[relay]\nauth = { user = 'me' }", "relay.auth.password_file: is missing; it has no default"),
    ],
)
def test_mistakes_of_the_relay(tmp_path: Path, text: str, line: str) -> None:
    (mistake,) = mistakes(tmp_path, text)
    assert mistake.startswith(line)


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("2001:DB8::53", ("2001:db8::53", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("[::1]:5353", ("::1", 5353)),
    ],
)
def test_dns_servers(text: str, server: tuple[str, int]) -> None:
    assert parse_nameserver(text) == server


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dns.example",
        "192.0.2.256",
        "192.0.2.53:",
        "192.0.2.53:0",
        "[::1]",
        "fe80::1%eth0",
        53,
        "127.0.0.1:65536",
    ],
)
def test_no_dns_servers(text: object) -> None:
    with pytest.raises(ValueError, match="is not a DNS server"):
        parse_nameserver(text)


def test_who_may_speak_for_others(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path, '[[listen]]\nproxy_protocol_from = ["10.0.0.5"]\nxclient_from = ["10.0.0.0/8", "::1"]'
        )
    )
    assert config.listen[0].proxy_protocol_from == (ip_network("10.0.0.5/32"),)
    assert config.listen[0].xclient_from == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    line = "listen[1].xclient_from[1]: 'mx.example' is not a network; write it as 10.0.0.0/8 or ::1"
    assert mistakes(tmp_path, '[[listen]]\nxclient_from = ["mx.example"]') == [line]
