"""The grammar of SMTP commands (RFC 5321 section 4.1), on bytes.

The parsers decide whether a command is well formed, and cut it up. They change nothing: an address comes out
exactly as it was typed, and so does each parameter, because milters and the next hop are shown what the
client said. Nothing is decoded or unquoted, so what passes cannot end its line or its brackets later on.

More passes than RFC 5321 allows where real clients need it, as with Postfix: addresses without brackets, one
blank after the colon, local parts with dots in odd places or without a domain, a dot at the end of a domain,
underscores in it.
"""

import re
from collections.abc import Collection, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from milterchain.errors import SMTPSyntaxError
from milterchain.mail.envelope import Path

__all__ = ["parse_command", "parse_helo", "parse_mail", "parse_rcpt"]

MAX_DOMAIN = 255
"""Octets of a domain (RFC 5321 4.5.3.1.2). A local part may be longer than the RFC's 64: VERP needs it."""

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BLANKS = re.compile(rb"[ \t]+")

_ATOMS = rb"[\w!#$%&'*+/=?^`{|}~.\x80-\xff-]+"
_QUOTED = rb'"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*"'
_LABEL = rb"[\w\x80-\xff]+(?:-+[\w\x80-\xff]+)*"
_DOMAIN = rb"%b(?:\.%b)*\.?" % (_LABEL, _LABEL)
_LITERAL = rb"\[(?:(?P<v4>[0-9.]+)|[Ii][Pp][Vv]6:(?P<v6>[0-9A-Fa-f:.]+))\]"
_MAILBOX = rb"(?:%b|%b)(?:@(?:(?P<domain>%b)|%b))?" % (_ATOMS, _QUOTED, _DOMAIN, _LITERAL)
_ROUTE = rb"@%b(?:,@%b)*:" % (_DOMAIN, _DOMAIN)
_PATH = re.compile(rb"(?P<open><(?:%b)?)?%b(?(open)>)(?=[ \t]|\Z)" % (_ROUTE, _MAILBOX))
_NULL_PATH = re.compile(rb"<>(?=[ \t]|\Z)")

_PARAMETER = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\x80-\xff]+))?")
# Hexadecimal pairs that stand for control characters or 8-bit are refused (RFC 3461 section 4.4): who decodes
# them into a report must not be surprised.
_XTEXT = rb"(?:[!-*,-<>-~]|\+(?:[2-6][0-9A-Fa-f]|7[0-9A-Ea-e]))"
_UTEXT = rb"(?:[!-*,-<>-~\x80-\xff]|\+(?:[2-6][0-9A-Fa-f]|7[0-9A-Ea-e]))"
_EVENT = rb"(?:SUCCESS|FAILURE|DELAY)"

_Values = Mapping[bytes, re.Pattern[bytes] | None]

_MAIL_VALUES: Final[_Values] = {
    b"SIZE": re.compile(rb"[0-9]{1,20}"),
    b"BODY": re.compile(rb"7BIT|8BITMIME|BINARYMIME", re.IGNORECASE),
    b"SMTPUTF8": None,
    b"RET": re.compile(rb"FULL|HDRS", re.IGNORECASE),
    b"ENVID": re.compile(rb"%b{1,100}" % _XTEXT),
    b"AUTH": re.compile(rb"<>|%b{1,500}" % _XTEXT),
    b"REQUIRETLS": None,
}
_RCPT_VALUES: Final[_Values] = {
    b"NOTIFY": re.compile(rb"NEVER|%b(?:,%b)*" % (_EVENT, _EVENT), re.IGNORECASE),
    b"ORCPT": re.compile(rb"(?=.{3,500}\Z)[A-Za-z0-9-]+;%b+" % _UTEXT),
}
"""What the value of each known parameter looks like; None if it has none. RFC 1870, 3461, 4954, 6152, 6531,
8689."""

_SENDER = ("Bad sender address syntax", "5.1.7")
_RECIPIENT = ("Bad recipient address syntax", "5.1.3")

MAX_HELO = 255
"""Octets of a host name (RFC 5321 4.5.3.1.2)."""
_HELO = re.compile(rb"[!-~]{1,%d}" % MAX_HELO)
_NOT_IN_HELO = re.compile(rb'[()<>@,;\\"]')


def parse_command(line: bytes) -> tuple[bytes, bytes]:
    """Cut a command line, without its line end, into the verb in upper case and its argument.

    Blanks around the argument are removed. A line that begins with a blank has an empty verb.

    Raises:
        SMTPSyntaxError: the line is empty, or holds a control character, a bare CR included.
    """
    if not line or _CONTROL.search(line):
        raise SMTPSyntaxError("Error: bad syntax", code=500, status="5.5.2")
    verb, *rest = _BLANKS.split(line, 1)
    return verb.upper(), rest[0].rstrip(b" \t") if rest else b""


def parse_helo(argument: bytes) -> bytes:
    """Check the argument of HELO or EHLO: one word that can stand in a Received header.

    That the name is a domain or an address literal is not asked: too many honest clients send neither.

    Raises:
        SMTPSyntaxError: the argument is missing, or is no such word.
    """
    if not argument:
        raise SMTPSyntaxError("Syntax: HELO or EHLO hostname")
    if not _HELO.fullmatch(argument) or _NOT_IN_HELO.search(argument):
        raise SMTPSyntaxError("Error: invalid host name")
    return argument


def parse_mail(argument: bytes, offered: Collection[bytes]) -> tuple[Path, dict[bytes, bytes | None]]:
    """Parse what follows MAIL: `FROM:<reverse-path>` and the parameters.

    Args:
        argument: as `parse_command` returns it.
        offered: the keywords, in upper case, that the last reply to EHLO allows.

    Raises:
        SMTPSyntaxError: with the code and status that fit what is wrong.
    """
    if argument[:5].upper() != b"FROM:":
        raise SMTPSyntaxError("Syntax: MAIL FROM:<address>")
    address, rest = _split_path(argument[5:].removeprefix(b" "), _SENDER)
    args, params = _parse_params(rest, offered, _MAIL_VALUES)
    _check_utf8(address, _SENDER, allowed=b"SMTPUTF8" in params)
    return Path(address, args), params


def parse_rcpt(
    argument: bytes, offered: Collection[bytes], *, smtputf8: bool
) -> tuple[Path, dict[bytes, bytes | None]]:
    """Parse what follows RCPT: `TO:<forward-path>` and the parameters.

    Args:
        argument: as `parse_command` returns it.
        offered: the keywords, in upper case, that the last reply to EHLO allows.
        smtputf8: MAIL had the parameter SMTPUTF8.

    Raises:
        SMTPSyntaxError: with the code and status that fit what is wrong.
    """
    if argument[:3].upper() != b"TO:":
        raise SMTPSyntaxError("Syntax: RCPT TO:<address>")
    address, rest = _split_path(argument[3:].removeprefix(b" "), _RECIPIENT)
    args, params = _parse_params(rest, offered, _RCPT_VALUES)
    _check_utf8(address, _RECIPIENT, allowed=smtputf8)
    _check_utf8(params.get(b"ORCPT") or b"", _RECIPIENT, allowed=smtputf8)
    return Path(address, args), params


def _split_path(text: bytes, side: tuple[str, str]) -> tuple[bytes, bytes]:
    """Cut off the path; what follows is empty or begins with a blank."""
    if side is _SENDER and _NULL_PATH.match(text):
        return text[:2], text[2:]
    match = _PATH.match(text)
    if match is None or not _is_domain(match):
        raise SMTPSyntaxError(side[0], status=side[1])
    return match[0], text[match.end() :]


def _is_domain(match: re.Match[bytes]) -> bool:
    """Check what the regular expression cannot: a domain's length, the numbers of an address literal."""
    domain, v4, v6 = match.group("domain", "v4", "v6")
    try:
        if v4:
            IPv4Address(v4.decode())
        elif v6:
            IPv6Address(v6.decode())
    except ValueError:
        return False
    return domain is None or len(domain) <= MAX_DOMAIN


def _parse_params(
    text: bytes, offered: Collection[bytes], values: _Values
) -> tuple[tuple[bytes, ...], dict[bytes, bytes | None]]:
    text = text.strip(b" \t")
    args = tuple(_BLANKS.split(text)) if text else ()
    params: dict[bytes, bytes | None] = {}
    for arg in args:
        match = _PARAMETER.fullmatch(arg)
        if match is None:
            raise SMTPSyntaxError("Error: bad parameter syntax")
        keyword, value = match[1].upper(), match[2]
        if keyword not in offered or keyword not in values:
            raise SMTPSyntaxError(f"Unsupported option: {keyword.decode()}", code=555)
        if keyword in params:
            raise SMTPSyntaxError(f"Error: {keyword.decode()} given twice")
        form = values[keyword]
        if (form is None) != (value is None) or (form is not None and not form.fullmatch(value)):
            raise SMTPSyntaxError(f"Error: bad value of {keyword.decode()}")
        params[keyword] = value
    return args, params


def _check_utf8(text: bytes, side: tuple[str, str], *, allowed: bool) -> None:
    """Refuse octets above 127 that are not announced (RFC 6531 3.5), no UTF-8, or C1 control characters."""
    if text.isascii():
        return
    if not allowed:
        raise SMTPSyntaxError("Error: SMTPUTF8 is required for this address", code=553, status="5.6.7")
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        raise SMTPSyntaxError(side[0], status=side[1]) from None
    if any("\x80" <= char <= "\x9f" for char in decoded):
        raise SMTPSyntaxError(side[0], status=side[1])
