"""The content of DATA: from the bytes on the wire to a message.

`DataDecoder` finds the end of the data and removes the transparency dots; `MessageReceiver` puts line ends
right, checks the limits and builds the message; `DataReceiver` is both. None of them does I/O.

The data end at `CRLF . CRLF` and nowhere else (RFC 5321 section 4.1.1.4), the CRLF of the DATA command
counting as the first. A server that also ends them at `LF . LF`, `LF . CRLF` or `CR . CR` lets a sender
smuggle commands into what another server took for one message. Dots are removed only where CRLF begins the
line, for the same reason.
"""

import logging
import re
from dataclasses import replace
from typing import Final, Self

from milterchain.errors import HeaderLimitError
from milterchain.mail.body import SpoolSettings
from milterchain.mail.canonical import Canonicaliser, HeaderCanonicaliser
from milterchain.mail.headers import HeaderLimits
from milterchain.mail.message import Message, MessageBuilder
from milterchain.mail.replies import Reply
from milterchain.smtp.options import ServerOptions

__all__ = ["MAX_DRAIN", "DataDecoder", "DataReceiver", "MessageReceiver"]

MAX_DRAIN = 4
"""How often the size limit is read before the connection is given up: a client that ignores SIZE should get
to its final dot to hear 552, one that never ends should not keep us."""

_logger = logging.getLogger(__name__)

_END: Final = b"\r\n.\r\n"
_PARTIAL_ENDS: Final = tuple(_END[:size] for size in range(len(_END) - 1, 0, -1))
# One octet and a look ahead: several times as fast as a search for all three, or a `replace` that finds none.
_DOT_LINE: Final = re.compile(rb"\r(?=\n\.)")

TOO_LARGE: Final = Reply.of(552, "5.3.4 Error: message size exceeds fixed limit")
HEADERS_TOO_LARGE: Final = Reply.of(552, "5.3.4 Error: message headers exceed fixed limit")
NO_STORAGE: Final = Reply.of(452, "4.3.1 Error: insufficient system storage")
TOO_MANY_HOPS: Final = Reply.of(554, "5.4.6 Error: too many hops")


class DataDecoder:
    """Takes the data out of a receive buffer, as far as they are certain.

    Attributes:
        done: the end was met. What is left in the buffer are the next commands.
    """

    __slots__ = ("_at_start", "done")

    def __init__(self) -> None:
        self.done = False
        self._at_start = True

    def take(self, buffer: bytearray) -> bytes:
        """Remove from the buffer all that is known to be data, and return it without transparency dots.

        Up to four octets that may be the beginning of the end stay in the buffer until more has come.
        """
        if self._at_start:
            if _END.startswith(buffer[:3], 2):
                # Nothing, `.`, `.\r`, or the end of an empty message.
                if len(buffer) >= 3:
                    del buffer[:3]
                    self.done = True
                return b""
            self._at_start = False
            if buffer[0] == 0x2E:
                del buffer[0]
        found = _DOT_LINE.search(buffer)
        dot = found.start() if found else len(buffer)
        end = buffer.find(_END, dot)
        if end >= 0:
            data = bytes(buffer[: end + 2])
            del buffer[: end + len(_END)]
            self.done = True
        else:
            for partial in _PARTIAL_ENDS:
                if buffer.endswith(partial):
                    data = bytes(buffer[: -len(partial)])
                    buffer[:] = partial
                    break
            else:
                data = bytes(buffer)
                buffer.clear()
        return data.replace(b"\r\n.", b"\r\n") if dot + 2 < len(data) else data


class MessageReceiver:
    """Makes one message of its octets, within limits.

    A message beyond a limit is thrown away, but read to its end: the client listens only then.

    Args:
        size_limit: octets of the message.
        hops: Received headers from which on a message is taken for looping.
        limits: of the headers.
        spool: where a large message is kept.
        binary: line ends are put right in the headers only (BINARYMIME, RFC 3030).

    Attributes:
        size_limit: see above.
        size: octets that have come.
        refusal: why there will be no message; None while there may be one.
    """

    __slots__ = ("_builder", "_canonical", "_hops", "binary", "refusal", "size", "size_limit")

    def __init__(
        self,
        *,
        size_limit: int,
        hops: int,
        limits: HeaderLimits | None = None,
        spool: SpoolSettings | None = None,
        binary: bool = False,
    ) -> None:
        self.size_limit = size_limit
        self.size = 0
        self.refusal: Reply | None = None
        self.binary = binary
        self._hops = hops
        self._canonical = HeaderCanonicaliser() if binary else Canonicaliser()
        self._builder = MessageBuilder(limits=limits, spool=spool)

    @classmethod
    def of(cls, options: ServerOptions, size_limit: int, *, binary: bool = False) -> Self:
        """A receiver with the limits of a server."""
        return cls(
            size_limit=size_limit,
            hops=options.received_hops,
            limits=options.headers,
            spool=options.spool,
            binary=binary,
        )

    @property
    def hopeless(self) -> bool:
        """So much has come beyond the limit that the end should not be waited for."""
        return self.size > MAX_DRAIN * self.size_limit

    def keep(self, data: bytes) -> None:
        """Take the next octets."""
        self._add(data if self.refusal is not None else self._canonical.feed(data))

    def end(self) -> None:
        """Nothing more will come."""
        if self.refusal is None:
            self._add(self._canonical.finish())

    def finish(self) -> Message | Reply:
        """The message, which is the caller's to close, or why there is none. After `end`."""
        if self.refusal is not None:
            return self.refusal
        try:
            message = self._builder.finish()
        except HeaderLimitError:
            return self._refuse(HEADERS_TOO_LARGE)
        except OSError as error:
            return self._no_room(error)
        # The own header, a place holder so far, is called Received, too.
        hops = sum([header.name.lower() == b"received" for header in message.headers]) - 1
        if hops >= self._hops:
            message.close()
            return TOO_MANY_HOPS
        return replace(message, binary=True) if self.binary else message

    def close(self) -> None:
        """Throw away what was collected. May be called again."""
        self._builder.close()

    def _add(self, data: bytes) -> None:
        self.size += len(data)
        if self.refusal is not None:
            return
        if self.size > self.size_limit:
            self._refuse(TOO_LARGE)
            return
        try:
            self._builder.feed(data)
        except OSError as error:
            self._no_room(error)

    def _no_room(self, error: OSError) -> Reply:
        _logger.error("a message cannot be stored: %s", error)
        return self._refuse(NO_STORAGE)

    def _refuse(self, reply: Reply) -> Reply:
        self.refusal = reply
        self._builder.close()
        return reply


class DataReceiver(MessageReceiver):
    """Makes one message of what follows DATA. The arguments are those of `MessageReceiver`."""

    __slots__ = ("_decoder",)

    def __init__(
        self,
        *,
        size_limit: int,
        hops: int,
        limits: HeaderLimits | None = None,
        spool: SpoolSettings | None = None,
        binary: bool = False,
    ) -> None:
        super().__init__(size_limit=size_limit, hops=hops, limits=limits, spool=spool, binary=binary)
        self._decoder = DataDecoder()

    def feed(self, buffer: bytearray) -> bool:
        """Take what can be taken out of the buffer; True once the data have ended."""
        self.keep(self._decoder.take(buffer))
        if self._decoder.done:
            self.end()
        return self._decoder.done
