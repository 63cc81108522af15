import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.edits import apply_envelope_edits
from milterchain.mail.envelope import Envelope
from milterchain.mailfilter import Recipient, Sender
from milterchain.mailfilter.envelope_changes import EnvelopeChanges
from milterchain.milter.messages import AddRecipient, ChangeSender, DeleteRecipient

SPAM = "user@スパム.example"
SPAM_ASCII = b"user@xn--zck5b2b.example"


def envelope(*recipients: bytes, sender: bytes = b"<joe@x.test>", args: tuple[bytes, ...] = ()):
    return EnvelopeChanges(Sender(sender, args), [Recipient(address) for address in recipients])


def test_nothing_changed():
    changes = envelope(b"<a@x.test>", b"b@x.test")
    assert list(changes.edits()) == []
    assert changes.sender == Sender(b"joe@x.test")
    assert changes.recipients == (Recipient(b"a@x.test"), Recipient(b"b@x.test"))


@pytest.mark.parametrize(
    ("given_sender", "edit"),
    [
        (("ann@x.test",), ChangeSender(b"<ann@x.test>")),
        (("<ann@x.test>", "RET=HDRS", b"ENVID=1"), ChangeSender(b"<ann@x.test>", b"RET=HDRS ENVID=1")),
        (("joe@x.test", "RET=HDRS"), ChangeSender(b"<joe@x.test>", b"RET=HDRS")),
        ((b"<>",), ChangeSender(b"<>")),
        (("",), ChangeSender(b"<>")),
        (("Joe <ann@x.test>",), ChangeSender(b"<ann@x.test>")),
        ((SPAM,), ChangeSender(b"<" + SPAM_ASCII + b">")),
        (("é@x.test",), ChangeSender("<é@x.test>".encode())),
        (("joe@x.test",), None),
        (("joe@x.test", "BODY=8BITMIME"), None),
        (("joe@X.test",), ChangeSender(b"<joe@X.test>")),
    ],
)
@pytest.mark.parametrize("typed", [b"<joe@x.test>", b"joe@x.test"])
def test_the_sender_is_changed_once_or_not(given_sender, edit, typed):
    changes = envelope(sender=typed, args=(b"BODY=8BITMIME",))
    changes.change_sender("somebody@else.test")
    changes.change_sender(*given_sender)
    assert list(changes.edits()) == ([edit] if edit else [])


def test_a_changed_sender_is_still_the_one_who_logged_in():
    changes = EnvelopeChanges(
        Sender(b"joe@x.test", (b"SIZE=1",), authenticated_user="joe", transport="local", host="x.test"), []
    )
    changes.change_sender("ann@y.test")
    assert changes.sender == Sender(b"ann@y.test")
    assert changes.sender.authenticated_user == "joe"
    assert changes.sender.args == (b"SIZE=1",)
    assert (changes.sender.transport, changes.sender.host) == ("", "")


def test_recipients_are_found_however_they_are_spelled():
    changes = envelope(b"<" + SPAM_ASCII + b">")
    assert changes.has_recipient(SPAM)
    assert changes.has_recipient(f"<{SPAM}>")
    assert changes.has_recipient(b"user@XN--ZCK5B2B.Example")
    assert not changes.has_recipient("User@スパム.example")
    assert not changes.has_recipient("nobody")


def test_recipients_are_deleted_as_the_client_spelled_them():
    changes = envelope(SPAM.encode(), b"<a@x.test>", b"a@X.test", b"a@x.test", b"A@x.test")
    assert changes.delete_recipient(SPAM_ASCII)
    assert changes.delete_recipient("a@X.TEST")
    assert not changes.delete_recipient("a@x.test")
    assert changes.recipients == (Recipient(b"A@x.test"),)
    assert list(changes.edits()) == [
        DeleteRecipient(f"<{SPAM}>".encode()),
        DeleteRecipient(b"<a@x.test>"),
        DeleteRecipient(b"<a@X.test>"),
    ]


def test_recipients_are_added():
    changes = envelope(b"a@x.test")
    assert changes.add_recipient(SPAM)
    assert not changes.add_recipient(SPAM_ASCII)
    assert not changes.add_recipient("a@X.test")
    assert changes.add_recipient("b@x.test", "NOTIFY=NEVER", b"ORCPT=rfc822;b@x.test")
    assert changes.has_recipient(SPAM_ASCII)
    assert list(changes.edits()) == [
        AddRecipient(b"<" + SPAM_ASCII + b">"),
        AddRecipient(b"<b@x.test>", b"NOTIFY=NEVER ORCPT=rfc822;b@x.test"),
    ]


def test_what_is_taken_back_is_no_change():
    changes = envelope(b"<a@x.test>", b"<b@x.test>")
    changes.delete_recipient("a@x.test")
    changes.add_recipient("A@x.test")
    changes.add_recipient("a@x.test")
    changes.delete_recipient("A@x.test")
    assert list(changes.edits()) == []
    assert set(changes.recipients) == {Recipient(b"a@x.test"), Recipient(b"b@x.test")}


def test_other_arguments_need_another_recipient():
    changes = envelope(b"<a@x.test>")
    changes.delete_recipient("a@x.test")
    changes.add_recipient("a@x.test", "NOTIFY=NEVER")
    assert list(changes.edits()) == [
        DeleteRecipient(b"<a@x.test>"),
        AddRecipient(b"<a@x.test>", b"NOTIFY=NEVER"),
    ]


def test_what_is_not_known_yet_can_be_changed_blindly():
    changes = EnvelopeChanges(None, None)
    assert changes.sender == Sender(b"")
    assert changes.recipients == ()
    changes.change_sender("")
    assert not changes.delete_recipient("A@x.test")
    assert changes.add_recipient("b@x.test")
    assert list(changes.edits()) == [
        ChangeSender(b"<>"),
        DeleteRecipient(b"<A@x.test>"),
        AddRecipient(b"<b@x.test>"),
    ]


@pytest.mark.parametrize("address", ["a b@x.test", "a@x.test\r\nDATA", "<a@x.test", "a\0@x.test"])
def test_what_is_no_address_is_refused(address):
    changes = envelope()
    for change in (changes.change_sender, changes.add_recipient, changes.delete_recipient):
        with pytest.raises(ValueError, match="is no address"):
            change(address)


def test_other_refusals():
    changes = envelope()
    with pytest.raises(ValueError, match="cannot be empty"):
        changes.add_recipient("<>")
    for arg in ("NOTIFY=NEVER X=1", "", b"X=\n"):
        with pytest.raises(ValueError, match="no argument"):
            changes.add_recipient("a@x.test", arg)


ADDRESSES = st.sampled_from(["a@x.test", "a@X.TEST", "b@x.test", SPAM, SPAM_ASCII.decode(), "c"])


@given(st.lists(ADDRESSES, max_size=5), st.lists(st.tuples(st.booleans(), ADDRESSES), max_size=8))
def test_applying_the_edits_gives_the_present_recipients(before, operations):
    changes = envelope(*(address.encode() for address in before))
    for adding, address in operations:
        if adding:
            changes.add_recipient(address)
        else:
            changes.delete_recipient(address)
    original = Envelope(Sender(b"<joe@x.test>").path, tuple(Recipient(a.encode()).path for a in before))
    edited, warnings, unusable = apply_envelope_edits(original, list(changes.edits()))
    assert (warnings, unusable) == ((), ())
    assert {Recipient(path.address) for path in edited.recipients} == set(changes.recipients)
    assert len(edited.recipients) == len(changes.recipients)
