"""Texts of replies: what filters give, what travels, what is read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.chain.verdict import parse_reply_code
from milterchain.milter.filter import reply
from milterchain.milter.messages import ReplyCode
from milterchain.milter.reply_text import MAX_LINE, MAX_LINES, ReplyParts, reply_parts, reply_text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((550, "5.7.1", "no"), b"550 5.7.1 no"),
        ((550, None, "no"), b"550 no"),
        ((450, "4.7.1", "100% no", b"never\xff"), b"450-4.7.1 100%% no\r\n450 4.7.1 never\xff"),
        ((550, "5.7.1"), b"550 5.7.1"),
        ((550, None), b"550 "),
        ((550, "5.7.1", "a\r\nb\nc\rd"), b"550-5.7.1 a\r\n550-5.7.1 b\r\n550-5.7.1 c\r\n550 5.7.1 d"),
        ((550, "5.7.1", "a\n\nb"), b"550-5.7.1 a\r\n550-5.7.1\r\n550 5.7.1 b"),
        ((550, "5.7.1", "a\0b\x1b\tc"), b"550 5.7.1 a?b?\tc"),
        ((550, "5.7.1", "nö \udc80"), "550 5.7.1 nö ?".encode()),
        # Postfix takes a digit of another class for a wrong status code.
        ((550, None, "100 of them", "5.7.1 no"), b"550- 100 of them\r\n550 5.7.1 no"),
    ],
)
def test_what_travels(arguments, text):
    assert reply_text(*arguments) == text
    assert reply(*arguments) == ReplyCode(text)
    assert parse_reply_code(text) is not None


@pytest.mark.parametrize(
    ("line", "folded"),
    [
        (b"x" * MAX_LINE, [MAX_LINE]),
        (b"x" * (MAX_LINE + 1), [MAX_LINE, 1]),
        (b"x" * 900 + b" " + b"y" * 900, [900, 900]),
        (("é" * MAX_LINE).encode(), [MAX_LINE, MAX_LINE]),
        (b"x" + ("é" * 600).encode(), [MAX_LINE - 1, 222]),
        (b"\x80" * 1000, [MAX_LINE - 3, 23]),
        (b"x" * (MAX_LINE - 1) + b"%y", [MAX_LINE - 1, 3]),
        (b"x" * (MAX_LINE - 2) + b"%y", [MAX_LINE, 1]),
    ],
)
def test_long_lines_are_folded(line, folded):
    texts = [part[10:] for part in reply_text(550, "5.7.1", line).split(b"\r\n")]
    assert [len(text) for text in texts] == folded
    assert b"".join(texts).replace(b" ", b"") == line.replace(b"%", b"%%").replace(b" ", b"")


@pytest.mark.parametrize(
    "arguments",
    [
        (250, "2.0.0", "x"),
        (600, "5.0.0", "x"),
        (550, "4.7.1", "x"),
        (550, "5.7", "x"),
        (550, "", "x"),
        (550, "5.7.1\n", "x"),
        (550, "5.7.1", *["x"] * (MAX_LINES + 1)),
        (550, "5.7.1", "\n" * MAX_LINES),
    ],
)
def test_what_is_no_reply(arguments):
    with pytest.raises(ValueError, match=r".+"):
        reply(*arguments)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b"550 5.7.1 no", ReplyParts(550, "5.7.1", (b"no",))),
        (b"450-4.7.1 100%% no\r\n450 4.7.1 x", ReplyParts(450, "4.7.1", (b"100% no", b"x"))),
        (b"550 no", ReplyParts(550, None, (b"no",))),
        (b"550 5.7.1", ReplyParts(550, "5.7.1", (b"",))),
        (b"550 ", ReplyParts(550, None, (b"",))),
        (b"550", None),
        (b"550 4.7.1 no", None),
        (b"550 no\0", None),
        (b"550 " + b"x" * 5000, None),
        (b"550-x\r\n" * 128 + b"550 x", None),
        (b"550 5.7.1x", ReplyParts(550, None, (b"5.7.1x",))),
        (b"250 ok", None),
        (b"550+no", None),
        (b"550-a\r\n551 b", None),
        (b"", None),
    ],
)
def test_what_is_read_back(text, parts):
    assert reply_parts(text) == parts


@given(
    code=st.sampled_from([421, 450, 550, 599]),
    status=st.sampled_from([None, ".7.1", ".0.0"]),
    lines=st.lists(st.one_of(st.text(max_size=50), st.binary(max_size=2000)), max_size=4),
)
def test_every_text_makes_a_reply(code, status, lines):
    status = status and f"{code // 100}{status}"
    try:
        text = reply_text(code, status, *lines)
    except ValueError:
        assert sum(len(line) for line in lines) > MAX_LINES
        return
    parts = reply_parts(text)
    assert parts is not None
    assert parts.code == code
    assert len(parts.lines) <= MAX_LINES
    assert parse_reply_code(text) is not None
    assert all(len(line) <= MAX_LINE + len("550 5.7.1 ") for line in text.split(b"\r\n"))
