"""The text form of messages is stable: logs are read by machines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.milter.filter import reply
from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, Command, Family, Stage
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    AddRecipient,
    Body,
    ChangeHeader,
    ChangeSender,
    Connect,
    Continue,
    DeleteRecipient,
    Discard,
    EndOfMessage,
    Header,
    Helo,
    InsertHeader,
    Macros,
    Mail,
    OptNeg,
    Progress,
    Quarantine,
    QuitNewConnection,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
    Unknown,
)
from milterchain.milter.readable import logfmt


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Continue(), "continue"),
        (Accept(), "accept"),
        (Reject(), "reject"),
        (TempFail(), "tempfail"),
        (Discard(), "discard"),
        (Skip(), "skip"),
        (Shutdown(), "shutdown"),
        (Progress(), "progress"),
        (reply(550, "5.7.1", "no"), "reply_code code=550 status=5.7.1 text=no"),
        (
            reply(450, None, '"no" 100%', "never\\"),
            r'reply_code code=450 text="\"no\" 100%\nnever\\"',
        ),
        (reply(451, "4.3.0"), 'reply_code code=451 status=4.3.0 text=""'),
        (ReplyCode(b"nonsense"), "reply_code raw=nonsense"),
        (ReplyCode(b"550-a\r\n551 b"), r'reply_code raw="550-a\r\n551 b"'),
        (Quarantine(b"looks odd"), 'quarantine reason="looks odd"'),
        (AddHeader(b"X", b"a\n\tb"), r'add_header name=X value="a\n\tb"'),
        (InsertHeader(1, b"X", b""), 'insert_header index=1 name=X value=""'),
        (ChangeHeader(2, b"X", b"1"), "change_header index=2 name=X value=1"),
        (AddRecipient(b"<a@x>"), "add_recipient address=<a@x>"),
        (AddRecipient(b"<a@x>", b"A=1 B"), 'add_recipient_par address=<a@x> args="A=1 B"'),
        (DeleteRecipient("<ä@x>".encode()), 'delete_recipient address="<ä@x>"'),
        (ChangeSender(b"<\xff>"), r'change_sender address="<\xff>"'),
        (ReplaceBody(b"x" * 10), "replace_body bytes=10"),
        (ReplaceBody(), "replace_body"),
        (Abort(), "abort"),
        (QuitNewConnection(), "quit_new_connection"),
        (Body(b"x"), "body bytes=1"),
        (EndOfMessage(), "end_of_message"),
        (Helo(b"mx"), "helo text=mx"),
        (Unknown(b"a"), "unknown text=a"),
        (Mail(b"<>", (b"SIZE=1", b"X")), 'mail address=<> args="SIZE=1 X"'),
        (Rcpt(b"<a@x>"), 'rcpt address=<a@x> args=""'),
        (Header(b"A", b"\x7f"), r'header name=A value="\x7f"'),
        (
            Connect(hostname=b"h", family=Family.INET, port=25, address=b"192.0.2.1"),
            "connect hostname=h family=inet port=25 address=192.0.2.1",
        ),
        (Macros(Command.MAIL, ((b"i", b"1"), (b"{x}", b"a b"))), 'macro stage=mail i=1 {x}="a b"'),
        (Macros(1, ()), "macro stage=1"),
        (
            Macros(Command.MAIL, ((b"a\n\xff", b"1"), (b"b=2 c", b""))),
            r'macro stage=mail "a\n\xff"=1 "b=2 c"=""',
        ),
        (
            OptNeg(
                version=6,
                actions=ALL_ACTIONS,
                protocol=ALL_PROTOCOL,
                macros={Stage.MAIL: (b"i", b"{x}"), 9: ()},
            ),
            'optneg version=6 actions=0x1ff protocol=0x1fffff macros="mail:i,{x} 9:"',
        ),
    ],
)
def test_messages(message, text):
    assert str(message) == text


def test_the_representation_stays_that_of_a_dataclass():
    assert repr(AddHeader(b"X", b"1")) == "AddHeader(name=b'X', value=b'1')"


@given(st.text(), st.binary())
def test_whatever_comes_is_one_printable_line(name, value):
    assert logfmt("word", {name: value}).isprintable()
