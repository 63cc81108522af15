"""Changes to a message, without a server."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import LocalProtocolError, NotNegotiatedError, VersionError, WrongStageError
from milterchain.milter.flags import ALL_ACTIONS, DATA_SIZE_64K, Action, Protocol
from milterchain.milter.messages import AddHeader, AddRecipient, ChangeSender, Progress, ReplaceBody
from milterchain.milter.modifier import Modifier
from milterchain.milter.negotiation import Negotiated

CHANGES = {
    "add_header": (b"X", b"1"),
    "insert_header": (1, b"X", b"1"),
    "change_header": (b"X", b"1"),
    "delete_header": (b"X",),
    "change_sender": (b"<>",),
    "add_recipient": (b"<a@x>",),
    "delete_recipient": (b"<a@x>",),
    "replace_body": (b"new",),
    "quarantine": (b"why",),
}


class Recorder:
    def __init__(self) -> None:
        self.sent = []

    async def emit(self, message):
        self.sent.append(message)

    async def progress(self):
        self.sent.append(Progress())


def agreed(version=6, actions=ALL_ACTIONS, size=DATA_SIZE_64K):
    return Negotiated(version=version, actions=actions, protocol=Protocol(0), max_data=size)


def modifier(**settings):
    sink = Recorder()
    return Modifier(sink, agreed(**settings)), sink.sent


async def pieces(*chunks):
    for chunk in chunks:
        yield chunk


class Unreadable:
    def read(self, _size):
        raise OSError("disk")


@pytest.mark.parametrize(
    ("source", "sent"),
    [
        (lambda: b"", [b""]),
        (lambda: b"abc", [b"abc"]),
        (lambda: b"abcd", [b"abcd"]),
        (lambda: b"abcde", [b"abcd", b"e"]),
        (lambda: bytearray(b"abcde"), [b"abcd", b"e"]),
        (lambda: memoryview(b"abcde"), [b"abcd", b"e"]),
        (lambda: io.BytesIO(b"abcdefghi"), [b"abcd", b"efgh", b"i"]),
        (io.BytesIO, [b""]),
        (lambda: [b"a", b"bcdef", b"", b"g"], [b"abcd", b"efg"]),
        (lambda: iter([b"abcdefghi"]), [b"abcd", b"efgh", b"i"]),
        (list, [b""]),
        (lambda: pieces(b"a", b"bcdef", b"", b"g"), [b"abcd", b"efg"]),
        (pieces, [b""]),
    ],
)
async def test_a_new_body_goes_out_in_few_packets(source, sent):
    change, messages = modifier(size=4)
    await change.replace_body(source())
    assert messages == [ReplaceBody(chunk) for chunk in sent]


async def test_a_file_is_read_from_where_it_stands():
    file = io.BytesIO(b"abcdef")
    file.seek(3)
    change, messages = modifier()
    await change.replace_body(file)
    assert messages == [ReplaceBody(b"def")]


async def test_a_body_that_cannot_be_read():
    change, messages = modifier()
    with pytest.raises(OSError, match="disk"):
        await change.replace_body(Unreadable())
    assert messages == []


@given(chunks=st.lists(st.binary(max_size=20)), size=st.integers(1, 10))
async def test_nothing_is_lost_and_nothing_wasted(chunks, size):
    change, messages = modifier(size=size)
    await change.replace_body(chunks)
    body = b"".join(chunks)
    assert b"".join(message.chunk for message in messages) == body
    assert len(messages) == max(1, math.ceil(len(body) / size))


async def test_a_new_body_in_two_goes():
    change, messages = modifier()
    await change.add_header(b"X", b"1")
    await change.replace_body(b"a")
    await change.progress()
    await change.replace_body(b"b")
    await change.quarantine(b"why")
    with pytest.raises(LocalProtocolError, match="in one go"):
        await change.replace_body(b"c")
    assert messages[1:4] == [ReplaceBody(b"a"), Progress(), ReplaceBody(b"b")]


@pytest.mark.parametrize("name", CHANGES)
async def test_changes_are_for_the_end_of_a_message_only(name):
    sink = Recorder()
    early = Modifier(sink, agreed(), writable=False)
    late = Modifier(sink, agreed())
    late.expire()
    for change in (early, late):
        with pytest.raises(WrongStageError):
            await getattr(change, name)(*CHANGES[name])
        await change.progress()
    assert sink.sent == [Progress()] * 2


@pytest.mark.parametrize("name", CHANGES)
async def test_changes_need_permission(name):
    change, messages = modifier(actions=Action(0))
    with pytest.raises(NotNegotiatedError, match="add it to the filter's `actions`"):
        await getattr(change, name)(*CHANGES[name])
    assert messages == []


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
async def test_changes_that_an_old_version_lacks(version):
    change, messages = modifier(version=version)
    await change.add_recipient(b"<a@x>")
    assert messages.pop() == AddRecipient(b"<a@x>")
    for name, arguments, message in [
        ("change_sender", (b"<>",), ChangeSender(b"<>")),
        ("add_recipient", (b"<a@x>", b"X=1"), AddRecipient(b"<a@x>", b"X=1")),
    ]:
        if version == 6:
            await getattr(change, name)(*arguments)
            assert messages.pop() == message
        else:
            with pytest.raises(
                VersionError, match=f"needs version 6 of the protocol, the MTA speaks {version}"
            ):
                await getattr(change, name)(*arguments)


async def test_line_ends_in_a_header():
    change, messages = modifier()
    await change.add_header(b"X", b"1\r\n 2\n 3\r 4")
    assert messages == [AddHeader(b"X", b"1\n 2\n 3\n 4")]
