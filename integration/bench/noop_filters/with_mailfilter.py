"""A filter on `milterchain.mailfilter` that accepts everything: HOST PORT LOOP."""

# The arguments are what the library hands over.
# ruff: noqa: ARG001

import asyncio
import sys

from loops import run

from milterchain.mailfilter import ACCEPT, Decision, MailFilter, Transaction


async def decide(transaction: Transaction) -> Decision:
    """Look at nothing."""
    return ACCEPT


async def main(host: str, port: str) -> None:
    async with MailFilter(decide, [f"inet:{host}:{port}"]):
        await asyncio.Event().wait()


run(main(*sys.argv[1:3]), sys.argv[3])
