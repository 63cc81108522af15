"""BDAT: a message in chunks, each announced with its size (RFC 3030). No I/O.

A chunk follows its command at once, wanted or not: it is read even if it is refused, or its octets would be
taken for commands. Where a command cannot be understood nobody knows how long its chunk is, so that the
session has to end. Once a chunk is refused the message is lost; the chunks after it, which a client may have
sent already, get the same answer.
"""

import re
from typing import Final, NamedTuple

from milterchain.errors import SMTPSyntaxError
from milterchain.mail.replies import Reply
from milterchain.smtp.data import MessageReceiver
from milterchain.smtp.pace import Pace

__all__ = [
    "BDAT_FIRST",
    "NOT_ANNOUNCED",
    "SYNTAX",
    "Chunk",
    "ChunkReader",
    "Chunks",
    "is_bdat",
    "parse_bdat",
    "taken",
]

SYNTAX: Final = Reply.of(521, "5.5.4 Syntax: BDAT count [LAST]")
NOT_ANNOUNCED: Final = Reply.of(503, "5.5.1 Error: CHUNKING not announced")
BDAT_FIRST: Final = Reply.of(503, "5.5.1 Error: a message has been begun with BDAT")

MAX_REPEATED: Final = 1000
"""Chunks after a refused one that are not counted as errors: a client may have sent them all before it hears
of the refusal."""

MAX_LINE: Final = 512
"""Octets of the command: of a longer line not all may have been kept."""

_BDAT: Final = re.compile(rb"BDAT[ \t]+([0-9]{1,18})(?:[ \t]+(LAST))?[ \t]*", re.IGNORECASE)


class Chunk(NamedTuple):
    """What BDAT announces.

    Attributes:
        size: its octets.
        last: the message ends with it.
    """

    size: int
    last: bool


def is_bdat(line: bytes) -> bool:
    """Whether a chunk may follow this command: whatever begins like BDAT is meant to be it."""
    return line[:4].upper() == b"BDAT"


def parse_bdat(line: bytes) -> Chunk:
    """Read the command, without its line end.

    Raises:
        SMTPSyntaxError: where the next command begins cannot be known.
    """
    match = _BDAT.fullmatch(line) if len(line) <= MAX_LINE else None
    if match is None:
        raise SMTPSyntaxError("Syntax: BDAT count [LAST]", code=SYNTAX.code)
    return Chunk(int(match[1]), match[2] is not None)


def taken(chunk: Chunk) -> Reply:
    """The answer to a chunk after which more are to come."""
    return Reply.of(250, f"2.0.0 Ok: {chunk.size} octets")


class Chunks:
    """The chunks of one transaction.

    Attributes:
        receiver: what makes a message of them; None before the first one.
        refusal: the answer to one that was refused; None if none was.
        repeated: how many more have got that answer.
        pace: how long the message may take; None before its first chunk.
    """

    __slots__ = ("pace", "receiver", "refusal", "repeated")

    def __init__(self) -> None:
        self.receiver: MessageReceiver | None = None
        self.refusal: Reply | None = None
        self.repeated = 0
        self.pace: Pace | None = None

    def refuse(self, reply: Reply, *, last: bool) -> None:
        """The message is lost; what comes until the last chunk is lost, too."""
        self.clear()
        if not last:
            self.refusal = reply

    def repeat(self, *, last: bool) -> bool:
        """Answer one more as before; whether that is no error of its own."""
        self.repeated += 1
        if last:
            self.refusal = None
        return self.repeated <= MAX_REPEATED

    def clear(self) -> None:
        """Throw away what has come. May be called again."""
        if self.receiver is not None:
            self.receiver.close()
        self.receiver = self.refusal = self.pace = None
        self.repeated = 0


class ChunkReader:
    """Takes one chunk out of a receive buffer.

    Args:
        size: of the chunk.
        receiver: gets its octets; None throws them away.

    Attributes:
        missing: octets that have not come yet.
    """

    __slots__ = ("_receiver", "_size", "missing")

    def __init__(self, size: int, receiver: MessageReceiver | None) -> None:
        self.missing = size
        self._size = size
        self._receiver = receiver

    @property
    def size(self) -> int:
        """Octets that have come, of the whole message if it is kept."""
        return self._size - self.missing if self._receiver is None else self._receiver.size

    @property
    def hopeless(self) -> bool:
        """So much has come beyond the limit that the end should not be waited for."""
        return self._receiver is not None and self._receiver.hopeless

    def feed(self, buffer: bytearray) -> bool:
        """Take what belongs to the chunk out of the buffer; True once it is complete."""
        data = bytes(buffer[: self.missing])
        del buffer[: len(data)]
        self.missing -= len(data)
        if data and self._receiver is not None:
            self._receiver.keep(data)
        return not self.missing
