"""The numbers of the milter protocol: command and response codes, option bits, sizes.

Names are libmilter's with their prefix (SMFIC_, SMFIR_, SMFIF_, SMFIP_, SMFIM_) turned into a class.
"""

import enum

__all__ = [
    "ALL_ACTIONS",
    "ALL_PROTOCOL",
    "DATA_SIZE_1M",
    "DATA_SIZE_64K",
    "DATA_SIZE_256K",
    "VERSIONS",
    "Action",
    "Command",
    "Family",
    "Protocol",
    "Response",
    "Stage",
]

VERSIONS = (2, 3, 4, 6)
"""The versions that exist: 5 was never used. A peer that says 5 gets what 4 gives."""

DATA_SIZE_64K = 65535
"""The payload that libmilter (MILTER_CHUNK_SIZE) sends and takes unless more was negotiated."""
DATA_SIZE_256K = 2**18 - 1
DATA_SIZE_1M = 2**20 - 1


class Command(enum.IntEnum):
    """What an MTA sends (SMFIC_*)."""

    ABORT = ord("A")
    BODY = ord("B")
    CONNECT = ord("C")
    MACRO = ord("D")
    END_OF_MESSAGE = ord("E")
    HELO = ord("H")
    QUIT_NEW_CONNECTION = ord("K")
    HEADER = ord("L")
    MAIL = ord("M")
    END_OF_HEADERS = ord("N")
    OPTNEG = ord("O")
    QUIT = ord("Q")
    RCPT = ord("R")
    DATA = ord("T")
    UNKNOWN = ord("U")


class Response(enum.IntEnum):
    """What a milter sends (SMFIR_*)."""

    ADD_RECIPIENT = ord("+")
    DELETE_RECIPIENT = ord("-")
    ADD_RECIPIENT_PAR = ord("2")
    SHUTDOWN = ord("4")
    ACCEPT = ord("a")
    REPLACE_BODY = ord("b")
    CONTINUE = ord("c")
    DISCARD = ord("d")
    CHANGE_SENDER = ord("e")
    CONN_FAIL = ord("f")
    ADD_HEADER = ord("h")
    INSERT_HEADER = ord("i")
    CHANGE_HEADER = ord("m")
    OPTNEG = ord("O")
    PROGRESS = ord("p")
    QUARANTINE = ord("q")
    REJECT = ord("r")
    SKIP = ord("s")
    TEMPFAIL = ord("t")
    REPLY_CODE = ord("y")


_COMBINATIONS = 1024
"""How many combinations of bits are remembered: all that ordinary peers say, in less than a megabyte."""


class _Bits(enum.IntFlag):
    """Bits of which a peer may say any combination.

    `enum` remembers every combination that it met: peers that say another one in each connection would fill
    the memory. Members are equal by their number, so nothing is lost by forgetting them.
    """

    @classmethod
    def _missing_(cls, value: object) -> object:
        known = cls._value2member_map_
        if len(known) > _COMBINATIONS:
            known.clear()
            known.update({member.value: member for member in cls})
        return super()._missing_(value)


class Action(_Bits):
    """What a milter may do to a message (SMFIF_*)."""

    ADD_HEADERS = 0x001
    CHANGE_BODY = 0x002
    ADD_RECIPIENT = 0x004
    DELETE_RECIPIENT = 0x008
    CHANGE_HEADERS = 0x010
    QUARANTINE = 0x020
    CHANGE_SENDER = 0x040
    ADD_RECIPIENT_PAR = 0x080
    SET_MACRO_LIST = 0x100


class Protocol(_Bits):
    """What a milter does not want, does not answer, or can do (SMFIP_*)."""

    NO_CONNECT = 0x000001
    NO_HELO = 0x000002
    NO_MAIL = 0x000004
    NO_RCPT = 0x000008
    NO_BODY = 0x000010
    NO_HEADERS = 0x000020
    NO_END_OF_HEADERS = 0x000040
    NO_REPLY_HEADER = 0x000080
    NO_UNKNOWN = 0x000100
    NO_DATA = 0x000200
    SKIP = 0x000400
    RCPT_REJECTED = 0x000800
    NO_REPLY_CONNECT = 0x001000
    NO_REPLY_HELO = 0x002000
    NO_REPLY_MAIL = 0x004000
    NO_REPLY_RCPT = 0x008000
    NO_REPLY_DATA = 0x010000
    NO_REPLY_UNKNOWN = 0x020000
    NO_REPLY_END_OF_HEADERS = 0x040000
    NO_REPLY_BODY = 0x080000
    LEADING_SPACE = 0x100000
    DATA_SIZE_256K = 0x10000000
    DATA_SIZE_1M = 0x20000000


class Stage(enum.IntEnum):
    """A stage for which a milter may ask for macros (SMFIM_*); the numbers are not in event order."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3
    DATA = 4
    END_OF_MESSAGE = 5
    END_OF_HEADERS = 6


class Family(enum.IntEnum):
    """The address family in CONNECT (SMFIA_*)."""

    UNKNOWN = ord("U")
    UNIX = ord("L")
    INET = ord("4")
    INET6 = ord("6")


ALL_ACTIONS = Action(0x1FF)
"""What an MTA offers: rspamd and others break when it is less (they answer more than was offered)."""
ALL_PROTOCOL = Protocol(0x1FFFFF)
"""What a version 6 MTA offers; the data sizes are offered on top only where configured."""
