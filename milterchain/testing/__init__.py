"""Helpers for tests, for users of the library and for its own tests.

`ScriptedMilter` plays the filter side of the milter protocol.
"""

from milterchain.testing.faults import Close, Fault, Garbage, InTurn, Late, Reset, Silence, StopReading
from milterchain.testing.peer import PATIENCE, refusing_address
from milterchain.testing.scripted_milter import HalfPacket, MilterConnection, ScriptedMilter

__all__ = [
    "PATIENCE",
    "Close",
    "Fault",
    "Garbage",
    "HalfPacket",
    "InTurn",
    "Late",
    "MilterConnection",
    "Reset",
    "ScriptedMilter",
    "Silence",
    "StopReading",
    "refusing_address",
]
