import pytest

from milterchain.mail.address import Address
from milterchain.mailfilter import Recipient, Sender
from milterchain.milter.flags import Command
from milterchain.milter.macros import MacroStore


def macros(stage: Command, **values: bytes) -> MacroStore:
    store = MacroStore()
    store.define(stage, [(b"{%b}" % name.encode(), value) for name, value in values.items()])
    return store


def test_a_sender_with_all_that_is_known():
    given = macros(
        Command.MAIL,
        mail_mailer=b"smtp",
        mail_host=b"example.test",
        auth_authen=b"joe+40example.test",
        auth_type=b"PLAIN",
        auth_ssf=b"128",
        auth_author=b"ann@example.test",
    )
    sender = Sender.from_milter(b"<joe@example.test>", (b"SIZE=12", b"BODY=8BITMIME"), given)
    assert sender.bare == b"joe@example.test"
    assert (sender.local, sender.domain) == (b"joe", b"example.test")
    assert sender.parameters == {b"SIZE": b"12", b"BODY": b"8BITMIME"}
    assert (sender.transport, sender.host) == ("smtp", "example.test")
    assert (sender.auth_type, sender.auth_ssf, sender.auth_author) == ("PLAIN", "128", "ann@example.test")
    assert sender.authenticated_user == "joe+40example.test"
    assert Sender.from_milter(b"<>", (), given, sendmail=True).authenticated_user == "joe@example.test"
    given = macros(Command.MAIL, auth_authen=b"j+C3+B6rg+2B1+ZZ")
    assert Sender.from_milter(b"<>", (), given, sendmail=True).authenticated_user == "jörg+1+ZZ"


def test_a_recipient():
    given = macros(Command.RCPT, rcpt_mailer=b"local", rcpt_host=b"example.test")
    recipient = Recipient.from_milter(b"ann@example.test", (b"NOTIFY=NEVER",), given)
    assert (recipient.transport, recipient.host) == ("local", "example.test")
    assert recipient.args == (b"NOTIFY=NEVER",)


@pytest.mark.parametrize("kind", [Address, Recipient, Sender])
def test_they_compare_as_addresses(kind):
    one = kind("<user@スパム.example>".encode())
    assert one == Recipient(b"user@xn--zck5b2b.EXAMPLE", (b"X",), transport="local")
    assert hash(one) == hash(Sender(b"user@xn--zck5b2b.example"))
    assert one != kind(b"User@xn--zck5b2b.example")
    assert str(one) == "user@スパム.example"
