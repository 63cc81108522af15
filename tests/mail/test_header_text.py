import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mail.header_text import (
    LINE_LIMIT,
    MAX_LINE,
    MAX_WORD,
    decode_text,
    encode_text,
    encode_words,
    is_header_name,
    normalize_value,
    unfold,
)


@pytest.mark.parametrize("name", [b"A", b"X-Spam!", b"~"])
def test_names(name):
    assert is_header_name(name)


@pytest.mark.parametrize("name", [b"", b"A:", b"A B", b"A\n", "Ä".encode(), b"A\0"])
def test_no_names(name):
    assert not is_header_name(name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", b""),
        (b" x ", b" x "),
        (b"a\r\n b", b"a\n b"),
        (b"a\r\nb\n\tc", b"a\n\tb\n\tc"),
        (b"a\rb", b"a b"),
        (b"a\n", b"a\n\t"),
    ],
)
def test_normalized_values(value, expected):
    assert normalize_value(value) == expected


def test_unfolding():
    assert unfold(b" a\n\tb \n c\t") == b"a\tb  c"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", ""),
        (b" plain\n text ", "plain text"),
        ("Grüße".encode(), "Grüße"),
        ("Grüße".encode("latin-1"), "Grüße"),
        (b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        (b"=?ISO-8859-1?B?R3L832U=?=", "Grüße"),
        (b"=?utf-8*de?Q?Gr=c3=bc=c3=9fe?= at all", "Grüße at all"),
        (b"a =?utf-8?q?b?= c", "a b c"),
        (b"=?utf-8?q?a?=  \n =?utf-8?q?b?=", "ab"),
        (b"=?utf-8?q?a_?= =?utf-8?b?Yg==?=", "a b"),
        (b"x=?utf-8?q?a?=y", "xay"),
        (b"=?utf-8?q?a?= =?latin1?q?=FC?=", "aü"),
        # A character that was cut in two, and a word with blanks in it.
        (b"=?utf-8?q?=C3?= =?UTF-8?b?vA==?=", "ü"),
        (b"=?utf-8?q?a b?=", "a b"),
        # Wrong in many ways.
        (b"=?utf-8?b?YWJj?=", "abc"),
        (b"=?utf-8?b?YWJ?=", "ab"),
        (b"=?utf-8?b?YWJjZ?=", "YWJjZ"),
        (b"=?utf-8?q?=FF?=", "\ufffd"),
        (b"=?x-nonsense?q?=C3=BC?=", "ü"),
        (b"=?rot13?q?abc?=", "abc"),
        (b"=?zlib_codec?q?abc?=", "abc"),
        (b"=?unicode_escape?q?=5Cq?=", "\\q"),
        (b"=?idna?q?xn--a?=", "xn--a"),
        (b"=?utf-7?q?+2AA-?=", "?"),
        (b"=?utf-8?q?a?", "=?utf-8?q?a?"),
        (b"=?utf-8?x?a?=", "=?utf-8?x?a?="),
        (b"=??q?a?=", "=??q?a?="),
        (b"=?utf-8?q??=", ""),
        (b"=?koi8-r?q?=D0?=", "п"),
        (b"=?iso-2022-jp?b?GyRCRnxLXBsoQg==?=", "日本"),
        (b"=?gb2312?b?1tDOxA==?=", "中文"),
        (b"=?windows-1252?q?=80?=", "€"),
        (b"=?mbcs?q?=C3=BC?=", "ü"),
        (b"=?ansi?q?yes?=", "yes"),
    ],
)
def test_decoding(value, expected):
    assert decode_text(value) == expected


@given(st.binary(max_size=60))
def test_decoding_never_fails(value):
    decode_text(value).encode()


PARTS = st.sampled_from(
    [
        b"=?",
        b"?=",
        b"?q?",
        b"?B?",
        b"utf-8",
        b"utf-16",
        b"utf-7",
        b"hz",
        b"dbcs",
        b" ",
        b"\n ",
        b"=C3",
        b"YQ",
        b"x",
        b"\xc3",
    ]
)


@given(st.lists(PARTS, max_size=30).map(b"".join))
def test_decoding_what_looks_encoded_never_fails(value):
    decode_text(value).encode()


@pytest.mark.parametrize("piece", [b"=?", b"=?a?q?", b"=?utf-8?q?=C3?= ", b"=?x%d?b?YQ?=", b"=?utf-8*"])
def test_decoding_takes_no_time(piece):
    start = time.perf_counter()
    decode_text(piece * (60_000 // len(piece)))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", b""),
        ("plain text", b"plain text"),
        ("two  blanks", b"two  blanks"),
        ("Grüße", b"=?utf-8?b?R3LDvMOfZQ==?="),
        ("a grüner Wald", b"=?utf-8?q?a_gr=C3=BCner_Wald?="),
        ("日本語", b"=?utf-8?b?5pel5pys6Kqe?="),
        ("=?utf-8?q?a?=", b"=?utf-8?b?PT91dGYtOD9xP2E/PQ==?="),
        (" blank", b"=?utf-8?q?_blank?="),
        ("blank ", b"=?utf-8?q?blank_?="),
        ("two\nlines\r\n", b"two lines"),
        ("half \ud800", b"=?utf-8?q?half_=3F?="),
        ("x" * 100, b"x" * 100),
        ("a" * 60 + " " + "b" * 20, b"a" * 60 + b"\n " + b"b" * 20),
    ],
)
def test_encoding(text, expected):
    assert encode_text(text) == expected


def test_encoding_knows_what_stands_before_it():
    assert encode_text("a" * 60 + " b", indent=20) == b"a" * 60 + b"\n b"
    first, *_ = encode_text("ü" * 40, indent=40).split(b"\n")
    assert len(first) <= MAX_LINE - 40


TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[chr(c) for c in (*range(32), 127)]),
    max_size=200,
)
WORDS = st.lists(st.sampled_from(["a", "word", " ", "ü", "😀", "x" * 90, "=?", "  "]), max_size=40).map(
    "".join
)


@given(TEXTS | WORDS, st.integers(0, 40))
def test_encoding_and_back(text, indent):
    value = encode_text(text, indent=indent)
    assert decode_text(value) == text
    assert value.isascii()
    assert normalize_value(value) == value
    lines = (b" " * indent + value).split(b"\n")
    assert all(len(line) <= MAX_LINE or b" " not in line.strip(b" ") for line in lines)
    assert all(line.strip() for line in lines[1:])
    for word in re.findall(rb"=\?[^ \n]*", value):
        assert len(word) <= MAX_WORD


@given(TEXTS, st.integers(0, 200))
def test_each_encoded_word_stands_for_whole_characters(text, indent):
    assert "".join(decode_text(word.strip()) for word in encode_words(text, indent=indent)) == text


def test_no_line_is_longer_than_a_line_may_be():
    value = encode_text("x" * LINE_LIMIT)
    assert decode_text(value) == "x" * LINE_LIMIT
    assert max(map(len, value.split(b"\n"))) <= MAX_LINE
