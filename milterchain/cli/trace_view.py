"""What a trace found, for people and as JSON."""

import json
from collections.abc import Iterator, Sequence
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

SilenceReason: TypeAlias = Literal[
    "not asked", "no answer wanted", "accepted before", "failed before", "already decided"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One milter's answer at one stage.

    Attributes:
        stage: `open`, `connect`, … `message`.
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
            answer), `accepted before` (the connection or the message), `failed before` (its default action
            stands), or `already decided` (by another one, so that nobody waited for this one).
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
    """

    milter: str
    envelope: EnvelopeDiff
    message: MessageDiff
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "milter": self.milter,
            "envelope": self.envelope.to_json(),
            "message": self.message.to_json(),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was sent through the chain, and who pretended to send it.

    Attributes:
        size: octets of the message, with CRLF as line ends.
    """

    client: str
    helo: str
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
            "milters": [{"name": name, "seconds": self.seconds(name)} for name in self.milters],
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
    for line in _request(result.request):
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
    yield Text(safe(f"Client: {request.client}, EHLO {request.helo}; queue id {request.queue_id}"))


def _answers(out: Console, result: Result) -> Table:
    """A row for each stage and milter, and the time of each milter at the end."""
    rows = table(out, "Stage", "Milter", "Answer", "Time")
    rows.columns[-1].justify = "right"
    for stage, recipient in result.stages:
        events = [event for event in result.events if (event.stage, event.recipient) == (stage, recipient)]
        silent = [each for each in result.silences if (each.stage, each.recipient) == (stage, recipient)]
        title = stage if recipient is None else f"{stage} <{recipient}>"
        reasons = {each.reason for each in silent}
        if len(silent) == len(result.milters) and len(reasons) <= 1:
            _add(out, rows, title, [("", _silence(*reasons or {"not asked"}), Text())])
            continue
        answers = [(event.milter, *_answer(event)) for event in events]
        answers += [(each.milter, _silence(each.reason), Text()) for each in silent]
        answers.sort(key=lambda answer: result.milters.index(answer[0]))
        _add(out, rows, title, answers)
    answered = {event.milter for event in result.events if event.seconds is not None}
    totals = [(name, Text(), _time(result.seconds(name))) for name in result.milters if name in answered]
    _add(out, rows, "total", totals)
    return rows


def _add(out: Console, rows: Table, title: str, answers: Sequence[tuple[str, Text, Text]]) -> None:
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
    return answer, Text() if event.seconds is None else _time(event.seconds)


def _silence(reason: str) -> Text:
    return Text(reason, style="dim")


def _time(seconds: float) -> Text:
    return Text(f"{seconds * 1000:.1f} ms")


def _change(change: Change) -> Iterator[Text]:
    yield Text(f"Changes by {safe(change.milter)}", style="bold")
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
    if not (envelope or change.message or change.warnings):
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
