import pytest

from milterchain.mail.envelope import Envelope, Path, bare, bracketed


@pytest.mark.parametrize(
    ("typed", "without", "around"),
    [
        (b"<a@b>", b"a@b", b"<a@b>"),
        (b"a@b", b"a@b", b"<a@b>"),
        (b"<>", b"", b"<>"),
        (b"", b"", b"<>"),
        (b'<"a>"@b>', b'"a>"@b', b'<"a>"@b>'),
        (b"<a@b", b"<a@b", b"<<a@b>"),
    ],
)
def test_path(typed, without, around):
    assert bare(typed) == without
    path = Path(typed, (b"SIZE=1",))
    assert path.bare == without
    assert path.bracketed == bracketed(typed) == around
    assert path.address == typed


def test_with_recipient():
    empty = Envelope(Path(b"<>"))
    one = empty.with_recipient(Path(b"<a@b>"))
    two = one.with_recipient(Path(b"<c@d>"))
    assert empty.recipients == ()
    assert two == Envelope(Path(b"<>"), (Path(b"<a@b>"), Path(b"<c@d>")))
