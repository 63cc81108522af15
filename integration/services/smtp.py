"""A small, blocking SMTP client that sends exactly the bytes it is given.

smtplib would repair line ends, addresses and order; here the awkward is the point.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One SMTP reply.

    Attributes:
        code: 0 when the connection was closed instead.
        lines: the text of each line, without code and separator.
    """

    code: int
    lines: tuple[bytes, ...]

    @property
    def text(self) -> bytes:
        """All lines, joined by LF."""
        return b"\n".join(self.lines)


CLOSED = Answer(0, ())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one transaction was answered; None for steps that were not reached."""

    mail: Answer
    rcpt: tuple[Answer, ...] = ()
    data: Answer | None = None
    end: Answer | None = None

    @property
    def accepted(self) -> bool:
        """Whether the client may forget the message."""
        return self.end is not None and self.end.code == 250


class Client:
    """One SMTP session, from the address `source` if that is given, that begins with the header `proxied`."""

    def __init__(
        self,
        address: str,
        *,
        helo: bytes | None = b"EHLO client.example.test",
        timeout: float = TIMEOUT,
        source: str | None = None,
        proxied: bytes = b"",
    ):
        host, _, port = address.rpartition(":")
        bound = (source, 0) if source else None
        self._socket = socket.create_connection((host.strip("[]"), int(port)), timeout, bound)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.write(proxied)
        self._reader = self._socket.makefile("rb")
        self.banner = self.read()
        self.greeting = self.command(helo) if helo is not None and self.banner.code == 220 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def local_port(self) -> int:
        """Our own end."""
        port: int = self._socket.getsockname()[1]
        return port

    def close(self) -> None:
        """Break off without QUIT."""
        self._reader.close()
        self._socket.close()

    def write(self, data: bytes) -> None:
        """Send these bytes."""
        self._socket.sendall(data)

    def read(self) -> Answer:
        """Read one reply."""
        lines: list[bytes] = []
        while True:
            try:
                line = self._reader.readline(65536)
            except ConnectionError:
                return CLOSED
            if not line.endswith(b"\n"):
                return CLOSED
            lines.append(line.rstrip(b"\r\n")[4:])
            if line[3:4] != b"-":
                return Answer(int(line[:3]), tuple(lines))

    def command(self, line: bytes) -> Answer:
        """Send one command line and read its reply."""
        try:
            self.write(line + b"\r\n")
        except ConnectionError:
            return CLOSED
        return self.read()

    def send(
        self, sender: bytes, recipients: Sequence[bytes], content: bytes, *, stuffed: bool = False
    ) -> Outcome:
        """One transaction.

        Args:
            sender: what follows `MAIL FROM:`, so with angle brackets and parameters.
            recipients: likewise for `RCPT TO:`.
            content: as the message shall be after dot-unstuffing.
            stuffed: the content is to be sent as it is, final dot included.
        """
        mail = self.command(b"MAIL FROM:" + sender)
        if mail.code != 250:
            return Outcome(mail)
        rcpt = tuple(self.command(b"RCPT TO:" + recipient) for recipient in recipients)
        data = self.command(b"DATA")
        if data.code != 354:
            return Outcome(mail, rcpt, data)
        try:
            self.write(content if stuffed else stuff(content))
        except ConnectionError:
            return Outcome(mail, rcpt, data, CLOSED)
        return Outcome(mail, rcpt, data, self.read())

    def quit(self) -> None:
        """End the session politely."""
        self.command(b"QUIT")
        self.close()


def stuff(content: bytes) -> bytes:
    """Dot-stuff, and add the end of data."""
    stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
    end = b".\r\n" if not content or content.endswith(b"\r\n") else b"\r\n.\r\n"
    return stuffed + end
