"""Hashes of passwords: known ones, and what is no hash."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.proxy.passwords import PasswordHash


def test_made_here() -> None:
    made = PasswordHash.make(b"secret")
    assert made.fits(b"secret")
    assert not made.fits(b"Secret")
    assert not made.fits(b"")
    assert str(made).startswith("$scrypt$ln=14,r=8,p=5$")
    assert PasswordHash.parse(str(made)) == made
    assert PasswordHash.make(b"secret") != made


def test_nobody() -> None:
    nobody = PasswordHash.of_nobody()
    assert not nobody.fits(b"")
    assert str(nobody).startswith("$scrypt$ln=14,r=8,p=5$")


def test_the_vector_of_the_rfc() -> None:
    digest = bytes.fromhex(
        # RFC 7914 section 12
        "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
        "2eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640"
    )
    assert PasswordHash(10, 8, 16, b"NaCl", digest).fits(b"password")


SALT, HASH = "A" * 22, "B" * 43


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no scrypt hash"),
        ("secret", "no scrypt hash"),
        ("$2y$05$abc", "no scrypt hash"),
        (f"$scrypt$ln=14,r=8$p=5${SALT}${HASH}", "no scrypt hash"),
        (f"$scrypt$ln=14,r=8,p=5${SALT}${HASH}\n", "no scrypt hash"),
        (f"$scrypt$ln=14,r=8,p=5${SALT}$short", "no scrypt hash"),
        (f"$scrypt$ln=14,r=8,p=5${SALT}${'B' * 41}", "its base64 is wrong"),
        (f"$scrypt$ln=0,r=8,p=5${SALT}${HASH}", "too much time or memory"),
        (f"$scrypt$ln=21,r=8,p=1${SALT}${HASH}", "too much time or memory"),
        (f"$scrypt$ln=20,r=8,p=1${SALT}${HASH}", "too much time or memory"),
        (f"$scrypt$ln=14,r=8,p=65${SALT}${HASH}", "too much time or memory"),
        (f"$scrypt$ln=14,r=0,p=1${SALT}${HASH}", "too much time or memory"),
    ],
)
def test_no_hash(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PasswordHash.parse(text)


@given(st.text())
def test_hostile(text: str) -> None:
    with pytest.raises(ValueError, match="scrypt"):
        PasswordHash.parse("$scrypt$ln=14," + text)
