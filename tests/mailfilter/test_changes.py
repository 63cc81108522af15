import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import NotNegotiatedError, VersionError
from milterchain.mail.body import Body
from milterchain.mail.edits import apply_edits
from milterchain.mail.header_list import HeaderList
from milterchain.mail.message import parse_message
from milterchain.mailfilter import (
    ACCEPT,
    DISCARD,
    MTA,
    REJECT,
    TEMPFAIL,
    Recipient,
    Sender,
    Transaction,
    custom,
    quarantine,
)
from milterchain.mailfilter.changes import Changes, changes_of, check_changes, send_changes
from milterchain.milter.flags import ALL_ACTIONS, Action, Protocol
from milterchain.milter.messages import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    Quarantine,
    ReplaceBody,
)
from milterchain.milter.modifier import Modifier
from milterchain.milter.negotiation import Negotiated

HEADERS = [(b"A", b" 1"), (b"B", b" 2"), (b"A", b" 3")]


def transaction(**settings) -> Transaction:
    return Transaction(
        sender=Sender(b"<s@x.test>"),
        recipients=[Recipient(b"<r@x.test>")],
        headers=HeaderList(HEADERS, leading_space=True),
        body=Body.of(b"old\r\n"),
        **settings,
    )


def changed(**settings) -> Transaction:
    trx = transaction(**settings)
    trx.change_sender("t@x.test")
    trx.delete_recipient("r@x.test")
    trx.add_recipient("q@x.test", "NOTIFY=NEVER")
    trx.headers.add(b"C", b"4")
    trx.headers.delete(b"B")
    trx.headers.insert(0, b"D", b"0")
    trx.replace_body(b"new")
    return trx


ALL = [
    ChangeSender(b"<t@x.test>"),
    DeleteRecipient(b"<r@x.test>"),
    AddRecipient(b"<q@x.test>", b"NOTIFY=NEVER"),
    ChangeHeader(1, b"B", b""),
    InsertHeader(1, b"D", b" 0"),
    AddHeader(b"C", b" 4"),
]


def test_all_changes_in_the_order_in_which_they_go():
    changes = changes_of(changed(), quarantine("why"))
    assert list(changes.edits) == ALL
    assert changes.body is not None
    assert bytes(changes.body) == b"new\r\n"
    assert changes.reason == b"why"
    assert changes


@pytest.mark.parametrize("decision", [REJECT, TEMPFAIL, DISCARD, custom(550, "5.7.1", "no")])
def test_a_refused_message_has_no_changes(decision):
    assert changes_of(changed(), decision) == Changes()
    assert not Changes()


def test_without_changes_there_are_none():
    assert not changes_of(transaction(), ACCEPT)
    assert changes_of(transaction(), quarantine("")) == Changes(reason=b"")
    assert changes_of(transaction(), quarantine(""))


@pytest.mark.parametrize(("version", "more"), [("Postfix 3.7", False), ("8.17.1", True)])
def test_the_order_of_headers_is_kept_where_it_is_asked_for(version, more):
    counts = []
    for keep in (False, True):
        trx = transaction(mta=MTA(version=version))
        trx.headers.insert(1, b"New", b"between")
        if keep:
            trx.keep_header_order()
        counts.append(len(changes_of(trx, ACCEPT).edits))
    assert counts[0] == 1
    assert (counts[1] > 1) is more


ONE = {
    Action.ADD_HEADERS: Changes(edits=[AddHeader(b"X", b"")]),
    Action.CHANGE_HEADERS: Changes(edits=[ChangeHeader(1, b"X", b"")]),
    Action.CHANGE_SENDER: Changes(edits=[ChangeSender(b"<>")]),
    Action.DELETE_RECIPIENT: Changes(edits=[DeleteRecipient(b"<a>")]),
    Action.ADD_RECIPIENT: Changes(edits=[AddRecipient(b"<a>")]),
    Action.ADD_RECIPIENT_PAR: Changes(edits=[AddRecipient(b"<a>", b"X")]),
    Action.CHANGE_BODY: Changes(body=Body.of(b"")),
    Action.QUARANTINE: Changes(reason=b""),
}


@pytest.mark.parametrize("action", ONE)
def test_what_was_not_negotiated_is_found_beforehand(action):
    protocol = Protocol(0)
    check_changes(ONE[action], Negotiated(version=6, actions=action, protocol=protocol))
    without = Negotiated(version=6, actions=ALL_ACTIONS ^ action, protocol=protocol)
    with pytest.raises(NotNegotiatedError, match=f"needs Action.{action.name}"):
        check_changes(ONE[action], without)


@pytest.mark.parametrize("action", [Action.CHANGE_SENDER, Action.ADD_RECIPIENT_PAR])
def test_what_is_too_new_is_found_beforehand(action):
    old = Negotiated(version=4, actions=ALL_ACTIONS, protocol=Protocol(0))
    with pytest.raises(VersionError, match="not in version 4"):
        check_changes(ONE[action], old)


class Sink:
    def __init__(self) -> None:
        self.sent: list[object] = []

    async def emit(self, message) -> None:
        self.sent.append(message)

    async def progress(self) -> None:
        raise AssertionError


async def test_sending():
    sink = Sink()
    negotiated = Negotiated(version=6, actions=ALL_ACTIONS, protocol=Protocol(0))
    await send_changes(changes_of(changed(), quarantine("why")), Modifier(sink, negotiated))
    assert sink.sent == [*ALL, Quarantine(b"why"), ReplaceBody(b"new\r\n")]


async def test_an_empty_body_is_sent():
    sink = Sink()
    negotiated = Negotiated(version=6, actions=ALL_ACTIONS, protocol=Protocol(0))
    await send_changes(Changes(body=Body.of(b"")), Modifier(sink, negotiated))
    assert sink.sent == [ReplaceBody(b"")]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "delete", "insert", "set"]),
        st.sampled_from([b"A", b"B", b"C"]),
        st.integers(0, 4),
    ),
    max_size=6,
)


@given(st.sampled_from(["Postfix 3.7", "8.17.1"]), OPERATIONS)
def test_applying_the_changes_gives_what_the_filter_saw(version, operations):
    trx = transaction(mta=MTA(version=version))
    before = parse_message(trx.message().read())
    for number, (what, name, index) in enumerate(operations):
        value = b"new %d" % number
        if what == "add":
            trx.headers.add(name, value)
        elif what == "delete":
            trx.headers.delete(name)
        elif what == "insert":
            trx.headers.insert(index, name, value)
        else:
            trx.headers.set(name, value)
    trx.replace_body(b"body %d" % len(operations))
    changes = changes_of(trx, ACCEPT)
    assert changes.body is not None
    edits = [*changes.edits, ReplaceBody(bytes(changes.body))]
    after = apply_edits(before, edits, header_index=trx.mta.header_index, leading_space=True)
    assert after.warnings == ()
    assert b"".join(after.message.chunks()) == trx.message().read()
