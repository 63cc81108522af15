"""The SMTP client of the scenarios: it sends what it is told, and adds nothing."""

import asyncio
import contextlib
import ssl
from collections.abc import Iterable

from milterchain.errors import NextHopProtocolError
from milterchain.mail.replies import Reply
from milterchain.smtp.client_replies import ReplyReader
from milterchain.smtp.stuffing import stuffed

__all__ = ["CaseClient", "HangupError"]

_READ_SIZE = 64 * 1024


class HangupError(Exception):
    """The server closed the connection, or said what is no SMTP."""


class CaseClient:
    """One connection.

    Attributes:
        transcript: the last lines that went both ways, for the text of a failure.
    """

    _TRANSCRIPT = 40
    """Lines that are kept; the last ones tell what went wrong."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.transcript: list[str] = []
        self._host = host
        self._reader = reader
        self._writer = writer
        self._replies = ReplyReader()

    @classmethod
    async def open(cls, address: str) -> "CaseClient":
        """Connect to `HOST:PORT`.

        Raises:
            HangupError: nobody listens.
        """
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            return cls(host, *await asyncio.open_connection(host, int(port)))
        except OSError as error:
            raise HangupError(f"cannot connect to {address}: {error.strerror}") from error

    async def command(self, line: bytes) -> None:
        """Send a line.

        Raises:
            HangupError: the connection is gone.
        """
        self._note("> " + line.decode("utf-8", "backslashreplace"))
        await self._write([line + b"\r\n"])

    async def content(self, pieces: Iterable[bytes]) -> None:
        """Send a message and the final dot.

        Raises:
            HangupError: the connection is gone.
        """
        self._note("> (message)")
        await self._write(stuffed(pieces))

    async def reply(self) -> Reply:
        """Read a reply.

        Raises:
            HangupError: the connection is gone.
        """
        try:
            while (reply := self._replies.next_reply()) is None:
                data = await self._reader.read(_READ_SIZE)
                if not data:
                    raise HangupError("the server closed the connection")
                self._replies.feed(data)
        except (OSError, NextHopProtocolError) as error:
            raise HangupError(str(error)) from error
        for line in reply.lines:
            self._note(f"< {reply.code} {line.decode('utf-8', 'backslashreplace')}")
        return reply

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Encrypt from here on.

        Raises:
            HangupError: the handshake failed.
        """
        self._note("(TLS)")
        try:
            # For a context that checks whose certificate it is.
            await self._writer.start_tls(context, server_hostname=self._host)
        except OSError as error:
            raise HangupError(f"no TLS: {error}") from error

    async def wait_closed(self) -> bool:
        """Wait until the server closes; whether it said nothing before."""
        try:
            return self._replies.idle and not await self._reader.read(_READ_SIZE)
        except OSError:
            return True

    async def quit(self) -> None:
        """Say QUIT if the server still listens, and close."""
        with contextlib.suppress(HangupError):
            await self.command(b"QUIT")
            await self.reply()
        self.drop()

    def drop(self) -> None:
        """Close without a word."""
        self._writer.transport.abort()

    async def _write(self, pieces: Iterable[bytes]) -> None:
        try:
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()
        except OSError as error:
            raise HangupError(str(error)) from error

    def _note(self, line: str) -> None:
        self.transcript.append(line)
        del self.transcript[: -self._TRANSCRIPT]
