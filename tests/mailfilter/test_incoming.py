import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.mailfilter import BodyOptions, FilterOptions, HeaderOptions, Sender, TooLarge
from milterchain.mailfilter.incoming import IncomingMessage

REJECT, CLEAR, TRUNCATE = TooLarge


def message(**options) -> IncomingMessage:
    return IncomingMessage(FilterOptions(**options), Sender(b"<>"))


@pytest.mark.parametrize(
    ("limits", "too_large", "kept"),
    [
        ({"max_count": 3}, REJECT, 3),
        ({"max_count": 2}, REJECT, 0),
        ({"max_count": 2}, CLEAR, 0),
        ({"max_count": 2}, TRUNCATE, 2),
        ({"max_count": 0}, TRUNCATE, 0),
        ({"max_size": 9}, TRUNCATE, 3),
        ({"max_size": 8}, TRUNCATE, 2),
        ({"max_size": 8}, CLEAR, 0),
        ({"max_size": 8}, REJECT, 0),
    ],
)
def test_limits_of_headers(limits, too_large, kept):
    incoming = message(headers=HeaderOptions(**limits, too_large=too_large))
    rows = [(b"A", b"12"), (b"B", b"12"), (b"C", b"12")]
    for name, value in rows:
        incoming.headers.add(name, value)
    over = kept < 3
    if over:
        incoming.headers.add(b"", b"")
    assert incoming.headers.items == rows[:kept]
    assert incoming.cut_short is over
    assert incoming.refused is (over and too_large is REJECT)


@given(
    st.lists(st.binary(min_size=1, max_size=8), max_size=6),
    st.integers(0, 30),
    st.integers(0, 30),
    st.sampled_from(TooLarge),
)
def test_limits_of_bodies(chunks, max_size, memory, too_large):
    incoming = message(body=BodyOptions(memory=memory, max_size=max_size, too_large=too_large))
    for chunk in chunks:
        incoming.body.add(chunk)
    whole = b"".join(chunks)
    over = len(whole) > max_size
    assert incoming.body.over is over
    assert incoming.cut_short is over
    assert incoming.refused is (over and too_large is REJECT)
    with incoming.body.writer.finish() as body:
        kept = whole[:max_size] if too_large is TRUNCATE or not over else b""
        assert bytes(body) == kept
        assert body.in_memory is (len(kept) <= memory)
    incoming.close()


def test_without_a_body_nothing_is_too_large():
    incoming = message(body=None)
    assert not incoming.refused
    incoming.close()


@pytest.mark.parametrize("kind", [BodyOptions, HeaderOptions])
def test_limits_are_not_negative(kind):
    with pytest.raises(ValueError, match="negative"):
        kind(max_size=-1)
