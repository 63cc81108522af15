import dataclasses
import email.utils
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.proxy.received import Trace, received_header
from milterchain.smtp.tls import TLSSession

TRACE = Trace(
    helo=b"client.example",
    client_name=b"unknown",
    client_address="192.0.2.1",
    hostname=b"mx.example.org",
    protocol=b"ESMTP",
    queue_id=b"0123",
    recipient=b"b@example.org",
)
NOW = 1_700_000_000


def test_the_header() -> None:
    assert received_header(TRACE, NOW) == (
        b"Received: from client.example (unknown [192.0.2.1])\r\n"
        b"\tby mx.example.org (milterchain) with ESMTP id 0123\r\n"
        b"\tfor <b@example.org>;\r\n"
        b"\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )


def test_of_several_recipients_none_is_named() -> None:
    assert received_header(dataclasses.replace(TRACE, recipient=None), NOW) == (
        b"Received: from client.example (unknown [192.0.2.1])\r\n"
        b"\tby mx.example.org (milterchain) with ESMTP id 0123;\r\n"
        b"\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )


SESSION = TLSSession(version="TLSv1.2", cipher="ECDHE-RSA-AES128-GCM-SHA256", bits=128)
USING = b"\t(using TLSv1.2 with cipher ECDHE-RSA-AES128-GCM-SHA256 (128/128 bits))\r\n"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, b"(No client certificate requested)"),
        ({"requested": True}, b"(Client did not present a certificate)"),
        (
            {"requested": True, "verified": True, "subject": "c d", "issuer": "CA"},
            b'(Client CN "c d", Issuer "CA" (verified OK))',
        ),
        (
            {"requested": True, "verified": True, "subject": 'x")\r\n\\(', "issuer": "\u00e9\0"},
            b'(Client CN "x??????", Issuer "???" (verified OK))',
        ),
    ],
)
def test_tls(more: dict[str, Any], line: bytes) -> None:
    session = dataclasses.replace(SESSION, **more)
    header = received_header(dataclasses.replace(TRACE, tls=session, protocol=b"ESMTPS"), NOW)
    assert header == (
        b"Received: from client.example (unknown [192.0.2.1])\r\n" + USING + b"\t" + line + b"\r\n"
        b"\tby mx.example.org (milterchain) with ESMTPS id 0123\r\n"
        b"\tfor <b@example.org>;\r\n"
        b"\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
    )


def test_the_date_is_now() -> None:
    date = received_header(TRACE).rpartition(b";")[2].decode().strip()
    assert email.utils.parsedate_to_datetime(date).utcoffset() is not None


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"client_address": "2001:db8::1"}, b"(unknown [IPv6:2001:db8::1])"),
        ({"client_address": ""}, b"(unknown local)"),
        ({"client_name": b"c.example"}, b"(c.example [192.0.2.1])"),
        ({"helo": b"[192.0.2.7]"}, b"from [192.0.2.7] ("),
        ({"helo": b"[IPv6:::1]"}, b"from [IPv6:::1] ("),
        ({"helo": b"[a) by evil]"}, b"from [a??by?evil] ("),
        ({"helo": b"a) by evil (x"}, b"from a??by?evil??x ("),
        ({"helo": b"a\r\nSubject: x"}, b"from a??Subject:?x ("),
        ({"helo": b""}, b"from unknown ("),
        ({"helo": b"x" * 2000}, b"from " + b"x" * 255 + b" ("),
        ({"recipient": b"a\r\nb@c"}, b"for <a??b@c>;"),
        ({"recipient": b'"a b"@c'}, b'for <"a b"@c>;'),
    ],
)
def test_what_others_say_cannot_break_it(changes: dict[str, str | bytes], part: bytes) -> None:
    assert part in received_header(dataclasses.replace(TRACE, **changes), NOW)  # type: ignore[arg-type]


@given(helo=st.binary(max_size=300), name=st.binary(max_size=300), recipient=st.binary(max_size=300))
def test_it_is_one_header_always(helo: bytes, name: bytes, recipient: bytes) -> None:
    header = received_header(dataclasses.replace(TRACE, helo=helo, client_name=name, recipient=recipient))
    lines = header.split(b"\r\n")
    assert lines[0].startswith(b"Received: from ")
    assert lines[-1] == b""
    assert all(line.startswith(b"\t") for line in lines[1:-1])
    assert not set(header.replace(b"\r\n", b"")) & set(b"\r\n\0")
    assert all(len(line) < 998 for line in lines)
