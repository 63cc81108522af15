"""The grammar: what passes comes out byte for byte, what does not says why."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import SMTPSyntaxError
from milterchain.mail.envelope import Path
from milterchain.smtp.grammar import parse_command, parse_helo, parse_mail, parse_rcpt

MAIL = frozenset({b"SIZE", b"BODY", b"SMTPUTF8", b"RET", b"ENVID"})
RCPT = frozenset({b"NOTIFY", b"ORCPT"})
LONG_DOMAIN = b"a" * 63 + b"." + b"b" * 63 + b"." + b"c" * 63 + b"." + b"d" * 63
VALUE_ERROR = (501, "5.5.4")
SENDER_ERROR = (501, "5.1.7")
RECIPIENT_ERROR = (501, "5.1.3")


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        (b"QUIT", b"QUIT", b""),
        (b"quit", b"QUIT", b""),
        (b"NOOP ", b"NOOP", b""),
        (b"MAIL FROM:<a@b> SIZE=1", b"MAIL", b"FROM:<a@b> SIZE=1"),
        (b"mail \t FROM:<A@b>\t ", b"MAIL", b"FROM:<A@b>"),
        (b"HELO\tx", b"HELO", b"x"),
        (b" NOOP", b"", b"NOOP"),
        (b"   ", b"", b""),
        (b"\xff\xfe x", b"\xff\xfe", b"x"),
        (b"GET / HTTP/1.1", b"GET", b"/ HTTP/1.1"),
    ],
)
def test_command(line, verb, argument):
    assert parse_command(line) == (verb, argument)


@pytest.mark.parametrize(
    "line", [b"", b"NO\x00OP", b"NOOP\r", b"MAIL FROM:<a\rb>", b"X\n", b"X \x7f", b"X \x0b"]
)
def test_no_command(line):
    with pytest.raises(SMTPSyntaxError) as error:
        parse_command(line)
    assert (error.value.code, error.value.status) == (500, "5.5.2")


@pytest.mark.parametrize(
    "name",
    [
        b"mx.example.org",
        b"localhost",
        b"[192.0.2.1]",
        b"[IPv6:2001:db8::1]",
        b"a_b",
        b"192.0.2.1",
        b"x" * 255,
    ],
)
def test_helo(name):
    assert parse_helo(name) == name


@pytest.mark.parametrize(
    "name", [b"", b"a b", b"a\rd", b"a\x00", b"<a>", b"a;b", b"a(b)", b"x" * 256, b"\xc3\xa9"]
)
def test_no_helo(name):
    with pytest.raises(SMTPSyntaxError) as error:
        parse_helo(name)
    assert (error.value.code, error.value.status) == VALUE_ERROR


ADDRESSES = [
    b"<a@b>",
    b"<A.b+c@Example.ORG>",
    b"a@b",
    b"<root>",
    b"postmaster",
    b'<"a b"@x>',
    b'<"a\\"b>"@x>',
    b'"quoted only"@x',
    b'<""@x>',
    b"<a..b.@x>",
    b"<.a@x>",
    b"<a@x.>",
    b"<a@x_y.example>",
    b"<a@[192.0.2.1]>",
    b"<a@[IPv6:2001:db8::1]>",
    b"<a@[ipv6:::ffff:192.0.2.1]>",
    b"<@relay.example,@other.example:a@b>",
    b"<=?utf-8?q?x=0d=0aRCPT_TO:=3cevil?=@ex.com>".replace(b":", b"").replace(b"?=@", b"?=@"),
    b"<a!b%c@d>",
    b"<" + b"v" * 200 + b"@x>",
    b"<a@" + LONG_DOMAIN + b">",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_address(address):
    assert parse_mail(b"FROM:" + address, MAIL) == (Path(address), {})
    assert parse_mail(b"from: " + address + b" SIZE=7", MAIL) == (
        Path(address, (b"SIZE=7",)),
        {b"SIZE": b"7"},
    )
    assert parse_rcpt(b"TO:" + address, RCPT, smtputf8=False) == (Path(address), {})
    assert parse_rcpt(b"tO: " + address, RCPT, smtputf8=True)[0].address == address


BAD_ADDRESSES = [
    b"",
    b"<",
    b">",
    b"<a@b",
    b"a@b>",
    b"<a@b>x",
    b"<a@b>SIZE=1",
    b"<<a@b>>",
    b"<a @b>",
    b"<a@b c>",
    b"<a@>",
    b"<@b>",
    b"<@b:>",
    b"<@r@s:a@b>",
    b"@r:a@b",
    b"<a@b@c>",
    b"<a@-b>",
    b"<a@b->",
    b"<a@b..c>",
    b"<a@.b>",
    b"<a,b@c>",
    b"<a@b,c@d>",
    b"<a:b@c>",
    b"<(c)a@b>",
    b"a@b(c)",
    b'<"a"b@c>',
    b'<"a@b>',
    b'<"a\\"@b>',
    b"<a\\b@c>",
    b"<a@[192.0.2.256]>",
    b"<a@[192.0.2]>",
    b"<a@[IPv6:1::2::3]>",
    b"<a@[IPv6:fe80::1%eth0]>",
    b"<a@[X400:foo]>",
    b"<a@[]>",
    b"<a@[192.0.2.1>",
    b"<a@x[192.0.2.1]>",
    b"<a@" + LONG_DOMAIN + b".e>",
    b"  <a@b>",
    b"<a@b\r\n>",
    b"<a\r\nRCPT TO:<c@d>@b>",
    b"<a@b>\n",
    b"<a@b>\r",
    b"<a\x00@b>",
    b'<"a\x00"@b>',
    b'<"a\r\n"@b>',
    b'<"a\\\n"@b>',
    b"<a\x7f@b>",
]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_bad_address(address):
    with pytest.raises(SMTPSyntaxError) as error:
        parse_mail(b"FROM:" + address, MAIL)
    assert (error.value.code, error.value.status) == SENDER_ERROR
    with pytest.raises(SMTPSyntaxError) as error:
        parse_rcpt(b"TO:" + address, RCPT, smtputf8=True)
    assert (error.value.code, error.value.status) == RECIPIENT_ERROR


def test_null_sender():
    assert parse_mail(b"FROM:<>", MAIL) == (Path(b"<>"), {})
    assert parse_mail(b"FROM:<> SIZE=1", MAIL)[1] == {b"SIZE": b"1"}
    for argument in (b"FROM:<>x", b"FROM:<><>"):
        with pytest.raises(SMTPSyntaxError):
            parse_mail(argument, MAIL)
    with pytest.raises(SMTPSyntaxError) as error:
        parse_rcpt(b"TO:<>", RCPT, smtputf8=False)
    assert (error.value.code, error.value.status) == RECIPIENT_ERROR


@pytest.mark.parametrize(
    "argument", [b"", b"<a@b>", b"FROM <a@b>", b"FROM :<a@b>", b"TO:<a@b>", b"FROMA:<a@b>"]
)
def test_mail_without_from(argument):
    with pytest.raises(SMTPSyntaxError, match="Syntax: MAIL FROM") as error:
        parse_mail(argument, MAIL)
    assert (error.value.code, error.value.status) == VALUE_ERROR


@pytest.mark.parametrize("argument", [b"", b"<a@b>", b"TO <a@b>", b"FROM:<a@b>"])
def test_rcpt_without_to(argument):
    with pytest.raises(SMTPSyntaxError, match="Syntax: RCPT TO") as error:
        parse_rcpt(argument, RCPT, smtputf8=False)
    assert (error.value.code, error.value.status) == VALUE_ERROR


@pytest.mark.parametrize(
    "arg",
    [
        b"SIZE=0",
        b"size=12345678901234567890",
        b"BODY=8BITMIME",
        b"body=BinaryMIME",
        b"BODY=7bit",
        b"SMTPUTF8",
        b"RET=FULL",
        b"RET=hdrs",
        b"ENVID=QQ+2B314159",
        b"ENVID=" + b"x" * 100,
    ],
)
def test_mail_parameter(arg):
    keyword, _, value = arg.partition(b"=")
    path, params = parse_mail(b"FROM:<a@b> " + arg, MAIL)
    assert path.args == (arg,)
    assert params == {keyword.upper(): value or None}


@pytest.mark.parametrize(
    "arg",
    [
        b"NOTIFY=NEVER",
        b"NOTIFY=SUCCESS,failure,DELAY",
        b"notify=delay",
        b"ORCPT=rfc822;Bob+40example.org",
        b"ORCPT=rfc822;a@b",
        b"ORCPT=x;" + b"y" * 498,
    ],
)
def test_rcpt_parameter(arg):
    keyword, _, value = arg.partition(b"=")
    path, params = parse_rcpt(b"TO:<a@b>\t" + arg, RCPT, smtputf8=False)
    assert path.args == (arg,)
    assert params == {keyword.upper(): value}


@pytest.mark.parametrize("arg", [b"AUTH=<>", b"auth=ann@example.org", b"AUTH=a+2Bb", b"RequireTLS"])
def test_parameters_of_a_server_with_tls_and_logins(arg):
    keyword, _, value = arg.partition(b"=")
    path, params = parse_mail(b"FROM:<a@b> " + arg, {b"AUTH", b"REQUIRETLS"})
    assert path.args == (arg,)
    assert params == {keyword.upper(): value or None}


@pytest.mark.parametrize("arg", [b"AUTH", b"AUTH=", b"AUTH=a+", b"AUTH=a+0Ab", b"REQUIRETLS=1"])
def test_wrong_parameters_of_a_server_with_tls_and_logins(arg):
    with pytest.raises(SMTPSyntaxError) as caught:
        parse_mail(b"FROM:<a@b> " + arg, {b"AUTH", b"REQUIRETLS"})
    assert caught.value.code == 501


def test_parameters_keep_order_and_spelling():
    path, params = parse_mail(b"FROM:<a@b>  Size=3 \t envid=Ab  BODY=7BIT", MAIL)
    assert path.args == (b"Size=3", b"envid=Ab", b"BODY=7BIT")
    assert params == {b"SIZE": b"3", b"ENVID": b"Ab", b"BODY": b"7BIT"}


UNSUPPORTED = (555, "5.5.4")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (b"FOO", UNSUPPORTED),
        (b"FOO=1", UNSUPPORTED),
        (b"AUTH=<>", UNSUPPORTED),
        (b"NOTIFY=NEVER", UNSUPPORTED),
        (b"SIZE=1 SIZE=1", VALUE_ERROR),
        (b"SIZE=1 size=2", VALUE_ERROR),
        (b"SIZE", VALUE_ERROR),
        (b"SIZE=", VALUE_ERROR),
        (b"SIZE=-1", VALUE_ERROR),
        (b"SIZE=1x", VALUE_ERROR),
        (b"SIZE=123456789012345678901", VALUE_ERROR),
        (b"SIZE=1=2", VALUE_ERROR),
        (b"BODY=BINARY", VALUE_ERROR),
        (b"BODY=8BITMIME\r", VALUE_ERROR),
        (b"SMTPUTF8=yes", VALUE_ERROR),
        (b"RET=SOME", VALUE_ERROR),
        (b"ENVID=a+0D+0Ab", VALUE_ERROR),
        (b"ENVID=a+7Fb", VALUE_ERROR),
        (b"ENVID=a+FFb", VALUE_ERROR),
        (b"ENVID=a+2", VALUE_ERROR),
        (b"ENVID=a\xc3\xa9", VALUE_ERROR),
        (b"ENVID=" + b"x" * 101, VALUE_ERROR),
        (b"=1", VALUE_ERROR),
        (b"-A=1", VALUE_ERROR),
        (b"A_B=1", VALUE_ERROR),
        (b"<c@d>", VALUE_ERROR),
        (b"A=\x00", VALUE_ERROR),
        (b"SIZE=1\nBODY=7BIT", VALUE_ERROR),
    ],
)
def test_bad_mail_parameter(args, expected):
    with pytest.raises(SMTPSyntaxError) as error:
        parse_mail(b"FROM:<a@b> " + args, MAIL)
    assert (error.value.code, error.value.status) == expected


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (b"SIZE=1", UNSUPPORTED),
        (b"NOTIFY=NEVER,SUCCESS", VALUE_ERROR),
        (b"NOTIFY=", VALUE_ERROR),
        (b"NOTIFY=SUCCESS,", VALUE_ERROR),
        (b"NOTIFY=ALWAYS", VALUE_ERROR),
        (b"NOTIFY", VALUE_ERROR),
        (b"ORCPT=a@b", VALUE_ERROR),
        (b"ORCPT=rfc822;", VALUE_ERROR),
        (b"ORCPT=rfc822;a+0Ab", VALUE_ERROR),
        (b"ORCPT=rfc822;a+0d+0ab", VALUE_ERROR),
        (b"ORCPT=x;" + b"y" * 499, VALUE_ERROR),
        (b"ORCPT=x;y ORCPT=x;y", VALUE_ERROR),
    ],
)
def test_bad_rcpt_parameter(args, expected):
    with pytest.raises(SMTPSyntaxError) as error:
        parse_rcpt(b"TO:<a@b> " + args, RCPT, smtputf8=True)
    assert (error.value.code, error.value.status) == expected


def test_parameters_must_be_offered():
    for args in (b"SIZE=1", b"SMTPUTF8", b"RET=FULL"):
        with pytest.raises(SMTPSyntaxError) as error:
            parse_mail(b"FROM:<a@b> " + args, ())
        assert error.value.code == 555
    with pytest.raises(SMTPSyntaxError) as error:
        parse_rcpt(b"TO:<a@b> NOTIFY=NEVER", (), smtputf8=False)
    assert error.value.code == 555
    # What is offered elsewhere is not known here.
    with pytest.raises(SMTPSyntaxError) as error:
        parse_mail(b"FROM:<a@b> XYZ=1", {b"XYZ"})
    assert error.value.code == 555


UNICODE = "<jürgen@bücher.example>".encode()


def test_smtputf8():
    assert parse_mail(b"FROM:" + UNICODE + b" SMTPUTF8", MAIL)[0].address == UNICODE
    assert parse_rcpt(b"TO:" + UNICODE, RCPT, smtputf8=True)[0].address == UNICODE
    quoted = '<"jür gen"@b>'.encode()
    assert parse_rcpt(b"TO:" + quoted, RCPT, smtputf8=True)[0].address == quoted
    orcpt = "ORCPT=utf-8;jürgen@b".encode()
    assert parse_rcpt(b"TO:<a@b> " + orcpt, RCPT, smtputf8=True)[0].args == (orcpt,)


def test_smtputf8_is_required():
    for parse in (
        lambda: parse_mail(b"FROM:" + UNICODE, MAIL),
        lambda: parse_rcpt(b"TO:" + UNICODE, RCPT, smtputf8=False),
        lambda: parse_rcpt("TO:<a@b> ORCPT=utf-8;é".encode(), RCPT, smtputf8=False),
    ):
        with pytest.raises(SMTPSyntaxError) as error:
            parse()
        assert (error.value.code, error.value.status) == (553, "5.6.7")


@pytest.mark.parametrize(
    "octets", [b"\xff", b"\xc3", b"\xc0\x8a", b"\xed\xa0\x80", "\x85".encode(), "\x9f".encode()]
)
def test_bad_utf8(octets):
    with pytest.raises(SMTPSyntaxError) as error:
        parse_mail(b"FROM:<a" + octets + b"@b> SMTPUTF8", MAIL)
    assert (error.value.code, error.value.status) == SENDER_ERROR
    with pytest.raises(SMTPSyntaxError) as error:
        parse_rcpt(b"TO:<a@b" + octets + b">", RCPT, smtputf8=True)
    assert (error.value.code, error.value.status) == RECIPIENT_ERROR


pieces = st.sampled_from(
    [bytes([octet]) for octet in b'<>@"\\ \t\r\n\x00\x7f.,:[]a=+-\x80']
    + [b"b.c", b"SIZE=1", b"SMTPUTF8", b"ORCPT=rfc822;", b"NOTIFY=NEVER", b"\xc3\xa9", b"\xc2\x85", b"IPv6:"]
)
hostile = st.lists(pieces, max_size=20).map(b"".join) | st.binary(max_size=60)
CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


@given(hostile)
def test_what_passes_is_harmless(text):
    for prefix, parse in (
        (b"FROM:", lambda argument: parse_mail(argument, MAIL)),
        (b"TO:", lambda argument: parse_rcpt(argument, RCPT, smtputf8=True)),
    ):
        argument = prefix + text
        try:
            path, params = parse(argument)
        except SMTPSyntaxError:
            continue
        assert path.address
        assert path.address in text
        assert not CONTROL.search(path.address)
        assert path.address.startswith(b"<") == path.address.endswith(b">")
        assert len(path.args) == len(params)
        assert all(arg in text and not CONTROL.search(arg) and b" " not in arg for arg in path.args)
        assert text.strip(b" \t") == text[: text.index(path.address)].strip(b" \t") + text[
            text.index(path.address) :
        ].strip(b" \t")
        path.address.decode()


@given(hostile)
def test_commands_and_names_pass_whole(line):
    try:
        verb, argument = parse_command(line)
    except SMTPSyntaxError:
        assert not line or CONTROL.search(line.replace(b"\t", b""))
    else:
        assert line.upper().startswith(verb)
        assert line.rstrip(b" \t").endswith(argument)
    try:
        assert parse_helo(line) == line
        assert not CONTROL.search(line)
    except SMTPSyntaxError:
        pass


def test_long_hostile_lines_are_quick():
    for text in (
        b"a" * 4000,
        b"-" * 4000,
        b"a-" * 2000 + b"!,",
        b"@a," * 1300,
        b'"' + b"\\a" * 2000,
        b"a." * 2000,
        b"[" * 4000,
    ):
        for form in (
            b"TO:<%b",
            b"TO:<%b>",
            b"TO:<x@%b",
            b"TO:<@%b:a@b>",
            b"TO:<a@b> ORCPT=%b",
            b"TO:<a@b> %b",
        ):
            with pytest.raises(SMTPSyntaxError):
                parse_rcpt((form % text) + b"\x00", RCPT, smtputf8=False)
