"""A filter on kilter.service that waits for every event and does nothing: HOST PORT LOOP."""

# mypy: ignore-errors

import sys

import anyio
from kilter.protocol import Accept
from kilter.service import Runner, Session
from loops import run


async def noop(session: Session) -> Accept:
    """Look at everything, accept it; there is no other way to go on."""
    await session.helo()
    await session.envelope_from()
    async for _ in session.envelope_recipients():
        pass
    async with session.headers as headers:
        async for _ in headers:
            pass
    async with session.body as body:
        async for _ in body:
            pass
    return Accept()


async def main(host: str, port: str) -> None:
    listener = await anyio.create_tcp_listener(local_host=host, local_port=int(port))
    await listener.serve(Runner(noop))


run(main(*sys.argv[1:3]), sys.argv[3])
