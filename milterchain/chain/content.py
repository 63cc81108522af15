"""One message's content for one milter: what is sent, and how."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from milterchain.chain.briefing import MacroPackets
from milterchain.chain.plan import MilterPlan, streams
from milterchain.chain.verdict import Verdict
from milterchain.mail.body import Body
from milterchain.mail.message import Message
from milterchain.milter.client import MilterSession
from milterchain.milter.content import Content, ContentResult
from milterchain.milter.flags import Command
from milterchain.milter.messages import Modification

__all__ = ["Heard", "Parcel", "terminated"]

_STAGES = (Command.END_OF_HEADERS, Command.END_OF_MESSAGE)


class Heard(NamedTuple):
    """What a milter said to the content of a message.

    Attributes:
        verdict: its last word.
        edits: what it wants changed; empty unless the verdict lets the message pass.
        quarantine: why the message is to be held, None if it is not.
        failed: whether the verdict only stands in for one.
        leading_space: whether header values came with the blank after the colon.
    """

    verdict: Verdict
    edits: Sequence[Modification] = ()
    quarantine: bytes | None = None
    leading_space: bool = False
    failed: bool = False


def terminated(body: Body) -> tuple[int, Callable[[int], Iterable[bytes]]]:
    """Size and pieces of a body whose last line ends with CRLF, as milters know it and as it is relayed."""
    if body.ends_with_newline:
        return len(body), body.chunks

    def chunks(size: int) -> Iterator[bytes]:
        last = b""
        for chunk in body.chunks(size):
            if len(chunk) == size:
                yield chunk
            else:
                last = chunk
        last += b"\r\n"
        for start in range(0, len(last), size):
            yield last[start : start + size]

    return len(body) + 2, chunks


class Parcel:
    """A message as milters get it, encoded once for all that get it in the same form."""

    __slots__ = ("_content", "_macros")

    def __init__(self, message: Message, values: Mapping[bytes, bytes]) -> None:
        body = message.body
        # What is no text has no last line that could lack its end.
        size, chunks = (len(body), body.chunks) if message.binary else terminated(body)
        self._content = Content(headers=message.milter_headers(), body=chunks, body_size=size)
        self._macros = tuple((stage, MacroPackets(stage, values)) for stage in _STAGES)

    async def send(self, session: MilterSession, plan: MilterPlan, deadline: float) -> ContentResult:
        """Send the message to a milter and wait for its last word.

        Raises:
            MilterError: the milter failed.
            OSError: the message cannot be read.
        """
        negotiated = session.negotiated
        names = plan.macro_names(negotiated)
        return await session.content(
            self._content,
            pipelined=streams(plan.settings, negotiated),
            macros={stage: packets.packet(names[stage]) for stage, packets in self._macros},
            deadline=deadline,
        )
