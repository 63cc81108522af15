"""One message as a filter sees it, with the changes that the filter makes.

The function changes the transaction; what it did is worked out afterwards (`changes`) as the fewest
modifications that turn what came into what is here now. Changes are local: they cost the MTA nothing before
the end of the message, and a message that is refused has none.

What lies after the point of the decision (`DecideAt`) is not there yet: the sender is empty, there are no
recipients and no headers. They can be changed all the same, blindly: headers can be added (after those of the
message, wherever they are inserted), recipients added and deleted, the sender changed.
"""

import operator
from collections.abc import AsyncIterable, Iterable, Sequence
from typing import BinaryIO

from milterchain.errors import WrongStageError
from milterchain.mail.body import Body, BodyWriter, SpoolSettings
from milterchain.mail.body_file import open_body
from milterchain.mail.edits import new_body
from milterchain.mail.header_list import HeaderList
from milterchain.mailfilter.envelope_changes import EnvelopeChanges
from milterchain.mailfilter.parties import Recipient, Sender
from milterchain.mailfilter.session_facts import MTA, Connection, Helo, text_of
from milterchain.milter.macros import MacroStore
from milterchain.milter.messages import AddRecipient, ChangeSender, DeleteRecipient

__all__ = ["Transaction"]

_CRLF = b"\r\n"
_PIECE = 2**16
"""Octets that are read at once from a file that becomes the body."""


class Transaction:
    """One message in the making.

    Made by `MailFilter`; for tests by `milterchain.testing.TransactionBuilder`.

    Attributes:
        mta: the mail server that asks.
        connection: the client's connection to it.
        helo: the client's greeting and TLS session.
        queue_id: the MTA's name for the message, for logs; empty until there is one. Postfix has one from the
            second recipient on.
        headers: the headers, to read and to change.
        cut_short: whether headers or body are not all there, because they are larger than the filter takes.
    """

    def __init__(
        self,
        *,
        mta: MTA | None = None,
        connection: Connection | None = None,
        helo: Helo | None = None,
        sender: Sender | None = None,
        recipients: Sequence[Recipient] | None = None,
        headers: HeaderList | None = None,
        body: Body | None = None,
        queue_id: str = "",
        cut_short: bool = False,
        macros: MacroStore | None = None,
        spool: SpoolSettings | None = None,
    ) -> None:
        self.mta = mta or MTA()
        self.connection = connection or Connection()
        self.helo = helo or Helo()
        self.queue_id = queue_id
        self.headers = HeaderList() if headers is None else headers
        self.cut_short = cut_short
        self._macros = macros or MacroStore()
        self._envelope = EnvelopeChanges(sender, recipients)
        self._spool = spool
        self._original_body = body
        self._body = body
        self._file: BinaryIO | None = None
        self._keeps_order = False

    def __repr__(self) -> str:
        return f"<Transaction {self.queue_id or 'without a queue id'} from {self.sender}>"

    def macro(self, name: str) -> str | None:
        """A macro's value by its name, with or without braces; None if the MTA did not send it."""
        value = self._macros.get(name.encode())
        return None if value is None else text_of(value)

    # Envelope

    @property
    def sender(self) -> Sender:
        """The present sender."""
        return self._envelope.sender

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The present recipients: those that the MTA took, less those deleted, then those added."""
        return self._envelope.recipients

    def has_recipient(self, address: str | bytes) -> bool:
        """Whether a mailbox is among the present recipients.

        Domains are compared as DNS does: case, Unicode or A-labels do not matter. Local parts are compared
        octet for octet.
        """
        return self._envelope.has_recipient(address)

    def change_sender(self, address: str | bytes, *args: str | bytes) -> None:
        """Change the envelope's sender.

        Args:
            address: with or without brackets; empty for the null sender.
            args: parameters of MAIL (`"RET=HDRS"`); without any, those of the present sender stay.

        Raises:
            ValueError: address or arguments cannot be written into an SMTP command.
        """
        self._envelope.change_sender(address, *args)

    def add_recipient(self, address: str | bytes, *args: str | bytes) -> bool:
        """Add a recipient to the envelope, unless the mailbox is there already.

        Args:
            address: with or without brackets.
            args: parameters of RCPT (`"NOTIFY=NEVER"`), for MTAs of milter protocol 6.

        Returns:
            Whether it is new.

        Raises:
            ValueError: address or arguments cannot be written into an SMTP command.
        """
        return self._envelope.add_recipient(address, *args)

    def delete_recipient(self, address: str | bytes) -> bool:
        """Delete a recipient from the envelope, however it is spelled there (see `has_recipient`).

        If the decision comes before the recipients are known, it is deleted by exactly this spelling.

        Returns:
            Whether it was there.

        Raises:
            ValueError: this is no address.
        """
        return self._envelope.delete_recipient(address)

    # Content

    def keep_header_order(self) -> None:
        """Make the order of the headers come out right with Sendmail, too.

        Sendmail counts headers that no filter sees, so that one inserted in the middle may come to stand
        elsewhere. This has headers deleted and inserted anew at an end, where their order is certain: more
        modifications. Postfix needs no such help, and is told the same as without.
        """
        self._keeps_order = True

    @property
    def keeps_header_order(self) -> bool:
        """Whether `keep_header_order` was called."""
        return self._keeps_order

    @property
    def body(self) -> BinaryIO:
        """The body as it is now, with CRLF line ends: a seekable file, which starts at the beginning.

        It is the same file every time, until the body is replaced.

        Raises:
            WrongStageError: the function runs before the body comes, or without it (`FilterOptions`).
        """
        if self._file is None:
            self._file = open_body(self._present_body())
        return self._file

    def replace_body(self, content: bytes | bytearray | memoryview | BinaryIO | Iterable[bytes]) -> None:
        """Replace the whole body.

        Line ends become CRLF, and the last line gets one.

        Args:
            content: bytes, a binary file (read from where it stands), or pieces cut anywhere.

        Raises:
            OSError: the body is large and cannot be written to its file.
        """
        pieces: Iterable[bytes]
        if isinstance(content, bytes | bytearray | memoryview):
            pieces = (bytes(content),)
        else:
            read = getattr(content, "read", None)
            pieces = content if read is None else iter(lambda: read(_PIECE), b"")
        self._set_body(new_body(pieces, self._spool))

    async def replace_body_from(self, pieces: AsyncIterable[bytes]) -> None:
        """Replace the whole body, see `replace_body`, by pieces that come in their time.

        Raises:
            OSError: the body is large and cannot be written to its file.
        """
        writer = BodyWriter(self._spool)
        async for piece in pieces:
            writer.write(piece)
        with writer.finish() as collected:
            self._set_body(new_body(collected.chunks(_PIECE), self._spool))

    def message(self) -> BinaryIO:
        """The whole message as it is now, with the changes made so far: a seekable file.

        The MTA's own Received header is not in it. Every call opens another file.

        Raises:
            WrongStageError: see `body`.
        """
        return open_body(self._present_body(), head=bytes(self.headers) + _CRLF)

    @property
    def replacement(self) -> Body | None:
        """The body that the MTA is to be sent; None if it is the one that came."""
        new, old = self._body, self._original_body
        if new is None or new is old or (old is not None and _same(new, old)):
            return None
        return new

    def envelope_edits(self) -> tuple[ChangeSender | DeleteRecipient | AddRecipient, ...]:
        """The fewest modifications that make the present envelope of the one that came."""
        return tuple(self._envelope.edits())

    def close(self) -> None:
        """Give back the files of its bodies (called by who made it). May be called again."""
        for body in (self._original_body, self._body):
            if body is not None:
                body.close()

    def _present_body(self) -> Body:
        if self._body is None:
            raise WrongStageError("the body is there only at the end of the message, and if it is asked for")
        return self._body

    def _set_body(self, body: Body) -> None:
        # Files that are open keep the former one; it ends with the last of them.
        self._body = body
        self._file = None


def _same(one: Body, other: Body) -> bool:
    return len(one) == len(other) and all(map(operator.eq, one.chunks(_PIECE), other.chunks(_PIECE)))
