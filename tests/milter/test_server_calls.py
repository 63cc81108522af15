"""What a filter's methods get of a payload, and which payloads never come to them."""

import asyncio
import re

import pytest

from milterchain.errors import LocalProtocolError
from milterchain.milter.filter import Milter
from milterchain.milter.flags import Command, Family
from milterchain.milter.messages import Connect, decode_command
from milterchain.milter.server_calls import METHODS


class Told(Milter):
    """Returns what it was told."""

    async def connect(self, *args):
        return args

    async def helo(self, *args):
        return args

    async def mail(self, *args):
        return args

    async def rcpt(self, *args):
        return args

    async def data(self, *args):
        return args

    async def header(self, *args):
        return args

    async def end_of_headers(self, *args):
        return args

    async def body(self, *args):
        return args

    async def unknown(self, *args):
        return args


CLIENT = Connect(hostname=b"h", family=Family.INET, port=1, address=b"192.0.2.1")


@pytest.mark.parametrize(
    ("command", "payload", "args"),
    [
        (Command.CONNECT, CLIENT.encode(), (CLIENT,)),
        (Command.HELO, b"h\0", (b"h",)),
        (Command.MAIL, b"<>\0", (b"<>", ())),
        (Command.MAIL, b"<a>\0SIZE=1\0RET=HDRS\0", (b"<a>", (b"SIZE=1", b"RET=HDRS"))),
        (Command.RCPT, b"<b>\0", (b"<b>", ())),
        (Command.RCPT, b"<b>\0NOTIFY=NEVER\0", (b"<b>", (b"NOTIFY=NEVER",))),
        (Command.DATA, b"", ()),
        (Command.HEADER, b"A\0\0", (b"A", b"")),
        (Command.HEADER, b"A\0 b\n c\0", (b"A", b" b\n c")),
        (Command.END_OF_HEADERS, b"", ()),
        (Command.BODY, b"", (b"",)),
        (Command.BODY, b"a\0b", (b"a\0b",)),
        (Command.UNKNOWN, b"WHAT\0", (b"WHAT",)),
    ],
)
def test_what_a_method_gets(command, payload, args):
    assert asyncio.run(METHODS[command](Told(), payload)) == args


@pytest.mark.parametrize("command", set(METHODS) - {Command.BODY})
@pytest.mark.parametrize("payload", [b"", b"x", b"\0", b"x\0y\0z\0", b"x\0y\0z", b"x\0y"])
def test_payloads_that_a_command_cannot_have(command, payload):
    """The same as where messages are made of them."""
    try:
        decode_command(command, payload)
    except LocalProtocolError as error:
        with pytest.raises(LocalProtocolError, match=re.escape(str(error))):
            METHODS[command](Told(), payload)
    else:
        METHODS[command](Told(), payload).close()
