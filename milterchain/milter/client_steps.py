"""A client session on which a message's content is sent piece by piece, as it comes.

`MilterSession.content` takes a whole message, which is faster and can be sent in one stream. Whoever does not
have the whole at hand, or wants to see the answer to each header, uses this.
"""

from collections.abc import Sequence

from milterchain.errors import LocalProtocolError, MilterError
from milterchain.milter.client import MilterSession
from milterchain.milter.content import Outcome, encode_macros
from milterchain.milter.flags import Command
from milterchain.milter.framing import OVERHEAD
from milterchain.milter.state import State

__all__ = ["SteppedSession"]

_IN_MESSAGE = (State.MAIL, State.RCPT, State.DATA, State.HEADERS, State.BODY)


class SteppedSession(MilterSession):
    """A `MilterSession` that also sends single pieces of content."""

    @property
    def in_message(self) -> bool:
        """Whether a message is open."""
        return self._connection.state in _IN_MESSAGE

    def give_up(self, error: MilterError) -> MilterError:
        """End the session by a fault that was found in what the milter said; what to raise."""
        self._fail(error)
        return self._end()

    def outcome(self) -> Outcome:
        """What collects the responses to the pieces of one message."""
        return Outcome(max_edits=self._options.max_edits, max_edit_bytes=self._options.max_edit_bytes)

    async def piece(
        self, code: Command, packet: bytes, outcome: Outcome, macros: Sequence[tuple[bytes, bytes]] = ()
    ) -> bool:
        """Send one piece of a message, and wait for its reply if one is due.

        Args:
            code: HEADER, END_OF_HEADERS, BODY or END_OF_MESSAGE.
            packet: the piece.
            outcome: of the message that it belongs to; takes the responses.
            macros: sent before it, even if the milter declined the piece itself.

        Returns:
            Whether it was sent: not if the milter declined it.

        Raises:
            LocalProtocolError: the piece is not possible now, or another command awaits its reply;
                nothing was sent.
            MilterError: the session failed. So it is after a cancellation.
        """
        if self.closed:
            raise self._end()
        if self._busy:
            raise LocalProtocolError(f"{code.name} before the replies to former commands came")
        negotiated = self.negotiated
        limit = negotiated.max_data
        if len(packet) > limit + OVERHEAD:
            raise LocalProtocolError(f"{code.name} of more than {limit} bytes")
        data = encode_macros(code, macros, limit) if macros else b""
        sent = negotiated.wants(code)
        if sent:
            self._connection.advance(code)
            data += packet
        if not data:
            return False
        self._outcome = outcome
        self._limit(self._options.content_timeout)
        try:
            self.write(data)
            while not outcome.over() and (self.paused or self._connection.outstanding):
                await self.progress()
        except BaseException as error:
            self._break(outcome, error)
            raise
        finally:
            self._outcome = None
        self._deadline = None
        self._next()
        return sent
