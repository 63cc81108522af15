import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import LocalProtocolError
from milterchain.milter.commands import Macros
from milterchain.milter.flags import Command, Stage
from milterchain.milter.macros import DEFAULT_MACROS, STAGES, MacroStore, MacroTable, canonical, spelled


@pytest.mark.parametrize(
    ("name", "bare", "wire"),
    [
        (b"i", b"i", b"i"),
        (b"{i}", b"i", b"i"),
        (b"_", b"_", b"_"),
        (b"mail_addr", b"mail_addr", b"{mail_addr}"),
        (b"{mail_addr}", b"mail_addr", b"{mail_addr}"),
        (b"{odd", b"{odd", b"{{odd}"),
    ],
)
def test_spellings(name, bare, wire):
    assert canonical(name) == bare
    assert spelled(name) == wire


def test_every_stage_has_defaults():
    assert set(DEFAULT_MACROS) == set(Stage) == set(STAGES.values())


VALUES = {b"i": b"4f", b"j": b"mx", b"msg_id": b"", b"x": b"1", b"client_addr": b"1.2.3.4"}


@pytest.mark.parametrize(
    ("stage", "requested", "extra", "sent"),
    [
        (Stage.DATA, None, {}, ((b"i", b"4f"),)),
        (Stage.END_OF_MESSAGE, None, {}, ((b"i", b"4f"), (b"{msg_id}", b""))),
        (Stage.CONNECT, None, {}, ((b"j", b"mx"), (b"{client_addr}", b"1.2.3.4"))),
        (Stage.HELO, None, {}, ()),
        # Extra names come on top of the default ones, each name once.
        (Stage.DATA, None, {Stage.DATA: [b"{x}", b"{i}"]}, ((b"i", b"4f"), (b"x", b"1"))),
        (Stage.DATA, None, {Stage.HELO: [b"x"]}, ((b"i", b"4f"),)),
        # What the filter asks for wins, in its spelling.
        (
            Stage.DATA,
            (b"{i}", b"client_addr"),
            {Stage.DATA: [b"x"]},
            ((b"{i}", b"4f"), (b"client_addr", b"1.2.3.4")),
        ),
        (Stage.DATA, (b"i", b"{i}"), {}, ((b"i", b"4f"),)),
        (Stage.DATA, (b"unheard",), {}, ()),
        # An empty list is none at all.
        (Stage.DATA, (), {}, ((b"i", b"4f"),)),
    ],
)
def test_what_is_sent(stage, requested, extra, sent):
    assert MacroTable(extra).macros_for(stage, VALUES, requested) == sent


ORDER = [
    Command.CONNECT,
    Command.HELO,
    Command.MAIL,
    Command.RCPT,
    Command.DATA,
    Command.END_OF_HEADERS,
    Command.END_OF_MESSAGE,
]


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (Command.OPTNEG, ""),
        (Command.QUIT_NEW_CONNECTION, ""),
        (Command.CONNECT, "C"),
        (Command.HELO, "CH"),
        (Command.MAIL, "CHM"),
        (Command.RCPT, "CHMR"),
        (Command.DATA, "CHMRTNE"),
        (Command.HEADER, "CHMRTNE"),
        (Command.END_OF_HEADERS, "CHMRTNE"),
        (Command.BODY, "CHMRTNE"),
        (Command.END_OF_MESSAGE, "CHMRTNE"),
        (Command.ABORT, "CHMRTNE"),
        (Command.UNKNOWN, "CHMRTNE"),
    ],
)
def test_what_a_command_makes_void(command, left):
    store = MacroStore()
    for stage in ORDER:
        store.define(stage, [(bytes((stage,)), b"")])
    store.command(command)
    assert set(store.as_dict()) == {letter.encode() for letter in left}


def test_later_stages_are_searched_first():
    store = MacroStore()
    for count, stage in enumerate(ORDER, 1):
        store.define(stage, [(b"{i}", bytes((stage,)))])
        assert store.get(b"i") == store.get(b"{i}") == store.as_dict()[b"i"] == bytes((stage,))
        assert len(store.as_dict()) == 1, count


def test_a_stage_is_replaced_as_a_whole():
    store = MacroStore()
    store.define(Command.MAIL, [(b"i", b"1"), (b"{auth_type}", b"PLAIN")])
    store.define(Command.MAIL, [(b"i", b"2")])
    assert store.as_dict() == {b"i": b"2"}
    assert store.get(b"auth_type") is None
    assert store.get(b"auth_type", b"none") == b"none"


@pytest.mark.parametrize("stage", [Command.HEADER, Command.BODY, Command.UNKNOWN, 0])
def test_stages_that_libmilter_discards(stage):
    store = MacroStore()
    store.define(stage, [(b"i", b"1")])
    assert store.get(b"i") is None


PAYLOADS = st.one_of(
    st.binary(max_size=12),
    st.lists(
        st.sampled_from([b"C", b"M", b"E", b"L", b"i", b"{x}", b"x", b"\0", b"\0", b"\0"]), max_size=12
    ).map(b"".join),
)


@given(st.lists(PAYLOADS, max_size=4))
def test_packets_say_the_same_before_and_after_they_are_read(payloads):
    taken, defined = MacroStore(), MacroStore()
    for payload in payloads:
        try:
            macros = Macros.decode(payload)
        except LocalProtocolError as error:
            with pytest.raises(LocalProtocolError, match=re.escape(str(error))):
                taken.take(payload)
        else:
            taken.take(payload)
            defined.define(macros.stage, macros.values)
    assert taken.as_dict() == defined.as_dict()


def test_macros_are_replaced_before_and_after_they_were_read():
    store = MacroStore()
    store.take(b"Mi\0001\0")
    store.define(Command.MAIL, [(b"i", b"2")])
    assert store.get(b"i") == b"2"
    store.take(b"Mi\0003\0")
    assert store.get(b"i") == b"3"
    store.take(b"M")
    assert store.get(b"i") is None
    store.take(b"Mi\0004\0")
    store.command(Command.HELO)
    assert store.get(b"i") is None
