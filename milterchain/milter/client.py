"""The MTA's side of one milter connection, on asyncio.

Commands are written at once, or after the reply to the former one came; each reply resolves its future.
There are no tasks, no streams, and one timer handle at most for each session: a session lives as long as an
SMTP session, and busy servers open three or more of them for each message.

Whatever goes wrong (silence, garbage, a reply that nobody asked for, a lost connection) ends the session:
`MilterSession.failure` says what, and every later command fails with it. Verdicts are values.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Self, cast

from milterchain.errors import (
    LocalProtocolError,
    MilterClosedError,
    MilterConnectError,
    MilterError,
    MilterTimeoutError,
    RemoteProtocolError,
)
from milterchain.milter.connection import MAX_RESPONSE, Connection
from milterchain.milter.content import Content, ContentResult, Exchange, MacroValues, Outcome, encode_macros
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, DATA_SIZE_64K, Action, Command, Protocol
from milterchain.milter.link import MilterLink, reason
from milterchain.milter.messages import AnyCommand, AnyResponse, OptNeg, Progress, Quit, Reply
from milterchain.milter.negotiation import Negotiated, Offer
from milterchain.milter.state import PIPELINED, RESPONSES, Role

__all__ = ["ClientOptions", "Content", "ContentResult", "MilterSession"]

_CONTENT = PIPELINED | {Command.OPTNEG, Command.MACRO}
_NO_MACROS: MacroValues = MappingProxyType({})


@lru_cache
def _offer(version: int, actions: Action, protocol: Protocol, max_data: int) -> OptNeg:
    return Offer(version=version, actions=actions, protocol=protocol, max_data=max_data).message()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """How to speak to a milter.

    Attributes:
        version: offered, 2 to 6.
        actions: offered; milters leave when it is less than they want.
        protocol: offered.
        max_data: the largest packet size that is offered.
        connect_timeout: seconds for the connection and the negotiation together.
        command_timeout: seconds for each reply up to DATA. PROGRESS starts it again.
        content_timeout: seconds for each reply to the content, and for the milter to take data.
        total_timeout: seconds that PROGRESS can stretch one command or one message to, below the ten
            minutes that SMTP clients wait for the final reply.
        max_reply: bytes of one packet from the milter.
        max_edits: modifications of one message.
        max_edit_bytes: all modifications of one message together.
    """

    version: int = 6
    actions: Action = ALL_ACTIONS
    protocol: Protocol = ALL_PROTOCOL
    max_data: int = DATA_SIZE_64K
    connect_timeout: float = 30
    command_timeout: float = 30
    content_timeout: float = 300
    total_timeout: float = 540
    max_reply: int = MAX_RESPONSE
    max_edits: int = 1000
    max_edit_bytes: int = 2 * MAX_RESPONSE

    def offer(self) -> OptNeg:
        """The first packet."""
        return _offer(self.version, self.actions, self.protocol, self.max_data)


_DEFAULT = ClientOptions()


@dataclass(slots=True)
class _Turn:
    """What waits until the replies before it came."""

    begin: Callable[[], None]
    future: asyncio.Future[Reply] | asyncio.Future[None] | None


def _break(future: asyncio.Future[Reply] | asyncio.Future[None], error: MilterError) -> None:
    """Fail a future, which perhaps nobody awaits any more."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # so that asyncio does not log it when it is dropped


class MilterSession(MilterLink):
    """A connection to a milter on which options are agreed.

    Attributes:
        negotiated: what was agreed on.
    """

    negotiated: Negotiated

    def __init__(self, endpoint: Endpoint, options: ClientOptions = _DEFAULT) -> None:
        connection = Connection(Role.MTA, max_payload=options.max_reply)
        super().__init__(endpoint, connection, options.command_timeout, options.total_timeout)
        self._options = options
        self._queue: deque[_Turn] = deque()
        self._waiter: asyncio.Future[Reply] | None = None
        self._outcome: Outcome | None = None
        self._progress: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, endpoint: Endpoint, options: ClientOptions = _DEFAULT) -> Self:
        """Connect and negotiate.

        Raises:
            MilterConnectError: nobody there: names the address, the error and its number.
            MilterTimeoutError: not within `connect_timeout`.
            MilterClosedError: the milter closed the connection instead of an answer.
            NegotiationError: no common ground.
            RemoteProtocolError: what answered is no milter's packet (`NotAMilterError`), or a wrong one.
        """
        session = cls(endpoint, options)
        try:
            async with asyncio.timeout(options.connect_timeout):
                await endpoint.connect(lambda: session)
                await session._negotiate()
        except TimeoutError:
            what = "no connection" if session._transport is None else "no answer to the option negotiation"
            session._fail(MilterTimeoutError(f"{what} within {options.connect_timeout:g} s"))
            raise session._end() from None
        except OSError as error:
            raise MilterConnectError(f"{endpoint}: {reason(error)}") from error
        except BaseException:
            session._abort()
            raise
        return session

    def command(
        self, command: AnyCommand, macros: Sequence[tuple[bytes, bytes]] = ()
    ) -> asyncio.Future[Reply] | None:
        """Send a command of the SMTP dialogue: CONNECT to DATA, or an unknown one.

        It is written at once, together with its macros, or when the replies to all former commands came.

        Args:
            command: not one of the content, for which `content` is there.
            macros: name and value, in the spelling that travels. They are sent even if the milter declined
                the command itself.

        Returns:
            A future of the reply, which fails with a `MilterError`; None if no reply is due.

        Raises:
            LocalProtocolError: the command is not possible, and there is no future that could say so.
        """
        code = command.code
        if code in _CONTENT:
            raise LocalProtocolError(f"{code.name} is not sent with command()")
        future: asyncio.Future[Reply] | None = None
        if code in self.negotiated.answered:
            future = self._loop.create_future()
        if self.closed:
            if future is not None:
                _break(future, self._end())
        elif self._busy:
            self._queue.append(_Turn(lambda: self._command(command, macros, future), future))
        else:
            try:
                self._command(command, macros, future)
            except LocalProtocolError as error:
                if future is None:
                    raise
                _break(future, error)
        return future

    def send(self, command: AnyCommand) -> None:
        """Send what is never answered: ABORT, QUIT, QUIT_NC. After QUIT the session is closed.

        Raises:
            LocalProtocolError: it is answered, or not possible now.
        """
        if command.code in RESPONSES:
            raise LocalProtocolError(f"{command.code.name} is answered")
        if self.closed:
            return
        if self._busy:
            self._queue.append(_Turn(lambda: self._send(command), None))
        else:
            self._send(command)

    async def content(
        self,
        content: Content,
        *,
        pipelined: bool,
        macros: MacroValues = _NO_MACROS,
        deadline: float | None = None,
    ) -> ContentResult:
        """Send a message and wait for the verdict.

        A verdict in the middle of a stream leaves the number of replies to come unknown: the session is
        closed then (`closed`, without a `failure`), and its result stands.

        Args:
            content: the message.
            pipelined: in one stream; otherwise each piece waits for its reply.
            macros: for the end of headers and the end of the message.
            deadline: the loop time at which the verdict must be there, whatever PROGRESS says.

        Raises:
            MilterError: it failed; the session is of no use any more. So it is after a cancellation.
        """
        if self.closed:
            raise self._end()
        outcome = Outcome(max_edits=self._options.max_edits, max_edit_bytes=self._options.max_edit_bytes)
        try:
            if self._busy:
                await self._turn(outcome)
            self._outcome = outcome
            self._limit(self._options.content_timeout, deadline)
            exchange = Exchange(self, self._connection, self.negotiated, outcome, pipelined=pipelined)
            result = await exchange.run(content, macros)
        except MilterError as error:
            self._fail(error)
            raise self._end() from error
        except BaseException:
            self._fail(MilterClosedError("given up in the middle of a message"))
            raise
        finally:
            self._outcome = None
        self._deadline = None
        if pipelined and result.stage != Command.END_OF_MESSAGE:
            self.close()
        self._next()
        return result

    async def quit(self) -> None:
        """Send QUIT after the replies that are due came, and wait until the connection is closed."""
        self.send(Quit())
        await self.wait_closed()

    # asyncio calls these

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        connection = self._connection
        connection.receive_data(data)
        try:
            if self._outcome is not None and connection.continues():
                self._restart()
            while True:
                command = connection.awaited
                event = connection.next_event()
                if event is None:
                    break
                self._received(cast("int", command), cast("AnyResponse", event))
        except MilterError as error:
            self._fail(error)
            return
        if self._outcome is not None and (self._outcome.over() or not connection.outstanding):
            self._wake()
        elif self._waiter is not None or self._outcome is not None:
            self._acknowledge()

    # `Exchange` calls these

    def write(self, data: bytes) -> None:
        """See `Link`."""
        self._write(data)
        self._restart()

    def check(self) -> None:
        """See `Link`."""
        if self.closed and (self._outcome is None or self._outcome.result is None):
            raise self._end()

    async def progress(self) -> None:
        """See `Link`."""
        self.check()
        self._progress = self._loop.create_future()
        await self._progress
        self.check()

    # Taking turns

    @property
    def _busy(self) -> bool:
        return self._waiter is not None or self._outcome is not None or bool(self._queue)

    def _next(self) -> None:
        """Let those begin whose turn it is."""
        queue = self._queue
        while queue and self._waiter is None and self._outcome is None:
            turn = queue.popleft()
            try:
                turn.begin()
            except LocalProtocolError as error:
                if turn.future is None:
                    self._fail(error)
                else:
                    _break(turn.future, error)

    async def _turn(self, outcome: Outcome) -> None:
        """Wait for the turn of a message's content."""
        future: asyncio.Future[None] = self._loop.create_future()

        def begin() -> None:
            self._outcome = outcome
            if not future.done():
                future.set_result(None)

        self._queue.append(_Turn(begin, future))
        await future

    def _command(
        self,
        command: AnyCommand,
        macros: Sequence[tuple[bytes, bytes]],
        future: asyncio.Future[Reply] | None,
    ) -> None:
        negotiated, connection, code = self.negotiated, self._connection, command.code
        if not negotiated.knows(code):
            return
        try:
            packet = encode_macros(code, macros, negotiated.max_data) if macros else b""
            if code not in negotiated.declined:
                packet += connection.send(command)
        except RemoteProtocolError as error:
            self._fail(error)
            if future is not None:
                _break(future, self._end())
            return
        if future is not None:
            self._waiter = future
            self._limit(self._options.command_timeout)
        if packet:
            self._write(packet)

    def _send(self, command: AnyCommand) -> None:
        try:
            packet = self._connection.send(command)
        except RemoteProtocolError as error:
            self._fail(error)
            return
        self._write(packet)
        if command.code == Command.QUIT:
            self.close()

    async def _negotiate(self) -> None:
        offer = self._options.offer()
        self._waiter = self._loop.create_future()
        self._write(self._connection.send(offer))
        await self._waiter
        assert self._connection.negotiated is not None
        self.negotiated = self._connection.negotiated

    def _received(self, command: int, event: AnyResponse) -> None:
        if isinstance(event, Progress):
            self._restart()
        elif self._outcome is not None:
            self._outcome.received(command, event)
            self._restart()
        else:
            waiter, self._waiter = self._waiter, None
            self._deadline = None
            if waiter is not None and not waiter.done():
                waiter.set_result(cast("Reply", event))
            self._next()

    def _release(self) -> None:
        error = self._end()
        if self._waiter is not None:
            _break(self._waiter, error)
            self._waiter = None
        while self._queue:
            turn = self._queue.popleft()
            if turn.future is not None:
                _break(turn.future, error)
        self._wake()

    def _wake(self) -> None:
        if self._progress is not None and not self._progress.done():
            self._progress.set_result(None)
