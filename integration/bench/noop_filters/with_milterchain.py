"""A filter on `milterchain.milter` that wants every event and does nothing: HOST PORT LOOP."""

# The arguments are what the library hands over.
# ruff: noqa: ARG002, D102

import asyncio
import sys

from loops import run

from milterchain.milter import Connect, Continue, Milter, MilterServer, Modifier, Reply


class Noop(Milter):
    """Says CONTINUE to everything."""

    async def connect(self, client: Connect) -> Reply:
        return Continue()

    async def helo(self, name: bytes) -> Reply:
        return Continue()

    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> Reply:
        return Continue()

    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> Reply:
        return Continue()

    async def data(self) -> Reply:
        return Continue()

    async def header(self, name: bytes, value: bytes) -> Reply:
        return Continue()

    async def end_of_headers(self) -> Reply:
        return Continue()

    async def body(self, chunk: bytes) -> Reply:
        return Continue()

    async def end_of_message(self, modifier: Modifier) -> Reply:
        return Continue()


async def main(host: str, port: str) -> None:
    async with MilterServer(Noop, [f"inet:{host}:{port}"]):
        await asyncio.Event().wait()


run(main(*sys.argv[1:3]), sys.argv[3])
