"""One MTA connection of a milter server: events to a `Milter`, its answers back.

A task reads, cuts what it read into events (`Connection`) and awaits the filter's method for each; replies
leave when no more events are at hand, so that content that came in one piece is answered in one piece. One
timer per connection serves all deadlines; it is moved only for methods that really wait for something.
"""

import asyncio
import enum
import logging
from collections.abc import Awaitable
from typing import Any

from milterchain.errors import CloseConnectionError, LocalProtocolError, MilterClosedError, MilterError
from milterchain.milter.connection import Connection, Event
from milterchain.milter.filter import Milter
from milterchain.milter.flags import Command, Protocol
from milterchain.milter.framing import OVERHEAD
from milterchain.milter.macros import MacroStore
from milterchain.milter.messages import (
    Continue,
    EndOfMessage,
    Macros,
    Modification,
    OptNeg,
    Progress,
    Quarantine,
    Reply,
    Skip,
    TempFail,
)
from milterchain.milter.modifier import Modifier
from milterchain.milter.server_calls import METHODS
from milterchain.milter.server_factory import MilterMaker
from milterchain.milter.server_options import ServerOptions
from milterchain.milter.server_streams import Deadline, Reader
from milterchain.milter.state import Role, State

__all__ = ["ServerSession"]

_log = logging.getLogger("milterchain.milter.server")

_HELD_BACK = 64 * 1024
"""Bytes of edits and replies that are collected before they are written."""

_ANSWERED = frozenset({*METHODS, Command.END_OF_MESSAGE})
# Members of enumerations under names of their own: to look them up costs much in Python 3.11.
_END_OF_MESSAGE, _UNKNOWN, _BODY = Command.END_OF_MESSAGE, Command.UNKNOWN, Command.BODY
_ABORT, _QUIT_NEW_CONNECTION = Command.ABORT, Command.QUIT_NEW_CONNECTION
_CLOSED = State.CLOSED
_SESSION = {Command.CONNECT, Command.HELO}
_IN_MESSAGE = {State.MAIL, State.RCPT, State.DATA, State.HEADERS, State.BODY}
_GOING_ON = (Continue, Skip, type(None))


class _Interruption(enum.Enum):
    """Why a method of the filter was cancelled."""

    OVERDUE = enum.auto()
    LEFT = enum.auto()


class ServerSession:
    """Serves one connection; `run` is its life."""

    def __init__(self, maker: MilterMaker, options: ServerOptions, reader: Reader) -> None:
        self._maker = maker
        self._options = options
        self._reader = reader
        self._writer = reader.writer
        self._connection = Connection(Role.MILTER)
        self._milter: Milter | None = None
        self._macros = MacroStore()
        self._output: list[bytes] = []
        self._held = 0
        self._in_message = False
        self._kept: Reply | None = None
        self._kept_for_session = False
        self._skipped: int | None = None
        self._deadline = Deadline(self._expired)
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        self._calling = False
        self._flushing = 0
        self._interruption: _Interruption | None = None
        self._cancelled = 0
        self._draining = False
        self._parting = False
        self._allowed = 0.0
        reader.feed = self._connection.receive_data
        reader.on_left = self._left
        reader.on_suspended = self._suspended

    async def run(self) -> None:
        """Serve until the connection ends, whoever ends it."""
        self._task = asyncio.current_task()
        try:
            await self._converse()
        except (OSError, MilterClosedError) as error:
            _log.debug("connection lost: %s", error)
        except MilterError as error:
            _log.warning("connection closed: %s", error)
        except Exception:  # noqa: BLE001 - the factory, or a negotiation callback
            _log.exception("connection closed: the filter could not be started")
        finally:
            self._parting = True
            self._connection.close()
            transport = self._writer.transport
            if self._output and not transport.is_closing():
                self._write()
            transport.close()
            try:
                await self._part()
            finally:
                self._deadline.end()
                self._reader.leave_alone()

    def stop(self) -> None:
        """Break the connection; the filter's `close` is still awaited."""
        if self._parting:
            self._draining = True
        elif self._task is None:
            self._writer.transport.abort()
        else:
            self._parting = True
            self._task.cancel()
            self._deadline.set(self._options.close_timeout)

    def drain(self) -> None:
        """Close as soon as no SMTP session is served: at QUIT, at QUIT_NC, or now if none has begun.

        Between the messages of a session it would be too early: the MTA would take it for a failure.
        """
        self._draining = True
        if self._milter is None and not self._busy:
            self._writer.transport.close()

    async def _converse(self) -> None:
        connection, reader = self._connection, self._reader
        while True:
            self._busy = True
            while (event := connection.next_event()) is not None:
                if isinstance(event, Macros):
                    self._macros.define(event.stage, event.values)
                    continue
                command = event.code
                self._macros.command(command)
                if command in _ANSWERED:
                    await self._answer(command, event)
                else:
                    await self._handle(event)
                if self._held > _HELD_BACK:
                    await self._flush()
                if self._over():
                    break
            answered = bool(self._output)
            await self._flush()
            self._busy = False
            if connection.state is _CLOSED or self._over():
                return
            self._expect(acknowledge=not answered)
            if not reader.ready:
                await reader
            if not reader.proceed():
                return

    def _over(self) -> bool:
        return self._parting or (self._draining and self._milter is None)

    def _expect(self, *, acknowledge: bool) -> None:
        """Get ready to wait for what the MTA says next."""
        if self._connection.negotiated is None:
            self._deadline.set(self._options.negotiation_timeout)
            return
        self._deadline.set(self._options.idle_timeout)
        if acknowledge:
            self._writer.acknowledge()

    def _expired(self) -> None:
        """The deadline has passed: end the filter's method if one runs, else the connection."""
        if self._calling and not self._flushing:
            self._interrupt(_Interruption.OVERDUE)
        else:
            _log.info("connection closed: the MTA took too long")
            self._writer.transport.abort()

    def _suspended(self) -> None:
        """The task did not come to its end, nor to the wait for more events: now there is a deadline."""
        if self._calling and not self._flushing:
            self._deadline.set(self._allowed)

    def _left(self) -> None:
        """The MTA has left: nobody waits for the filter's answer any more."""
        working = self._calling and not self._flushing and not self._parting
        if working and self._connection.awaited is not None:
            self._interrupt(_Interruption.LEFT)

    def _interrupt(self, reason: _Interruption) -> None:
        assert self._task is not None
        self._interruption = self._interruption or reason
        self._cancelled += 1
        self._task.cancel()
        self._deadline.set(self._options.close_timeout)  # again, if it takes no notice

    # Events

    async def _handle(self, event: Event) -> None:
        """What no filter answers."""
        if isinstance(event, OptNeg):
            self._milter = self._maker.first()
            self._hold(self._connection.send(self._maker.answer(event, self._milter)))
            await self._introduce(self._milter)
        elif event.code is _ABORT:
            await self._forget()
        elif event.code is _QUIT_NEW_CONNECTION:
            await self._part()

    async def _introduce(self, milter: Milter | None) -> Milter:
        """Get a filter ready for a session."""
        negotiated = self._connection.negotiated
        assert negotiated is not None
        if milter is None:
            milter = self._milter = self._maker.make(negotiated)
        milter.negotiated = negotiated
        milter.macros = self._macros
        milter.modifier = Modifier(self, negotiated, writable=False)
        if type(milter).new_connection is not Milter.new_connection:
            await self._flush()
            if await self._call(milter.new_connection(), self._options.handler_timeout) is not None:
                raise MilterError("the filter was not ready")
        return milter

    async def _answer(self, command: int, event: Any) -> None:
        """Let the filter decide on an event, and send its verdict if one is due."""
        milter = self._milter
        if milter is None:
            milter = await self._introduce(None)
        due = command in milter.negotiated.answered
        verdict = self._kept
        if verdict is None:
            if self._connection.state in _IN_MESSAGE:
                self._in_message = True
            if command is _END_OF_MESSAGE:
                verdict = await self._end_of_message(milter, event)
            elif command is not self._skipped:
                self._skipped = None
                method = METHODS[command](milter, event)
                verdict = await self._call(method, self._options.handler_timeout)
                verdict = self._skip(milter, command) if isinstance(verdict, Skip) else verdict
            if not due and not isinstance(verdict, _GOING_ON):
                self._keep(command, verdict)
        if due:
            self._reply(verdict)
        if self._connection.state not in _IN_MESSAGE:
            self._in_message = False
            if not self._kept_for_session:
                self._kept = None

    def _keep(self, command: int, verdict: Reply) -> None:
        """Keep a verdict until the MTA listens."""
        if command is not _UNKNOWN:
            self._kept = verdict
            self._kept_for_session = command in _SESSION
            self._in_message = False

    def _skip(self, milter: Milter, command: int) -> Skip | None:
        """Call the filter no more for a while, and tell the MTA if it can hear of it."""
        self._skipped = command
        if not milter.negotiated.protocol & Protocol.SKIP:
            return None
        if command is not _BODY and self._macros.sendmail:
            return None  # it gives up on a filter that skips anything else
        return Skip()

    async def _end_of_message(self, milter: Milter, event: EndOfMessage) -> Reply | None:
        if event.chunk and self._skipped is not _BODY:
            # libmilter takes the last of the body here, so MTAs may put it here.
            verdict = await self._call(milter.body(event.chunk), self._options.handler_timeout)
            if not isinstance(verdict, _GOING_ON):
                return verdict
        self._skipped = None
        modifier = milter.modifier = Modifier(self, milter.negotiated)
        try:
            verdict = await self._call(milter.end_of_message(modifier), self._options.handler_timeout)
            return None if isinstance(verdict, Skip) else verdict
        finally:
            modifier.expire()

    async def _call(self, method: Awaitable[Reply | None], seconds: float) -> Reply | None:
        """Await a method of the filter; its failures are temporary failures of the message.

        Raises:
            CloseConnectionError: it wants the connection closed.
            MilterClosedError: the MTA left while it ran.
        """
        self._allowed = seconds
        if not self._reader.waking:
            self._deadline.set(seconds)
        self._calling = True
        if self._reader.left:  # before it was called
            asyncio.get_running_loop().call_soon(self._left)
        try:
            return await method
        except asyncio.CancelledError:
            if not self._explained(seconds):
                raise
        except CloseConnectionError:
            if not self._parting:
                raise
        except Exception as error:  # noqa: BLE001 - whatever a filter's author did not think of
            if isinstance(error, MilterClosedError) and self._gone():
                _log.debug("the MTA left at the end of a message: %s", error)
            else:
                _log.exception("the filter failed")
        finally:
            self._calling = False
            if self._interruption is not None:
                self._uncancel()
        return TempFail()

    def _explained(self, seconds: float) -> bool:
        """Note why a method of the filter was cancelled; False if this task was, by somebody else.

        Raises:
            MilterClosedError: the MTA left.
        """
        assert self._task is not None
        reason = self._interruption
        if not self._task.cancelling():
            _log.exception("the filter failed: what it waited for was cancelled")
            return True
        if reason is None or self._uncancel():
            return False
        if reason is _Interruption.LEFT:
            raise MilterClosedError("the MTA left while the filter worked") from None
        _log.error("the filter took more than %s s", seconds)
        return True

    def _uncancel(self) -> bool:
        """Take back our own cancellation; whether there are others."""
        assert self._task is not None
        self._interruption = None
        for _ in range(self._cancelled):
            self._task.uncancel()
        self._cancelled = 0
        return self._task.cancelling() > 0

    async def _forget(self) -> None:
        """The message that is open, if any, will not be completed."""
        self._skipped = None
        if not self._kept_for_session:
            self._kept = None
        if self._in_message:
            self._in_message = False
            assert self._milter is not None
            await self._call(self._milter.abort(), self._options.close_timeout)

    async def _part(self) -> None:
        """The SMTP session is over."""
        milter = self._milter
        if milter is None:
            return
        self._kept_for_session = False
        over, self._parting = self._parting, True
        try:
            await self._forget()
        finally:
            self._milter = None
            await self._call(milter.close(), self._options.close_timeout)
            self._parting = over

    # Output

    async def emit(self, message: Modification | Quarantine) -> None:
        """Send what is not final, with what follows it."""
        self._check()
        self._hold(self._connection.send(message))
        if self._held > _HELD_BACK:
            await self._flush()

    async def progress(self) -> None:
        """Write at once that there will be a reply, with what was held back."""
        if self._calling and not self._flushing:
            self._deadline.set(self._options.handler_timeout)
        awaited = self._connection.awaited
        if awaited is None:
            return
        if self._reader.left:
            raise MilterClosedError("the MTA left while the filter worked")
        self._check()
        if awaited != _END_OF_MESSAGE and self._macros.sendmail:
            return  # which gives up on a filter that says so elsewhere
        if self._writer.transport.get_write_buffer_size() < _HELD_BACK:  # else nobody reads it
            self._output.append(self._connection.send(Progress()))
            self._write()

    async def _flush(self) -> None:
        """Write what was held back."""
        if self._output:
            self._write()
            if self._writer.paused:
                await self._drain()

    async def _drain(self) -> None:
        self._flushing += 1
        self._deadline.set(self._options.write_timeout)
        try:
            await self._writer.drain()
        except OSError as error:
            raise MilterClosedError(f"the MTA closed the connection: {error}") from error
        finally:
            self._flushing -= 1
        self._deadline.set(self._options.handler_timeout)

    def _write(self) -> None:
        transport, output = self._writer.transport, self._output
        if transport.is_closing():
            # uvloop's transports raise RuntimeError when they are written to after the connection is lost.
            raise MilterClosedError("the MTA closed the connection")
        transport.write(output[0] if len(output) == 1 else b"".join(output))
        output.clear()
        self._held = 0

    def _gone(self) -> bool:
        return self._reader.left or self._writer.transport.is_closing()

    def _check(self) -> None:
        if self._writer.transport.is_closing():
            raise MilterClosedError("the MTA closed the connection")

    def _reply(self, verdict: object) -> None:
        """Send a filter's answer, or what stands for one that is none: a filter may return anything."""
        try:
            if verdict is None or type(verdict) is Continue:
                self._output.append(self._connection.proceed())
                self._held += OVERHEAD
                return
            if isinstance(verdict, Reply):
                self._hold(self._connection.send(verdict))
                return
            error = "no reply"
        except LocalProtocolError as caught:
            error = str(caught)
        _log.error("the filter's answer is wrong: %r: %s", verdict, error)
        self._hold(self._connection.send(TempFail()))

    def _hold(self, data: bytes) -> None:
        self._output.append(data)
        self._held += len(data)
