import pytest

from milterchain.errors import WrongStageError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mailfilter import (
    ACCEPT,
    MTA,
    REJECT,
    Connection,
    DecideAt,
    Decision,
    Helo,
    Recipient,
    Sender,
    Transaction,
    quarantine,
)
from milterchain.milter.flags import Family
from milterchain.milter.messages import (
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    Quarantine,
    ReplaceBody,
)
from milterchain.testing import TransactionBuilder, diff_modifications

BASE = (
    TransactionBuilder()
    .sender("joe@example.org", "SIZE=5", authenticated_user="joe", auth_type="PLAIN", transport="smtp")
    .recipient("ann@example.test", b"NOTIFY=NEVER", transport="local")
    .recipient(b"<user@xn--zck5b2b.example>")
    .header("Subject", "Hi")
    .header(b"X-Folded", b"one\n two")
    .body("one\ntwo")
)


async def external(trx: Transaction) -> Decision:
    if trx.has_recipient("user@スパム.example"):
        trx.delete_recipient("user@スパム.example")
        trx.add_recipient("trap@example.test")
    if not trx.sender.authenticated_user:
        trx.headers.subject = f"[EXTERNAL] {trx.headers.subject or 'nothing'}"
    return quarantine("train as spam")


async def everything(trx: Transaction) -> Decision:
    trx.change_sender("")
    trx.headers.delete(b"X-Folded")
    trx.replace_body(b"new\n")
    return ACCEPT


def test_a_transaction_as_it_was_described():
    trx = (
        BASE.mta(version="8.17.1", name="mx", daemon="MTA")
        .connection("c.test", "2001:db8::1", port=99)
        .helo("helo.test", tls_version="TLSv1.3", cipher_bits=256)
        .queue_id("4ABC")
        .macro("client_ptr", "ptr.test")
        .cut_short()
        .build()
    )
    assert trx.mta == MTA(version="8.17.1", name="mx", daemon="MTA")
    assert trx.connection == Connection(host="c.test", family=Family.INET6, address="2001:db8::1", port=99)
    assert trx.helo == Helo(name="helo.test", tls_version="TLSv1.3", cipher_bits=256)
    assert trx.sender == Sender(b"joe@example.org")
    assert (trx.sender.args, trx.sender.authenticated_user) == ((b"SIZE=5",), "joe")
    assert trx.recipients == (Recipient(b"ann@example.test"), Recipient(b"user@xn--zck5b2b.example"))
    assert trx.recipients[0].transport == "local"
    assert (trx.queue_id, trx.macro("client_ptr"), trx.cut_short) == ("4ABC", "ptr.test", True)
    assert trx.headers.items() == [(b"Subject", b" Hi"), (b"X-Folded", b" one\n two")]
    assert trx.body.read() == b"one\r\ntwo\r\n"


def test_what_is_not_said_is_ordinary():
    trx = TransactionBuilder().build()
    assert not trx.mta.is_sendmail
    assert trx.connection.ip is not None
    assert trx.helo.name == "client.example.test"
    assert trx.sender == Sender(b"<>")
    assert trx.recipients == ()
    assert trx.message().read() == b"\r\n"


def test_builders_do_not_change():
    one = TransactionBuilder()
    two = one.header("A", "1")
    assert len(one.build().headers) == 0
    assert len(two.build().headers) == 1
    assert TransactionBuilder() == one != two


@pytest.mark.parametrize(
    ("address", "family", "expected"),
    [
        ("", None, Family.UNKNOWN),
        ("/run/socket", None, Family.UNIX),
        ("192.0.2.1", None, Family.INET),
        ("::1", None, Family.INET6),
        ("192.0.2.1", Family.INET6, Family.INET6),
    ],
)
def test_the_family_follows_from_the_address(address, family, expected):
    trx = TransactionBuilder().connection("h", address, family=family).build()
    assert trx.connection.family is expected


def test_a_whole_message():
    trx = BASE.message(b"A: 1\nB:2\n 3\n\nbody").build()
    assert trx.headers.items() == [(b"A", b" 1"), (b"B", b"2\n 3")]
    assert trx.body.read() == b"body\r\n"


@pytest.mark.parametrize("point", DecideAt)
def test_what_comes_later_is_not_there(point):
    trx = BASE.build(point)
    assert bool(trx.helo.name) is (point >= DecideAt.HELO)
    assert bool(trx.sender.bare) is (point >= DecideAt.MAIL)
    assert bool(trx.recipients) is (point >= DecideAt.DATA)
    assert bool(len(trx.headers)) is (point >= DecideAt.END_OF_HEADERS)
    if point < DecideAt.END_OF_MESSAGE:
        with pytest.raises(WrongStageError):
            _ = trx.body


async def test_a_filter_is_run():
    result = await BASE.sender("eve@example.org").run(external)
    result.expect(
        quarantine("train as spam"),
        DeleteRecipient(b"<user@xn--zck5b2b.example>"),
        AddRecipient(b"<trap@example.test>"),
        ChangeHeader(1, b"Subject", b" [EXTERNAL] Hi"),
        Quarantine(b"train as spam"),
    )
    assert result.envelope == Envelope(
        Path(b"<eve@example.org>"),
        (Path(b"<ann@example.test>", (b"NOTIFY=NEVER",)), Path(b"<trap@example.test>")),
    )
    assert result.message.startswith(b"Subject: [EXTERNAL] Hi\r\nX-Folded: one\r\n two\r\n\r\none")
    assert result.transaction.headers.subject == "[EXTERNAL] Hi"


@pytest.mark.parametrize("version", ["Postfix 3.7", "8.17.1"])
async def test_everything_is_changed(version):
    result = await BASE.mta(version=version, name="mx").run(everything)
    result.expect(
        ACCEPT,
        ChangeSender(b"<>"),
        ChangeHeader(1, b"X-Folded", b""),
        ReplaceBody(b"new\r\n"),
    )
    assert result.message == b"Subject: Hi\r\n\r\nnew\r\n"
    assert result.envelope.sender == Path(b"<>", (b"SIZE=5",))


async def test_a_refused_message_is_not_changed():
    async def refuse(trx: Transaction) -> Decision:
        await everything(trx)
        return REJECT

    result = await BASE.run(refuse)
    result.expect(REJECT)
    assert result.message == b"Subject: Hi\r\nX-Folded: one\r\n two\r\n\r\none\r\ntwo\r\n"
    assert result == await BASE.run(refuse)


async def test_an_early_decision():
    result = await BASE.run(external, DecideAt.CONNECT)
    assert [str(modification) for modification in result.modifications] == [
        'add_header name=Subject value=" [EXTERNAL] nothing"',
        'quarantine reason="train as spam"',
    ]
    assert b"\r\nSubject: [EXTERNAL] nothing\r\n" in result.message


async def test_surprises_are_told_as_a_diff():
    result = await BASE.run(everything)
    with pytest.raises(AssertionError) as caught:
        result.expect(
            REJECT,
            ChangeHeader(1, b"Subject", b" [EXTERNAL] Hi"),
            ReplaceBody(b"nEw\r\n"),
        )
    text = str(caught.value)
    assert text.splitlines()[0] == "the filter did something else:"
    assert {"- reject", "+ accept", "+ change_sender address=<>"} <= set(text.splitlines())
    assert "-     b'nEw\\r\\n'" in text
    assert "+     b'new\\r\\n'" in text
    with pytest.raises(AssertionError, match=r"\+ reject"):
        (await BASE.run(refused)).expect(ACCEPT)


async def refused(_trx: Transaction) -> Decision:
    return REJECT


def test_the_same_modifications_have_no_diff():
    assert diff_modifications([ChangeSender(b"<>")], [ChangeSender(b"<>")]) == ""
    assert diff_modifications([ChangeSender(b"<>")], []) == "- change_sender address=<>"


async def test_errors_are_the_tests():
    async def nothing(_trx: Transaction) -> Decision:
        return None  # type: ignore[return-value]

    with pytest.raises(TypeError, match="not None"):
        await BASE.run(nothing)
