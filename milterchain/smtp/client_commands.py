"""What an SMTP client may put into a command."""

import re
from collections.abc import Mapping

from milterchain.errors import SMTPSyntaxError

__all__ = ["MAX_COMMAND", "check_command"]

MAX_COMMAND = 4096
"""Octets of one command. RFC 5321 says 512, extensions add to it (RFC 3461: 500 for ORCPT alone)."""

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def check_command(command: bytes, features: Mapping[bytes, bytes]) -> None:
    """Check that a command is one line, and that a server with these features can take its octets.

    Raises:
        SMTPSyntaxError: it must not be sent; with the reply that its author deserves.
    """
    if _CONTROL.search(command):
        raise SMTPSyntaxError(f"a control character in {command!r}", code=501, status="5.1.3")
    if len(command) > MAX_COMMAND:
        raise SMTPSyntaxError(f"a command of {len(command)} octets", code=501, status="5.5.4")
    if not command.isascii() and b"SMTPUTF8" not in features:
        raise SMTPSyntaxError(f"no SMTPUTF8 there for {command!r}", code=553, status="5.6.7")
