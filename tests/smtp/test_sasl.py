"""PLAIN and LOGIN: dialogues, whole and wrong."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.errors import SMTPSyntaxError
from milterchain.smtp.sasl import MECHANISMS, Credentials, decode_response, encode_challenge


def run(mechanism, initial, *responses):
    """The challenges, and the credentials."""
    exchange = MECHANISMS[mechanism](initial)
    challenges = []
    try:
        challenges.append(next(exchange))
        for response in responses:
            challenges += [exchange.send(response)]
    except StopIteration as end:
        return challenges, end.value
    return challenges, None


PLAIN = Credentials(mechanism="PLAIN", login=b"ann", password=b"s p")
LOGIN = Credentials(mechanism="LOGIN", login=b"ann", password=b"s p")


@pytest.mark.parametrize(
    ("mechanism", "initial", "responses", "challenges", "credentials"),
    [
        (b"PLAIN", b"\0ann\0s p", (), [], PLAIN),
        (b"PLAIN", None, (b"\0ann\0s p",), [b""], PLAIN),
        (b"LOGIN", b"ann", (b"s p",), [b"Password:"], LOGIN),
        (b"LOGIN", None, (b"ann", b"s p"), [b"Username:", b"Password:"], LOGIN),
        (b"LOGIN", None, (b"ann",), [b"Username:", b"Password:"], None),
    ],
)
def test_exchange(mechanism, initial, responses, challenges, credentials):
    assert run(mechanism, initial, *responses) == (challenges, credentials)


def test_identity():
    _, credentials = run(b"PLAIN", b"bob\0ann\0secret")
    assert (credentials.identity, credentials.login, credentials.password) == (b"bob", b"ann", b"secret")


def test_no_password_in_repr():
    assert "s p" not in repr(PLAIN)


@pytest.mark.parametrize(
    ("mechanism", "responses"),
    [
        (b"PLAIN", [b""]),
        (b"PLAIN", [b"ann\0secret"]),
        (b"PLAIN", [b"\0\0secret"]),
        (b"PLAIN", [b"\0ann\0"]),
        (b"PLAIN", [b"\0ann\0secret\0"]),
        (b"LOGIN", [b"", b"secret"]),
        (b"LOGIN", [b"ann", b""]),
        (b"LOGIN", [b"ann\0", b"secret"]),
        (b"LOGIN", [b"ann", b"se\0cret"]),
        (b"LOGIN", [b"ann\r\nX-Bad: 1", b"secret"]),
        (b"PLAIN", [b"\0ann\x7f\0secret"]),
        (b"PLAIN", [b"bob\n\0ann\0secret"]),
    ],
)
def test_bad_data(mechanism, responses):
    with pytest.raises(SMTPSyntaxError, match="bad authentication data"):
        run(mechanism, None, *responses)


@pytest.mark.parametrize(
    ("line", "octets"),
    [(b"", b""), (b"YQ==", b"a"), (b"AGFubgBzIHA=", b"\0ann\0s p"), (b"+/+/", b"\xfb\xff\xbf")],
)
def test_response(line, octets):
    assert decode_response(line) == octets


@pytest.mark.parametrize(
    "line",
    [b"*", b"=", b"Y", b"YQ", b"YQ=", b"YQ===", b"YQ==YQ==", b" YQ==", b"YQ= =", b"Y\xff==", b"-_-_", b"**"],
)
def test_no_response(line):
    with pytest.raises(SMTPSyntaxError) as caught:
        decode_response(line)
    assert caught.value.code == 501
    assert caught.value.status == ("5.7.0" if line == b"*" else "5.5.2")


@given(st.binary())
def test_round_trip(octets):
    assert decode_response(encode_challenge(octets)) == octets


@given(st.binary())
def test_hostile_response(line):
    """Whatever is decoded was encoded just like this."""
    try:
        octets = decode_response(line)
    except SMTPSyntaxError:
        return
    assert base64.b64encode(octets)[:-4] == line[:-4]
