"""What the client hears of a next hop: its replies, fit for our own session, and words for its faults."""

import errno
import re
from dataclasses import replace
from typing import Final

from milterchain.errors import (
    NextHopClosedError,
    NextHopConnectError,
    NextHopError,
    NextHopProtocolError,
    NextHopTimeoutError,
)
from milterchain.mail.replies import Reply

__all__ = ["as_final", "as_temporary", "failure_reply"]

_CLOSING: Final = {421: 451, 521: 554}
"""A hop that ends its session with us must not end ours with the client."""
_PERMANENT_STATUS = re.compile(rb"\A5(?=\.\d{1,3}\.\d{1,3}(?: |\Z))")

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_NO_SPACE: Final = Reply.of(452, "4.3.1 Insufficient system storage - try again later")
_OTHER: Final = Reply.of(451, "4.3.0 The message could not be relayed - try again later")
_FAULTS: Final = (
    (NextHopConnectError, Reply.of(451, "4.4.1 The next hop cannot be reached - try again later")),
    (NextHopTimeoutError, Reply.of(451, "4.4.2 The next hop did not answer in time - try again later")),
    (NextHopClosedError, Reply.of(451, "4.4.2 The connection to the next hop was lost - try again later")),
    (NextHopProtocolError, Reply.of(451, "4.5.0 The next hop could not be understood - try again later")),
)


def as_final(reply: Reply) -> Reply:
    """A hop's reply as the client may get it: unchanged, but 421 and 521, which become 451 and 554."""
    code = _CLOSING.get(reply.code)
    return reply if code is None else replace(reply, code=code)


def as_temporary(reply: Reply) -> Reply:
    """A hop's refusal of what it, or a milter, had accepted: 451 with the hop's words."""
    if reply.temporary:
        return as_final(reply)
    return Reply(451, tuple(_PERMANENT_STATUS.sub(b"4", line) for line in reply.lines))


def failure_reply(error: NextHopError) -> Reply:
    """Words for a fault. They tell the client what it needs to know, and nothing of what is behind us."""
    if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
        return _NO_SPACE
    return next((reply for kind, reply in _FAULTS if isinstance(error, kind)), _OTHER)
