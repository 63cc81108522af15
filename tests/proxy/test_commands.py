"""MAIL and RCPT for servers with and without the extensions that their parameters need."""

import pytest

from milterchain.errors import SMTPSyntaxError
from milterchain.mail.envelope import Path
from milterchain.proxy.commands import mail_command, rcpt_command

ALL = dict.fromkeys((b"SIZE", b"8BITMIME", b"SMTPUTF8", b"DSN", b"AUTH"), b"")
UTF8 = "<é@b>".encode()


@pytest.mark.parametrize(
    ("path", "features", "options", "command"),
    [
        (Path(b"<a@b>"), {}, {}, b"MAIL FROM:<a@b>"),
        (Path(b"a@b"), {}, {}, b"MAIL FROM:<a@b>"),
        (Path(b"<>"), {}, {}, b"MAIL FROM:<>"),
        (Path(b'<"x y"@b>'), {}, {}, b'MAIL FROM:<"x y"@b>'),
        (Path(b"<a@b>", (b"size=5", b"body=8bitmime")), ALL, {}, b"MAIL FROM:<a@b> size=5 body=8bitmime"),
        (Path(b"<a@b>", (b"SIZE=5",)), ALL, {"size": 99}, b"MAIL FROM:<a@b> SIZE=99"),
        (Path(b"<a@b>"), ALL, {"size": 99}, b"MAIL FROM:<a@b>"),
        (Path(b"<a@b>", (b"SIZE=5", b"BODY=8BITMIME", b"X=y")), {}, {"size": 9}, b"MAIL FROM:<a@b> X=y"),
        (Path(b"<a@b>", (b"RET=HDRS", b"ENVID=q+2B")), ALL, {}, b"MAIL FROM:<a@b> RET=HDRS ENVID=q+2B"),
        (Path(b"<a@b>", (b"AUTH=<>",)), ALL, {}, b"MAIL FROM:<a@b> AUTH=<>"),
        (Path(b"<a@b>", (b"AUTH=c+40d",)), {}, {}, b"MAIL FROM:<a@b>"),
        (Path(b"<a@b>", (b"requiretls",)), {b"REQUIRETLS": b""}, {}, b"MAIL FROM:<a@b> requiretls"),
        (Path(b"<a@b>", (b"SMTPUTF8",)), ALL, {}, b"MAIL FROM:<a@b> SMTPUTF8"),
        (Path(b"<a@b>", (b"smtputf8",)), ALL, {"utf8": True}, b"MAIL FROM:<a@b> smtputf8"),
        (Path(UTF8), ALL, {"utf8": True}, b"MAIL FROM:" + UTF8 + b" SMTPUTF8"),
        (Path(b"<a@b>"), {}, {"utf8": True}, b"MAIL FROM:<a@b>"),
    ],
)
def test_mail(path: Path, features, options, command: bytes) -> None:
    assert mail_command(path, features, **options) == command


@pytest.mark.parametrize(
    ("path", "features", "code", "status"),
    [
        (Path(b"<a@b>", (b"SMTPUTF8",)), {}, 550, "5.6.7"),
        (Path(UTF8), {}, 553, "5.6.7"),
        (Path(b"<a@b>", (b"RequireTLS",)), ALL, 550, "5.7.30"),
        (Path(b"<a@b>", (b"RET=FULL",)), {}, 451, "4.3.3"),
        (Path(b"<a@b>", (b"SIZE=1", b"envid=x")), {}, 451, "4.3.3"),
        (Path(b"<a@b>\r\nDATA"), ALL, 501, "5.1.3"),
        (Path(b"<a@b>", (b"X=\n",)), ALL, 501, "5.1.3"),
    ],
)
def test_mail_that_cannot_be_said(path: Path, features, code: int, status: str) -> None:
    with pytest.raises(SMTPSyntaxError) as caught:
        mail_command(path, features)
    assert (caught.value.code, caught.value.status) == (code, status)


def test_rcpt() -> None:
    path = Path(b"<a@b>", (b"NOTIFY=NEVER", b"ORCPT=rfc822;a+2Bc@b"))
    assert rcpt_command(path, ALL) == b"RCPT TO:<a@b> NOTIFY=NEVER ORCPT=rfc822;a+2Bc@b"
    assert rcpt_command(Path(b"<@x,@y:a@b>", (b"X",)), {}) == b"RCPT TO:<@x,@y:a@b> X"
    with pytest.raises(SMTPSyntaxError) as caught:
        rcpt_command(path, {})
    assert caught.value.code == 451
