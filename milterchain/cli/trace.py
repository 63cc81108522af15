"""`milterchain trace`: one message through the chain, and what each milter made of it.

The milters hear and see what they would hear and see of this message in a real run. The next hop is not asked
and nothing is relayed: every recipient counts as one that it took.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import Self

from milterchain.chain.client import ClientInfo
from milterchain.chain.observer import Observation, Snapshot
from milterchain.chain.session import ChainSession
from milterchain.chain.verdict import CONTINUE, Kind, Verdict, banner_reply
from milterchain.cli.message_source import envelope_of, read_client, read_message
from milterchain.cli.output import console
from milterchain.cli.trace_silence import Talk
from milterchain.cli.trace_view import Change, Event, Heard, Request, Result, show, show_json
from milterchain.config import Config
from milterchain.errors import MilterError
from milterchain.mail.diff import EnvelopeDiff, MessageDiff, diff_envelopes, diff_messages
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.milter.flags import Command
from milterchain.milter.messages import Modification
from milterchain.proxy.app import build_chain
from milterchain.proxy.holding import held_reply
from milterchain.proxy.logs import text
from milterchain.proxy.queue_id import QueueIds
from milterchain.proxy.transaction import BAD_ADDRESS, OK
from milterchain.smtp.answers import NO_RECIPIENTS

__all__ = ["Recorder", "TraceRequest", "trace", "trace_message"]

_NAMES = {
    Command.OPTNEG: "open",
    Command.HEADER: "headers",
    Command.END_OF_HEADERS: "end of headers",
    Command.BODY: "body",
    Command.END_OF_MESSAGE: "message",
}
"""Stages whose name is not the command's in lower case."""

_COMMANDS = {"helo": "EHLO", "mail": "MAIL", "data": "DATA", "message": "the message"}
"""What the client has said when it hears the reply, by stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """What is to be sent, and who pretends to send it."""

    message: Message
    sender: Path
    recipients: tuple[Path, ...]
    client: ClientInfo
    helo: bytes

    @classmethod
    def read(
        cls, source: str, sender: str | None, recipients: Sequence[str] | None, client_addr: str, helo: str
    ) -> Self:
        """Read the message, and from it what was not given.

        Raises:
            typer.BadParameter: what was given cannot be used.
        """
        content = read_message(source)
        envelope = envelope_of(content, sender, recipients or ())
        return cls(
            message=content,
            sender=envelope.sender,
            recipients=envelope.recipients,
            client=read_client(client_addr),
            helo=helo.encode("utf-8", "surrogateescape"),
        )


class Recorder:
    """An observer that keeps everything."""

    def __init__(self, milters: Sequence[str]) -> None:
        self.changes: list[Change] = []
        self._recipient: str | None = None
        self._order = {name: index for index, name in enumerate(milters)}
        self._stages: list[tuple[str, str | None]] = []
        self._events: list[Event] = []

    @property
    def stages(self) -> tuple[tuple[str, str | None], ...]:
        """The stages that were gone through, in order, each `rcpt` with its recipient."""
        return tuple(self._stages)

    @property
    def events(self) -> tuple[Event, ...]:
        """All answers, by stage as they came, and by milter as configured."""
        return tuple(
            sorted(
                self._events,
                key=lambda event: (
                    self._stages.index((event.stage, event.recipient)),
                    self._order[event.milter],
                ),
            )
        )

    def enter(self, stage: str, recipient: str | None = None) -> None:
        """What is asked next."""
        self._recipient = recipient
        self._stages.append((stage, recipient))

    def on_event(self, milter: str, event: Command, verdict: Verdict, seconds: float) -> None:
        """Keep an answer."""
        self._add(milter, event, verdict, seconds=seconds)

    def on_fault(self, milter: str, event: Command, error: MilterError, verdict: Verdict) -> None:
        """Keep a failure."""
        self._add(milter, event, verdict, error=str(error))

    def on_edits(
        self,
        milter: str,
        before: Snapshot,
        after: Snapshot,
        edits: Sequence[Modification],  # noqa: ARG002 - what they did is what counts
        warnings: Sequence[str],
    ) -> None:
        """Keep what changed."""
        self.changes.append(
            Change(
                milter=milter,
                envelope=diff_envelopes(before.envelope, after.envelope),
                message=_without_own(before.message, after.message),
                warnings=tuple(warnings),
            )
        )

    def on_observed(self, milter: str, observation: Observation) -> None:
        """Keep what would have changed."""
        verdict = observation.verdict.kind.name.lower()
        done = [f"only observed: {verdict}", *(f"only observed: {edit}" for edit in observation.edits)]
        if observation.quarantine is not None:
            done.append(f"only observed: quarantine: {text(observation.quarantine)}")
        if observation.edits or observation.quarantine is not None or verdict != "continue":
            self.changes.append(
                Change(milter=milter, envelope=EnvelopeDiff(), message=MessageDiff(), warnings=tuple(done))
            )

    def _add(
        self,
        milter: str,
        event: Command,
        verdict: Verdict,
        *,
        seconds: float | None = None,
        error: str | None = None,
    ) -> None:
        stage = _NAMES.get(event, event.name.lower())
        recipient = self._recipient if event is Command.RCPT else None
        if (stage, recipient) not in self._stages:
            self._stages.append((stage, recipient))
        self._events.append(
            Event(
                stage=stage,
                recipient=recipient,
                milter=milter,
                verdict=verdict.kind.name.lower(),
                reply=str(verdict.reply) if verdict.reply else None,
                seconds=seconds,
                error=error,
            )
        )


def _without_own(before: Message, after: Message) -> MessageDiff:
    """Compare, and count headers as the user's file has them: without our Received header."""
    own = [
        next(place for place, header in enumerate(message.headers) if header.own)
        for message in (before, after)
    ]
    diff = diff_messages(before, after)
    headers = (
        replace(change, position=change.position - (change.position > own[change.kind != "removed"]))
        for change in diff.headers
    )
    return replace(diff, headers=tuple(headers))


async def trace_message(config: Config, request: TraceRequest) -> Result:
    """Send the message through the chain of a configuration."""
    milters = tuple(milter.name for milter in config.milter)
    recorder = Recorder(milters)
    chain = build_chain(config, recorder)
    session = chain.session(_client(config, request))
    queue_id = QueueIds()()
    size = request.message.size
    try:
        end = await _Dialogue(config, request, session, recorder, queue_id).run()
    finally:
        session.abort()
        await session.close()
        await chain.close()
        request.message.close()
    verdict = end.verdict
    talk = Talk(negotiated=session.negotiated, stages=recorder.stages, events=recorder.events)
    return Result(
        request=Request(
            client=request.client.address,
            helo=text(request.helo),
            queue_id=queue_id.decode("ascii"),
            sender=text(request.sender.bracketed),
            recipients=tuple(text(path.bracketed) for path in request.recipients),
            size=size,
        ),
        milters=milters,
        stages=recorder.stages,
        events=recorder.events,
        silences=tuple(talk.silences()),
        changes=tuple(recorder.changes),
        verdict=verdict.kind.name.lower() if verdict.decides else "accept",
        stage=end.stage,
        milter=verdict.milter,
        reply=str(verdict.reply) if verdict.reply else None,
        quarantine=None if verdict.quarantine is None else text(verdict.quarantine),
        sender=text(end.envelope.sender.bracketed),
        recipients=tuple(text(path.bracketed) for path in end.envelope.recipients),
        heard=end.heard,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """Where a dialogue ended: the verdict, its stage, the envelope then, and what the client was told."""

    verdict: Verdict
    stage: str
    envelope: Envelope
    heard: tuple[Heard, ...] = ()


class _Dialogue:
    """What a client would say, up to where a verdict ends it."""

    def __init__(
        self,
        config: Config,
        request: TraceRequest,
        session: ChainSession,
        recorder: Recorder,
        queue_id: bytes,
    ) -> None:
        self._config = config
        self._request = request
        self._session = session
        self._recorder = recorder
        self._queue_id = queue_id
        self._strict = config.relay.on_refused_added_recipient == "tempfail"
        self._heard: list[Heard] = []

    async def run(self) -> _End:
        request, session = self._request, self._session
        begin = (
            ("connect", session.connect),
            ("helo", partial(session.helo, request.helo, esmtp=True)),
            ("mail", partial(session.mail, request.sender, self._queue_id)),
        )
        self._recorder.enter("open")
        for stage, ask in begin:
            self._recorder.enter(stage)
            if (verdict := await ask()).decides:
                self._hear_refusal(stage, verdict)
                return self._end(verdict, stage, Envelope(request.sender))
        verdict, envelope = await self._recipients()
        if verdict.kind in {Kind.DISCARD, Kind.SHUTDOWN} or not envelope.recipients:
            if verdict.kind is Kind.DISCARD:
                self._hear("the message", OK)
            elif verdict.kind is not Kind.SHUTDOWN:
                self._hear("DATA", NO_RECIPIENTS)
            return self._end(verdict, "rcpt", envelope)
        self._recorder.enter("data")
        if (verdict := await session.data()).decides:
            self._hear_refusal("data", verdict)
            return self._end(verdict, "data", envelope)
        return await self._content(envelope)

    async def _recipients(self) -> tuple[Verdict, Envelope]:
        """Name all of them: the last verdict, and the envelope of those that were accepted."""
        envelope, verdict = Envelope(self._request.sender), CONTINUE
        for recipient in self._request.recipients:
            self._recorder.enter("rcpt", text(recipient.bare))
            verdict = await self._session.rcpt(recipient)
            if verdict.reply is not None:
                self._hear(f"RCPT TO:{text(recipient.bracketed)}", verdict.reply)
            if verdict.kind in {Kind.DISCARD, Kind.SHUTDOWN}:
                break
            if not verdict.decides:
                envelope = envelope.with_recipient(recipient)
        return verdict, envelope

    async def _content(self, envelope: Envelope) -> _End:
        self._recorder.enter("message")
        message = self._request.message  # no milter sees the Received header that a real run would add
        outcome = await self._session.content(message, envelope)
        if outcome.message.body is not message.body:
            outcome.message.close()
        verdict, hold = outcome.verdict, outcome.quarantine
        if verdict.decides:
            self._hear_refusal("message", verdict)
        elif outcome.unusable and (self._strict or not outcome.envelope.recipients):
            verdict = Verdict(kind=Kind.TEMPFAIL, reply=BAD_ADDRESS)
            self._hear_refusal("message", verdict)
        elif hold is not None:
            verdict = replace(verdict, milter=hold.milter, quarantine=hold.reason)
            reply = held_reply(self._config.quarantine.action)
            if reply is not None:
                self._hear("the message", reply)
        elif not outcome.envelope.recipients:
            self._hear("the message", OK)
        return self._end(verdict, "message", outcome.envelope)

    def _hear_refusal(self, stage: str, verdict: Verdict) -> None:
        """What the client is told of a verdict, and when: at connect and HELO that is later."""
        if stage == "connect":
            greeting = banner_reply(verdict, self._config.hostname.encode("ascii"))
            if greeting is not None:
                self._hear("the connection", greeting)
        if verdict.kind is Kind.DISCARD:
            self._hear("the message", OK)
        elif verdict.reply is not None and not (stage == "connect" and verdict.closes):
            late = stage in {"connect", "helo"} and not verdict.closes
            self._hear(_COMMANDS["mail" if late else stage], verdict.reply)

    def _hear(self, command: str, reply: Reply) -> None:
        self._heard.append(Heard(command=command, reply=str(reply)))

    def _end(self, verdict: Verdict, stage: str, envelope: Envelope) -> _End:
        return _End(verdict=verdict, stage=stage, envelope=envelope, heard=tuple(self._heard))


def _client(config: Config, request: TraceRequest) -> ClientInfo:
    """The client, as if it had connected to the first listener."""
    listener = config.listen[0]
    client = replace(
        request.client, listener=listener.name.encode(), daemon_name=listener.daemon_name.encode()
    )
    address = listener.address
    if address.path is not None or ip_address(address.host).is_unspecified:
        return client  # there is no telling which of our addresses it would have used
    return replace(client, local_address=address.host, local_port=address.port)


def trace(config: Config, request: TraceRequest, *, json: bool = False) -> bool:
    """Trace and print; whether all milters worked."""
    result = asyncio.run(trace_message(config, request))
    out = console()
    if json:
        show_json(out, result)
    else:
        show(out, result)
    return not result.faults
