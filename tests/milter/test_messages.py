"""Every packet's payload, both ways: whole, byte by byte and with a tail (in frames), and hostile."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import LocalProtocolError
from milterchain.milter import messages
from milterchain.milter.flags import Action, Command, Family, Protocol, Stage
from milterchain.milter.framing import PacketReader, encode_packet
from milterchain.milter.messages import (
    Abort,
    Accept,
    AddHeader,
    AddRecipient,
    Body,
    ChangeHeader,
    ChangeSender,
    Connect,
    ConnFail,
    Continue,
    Data,
    DeleteRecipient,
    Discard,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    InsertHeader,
    Macros,
    Mail,
    OptNeg,
    Progress,
    Quarantine,
    Quit,
    QuitNewConnection,
    Rcpt,
    Reject,
    ReplaceBody,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
    Unknown,
    decode_command,
    decode_response,
)

OPTIONS = b"\0\0\0\6\0\0\1\xff\0\x1f\xff\xff"
OPTNEG = OptNeg(version=6, actions=Action(0x1FF), protocol=Protocol(0x1FFFFF))

COMMANDS = [
    (OPTNEG, b"O" + OPTIONS),
    (
        OptNeg(
            version=6,
            actions=Action(0),
            protocol=Protocol(0x40000000),
            macros={Stage.CONNECT: (b"j", b"{client_addr}"), 9: ()},
        ),
        b"O\0\0\0\6\0\0\0\0\x40\0\0\0\0\0\0\0j {client_addr}\0\0\0\0\x09\0",
    ),
    (Macros(ord("C"), ((b"j", b"mx"), (b"{if_name}", b""))), b"DCj\0mx\0{if_name}\0\0"),
    (Macros(ord("?"), ()), b"D?"),
    (Connect(hostname=b"[1.2.3.4]", family=Family.INET, port=258, address=b"1.2.3.4"), None),
    (Connect(hostname=b"h", family=Family.INET, port=258, address=b"1.2.3.4"), b"Ch\x004\1\x021.2.3.4\0"),
    (Connect(hostname=b"h", family=Family.INET6, port=0, address=b"::1"), b"Ch\x006\0\0::1\0"),
    (Connect(hostname=b"h", family=Family.UNIX, address=b"/run/s"), b"Ch\0L\0\0/run/s\0"),
    (Connect(hostname=b"localhost"), b"Clocalhost\0U"),
    (Helo(b"mx.example"), b"Hmx.example\0"),
    (Mail(b"<>"), b"M<>\0"),
    (Mail(b"<a@b>", (b"SIZE=1", b"BODY=8BITMIME")), b"M<a@b>\0SIZE=1\0BODY=8BITMIME\0"),
    (Rcpt(b"a@b", (b"NOTIFY=NEVER",)), b"Ra@b\0NOTIFY=NEVER\0"),
    (Data(), b"T"),
    (Header(b"Subject", b" a\n\tb"), b"LSubject\0 a\n\tb\0"),
    (Header(b"X", b""), b"LX\0\0"),
    (EndOfHeaders(), b"N"),
    (Body(b"a\0b\r\n"), b"Ba\0b\r\n"),
    (EndOfMessage(), b"E"),
    (EndOfMessage(b"tail"), b"Etail"),
    (Unknown(b"FOO bar"), b"UFOO bar\0"),
    (Abort(), b"A"),
    (Quit(), b"Q"),
    (QuitNewConnection(), b"K"),
]

RESPONSES = [
    (OPTNEG, b"O" + OPTIONS),
    (Continue(), b"c"),
    (Accept(), b"a"),
    (Reject(), b"r"),
    (TempFail(), b"t"),
    (Discard(), b"d"),
    (Skip(), b"s"),
    (ConnFail(), b"f"),
    (Shutdown(), b"4"),
    (ReplyCode(b"550-5.7.1 a\r\n550 5.7.1 b"), b"y550-5.7.1 a\r\n550 5.7.1 b\0"),
    (Progress(), b"p"),
    (Quarantine(b"why"), b"qwhy\0"),
    (AddHeader(b"X", b"1"), b"hX\x001\0"),
    (InsertHeader(1, b"X", b" 1"), b"i\0\0\0\1X\0 1\0"),
    (ChangeHeader(0xFFFFFFFF, b"X", b""), b"m\xff\xff\xff\xffX\0\0"),
    (AddRecipient(b"<a@b>"), b"+<a@b>\0"),
    (AddRecipient(b"<a@b>", b"NOTIFY=NEVER"), b"2<a@b>\0NOTIFY=NEVER\0"),
    (DeleteRecipient(b"a@b"), b"-a@b\0"),
    (ChangeSender(b"<>"), b"e<>\0"),
    (ChangeSender(b"<a@b>", b"RET=HDRS ENVID=1"), b"e<a@b>\0RET=HDRS ENVID=1\0"),
    (ReplaceBody(b"new\r\n"), b"bnew\r\n"),
    (ReplaceBody(), b"b"),
]

ROWS = [(decode_command, message, data) for message, data in COMMANDS if data]
ROWS += [(decode_response, message, data) for message, data in RESPONSES]


every_message = pytest.mark.parametrize(("decode", "message", "data"), ROWS, ids=repr)


@every_message
def test_whole(decode, message, data):
    assert bytes((message.code,)) + message.encode() == data
    assert decode(data[0], data[1:]) == message


@every_message
def test_byte_by_byte_with_a_tail(decode, message, data):
    reader = PacketReader(1000)
    packets = []
    for byte in encode_packet(data[0], data[1:]) + b"\0\0\0":
        reader.feed(bytes((byte,)))
        packets += reader
    assert [decode(*packet) for packet in packets] == [message]
    assert len(reader.unread) == 3


@every_message
def test_truncations_are_refused_or_other_messages(decode, message, data):
    for size in range(1, len(data)):
        with suppress(LocalProtocolError):
            assert decode(data[0], data[1:size]) != message


def test_the_rows_name_every_message():
    named = {type(message).__name__ for message, _ in COMMANDS + RESPONSES}
    types = {"AnyCommand", "AnyResponse", "Modification", "Reply", "decode_command", "decode_response"}
    assert named == set(messages.__all__) - types


def test_an_add_recipient_without_arguments_in_the_form_that_has_some():
    assert decode_response(ord("2"), b"<a@b>\0") == AddRecipient(b"<a@b>")


def test_macro_lists_are_separated_by_blanks_or_commas():
    decoded = decode_command(ord("O"), OPTIONS + b"\0\0\0\5i, {a}\t,{b}\0")
    assert decoded == OptNeg(
        version=6,
        actions=Action(0x1FF),
        protocol=Protocol(0x1FFFFF),
        macros={Stage.END_OF_MESSAGE: (b"i", b"{a}", b"{b}")},
    )


@pytest.mark.parametrize("message", [m for m, _ in COMMANDS + RESPONSES if not m.encode()], ids=repr)
def test_no_payload_where_none_belongs(message):
    if isinstance(message, Body | EndOfMessage | ReplaceBody):
        return
    decode = decode_command if isinstance(message.code, Command) else decode_response
    with pytest.raises(LocalProtocolError, match="1 bytes of payload where none belong"):
        decode(message.code, b"\0")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"O\0\0\0\6", "of 4 bytes"),
        (b"O" + OPTIONS + b"\0\0\0", "too short"),
        (b"O" + OPTIONS + b"\0\0\0\0i", "missing NUL at the end of a macro list"),
        (b"D", "without a stage"),
        (b"DCj\0", "1 strings"),
        (b"DCj\0a\0b\0", "without a value"),
        (b"DCj\0a", "missing NUL"),
        (b"C", "without host name"),
        (b"Chost", "without host name"),
        (b"Chost\0", "without host name"),
        (b"Chost\0X\0\0a\0", "unknown address family"),
        (b"Chost\0U\0\0a\0", "neither port nor address"),
        (b"Chost\x004\0", "without a port"),
        (b"Chost\x004\0\0", "missing NUL"),
        (b"Chost\x004\0\0a\0b\0", "2 strings"),
        (b"Ha", "missing NUL"),
        (b"Ha\0b\0", "2 strings"),
        (b"H", "missing NUL"),
        (b"M", "missing NUL"),
        (b"La\0", "1 strings"),
        (b"La\0b\0c\0", "3 strings"),
        (b"Z", "unknown command b'Z'"),
        (b"c", "unknown command b'c'"),
    ],
)
def test_commands_that_are_refused(data, text):
    with pytest.raises(LocalProtocolError, match=text):
        decode_command(data[0], data[1:])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"y550 no", "missing NUL"),
        (b"y550 no\0\0", "2 strings"),
        (b"q", "missing NUL"),
        (b"hX\0", "1 strings"),
        (b"i\0\0\0", "too short"),
        (b"i\0\0\0\0X\0", "1 strings"),
        (b"m\0\0\0\1X\0a\0b\0", "3 strings"),
        (b"+a\0b\0c\0", "3 strings"),
        (b"+", "missing NUL"),
        (b"-a", "missing NUL"),
        (b"e\0a\0b\0", "3 strings"),
        (b"l", "unknown response b'l'"),
        (b"C", "unknown response b'C'"),
    ],
)
def test_responses_that_are_refused(data, text):
    with pytest.raises(LocalProtocolError, match=text):
        decode_response(data[0], data[1:])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Helo(b"a\0b"),
        lambda: Mail(b"a\0"),
        lambda: Rcpt(b"a", (b"x", b"\0")),
        lambda: Header(b"a", b"\0"),
        lambda: Macros(0, ((b"a", b"\0"),)),
        lambda: OptNeg(version=6, actions=Action(0), protocol=Protocol(0), macros={0: (b"\0",)}),
        lambda: Connect(hostname=b"\0"),
        lambda: AddHeader(b"\0", b""),
        lambda: InsertHeader(0, b"a", b"\0"),
        lambda: AddRecipient(b"a", b"\0"),
        lambda: ChangeSender(b"\0"),
        lambda: ReplyCode(b"\0"),
    ],
)
def test_no_string_can_hold_a_nul(build):
    with pytest.raises(LocalProtocolError, match="NUL inside a string"):
        build()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Connect(hostname=b"h", family=Family.INET, port=65536, address=b"a"), "port 65536"),
        (lambda: Connect(hostname=b"h", family=Family.INET, port=-1, address=b"a"), "port -1"),
        (lambda: Connect(hostname=b"h", port=25), "neither port nor address"),
        (lambda: Connect(hostname=b"h", address=b"a"), "neither port nor address"),
        (lambda: InsertHeader(-1, b"a", b"b"), "index -1"),
        (lambda: ChangeHeader(2**32, b"a", b"b"), "index 4294967296"),
    ],
)
def test_numbers_out_of_range(build, text):
    with pytest.raises(LocalProtocolError, match=text):
        build()


@given(st.integers(0, 255), st.binary(max_size=80))
def test_what_is_decoded_encodes_to_what_decodes_to_it(code, payload):
    for decode in (decode_command, decode_response):
        try:
            message = decode(code, payload)
        except LocalProtocolError:
            continue
        assert decode(message.code, message.encode()) == message


@given(
    st.sampled_from(ROWS),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3),
    st.data(),
)
def test_damaged_packets_are_read_or_refused(row, damage, data):
    decode, _, packet = row
    broken = bytearray(packet)
    for position, byte in damage:
        broken[position % len(broken)] = byte
    cut = data.draw(st.integers(1, len(broken)))
    with suppress(LocalProtocolError):
        decode(broken[0], bytes(broken[1:cut]))
