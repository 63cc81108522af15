"""Packets: a length of four bytes (big-endian, counting the code), a code, a payload.

Knows nothing of what packets mean. The reader takes bytes in any pieces and never allocates by what a peer
announces, only by what it sent. It also recognises peers that speak something else altogether: whoever
enters the port of a mail server, of clamd or of a TLS wrapper should read so, and not "packet too large".
"""

import struct
from collections.abc import Iterator, Mapping

from milterchain.errors import LocalProtocolError, NotAMilterError, PacketTooLargeError, RemoteProtocolError

__all__ = ["OVERHEAD", "PacketReader", "encode_packet"]

OVERHEAD = 5
"""Bytes of a packet besides its payload."""

_HEAD = struct.Struct("!IB")
_LENGTH = struct.Struct("!I")
_SHORT = 1024
"""Bytes below which copying them twice costs less than a view of them."""
_MAX_LENGTH = 0xFFFFFFFF
_QUOTED = 60
"""Bytes of a foreign protocol that are quoted in the error."""

_FOREIGN: Mapping[bytes, str] = {
    b"220": "an SMTP or FTP server",
    b"421": "an SMTP server that is closing",
    b"554": "an SMTP server that refuses",
    b"EHLO": "an SMTP client",
    b"HELO": "an SMTP client",
    b"LHLO": "an LMTP client",
    b"QUIT": "an SMTP client",
    b"HTTP": "an HTTP server",
    b"GET ": "an HTTP client",
    b"POST": "an HTTP client",
    b"HEAD": "an HTTP client",
    b"RSPAMD": "rspamd's own protocol",
    b"SPAMD": "spamd",
    b"UNKNOWN COMMAND": "clamd",
    b"SSH-": "an SSH server",
    b"* OK": "an IMAP server",
    b"+OK": "a POP3 server",
    b"PROXY ": "the PROXY protocol",
    b"\r\n\r\n\0\r\nQUIT\n": "the PROXY protocol",
    b"\x14\x03": "TLS",
    b"\x15\x03": "TLS",
    b"\x16\x03": "TLS",
}
"""How other protocols begin. None can be the length of a first packet, which is below 16 MiB."""


def encode_packet(code: int, payload: bytes = b"") -> bytes:
    """One packet.

    Raises:
        LocalProtocolError: no length can say how long the payload is.
    """
    if len(payload) >= _MAX_LENGTH:
        raise LocalProtocolError(f"payload of {len(payload)} bytes does not fit into a packet")
    return _HEAD.pack(len(payload) + 1, code) + payload


def _foreign(start: bytes) -> NotAMilterError:
    what = next((name for prefix, name in _FOREIGN.items() if start.startswith(prefix)), None)
    line = start.splitlines()[0] if what != "TLS" and start.splitlines() else start
    says = f"this looks like {what}" if what else "this is no milter packet"
    return NotAMilterError(f"the peer does not speak the milter protocol: {says}: {line[:_QUOTED]!r}")


class PacketReader:
    """Cuts a stream of bytes into packets.

    Attributes:
        max_payload: the longest payload that is taken.
        unread: what was received and is no packet yet. Not to be changed. Bytes as they came, as long as
            nothing has to be added or removed: large packets are mostly alone.
    """

    __slots__ = ("_first", "_longest", "_whole", "max_payload", "unread")

    def __init__(self, max_payload: int) -> None:
        self.max_payload = max_payload
        self._longest = max_payload + 1
        self.unread: bytes | bytearray = b""
        self._first = True
        self._whole: tuple[int, bytes] | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """Take what was received; a view of memory that will change is copied."""
        if self.unread:
            buffer = self._changeable()
            buffer += data
        elif isinstance(data, bytes):
            self.unread = data
        else:
            self.unread = bytearray(data) if len(data) > _SHORT else data.tobytes()

    def feed_from(self, view: memoryview, size: int) -> None:
        """Take the first `size` bytes of memory that will change; of one packet only the payload is copied.

        One packet is the most that an MTA says before it waits for a reply.
        """
        if size >= OVERHEAD and not self.unread and self._whole is None:
            length, code = _HEAD.unpack_from(view)
            if length + 4 == size and length <= self._longest and not self._first:
                self._whole = code, view[OVERHEAD:size].tobytes()
                return
        self.feed(view[:size])

    def _changeable(self) -> bytearray:
        buffer = self.unread
        if not isinstance(buffer, bytearray):
            buffer = self.unread = bytearray(buffer)
        return buffer

    def next_packet(self) -> tuple[int, bytes] | None:
        """The code and payload of the next packet; None while it is incomplete.

        Raises:
            NotAMilterError: the stream begins as no milter's can.
            PacketTooLargeError: the announced length is beyond `max_payload`.
            RemoteProtocolError: the announced length is 0: not even a code.
        """
        if self._whole is not None:
            packet, self._whole = self._whole, None
            return packet
        buffer = self.unread
        size = len(buffer)
        if size < OVERHEAD:
            # Less than a code: but what cannot be a packet is refused as soon as it shows.
            if size >= 4:
                self._check(_LENGTH.unpack_from(buffer)[0])
            return None
        length, code = _HEAD.unpack_from(buffer)
        if self._first or length > self._longest or not length:
            self._check(length)
        end = length + 4
        if size < end:
            return None
        if isinstance(buffer, bytes):
            payload = buffer[5:end]
            if size - end < _SHORT:
                self.unread = buffer[end:]
                return code, payload
        elif length < _SHORT:
            payload = bytes(buffer[5:end])
        else:
            with memoryview(buffer) as view:
                payload = bytes(view[5:end])
        self._drop(end)
        return code, payload

    def put_back(self, code: int, payload: bytes) -> None:
        """Have `next_packet` return once more what it returned just now."""
        self._whole = code, payload

    def _check(self, length: int) -> None:
        """Refuse what cannot be a packet."""
        if self._first:
            if self.unread[0]:
                raise _foreign(bytes(self.unread))
            self._first = False
        if not length:
            raise RemoteProtocolError("packet of length 0")
        if length > self._longest:
            raise PacketTooLargeError(f"packet of {length} bytes announced, {self._longest} are the most")

    def _drop(self, size: int) -> None:
        if len(self.unread) == size:
            self.unread = b""
        else:
            del self._changeable()[:size]

    def skip(self, packet: bytes, most: int) -> int:
        """Drop up to `most` packets that equal `packet` from the front, and say how many.

        A message's headers are answered by as many identical packets; this costs far less than reading each.
        """
        count = 0
        size = len(packet)
        buffer = self.unread
        while count < most and buffer.startswith(packet, count * size):
            count += 1
        if count:
            self._first = False
            del self._changeable()[: count * size]
        return count

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """The packets that are complete."""
        while (packet := self.next_packet()) is not None:
            yield packet
