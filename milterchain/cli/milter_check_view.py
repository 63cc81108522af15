"""What milter-check found, for people and as JSON, and as an exit code."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from milterchain.cli.options_in_words import flag_names, in_words
from milterchain.cli.output import Cell, print_rows, safe
from milterchain.milter.answers import Answer, MessageAnswer
from milterchain.milter.flags import Stage
from milterchain.milter.messages import Discard, Modification, ReplaceBody, Shutdown
from milterchain.milter.negotiation import Negotiated

__all__ = ["EXIT_CODES", "Event", "MessageResult", "Result", "show", "show_json"]

EXIT_CODES: Final[Mapping[str, int]] = {
    "accept": 0,
    "discard": 3,
    "tempfail": 4,
    "shutdown": 4,
    "reject": 5,
    "quarantine": 6,
}
"""By verdict; 1 is a milter that failed, 2 a mistake in the options."""

_FAILED: Final = 1
_COLUMNS: Final = ("Message", "Event", "Argument", "Time", "Answer")
_STYLES: Final = {"accept": "green", "reject": "red", "shutdown": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What was sent, and what came back.

    Attributes:
        message: the number of the message that it belongs to, from 1; None before the first.
        stage: `open`, `connect`, `helo`, `unknown`, `mail`, `rcpt`, `data`, `headers`, `end of headers`,
            `body`, `message`, `abort`, `new session`.
        argument: what the event says: a name, an address, how many headers.
        answer: None for what is never answered.
        silence: why there is none where there might be one; None if the milter answered.
        seconds: until it came.
    """

    message: int | None
    stage: str
    argument: str
    answer: Answer | None
    silence: str | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        answer = self.answer
        return {
            "message": self.message,
            "stage": self.stage,
            "argument": self.argument,
            "asked": answer is not None and answer.asked,
            "answer": None if answer is None or not answer.asked else str(answer),
            "silence": self.silence,
            "smtp": None if answer is None else _heard(answer),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageResult:
    """What came of one message.

    Attributes:
        source: its file as given.
        answer: the one that decided.
        refused: the recipients that were refused.
    """

    source: str
    answer: Answer
    refused: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One of `EXIT_CODES`."""
        answer = self.answer
        refusal = answer.refusal
        if isinstance(answer.reply, Shutdown):
            return "shutdown"
        if refusal is not None:
            return "tempfail" if refusal.code < 500 else "reject"
        if isinstance(answer.reply, Discard):
            return "discard"
        return "accept" if self.quarantine is None else "quarantine"

    @property
    def quarantine(self) -> str | None:
        """The reason for which the message would be held."""
        reason = self.answer.quarantine if isinstance(self.answer, MessageAnswer) else None
        return None if reason is None else _text(reason)

    @property
    def modifications(self) -> tuple[Modification, ...]:
        """In order."""
        return self.answer.modifications if isinstance(self.answer, MessageAnswer) else ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "source": self.source,
            "verdict": self.verdict,
            "stage": self.answer.event.name.lower(),
            "smtp": _heard(self.answer),
            "refused_recipients": list(self.refused),
            "quarantine": self.quarantine,
            "modifications": _modifications(self.modifications),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All of it.

    Attributes:
        milter: its address.
        negotiated: what was agreed on; None if nothing was.
        unsent: names of macros that were given and are not sent with any event.
        failure: why the milter is of no use; None if it worked.
    """

    milter: str
    negotiated: Negotiated | None
    events: tuple[Event, ...]
    messages: tuple[MessageResult, ...]
    unsent: tuple[str, ...]
    failure: str | None

    @property
    def exit_code(self) -> int:
        """1 after a failure, else that of the first message that does not just pass."""
        if self.failure is not None:
            return _FAILED
        return next(filter(None, [EXIT_CODES[message.verdict] for message in self.messages]), 0)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "milter": self.milter,
            "negotiated": None if self.negotiated is None else _negotiated(self.negotiated),
            "events": [event.to_json() for event in self.events],
            "messages": [message.to_json() for message in self.messages],
            "macros_not_sent": list(self.unsent),
            "failure": self.failure,
            "exit_code": self.exit_code,
        }


def show_json(out: Console, result: Result) -> None:
    """Print one JSON object."""
    out.print(json.dumps(result.to_json(), indent=2), soft_wrap=True)


def show(out: Console, result: Result) -> None:
    """Print what was agreed on, the answers, what became of each message."""
    negotiated = result.negotiated
    if negotiated is not None:
        words = in_words(negotiated.actions, negotiated.protocol)
        _print(out, f"{result.milter}: version {negotiated.version}, {negotiated.max_data} bytes; {words}")
        for stage, names in negotiated.macros.items():
            wanted = " ".join(map(_text, names)) or "nothing"
            _print(out, f"  asks for macros at {_stage(stage)}: {wanted}")
        if result.unsent:
            _print(out, f"  macros that go with no event: {' '.join(result.unsent)} (see --macros-at)")
        out.print()
        print_rows(
            out, ("Message", "Event", "Argument", "Time", "Answer"), [_cells(each) for each in result.events]
        )
    for number, message in enumerate(result.messages, start=1):
        out.print()
        for line in _message(number, message):
            out.print(line, soft_wrap=True)
    if result.failure is not None:
        out.print(Text(safe(f"Failed: {result.failure}"), style="bold red"), soft_wrap=True)


def _print(out: Console, line: str) -> None:
    out.print(Text(safe(line)), soft_wrap=True)


def _cells(event: Event) -> list[Cell]:
    answer = event.answer
    if answer is None:
        shown = Text()
    elif event.silence is not None:
        shown = Text(event.silence, style="dim")
    else:
        shown = Text(safe(str(answer)))
    time = "" if answer is None and event.stage != "open" else f"{event.seconds * 1000:.1f} ms"
    number = "" if event.message is None else str(event.message)
    return [number, event.stage, Text(safe(event.argument)), time, shown]


def _message(number: int, message: MessageResult) -> Iterator[Text]:
    verdict = message.verdict
    line = Text.assemble(
        safe(f"Message {number} ({message.source}): "), (verdict, _STYLES.get(verdict, "yellow"))
    )
    if verdict not in {"accept", "quarantine"}:
        line.append(f" at {message.answer.event.name.lower().replace('_', ' ')}")
    if message.quarantine is not None:
        line.append(safe(f": {message.quarantine}"))
    yield line
    heard = _heard(message.answer)
    if heard is not None:
        yield Text(safe(f"  client hears {heard}"))
    yield from (Text(safe(f"  recipient refused: {recipient}")) for recipient in message.refused)
    void = verdict in {"reject", "tempfail", "discard", "shutdown"}
    for is_body, edits in groupby(message.modifications, key=lambda edit: isinstance(edit, ReplaceBody)):
        group = list(edits)
        shown = [f"replace_body bytes={_size(group)}"] if is_body else map(str, group)
        yield from (Text(safe(f"  {line}{' (void)' if void else ''}")) for line in shown)


def _heard(answer: Answer) -> str | None:
    """What the client is told, each line after the other."""
    smtp = answer.smtp
    return None if smtp is None else _text(smtp).rstrip("\r\n").replace("\r\n", " / ")


def _size(pieces: Sequence[Modification]) -> int:
    return sum(len(piece.chunk) for piece in pieces if isinstance(piece, ReplaceBody))


def _modifications(edits: Sequence[Modification]) -> list[dict[str, Any]]:
    """Each as its kind and its parts; the pieces of a new body are one."""
    listed: list[dict[str, Any]] = []
    for is_body, group in groupby(edits, key=lambda edit: isinstance(edit, ReplaceBody)):
        if is_body:
            body = b"".join([edit.chunk for edit in group if isinstance(edit, ReplaceBody)])
            listed.append({"kind": "replace_body", "bytes": len(body), "body": _text(body)})
            continue
        for edit in group:
            parts = {part.name: getattr(edit, part.name) for part in fields(edit)}
            shown = {
                name: _text(value) if isinstance(value, bytes) else value for name, value in parts.items()
            }
            listed.append({"kind": edit.code.name.lower(), **shown})
    return listed


def _negotiated(negotiated: Negotiated) -> dict[str, Any]:
    return {
        "version": negotiated.version,
        "actions": flag_names(negotiated.actions),
        "protocol": flag_names(negotiated.protocol),
        "data_size": negotiated.max_data,
        "macros": {_stage(stage): list(map(_text, names)) for stage, names in negotiated.macros.items()},
    }


def _stage(stage: int) -> str:
    return stage.name.lower().replace("_", " ") if isinstance(stage, Stage) else str(stage)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
