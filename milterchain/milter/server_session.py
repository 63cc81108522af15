"""One MTA connection of a milter server: commands to a `Milter`, its answers back.

A task reads, cuts what it read into commands (`Connection`) and awaits the filter's method for each; replies
leave when no more commands are at hand, so that content that came in one piece is answered in one piece. One
timer per connection serves all deadlines; it is moved only for methods that really wait for something.

What is for a method goes a short way (`_serve`), except for the end of a message, and unless the filter has a
verdict that is still to be told, has asked to skip something, or really waits. All else is `_take`'s.
"""

import asyncio
import logging

from milterchain.errors import LocalProtocolError, MilterClosedError, MilterError
from milterchain.milter.connection import Connection
from milterchain.milter.filter import Milter
from milterchain.milter.flags import Command, Protocol
from milterchain.milter.macros import CLEARING, MacroStore
from milterchain.milter.messages import (
    AnyCommand,
    Continue,
    Modification,
    OptNeg,
    Progress,
    Quarantine,
    Reply,
    Skip,
    TempFail,
    decode_command,
)
from milterchain.milter.modifier import Modifier
from milterchain.milter.server_calls import METHODS, NO_METHODS
from milterchain.milter.server_factory import MilterMaker
from milterchain.milter.server_options import ServerOptions
from milterchain.milter.server_streams import Reader
from milterchain.milter.server_watch import Watch
from milterchain.milter.state import Role, State

__all__ = ["ServerSession"]

_log = logging.getLogger("milterchain.milter.server")

_HELD_BACK = 64 * 1024
"""Bytes of edits and replies that are collected before they are written."""

_ANSWERED = frozenset({*METHODS, Command.END_OF_MESSAGE})
# Members of enumerations under names of their own: to look them up costs much in Python 3.11.
_END_OF_MESSAGE, _UNKNOWN, _BODY = Command.END_OF_MESSAGE, Command.UNKNOWN, Command.BODY
_ABORT, _QUIT_NEW_CONNECTION, _MACRO = Command.ABORT, Command.QUIT_NEW_CONNECTION, Command.MACRO
_CLOSED = State.CLOSED
_SESSION = {Command.CONNECT, Command.HELO}
_IN_MESSAGE = {State.MAIL, State.RCPT, State.DATA, State.HEADERS, State.BODY}
_GOING_ON = (Continue, Skip, type(None))


class ServerSession:
    """Serves one connection; `run` is its life."""

    def __init__(self, maker: MilterMaker, options: ServerOptions, reader: Reader) -> None:
        connection = self._connection = Connection(Role.MILTER)
        self._maker = maker
        self._options = options
        self._reader = reader
        self._writer = reader.writer
        self._transport = reader.writer.transport
        self._milter: Milter | None = None
        self._methods = NO_METHODS
        self._answered: frozenset[int] = frozenset()
        self._macros = MacroStore()
        self._patience = options.negotiation_timeout
        self._output: list[bytes] = []
        self._held = 0
        self._in_message = False
        self._kept: Reply | None = None
        self._kept_for_session = False
        self._skipped: int | None = None
        self._draining = False
        self._watch = Watch(reader, options, lambda: connection.awaited is not None)
        reader.feed = connection.packets.feed_from

    async def run(self) -> None:
        """Serve until the connection ends, whoever ends it."""
        watch = self._watch
        watch.task = asyncio.current_task()
        try:
            await self._converse()
        except (OSError, MilterClosedError) as error:
            _log.debug("connection lost: %s", error)
        except MilterError as error:
            _log.warning("connection closed: %s", error)
        except Exception:  # noqa: BLE001 - the factory, or a negotiation callback
            _log.exception("connection closed: the filter could not be started")
        finally:
            watch.parting = True
            self._connection.close()
            if self._output and not self._transport.is_closing():
                self._write()
            self._transport.close()
            try:
                await self._part()
            finally:
                watch.deadline.end()
                self._reader.leave_alone()

    def stop(self) -> None:
        """Break the connection; the filter's `close` is still awaited."""
        watch = self._watch
        if watch.parting:
            self._draining = True
        elif watch.task is None:
            self._transport.abort()
        else:
            watch.parting = True
            watch.task.cancel()
            watch.deadline.set(self._options.close_timeout)

    def drain(self) -> None:
        """Close as soon as no SMTP session is served: at QUIT, at QUIT_NC, or now if none has begun.

        Between the messages of a session it would be too early: the MTA would take it for a failure.
        """
        self._draining = True
        if self._milter is None and self._reader.awaited:
            self._transport.close()

    async def _converse(self) -> None:
        connection, reader, watch = self._connection, self._reader, self._watch
        while True:
            await self._serve()
            answered = bool(self._output)
            if answered:
                self._write()
                if self._writer.paused:
                    await self._drain()
            if connection.state is _CLOSED or watch.parting or (self._draining and self._milter is None):
                return
            watch.deadline.set(self._patience)
            if not answered and connection.negotiated is not None:
                self._writer.acknowledge()
            await reader
            if not reader.proceed():
                return

    async def _serve(self) -> None:
        """Answer the commands that are at hand; if there are others, they are seen at the next call."""
        connection, reader, watch, output = self._connection, self._reader, self._watch, self._output
        packets = connection.packets
        while (command := connection.next_command()) is not None:
            code, payload = command
            if code in CLEARING:
                self._macros.command(code)
            method = self._methods.get(code)
            if method is None or not reader.waking:
                await self._take(code, payload)
                if self._over():
                    break
                continue
            self._in_message = self._in_message or connection.state in _IN_MESSAGE
            answer = method(self._milter, payload)
            watch.calling = True
            try:
                verdict = await answer
            except BaseException as error:  # noqa: BLE001 - `failed` raises what is not the filter's
                verdict = watch.failed(error)
            watch.calling = False
            if watch.interruption is not None:
                watch.over()
            if verdict is None or type(verdict) is Continue:
                if code in self._answered:
                    output.append(connection.proceed())
            else:
                await self._conclude(code, verdict)
            if watch.parting or not packets.unread:
                break

    def _over(self) -> bool:
        return self._watch.parting or (self._draining and self._milter is None)

    # Commands

    async def _take(self, code: int, payload: bytes) -> None:
        """Take a command that is no ordinary part of a message."""
        if code == _MACRO:
            self._macros.take(payload)
        elif code in _ANSWERED:
            await self._answer(code, payload)
        else:
            await self._handle(decode_command(code, payload))

    async def _handle(self, event: AnyCommand) -> None:
        """What no filter answers."""
        if isinstance(event, OptNeg):
            self._milter = self._maker.first()
            self._hold(self._connection.send(self._maker.answer(event, self._milter)))
            self._patience = self._options.idle_timeout
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
        self._answered = negotiated.answered
        milter.macros = self._macros
        milter.modifier = Modifier(self, negotiated, writable=False)
        if type(milter).new_connection is not Milter.new_connection:
            await self._flush()
            if await self._watch.call(milter.new_connection(), self._options.handler_timeout) is not None:
                raise MilterError("the filter was not ready")
        self._route()
        return milter

    async def _answer(self, command: int, payload: bytes) -> None:
        """Let the filter decide on a command, and send its verdict if one is due."""
        milter = self._milter
        if milter is None:
            milter = await self._introduce(None)
        if self._kept is not None:
            decode_command(command, payload)
            await self._conclude(command, self._kept)
            return
        if self._connection.state in _IN_MESSAGE:
            self._in_message = True
        if command == _END_OF_MESSAGE:
            verdict = await self._end_of_message(milter, payload)
        elif command == self._skipped:
            verdict = None
            decode_command(command, payload)
        else:
            self._skipped = None
            method = METHODS[command](milter, payload)
            verdict = await self._watch.call(method, self._options.handler_timeout)
        await self._conclude(command, verdict)

    async def _conclude(self, command: int, verdict: Reply | None) -> None:
        """Send a verdict on a command, or keep it until one is due."""
        milter = self._milter
        assert milter is not None
        if isinstance(verdict, Skip):
            verdict = self._skip(milter, command)
        if command in self._answered:
            self._reply(verdict)
        elif self._kept is None and not isinstance(verdict, _GOING_ON):
            self._keep(command, verdict)
        if self._connection.state not in _IN_MESSAGE:
            self._in_message = False
            if not self._kept_for_session:
                self._kept = None
        if not self._methods or self._kept is not None or self._skipped is not None:
            self._route()
        if self._held > _HELD_BACK:
            await self._flush()

    def _route(self) -> None:
        """Let commands go the short way as long as nothing speaks against it."""
        plain = self._milter is not None and self._kept is None and self._skipped is None
        self._methods = METHODS if plain else NO_METHODS

    def _keep(self, command: int, verdict: Reply) -> None:
        """Keep a verdict until the MTA listens."""
        if command != _UNKNOWN:
            self._kept = verdict
            self._kept_for_session = command in _SESSION
            self._in_message = False

    def _skip(self, milter: Milter, command: int) -> Skip | None:
        """Call the filter no more for a while, and tell the MTA if it can hear of it."""
        if command == _END_OF_MESSAGE:
            return None
        self._skipped = command
        if not milter.negotiated.protocol & Protocol.SKIP:
            return None
        if command != _BODY and self._macros.sendmail:
            return None  # it gives up on a filter that skips anything else
        return Skip()

    async def _end_of_message(self, milter: Milter, chunk: bytes) -> Reply | None:
        if chunk and self._skipped != _BODY:
            # libmilter takes the last of the body here, so MTAs may put it here.
            verdict = await self._watch.call(milter.body(chunk), self._options.handler_timeout)
            if not isinstance(verdict, _GOING_ON):
                return verdict
        self._skipped = None
        modifier = milter.modifier = Modifier(self, milter.negotiated)
        try:
            return await self._watch.call(milter.end_of_message(modifier), self._options.handler_timeout)
        finally:
            modifier.expire()

    async def _forget(self) -> None:
        """The message that is open, if any, will not be completed."""
        self._skipped = None
        if not self._kept_for_session:
            self._kept = None
        self._route()
        if self._in_message:
            self._in_message = False
            assert self._milter is not None
            await self._watch.call(self._milter.abort(), self._options.close_timeout)

    async def _part(self) -> None:
        """The SMTP session is over."""
        milter, watch = self._milter, self._watch
        if milter is None:
            return
        self._kept_for_session = False
        over, watch.parting = watch.parting, True
        try:
            await self._forget()
        finally:
            self._milter = None
            self._route()
            await watch.call(milter.close(), self._options.close_timeout)
            watch.parting = over

    # Output

    async def emit(self, message: Modification | Quarantine) -> None:
        """Send what is not final, with what follows it."""
        self._check()
        self._hold(self._connection.send(message))
        if self._held > _HELD_BACK:
            await self._flush()

    async def progress(self) -> None:
        """Write at once that there will be a reply, with what was held back."""
        watch = self._watch
        if watch.calling and not watch.flushing:
            watch.deadline.set(self._options.handler_timeout)
        awaited = self._connection.awaited
        if awaited is None:
            return
        if self._reader.left:
            raise MilterClosedError("the MTA left while the filter worked")
        self._check()
        if awaited != _END_OF_MESSAGE and self._macros.sendmail:
            return  # which gives up on a filter that says so elsewhere
        if not self._writer.paused:  # else nobody reads it
            self._output.append(self._connection.send(Progress()))
            self._write()

    async def _flush(self) -> None:
        """Write what was held back."""
        if self._output:
            self._write()
            if self._writer.paused:
                await self._drain()

    async def _drain(self) -> None:
        watch = self._watch
        watch.flushing += 1
        watch.deadline.set(self._options.write_timeout)
        try:
            await self._writer.drain()
        except OSError as error:
            raise MilterClosedError(f"the MTA closed the connection: {error}") from error
        finally:
            watch.flushing -= 1
        watch.deadline.set(self._options.handler_timeout)

    def _write(self) -> None:
        transport, output = self._transport, self._output
        if transport.is_closing():
            # uvloop's transports raise RuntimeError when they are written to after the connection is lost.
            raise MilterClosedError("the MTA closed the connection")
        transport.write(output.pop() if len(output) == 1 else b"".join(output))
        output.clear()
        self._held = 0

    def _check(self) -> None:
        if self._transport.is_closing():
            raise MilterClosedError("the MTA closed the connection")

    def _reply(self, verdict: object) -> None:
        """Send a filter's answer, or what stands for one that is none: a filter may return anything."""
        try:
            if verdict is None or type(verdict) is Continue:
                self._output.append(self._connection.proceed())
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
