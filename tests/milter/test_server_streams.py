import asyncio
import socket
import sys

import pytest

from milterchain.milter.flags import Command
from milterchain.milter.framing import encode_packet
from milterchain.milter.messages import Continue, Helo, Macros, Reply
from milterchain.milter.server import MilterServer
from milterchain.testing.raw_mta import RawMta
from tests.milter.test_server_traps import CONNECT, LISTENERS, Diary

TIMES = 20
"""HELOs; each would take 40 ms or more where the macros before it were acknowledged late."""


class Greeted(Diary):
    async def helo(self, name: bytes) -> Reply | None:  # noqa: ARG002 - the signature of `Milter`
        return Continue()


@pytest.mark.skipif(sys.platform != "linux", reason="others have no TCP_QUICKACK")
async def test_macros_in_a_write_of_their_own_are_acknowledged_at_once():
    loop = asyncio.get_running_loop()
    macros = Macros(Command.HELO, ((b"{tls_version}", b"TLSv1.3"),))
    async with MilterServer(Greeted, LISTENERS) as server, RawMta(server.endpoints[0]) as mta:
        await mta.negotiate()
        assert await mta.ask(CONNECT) == Continue()
        # asyncio switches off what MTAs leave on: a second small write waits until the first has arrived.
        mta._writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        began = loop.time()
        for number in range(TIMES):
            helo = Helo(b"client%d" % number)
            mta.send(macros)
            await asyncio.sleep(0)
            mta.send(encode_packet(helo.code, helo.encode()))
            assert await mta.receive() == Continue()
        assert loop.time() - began < TIMES * 0.02
