"""Both decoders and the packet reader against any bytes: values that survive their encoding, or errors."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milterchain.errors import LocalProtocolError, MilterError, RemoteProtocolError
from milterchain.milter.flags import Command, Response
from milterchain.milter.framing import PacketReader, encode_packet
from milterchain.milter.messages import AnyCommand, AnyResponse, decode_command, decode_response

FUZZ = settings.get_profile("fuzz-values")

MAX_PAYLOAD = 50
SIDES = {
    "command": (decode_command, st.from_type(AnyCommand), list(Command)),
    "response": (decode_response, st.from_type(AnyResponse), list(Response)),
}


def damaged(packets: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes with a piece replaced by others."""

    def replace(packet: bytes, start: int, length: int, by: bytes) -> bytes:
        start = min(start, len(packet))
        return packet[:start] + by + packet[start + length :]

    return st.builds(replace, packets, st.integers(0, 60), st.integers(0, 20), st.binary(max_size=6))


def payloads(messages):
    whole = messages.map(lambda message: message.encode())
    return st.binary(max_size=60) | whole | damaged(whole)


def is_one_plain_line(text: str) -> bool:
    return text.isprintable() and len(text.splitlines()) == 1


@pytest.mark.parametrize("side", SIDES)
@FUZZ
@given(data=st.data())
def test_any_payload_is_a_message_or_an_error(side, data):
    decode, messages, codes = SIDES[side]
    code = data.draw(st.sampled_from(codes) | st.integers(0, 255))
    payload = data.draw(payloads(messages))
    with suppress(LocalProtocolError):
        message = decode(code, payload)
        again = decode(message.code, message.encode())
        assert again == message
        assert hash(again) == hash(message)
        assert len(message.encode()) <= len(payload)
        assert is_one_plain_line(str(message))


@pytest.mark.parametrize("side", SIDES)
@FUZZ
@given(data=st.data())
def test_any_message_is_read_as_it_was_written(side, data):
    decode, messages, _ = SIDES[side]
    message = data.draw(messages)
    assert decode(message.code, message.encode()) == message
    assert is_one_plain_line(str(message))


PACKETS = st.builds(encode_packet, st.integers(0, 255), st.binary(max_size=MAX_PAYLOAD))
STREAMS = st.lists(PACKETS | damaged(PACKETS) | st.binary(max_size=20), max_size=8).map(b"".join)
CUTS = st.lists(st.integers(0, 400), max_size=20)


def read(stream: bytes, cuts: list[int]) -> tuple[list[tuple[int, bytes]], type[MilterError] | None]:
    """The packets of a stream that comes in pieces, and what went wrong."""
    reader = PacketReader(MAX_PAYLOAD)
    packets = []
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, end in pairwise(edges):
        reader.feed(stream[start:end])
        try:
            packets.extend(reader)
        except RemoteProtocolError as error:
            return packets, type(error)
        assert len(reader.unread) <= 4 + MAX_PAYLOAD
    return packets, None


@FUZZ
@given(stream=STREAMS, cuts=CUTS)
def test_a_stream_is_the_same_packets_however_it_is_cut(stream, cuts):
    whole = PacketReader(MAX_PAYLOAD)
    whole.feed(stream)
    packets: list[tuple[int, bytes]] = []
    failed = None
    try:
        packets.extend(whole)
    except RemoteProtocolError as error:
        failed = type(error)
    one_by_one = list(range(len(stream)))
    assert read(stream, cuts) == read(stream, one_by_one) == (packets, failed)
    if failed is None:
        assert b"".join(encode_packet(*packet) for packet in packets) + whole.unread == stream


@FUZZ
@given(length=st.integers(MAX_PAYLOAD + 2, 2**24 - 1), rest=st.binary(max_size=10))
def test_nothing_is_awaited_beyond_the_limit(length, rest):
    reader = PacketReader(MAX_PAYLOAD)
    reader.feed(length.to_bytes(4, "big") + rest)
    with pytest.raises(RemoteProtocolError):
        reader.next_packet()
