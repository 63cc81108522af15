"""Which command may follow which, which response may answer which: the rules of the protocol as tables.

One machine serves both roles. Its states are an MTA's view of one milter connection; `Connection` moves
through them when a command is sent or received and when a verdict ends a message early.
"""

import enum
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from milterchain.milter.flags import Action, Command, Response

__all__ = [
    "FINAL",
    "IDLE_AFTER",
    "MODIFICATIONS",
    "NO_MOVES",
    "PERMISSION",
    "PIPELINED",
    "RESPONSES",
    "TOLERATED",
    "TRANSITIONS",
    "Role",
    "State",
    "moves",
    "transitions",
]


class Role(enum.Enum):
    """Which side of the connection this is."""

    MTA = "MTA"
    MILTER = "milter"


class State(enum.StrEnum):
    """How far a connection has come. Strings, because plain members are slow keys of tables."""

    START = "nothing was sent"
    OFFERED = "options were offered"
    NEW = "options are agreed on, no client yet"
    IDLE = "a client, no message"
    MAIL = "a sender"
    RCPT = "a recipient"
    DATA = "the content is announced"
    HEADERS = "some headers"
    BODY = "all headers, perhaps some of the body"
    CLOSED = "over"


_ENDINGS: Mapping[int, State] = {Command.ABORT: State.IDLE, Command.QUIT: State.CLOSED}

TRANSITIONS: Mapping[State, Mapping[int, State]] = MappingProxyType(
    {
        State.START: {Command.OPTNEG: State.OFFERED, Command.QUIT: State.CLOSED},
        State.OFFERED: {Command.QUIT: State.CLOSED},
        State.NEW: {
            Command.CONNECT: State.IDLE,
            Command.ABORT: State.NEW,
            Command.QUIT: State.CLOSED,
            Command.QUIT_NEW_CONNECTION: State.NEW,
        },
        State.IDLE: {
            Command.HELO: State.IDLE,
            Command.MAIL: State.MAIL,
            Command.UNKNOWN: State.IDLE,
            Command.QUIT_NEW_CONNECTION: State.NEW,
            **_ENDINGS,
        },
        State.MAIL: {Command.RCPT: State.RCPT, Command.UNKNOWN: State.MAIL, **_ENDINGS},
        State.RCPT: {
            Command.RCPT: State.RCPT,
            Command.DATA: State.DATA,
            Command.HEADER: State.HEADERS,
            Command.END_OF_HEADERS: State.BODY,
            Command.BODY: State.BODY,
            Command.END_OF_MESSAGE: State.IDLE,
            Command.UNKNOWN: State.RCPT,
            **_ENDINGS,
        },
        State.DATA: {Command.HEADER: State.HEADERS, Command.END_OF_HEADERS: State.BODY, **_ENDINGS},
        State.HEADERS: {Command.HEADER: State.HEADERS, Command.END_OF_HEADERS: State.BODY, **_ENDINGS},
        State.BODY: {Command.BODY: State.BODY, Command.END_OF_MESSAGE: State.IDLE, **_ENDINGS},
        State.CLOSED: {},
    }
)
"""The state after each command that is legal in a state, when the milter declined nothing."""

_IN_MESSAGE = (State.MAIL, State.RCPT, State.DATA, State.HEADERS, State.BODY)
_INTERRUPT: Mapping[int, State] = MappingProxyType({Command.HELO: State.IDLE, Command.MAIL: State.MAIL})

TOLERATED: Mapping[State, Mapping[int, State]] = MappingProxyType(
    {
        **dict.fromkeys(_IN_MESSAGE, _INTERRUPT),
        State.DATA: {**_INTERRUPT, Command.RCPT: State.RCPT, Command.DATA: State.DATA},
    }
)
"""What a milter takes besides, as libmilter does: a new HELO or MAIL ends an open message (Postfix sends
HELO before ABORT), and Postfix goes on with RCPT and DATA after a verdict at DATA. We never send these."""


@lru_cache(512)
def transitions(declined: frozenset[int]) -> Mapping[State, Mapping[int, State]]:
    """`TRANSITIONS` for a milter that declined commands: they are stepped over as if they had been sent."""

    def reach(state: State) -> dict[int, State]:
        reached: dict[int, State] = {}
        stack, seen = [state], {state}
        while stack:
            for command, after in TRANSITIONS[stack.pop()].items():
                if command not in declined:
                    reached.setdefault(command, after)
                elif after not in seen:
                    seen.add(after)
                    stack.append(after)
        return reached

    return MappingProxyType({state: MappingProxyType(reach(state)) for state in State})


NO_MOVES: Mapping[State, Mapping[int, tuple[State, bool]]] = {state: {} for state in State}
"""What `moves` makes of nothing."""


@lru_cache(512)
def moves(
    declined: frozenset[int], answered: frozenset[int]
) -> Mapping[State, Mapping[int, tuple[State, bool]]]:
    """`transitions`, and with each whether a reply is due.

    For who looks once for each command: plain dictionaries and numbers are found sooner than views of them
    and members of enumerations.
    """
    return {
        state: {int(command): (after, command in answered) for command, after in reached.items()}
        for state, reached in transitions(declined).items()
    }


FINAL = frozenset(
    {
        Response.CONTINUE,
        Response.ACCEPT,
        Response.REJECT,
        Response.TEMPFAIL,
        Response.DISCARD,
        Response.SKIP,
        Response.REPLY_CODE,
        Response.SHUTDOWN,
    }
)
"""The responses that settle a command. SMFIR_CONN_FAIL is none: to Postfix it is a protocol error."""

PERMISSION: Mapping[int, Action] = MappingProxyType(
    {
        Response.ADD_HEADER: Action.ADD_HEADERS,
        Response.INSERT_HEADER: Action.ADD_HEADERS,
        Response.CHANGE_HEADER: Action.CHANGE_HEADERS,
        Response.ADD_RECIPIENT: Action.ADD_RECIPIENT,
        Response.ADD_RECIPIENT_PAR: Action.ADD_RECIPIENT_PAR,
        Response.DELETE_RECIPIENT: Action.DELETE_RECIPIENT,
        Response.CHANGE_SENDER: Action.CHANGE_SENDER,
        Response.REPLACE_BODY: Action.CHANGE_BODY,
        Response.QUARANTINE: Action.QUARANTINE,
    }
)
"""What a milter must have negotiated to send a response. MTAs do not enforce it, libmilter does."""

MODIFICATIONS = frozenset(PERMISSION) - {Response.QUARANTINE}
"""What changes a message."""

_USUAL = FINAL | {Response.PROGRESS}

RESPONSES: Mapping[int, frozenset[int]] = MappingProxyType(
    {
        Command.OPTNEG: frozenset({Response.OPTNEG}),
        Command.CONNECT: _USUAL,
        Command.HELO: _USUAL,
        Command.MAIL: _USUAL,
        Command.RCPT: _USUAL,
        Command.DATA: _USUAL,
        Command.HEADER: _USUAL,
        Command.END_OF_HEADERS: _USUAL,
        Command.BODY: _USUAL,
        Command.END_OF_MESSAGE: _USUAL | MODIFICATIONS | {Response.QUARANTINE},
        Command.UNKNOWN: _USUAL,
    }
)
"""The responses that each command may have; commands that are not listed have none."""

_VERDICTS = frozenset(
    {
        Response.ACCEPT,
        Response.REJECT,
        Response.TEMPFAIL,
        Response.DISCARD,
        Response.REPLY_CODE,
        Response.SHUTDOWN,
    }
)

IDLE_AFTER: Mapping[int, frozenset[int]] = MappingProxyType(
    {
        Command.MAIL: _VERDICTS,
        Command.RCPT: frozenset({Response.ACCEPT.value}),
        Command.DATA: _VERDICTS,
        Command.HEADER: _VERDICTS,
        Command.END_OF_HEADERS: _VERDICTS,
        Command.BODY: _VERDICTS,
    }
)
"""The responses after which the milter has forgotten the message (libmilter returns to its state after HELO).

A refused recipient is not the end of a message, and DISCARD at RCPT still wants an ABORT."""

PIPELINED = frozenset({Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE})
"""The commands that may be sent while replies to earlier ones among them are due."""
