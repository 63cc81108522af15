"""`MailFilter`: one async function as a milter that listens for MTAs.

::

    async with MailFilter(decide, ["inet:127.0.0.1:10003"]):
        await stop.wait()
"""

import asyncio
from collections.abc import Sequence
from typing import Self

from milterchain.mailfilter.negotiation import negotiation_for
from milterchain.mailfilter.options import FilterOptions
from milterchain.mailfilter.session import Decide, FilterSession
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.server import Listener, MilterServer
from milterchain.milter.server_options import NegotiationOptions, ServerOptions

__all__ = ["MailFilter"]


class MailFilter:
    """A filter that is one function, as an async context manager.

    The function is called for each message (or session, see `DecideAt`) with a `Transaction`, and returns a
    `Decision`. Calls for different MTA connections run side by side in the event loop; what blocks belongs
    in `asyncio.to_thread`. While the function runs the MTA is told each second that it does, and if the MTA
    goes away it is cancelled. If it fails, `FilterOptions.on_error` says what happens.

    Args:
        function: the filter.
        listeners: where to listen; all of them, or none if one fails.
        options: how to run the function.
        server: limits of the server.
        negotiation: what to negotiate instead of what follows from `options`: versions, data size, for
            experts all of it.
    """

    def __init__(
        self,
        function: Decide,
        listeners: Sequence[str | Endpoint | Listener],
        *,
        options: FilterOptions | None = None,
        server: ServerOptions | None = None,
        negotiation: NegotiationOptions | None = None,
    ) -> None:
        chosen = options or FilterOptions()
        self._closed = asyncio.Event()
        self._server = MilterServer(
            lambda: FilterSession(function, chosen),
            listeners,
            options=server,
            negotiation=negotiation_for(chosen, negotiation or NegotiationOptions()),
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it listens, with the ports that the system chose."""
        return self._server.endpoints

    @property
    def connections(self) -> int:
        """How many MTAs are connected."""
        return self._server.connections

    @property
    def sessions(self) -> int:
        """How many SMTP sessions it has served or is serving."""
        return self._server.handlers_made

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen.

        Raises:
            MilterConnectError: an address cannot be listened on; names it, and why.
            ValueError: an address cannot be read.
        """
        self._closed.clear()
        await self._server.start()

    async def shutdown(self, deadline: float) -> None:
        """Listen no more, let SMTP sessions come to their end, then close.

        Args:
            deadline: seconds after which what is left is broken off.
        """
        await self._server.shutdown(deadline)
        self._closed.set()

    async def close(self) -> None:
        """Listen no more and break all connections; functions that run are cancelled."""
        await self._server.close()
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait until somebody has closed it, or shut it down."""
        await self._closed.wait()
