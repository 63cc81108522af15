"""How long a client may take for the data of one message.

Three limits hold at once: no silence beyond the time for a command, no message beyond the time for a
transfer, and a least rate on the average, with the time for a command as a start (Postfix
smtpd_min_data_rate). Without the last one an octet now and then would hold a connection for an hour.
"""

from milterchain.smtp.options import ServerOptions

__all__ = ["Pace"]


class Pace:
    """The deadlines of one message.

    Args:
        options: the limits.
        now: when its data may begin, in the loop's time.
    """

    __slots__ = ("_options", "_since")

    def __init__(self, options: ServerOptions, now: float) -> None:
        self._options = options
        self._since = now

    def deadline(self, now: float, size: int) -> float:
        """Until when more has to come, after so many octets."""
        options = self._options
        return min(
            now + options.command_timeout,
            self._since + options.transfer_timeout,
            self._since + options.command_timeout + size / options.data_rate,
        )
