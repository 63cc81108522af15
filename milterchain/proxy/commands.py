"""MAIL and RCPT as a next hop gets them: what the client typed, but for what this hop cannot take.

- SIZE is dropped where it is not offered, and brought up to date when the size is known: milters and our
  Received header make messages grow.
- BODY is dropped where 8BITMIME is not offered; the octets are sent as they are. A conversion would break
  signatures, and no server is left that minds.
- BODY=BINARYMIME needs a hop that offers BINARYMIME and CHUNKING: else 451 4.6.3, as it is offered to clients
  only while the hop does. Nothing is converted.
- SMTPUTF8 is added where a milter put a non-ASCII address into an ASCII envelope. A hop that does not offer
  it cannot get such a message: 550 5.6.7 or 553 5.6.7.
- RET, ENVID, NOTIFY and ORCPT cannot be kept where DSN is not offered, and must not get lost: 451 4.3.3. They
  are offered to clients only while the hop offers them, so that this needs a hop that changed.
- AUTH is dropped where it is not offered (RFC 4954 section 5).
- REQUIRETLS needs a hop that offers it over TLS and has been verified: else 550 5.7.30 (RFC 8689).
- Anything else goes unchanged.
"""

from collections.abc import Mapping

from milterchain.errors import SMTPSyntaxError
from milterchain.mail.envelope import Path
from milterchain.smtp.client_commands import check_command

__all__ = ["is_binary", "mail_command", "rcpt_command"]

_DSN = {b"RET", b"ENVID", b"NOTIFY", b"ORCPT"}
_NEEDED = ((b"SMTPUTF8", 550, "5.6.7"), (b"REQUIRETLS", 550, "5.7.30"))
"""Parameters that a hop must offer, and what the client hears if it does not."""
_OPTIONAL = {b"SIZE": b"SIZE", b"BODY": b"8BITMIME", b"AUTH": b"AUTH"}
"""Parameters that are dropped where their extension is not offered."""


def mail_command(
    sender: Path,
    features: Mapping[bytes, bytes],
    *,
    size: int | None = None,
    utf8: bool = False,
) -> bytes:
    """MAIL for a server with these features.

    Args:
        sender: as the client typed it, or a milter.
        features: what the server offers.
        size: of the message, if it is known already.
        utf8: whether any address of the envelope has non-ASCII octets.

    Raises:
        SMTPSyntaxError: the server cannot be told this.
    """
    arguments = []
    for argument in sender.args:
        keyword = _keyword(argument)
        for needed, code, status in _NEEDED:
            if keyword == needed and needed not in features:
                raise SMTPSyntaxError(f"the next hop lacks {needed.decode()}", code=code, status=status)
        if is_binary(argument):
            if not {b"BINARYMIME", b"CHUNKING"} <= features.keys():
                raise SMTPSyntaxError("the next hop lacks BINARYMIME", code=451, status="4.6.3")
            arguments.append(argument)
        elif _OPTIONAL.get(keyword, keyword) in features or keyword not in _OPTIONAL:
            arguments.append(b"SIZE=%d" % size if keyword == b"SIZE" and size is not None else argument)
        utf8 = utf8 and keyword != b"SMTPUTF8"
    if utf8 and b"SMTPUTF8" in features:
        arguments.append(b"SMTPUTF8")
    return _command(b"MAIL FROM:", sender, arguments, features)


def is_binary(argument: bytes) -> bool:
    """Whether this parameter of MAIL announces a body that is no text, and must go by BDAT."""
    return argument.upper() == b"BODY=BINARYMIME"


def rcpt_command(recipient: Path, features: Mapping[bytes, bytes]) -> bytes:
    """RCPT for a server with these features.

    Raises:
        SMTPSyntaxError: the server cannot be told this.
    """
    return _command(b"RCPT TO:", recipient, recipient.args, features)


def _command(
    verb: bytes, path: Path, arguments: tuple[bytes, ...] | list[bytes], features: Mapping[bytes, bytes]
) -> bytes:
    if arguments and b"DSN" not in features and any(_keyword(argument) in _DSN for argument in arguments):
        raise SMTPSyntaxError("the next hop lacks DSN", code=451, status="4.3.3")
    command = b" ".join([verb + path.bracketed, *arguments])
    check_command(command, features)
    return command


def _keyword(argument: bytes) -> bytes:
    return argument.partition(b"=")[0].upper()
