"""`milterchain milter-check`: play the MTA for one milter, and see what it says.

Events come in the order in which MTAs send them, and verdicts are heeded as MTAs heed them: what stops the
session or the message ends it, a refused recipient is left out, and a message without recipients is given up.
"""

import asyncio
import time
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from milterchain.chain.client import ClientInfo, client_values, connect_event
from milterchain.chain.values import MESSAGE_VALUES, content_values, mail_values, rcpt_values
from milterchain.cli.milter_check_view import Event, MessageResult, Result, show, show_json
from milterchain.cli.options_in_words import why_silent
from milterchain.cli.output import console
from milterchain.errors import ConfigurationError, LocalProtocolError, MilterError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message
from milterchain.milter.answers import Answer
from milterchain.milter.endpoint import Endpoint
from milterchain.milter.flags import Command, Stage
from milterchain.milter.macros import canonical, spelled
from milterchain.milter.messages import Continue
from milterchain.milter.mta import MtaClient, MtaOptions, MtaSession
from milterchain.milter.negotiation import Negotiated
from milterchain.proxy.queue_id import QueueIds

__all__ = ["CheckRequest", "Play", "check_milter", "milter_check"]

_HOSTNAME = b"localhost"
_READ = 2**20
"""Octets of a body that are read at once."""
_CLOSING = (421, 521)
"""Replies that end the SMTP session (RFC 5321 3.8, RFC 7504)."""
_A = TypeVar("_A", bound=Answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One message to play.

    Attributes:
        source: the name of its file, as given.
        message: what it is.
        envelope: who sends it to whom.
    """

    source: str
    message: Message
    envelope: Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """What is to be played.

    Attributes:
        endpoint: where the milter listens.
        options: what is offered to it, and how long it may take.
        client: who connects.
        helo: what it says in HELO.
        unknown: lines after HELO that are no commands.
        macros: values that stand whatever the others would be.
        plays: the messages, in order, in one session.
        abort: whether ABORT follows each message, as from Postfix; Sendmail sends it only for those that did
            not come to their end.
        abort_at: the stage after which each message is first given up, and then played again: `mail`,
            `rcpt`, `data`, `headers` or `body`.
        new_session: whether each message has an SMTP session of its own, on the same connection if possible.
    """

    endpoint: Endpoint
    options: MtaOptions
    client: ClientInfo
    helo: bytes
    unknown: tuple[bytes, ...]
    macros: tuple[tuple[bytes, bytes], ...]
    plays: tuple[Play, ...]
    abort: bool
    abort_at: str | None
    new_session: bool


class _Player:
    """Plays a request in one session, and writes down what happens."""

    def __init__(self, request: CheckRequest, session: MtaSession) -> None:
        self.events: list[Event] = []
        self.results: list[MessageResult] = []
        self._request = request
        self._session = session
        self._ids = QueueIds()
        self._number: int | None = None

    def unsent(self) -> tuple[str, ...]:
        """The macros that were asked for and go with no event."""
        sent = {name for stage in Stage for name in self._session.macro_names(stage)}
        names = [name for name, _ in self._request.macros if canonical(name) not in sent]
        return tuple([spelled(canonical(name)).decode("utf-8", "backslashreplace") for name in names])

    def note_opening(self, seconds: float) -> None:
        """Write down that options were agreed on."""
        self._note("open", "", None, seconds)

    async def run(self) -> None:
        """Play all."""
        request = self._request
        standing = await self._open()
        for number, play in enumerate(request.plays, start=1):
            if number > 1 and request.new_session:
                reused = await self._session.reset()
                self._note("new session", "same connection" if reused else "new connection")
                standing = await self._open()
            self._number = number
            refused: tuple[str, ...] = ()
            answer = standing
            if answer is None:
                answer, refused = await self._message(play)
            self.results.append(MessageResult(source=play.source, answer=answer, refused=refused))
            self._number = None
            if _closes(answer):
                standing = answer

    async def _message(self, play: Play) -> tuple[Answer, tuple[str, ...]]:
        """Play a message with the aborts that were asked for."""
        request = self._request
        if request.abort_at is not None:
            answer, refused = await self._play(play, request.abort_at)
            if _closes(answer):
                return answer, refused
            await self._abort()
        answer, refused = await self._play(play)
        complete = answer.event is Command.END_OF_MESSAGE
        if not _closes(answer) and not (complete and (request.new_session or not request.abort)):
            await self._abort()
        return answer, refused

    async def _open(self) -> Answer | None:
        """Everything before the first message; the answer that stands for all messages, if there is one."""
        request, session = self._request, self._session
        self._define(client_values(request.client, _HOSTNAME) | {b"r": b"ESMTP"})
        event = connect_event(request.client)
        connected = session.connect(event.hostname, event.family, event.port, event.address)
        answer = await self._ask("connect", connected, event.hostname)
        if answer.stops:
            return answer
        answer = await self._ask("helo", session.helo(request.helo), request.helo)
        if answer.stops:
            return answer
        for line in request.unknown:
            answer = await self._ask("unknown", session.unknown(line), line)
            if _closes(answer):
                return answer
        return None

    async def _play(self, play: Play, until: str | None = None) -> tuple[Answer, tuple[str, ...]]:
        """Play a message, perhaps only up to a stage; the answer that decides, and who was refused."""
        session, envelope = self._session, play.envelope
        session.macros.discard(*MESSAGE_VALUES)
        sender = envelope.sender
        self._define(mail_values(sender, self._ids()))
        answer = await self._ask("mail", session.mail(sender.address, sender.args), sender.address)
        if answer.stops or until == "mail":
            return answer, ()
        refusals: dict[Path, Answer] = {}
        for path in envelope.recipients:
            self._define(rcpt_values(path))
            answer = await self._ask("rcpt", session.rcpt(path.address, path.args), path.address)
            if answer.stops and (_closes(answer) or answer.refusal is None):
                return answer, _names(refusals)
            if answer.stops:
                refusals[path] = answer
        taken = tuple([path for path in envelope.recipients if path not in refusals])
        if not taken or until == "rcpt":
            return answer, _names(refusals)
        self._define(content_values(play.message, replace(envelope, recipients=taken)))
        answer = await self._ask("data", session.data())
        if not answer.stops and until != "data":
            answer = await self._content(play.message, until)
        return answer, _names(refusals)

    async def _content(self, message: Message, until: str | None) -> Answer:
        session = self._session
        answer = await self._headers(message)
        if not answer.stops:
            answer = await self._ask("end of headers", session.end_of_headers())
        if answer.stops or until == "headers":
            return answer
        if until == "body":
            for chunk in message.body.chunks(session.negotiated.max_data):
                answer = await self._ask("body", session.body(chunk))
                if answer.stops:
                    break
            return answer
        return await self._ask("message", session.body_from(message.body.chunks(_READ)))

    async def _headers(self, message: Message) -> Answer:
        """All headers: one event for all that pass, and one for each other answer."""
        start = time.perf_counter()
        answer = Answer(event=Command.HEADER, reply=Continue(), asked=False)
        count = 0
        for name, value in message.milter_headers():
            answer = await self._session.header(name, value)
            count += 1
            if answer.stops or self._session.skipped is not None:
                break
        self._note("headers", f"{count}", answer, time.perf_counter() - start)
        return answer

    async def _abort(self) -> None:
        await self._session.abort()
        self._note("abort", "")

    async def _ask(self, stage: str, answer: Awaitable[_A], argument: bytes = b"") -> _A:
        start = time.perf_counter()
        answered = await answer
        shown = argument.decode("utf-8", "backslashreplace")
        self._note(stage, shown, answered, time.perf_counter() - start)
        return answered

    def _note(self, stage: str, argument: str, answer: Answer | None = None, seconds: float = 0) -> None:
        silence = None
        if answer is not None and not answer.asked:
            silence = why_silent(self._session.negotiated, answer.event)
        self.events.append(
            Event(
                message=self._number,
                stage=stage,
                argument=argument,
                answer=answer,
                silence=silence,
                seconds=seconds,
            )
        )

    def _define(self, values: Mapping[bytes, bytes]) -> None:
        self._session.macros.update(values)
        self._session.macros.update(self._request.macros)


def _names(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(path.address.decode("utf-8", "backslashreplace") for path in paths)


def _closes(answer: Answer) -> bool:
    refusal = answer.refusal
    return refusal is not None and refusal.code in _CLOSING


async def check_milter(request: CheckRequest) -> Result:
    """Play a request; a milter that fails is part of the result.

    Raises:
        ConfigurationError: what was asked for cannot be sent.
    """
    player: _Player | None = None
    negotiated: Negotiated | None = None
    failure = None
    unsent: tuple[str, ...] = ()
    start = time.perf_counter()
    try:
        async with MtaClient(request.endpoint, request.options).session() as session:
            negotiated = session.negotiated
            player = _Player(request, session)
            player.note_opening(time.perf_counter() - start)
            unsent = player.unsent()
            await player.run()
    except LocalProtocolError as error:
        raise ConfigurationError([str(error)]) from None
    except MilterError as error:
        failure = str(error)
    return Result(
        milter=str(request.endpoint),
        negotiated=negotiated,
        events=() if player is None else tuple(player.events),
        messages=() if player is None else tuple(player.results),
        unsent=unsent,
        failure=failure,
    )


def milter_check(request: CheckRequest, *, json: bool = False) -> int:
    """Play, print, and return the exit code.

    Raises:
        ConfigurationError: what was asked for cannot be sent.
    """
    with console(error=True).status(f"asking {request.endpoint}"):
        result = asyncio.run(check_milter(request))
    out = console()
    if json:
        show_json(out, result)
    else:
        show(out, result)
    return result.exit_code
