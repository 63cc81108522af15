"""One SMTP session: the dialogue, over a channel, from the greeting to the handler's end.

A group of commands is answered in one write (RFC 2920); only the reply to a message never waits. There is no
deadline while the handler works: handlers have their own. If the client is lost meanwhile, the handler is
cancelled, unless it is at work on a message.
"""

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import replace
from typing import Final, Protocol, cast

from milterchain.errors import SMTPSyntaxError
from milterchain.mail.replies import Reply
from milterchain.smtp import answers
from milterchain.smtp.channel import Channel
from milterchain.smtp.chunking import SYNTAX, ChunkReader, is_bdat, parse_bdat
from milterchain.smtp.data import MAX_DRAIN, DataReceiver
from milterchain.smtp.dialogue import MAX_COMMAND, Dialogue
from milterchain.smtp.handler import HandlerFactory, SessionHandler, SessionInfo
from milterchain.smtp.identity import is_one_of
from milterchain.smtp.options import Listener, ServerOptions
from milterchain.smtp.pace import Pace
from milterchain.smtp.peer import proxied_info, session_info
from milterchain.smtp.proxy_header import parse_proxy_header
from milterchain.smtp.speaker import Speaker
from milterchain.smtp.tls import ServerTLS, TLSSession

__all__ = ["Owner", "SMTPSession"]

CLOSE_TIMEOUT: Final = 60.0
"""Seconds for the handler to close: longer than it should need to take leave of milters and next hop."""

_WAIT_FOR_REPLY: Final = frozenset({b"HELO", b"EHLO", b"DATA", b"XCLI"})
"""The first four octets of commands that end a group (RFC 2920 section 3.1): those whose replies change what
may follow."""

_logger = logging.getLogger(__name__)


class Owner(Protocol):
    """What a connection needs of its server."""

    options: ServerOptions
    draining: bool
    factory: HandlerFactory

    def admit(self, session: "SMTPSession", info: SessionInfo, *, for_others: bool = False) -> Reply | None:
        """Count the session in; a reply refuses it."""

    def readmit(self, session: "SMTPSession", info: SessionInfo) -> Reply | None:
        """Count the session for another client; a reply refuses it."""

    def count(self, session: "SMTPSession") -> int:
        """How many sessions the client of this one has."""

    def rate(self, session: "SMTPSession") -> int:
        """How often the client of this one has connected in the last minute."""

    def forget(self, session: "SMTPSession") -> None:
        """The session, which was admitted, is over; its connection may linger."""

    def lost(self, session: "SMTPSession") -> None:
        """The connection of the session is closed."""


class Content(Protocol):
    """What is read of a message: the data, or a chunk."""

    @property
    def size(self) -> int:
        """Octets that have come, for the pace."""

    @property
    def hopeless(self) -> bool:
        """The end should not be waited for."""

    def feed(self, buffer: bytearray) -> bool:
        """Take what can be taken out of the buffer; True at the end."""


class SMTPSession(Channel):
    """One connection of a server."""

    def __init__(self, owner: Owner, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(owner.options.hostname, owner.options.command_timeout, loop)
        self._owner = owner
        self._options = owner.options
        self._listener = listener
        self._info: SessionInfo | None = None
        self._dialogue: Dialogue | None = None
        self._from_balancer = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session, or refuse it."""
        info = session_info(transport, self._listener)
        self._from_balancer = is_one_of(info, self._listener.proxy_protocol_from)
        for_others = self._from_balancer or is_one_of(info, self._listener.xclient_from)
        refusal = self._owner.admit(self, info, for_others=for_others)
        if refusal is not None:
            stream = cast("asyncio.Transport", transport)
            stream.write(refusal.encode())
            stream.close()
            return
        self._info = info
        super().connection_made(transport)
        self._deadline = None  # it is the handler's turn
        assert self._handler_coroutine is not None
        # Not in the coroutine itself: one that is cancelled before its first step never runs.
        self._handler_coroutine.add_done_callback(self._finished)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the server."""
        super().connection_lost(error)
        self._owner.lost(self)

    def drain(self) -> None:
        """End the session if it is between transactions; else it ends itself after this one."""
        dialogue = self._dialogue
        if dialogue is None or dialogue.security.awaits_tls:
            idle = True  # in a handshake
        else:
            idle = self._at_command and not dialogue.in_transaction
        if idle:
            self.end(answers.SHUTTING_DOWN)

    async def _handle_client(self) -> None:
        if self._from_balancer and not await self._read_proxy_header():
            return
        assert self._info is not None
        tls = self._listener.tls
        secured = None
        if tls is not None and tls.settings.implicit:
            secured = await self._begin_tls(tls, early=True)
            if secured is None:
                return
        handler = self._make_handler(self._info)
        if handler is None:
            self._farewell = answers.UNUSABLE
            return
        speaker = Speaker(self._info, self._listener, self._succeed)
        dialogue = Dialogue(handler, self._options, self._listener, speaker)
        self._dialogue = dialogue
        try:
            if secured is not None:
                await dialogue.secured(secured)
            await self._converse(dialogue)
        except OSError:
            pass  # the client is gone
        except Exception:
            _logger.exception("a session failed")
            self._farewell = answers.UNUSABLE
        finally:
            dialogue.chunks.clear()
            self._hang_up(linger=not dialogue.over and not self._owner.draining)
            await _close(dialogue.handler)

    async def _read_proxy_header(self) -> bool:
        """Learn from a load balancer who the client is; False if the session is over."""
        deadline = self.loop.time() + self._options.proxy_header_timeout
        try:
            while (header := parse_proxy_header(self._input)) is None:
                if not await self._more(deadline):
                    return False
        except SMTPSyntaxError as error:
            assert self._info is not None
            _logger.warning("%s: %s", self._info.address, error)
            self._farewell = answers.BAD_PROXY_HEADER
            self._hang_up(linger=True)
            return False
        del self._input[: header.length]
        assert self._info is not None
        self._info = proxied_info(self._info, header)
        self._farewell = self._owner.readmit(self, self._info)
        return self._farewell is None

    def _make_handler(self, info: SessionInfo) -> SessionHandler | None:
        # Clients of a Unix socket all look the same.
        if info.family in {"4", "6"}:
            info = replace(info, connections=self._owner.count(self), rate=self._owner.rate(self))
        try:
            return self._owner.factory(info)
        except Exception:
            _logger.exception("no handler could be made")
            return None

    async def _succeed(self, info: SessionInfo) -> SessionHandler | Reply:
        """End the handler, and make the one for the client that XCLIENT has told of."""
        assert self._dialogue is not None
        refusal = self._owner.readmit(self, info)
        if refusal is not None:
            return refusal
        successor = self._make_handler(info)
        if successor is None:
            return answers.UNUSABLE
        predecessor, self._dialogue.handler = self._dialogue.handler, successor
        await _close(predecessor)
        return successor

    async def _converse(self, dialogue: Dialogue) -> None:
        greeting = await dialogue.greeting()
        if self._is_early():
            return
        self._put(greeting)
        while not dialogue.over:
            if self._owner.draining and not dialogue.in_transaction:
                self._put(answers.SHUTTING_DOWN)
                return
            line = await self._read_line(MAX_COMMAND)
            if line is None:
                return
            if (not dialogue.esmtp or line[:4].upper() in _WAIT_FOR_REPLY) and self._is_early():
                return
            if not await self._serve(dialogue, line):
                return

    async def _serve(self, dialogue: Dialogue, line: bytes) -> bool:
        """Answer a command, and the message that follows it; False if the session is over."""
        if is_bdat(line) and not dialogue.security.exchanging:
            served = await self._chunk(dialogue, line)
            return served and not self._is_exhausted(dialogue)
        reply = await dialogue.answer(line)
        await self._penalty(reply, dialogue)
        if dialogue.security.awaits_tls:
            return await self._starttls(dialogue, reply)
        if dialogue.awaits_data:
            if self._is_early():
                return False
            self._put(reply)
            if not await self._receive(dialogue):
                return False
        else:
            self._put(reply)
        return not self._is_exhausted(dialogue)

    def _is_exhausted(self, dialogue: Dialogue) -> bool:
        exhausted = dialogue.exhausted and not dialogue.over
        if exhausted:
            self._put(answers.TOO_MANY_ERRORS)
        return exhausted

    def _is_early(self) -> bool:
        """Refuse a client that has sent more before it could know the reply (Postfix forbids it, too)."""
        early = self._options.synchronized and bool(self._input)
        if early:
            self._put(answers.NOT_SYNCHRONIZED)
        return early

    async def _penalty(self, reply: Reply, dialogue: Dialogue) -> None:
        if delay := dialogue.delay(reply):
            await asyncio.sleep(delay)

    async def _starttls(self, dialogue: Dialogue, reply: Reply) -> bool:
        """Go on under TLS; False if the session is over.

        What a client, or somebody between, has sent before our 220 is not looked at: it would else be taken
        for what the client says under TLS.
        """
        if self._input and not await self._drop_input():
            self._put(answers.NOT_SYNCHRONIZED)
            return False
        self._put(reply)
        await self._flush()
        tls = self._listener.tls
        assert tls is not None, "the dialogue does not offer what there is not"
        secured = await self._begin_tls(tls)
        if secured is None:
            return False
        await dialogue.secured(secured)
        return True

    async def _begin_tls(self, tls: ServerTLS, *, early: bool = False) -> TLSSession | None:
        """Shake hands; None if there is no connection any more."""
        assert self._info is not None
        try:
            made = await self._start_tls(tls.context(), tls.settings.handshake_timeout, early=early)
        except OSError as error:
            _logger.info("no TLS with %s: %s", self._info.address, error)
            return None
        return tls.session(made)

    async def _receive(self, dialogue: Dialogue) -> bool:
        """Take the data of a message and answer it; False if the session is over."""
        receiver = DataReceiver.of(self._options, dialogue.size_limit)
        try:
            if not await self._fill(receiver, Pace(self._options, self.loop.time())):
                return False
            received = receiver.finish()
        finally:
            receiver.close()
        return await self._finish(dialogue, dialogue.message(received))

    async def _chunk(self, dialogue: Dialogue, line: bytes) -> bool:
        """Take a chunk of a message and answer it; False if the session is over."""
        try:
            chunk = parse_bdat(line)
        except SMTPSyntaxError:
            self._put(SYNTAX)
            return False
        if chunk.size > MAX_DRAIN * dialogue.size_limit:
            self._put(answers.TOO_MUCH_DATA)
            return False
        reply = await dialogue.chunk(chunk)
        chunks = dialogue.chunks
        if not reply.positive or chunks.pace is None:
            chunks.pace = Pace(self._options, self.loop.time())
        wanted = chunks.receiver if reply.positive else None
        if not await self._fill(ChunkReader(chunk.size, wanted), chunks.pace):
            return False
        if reply.positive and chunk.last:
            return await self._finish(dialogue, dialogue.chunk_end(chunk))
        if reply.positive:
            reply = await dialogue.chunk_end(chunk)
        await self._penalty(reply, dialogue)
        self._put(reply)
        return not dialogue.over

    async def _fill(self, content: Content, pace: Pace) -> bool:
        """Wait until the content is there; False if it will not come."""
        now = self.loop.time()
        if pace.deadline(now, content.size) < now:  # between two chunks
            self._put(answers.TIMED_OUT)
            return False
        while not content.feed(self._input):
            if content.hopeless:
                self._put(answers.TOO_MUCH_DATA)
                return False
            if not await self._more(pace.deadline(self.loop.time(), content.size)):
                return False
        return True

    async def _finish(self, dialogue: Dialogue, answering: Awaitable[Reply]) -> bool:
        """Answer a message that is there; False if the session is over."""
        self._uninterrupted = True
        try:
            reply = await answering
        finally:
            self._uninterrupted = False
        if self.transport is None:
            _logger.info("the client was gone before it could hear %s", reply)
            return False
        await self._penalty(reply, dialogue)
        self._put(reply)
        # What was accepted must be known to be: the longer the reply waits, the likelier is a duplicate.
        await self._flush()
        return not dialogue.over

    def _finished(self, _: "asyncio.Task[None]") -> None:
        self._hang_up()
        self._owner.forget(self)


async def _close(handler: SessionHandler) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await handler.close()
    except Exception:
        _logger.exception("the handler failed to close")
