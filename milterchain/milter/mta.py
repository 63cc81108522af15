"""Speak to a milter as an MTA does: the client for those who write MTAs, and tools that play one.

::

    client = MtaClient("inet:127.0.0.1:8891")
    async with client.session(MacroBag({b"j": b"mx.example.org"})) as session:
        await session.connect(b"client.example.net", Family.INET, 4711, b"192.0.2.7")
        await session.helo(b"client.example.net")
        session.macros[b"i"] = b"4Zk1x"
        for answer in (await session.mail(b"<ann@example.net>"), await session.rcpt(b"<bob@example.org>")):
            if answer.stops:
                print(answer.smtp)
        await session.headers([(b"From", b" ann@example.net"), (b"Subject", b" hello")])
        result = await session.body_from(body)
        print(result.smtp, result.modifications)

One method is one event: it sends the macros and the event if the milter wants them, waits for the reply, and
returns it as a value. `MilterSession` below it is the engine: futures instead of methods that wait, and whole
messages in one stream.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self, TypeAlias, TypeVar

from milterchain.errors import MilterClosedError, RemoteProtocolError
from milterchain.milter.answers import Answer, MessageAnswer
from milterchain.milter.chunking import BodySource, chunks
from milterchain.milter.client import ClientOptions
from milterchain.milter.client_steps import SteppedSession
from milterchain.milter.content import Content, ContentResult, encode_header
from milterchain.milter.endpoint import Endpoint, parse_endpoint
from milterchain.milter.flags import Command, Family, Stage
from milterchain.milter.framing import encode_packet
from milterchain.milter.macro_bag import MacroBag
from milterchain.milter.macros import STAGES, MacroNames, MacroTable, spelled
from milterchain.milter.messages import (
    Abort,
    Connect,
    Continue,
    Data,
    Helo,
    Macros,
    Mail,
    QuitNewConnection,
    Rcpt,
    ReplyCode,
    Skip,
    Unknown,
)
from milterchain.milter.negotiation import Negotiated

__all__ = ["Answer", "MessageAnswer", "MtaClient", "MtaOptions", "MtaSession"]

_NO_VALUES: Mapping[bytes, bytes] = MappingProxyType({})
_SKIPPABLE = (Command.RCPT, Command.HEADER, Command.BODY)

_Asked: TypeAlias = Connect | Helo | Mail | Rcpt | Data | Unknown
_A = TypeVar("_A", bound=Answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class MtaOptions(ClientOptions):
    """How to speak to a milter, and what to tell it.

    Attributes:
        macros: for each stage, the names of the macros that are sent if they are defined and the milter did
            not ask for others; an empty list is none. Stages that are not named have `DEFAULT_MACROS`.
    """

    macros: Mapping[Stage, Sequence[bytes]] = field(default_factory=dict, hash=False)


class MtaClient:
    """One milter, to which sessions can be opened.

    Args:
        endpoint: where it listens.
        options: how to speak to it.

    Raises:
        ValueError: the endpoint cannot be read.
    """

    def __init__(self, endpoint: Endpoint | str, options: MtaOptions | None = None) -> None:
        self.endpoint = parse_endpoint(endpoint) if isinstance(endpoint, str) else endpoint
        self.options = options or MtaOptions()

    def __str__(self) -> str:
        return str(self.endpoint)

    async def open(self, macros: Mapping[bytes, bytes] | None = None) -> "MtaSession":
        """Connect and negotiate.

        Args:
            macros: what is known from the start. A `MacroBag` is used itself, anything else is copied.

        Raises:
            MilterError: as `MilterSession.open`.
        """
        link = await SteppedSession.open(self.endpoint, self.options)
        return MtaSession(link, self.options, _bag(macros))

    @asynccontextmanager
    async def session(self, macros: Mapping[bytes, bytes] | None = None) -> AsyncIterator["MtaSession"]:
        """The same as a context, at the end of which the session is closed.

        Raises:
            MilterError: as `MilterSession.open`.
        """
        async with await self.open(macros) as session:
            yield session


class MtaSession:
    """An SMTP session as one milter sees it; made by `MtaClient`.

    The order of events is the MTA's: connect, helo, and for each message mail, rcpt, data, headers, end of
    headers, body, end of message; `unknown` anywhere before the headers. An event that the milter declined is
    not sent, and answers itself with Continue; so does one that it wants to skip for now.

    What every method that sends raises:
        LocalProtocolError: the event is not possible now, or cannot travel (a NUL, too long); nothing was
            sent.
        MilterError: the milter failed; the session is over. So it is when a method is cancelled: nobody
            would take the reply.

    Attributes:
        macros: what is known: set what becomes known before the event that it goes with, and forget what
            concerned one recipient after it.
    """

    def __init__(self, link: SteppedSession, options: MtaOptions, macros: MacroBag) -> None:
        self.macros = macros
        self._link = link
        self._options = options
        self._outcome = link.outcome()
        self._skipped: Command | None = None
        self._last: Command | None = None
        self._names: dict[Stage, MacroNames] = {}
        self._told: set[Command] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def negotiated(self) -> Negotiated:
        """What was agreed on."""
        return self._link.negotiated

    @property
    def closed(self) -> bool:
        """Whether the session is over, for whatever reason."""
        return self._link.closed

    def macro_names(self, stage: Stage) -> tuple[bytes, ...]:
        """The macros that are sent at a stage if they are known, without braces."""
        return tuple([key for _, key in self._plan(stage)])

    @property
    def skipped(self) -> Command | None:
        """The event of which the milter wants no more for now (SMFIR_SKIP): RCPT, HEADER or BODY."""
        return self._skipped

    # The dialogue

    async def connect(
        self, hostname: bytes, family: Family = Family.UNKNOWN, port: int = 0, address: bytes = b""
    ) -> Answer:
        """A client has connected; the arguments are those of `Connect`."""
        return await self._ask(Connect(hostname=hostname, family=family, port=port, address=address))

    async def helo(self, name: bytes) -> Answer:
        """HELO or EHLO, with its argument as typed."""
        return await self._ask(Helo(name))

    async def mail(self, sender: bytes, args: Sequence[bytes] = ()) -> Answer:
        """MAIL FROM: a message begins.

        Args:
            sender: as typed, with brackets if they were; `<>` is the null sender.
            args: the ESMTP parameters as typed, one each.
        """
        self._outcome = self._link.outcome()
        return await self._ask(Mail(sender, tuple(args)))

    async def rcpt(self, recipient: bytes, args: Sequence[bytes] = ()) -> Answer:
        """RCPT TO; a refusal concerns this recipient only. Arguments as for `mail`."""
        return await self._ask(Rcpt(recipient, tuple(args)))

    async def data(self) -> Answer:
        """DATA: the envelope is complete."""
        return await self._ask(Data())

    async def unknown(self, line: bytes, macros: Mapping[bytes, bytes] = _NO_VALUES) -> Answer:
        """A line that is no SMTP command.

        Args:
            line: without its end.
            macros: for this event only; libmilter throws them away.
        """
        return await self._ask(Unknown(line), macros)

    # The content

    async def header(self, name: bytes, value: bytes, macros: Mapping[bytes, bytes] = _NO_VALUES) -> Answer:
        """One header.

        Args:
            name: as received.
            value: all that follows the colon, the space included, which travels if it was negotiated. Folds
                may be CRLF or LF, and the end of the last line may be there or not.
            macros: for this event only; libmilter throws them away.
        """
        value = value.replace(b"\r\n", b"\n").removesuffix(b"\n")
        negotiated = self.negotiated
        packet = encode_header(name, value, leading_space=negotiated.leading_space, limit=negotiated.max_data)
        return await self._piece(Command.HEADER, packet, macros)

    async def end_of_headers(self) -> Answer:
        """The end of the headers."""
        return await self._piece(Command.END_OF_HEADERS, encode_packet(Command.END_OF_HEADERS))

    async def headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Answer:
        """All headers (as for `header`) and their end, until an answer stops the message; the last answer."""
        for name, value in headers:
            answer = await self.header(name, value)
            if answer.stops:
                return answer
        return await self.end_of_headers()

    async def body(self, chunk: bytes) -> Answer:
        """A piece of the body, which is cut where it is longer than was agreed on.

        Returns:
            The last answer, or the one that stopped the message.
        """
        answer = _unasked(Command.BODY)
        size = self.negotiated.max_data
        for start in range(0, len(chunk), size):
            answer = await self._piece(Command.BODY, encode_packet(Command.BODY, chunk[start : start + size]))
            if answer.stops or self._skipped is Command.BODY:
                break
        return answer

    async def end_of_message(self) -> MessageAnswer:
        """The end of the message: the verdict, and what the milter changed."""
        return await self._piece(Command.END_OF_MESSAGE, encode_packet(Command.END_OF_MESSAGE))

    async def body_from(self, source: BodySource) -> MessageAnswer:
        """The body in pieces as large as possible, and the end of the message.

        Args:
            source: with CRLF as line ends. A file is read synchronously. What the milter does not want is
                not read.

        Returns:
            The verdict, which may have come before the end.
        """
        wanted = self.negotiated.wants(Command.BODY)
        async with aclosing(chunks(source if wanted else b"", self.negotiated.max_data)) as pieces:
            async for chunk in pieces:
                answer = await self._piece(Command.BODY, encode_packet(Command.BODY, chunk))
                if answer.stops:
                    return answer
                if self._skipped is Command.BODY:
                    break
        return await self.end_of_message()

    async def message(
        self, content: Content, *, pipelined: bool = False, deadline: float | None = None
    ) -> MessageAnswer:
        """A whole message at once, after DATA; faster than piece by piece.

        Args:
            content: the message.
            pipelined: see `MilterSession.content`.
            deadline: likewise.
        """
        macros = {
            command: self._values(command, _NO_VALUES)
            for command in (Command.END_OF_HEADERS, Command.END_OF_MESSAGE)
        }
        self._skipped = None
        result = await self._link.content(content, pipelined=pipelined, macros=macros, deadline=deadline)
        return self._result(result)

    # The end

    async def abort(self, macros: Mapping[bytes, bytes] = _NO_VALUES) -> None:
        """The message that had begun will not be completed; another may follow.

        Sendmail sends it only then, Postfix after each message as well.

        Args:
            macros: for this event only; libmilter throws them away.
        """
        if macros:
            self._link.send(Macros(Command.ABORT, tuple(macros.items())))
        aborted = self._link.in_message or self._last is Command.ABORT
        self._link.send(Abort())
        self._forget()
        self._last = Command.ABORT if aborted else None

    async def reset(self, macros: Mapping[bytes, bytes] | None = None) -> bool:
        """End the SMTP session and begin another one; `connect` follows.

        The connection is used again (SMFIC_QUIT_NC) where libmilter takes notice: after a message that it
        let pass with Continue, and after an ABORT of an open message. Anywhere else libmilter ignores this
        command and the CONNECT that follows; there, and if the milter is gone, a new connection is made. A
        message that is open is aborted.

        Args:
            macros: of the new session, as for `MtaClient.open`.

        Returns:
            Whether the connection is still the same.

        Raises:
            MilterError: a new connection was needed, and not to be had.
        """
        link = self._link
        if link.in_message:
            await self.abort()
        reused = self._last is not None and not link.closed
        if reused:
            link.send(QuitNewConnection())
        else:
            await self.close()
            self._link = await SteppedSession.open(link.endpoint, self._options)
            self._names.clear()
        self.macros = _bag(macros)
        self._told.clear()
        self._forget()
        return reused

    async def close(self) -> None:
        """End the session with QUIT, and wait until the connection is closed; may be called again."""
        if self._link.in_message:
            self._link.send(Abort())
        await self._link.quit()

    # How

    async def _ask(self, command: _Asked, extra: Mapping[bytes, bytes] = _NO_VALUES) -> Answer:
        code = command.code
        if self._skips(code):
            return _unasked(code)
        macros = self._values(code, extra)
        if macros:
            self._told.add(code)
        elif code in self._told:
            # Filters keep those of a command until they get others: an empty packet makes them forget.
            self._link.send(Macros(code, ()))
            self._told.remove(code)
        future = self._link.command(command, macros)
        self._last = None
        if future is None:
            return _unasked(code)
        try:
            reply = await future
        except asyncio.CancelledError:
            self._link.give_up(MilterClosedError(f"given up before the reply to {code.name} came"))
            raise
        if isinstance(reply, Skip) and code in _SKIPPABLE:
            self._skipped = code
        return self._checked(Answer(event=code, reply=reply))

    async def _piece(
        self, code: Command, packet: bytes, extra: Mapping[bytes, bytes] = _NO_VALUES
    ) -> MessageAnswer:
        if self._skips(code):
            return _unasked(code)
        outcome = self._outcome
        self._last = None
        await self._link.piece(code, packet, outcome, self._values(code, extra))
        if outcome.result is not None:
            return self._result(outcome.result)
        if code in outcome.skipped:
            outcome.skipped.clear()
            self._skipped = code
        reply = Skip() if self._skipped is code else Continue()
        return MessageAnswer(event=code, reply=reply, asked=self.negotiated.replies(code))

    def _result(self, result: ContentResult) -> MessageAnswer:
        reply, stage, modifications, quarantine = result
        self._forget()
        if stage is Command.END_OF_MESSAGE and isinstance(reply, Continue):
            self._last = stage
        return self._checked(
            MessageAnswer(event=stage, reply=reply, modifications=modifications, quarantine=quarantine)
        )

    def _checked(self, answer: _A) -> _A:
        """Refuse a text that no SMTP server can send: Postfix takes it for a broken milter, too."""
        if isinstance(answer.reply, ReplyCode) and answer.refusal is None:
            raise self._link.give_up(
                RemoteProtocolError(f"{answer.event.name} was answered by no SMTP reply: {answer.reply}")
            )
        return answer

    def _forget(self) -> None:
        """Be ready for another message."""
        self._outcome = self._link.outcome()
        self._skipped = None
        self._last = None

    def _skips(self, code: Command) -> bool:
        """Whether the milter wants no more of these; another event ends that."""
        if self._skipped is not code:
            self._skipped = None
        return self._skipped is code

    def _values(self, code: Command, extra: Mapping[bytes, bytes] = _NO_VALUES) -> MacroNames:
        """The macros that go with a command, as they travel."""
        stage = STAGES.get(code)
        own = tuple([(spelled(name), value) for name, value in extra.items()])
        if stage is None:
            return own
        values = self.macros
        return tuple([(name, values[key]) for name, key in self._plan(stage) if key in values])

    def _plan(self, stage: Stage) -> MacroNames:
        names = self._names.get(stage)
        if names is None:
            chosen = self._options.macros.get(stage)
            requested = self.negotiated.macros.get(stage) or tuple(map(spelled, chosen or ()))
            names = () if chosen == () and not requested else MacroTable().names(stage, requested)
            self._names[stage] = names
        return names


def _bag(macros: Mapping[bytes, bytes] | None) -> MacroBag:
    return macros if isinstance(macros, MacroBag) else MacroBag(macros or {})


def _unasked(code: Command) -> MessageAnswer:
    return MessageAnswer(event=code, reply=Continue(), asked=False)
