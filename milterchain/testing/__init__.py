"""Helpers for tests, for users of the library and for its own tests.

`TransactionBuilder` calls the function of a mail filter without any socket, and shows what it would change.
`ScriptedMilter` plays the filter side of the milter protocol, `ScriptedNextHop` an SMTP server; both follow
scripts, can go wrong on demand, and record what they were sent. `RawMta` plays the MTA's side, message by
message.

`milterchain.testing.cases` plays scenarios from data files with a filter and a real MTA;
`milterchain.testing.pytest_plugin` makes tests of them.
"""

from milterchain.testing.faults import Close, Fault, Garbage, InTurn, Late, Reset, Silence, StopReading
from milterchain.testing.peer import PATIENCE, refusing_address
from milterchain.testing.raw_mta import RawMta
from milterchain.testing.scripted_milter import HalfPacket, MilterConnection, ScriptedMilter
from milterchain.testing.scripted_next_hop import HalfLine, HopSession, ReceivedMessage, ScriptedNextHop
from milterchain.testing.transaction import FilterResult, TransactionBuilder, diff_modifications

__all__ = [
    "PATIENCE",
    "Close",
    "Fault",
    "FilterResult",
    "Garbage",
    "HalfLine",
    "HalfPacket",
    "HopSession",
    "InTurn",
    "Late",
    "MilterConnection",
    "RawMta",
    "ReceivedMessage",
    "Reset",
    "ScriptedMilter",
    "ScriptedNextHop",
    "Silence",
    "StopReading",
    "TransactionBuilder",
    "diff_modifications",
    "refusing_address",
]
