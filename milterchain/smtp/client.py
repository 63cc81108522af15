"""An SMTP or LMTP client for one connection to one server (RFC 5321, RFC 2920, RFC 2033).

- Replies are matched to commands by their order alone. A reply that nothing was asked for, bytes that are no
  reply, a missed deadline and a lost connection all make the connection unusable: `failure` says why, all
  that waits fails with it, and nothing is sent any more.
- Several commands given at once leave in one write if the server offers PIPELINING. Otherwise they leave one
  by one, each after the reply to the former.
- No command can carry CR, LF, NUL or any other control character; 8-bit octets only if the server offers
  SMTPUTF8.
- TLS is begun before anything is said that matters (`milterchain.smtp.client_tls`). What the server offered
  before counts no more, and what it said before the handshake, unasked, ends the connection.
- 421 and 521 end the connection, whatever they answer: they stand for the replies to all that is outstanding.
- Whoever is cancelled while waiting closes the connection: its state is not known any more.

It knows commands and replies, not transactions: what is sent, in which order, is the caller's business.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Self, cast

from milterchain.errors import (
    NextHopClosedError,
    NextHopConnectError,
    NextHopError,
    NextHopProtocolError,
    NextHopTimeoutError,
    NextHopTLSError,
)
from milterchain.mail.replies import Reply
from milterchain.smtp.client_commands import check_command
from milterchain.smtp.client_connect import connect, stays_here
from milterchain.smtp.client_options import Address, ClientOptions
from milterchain.smtp.client_replies import ReplyReader, parse_features
from milterchain.smtp.client_tls import start_tls
from milterchain.smtp.stuffing import one_chunk, stuffed

__all__ = ["SMTPClient"]

WRITE_BUFFER = 256 * 1024
"""Octets that may wait in the transport before the content stops: one chunk of a spooled message."""


class _Exchange:
    """Commands that went out together, and the replies that have come."""

    __slots__ = ("future", "missing", "replies", "within")

    def __init__(self, future: asyncio.Future[tuple[Reply, ...]], missing: int, within: float) -> None:
        self.future = future
        self.missing = missing
        self.within = within
        self.replies: list[Reply] = []

    def add(self, reply: Reply, count: int = 1) -> None:
        self.missing -= count
        self.replies.extend([reply] * count)
        if not self.missing and not self.future.done():
            self.future.set_result(tuple(self.replies))


class SMTPClient(asyncio.Protocol):
    """One connection, greeted.

    Attributes:
        greeting: the server's first reply.
        features: what it offers in reply to EHLO: keyword in upper case → the rest of the line. Empty if it
            only knows HELO.
        failure: why the connection is of no use any more; None while it is.
        in_doubt: a final dot has been sent and no reply to it has come: the server may have the message.
        opened_at: when the connection was begun, in the loop's time.
        encrypted: TLS is in use.
    """

    def __init__(self, options: ClientOptions) -> None:
        self.greeting: Reply | None = None
        self.features: Mapping[bytes, bytes] = MappingProxyType({})
        self.failure: NextHopError | None = None
        self.in_doubt = False
        self.encrypted = False
        self._options = options
        self._loop = asyncio.get_running_loop()
        self.opened_at = self._loop.time()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._reader = ReplyReader()
        self._outstanding: deque[_Exchange] = deque()
        self._unsent: deque[bytes] = deque()
        self._pipelining = False
        self._streaming = False
        self._paused = False
        self._room: asyncio.Future[None] | None = None
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._welcome: _Exchange | None = None

    @classmethod
    async def open(cls, address: Address, options: ClientOptions | None = None) -> Self:
        """Connect, wait for the greeting and say EHLO.

        Raises:
            NextHopConnectError: no connection, or the server refused to serve.
            NextHopError: what the server did instead of answering.
        """
        options = options or ClientOptions()
        client = cls(options)
        try:
            await connect(lambda: client, address, options)
            client.encrypted = options.tls is not None and options.tls.implicit
            client.greeting = await client._greeted()
            await client.hello()
            await client._secure(address)
        except NextHopTLSError:
            client.close()
            if options.tls is None or not options.tls.opportunistic:
                raise
        except BaseException:
            client.close()
            raise
        else:
            return client
        return await cls.open(address, replace(options, tls=None))

    @property
    def pipelining(self) -> bool:
        """Whether several commands may leave in one write."""
        return self._pipelining

    @property
    def usable(self) -> bool:
        """Connected, with nothing outstanding: ready for a next command."""
        return self.failure is None and not self._outstanding

    @property
    def private(self) -> bool:
        """Whether nobody can listen: there is TLS, or the server is on this machine."""
        assert self._transport is not None
        return self.encrypted or stays_here(self._transport)

    @property
    def verified(self) -> bool:
        """Whether the server is known to be the one that was meant."""
        return self.encrypted and self._options.tls is not None and self._options.tls.level == "verify"

    async def hello(self, name: bytes | None = None) -> None:
        """Say EHLO, or HELO to a server that does not know it, or LHLO, and note what is offered.

        Part of `open`. Again only after a command that returns the server to its greeting.

        Args:
            name: instead of our own.

        Raises:
            NextHopConnectError: the server refused both.
            NextHopError: as for `exchange`.
        """
        self._pipelining = False
        name = name or self._options.hello
        verb = b"LHLO " if self._options.lmtp else b"EHLO "
        (reply,) = await self.exchange(verb + name, within=self._options.hello_timeout)
        features = parse_features(reply)
        if reply.permanent and not reply.closes and not self._options.lmtp:
            (reply,) = await self.exchange(b"HELO " + name, within=self._options.hello_timeout)
        if not 200 <= reply.code < 300:
            raise NextHopConnectError(f"refused our greeting: {reply}")
        if not self.verified:
            # RFC 8689 section 3: it means nothing from a server that could be another one.
            features.pop(b"REQUIRETLS", None)
        self.features = MappingProxyType(features)
        self._pipelining = b"PIPELINING" in features

    async def exchange(self, *commands: bytes, within: float | None = None) -> tuple[Reply, ...]:
        """Send commands, and return the replies to them in order.

        The time, `command_timeout` if not given, is for each reply.

        Raises:
            SMTPSyntaxError: a command that must not be sent; nothing was.
            NextHopError: the connection is of no use (any more).
        """
        for command in commands:
            check_command(command, self.features)
        exchange = self._expect(len(commands), within or self._options.command_timeout)
        if self._pipelining:
            self._write(b"\r\n".join([*commands, b""]))
        else:
            self._unsent.extend(commands)
            if self._outstanding[0] is exchange:
                self._send_next()
        return await self._answered(exchange)

    async def data(self, content: Iterable[bytes]) -> Reply:
        """Send DATA and, after a 354, the content. Returns the reply to either.

        If the session was ended (421) instead of taking the content, that is an error; as a reply, 421 is the
        one to the final dot.

        Raises:
            NextHopError: see `in_doubt` for whether the server may have the message.
        """
        (reply,) = await self.exchange(b"DATA", within=self._options.data_initiation_timeout)
        if reply.closes and self.failure is not None:
            raise self.failure
        if reply.code == 354:
            return await self.stream(content)
        if reply.positive:
            raise self._fail(NextHopProtocolError(f"answered DATA with {reply}"))
        return reply

    async def chunk(self, content: Iterable[bytes], size: int) -> Reply:
        """Send a content of so many octets as it is (BDAT, RFC 3030), and return the reply: like `stream`."""
        return await self._stream(one_chunk(content, size))

    async def stream(self, content: Iterable[bytes]) -> Reply:
        """Send the content after a 354, no faster than the server takes it, and return the final reply.

        A refusal that comes before the end is the final reply, too, unless it is 421; the connection is
        closed then. To get out of a 354 when no recipient was accepted, stream nothing.

        Raises:
            NextHopError: see `in_doubt` for whether the server may have the message.
        """
        return await self._stream(stuffed(content))

    async def _stream(self, blocks: Iterator[bytes]) -> Reply:
        assert not self._outstanding
        exchange = self._expect(1, self._options.data_done_timeout)
        self._streaming = True
        try:
            block = next(blocks)
            for following in blocks:
                self._write(block)
                await self._drained()
                if self.failure is not None:
                    return (await exchange.future)[0]
                block = following
        except BaseException:
            self._fail(NextHopClosedError("the content was not finished"))
            raise
        self._streaming = False
        self.in_doubt = True
        self._arm(exchange.within)
        self._write(block)
        (reply,) = await self._answered(exchange)
        if 300 <= reply.code < 400:
            raise self._fail(NextHopProtocolError(f"answered the content with {reply}"))
        self.in_doubt = False
        return reply

    def quit(self) -> None:
        """Say QUIT if that can be said now, and close when it is answered, soon at the latest."""
        if not self.usable:
            self.close()
            return
        exchange = self._expect(1, self._options.quit_timeout)
        exchange.future.add_done_callback(lambda _: self.close())
        self._write(b"QUIT\r\n")

    def close(self) -> None:
        """Close at once, without a word. May be called more than once."""
        self._fail(NextHopClosedError("closed by this side"))

    async def wait_closed(self) -> None:
        """Wait until the socket is gone, after `close` or `quit`."""
        await asyncio.shield(self._closed)

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the transport: the greeting is what comes next."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._welcome = self._expect(1, self._options.greeting_timeout)

    def data_received(self, data: bytes) -> None:
        """Called by the transport: replies, in order."""
        if self.failure is not None:
            return
        self._reader.feed(data)
        try:
            while (reply := self._reader.next_reply()) is not None and self._take(reply):
                pass
        except NextHopProtocolError as error:
            self._fail(error)

    def eof_received(self) -> None:
        """Called by the transport: without a reading server there is nothing left to say."""
        self._fail(NextHopClosedError("closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport, last of all."""
        self._fail(NextHopClosedError(f"lost the connection: {exc or 'closed'}"))
        self._closed.set_result(None)

    def pause_writing(self) -> None:
        """Called by the transport: the server does not keep up."""
        self._paused = True

    def resume_writing(self) -> None:
        """Called by the transport: there is room again."""
        self._paused = False
        self._wake()

    # Inside

    async def _secure(self, address: Address) -> None:
        """Begin TLS, if it is wanted and there is none yet, and ask again what is offered."""
        tls = self._options.tls
        if tls is None or tls.implicit or isinstance(address, str):
            return
        offered = b"STARTTLS" in self.features
        if not offered and not tls.opportunistic:
            raise NextHopTLSError("does not offer STARTTLS")
        if not offered:
            return
        (reply,) = await self.exchange(b"STARTTLS")
        if isinstance(self.failure, NextHopClosedError) and not reply.closes:
            raise NextHopTLSError("no TLS: the connection was lost")
        if self.failure is not None:
            raise self.failure
        if reply.code != 220:
            if not tls.opportunistic:
                raise NextHopTLSError(f"answered STARTTLS with {reply}")
            return
        if not self._reader.idle:
            raise self._fail(NextHopProtocolError("said more than the reply to STARTTLS"))
        assert self._transport is not None
        self._transport = await start_tls(self._transport, self, tls, address[0])
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.encrypted = True
        await self.hello()

    async def _greeted(self) -> Reply:
        assert self._welcome is not None
        (reply,) = await self._answered(self._welcome)
        if reply.code != 220:
            raise NextHopConnectError(f"greeted with {reply}")
        return reply

    def _expect(self, count: int, within: float) -> _Exchange:
        if self.failure is not None:
            raise self.failure
        exchange = _Exchange(self._loop.create_future(), count, within)
        if not self._outstanding:
            self._arm(within)
        self._outstanding.append(exchange)
        return exchange

    async def _answered(self, exchange: _Exchange) -> tuple[Reply, ...]:
        try:
            return await exchange.future
        except asyncio.CancelledError:
            self._fail(NextHopClosedError("given up while waiting for a reply"))
            raise

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _send_next(self) -> None:
        if self._unsent:
            self._write(self._unsent.popleft() + b"\r\n")

    def _take(self, reply: Reply) -> bool:
        """Give a reply to what waits for it; False if nothing more may be read."""
        if not self._outstanding:
            kind = NextHopClosedError if reply.closes else NextHopProtocolError
            self._fail(kind(f"said without being asked: {reply}"))
            return False
        if self._streaming and reply.positive:
            self._fail(NextHopProtocolError(f"answered before the end of the content: {reply}"))
            return False
        exchange = self._outstanding[0]
        if reply.closes or self._streaming:
            # 421 amid the content says nothing about the message, but that nobody is there to take it.
            if not (reply.closes and self._streaming):
                for each in self._outstanding:
                    each.add(reply, each.missing)
            self._fail(NextHopClosedError(f"ended the session: {reply}"))
            return False
        exchange.add(reply)
        if not exchange.missing:
            self._outstanding.popleft()
        if self._outstanding:
            self._arm(self._outstanding[0].within)
            self._send_next()
        else:
            self._deadline = None
        return True

    def _fail(self, error: NextHopError) -> NextHopError:
        """Make the connection unusable; the first reason counts."""
        if self.failure is not None:
            return error
        self.failure = error
        self._unsent.clear()
        for exchange in self._outstanding:
            if not exchange.future.done():
                exchange.future.set_exception(error)
                exchange.future.exception()  # `failure` keeps it, should nobody wait any more
        self._outstanding.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()
        if self._transport is not None:
            self._transport.abort()
        return error

    async def _drained(self) -> None:
        self._arm(self._options.data_block_timeout)
        if not self._paused:
            # A server that keeps up must not keep the loop from everything else.
            await asyncio.sleep(0)
            return
        self._room = self._loop.create_future()
        await self._room

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _arm(self, within: float) -> None:
        # One timer for all deadlines. It is moved only to an earlier time: a later deadline waits until the
        # timer rings for nothing, so that a busy connection sets no timer per command.
        self._deadline = deadline = self._loop.time() + within
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._ring)
            return
        what = "take the content" if self._streaming else "answer"
        self._fail(NextHopTimeoutError(f"did not {what} in time"))
