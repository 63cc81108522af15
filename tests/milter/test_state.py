"""Every cell of the tables; `test_connection.py` shows that connections obey them."""

import pytest

from milterchain.milter.flags import ALL_ACTIONS, Action, Command, Response
from milterchain.milter.state import (
    FINAL,
    IDLE_AFTER,
    MODIFICATIONS,
    NO_MOVES,
    PERMISSION,
    PIPELINED,
    RESPONSES,
    TOLERATED,
    TRANSITIONS,
    State,
    moves,
    transitions,
)


def after(text):
    """`"HELO:IDLE"` and so on as a table."""
    return {
        Command(ord(command)): State[state] for command, state in (word.split(":") for word in text.split())
    }


LEGAL = {
    State.START: "O:OFFERED Q:CLOSED",
    State.OFFERED: "Q:CLOSED",
    State.NEW: "C:IDLE A:NEW Q:CLOSED K:NEW",
    State.IDLE: "H:IDLE M:MAIL U:IDLE A:IDLE Q:CLOSED K:NEW",
    State.MAIL: "R:RCPT U:MAIL A:IDLE Q:CLOSED",
    State.RCPT: "R:RCPT T:DATA L:HEADERS N:BODY B:BODY E:IDLE U:RCPT A:IDLE Q:CLOSED",
    State.DATA: "L:HEADERS N:BODY A:IDLE Q:CLOSED",
    State.HEADERS: "L:HEADERS N:BODY A:IDLE Q:CLOSED",
    State.BODY: "B:BODY E:IDLE A:IDLE Q:CLOSED",
    State.CLOSED: "",
}

LATE = {
    State.MAIL: "H:IDLE M:MAIL",
    State.RCPT: "H:IDLE M:MAIL",
    State.DATA: "H:IDLE M:MAIL R:RCPT T:DATA",
    State.HEADERS: "H:IDLE M:MAIL",
    State.BODY: "H:IDLE M:MAIL",
}


@pytest.mark.parametrize("state", list(State))
def test_transitions(state):
    assert dict(TRANSITIONS[state]) == after(LEGAL[state])
    assert dict(TOLERATED.get(state, {})) == after(LATE.get(state, ""))
    assert dict(transitions(frozenset())[state]) == dict(TRANSITIONS[state])


@pytest.mark.parametrize(
    ("declined", "state", "reachable"),
    [
        ("C", State.NEW, "H:IDLE M:MAIL U:IDLE A:NEW Q:CLOSED K:NEW"),
        ("CH", State.NEW, "M:MAIL U:IDLE A:NEW Q:CLOSED K:NEW"),
        ("HU", State.IDLE, "M:MAIL A:IDLE Q:CLOSED K:NEW"),
        ("M", State.IDLE, "H:IDLE R:RCPT U:IDLE A:IDLE Q:CLOSED K:NEW"),
        ("R", State.MAIL, "T:DATA L:HEADERS N:BODY B:BODY E:IDLE U:MAIL A:IDLE Q:CLOSED"),
        ("T", State.RCPT, "R:RCPT L:HEADERS N:BODY B:BODY E:IDLE U:RCPT A:IDLE Q:CLOSED"),
        ("L", State.DATA, "N:BODY A:IDLE Q:CLOSED"),
        ("N", State.DATA, "L:HEADERS B:BODY E:IDLE A:IDLE Q:CLOSED"),
        ("LN", State.DATA, "B:BODY E:IDLE A:IDLE Q:CLOSED"),
        ("LNB", State.DATA, "E:IDLE A:IDLE Q:CLOSED"),
        ("N", State.HEADERS, "L:HEADERS B:BODY E:IDLE A:IDLE Q:CLOSED"),
        ("B", State.BODY, "E:IDLE A:IDLE Q:CLOSED"),
        ("CHMRTLNBU", State.NEW, "E:IDLE A:NEW Q:CLOSED K:NEW"),
        ("CHMRTLNBU", State.IDLE, "E:IDLE A:IDLE Q:CLOSED K:NEW"),
        ("CHMRTLNBU", State.CLOSED, ""),
    ],
)
def test_declined_commands_are_stepped_over(declined, state, reachable):
    table = transitions(frozenset(map(Command, declined.encode())))
    assert dict(table[state]) == after(reachable)


ANSWERS = {
    **dict.fromkeys(map(Command, b"CHMRTLNBU"), b"cardtys4p"),
    Command.END_OF_MESSAGE: b"cardtys4pqhim+2-eb",
    Command.OPTNEG: b"O",
}


@pytest.mark.parametrize("command", list(Command))
def test_responses(command):
    assert bytes(sorted(RESPONSES.get(command, ()))) == bytes(sorted(ANSWERS.get(command, b"")))


@pytest.mark.parametrize("command", list(Command))
def test_verdicts_that_end_a_message(command):
    ends = b"ardty4" if command in b"MTLNB" else b"a" if command == Command.RCPT else b""
    assert bytes(sorted(IDLE_AFTER.get(command, ()))) == bytes(sorted(ends))


def test_responses_are_final_or_edits_or_neither():
    neither = {Response.PROGRESS, Response.QUARANTINE, Response.OPTNEG, Response.CONN_FAIL}
    assert set(Response) == FINAL | MODIFICATIONS | neither
    assert not FINAL & MODIFICATIONS


def test_permissions():
    assert set(PERMISSION) == MODIFICATIONS | {Response.QUARANTINE}
    assert sum(set(PERMISSION.values())) == ALL_ACTIONS & ~Action.SET_MACRO_LIST


def test_only_content_is_pipelined():
    assert bytes(sorted(PIPELINED)) == b"BELN"


@pytest.mark.parametrize("declined", ["", "CH", "MRTLNB"])
@pytest.mark.parametrize("answered", ["", "MRE"])
def test_moves_are_transitions_that_know_what_is_answered(declined, answered):
    declined, answered = (frozenset(map(Command, codes.encode())) for codes in (declined, answered))
    table = moves(declined, answered)
    assert set(table) == set(State) == set(NO_MOVES)
    for state, reached in transitions(declined).items():
        assert table[state] == {command: (after, command in answered) for command, after in reached.items()}
        assert NO_MOVES[state] == {}
