"""Content in one stream has the same outcome as one by one, whatever is said wherever."""

import asyncio
import contextlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milterchain.mail.message import parse_message
from milterchain.milter.flags import Command, Protocol
from milterchain.milter.messages import (
    Accept,
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    ConnFail,
    Continue,
    DeleteRecipient,
    Discard,
    InsertHeader,
    Quarantine,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
)

HEADERS = 3
SMALL = b"A: 1\r\nB: 2\r\nC: 3\r\n\r\nbody\r\n"
LARGE = b"A: 1\r\nB: 2\r\nC: 3\r\n\r\n" + b"0123456789abcdef\r\n" * 8000

WORDS = [
    Accept(),
    Reject(),
    TempFail(),
    Discard(),
    Shutdown(),
    ReplyCode(b"550 5.7.1 no"),
    ReplyCode(b"421 4.7.1 bye"),
    ReplyCode(b"nonsense"),
    ConnFail(),
    Continue(),
    Skip(),
]
EDITS = st.lists(
    st.sampled_from(
        [
            AddHeader(b"X", b"1"),
            InsertHeader(0, b"Y", b"2"),
            ChangeHeader(1, b"A", b""),
            ChangeHeader(1, b"B", b"changed"),
            ReplaceBody(b"new\r\n"),
            AddRecipient(b"<more@b.test>"),
            DeleteRecipient(b"<r1@b.test>"),
            ChangeSender(b"<>"),
            Quarantine(b"held"),
        ]
    ),
    max_size=4,
)
PLACES = [
    *((Command.HEADER, index) for index in range(HEADERS)),
    (Command.END_OF_HEADERS, 0),
    (Command.BODY, 0),
    (Command.BODY, 1),
    (Command.END_OF_MESSAGE, 0),
]


class Speaker:
    """Says its words in the first message, and Continue in those after it."""

    def __init__(self, words, edits):
        self._words = words
        self._edits = edits
        self._messages = 0
        self._said = Counter()

    def script(self):
        commands = (Command.HEADER, Command.END_OF_HEADERS, Command.BODY)
        script = dict.fromkeys(commands, self._piece)
        return {**script, Command.MAIL: self._mail, Command.END_OF_MESSAGE: self._end}

    def _mail(self, _command):
        self._messages += 1
        return Continue()

    def _piece(self, command):
        self._said[command.code] += 1
        if self._messages > 1:
            return Continue()
        return self._words.get((command.code, self._said[command.code] - 1), Continue())

    def _end(self, command):
        return Continue() if self._messages > 1 else [*self._edits, self._piece(command)]


async def outcome_of(make_lab, pipeline, action, speaker, raw, drops, bits):
    """All that can be seen of two messages from outside, and of the first one by the milter that follows."""
    async with contextlib.AsyncExitStack() as stack:
        lab = make_lab(stack)
        await lab.milter(speaker.script(), drops_after_verdict=drops, negotiate=lab.wants(*bits))
        witness = await lab.milter()
        session = await lab.session({"pipeline": pipeline, "default_action": action})
        heard = await lab.play(session, "C H M R1 T")
        outcome = await session.content(parse_message(raw), lab.envelope)
        heard += [str(outcome.verdict.reply), outcome.verdict.kind]
        relayed = b"".join(outcome.message.chunks())
        seen = [command for command in witness.connections[0].commands if command.code != Command.ABORT]
        if not outcome.verdict.closes:
            heard += await lab.play(session, "M")
            if heard[-1] == "c":
                heard += await lab.play(session, "R1 T E")
        return heard, relayed, outcome.envelope, outcome.quarantine, seen


def same_outcome(make_lab, words, edits, raw, *, drops, action="reject", bits=()):
    stream, one_by_one = [
        asyncio.run(outcome_of(make_lab, pipeline, action, Speaker(words, edits), raw, drops, bits))
        for pipeline in ("on", "off")
    ]
    assert stream == one_by_one


@settings(max_examples=50, deadline=None)
@given(
    words=st.dictionaries(st.sampled_from(PLACES), st.sampled_from(WORDS), max_size=2),
    edits=EDITS,
    raw=st.sampled_from([SMALL, LARGE]),
    drops=st.booleans(),
    action=st.sampled_from(["accept", "reject", "quarantine"]),
    bits=st.sampled_from(
        [
            (),
            (Protocol.NO_BODY,),
            (Protocol.NO_HEADERS,),
            (Protocol.NO_REPLY_HEADER,),
            (Protocol.NO_REPLY_HEADER, Protocol.NO_REPLY_BODY),
        ]
    ),
)
def test_same_outcome(request, words, edits, raw, drops, action, bits):
    if any(isinstance(word, Skip) for word in words.values()):
        # Pieces that were under way when SKIP came are answered; one by one they would not have been sent.
        words = dict([next(item for item in words.items() if isinstance(item[1], Skip))])
    make_lab = request.getfixturevalue("make_lab")
    same_outcome(make_lab, words, edits, raw, drops=drops, action=action, bits=bits)


@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0].name.lower()} {place[1]}")
@pytest.mark.parametrize("word", WORDS, ids=str)
def test_each_word_at_each_place(make_lab, word, place, drops):
    edits = [AddHeader(b"X", b"1"), Quarantine(b"held")]
    same_outcome(make_lab, {place: word}, edits, LARGE, drops=drops)
