"""What milters are told at one event, encoded once for all that get it in the same form."""

from collections.abc import Mapping
from typing import TypeAlias

from milterchain.milter.content import encode_macros
from milterchain.milter.flags import DATA_SIZE_1M, Command
from milterchain.milter.framing import encode_packet
from milterchain.milter.macros import MacroNames
from milterchain.milter.messages import Connect, Data, Helo, Mail, Rcpt, Unknown

__all__ = ["Briefing", "Event", "MacroPackets"]

Event: TypeAlias = Connect | Helo | Mail | Rcpt | Data | Unknown


class MacroPackets:
    """The macros for one command: their values stand, their names are each milter's choice."""

    __slots__ = ("_code", "_made", "_values")

    def __init__(self, code: Command, values: Mapping[bytes, bytes]) -> None:
        self._code = code
        self._values = values
        self._made: list[tuple[MacroNames, bytes]] = []

    def packet(self, names: MacroNames) -> bytes:
        """The packet for milters that are told these, empty if there is nothing to tell.

        Raises:
            LocalProtocolError: a NUL inside, or more than any milter takes.
        """
        for known, packet in self._made:
            if known is names:
                return packet
        values = self._values
        pairs = [(name, values[key]) for name, key in names if key in values]
        # Filters keep those of MAIL from message to message: an empty packet makes them forget.
        needed = pairs or (names and self._code is Command.MAIL)
        packet = encode_macros(self._code, pairs, DATA_SIZE_1M) if needed else b""
        self._made.append((names, packet))
        return packet


class Briefing:
    """An event with its macros.

    Attributes:
        event: what happened.
        packet: the same, as it travels.
        macros: what is known.
    """

    __slots__ = ("event", "macros", "packet")

    def __init__(self, event: Event, values: Mapping[bytes, bytes]) -> None:
        self.event = event
        self.packet = encode_packet(event.code, event.encode())
        self.macros = MacroPackets(event.code, values)
