"""What a trace found, for people and as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from milterchain.cli.output import safe, table
from milterchain.mail.diff import EnvelopeDiff, MessageDiff

__all__ = ["Change", "Event", "Result", "show", "show_json"]

_STYLES = {
    "accept": "green",
    "continue": "green",
    "discard": "yellow",
    "tempfail": "yellow",
    "reject": "red",
    "shutdown": "red",
}


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
class Change:
    """What one milter changed.

    Attributes:
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
class Result:
    """The whole trace.

    Attributes:
        verdict: `accept`, `reject`, `tempfail`, `discard` or `shutdown`.
        stage: where it was given.
        milter: who gave it; None for `accept`.
        reply: the text for the client.
        quarantine: why the message is to be held; None if it is not.
        sender: of the message as it would be relayed.
        recipients: likewise.
    """

    events: tuple[Event, ...]
    changes: tuple[Change, ...]
    verdict: str
    stage: str
    milter: str | None
    reply: str | None
    quarantine: str | None
    sender: str
    recipients: tuple[str, ...]

    @property
    def faults(self) -> tuple[Event, ...]:
        """The failures among the events."""
        return tuple(event for event in self.events if event.error is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "events": [asdict(event) for event in self.events],
            "changes": [change.to_json() for change in self.changes],
            "verdict": {
                "verdict": self.verdict,
                "stage": self.stage,
                "milter": self.milter,
                "reply": self.reply,
                "quarantine": self.quarantine,
            },
            "envelope": {"sender": self.sender, "recipients": list(self.recipients)},
        }


def show_json(out: Console, result: Result) -> None:
    """Print one JSON object."""
    out.print(json.dumps(result.to_json(), indent=2), soft_wrap=True)


def show(out: Console, result: Result) -> None:
    """Print the answers, the changes, the verdict."""
    rows = table(out, "Stage", "Milter", "Answer", "Time")
    previous: tuple[str, str | None] = ("", None)
    for event in result.events:
        stage = (event.stage, event.recipient)
        rows.add_row(_stage(event) if stage != previous or not out.is_terminal else "", *_answer(event))
        previous = stage
    out.print(rows)
    for change in result.changes:
        out.print()
        for line in _change(change):
            out.print(line, soft_wrap=True)
    out.print()
    for line in _verdict(result):
        out.print(line, soft_wrap=True)


def _stage(event: Event) -> Text:
    return Text(safe(f"{event.stage} <{event.recipient}>" if event.recipient is not None else event.stage))


def _answer(event: Event) -> tuple[Text, Text, Text]:
    answer = Text(event.verdict, style=_STYLES.get(event.verdict, ""))
    if event.error is not None:
        answer = Text(safe(f"failed: {event.error} (so: {event.reply or event.verdict})"), style="red")
    elif event.reply is not None:
        answer.append(safe(f": {event.reply}"), style="default")
    time = "" if event.seconds is None else f"{event.seconds * 1000:.1f} ms"
    return Text(safe(event.milter)), answer, Text(time)


def _change(change: Change) -> Iterator[Text]:
    yield Text(f"Changes by {safe(change.milter)}", style="bold")
    envelope = change.envelope
    if envelope.sender is not None:
        yield _removed(f"sender {envelope.sender[0]}")
        yield _added(f"sender {envelope.sender[1]}")
    yield from (_removed(f"recipient {path}") for path in envelope.removed)
    yield from (_added(f"recipient {path}") for path in envelope.added)
    for header in change.message.headers:
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
