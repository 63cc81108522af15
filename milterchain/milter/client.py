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
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Self, TypeAlias, TypeVar, cast

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
from milterchain.milter.endpoint import Dialer, Endpoint
from milterchain.milter.flags import ALL_ACTIONS, ALL_PROTOCOL, DATA_SIZE_64K, Action, Command, Protocol
from milterchain.milter.framing import OVERHEAD, encode_packet
from milterchain.milter.link import MilterLink, reason
from milterchain.milter.messages import AnyCommand, AnyResponse, Continue, OptNeg, Progress, Quit, Reply
from milterchain.milter.negotiation import Negotiated, Offer
from milterchain.milter.state import PIPELINED, RESPONSES, Role

__all__ = ["ClientOptions", "Content", "ContentResult", "MilterSession", "Replied"]

Replied: TypeAlias = Callable[["Reply | MilterError"], None]
"""Takes a reply, or what failed in its place."""

_CONTENT = PIPELINED | {Command.OPTNEG, Command.MACRO}
_CONTINUE = Continue()
_NO_MACROS: MacroValues = MappingProxyType({})
_T = TypeVar("_T")


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
        used_data: the largest packet size that is sent, however much was agreed on, but never less than
            64 KiB, which long headers need; None is as much as was agreed on. To offer more than that, and
            not to use it, lets the milter send large pieces to an MTA that is careful itself.
        dialer: makes the connection in the place of `Endpoint.connect`; its OSErrors count as the address's.
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
    used_data: int | None = None
    dialer: Dialer = Endpoint.connect
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

    begin: Callable[[], object]
    fail: Callable[[MilterError], None] | None


def _fill(future: asyncio.Future[_T], result: _T | MilterError) -> None:
    """Settle a future, which perhaps nobody awaits any more."""
    if future.done():
        return
    if isinstance(result, MilterError):
        future.set_exception(result)
        future.exception()  # so that asyncio does not log it when it is dropped
    else:
        future.set_result(result)


class MilterSession(MilterLink):
    """A connection to a milter on which options are agreed.

    Attributes:
        negotiated: what was agreed on; `max_data` is what is used of it.
        quarantine: the reason for which the milter wanted a message held before it failed with it, else None.
    """

    negotiated: Negotiated

    def __init__(self, endpoint: Endpoint, options: ClientOptions = _DEFAULT) -> None:
        connection = Connection(Role.MTA, max_payload=options.max_reply)
        super().__init__(endpoint, connection, options.command_timeout, options.total_timeout)
        self.quarantine: bytes | None = None
        self._options = options
        self._queue: deque[_Turn] = deque()
        self._waiter: Replied | None = None
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
                await options.dialer(endpoint, lambda: session)
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
        try:
            self.request(
                code,
                encode_packet(code, command.encode()),
                encode_macros(code, macros, self.negotiated.max_data) if macros else b"",
                None if future is None else partial(_fill, future),
            )
        except MilterError as error:
            if future is not None:
                _fill(future, error)
            elif isinstance(error, LocalProtocolError):
                raise
        return future

    def request(self, code: Command, packet: bytes, macros: bytes, replied: Replied | None) -> bool:
        """Send a command that is encoded already, perhaps for several milters; else as `command`.

        Args:
            code: the command's.
            packet: the command.
            macros: their packet, empty without any.
            replied: called once if a reply is due, from within the callbacks of the transport.

        Returns:
            Whether a reply is due.

        Raises:
            LocalProtocolError: the command is not possible.
            MilterError: the session is over; `replied` is not called.
        """
        if self.closed:
            raise self._end()
        if self._busy:
            self._queue.append(_Turn(lambda: self._request(code, packet, macros, replied), replied))
            return code in self.negotiated.answered
        return self._request(code, packet, macros, replied)

    def _request(self, code: Command, packet: bytes, macros: bytes, replied: Replied | None) -> bool:
        negotiated = self.negotiated
        if code in negotiated.declined:
            if macros and negotiated.knows(code):
                self._write(macros)
            return False
        longest = negotiated.max_data + OVERHEAD
        if len(packet) > longest or len(macros) > longest:
            raise LocalProtocolError(f"{code.name} or its macros are longer than {negotiated.max_data} bytes")
        try:
            self._connection.advance(code)
        except RemoteProtocolError as error:
            self._fail(error)
            raise self._end() from error
        due = code in negotiated.answered
        if due:
            self._waiter = replied
            self._limit(self._options.command_timeout)
        self._write(macros + packet)
        return due

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
        except BaseException as error:
            self._break(outcome, error)
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
        if self._outcome is None and connection.continued(data):
            self._settle(_CONTINUE)
            if self._waiter is not None:
                self._acknowledge()
            return
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

    def _break(self, outcome: Outcome, error: BaseException) -> None:
        """End the session by what ended an exchange of content; raises what the milter's fault has become."""
        if not isinstance(error, MilterError):
            self._fail(MilterClosedError("given up in the middle of a message"))
            return
        self.quarantine = outcome.quarantine
        self._fail(error)
        raise self._end() from error

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
            except MilterError as error:
                if turn.fail is None:
                    self._fail(error)
                else:
                    turn.fail(error)

    async def _turn(self, outcome: Outcome) -> None:
        """Wait for the turn of a message's content."""
        future: asyncio.Future[None] = self._loop.create_future()

        def begin() -> None:
            self._outcome = outcome
            _fill(future, None)

        self._queue.append(_Turn(begin, partial(_fill, future)))
        await future

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
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._waiter = partial(_fill, answer)
        self._write(self._connection.send(self._options.offer()))
        await answer
        negotiated = self._connection.negotiated
        assert negotiated is not None
        used = self._options.used_data
        if used is not None and used < negotiated.max_data:
            negotiated = replace(negotiated, max_data=max(used, DATA_SIZE_64K))
        self.negotiated = negotiated

    def _received(self, command: int, event: AnyResponse) -> None:
        if isinstance(event, Progress):
            self._restart()
        elif self._outcome is not None:
            self._outcome.received(command, event)
            self._restart()
        else:
            self._settle(cast("Reply", event))

    def _settle(self, reply: Reply) -> None:
        waiter, self._waiter = self._waiter, None
        self._deadline = None
        if waiter is not None:
            waiter(reply)
        if self._queue:
            self._next()

    def _release(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter(self._end())
        while self._queue:
            turn = self._queue.popleft()
            if turn.fail is not None:
                turn.fail(self._end())
        self._wake()

    def _wake(self) -> None:
        if self._progress is not None:
            _fill(self._progress, None)
