"""What a trace found, for people and as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from milterchain.cli.output import print_table, safe, table
from milterchain.mail.diff import EnvelopeDiff, MessageDiff

__all__ = [
    "CONTENT",
    "Change",
    "Event",
    "Heard",
    "Request",
    "Result",
    "Silence",
    "SilenceReason",
    "show",
    "show_json",
]

_STYLES = {
    "accept": "green",
    "continue": "green",
    "discard": "yellow",
    "tempfail": "yellow",
    "reject": "red",
    "shutdown": "red",
}

CONTENT = frozenset({"headers", "end of headers", "body"})
"""Stages within the message: what answers there is not asked at its end any more."""

_Row: TypeAlias = tuple[str, Text, Text]
"""Milter, answer, time."""

SilenceReason: TypeAlias = Literal[
    "not asked", "no answer wanted", "not meant", "accepted before", "failed before", "already decided"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One milter's answer at one stage.

    Attributes:
        stage: `open`, `connect`, … `message`; `replay` is the envelope told again, as another milter has
            refused a recipient that this one had accepted.
        recipient: at `rcpt`, which one.
        milter: its name.
        verdict: what it said; for a failure, what stands in for it.
        reply: the text for the client.
        seconds: None for a failure.
        error: why it failed; None if it did not.
    """

    stage: str
    recipient: str | None
    milter: str
    verdict: str
    reply: str | None
    seconds: float | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """One milter that has no answer at one stage.

    Attributes:
        reason: `not asked` (it has declined the stage), `no answer wanted` (it was told, and has declined to
            answer), `not meant` (its conditions exclude the recipient), `accepted before` (the connection or
            the message), `failed before` (its default action stands), or `already decided` (by another one,
            so that nobody waited for this one).
    """

    stage: str
    recipient: str | None
    milter: str
    reason: SilenceReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one milter changed.

    Attributes:
        message: positions of headers do not count our own Received header, which the user's file has not.
        warnings: modifications that were dropped, and why.
        observed: all of that is what it would have changed if it were not only observed.
        would: what it would have said, if that had an effect.
    """

    milter: str
    envelope: EnvelopeDiff
    message: MessageDiff
    warnings: tuple[str, ...] = ()
    observed: bool = False
    would: tuple[str, ...] = ()

    @property
    def effective(self) -> bool:
        """Whether there is anything to tell of a message and its envelope."""
        return bool(self.envelope or self.message or self.warnings)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "milter": self.milter,
            "envelope": self.envelope.to_json(),
            "message": self.message.to_json(),
            "warnings": list(self.warnings),
            "observed": self.observed,
            "would": list(self.would),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was sent through the chain, and who pretended to send it.

    Attributes:
        client_name: `unknown` if it has none that could be verified, or nobody looked.
        listener: the one that was asked for.
        login: as whom it has logged in.
        size: octets of the message, with CRLF as line ends.
    """

    client: str
    client_name: str
    helo: str
    listener: str | None
    login: str | None
    queue_id: str
    sender: str
    recipients: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A reply of the milters that the client would get, and what it would answer."""

    command: str
    reply: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The whole trace.

    Attributes:
        milters: their names, in order.
        observed: those that are only observed.
        left_out: those that are not asked about this message, and the key of their condition.
        stages: those that were gone through, in order, each `rcpt` with its recipient.
        verdict: `accept`, `reject`, `tempfail`, `discard` or `shutdown`.
        stage: where it was given.
        milter: who gave it; None for `accept`.
        reply: the text for the client.
        quarantine: why the message is to be held; None if it is not.
        sender: of the message as it would be relayed.
        recipients: likewise.
        heard: what the client would be told of refusals, and of a message that the next hop never sees. If
            nothing is said of the message, it would get the next hop's reply.
    """

    request: Request
    milters: tuple[str, ...]
    observed: AbstractSet[str]
    left_out: Mapping[str, str]
    stages: tuple[tuple[str, str | None], ...]
    events: tuple[Event, ...]
    silences: tuple[Silence, ...]
    changes: tuple[Change, ...]
    verdict: str
    stage: str
    milter: str | None
    reply: str | None
    quarantine: str | None
    sender: str
    recipients: tuple[str, ...]
    heard: tuple[Heard, ...]

    @property
    def faults(self) -> tuple[Event, ...]:
        """The failures among the events."""
        return tuple(event for event in self.events if event.error is not None)

    def seconds(self, milter: str) -> float:
        """The time that a milter took for all its answers."""
        return sum(event.seconds or 0 for event in self.events if event.milter == milter)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "request": asdict(self.request),
            "milters": [
                {
                    "name": name,
                    "seconds": self.seconds(name),
                    "mode": "observe" if name in self.observed else "enforce",
                    "left_out": self.left_out.get(name),
                }
                for name in self.milters
            ],
            "events": [asdict(event) for event in self.events],
            "unanswered": [asdict(silence) for silence in self.silences],
            "changes": [change.to_json() for change in self.changes],
            "verdict": {
                "verdict": self.verdict,
                "stage": self.stage,
                "milter": self.milter,
                "reply": self.reply,
                "quarantine": self.quarantine,
            },
            "envelope": {"sender": self.sender, "recipients": list(self.recipients)},
            "client_hears": [asdict(heard) for heard in self.heard],
        }


def show_json(out: Console, result: Result) -> None:
    """Print one JSON object."""
    out.print(json.dumps(result.to_json(), indent=2), soft_wrap=True)


def show(out: Console, result: Result) -> None:
    """Print what was sent, the answers, the changes, the verdict."""
    for line in (*_request(result.request), *_left_out(result)):
        out.print(line, soft_wrap=True)
    out.print()
    print_table(out, _answers(out, result))
    for change in result.changes:
        out.print()
        for line in _change(change):
            out.print(line, soft_wrap=True)
    out.print()
    for line in (*_verdict(result), *_heard(result)):
        out.print(line, soft_wrap=True)


def _request(request: Request) -> Iterator[Text]:
    recipients = ", ".join(request.recipients)
    yield Text(safe(f"Message: {request.size} bytes from {request.sender} to {recipients}"))
    name = "" if request.client_name == "unknown" else f" ({request.client_name})"
    where = "" if request.listener is None else f" at {request.listener}"
    login = "" if request.login is None else f", logged in as {request.login}"
    client = f"{request.client}{name}{where}, EHLO {request.helo}{login}"
    yield Text(safe(f"Client: {client}; queue id {request.queue_id}"))


def _left_out(result: Result) -> Iterator[Text]:
    if result.left_out:
        milters = ", ".join(f"{name} ({key})" for name, key in result.left_out.items())
        yield Text(safe(f"Not asked, by their conditions: {milters}"))


def _answers(out: Console, result: Result) -> Table:
    """A row for each stage and milter, and the time of each milter at the end."""
    rows = table(out, "Stage", "Milter", "Answer", "Time")
    rows.columns[-1].justify = "right"
    asked = [name for name in result.milters if name not in result.left_out]
    for stage, recipient in dict.fromkeys(result.stages):
        if stage in CONTENT:
            continue  # a part of `message`
        answers: list[_Row] = [(event.milter, *_answer(event)) for event in _events(result, stage, recipient)]
        silent = [each for each in result.silences if (each.stage, each.recipient) == (stage, recipient)]
        title = stage if recipient is None else f"{stage} <{recipient}>"
        reasons = {each.reason for each in silent}
        if len(silent) == len(asked) and len(reasons) <= 1:
            _add(out, rows, title, [("", _silence(*reasons or {"not asked"}), Text())])
            continue
        answers += [(each.milter, _silence(each.reason), Text()) for each in silent]
        answers.sort(key=lambda answer: result.milters.index(answer[0]))
        _add(out, rows, title, [(_name(result, name), answer, time) for name, answer, time in answers])
    answered = {event.milter for event in result.events if event.seconds is not None}
    totals = [
        (_name(result, name), Text(), _time(result.seconds(name))) for name in asked if name in answered
    ]
    _add(out, rows, "total", totals)
    return rows


def _events(result: Result, stage: str, recipient: str | None) -> Iterator[Event]:
    for event in result.events:
        of_content = stage == "message" and event.stage in CONTENT
        if of_content or (event.stage, event.recipient) == (stage, recipient):
            yield event


def _name(result: Result, milter: str) -> str:
    return f"{milter} (observed)" if milter in result.observed else milter


def _add(out: Console, rows: Table, title: str, answers: Sequence[_Row]) -> None:
    for index, (milter, answer, time) in enumerate(answers):
        # For a pipe each line stands for itself.
        shown = title if index == 0 or not out.is_terminal else ""
        rows.add_row(Text(safe(shown)), Text(safe(milter)), answer, time)


def _answer(event: Event) -> tuple[Text, Text]:
    answer = Text(event.verdict, style=_STYLES.get(event.verdict, ""))
    if event.error is not None:
        answer = Text(safe(f"failed: {event.error} (so: {event.reply or event.verdict})"), style="red")
    elif event.reply is not None:
        answer.append(safe(f": {event.reply}"), style="default")
    if event.stage in CONTENT:
        answer.append(f" (at {event.stage})", style="default")
    return answer, Text() if event.seconds is None else _time(event.seconds)


def _silence(reason: str) -> Text:
    return Text(reason, style="dim")


def _time(seconds: float) -> Text:
    return Text(f"{seconds * 1000:.1f} ms")


def _change(change: Change) -> Iterator[Text]:
    title = f"Changes that {change.milter} would make" if change.observed else f"Changes by {change.milter}"
    yield Text(safe(title), style="bold")
    yield from (Text(safe(f"  would say {said}"), style="yellow") for said in change.would)
    envelope = change.envelope
    if envelope.sender is not None:
        yield _removed(f"sender {envelope.sender[0]}")
        yield _added(f"sender {envelope.sender[1]}")
    yield from (_removed(f"recipient {path}") for path in envelope.removed)
    yield from (_added(f"recipient {path}") for path in envelope.added)
    for header in change.message.headers:
        yield Text(f"  @@ header {header.position + 1} @@", style="dim")
        yield from (_removed(line) for line in (header.before or "").splitlines())
        yield from (_added(line) for line in (header.after or "").splitlines())
    body = change.message.body
    if body is not None:
        yield Text(f"  body: {body.before} -> {body.after} bytes")
        for line in body.lines:
            style = "green" if line.startswith("+") else "red" if line.startswith("-") else "dim"
            yield Text(f"  {safe(line)}", style=style)
        if body.truncated:
            yield Text("  (the diff of the body goes on)", style="dim")
    yield from (Text(f"  ! {safe(warning)}", style="yellow") for warning in change.warnings)
    if not (change.effective or change.would):
        yield Text("  nothing in effect", style="dim")


def _added(line: str) -> Text:
    return Text(f"  + {safe(line)}", style="green")


def _removed(line: str) -> Text:
    return Text(f"  - {safe(line)}", style="red")


def _verdict(result: Result) -> Iterator[Text]:
    line = Text("Verdict: ", style="bold")
    if result.verdict != "accept":
        line.append(result.verdict, style=_STYLES[result.verdict])
        line.append(safe(f" at {result.stage} by {result.milter}"), style="not bold")
        if result.reply is not None:
            line.append(safe(f": {result.reply}"), style="not bold")
        yield line
        return
    if result.quarantine is not None:
        line.append("quarantine", style="yellow")
        yield line.append(safe(f" by {result.milter}: {result.quarantine}"), style="not bold")
        return
    yield line.append("accept", style="green")
    recipients = ", ".join(result.recipients) or "nobody"
    yield Text(safe(f"  would be relayed from {result.sender} to {recipients}"))


def _heard(result: Result) -> Iterator[Text]:
    for heard in result.heard:
        yield Text(safe(f"  client hears {heard.reply} (to {heard.command})"))
    if result.verdict == "accept" and result.quarantine is None and result.recipients:
        yield Text("  client hears what the next hop answers (to the message)")
