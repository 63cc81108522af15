"""The transport side of one SMTP session: input, replies, deadlines, the end.

A subclass of aiosmtpd's `SMTP` that keeps its plumbing (stream, session object, the task of each connection)
and replaces its reading, writing, timer, and what it does when the client goes away. The private names of
aiosmtpd and asyncio on which it stands are watched by tests/smtp/test_aiosmtpd_contract.py.

- Replies are collected and leave in one write when input is waited for: all those to a group of commands.
- There is one timer at most, and it is not touched while input comes in time: it looks at the deadline when
  it fires.
- A client that closes its sending side is served to the end of what it sent. If the connection is lost, the
  task is cancelled, unless it asked to be left alone.
- Under TLS nothing is served any more once the client closes: TLS in asyncio knows no half-closed connection.
- A client that is cut off while it is still sending gets time to read why: closing a socket with unread input
  would take the last reply away from it (RFC 1122 section 4.2.2.13).
"""

import asyncio
import logging
import ssl
from contextlib import suppress
from typing import Any, Final, cast

from aiosmtpd.smtp import SMTP

from milterchain.mail.replies import Reply
from milterchain.smtp import answers

__all__ = ["Channel"]

READ_AHEAD: Final = 2**16
"""Half the octets of input that may wait (asyncio pauses at twice this): few enough for a thousand sessions,
many enough for bulk data."""
MAX_ENDLESS: Final = 2**16
"""Octets of a line without an end after which the session is closed."""
MAX_PENDING: Final = 2**16
"""Octets of replies that wait for the end of a group of commands."""
MAX_DROPPED: Final = 2**20
"""Octets of input that are dropped before TLS."""
QUIET: Final = 0.1
"""Seconds without any more of them after which the rest is taken to be there."""
MAX_NOISE: Final = 5.0
"""Seconds for all of them."""
LINGER: Final = 10.0
"""Seconds that a client has to take the last reply and to close."""

# aiosmtpd logs each connection and command at INFO: twice the cost of a small message.
_aiosmtpd_logger = logging.getLogger("mail.log")
if _aiosmtpd_logger.level == logging.NOTSET:
    _aiosmtpd_logger.setLevel(logging.WARNING)


class _NoHooks:
    """What aiosmtpd takes for its handler; the empty list saves it a search in each connection."""

    def __dir__(self) -> list[str]:
        return []


_NO_HOOKS: Final = _NoHooks()


class Channel(SMTP):
    """The protocol object of one connection, without the conversation.

    Args:
        hostname: aiosmtpd wants it.
        command_timeout: seconds to wait for a line, or for a reply to be taken.
        loop: the running event loop.
    """

    line_length_limit = READ_AHEAD

    def __init__(self, hostname: bytes, command_timeout: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(_NO_HOOKS, hostname=hostname.decode("ascii", "replace"), loop=loop)
        self._command_timeout = command_timeout
        self._out: list[bytes] = []
        self._out_size = 0
        self._farewell: Reply | None = None
        self._deadline: float | None = None
        self._ended = False  # no more input will come
        self._at_command = False  # waiting for a command
        self._uninterrupted = False
        self._closing = False

    def __dir__(self) -> list[str]:
        """Spare aiosmtpd the search for commands and hooks in each connection: none of them is used."""
        return []

    def eof_received(self) -> bool:
        """Stay open, unless all is said: what was sent is still answered."""
        self._ended = True
        asyncio.StreamReaderProtocol.eof_received(self)
        return not self._closing and not self._over_ssl

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel the task, as nobody waits for what it does."""
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self._ended = True
        self.transport = None
        self._stop_timer()
        if self._handler_coroutine is not None and not self._uninterrupted and not self._closing:
            self._handler_coroutine.cancel()

    def end(self, reply: Reply) -> None:
        """End the session, whatever it is doing, with a last reply."""
        if not self._closing:
            self._farewell = reply
            assert self._handler_coroutine is not None
            self._handler_coroutine.cancel()

    def abort(self) -> None:
        """End the session at once, even while its handler closes."""
        if self.transport is not None:
            cast("asyncio.Transport", self.transport).abort()
        assert self._handler_coroutine is not None
        self._handler_coroutine.cancel()

    @property
    def _input(self) -> bytearray:
        return cast("bytearray", self._reader._buffer)  # type: ignore[attr-defined]  # noqa: SLF001

    async def _more(self, deadline: float) -> bool:
        """Write what is to be written and wait for input; False if none will come."""
        if self._ended:
            return False
        await self._flush()
        self._arm(deadline)
        try:
            await self._reader._wait_for_data("SMTP")  # type: ignore[attr-defined]  # noqa: SLF001
        finally:
            self._deadline = None
        return True

    async def _drop_input(self) -> bool:
        """Throw away what has come, until no more comes; False if there is too much of it."""
        dropped = 0
        deadline = self.loop.time() + MAX_NOISE
        while self._input:
            dropped += len(self._input)
            self._input.clear()
            if dropped > MAX_DROPPED or self.loop.time() > deadline or self._ended:
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout(QUIET):
                    await self._reader._wait_for_data("SMTP")  # type: ignore[attr-defined]  # noqa: SLF001
        return True

    async def _start_tls(
        self, context: ssl.SSLContext, within: float, *, early: bool = False
    ) -> ssl.SSLObject:
        """Shake hands as a server, after all that was to be sent in the clear.

        Args:
            context: with the certificate.
            within: seconds.
            early: input that waits is the begin of the handshake already; else it is dropped.

        Raises:
            OSError: there is no connection any more.
        """
        transport = cast("asyncio.Transport | None", self.transport)
        if transport is None or self._ended:
            raise ConnectionResetError("the client is gone")
        reader = self._reader
        if early and self._input:
            # Where the TLS protocol is in place: that is one round of the loop after `start_tls` was called.
            self.loop.call_soon(self.loop.call_soon, _feed, transport, bytes(self._input))
        self._input.clear()
        try:
            secured = await self.loop.start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=within,
                ssl_shutdown_timeout=LINGER,
            )
        except BaseException:
            # Nobody could read a last reply; whether `connection_lost` comes depends on the loop.
            transport.abort()
            self.transport = None
            raise
        if secured is None or self._ended:
            raise ConnectionResetError("the client is gone")
        self.transport = secured
        self._transport = secured
        self._over_ssl = True
        # Not a new writer: since Python 3.13 the old one would close the connection when it is collected.
        self._writer._transport = secured  # type: ignore[attr-defined]  # noqa: SLF001
        reader._transport = secured  # type: ignore[attr-defined]  # noqa: SLF001
        reader._paused = False  # type: ignore[attr-defined]  # noqa: SLF001
        made: ssl.SSLObject = secured.get_extra_info("ssl_object")
        return made

    def _put(self, reply: Reply) -> None:
        data = reply.encode()
        self._out.append(data)
        self._out_size += len(data)

    async def _flush(self) -> None:
        if not self._out:
            return
        transport = cast("asyncio.Transport | None", self.transport)
        if transport is None:
            raise ConnectionResetError("the client is gone")
        transport.write(b"".join(self._out))
        self._out.clear()
        self._out_size = 0
        if not transport.get_write_buffer_size():
            return
        self._arm(self.loop.time() + self._command_timeout)
        try:
            await self._writer.drain()
        finally:
            self._deadline = None

    def _reset_timeout(self, duration: float | None = None) -> None:
        self._arm(self.loop.time() + (duration or self._command_timeout))

    def _arm(self, deadline: float) -> None:
        self._deadline = deadline
        handle = self._timeout_handle
        if handle is None or handle.when() > deadline:
            self._stop_timer()
            self._timeout_handle = self.loop.call_at(deadline, self._timeout_cb)

    def _stop_timer(self) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
            self._timeout_handle = None

    def _timeout_cb(self) -> None:
        self._timeout_handle = None
        if self._deadline is None:
            return
        if self.loop.time() < self._deadline:
            self._arm(self._deadline)
        else:
            self.end(answers.TIMED_OUT)

    def _hang_up(self, *, linger: bool = False) -> None:
        """Write what is left and close, within bounds; if `linger`, once the client has closed."""
        if self._closing:
            return
        self._closing = True
        self._stop_timer()
        transport = cast("asyncio.Transport | None", self.transport)
        if transport is None:
            return
        if self._farewell is not None:
            self._put(self._farewell)
        if self._out:
            transport.write(b"".join(self._out))
        linger = linger and not self._ended
        if linger and transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()
        if linger or self._over_ssl or transport.get_write_buffer_size():
            self._timeout_handle = self.loop.call_later(LINGER, transport.abort)

    async def _read_line(self, limit: int) -> bytes | None:
        """The next line without its end, a bare LF included; None if none will come.

        Of a line that is longer than `limit` it may be only the first octets, but more than `limit`.
        """
        if self._out_size > MAX_PENDING:
            await self._flush()
        buffer = self._input
        deadline = None
        start = 0
        dropped = b""
        dropped_size = 0
        while (end := buffer.find(b"\n", start)) < 0:
            start = len(buffer)
            if start > limit:
                dropped = dropped or bytes(buffer[: limit + 1])
                dropped_size += start
                buffer.clear()
                start = 0
                if dropped_size > MAX_ENDLESS:
                    self._put(answers.LINE_TOO_LONG)
                    return None
            if deadline is None:
                deadline = self.loop.time() + self._command_timeout
            self._at_command = True
            more = await self._more(deadline)
            self._at_command = False
            if not more:
                return None
        line = dropped or bytes(buffer[:end]).removesuffix(b"\r")
        del buffer[: end + 1]
        return line


def _feed(transport: asyncio.Transport, data: bytes) -> None:
    """Give the protocol of a transport what was read before it was there."""
    # A BufferedProtocol in all but the name: uvloop's has another base.
    protocol: Any = transport.get_protocol()
    while data and not transport.is_closing():
        buffer = protocol.get_buffer(len(data))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]
