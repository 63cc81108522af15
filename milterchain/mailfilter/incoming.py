"""A message while it comes: collected within limits, until it is a `Transaction`."""

from milterchain.mail.body import BodyWriter
from milterchain.mailfilter.options import BodyOptions, FilterOptions, HeaderOptions, TooLarge
from milterchain.mailfilter.parties import Recipient, Sender

__all__ = ["IncomingBody", "IncomingHeaders", "IncomingMessage"]

_NO_BODY = BodyOptions(max_size=0)
_RECIPIENT = 2048
"""Octets of a recipient on average: Postfix takes no longer command."""


class IncomingHeaders:
    """Collects headers.

    Attributes:
        items: name and value of each.
        over: whether there were more than the limits allow.
    """

    __slots__ = ("_options", "_size", "items", "over")

    def __init__(self, options: HeaderOptions) -> None:
        self.items: list[tuple[bytes, bytes]] = []
        self.over = False
        self._options = options
        self._size = 0

    def add(self, name: bytes, value: bytes) -> None:
        """Take the next header."""
        if self.over:
            return
        self._size += len(name) + len(value)
        if len(self.items) < self._options.max_count and self._size <= self._options.max_size:
            self.items.append((name, value))
            return
        self.over = True
        if self._options.too_large is not TooLarge.TRUNCATE:
            self.items.clear()


class IncomingBody:
    """Collects a body.

    Attributes:
        over: whether there was more than the limit allows.
    """

    __slots__ = ("_options", "over", "writer")

    def __init__(self, options: BodyOptions) -> None:
        self.writer = BodyWriter(options.spool)
        self.over = False
        self._options = options

    def add(self, chunk: bytes) -> None:
        """Take the next piece.

        Raises:
            OSError: it cannot be written to the body's file.
        """
        if self.over:
            return
        room = self._options.max_size - len(self.writer)
        if len(chunk) > room:
            self.over = True
            if self._options.too_large is not TooLarge.TRUNCATE:
                self.writer.close()
                self.writer = BodyWriter(self._options.spool)
                return
            chunk = chunk[:room]
        self.writer.write(chunk)


class IncomingMessage:
    """Collects a message.

    Attributes:
        sender: who sends it.
        recipients: who is to get it; added by `add_recipient`.
        headers: the headers so far.
        body: the body so far.
    """

    __slots__ = ("_options", "_room", "body", "headers", "recipients", "sender")

    def __init__(self, options: FilterOptions, sender: Sender) -> None:
        self.sender = sender
        self.recipients: list[Recipient] = []
        self.headers = IncomingHeaders(options.headers)
        self.body = IncomingBody(options.body or _NO_BODY)
        self._options = options
        self._room = options.max_recipients * _RECIPIENT

    def has_room(self, recipient: Recipient) -> bool:
        """Whether one more recipient is within the limits."""
        return len(self.recipients) < self._options.max_recipients and _size(recipient) <= self._room

    def add_recipient(self, recipient: Recipient) -> None:
        """Take a recipient for which there is room."""
        self._room -= _size(recipient)
        self.recipients.append(recipient)

    @property
    def refused(self) -> bool:
        """Whether it is larger than the filter takes, and to be refused for that."""
        body = self._options.body
        return (self.headers.over and self._options.headers.too_large is TooLarge.REJECT) or (
            body is not None and self.body.over and body.too_large is TooLarge.REJECT
        )

    @property
    def cut_short(self) -> bool:
        """Whether not all of it is here."""
        return self.headers.over or self.body.over

    def close(self) -> None:
        """Throw away what was collected."""
        self.body.writer.close()


def _size(recipient: Recipient) -> int:
    texts = (recipient.raw, *recipient.args, recipient.transport, recipient.host)
    return sum(map(len, texts))
