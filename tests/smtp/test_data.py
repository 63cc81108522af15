"""The content of DATA: where it ends, what it becomes, what is too much."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.body import SpoolSettings
from milterchain.mail.canonical import canonical
from milterchain.mail.headers import HeaderLimits
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.smtp.data import DataDecoder, DataReceiver


def reference(stream):
    """Data without transparency dots and what follows them; None while they have not ended."""
    end = (b"\r\n" + stream).find(b"\r\n.\r\n")
    if end < 0:
        return None
    return re.sub(rb"(\A|\r\n)\.", rb"\1", stream[:end]), stream[end + 3 :]


def decode(pieces):
    """What the decoder makes of a stream that comes in pieces."""
    decoder = DataDecoder()
    buffer = bytearray()
    data = b""
    for piece in pieces:
        buffer += piece
        if not decoder.done:
            data += decoder.take(buffer)
            if not decoder.done:
                assert len(buffer) <= 4
    return (data, bytes(buffer)) if decoder.done else None


@pytest.mark.parametrize(
    ("stream", "data", "rest"),
    [
        (b".\r\n", b"", b""),
        (b".\r\nQUIT\r\n", b"", b"QUIT\r\n"),
        (b"\r\n.\r\n", b"\r\n", b""),
        (b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n"),
        (b"..\r\n.\r\n", b".\r\n", b""),
        (b".a\r\n..b\r\n.c\r\n...\r\n.\r\nX", b"a\r\n.b\r\nc\r\n..\r\n", b"X"),
        (b"a\r\r\n.\r\n", b"a\r\r\n", b""),
        (b"a\r\n.\r.\r\n.\r\n", b"a\r\n\r.\r\n", b""),
        (b"\xff\x00\r\n.\r\n", b"\xff\x00\r\n", b""),
    ],
)
def test_end_of_data(stream, data, rest):
    assert reference(stream) == (data, rest)
    assert decode([stream]) == (data, rest)
    assert decode([stream[at : at + 1] for at in range(len(stream))]) == (data, rest)


@pytest.mark.parametrize(
    "middle",
    [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\r.\r",
        b"\r.\r\n",
        b"\n.\r",
        b"\r\n\x00.\r\n",
        b"\r\n.\x00\r\n",
        b"\r\n.\r\x00\n",
        b"\r\x00\n.\r\n",
        b"\r\n.\r\r\n",
        b"\r\n. \r\n",
        b"\r\n ..\r\n",
        b"\x0b.\x0b",
        b"\x85.\x85",
        b"\xc2\x85.\r\n",
    ],
)
def test_smuggling(middle):
    smuggled = b"hi" + middle + b"MAIL FROM:<evil@example.com>\r\n"
    stream = smuggled + b".\r\n"
    expected = re.sub(rb"\r\n\.", b"\r\n", smuggled)
    assert decode([stream]) == (expected, b"")
    assert decode([stream[at : at + 1] for at in range(len(stream))]) == (expected, b"")


hostile = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\n.", b"a", b"\x00", b"\r\n.\r", b".\r\n"]),
    max_size=30,
).map(b"".join)


@given(hostile, st.lists(st.integers(1, 6), min_size=1), st.booleans())
def test_decoder_agrees_with_reference(stream, sizes, ended):
    if ended:
        stream += b"\r\n.\r\nQUIT\r\n"
    pieces = []
    at = 0
    for size in sizes * (len(stream) // sum(sizes) + 1):
        pieces.append(stream[at : at + size])
        at += size
    assert decode(pieces) == reference(stream)


def test_decoder_agrees_with_reference_on_many_random_splits():
    rng = random.Random(1)
    for _ in range(20_000):
        stream = bytes(rng.choices(b"\r\n.a", k=rng.randrange(1, 24))) + rng.choice(
            [b"\r\n.\r\nQUIT\r\n", b""]
        )
        cuts = sorted(rng.choices(range(len(stream) + 1), k=rng.randrange(6)))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        assert decode(pieces) == reference(stream)


def receive(*pieces, size_limit=1000, hops=3, **settings):
    receiver = DataReceiver(size_limit=size_limit, hops=hops, **settings)
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        if receiver.feed(buffer):
            return receiver.finish(), bytes(buffer)
    receiver.close()
    return None, receiver


def content(message):
    assert isinstance(message, Message)
    with message:
        return b"".join(message.chunks())


@given(hostile, st.integers(1, 5))
def test_message_is_canonical(text, size):
    stream = text + b"\r\n.\r\n"
    data, _ = reference(stream)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    message, _ = receive(b"A: b\r\n\r\n", *pieces)
    # Past the first line the dot that begins this stream is an ordinary one of a line begun by CRLF.
    assert content(message) == b"A: b\r\n\r\n" + canonical(data)


def test_small_message():
    message, rest = receive(b"Subject: x\r\n\r\n..hello\nw\rorld\r\n.\r\nNOOP\r\n")
    assert content(message) == b"Subject: x\r\n\r\n.hello\r\nw orld\r\n"
    assert rest == b"NOOP\r\n"


def test_empty_message():
    message, _ = receive(b".\r\n")
    assert content(message) == b""


def test_large_message_goes_to_a_file():
    body = b"0123456789\r\n" * 100_000
    stream = b"A: b\r\n\r\n" + body + b".\r\n"
    pieces = [stream[at : at + 65_521] for at in range(0, len(stream), 65_521)]
    message, _ = receive(*pieces, size_limit=2_000_000)
    assert not message.body.in_memory
    assert content(message) == b"A: b\r\n\r\n" + body


def test_size_limit_counts_the_message_as_it_is_relayed():
    # 10 octets: a dot less, a CR more.
    stream = b"..234567\n\r\n.\r\n"
    message, _ = receive(stream, size_limit=11)
    assert content(message) == b".234567\r\n\r\n"
    refusal, _ = receive(stream, size_limit=10)
    assert (refusal.code, refusal.status) == (552, b"5.3.4")


def test_too_large_is_read_to_its_end():
    refusal, rest = receive(b"x" * 600, b"x" * 600, b"\r", b"\n", b".\r\nNOOP\r\n")
    assert isinstance(refusal, Reply)
    assert refusal.code == 552
    assert rest == b"NOOP\r\n"


def test_endless_data_are_hopeless():
    _, receiver = receive(*[b"x" * 999] * 4)
    assert not receiver.hopeless
    _, receiver = receive(*[b"x" * 999] * 5)
    assert receiver.hopeless


def test_header_limits():
    limits = HeaderLimits(total=100)
    refusal, rest = receive(b"A: " + b"x" * 120 + b"\r\n\r\nbody\r\n.\r\nNOOP\r\n", limits=limits)
    assert (refusal.code, refusal.status) == (552, b"5.3.4")
    assert rest == b"NOOP\r\n"


def test_hops():
    def with_hops(count):
        return b"received: x\r\n" * count + b"\r\nbody\r\n.\r\n"

    message, _ = receive(with_hops(2))
    assert content(message).count(b"received") == 2
    refusal, _ = receive(with_hops(3))
    assert (refusal.code, refusal.status) == (554, b"5.4.6")


def test_no_storage(tmp_path):
    gone = SpoolSettings(threshold=10, directory=str(tmp_path / "gone"))
    refusal, rest = receive(b"A: b\r\n\r\n", b"x" * 100, b"y\r\n.\r\nNOOP\r\n", spool=gone)
    assert (refusal.code, refusal.status) == (452, b"4.3.1")
    assert rest == b"NOOP\r\n"


def test_no_storage_at_the_end(monkeypatch):
    receiver = DataReceiver(size_limit=1000, hops=3)
    assert receiver.feed(bytearray(b"A: b\r\n\r\nx\r\n.\r\n"))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("milterchain.mail.message.MessageBuilder.finish", full)
    refusal = receiver.finish()
    assert isinstance(refusal, Reply)
    assert refusal.code == 452
