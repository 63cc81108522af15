"""How much a client may get wrong before its session is closed. No I/O.

Each refusal is an error, and so is a command that leads nowhere (RSET, NOOP) once there were many of them.
After some errors each further one is answered late. A message that is taken makes up for all.

Recipients that are refused with 452 because there are enough of them are no errors: a client that knows no
limit has sent all their RCPTs before it hears of the first refusal, and will send these recipients the
message afterwards.
"""

from typing import Final

from milterchain.mail.replies import Reply
from milterchain.smtp.options import ServerOptions

__all__ = ["Budget"]

MAX_OVERSHOOT: Final = 1000
"""Recipients of one message that may be refused so (Postfix smtpd_recipient_overshoot_limit)."""

_ENOUGH: Final = 452


class Budget:
    """The errors of one session.

    Attributes:
        errors: since the session began or a message was taken.
    """

    __slots__ = ("_junk", "_options", "_overshoot", "errors")

    def __init__(self, options: ServerOptions) -> None:
        self.errors = 0
        self._options = options
        self._junk = 0
        self._overshoot = 0

    @property
    def exhausted(self) -> bool:
        """So many errors that the session should be closed."""
        return self.errors >= self._options.errors

    def delay(self, reply: Reply) -> float:
        """Seconds for which a reply is kept back, to slow down who only makes mistakes."""
        late = reply.code >= 400 and self.errors > self._options.soft_errors
        return self._options.error_delay if late else 0.0

    def begin(self) -> None:
        """A message begins, to which others than before may be recipients."""
        self._overshoot = 0

    def count(self, reply: Reply, *, recipients: int = 0) -> None:
        """Count a reply to a command; to a message that has so many recipients, if one is open."""
        if reply.code == _ENOUGH and recipients:
            self._overshoot += 1
            if self._overshoot <= MAX_OVERSHOOT:
                return
        if reply.code >= 400:
            self.errors += 1

    def junk(self, reply: Reply) -> Reply:
        """Count a command that leads nowhere, and return its reply."""
        self._junk += 1
        if self._junk > self._options.junk_commands and reply.positive:
            self.errors += 1
        return reply

    def clear(self) -> None:
        """A message was taken."""
        self.errors = self._junk = 0
