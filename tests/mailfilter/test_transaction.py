import io

import pytest

from milterchain.errors import WrongStageError
from milterchain.mail.body import Body, SpoolSettings
from milterchain.mail.header_list import HeaderList
from milterchain.mailfilter import MTA, Connection, Helo, Recipient, Sender, Transaction
from milterchain.milter.flags import Command
from milterchain.milter.macros import MacroStore
from milterchain.milter.messages import AddRecipient, ChangeSender, DeleteRecipient

HEADERS = [(b"Subject", b" Hi\n there"), (b"X", b"1")]


def transaction(body: bytes | None = b"one\r\ntwo\r\n", **settings) -> Transaction:
    return Transaction(
        headers=HeaderList(HEADERS, leading_space=True),
        body=None if body is None else Body.of(body),
        **settings,
    )


def test_an_empty_one():
    trx = Transaction()
    assert (trx.mta, trx.connection, trx.helo) == (MTA(), Connection(), Helo())
    assert trx.sender == Sender(b"")
    assert trx.recipients == ()
    assert len(trx.headers) == 0
    assert trx.queue_id == ""
    assert not trx.cut_short
    assert repr(trx) == "<Transaction without a queue id from >"


def test_macros():
    macros = MacroStore()
    macros.define(Command.CONNECT, [(b"{client_ptr}", b"c.test"), (b"i", b"\xff"), (b"{empty}", b"")])
    trx = Transaction(macros=macros, queue_id="4ABC", sender=Sender(b"<a@x.test>"))
    assert trx.macro("client_ptr") == trx.macro("{client_ptr}") == "c.test"
    assert trx.macro("i") == "\\xff"
    assert trx.macro("empty") == ""
    assert trx.macro("j") is None
    assert repr(trx) == "<Transaction 4ABC from a@x.test>"


def test_the_envelope():
    trx = transaction(sender=Sender(b"<a@x.test>"), recipients=[Recipient(b"<b@x.test>")])
    trx.change_sender("c@x.test", "RET=HDRS")
    assert trx.has_recipient("b@X.test")
    assert trx.delete_recipient("b@x.test")
    assert trx.add_recipient("d@x.test")
    assert trx.sender == Sender(b"c@x.test")
    assert trx.recipients == (Recipient(b"d@x.test"),)
    assert trx.envelope_edits() == (
        ChangeSender(b"<c@x.test>", b"RET=HDRS"),
        DeleteRecipient(b"<b@x.test>"),
        AddRecipient(b"<d@x.test>"),
    )


def test_the_body_is_a_file():
    trx = transaction()
    assert trx.body.readline() == b"one\r\n"
    assert trx.body.read() == b"two\r\n"
    trx.body.seek(0)
    assert trx.body.readlines() == [b"one\r\n", b"two\r\n"]
    assert trx.replacement is None


async def pieces(*parts: bytes):
    for part in parts:
        yield part


@pytest.mark.parametrize(
    "content",
    [
        b"new\nbody",
        b"new\r\nbody\r\n",
        io.BytesIO(b"new\nbody\n"),
        [b"new\r", b"\nbo", b"dy"],
        bytearray(b"new\nbody"),
    ],
    ids=repr,
)
def test_a_new_body(content):
    trx = transaction()
    old = trx.body
    trx.replace_body(content)
    assert trx.body.read() == b"new\r\nbody\r\n"
    assert trx.replacement is not None
    assert bytes(trx.replacement) == b"new\r\nbody\r\n"
    assert old.read() == b"one\r\ntwo\r\n"


async def test_a_new_body_that_comes_in_its_time():
    trx = transaction(spool=SpoolSettings(threshold=4))
    await trx.replace_body_from(pieces(b"new\n", b"bo", b"dy"))
    assert trx.body.read() == b"new\r\nbody\r\n"
    assert trx.replacement is not None
    assert not trx.replacement.in_memory


def test_a_body_from_its_former_self():
    trx = transaction(spool=SpoolSettings(threshold=4))
    for _ in range(3):
        trx.replace_body(b"> " + line for line in trx.body)
    assert trx.body.read() == b"> > > one\r\n> > > two\r\n"


@pytest.mark.parametrize("same", [b"one\r\ntwo\r\n", b"one\ntwo"])
def test_the_same_body_is_no_new_one(same):
    trx = transaction()
    trx.replace_body(same)
    assert trx.replacement is None
    trx.replace_body(b"one\r\ntwO\r\n")
    assert trx.replacement is not None


def test_a_body_may_be_emptied():
    trx = transaction()
    trx.replace_body(b"")
    assert trx.replacement is not None
    assert bytes(trx.replacement) == b""


def test_the_whole_message_with_its_changes():
    trx = transaction()
    assert trx.message().read() == b"Subject: Hi\r\n there\r\nX:1\r\n\r\none\r\ntwo\r\n"
    before = trx.message()
    trx.headers.subject = "Ho"
    trx.headers.add(b"Y", b"2")
    trx.replace_body(b"three")
    assert trx.message().read() == b"Subject: Ho\r\nX:1\r\nY: 2\r\n\r\nthree\r\n"
    assert before.read() == b"Subject: Hi\r\n there\r\nX:1\r\n\r\none\r\ntwo\r\n"


def test_there_may_be_no_body():
    trx = transaction(None)
    with pytest.raises(WrongStageError):
        _ = trx.body
    with pytest.raises(WrongStageError):
        trx.message()
    assert trx.replacement is None
    trx.replace_body(b"blind")
    assert trx.body.read() == b"blind\r\n"
    assert trx.replacement is not None
    transaction(None).close()


def test_close_gives_back_files():
    trx = transaction(b"", spool=SpoolSettings(threshold=4))
    trx.replace_body(b"a large one")
    body = trx.body
    trx.close()
    trx.close()
    with pytest.raises(ValueError, match="closed"):
        body.read()


def test_keeping_the_order_of_headers():
    trx = transaction()
    assert not trx.keeps_header_order
    trx.keep_header_order()
    assert trx.keeps_header_order
