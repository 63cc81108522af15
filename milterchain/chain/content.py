"""One message's content for one milter: what is sent, and how."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from milterchain.chain.plan import MilterPlan, streams
from milterchain.chain.verdict import Verdict
from milterchain.mail.body import Body
from milterchain.mail.message import Message
from milterchain.milter.client import MilterSession
from milterchain.milter.content import Content, ContentResult
from milterchain.milter.flags import Command
from milterchain.milter.messages import Modification

__all__ = ["Heard", "send_content", "terminated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a milter said to the content of a message.

    Attributes:
        verdict: its last word.
        edits: what it wants changed; empty unless the verdict lets the message pass.
        quarantine: why the message is to be held, None if it is not.
        leading_space: whether header values came with the blank after the colon.
    """

    verdict: Verdict
    edits: Sequence[Modification] = ()
    quarantine: bytes | None = None
    leading_space: bool = False


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


async def send_content(
    session: MilterSession,
    plan: MilterPlan,
    message: Message,
    values: Mapping[bytes, bytes],
    deadline: float,
) -> ContentResult:
    """Send a message and wait for the last word on it.

    Raises:
        MilterError: the milter failed.
        OSError: the message cannot be read.
    """
    negotiated = session.negotiated
    size, chunks = terminated(message.body)
    return await session.content(
        Content(headers=message.milter_headers(), body=chunks, body_size=size),
        pipelined=streams(plan.settings, negotiated),
        macros={
            stage: plan.macros_for(stage, values, negotiated)
            for stage in (Command.END_OF_HEADERS, Command.END_OF_MESSAGE)
        },
        deadline=deadline,
    )
