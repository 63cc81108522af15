import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.body import Body, BodyWriter, SpoolSettings
from milterchain.mail.body_file import open_body


def spooled(data):
    writer = BodyWriter(SpoolSettings(threshold=0))
    writer.write(data)
    return writer.finish()


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 50)),
        st.tuples(st.just("seek"), st.integers(0, 50)),
        st.tuples(st.just("end"), st.integers(-5, 5)),
    ),
    max_size=10,
)


@given(st.binary(max_size=20), st.binary(max_size=40), st.booleans(), OPERATIONS)
def test_it_reads_as_any_file_does(head, data, in_file, operations):
    expected = io.BytesIO(head + data)
    with spooled(data) if in_file else Body.of(data) as body, open_body(body, head=head) as file:
        for what, number in operations:
            if what == "read":
                assert file.read(number) == expected.read(number)
            elif what == "seek":
                assert file.seek(number) == expected.seek(number)
            else:
                place = max(number, -len(head + data))
                assert file.seek(place, io.SEEK_END) == expected.seek(place, io.SEEK_END)
            assert file.tell() == expected.tell()
        file.seek(0)
        expected.seek(0)
        assert file.readlines() == expected.readlines()


def test_two_files_have_a_place_each():
    body = Body.of(b"one\r\ntwo\r\n")
    first, second = open_body(body), open_body(body)
    assert first.readline() == b"one\r\n"
    assert second.read() == b"one\r\ntwo\r\n"
    assert first.read() == b"two\r\n"
    first.close()
    second.seek(0)
    assert second.read(3) == b"one"


def test_there_is_nothing_before_the_beginning():
    with pytest.raises(ValueError, match="negative"):
        open_body(Body.of(b"x")).raw.seek(-1)


def test_nothing_can_be_written():
    file = open_body(Body.of(b"x"))
    assert file.readable()
    assert file.seekable()
    assert not file.writable()
    assert file.raw.seek(1, io.SEEK_CUR) == 1
