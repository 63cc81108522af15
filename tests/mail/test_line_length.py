import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.line_length import LINE_LENGTH, LineLengthLimiter, limit_line_length


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b""),
        (b"12345678", b"12345678"),
        (b"12345678\r\n", b"12345678\r\n"),
        (b"12345678\n1234567\n", b"12345678\n1234567\n"),
        (b"123456789", b"12345678\r\n9"),
        (b"123456789\r\n", b"12345678\r\n9\r\n"),
        (b"1234567890123456\n", b"12345678\r\n90123456\n"),
        (b"12345678901234567\r\n1\r\n", b"12345678\r\n90123456\r\n7\r\n1\r\n"),
        (b"\r\n\r\n\n", b"\r\n\r\n\n"),
        # A CR alone is like any other octet.
        (b"1234567\r9", b"1234567\r\r\n9"),
        (b"12345678\r9", b"12345678\r\n\r9"),
        (b"12345678\r", b"12345678\r\n\r"),
        # Characters stay whole.
        ("1234567ü".encode(), "1234567\r\nü".encode()),
        ("123456ü9".encode(), "123456ü\r\n9".encode()),
        ("12345😀".encode(), "12345\r\n😀".encode()),
        ("ああああ".encode(), "ああ\r\nああ".encode()),
        # What is no UTF-8 is cut anywhere.
        (b"1234567\xfc9", b"1234567\xfc\r\n9"),
        (b"12345678\xbc\xbc", b"12345678\r\n\xbc\xbc"),
        (b"123456\xc3\xbc\xbc\xbc", b"123456\xc3\xbc\r\n\xbc\xbc"),
        (b"\xbc" * 17, b"\xbc" * 8 + b"\r\n" + b"\xbc" * 8 + b"\r\n\xbc"),
        (b"1234567\xc3", b"1234567\xc3"),
        (b"12345678\xc3", b"12345678\r\n\xc3"),
    ],
)
def test_lines_of_eight(data, expected):
    assert limit_line_length(data, 8) == expected
    limiter = LineLengthLimiter(8)
    one_by_one = b"".join(limiter.feed(data[i : i + 1]) for i in range(len(data)))
    assert one_by_one + limiter.finish() == expected
    assert limit_line_length(expected, 8) == expected


TEXTS = st.text("ab\r\nüあ😀", max_size=60).map(str.encode)
PIECES = st.lists(
    TEXTS | st.binary(max_size=12) | st.sampled_from([b"\xc3", b"\xbc", b"\xe3\x81", b"\r", b"x" * 9])
)


@given(PIECES, st.integers(4, 12))
def test_in_pieces(pieces, limit):
    limiter = LineLengthLimiter(limit)
    limited = b"".join(map(limiter.feed, pieces)) + limiter.finish()
    assert limited == limit_line_length(b"".join(pieces), limit)
    assert limiter.finish() == b""


@given(TEXTS, st.integers(4, 12))
def test_lines_are_short_and_characters_whole(data, limit):
    limited = limit_line_length(data, limit)
    lines = limited.replace(b"\r\n", b"\n").split(b"\n")
    assert all(len(line) <= limit for line in lines)
    assert limited.replace(b"\r\n", b"").replace(b"\n", b"") == data.replace(b"\r\n", b"").replace(b"\n", b"")
    for line in lines:
        line.decode()


def test_the_default():
    assert limit_line_length(b"x" * (LINE_LENGTH + 1)) == b"x" * LINE_LENGTH + b"\r\nx"
    with pytest.raises(ValueError, match="too short"):
        LineLengthLimiter(3)
