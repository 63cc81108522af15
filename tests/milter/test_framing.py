import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import LocalProtocolError, NotAMilterError, PacketTooLargeError, RemoteProtocolError
from milterchain.milter import framing
from milterchain.milter.framing import PacketReader, encode_packet

CONTINUE = b"\0\0\0\1c"


def read(data, max_payload=1000):
    reader = PacketReader(max_payload)
    reader.feed(data)
    return list(reader)


@pytest.mark.parametrize(
    ("code", "payload", "data"),
    [
        (ord("c"), b"", CONTINUE),
        (ord("H"), b"mx\0", b"\0\0\0\4Hmx\0"),
        (0, b"\0" * 300, b"\0\0\1\x2d\0" + b"\0" * 300),
    ],
)
def test_packets(code, payload, data):
    assert encode_packet(code, payload) == data
    assert read(data) == [(code, payload)]
    assert read(data * 3) == [(code, payload)] * 3
    assert read(data + data[:4]) == [(code, payload)]
    assert read(data[:-1]) == []


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=100))), st.data())
def test_any_pieces_give_the_same_packets(packets, data):
    stream = b"".join(encode_packet(code, payload) for code, payload in packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = PacketReader(100)
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(stream[start:end])
        found += reader
    assert found == packets
    assert len(reader.unread) == 0


@given(st.binary(max_size=200))
def test_hostile_bytes_are_packets_or_refused(data):
    try:
        packets = read(data, 150)
    except RemoteProtocolError:
        return
    assert data.startswith(b"".join(encode_packet(*packet) for packet in packets))


def test_nothing_is_allocated_by_announcement():
    reader = PacketReader(2**31)
    reader.feed(b"\0\xff\xff\xff")
    assert reader.next_packet() is None
    assert len(reader.unread) == 4


def test_the_limit():
    assert read(encode_packet(1, bytes(10)), 10) == [(1, bytes(10))]
    with pytest.raises(PacketTooLargeError, match="packet of 12 bytes announced, 11 are the most"):
        read(encode_packet(1, bytes(11))[:4], 10)


def test_length_0():
    with pytest.raises(RemoteProtocolError, match="length 0"):
        read(bytes(4))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"220 mx.example ESMTP\r\n", r"an SMTP or FTP server: b'220 mx.example ESMTP'"),
        (b"421 too busy\r\n", "an SMTP server that is closing"),
        (b"554 no\r\n", "an SMTP server that refuses"),
        (b"UNKNOWN COMMAND\n", "clamd: b'UNKNOWN COMMAND'"),
        (b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", "an HTTP server: b'HTTP/1.1 400 Bad Request'"),
        (b"GET / HTTP/1.1\r\n", "an HTTP client"),
        (b"EHLO me\r\n", "an SMTP client"),
        (b"RSPAMD/1.3 0 EX_OK\r\n", "rspamd's own protocol"),
        (b"SPAMD/1.0 76 Bad header line\r\n", "spamd"),
        (b"* OK IMAP ready\r\n", "an IMAP server"),
        (b"+OK POP3 ready\r\n", "a POP3 server"),
        (b"SSH-2.0-OpenSSH\r\n", "an SSH server"),
        (b"\x15\x03\x01\0\2\2\x46", r"TLS: b'\\x15\\x03"),
        (b"\x16\x03\x01\0\n\n\n", r"TLS: b'\\x16\\x03"),
        (b"PROXY TCP4 1.2.3.4", "the PROXY protocol"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21", "the PROXY protocol"),
        (b"\xff\xfe\xfd\xfc", "this is no milter packet"),
        (b"hello" * 100, r"no milter packet: b'(hello){12}'"),
    ],
)
def test_other_protocols_are_named(data, text):
    with pytest.raises(NotAMilterError, match=text):
        read(data)
    reader = PacketReader(1000)
    for byte in data[:3]:
        reader.feed(bytes((byte,)))
        assert reader.next_packet() is None
    reader.feed(data[3:4])
    with pytest.raises(NotAMilterError):
        reader.next_packet()


def test_only_the_first_packet_can_be_another_protocol():
    with pytest.raises(PacketTooLargeError):
        read(CONTINUE + b"HTTP")
    reader = PacketReader(1000)
    reader.feed(CONTINUE + b"HTTP")
    assert reader.skip(CONTINUE, 5) == 1
    with pytest.raises(PacketTooLargeError):
        reader.next_packet()


@pytest.mark.parametrize(
    ("data", "most", "count", "left"),
    [
        (b"", 5, 0, 0),
        (CONTINUE * 3, 5, 3, 0),
        (CONTINUE * 3, 2, 2, 5),
        (CONTINUE * 3, 0, 0, 15),
        (CONTINUE + b"\0\0\0\1a", 5, 1, 5),
        (CONTINUE + CONTINUE[:3], 5, 1, 3),
        (b"\0\0\0\1a" + CONTINUE, 5, 0, 10),
    ],
)
def test_skip(data, most, count, left):
    reader = PacketReader(10)
    reader.feed(data)
    assert reader.skip(CONTINUE, most) == count
    assert len(reader.unread) == left


def test_a_payload_that_no_length_can_express(monkeypatch):
    monkeypatch.setattr(framing, "_MAX_LENGTH", 10)
    assert encode_packet(1, bytes(9))
    with pytest.raises(LocalProtocolError, match="payload of 10 bytes"):
        encode_packet(1, bytes(10))


@pytest.mark.parametrize("size", [10, 5000])
def test_memory_that_changes_after_it_was_fed(size):
    packet = encode_packet(ord("B"), bytes(range(1, 11)) * (size // 10))
    reader = PacketReader(size)
    for pieces in ([packet], [packet], [packet, packet], [packet[:2000], packet[2000:]], [packet * 2]):
        for piece in pieces:
            memory = bytearray(piece)
            with memoryview(memory) as view:
                reader.feed(view)
            memory[:] = bytes(len(memory))
        assert list(reader) == [(packet[4], packet[5:])] * (sum(map(len, pieces)) // len(packet))
        assert len(reader.unread) == 0


def test_a_large_packet_that_is_too_large_in_memory_that_changes():
    reader = PacketReader(2000)
    reader.feed(memoryview(encode_packet(ord("H"), b"x" * 10)))
    assert len(list(reader)) == 1
    reader.feed(memoryview(encode_packet(ord("B"), b"x" * 2001)))
    with pytest.raises(PacketTooLargeError):
        reader.next_packet()


STREAM = [
    encode_packet(code, bytes(range(size))) for code, size in ((1, 0), (2, 1), (3, 200), (4, 3), (5, 0))
]


@given(st.lists(st.integers(1, 40), max_size=20), st.lists(st.booleans(), min_size=30, max_size=30))
def test_shared_memory_makes_no_difference(sizes, read):
    """Whatever the pieces, and whether packets are taken at once or when all is there."""
    data, reader, packets = b"".join(STREAM), PacketReader(300), []
    for size, now in zip([*sizes, len(data)], read, strict=False):
        memory = bytearray(b"\xff" * 1000)
        memory[: len(data[:size])] = data[:size]
        with memoryview(memory) as view:
            reader.feed_from(view, len(data[:size]))
        memory[:] = bytes(1000)
        data = data[size:]
        packets += reader if now else []
    packets += reader
    assert [encode_packet(*packet) for packet in packets] == STREAM


@pytest.mark.parametrize(
    ("packet", "error"),
    [
        (b"\0\0\0\x0dx" + bytes(12), PacketTooLargeError),
        (b"\0\0\0\0", RemoteProtocolError),
        (b"\0\0\0\0x", RemoteProtocolError),
        (b"\0\1\0\0", PacketTooLargeError),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_impossible_packets_in_shared_memory(packet, error, first):
    reader = PacketReader(11)
    if not first:
        reader.feed(encode_packet(1))
        assert reader.next_packet() == (1, b"")
    memory = memoryview(bytearray(packet + bytes(100)))
    reader.feed_from(memory, len(packet))
    with pytest.raises(error, match=r"packet of (length 0|13 bytes|65536 bytes)"):
        reader.next_packet()
