import errno
import gc
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.body import Body, BodyWriter, SpoolSettings

SMALL = SpoolSettings(threshold=10)


def write(*pieces, settings=SMALL):
    writer = BodyWriter(settings)
    for piece in pieces:
        writer.write(piece)
    return writer.finish()


def open_files():
    return len(list(Path("/dev/fd").iterdir()))


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(1, 40), st.integers(0, 60))
def test_a_body_is_what_was_written(pieces, size, threshold):
    data = b"".join(pieces)
    with write(*pieces, settings=SpoolSettings(threshold=threshold)) as body:
        assert len(body) == len(data)
        assert bytes(body) == data
        chunks = list(body.chunks(size))
        assert b"".join(chunks) == data
        assert all(len(chunk) == size for chunk in chunks[:-1])
        assert all(chunks)
        assert body.head(size) == data[:size]


@pytest.mark.parametrize("make", [Body.of, write])
@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (b"", True),
        (b"x", False),
        (b"\n", False),
        (b"\r\n", True),
        (b"a long line that is spooled\r\n", True),
        (b"a long line that is spooled", False),
    ],
)
def test_ends_with_newline(make, data, complete):
    with make(data) as body:
        assert body.ends_with_newline is complete


def test_threshold():
    with write(b"0123456789") as body:
        assert body.in_memory
        assert repr(body) == "<Body of 10 octets in memory>"
    with write(b"0123456789", b"a") as body:
        assert not body.in_memory
        assert repr(body) == "<Body of 11 octets in a file>"


def test_len_of_a_writer():
    writer = BodyWriter(SMALL)
    writer.write(b"0123456789abcdef")
    writer.write(b"g")
    assert len(writer) == 17
    writer.close()


def test_readers_do_not_interfere():
    with write(b"0123456789abcdefghij") as body:
        first, second = body.chunks(3), body.chunks(4)
        assert [next(first), next(second), next(first), next(second)] == [b"012", b"0123", b"345", b"4567"]
        assert b"".join(first) == b"6789abcdefghij"


def test_the_file_has_no_name_and_is_closed(tmp_path):
    before = open_files()
    body = write(b"x" * 100, settings=SpoolSettings(threshold=10, directory=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
    assert open_files() == before + 1
    body.close()
    body.close()
    assert open_files() == before
    with pytest.raises(ValueError, match="closed"):
        list(body.chunks(10))


def test_forgotten_files_are_closed():
    before = open_files()
    body = write(b"x" * 100)
    writer = BodyWriter(SMALL)
    writer.write(b"x" * 100)
    del body, writer
    gc.collect()
    assert open_files() == before


def test_a_writer_given_up_closes_its_file():
    before = open_files()
    writer = BodyWriter(SMALL)
    writer.write(b"x" * 100)
    writer.close()
    writer.close()
    assert open_files() == before


def test_closing_the_writer_leaves_the_body_alone():
    writer = BodyWriter(SMALL)
    writer.write(b"x" * 100)
    with writer.finish() as body:
        writer.close()
        assert bytes(body) == b"x" * 100


def test_no_directory(tmp_path):
    writer = BodyWriter(SpoolSettings(threshold=10, directory=str(tmp_path / "missing")))
    with pytest.raises(OSError, match="missing") as caught:
        writer.write(b"x" * 100)
    assert caught.value.errno == errno.ENOENT
    writer.close()


def test_a_file_that_lost_its_end():
    with write(b"x" * 100) as body:
        os.truncate(body._file.fileno(), 50)
        with pytest.raises(OSError, match="50 octets too early"):
            bytes(body)


def test_a_file_that_takes_a_part_at_a_time():
    class Slow:
        def __init__(self):
            self.data = b""

        def write(self, view):
            self.data += bytes(view[:7])
            return min(len(view), 7)

        def close(self):
            pass

    writer = BodyWriter(SMALL)
    writer._file = slow = Slow()
    writer.write(b"0123456789" * 5)
    assert slow.data == b"0123456789" * 5


def test_memory_is_bounded():
    piece = b"x" * 2**16
    tracemalloc.start()
    try:
        writer = BodyWriter()
        for _ in range(30 * 16):
            writer.write(piece)
        with writer.finish() as body:
            assert sum(map(len, body.chunks(65535))) == 30 * 2**20
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 2**20


@given(st.lists(st.sampled_from([0, 1, 100, 4095, 4096, 5000]), max_size=12), st.sampled_from([3000, 2**20]))
def test_pieces_of_any_size_stay_in_order(sizes, threshold):
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    with write(*pieces, settings=SpoolSettings(threshold=threshold)) as body:
        assert len(body) == sum(sizes)
        assert list(body.chunks(2**20)) == [b"".join(pieces)] * any(sizes)


def test_a_body_in_memory_is_what_was_written_whatever_becomes_of_that():
    piece = bytearray(b"x" * 5000)
    with write(piece, b"y" * 5000, settings=SpoolSettings()) as body:
        piece[:] = b"z" * 5000
        assert bytes(body) == b"x" * 5000 + b"y" * 5000


def test_a_body_of_one_piece_is_not_copied():
    piece = b"x" * 5000
    with write(piece, settings=SpoolSettings()) as body:
        assert next(body.chunks(5000)) is piece


def test_many_small_pieces_cost_little():
    tracemalloc.start()
    try:
        writer = BodyWriter()
        for _ in range(2**19):
            writer.write(b"xy")
        with writer.finish() as body:
            peak = tracemalloc.get_traced_memory()[1]
            assert len(body) == 2**20
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * 2**20
