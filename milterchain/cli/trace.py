"""`milterchain trace`: one message through the chain, and what each milter made of it.

The milters hear and see what they would hear and see of this message in a real run, the name of the client
included, which is looked up if the configuration says so. The next hop is not asked and nothing is relayed:
every recipient counts as one that it took.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import Self

from rich.text import Text

from milterchain.chain.client import AuthInfo, ClientInfo
from milterchain.chain.observer import Snapshot
from milterchain.chain.session import ChainSession
from milterchain.chain.verdict import CONTINUE, Kind, Verdict, banner_reply
from milterchain.cli.message_source import as_typed, envelope_of, read_client, read_message
from milterchain.cli.output import console, safe
from milterchain.cli.trace_recorder import Recorder
from milterchain.cli.trace_silence import Talk, left_out, not_meant
from milterchain.cli.trace_view import Heard, Request, Result, show, show_json
from milterchain.config import Config
from milterchain.errors import ConfigurationError
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.message import Message
from milterchain.mail.replies import Reply
from milterchain.milter.flags import Family
from milterchain.proxy.app import build_chain, build_lookup, milter_settings
from milterchain.proxy.holding import held_reply
from milterchain.proxy.logs import text
from milterchain.proxy.queue_id import QueueIds
from milterchain.proxy.transaction import BAD_ADDRESS, OK
from milterchain.smtp.answers import NO_RECIPIENTS

__all__ = ["TraceRequest", "trace", "trace_message"]

_COMMANDS = {"helo": "EHLO", "mail": "MAIL", "data": "DATA", "message": "the message"}
"""What the client has said when it hears the reply, by stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """What is to be sent, and who pretends to send it.

    Attributes:
        listener: the name of the one that the client comes to; None is the first.
        login: as whom it has logged in, None if it has not.
    """

    message: Message
    sender: Path
    recipients: tuple[Path, ...]
    client: ClientInfo
    helo: bytes
    listener: str | None = None
    login: bytes | None = None

    @classmethod
    def read(
        cls,
        source: str,
        sender: str | None,
        recipients: Sequence[str] | None,
        client_addr: str,
        helo: str,
        *,
        listener: str | None = None,
        login: str | None = None,
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
            helo=as_typed(helo),
            listener=listener,
            login=None if login is None else as_typed(login),
        )


async def trace_message(
    config: Config, request: TraceRequest, tell: Callable[[str], None] = lambda _: None
) -> Result:
    """Send the message through the chain of a configuration.

    Args:
        config: names the milters.
        request: what is sent.
        tell: hears of each stage when it begins.

    Raises:
        ConfigurationError: there is no such listener.
    """
    conditions = {milter.name: milter_settings(milter).conditions for milter in config.milter}
    strangers = not_meant(conditions, request.recipients)
    recorder = Recorder({milter.name: milter.header_index for milter in config.milter}, strangers, tell)
    client = await _client(config, request)
    chain = build_chain(config, recorder)
    session = chain.session(client)
    queue_id = QueueIds()()
    size = request.message.size
    try:
        end = await _Dialogue(config, request, session, recorder, queue_id).run()
    finally:
        session.abort()
        await session.close()
        await chain.close()
        request.message.close()
    authenticated = request.login is not None
    reasons = {
        name: left_out(each, client, request.sender, request.recipients, authenticated=authenticated)
        for name, each in conditions.items()
    }
    talk = Talk(
        negotiated={name: agreed for name, agreed in session.negotiated.items() if reasons[name] is None},
        stages=recorder.stages,
        events=recorder.events,
        strangers=strangers,
    )
    verdict = end.verdict
    return Result(
        request=_request(request, client, queue_id, size),
        milters=tuple(conditions),
        observed=frozenset(milter.name for milter in config.milter if milter.mode == "observe"),
        left_out={name: reason for name, reason in reasons.items() if reason is not None},
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


def _request(request: TraceRequest, client: ClientInfo, queue_id: bytes, size: int) -> Request:
    return Request(
        client=request.client.address,
        client_name=text(client.name),
        helo=text(request.helo),
        listener=request.listener,
        login=None if request.login is None else text(request.login),
        queue_id=queue_id.decode("ascii"),
        sender=text(request.sender.bracketed),
        recipients=tuple(text(path.bracketed) for path in request.recipients),
        size=size,
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
            if stage == "mail" and request.login is not None:
                session.auth(AuthInfo(mechanism=b"PLAIN", identity=request.login))
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
        await session.settled()  # what is said of recipients from now on is said to the envelope told again
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
        self._recorder.begin(Snapshot(message, envelope))
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


async def _client(config: Config, request: TraceRequest) -> ClientInfo:
    """The client, as if it had connected to the listener."""
    names = [listener.name for listener in config.listen]
    if request.listener is not None and request.listener not in names:
        raise ConfigurationError([f"--listener: {request.listener!r} is not one of {', '.join(names)}"])
    listener = config.listen[0 if request.listener is None else names.index(request.listener)]
    client = replace(
        request.client, listener=listener.name.encode(), daemon_name=listener.daemon_name.encode()
    )
    lookup = build_lookup(config.dns)
    if lookup is not None and client.family in {Family.INET, Family.INET6}:
        known = await lookup(client.address)
        client = replace(client, name=known.name, ptr=known.ptr, resolve=known.resolve)
    address = listener.address
    if address.path is not None or ip_address(address.host).is_unspecified:
        return client  # there is no telling which of our addresses it would have used
    return replace(client, local_address=address.host, local_port=address.port)


def trace(config: Config, request: TraceRequest, *, json: bool = False) -> bool:
    """Trace and print; whether all milters worked."""
    with console(error=True).status("asking the milters") as status:

        def tell(stage: str) -> None:
            status.update(Text(safe(f"asking the milters: {stage}")))

        result = asyncio.run(trace_message(config, request, tell))
    out = console()
    if json:
        show_json(out, result)
    else:
        show(out, result)
    return not result.faults
