"""What milters are told besides the events themselves."""

import pytest

from milterchain.chain.client import AuthInfo, ClientInfo, TLSInfo, client_values, connect_event
from milterchain.chain.settings import DefaultAction, MilterSettings
from milterchain.chain.values import (
    MESSAGE_VALUES,
    content_values,
    mail_values,
    protocol_name,
    rcpt_values,
    refused_values,
)
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import parse_message
from milterchain.mail.replies import Reply
from milterchain.milter.endpoint import parse_endpoint
from milterchain.milter.flags import Command, Family, Protocol, Stage
from milterchain.milter.messages import Connect, Continue, Reject

C, H, M, R, T = Command.CONNECT, Command.HELO, Command.MAIL, Command.RCPT, Command.DATA
N, E = Command.END_OF_HEADERS, Command.END_OF_MESSAGE


async def test_by_stage(lab):
    milter = await lab.milter()
    session = await lab.session()
    await lab.play(session, "C H M R1 T E")
    connection = milter.connections[0]
    assert connection.codes_with_macros == "ODCCHDMMDRRDTTLLLDNNBDEE"
    connect = connection.macros(C)
    assert connect.pop(b"v").startswith(b"milterchain ")
    assert connect == {
        b"j": b"mx.test",
        b"_": b"client.test [192.0.2.7]",
        b"{daemon_name}": b"mx.test",
        b"{daemon_addr}": b"192.0.2.1",
        b"{daemon_port}": b"25",
        b"{if_name}": b"mx.test",
        b"{if_addr}": b"192.0.2.1",
        b"{client_addr}": b"192.0.2.7",
        b"{client_name}": b"client.test",
        b"{client_ptr}": b"client.test",
        b"{client_port}": b"4711",
        b"{client_resolve}": b"OK",
    }
    assert connection.macros(M) == {
        b"i": b"Q1",
        b"r": b"ESMTP",
        b"{mail_addr}": b"sender@a.test",
        b"{mail_host}": b"a.test",
        b"{mail_mailer}": b"smtp",
    }
    assert connection.macros(R) == {
        b"i": b"Q1",
        b"{rcpt_addr}": b"r1@b.test",
        b"{rcpt_host}": b"b.test",
        b"{rcpt_mailer}": b"smtp",
    }
    assert connection.macros(T) == connection.macros(N) == {b"i": b"Q1"}
    assert connection.macros(E) == {b"i": b"Q1", b"{msg_id}": b"<1@a.test>"}


async def test_what_a_milter_asks_for_replaces_the_rest(lab):
    wants = lab.wants(
        macros={
            Stage.CONNECT: (b"{j}", b"{client_ptr}", b"{nonsense}"),
            Stage.MAIL: (b"{i}", b"s", b"{msg_size}"),
            Stage.END_OF_MESSAGE: (b"{nrcpts}", b"msg_size", b"{rcpt_addr}", b"{mail_addr}"),
            Stage.RCPT: (),
        }
    )
    milter = await lab.milter(negotiate=wants)
    session = await lab.session({"macros": {Stage.MAIL: (b"client_name",), Stage.RCPT: (b"{client_name}",)}})
    await lab.play(session, "C H M R1 R2 T E")
    connection = milter.connections[0]
    assert connection.macros(C) == {b"{j}": b"mx.test", b"{client_ptr}": b"client.test"}
    assert connection.macros(M) == {b"{i}": b"Q1", b"s": b"client.test", b"{msg_size}": b"10"}
    assert connection.macros(E) == {
        b"{nrcpts}": b"2",
        b"msg_size": b"%d" % len(lab.raw),
        b"{rcpt_addr}": b"r2@b.test",
        b"{mail_addr}": b"sender@a.test",
    }
    assert connection.macros(R)[b"{client_name}"] == b"client.test"


async def test_macros_are_sent_although_the_event_is_declined(lab):
    milter = await lab.milter(negotiate=lab.wants(Protocol.NO_CONNECT, Protocol.NO_MAIL, Protocol.NO_RCPT))
    session = await lab.session()
    await lab.play(session, "C H M R1 T E")
    assert milter.connections[0].codes_with_macros == "ODCHDMDRDTTLLLDNNBDEE"


async def test_a_milter_forgets_what_it_asked_for_at_the_message_before(lab):
    """libmilter keeps the macros of MAIL until others come for MAIL; so none must come, too."""
    milter = await lab.milter(negotiate=lab.wants(macros={Stage.MAIL: (b"{auth_author}",)}))
    session = await lab.greeted()
    await session.mail(Path(b"<a@a.test>", (b"AUTH=joe@a.test",)), b"Q1")
    await session.mail(Path(b"<b@a.test>"), b"Q2")
    assert milter.connections[0].macros(M, 0) == {b"{auth_author}": b"joe@a.test"}
    assert milter.connections[0].macros(M, 1) == {}


async def test_nothing_of_a_message_is_left_for_the_next(lab):
    milter = await lab.milter()
    session = await lab.session()
    await lab.play(session, "C H M R1 T E")
    assert not set(session.macros) & set(MESSAGE_VALUES)
    await session.mail(Path(b"<>"), b"Q2")
    assert milter.connections[0].macros(M) == {
        b"i": b"Q2",
        b"r": b"ESMTP",
        b"{mail_addr}": b"",
        b"{mail_host}": b"",
        b"{mail_mailer}": b"smtp",
    }


async def test_tls_and_auth(lab):
    milter = await lab.milter()
    session = await lab.greeted()
    session.tls(TLSInfo(version=b"TLSv1.3", cipher=b"TLS_AES_256_GCM_SHA384", bits=256))
    await session.helo(b"client.test", True)
    session.auth(AuthInfo(mechanism=b"PLAIN", identity=b"joe"))
    await session.mail(Path(b"<a@a.test>", (b"AUTH=joe@a.test",)), b"Q1")
    connection = milter.connections[0]
    assert connection.macros(H) == {
        b"{tls_version}": b"TLSv1.3",
        b"{cipher}": b"TLS_AES_256_GCM_SHA384",
        b"{cipher_bits}": b"256",
    }
    mail = connection.macros(M)
    assert mail[b"r"] == b"ESMTPSA"
    assert (mail[b"{auth_type}"], mail[b"{auth_authen}"]) == (b"PLAIN", b"joe")
    assert mail[b"{auth_author}"] == b"joe@a.test"


async def test_auth_before_helo_changes_no_protocol(lab):
    session = await lab.session()
    session.auth(AuthInfo(mechanism=b"PLAIN", identity=b"joe", ssf=56))
    assert b"r" not in session.macros
    assert session.macros[b"auth_ssf"] == b"56"


INET6 = Family.INET6
CLIENTS = [
    (
        ClientInfo(address="192.0.2.7", family=Family.INET, port=5),
        Connect(hostname=b"[192.0.2.7]", family=Family.INET, port=5, address=b"192.0.2.7"),
        {
            b"_": b"unknown [192.0.2.7]",
            b"client_addr": b"192.0.2.7",
            b"client_name": b"unknown",
            b"client_ptr": b"unknown",
            b"client_resolve": b"FAIL",
        },
    ),
    (
        ClientInfo(address="2001:db8::7", family=INET6, port=5, ptr=b"liar.test", resolve=b"FORGED"),
        Connect(hostname=b"[2001:db8::7]", family=INET6, port=5, address=b"2001:db8::7"),
        {b"_": b"liar.test [2001:db8::7] (may be forged)", b"client_addr": b"IPv6:2001:db8::7"},
    ),
    (
        ClientInfo(address="::ffff:192.0.2.7", family=INET6, name=b"a.test", ptr=b"a.test"),
        Connect(hostname=b"a.test", family=Family.INET, address=b"192.0.2.7"),
        {b"_": b"a.test [192.0.2.7]", b"client_addr": b"192.0.2.7", b"client_port": b"0"},
    ),
    (
        ClientInfo(address="fe80::1%eth0", family=INET6, port=9),
        Connect(hostname=b"[fe80::1]", family=INET6, port=9, address=b"fe80::1"),
        {b"client_addr": b"IPv6:fe80::1"},
    ),
    (
        ClientInfo(address="/run/s", family=Family.UNIX, local_address="/run/s", port=3),
        Connect(hostname=b"localhost", family=Family.UNIX, address=b"/run/s"),
        {
            b"_": b"localhost",
            b"daemon_addr": b"/run/s",
            b"client_addr": None,
            b"client_name": b"localhost",
            b"client_ptr": b"localhost",
            b"client_resolve": b"OK",
            b"if_addr": None,
        },
    ),
    (
        ClientInfo(address="/" + "x" * 107, family=Family.UNIX),
        Connect(hostname=b"localhost"),
        {b"_": b"localhost"},
    ),
    (ClientInfo(), Connect(hostname=b"unknown"), {b"_": b"unknown", b"daemon_addr": None}),
    (
        ClientInfo(family=Family.INET, daemon_name=b"submission", connections=3, rate=7),
        Connect(hostname=b"unknown"),
        {b"client_connections": b"3", b"client_rate": b"7", b"daemon_name": b"submission"},
    ),
    (
        ClientInfo(address="127.0.0.1", family=Family.INET, local_address="127.0.0.1", local_port=25),
        Connect(hostname=b"[127.0.0.1]", family=Family.INET, address=b"127.0.0.1"),
        {b"if_addr": None, b"if_name": b"mx.test", b"daemon_port": b"25"},
    ),
    (
        ClientInfo(
            tls=TLSInfo(version=b"v", cipher=b"c", bits=1, subject=b"s", issuer=b"i", sni=b"n"),
            auth=AuthInfo(mechanism=b"m", identity=b"a"),
        ),
        Connect(hostname=b"unknown"),
        {
            b"cert_subject": b"s",
            b"cert_issuer": b"i",
            b"tls_sni": b"n",
            b"auth_type": b"m",
            b"auth_ssf": b"0",
        },
    ),
]


@pytest.mark.parametrize(("client", "event", "macros"), CLIENTS)
def test_clients(client, event, macros):
    assert connect_event(client) == event
    values = client_values(client, b"mx.test")
    assert {name: values.get(name) for name in macros} == macros


@pytest.mark.parametrize(
    ("esmtp", "tls", "auth", "name"),
    [
        (False, False, False, b"SMTP"),
        (False, True, True, b"SMTP"),
        (True, False, False, b"ESMTP"),
        (True, True, False, b"ESMTPS"),
        (True, False, True, b"ESMTPA"),
    ],
)
def test_protocol_names(esmtp, tls, auth, name):
    assert protocol_name(esmtp=esmtp, tls=tls, auth=auth) == name


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (Path(b"<a@B.test>"), {b"mail_addr": b"a@B.test", b"mail_host": b"B.test"}),
        (Path(b'"x@y"@b.test'), {b"mail_addr": b'"x@y"@b.test', b"mail_host": b"b.test"}),
        (Path(b"<local>"), {b"mail_addr": b"local", b"mail_host": b""}),
        (Path(b"<a@b>", (b"auth=<>", b"size=")), {b"auth_author": None, b"msg_size": None}),
        (Path(b"<a@b>", (b"auth=x", b"SIZE=5", b"8BITMIME")), {b"auth_author": b"x", b"msg_size": b"5"}),
    ],
)
def test_mail(path, values):
    known = mail_values(path, b"Q")
    assert {name: known.get(name) for name in values} == values


def test_rcpt():
    assert rcpt_values(Path(b"u@h")) == {b"rcpt_addr": b"u@h", b"rcpt_host": b"h", b"rcpt_mailer": b"smtp"}


@pytest.mark.parametrize(
    ("reply", "host", "text"),
    [
        (Reply.of(550, "5.1.1 no such user"), b"5.1.1", b"no such user"),
        (Reply.of(550, "no such user"), b"5.0.0", b"no such user"),
        (Reply.of(450, "later"), b"4.0.0", b"later"),
        (Reply.of(550, "5.1.1"), b"5.1.1", b""),
    ],
)
def test_refused(reply, host, text):
    assert refused_values(reply) == {b"rcpt_addr": text, b"rcpt_host": host, b"rcpt_mailer": b"error"}


@pytest.mark.parametrize(
    ("raw", "message_id"),
    [
        (b"A: b\r\nmessage-id:\r\n <x@y>\r\nMessage-Id: <2>\r\n\r\n", b"<x@y>"),
        (b"A: b\r\n\r\nMessage-Id: <2>\r\n", None),
        (b"Message-Id: <" + b"x" * 1000 + b">\r\n\r\n", None),
    ],
)
def test_content(raw, message_id):
    values = content_values(parse_message(raw), Envelope(Path(b"<>"), (Path(b"<a@b>"),)))
    assert values.get(b"msg_id") == message_id
    assert values[b"msg_size"] == b"%d" % len(raw)
    assert values[b"nrcpts"] == b"1"


ENDPOINT = parse_endpoint("inet:127.0.0.1:1")


@pytest.mark.parametrize(
    "wrong", [{"version": 1}, {"version": 7}, {"connect_timeout": 0}, {"content_timeout": float("nan")}]
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=r"version|timeout"):
        MilterSettings(name="m", endpoint=ENDPOINT, **wrong)


def test_settings_by_default():
    assert MilterSettings(name="m", endpoint=ENDPOINT, version=5).default_action is DefaultAction.TEMPFAIL


async def test_recipients_are_counted_with_the_one_that_is_asked_about(lab):
    """As Sendmail 8.17 does; when a milter is told again, too."""
    wants = lab.wants(macros={Stage.RCPT: (b"{nrcpts}",), Stage.DATA: (b"{nrcpts}",)})
    refuse = {R: lambda rcpt: Reject() if rcpt.address == b"<r2@b.test>" else Continue()}
    asking, _ = await lab.milter(negotiate=wants), await lab.milter(refuse)
    session = await lab.session()
    await lab.play(session, "C H M R1 R2 R3 T E")
    connection = asking.connections[0]
    assert connection.codes == "OCHMRRRAMRRTLLLNBE"
    told = [connection.macros(R, occurrence)[b"{nrcpts}"] for occurrence in range(5)]
    assert told == [b"1", b"2", b"2", b"1", b"2"]
    assert connection.macros(Command.DATA) == {b"{nrcpts}": b"2"}


def test_the_size_is_of_what_milters_see():
    raw = b"A: b\r\n\r\nbody\r\n"
    with parse_message(raw) as message:
        traced = message.with_own_received(b"Received: from here\r\n")
        assert content_values(traced, Envelope(Path(b"<>")))[b"msg_size"] == b"%d" % len(raw)
