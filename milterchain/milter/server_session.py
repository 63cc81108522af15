"""One MTA connection of a milter server: events to a `Milter`, its answers back.

A task reads, cuts what it read into events (`Connection`) and awaits the filter's method for each; replies
leave when no more events are at hand, so that content that came in one piece is answered in one piece. One
timer per connection serves all deadlines.
"""

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from milterchain.errors import CloseConnectionError, LocalProtocolError, MilterClosedError, MilterError
from milterchain.milter.connection import Connection, Event
from milterchain.milter.filter import Milter
from milterchain.milter.flags import Command, Protocol
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
from milterchain.milter.server_factory import MilterMaker
from milterchain.milter.server_options import ServerOptions
from milterchain.milter.server_streams import Deadline, Reader, quick_acknowledger
from milterchain.milter.state import Role, State

__all__ = ["ServerSession"]

_log = logging.getLogger("milterchain.milter.server")

_HELD_BACK = 64 * 1024
"""Bytes of edits and replies that are collected before they are written."""

_METHODS: Mapping[Command, Callable[[Milter, Any], Awaitable[Reply | None]]] = {
    Command.CONNECT: lambda milter, event: milter.connect(event),
    Command.HELO: lambda milter, event: milter.helo(event.text),
    Command.MAIL: lambda milter, event: milter.mail(event.address, event.args),
    Command.RCPT: lambda milter, event: milter.rcpt(event.address, event.args),
    Command.DATA: lambda milter, _: milter.data(),
    Command.HEADER: lambda milter, event: milter.header(event.name, event.value),
    Command.END_OF_HEADERS: lambda milter, _: milter.end_of_headers(),
    Command.BODY: lambda milter, event: milter.body(event.chunk),
    Command.UNKNOWN: lambda milter, event: milter.unknown(event.text),
}
_SESSION = {Command.CONNECT, Command.HELO}
_IN_MESSAGE = {State.MAIL, State.RCPT, State.DATA, State.HEADERS, State.BODY}
_GOING_ON = (Continue, Skip, type(None))


class _Interruption(enum.Enum):
    """Why a method of the filter was cancelled."""

    OVERDUE = enum.auto()
    LEFT = enum.auto()


class ServerSession:
    """Serves one connection; `run` is its life."""

    def __init__(
        self, maker: MilterMaker, options: ServerOptions, reader: Reader, writer: asyncio.StreamWriter
    ) -> None:
        self._maker = maker
        self._options = options
        self._reader = reader
        self._writer = writer
        self._connection = Connection(Role.MILTER)
        self._milter: Milter | None = None
        self._macros = MacroStore()
        self._output: list[bytes] = []
        self._held = 0
        self._in_message = False
        self._kept: Reply | None = None
        self._kept_for_session = False
        self._skipped: Command | None = None
        self._deadline = Deadline(self._expired)
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        self._calling = False
        self._flushing = 0
        self._interruption: _Interruption | None = None
        self._cancelled = 0
        self._draining = False
        self._parting = False
        self._acknowledge = quick_acknowledger(writer)

    async def run(self) -> None:
        """Serve until the connection ends, whoever ends it."""
        self._task = asyncio.current_task()
        self._reader.on_left = self._left
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
            self._reader.on_left = None
            self._connection.close()
            if not self._writer.is_closing():
                self._writer.writelines(self._output)
            self._writer.close()
            try:
                await self._part()
            finally:
                self._deadline.stop()

    def stop(self) -> None:
        """Break the connection; the filter's `close` is still awaited."""
        if self._parting:
            self._draining = True
        elif self._task is not None:
            self._parting = True
            self._task.cancel()
            self._deadline.set(self._options.close_timeout)

    def drain(self) -> None:
        """Close as soon as no SMTP session is served: at QUIT, at QUIT_NC, or now if none has begun.

        Between the messages of a session it would be too early: the MTA would take it for a failure.
        """
        self._draining = True
        if self._may_leave() and not self._busy:
            self._writer.close()

    def _may_leave(self) -> bool:
        return self._parting or (self._draining and self._milter is None)

    async def _converse(self) -> None:
        connection = self._connection
        while True:
            self._busy = True
            while (event := connection.next_event()) is not None:
                await self._handle(event)
                if (self._draining or self._parting) and self._may_leave():
                    break
            if self._output:
                await self.flush()
            else:
                self._acknowledge()
            self._busy = False
            if connection.state is State.CLOSED or self._may_leave():
                return
            if connection.negotiated is None:
                self._deadline.set(self._options.negotiation_timeout)
            else:
                self._deadline.set(self._options.idle_timeout)
            data = await self._reader.receive()
            if not data:
                return
            connection.receive_data(data)

    def _expired(self) -> None:
        """The deadline has passed: end the filter's method if one runs, else the connection."""
        if self._calling and not self._flushing:
            self._interrupt(_Interruption.OVERDUE)
        else:
            _log.info("connection closed: the MTA took too long")
            self._writer.transport.abort()

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
        if isinstance(event, Macros):
            self._macros.define(event.stage, event.values)
            return
        command = event.code
        assert isinstance(command, Command)
        self._macros.command(command)
        if isinstance(event, OptNeg):
            self._milter = self._maker.first()
            await self._send(self._maker.answer(event, self._milter))
            await self._introduce(self._milter)
        elif command is Command.ABORT:
            await self._forget()
        elif command is Command.QUIT_NEW_CONNECTION:
            await self._part()
        elif command is not Command.QUIT:
            milter = self._milter
            await self._answer(await self._introduce(None) if milter is None else milter, command, event)

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
            await self.flush()
            if await self._call(milter.new_connection(), self._options.handler_timeout) is not None:
                raise MilterError("the filter was not ready")
        return milter

    async def _answer(self, milter: Milter, command: Command, event: Event) -> None:
        due = milter.negotiated.replies(command)
        if self._connection.state in _IN_MESSAGE and self._kept is None:
            self._in_message = True
        verdict = self._kept
        if verdict is None:
            verdict = await self._ask(milter, command, event)
            if not due and command is not Command.UNKNOWN and not isinstance(verdict, _GOING_ON):
                self._kept = verdict
                self._kept_for_session = command in _SESSION
                self._in_message = False
        if due:
            await self._reply(verdict)
        if self._connection.state not in _IN_MESSAGE:
            self._in_message = False
            if not self._kept_for_session:
                self._kept = None

    async def _ask(self, milter: Milter, command: Command, event: Any) -> Reply | None:
        """Let the filter decide on one event."""
        if command is self._skipped:
            return None
        if isinstance(event, EndOfMessage):
            return await self._end_of_message(milter, event)
        self._skipped = None
        verdict = await self._call(_METHODS[command](milter, event), self._options.handler_timeout)
        if isinstance(verdict, Skip):
            self._skipped = command
            if not milter.negotiated.protocol & Protocol.SKIP:
                return None
            if command is not Command.BODY and self._is_sendmail():
                return None  # it gives up on a filter that skips anything else
        return verdict

    async def _end_of_message(self, milter: Milter, event: EndOfMessage) -> Reply | None:
        if event.chunk and self._skipped is not Command.BODY:
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
        await self._send(message)

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
        if awaited != Command.END_OF_MESSAGE and self._is_sendmail():
            return  # which gives up on a filter that says so elsewhere
        if self._writer.transport.get_write_buffer_size() < _HELD_BACK:  # else nobody reads it
            self._output.append(self._connection.send(Progress()))
            self._write()

    def _is_sendmail(self) -> bool:
        """Whether the MTA is known to be Sendmail: by its version ("8.17.1"), or by a macro of its own.

        Its defaults at CONNECT have `{if_name}` and not `v`; Postfix has `v` and no `{if_name}`.
        """
        version = self._macros.get(b"v")
        return version[:1].isdigit() if version else self._macros.get(b"if_name") is not None

    async def flush(self) -> None:
        """Write what was held back."""
        if not self._output:
            return
        self._check()
        self._write()
        if self._writer.transport.get_write_buffer_size() <= _HELD_BACK:
            return
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
        self._writer.write(b"".join(self._output))
        self._output.clear()
        self._held = 0

    def _gone(self) -> bool:
        return self._reader.left or self._writer.is_closing()

    def _check(self) -> None:
        # uvloop's transports raise RuntimeError when they are written to after the connection is lost.
        if self._writer.is_closing():
            raise MilterClosedError("the MTA closed the connection")

    async def _reply(self, verdict: object) -> None:
        """Send a filter's answer, or what stands for one that is none: a filter may return anything."""
        try:
            if verdict is None or type(verdict) is Continue:
                await self._hold(self._connection.proceed())
                return
            if isinstance(verdict, Reply):
                await self._send(verdict)
                return
            error = "no reply"
        except LocalProtocolError as caught:
            error = str(caught)
        _log.error("the filter's answer is wrong: %r: %s", verdict, error)
        await self._send(TempFail())

    async def _send(self, message: Event) -> None:
        await self._hold(self._connection.send(message))

    async def _hold(self, data: bytes) -> None:
        self._output.append(data)
        self._held += len(data)
        if self._held > _HELD_BACK:
            await self.flush()
