"""The two milters of the embedded default, and the shortest useful filters to learn from.

`milterchain run` without arguments starts both inside its own process and sends mail through them over real
sockets. Each is a plain `Milter`: a method for each event that it needs, nothing else.
"""

import re
from collections.abc import Mapping

from milterchain.milter.filter import Milter, reply
from milterchain.milter.flags import Action, Protocol, Stage
from milterchain.milter.messages import Connect, Reply
from milterchain.milter.modifier import Modifier

__all__ = ["EXAMPLES", "GTUBE", "GTUBE_SUBJECT", "GtubeFilter", "StampFilter"]

_UNPRINTABLE = re.compile(rb"[^!-~]")


class StampFilter(Milter):
    """Adds a header that tells what a milter learns about a message: client, HELO, queue id, recipients.

    It never refuses anything, so it asks the MTA not to wait for its replies before the end of the message.
    """

    actions = Action.ADD_HEADERS
    protocol = (
        Protocol.NO_REPLY_CONNECT | Protocol.NO_REPLY_HELO | Protocol.NO_REPLY_MAIL | Protocol.NO_REPLY_RCPT
    )
    wanted_macros = {Stage.MAIL: (b"i",)}  # noqa: RUF012 - as every filter will write it

    _address = b"unknown"
    _helo = b"none"
    _recipients = 0

    async def connect(self, client: Connect) -> None:
        """Remember the client's address."""
        self._address = client.address or client.hostname

    async def helo(self, name: bytes) -> None:
        """Remember its HELO; what a stranger typed goes into no header unseen."""
        self._helo = _UNPRINTABLE.sub(b"?", name)

    async def mail(self, _sender: bytes, _args: tuple[bytes, ...]) -> None:
        """A message begins; there may be several in a session."""
        self._recipients = 0

    async def rcpt(self, _recipient: bytes, _args: tuple[bytes, ...]) -> None:
        """Count."""
        self._recipients += 1

    async def end_of_message(self, modifier: Modifier) -> None:
        """Add the header."""
        queue_id = self.macros.get(b"i", b"none")
        value = b"client=%b; helo=%b;\n queue-id=%b; recipients=%d"
        await modifier.add_header(
            b"X-Milterchain-Example", value % (self._address, self._helo, queue_id, self._recipients)
        )


GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
"""The string by which spam filters are tested: a message with it is refused."""
GTUBE_SUBJECT = b"ZJS" + GTUBE[3:]
"""The variant, known from rspamd, that has the subject changed."""


class GtubeFilter(Milter):
    """Refuses a message with the GTUBE string in its body; tags the subject for the ZJS variant of it."""

    actions = Action.CHANGE_HEADERS

    _tag = b"[SPAM] "
    _subject = b""
    _tail = b""
    _suspicious = False

    async def mail(self, _sender: bytes, _args: tuple[bytes, ...]) -> None:
        """Forget the message before."""
        self._subject = self._tail = b""
        self._suspicious = False

    async def header(self, name: bytes, value: bytes) -> None:
        """Remember the subject."""
        if name.lower() == b"subject" and not self._subject:
            self._subject = value

    async def body(self, chunk: bytes) -> Reply | None:
        """Look for the strings. Pieces are cut anywhere: the end of one may be the beginning of a string."""
        text = self._tail + chunk
        self._tail = text[1 - len(GTUBE) :]
        if GTUBE in text:
            return reply(550, "5.7.1", "This message contains the GTUBE test string")
        self._suspicious = self._suspicious or GTUBE_SUBJECT in text
        return None

    async def end_of_message(self, modifier: Modifier) -> None:
        """Tag the subject if need be."""
        if self._suspicious and not self._subject.startswith(self._tag):
            await modifier.change_header(b"Subject", self._tag + self._subject)


EXAMPLES: Mapping[str, type[Milter]] = {"stamp": StampFilter, "gtube": GtubeFilter}
"""The milters of the embedded default by name, in the order of the chain."""
