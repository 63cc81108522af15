"""Which method of a filter a command is for, and what of its payload the method gets."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from milterchain.milter.commands import Connect, Header
from milterchain.milter.filter import Milter
from milterchain.milter.flags import Command
from milterchain.milter.messages import Reply
from milterchain.milter.payloads import Empty, split_strings

__all__ = ["METHODS", "NO_METHODS", "Method"]

Method: TypeAlias = Callable[[Any, bytes], Awaitable[Reply | None]]
"""Reads a command's payload and calls the filter's method for it; the filter is a `Milter`.

Raises `LocalProtocolError` for a payload that the command cannot have.
"""


def _connect(milter: Milter, payload: bytes) -> Awaitable[Reply | None]:
    return milter.connect(Connect.decode(payload))


def _helo(milter: Milter, payload: bytes) -> Awaitable[Reply | None]:
    return milter.helo(*split_strings(payload, 1, 1))


def _mail(milter: Milter, payload: bytes) -> Awaitable[Reply | None]:
    address, *args = split_strings(payload, 1, None)
    return milter.mail(address, tuple(args))


def _rcpt(milter: Milter, payload: bytes) -> Awaitable[Reply | None]:
    address, *args = split_strings(payload, 1, None)
    return milter.rcpt(address, tuple(args))


def _data(milter: Milter, payload: bytes) -> Awaitable[Reply | None]:
    if payload:
        Empty.decode(payload)
    return milter.data()


def _header(milter: Milter, payload: bytes) -> Awaitable[Reply | None]:
    strings = payload.split(b"\0")
    if len(strings) != 3 or strings[2]:
        Header.decode(payload)  # says what is wrong
    return milter.header(strings[0], strings[1])


def _end_of_headers(milter: Milter, payload: bytes) -> Awaitable[Reply | None]:
    if payload:
        Empty.decode(payload)
    return milter.end_of_headers()


def _body(milter: Milter, payload: bytes) -> Awaitable[Reply | None]:
    return milter.body(payload)


def _unknown(milter: Milter, payload: bytes) -> Awaitable[Reply | None]:
    return milter.unknown(*split_strings(payload, 1, 1))


METHODS: Mapping[int, Method] = {
    Command.CONNECT: _connect,
    Command.HELO: _helo,
    Command.MAIL: _mail,
    Command.RCPT: _rcpt,
    Command.DATA: _data,
    Command.HEADER: _header,
    Command.END_OF_HEADERS: _end_of_headers,
    Command.BODY: _body,
    Command.UNKNOWN: _unknown,
}
"""All but the end of a message, which comes with a modifier."""

NO_METHODS: Mapping[int, Method] = {}
