"""Every exception that milterchain raises.

::

    MilterchainError
     ├── ConfigurationError          mistakes in a configuration, one line each
     ├── HeaderLimitError            a message whose headers are too large or too many
     ├── QuarantineError             a held message that cannot be read, released or deleted
     ├── MilterError                 something between an MTA and a milter
     │    ├── LocalProtocolError     our side was asked to do what the protocol forbids
     │    │    ├── WrongStageError   not at this point of the session
     │    │    └── NotNegotiatedError
     │    │         └── VersionError  the version that was agreed on is too old for it
     │    ├── RemoteProtocolError    the peer did what the protocol forbids
     │    │    ├── NotAMilterError   what answered is no milter; says what it looks like
     │    │    └── PacketTooLargeError
     │    ├── NegotiationError       the two sides have no common ground
     │    ├── MilterConnectError     no connection: names the address, errno, path
     │    ├── MilterRestingError     it is left alone for a while, as it has failed too often
     │    ├── MilterTimeoutError     the peer did not answer (or take data) in time
     │    ├── MilterClosedError      the peer closed or reset the connection
     │    └── CloseConnectionError   raised by a filter: leave the MTA without an answer
     └── SMTPError                   something between an SMTP client and an SMTP server
          ├── SMTPSyntaxError        a command that RFC 5321 does not allow
          └── NextHopError           the next hop cannot be used
               ├── NextHopConnectError
               │    ├── NextHopLoginError  it takes no login, or not ours
               │    └── NextHopTLSError    no TLS, or not with the server that was meant
               ├── NextHopTimeoutError
               ├── NextHopClosedError
               └── NextHopProtocolError   it answered what is no SMTP reply, or out of order

Verdicts of milters are no exceptions, neither are the next hop's refusals: both are values.
"""

from collections.abc import Sequence

__all__ = [
    "CloseConnectionError",
    "ConfigurationError",
    "HeaderLimitError",
    "LocalProtocolError",
    "MilterClosedError",
    "MilterConnectError",
    "MilterError",
    "MilterRestingError",
    "MilterTimeoutError",
    "MilterchainError",
    "NegotiationError",
    "NextHopClosedError",
    "NextHopConnectError",
    "NextHopError",
    "NextHopLoginError",
    "NextHopProtocolError",
    "NextHopTLSError",
    "NextHopTimeoutError",
    "NotAMilterError",
    "NotNegotiatedError",
    "PacketTooLargeError",
    "QuarantineError",
    "RemoteProtocolError",
    "SMTPError",
    "SMTPSyntaxError",
    "VersionError",
    "WrongStageError",
]


class MilterchainError(Exception):
    """The base of all."""


class ConfigurationError(MilterchainError):
    """A configuration that cannot be used.

    Attributes:
        mistakes: one line for each mistake: file, key, what is wrong, what is allowed.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class HeaderLimitError(MilterchainError):
    """A message whose headers go beyond a limit; it is answered with 552 5.3.4."""


class QuarantineError(MilterchainError):
    """A held message that cannot be read, released or deleted; the text begins with its id."""


class MilterError(MilterchainError):
    """The base of all that can go wrong between an MTA and a milter."""


class LocalProtocolError(MilterError):
    """This side was asked to send what the milter protocol forbids here."""


class WrongStageError(LocalProtocolError):
    """What was asked for is possible only at another point of the session: edits at the end of a message."""


class NotNegotiatedError(LocalProtocolError):
    """What was asked for had to be agreed on with the MTA when the connection was made."""


class VersionError(NotNegotiatedError):
    """What was asked for came with a later version of the protocol than the MTA speaks."""


class RemoteProtocolError(MilterError):
    """The peer sent what the milter protocol forbids here; the connection is of no use any more."""


class NotAMilterError(RemoteProtocolError):
    """What answers at this address does not speak the milter protocol."""


class PacketTooLargeError(RemoteProtocolError):
    """The peer announced a packet beyond the limit."""


class NegotiationError(MilterError):
    """Both sides speak the protocol but have no common version, actions or options."""


class MilterConnectError(MilterError):
    """No connection could be made."""


class MilterRestingError(MilterError):
    """The milter was not asked: it has failed too often, and is left alone for a while."""


class MilterTimeoutError(MilterError):
    """The peer did not answer, or did not take data, in time."""


class MilterClosedError(MilterError):
    """The peer closed or reset the connection."""


class CloseConnectionError(MilterError):
    """Raised by a filter that wants its connection to the MTA closed, without an answer.

    The MTA does what it is configured to do with a filter that died.
    """


class SMTPError(MilterchainError):
    """The base of all that can go wrong between an SMTP client and an SMTP server."""


class SMTPSyntaxError(SMTPError):
    """A command that RFC 5321 or the extension that defines it does not allow.

    Attributes:
        code: the reply code that answers it.
        status: the enhanced status code (RFC 3463).
    """

    def __init__(self, text: str, *, code: int = 501, status: str = "5.5.4") -> None:
        super().__init__(text)
        self.code = code
        self.status = status


class NextHopError(SMTPError):
    """The next hop cannot be used; nothing is known to have been accepted."""


class NextHopConnectError(NextHopError):
    """No connection to the next hop, or it greeted with a refusal."""


class NextHopLoginError(NextHopConnectError):
    """The next hop takes no login, or not this one."""


class NextHopTLSError(NextHopConnectError):
    """TLS with the next hop could not be begun as it is demanded."""


class NextHopTimeoutError(NextHopError):
    """The next hop did not answer, or did not take data, in time."""


class NextHopClosedError(NextHopError):
    """The next hop closed or reset the connection."""


class NextHopProtocolError(NextHopError):
    """The next hop sent what is no SMTP reply, one too many, or one that is too long."""
