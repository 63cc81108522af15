"""What the reply to EHLO offers, and what a client may say because of it.

RFC 1854 PIPELINING, 1870 SIZE, 2034 ENHANCEDSTATUSCODES, 3030 CHUNKING and BINARYMIME, 3461 DSN, 6152
8BITMIME, 6531 SMTPUTF8, 8689 REQUIRETLS, 9422 LIMITS; the rest is added by `security` and `speaker`.
"""

from dataclasses import dataclass
from typing import Final

from milterchain.errors import SMTPSyntaxError
from milterchain.mail.replies import Reply
from milterchain.smtp import answers
from milterchain.smtp.handler import Features, Parameters
from milterchain.smtp.options import ServerOptions
from milterchain.smtp.security import Security
from milterchain.smtp.speaker import Speaker

__all__ = ["MINIMAL", "NOTHING", "Offer", "is_binary", "make"]

MAX_LIMIT: Final = 999_999
"""The largest value that LIMITS has room for (RFC 9422 section 3.1); what is larger is not told."""

_ENHANCED: Final = b"ENHANCEDSTATUSCODES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What is offered.

    Attributes:
        keywords: the lines of the reply after the first.
        mail: parameters of MAIL.
        rcpt: parameters of RCPT.
        size: octets of a message; 0 if nothing was told.
        chunking: BDAT.
        binary: BODY=BINARYMIME.
    """

    keywords: tuple[bytes, ...] = ()
    mail: frozenset[bytes] = frozenset()
    rcpt: frozenset[bytes] = frozenset()
    size: int = 0
    chunking: bool = False
    binary: bool = False

    def refuse(self, params: Parameters, size_limit: int) -> Reply | None:
        """The answer to parameters of MAIL that go beyond it."""
        size = params.get(b"SIZE")
        if size is not None and int(size) > size_limit:
            return answers.TOO_LARGE
        if is_binary(params) and not self.binary:
            raise SMTPSyntaxError("Unsupported option: BODY=BINARYMIME", code=555)
        return None


NOTHING: Final = Offer()
"""To clients that say HELO, or nothing yet."""
MINIMAL: Final = Offer(keywords=(_ENHANCED,))
"""To clients that are refused anyway."""


def is_binary(params: Parameters) -> bool:
    """Whether MAIL announces a body that is no text."""
    return (params.get(b"BODY") or b"").upper() == b"BINARYMIME"


def make(
    options: ServerOptions, features: Features, security: Security, speaker: Speaker | None = None
) -> Offer:
    """What is offered to a client that says EHLO now."""
    size = min(options.message_size, features.size or options.message_size)
    keywords = [b"PIPELINING", b"SIZE %d" % size, *security.keywords(features), _ENHANCED, b"8BITMIME"]
    mail = {b"SIZE", b"BODY"}
    rcpt: set[bytes] = set()
    if features.dsn:
        keywords.append(b"DSN")
        mail |= {b"RET", b"ENVID"}
        rcpt |= {b"NOTIFY", b"ORCPT"}
    if features.smtputf8:
        keywords.append(b"SMTPUTF8")
        mail.add(b"SMTPUTF8")
    keywords.append(b"CHUNKING")
    if features.binarymime:
        keywords.append(b"BINARYMIME")
    if features.requiretls and security.tls is not None:
        keywords.append(b"REQUIRETLS")
        mail.add(b"REQUIRETLS")
    if security.offers_auth(features):
        mail.add(b"AUTH")
    keywords += _limits(options, features)
    if speaker is not None:
        keywords += speaker.keywords()
    return Offer(
        keywords=tuple(keywords),
        mail=frozenset(mail),
        rcpt=frozenset(rcpt),
        size=size,
        chunking=True,
        binary=features.binarymime,
    )


def _limits(options: ServerOptions, features: Features) -> list[bytes]:
    """What is told of limits; that of the next hop is kept where the hop is spoken to."""
    recipients = min(options.recipients, features.recipients or options.recipients)
    values = {b"MAILMAX": options.mails, b"RCPTMAX": recipients}
    told = [b"%b=%d" % (name, value) for name, value in values.items() if value and value <= MAX_LIMIT]
    return [b" ".join([b"LIMITS", *told])] if told else []
