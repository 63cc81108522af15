"""Reads scenario files; strict, and every mistake is told with file and line."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from milterchain.testing.cases_model import (
    EVERYWHERE,
    Action,
    Arrives,
    Case,
    CaseFilter,
    Closed,
    Command,
    Connect,
    Content,
    Decision,
    Drop,
    ExpectedReply,
    HasHeader,
    Option,
    Selected,
    Selector,
    StartTls,
    Step,
    TextLine,
)
from milterchain.testing.cases_text import Line, LineError, byte_text, line_of, pattern, plain_text, selector

__all__ = ["MAX_CONTENT", "CaseSyntaxError", "load", "parse"]

A = TypeVar("A")
S = TypeVar("S", bound=Sequence[object])

MAX_CONTENT = 64 * 1024 * 1024
"""Bytes of one message, with its repeated lines: more than MTAs take, and little enough for memory."""

_TAG = re.compile(r"[a-z][a-z0-9-]*")
_REPLY = re.compile(r"([2-5]\d\d|[2-5]xx)(?:([- ])(.+))?", re.DOTALL)
_HEADER = re.compile(r"([!-9;-~]+):(?: (.+))?", re.DOTALL)


class CaseSyntaxError(ValueError):
    """A scenario file that cannot be read; its text is `FILE:LINE: REASON`.

    Attributes:
        path: of the file.
        line: from 1.
        reason: what is wrong.
    """

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason


def load(path: str | Path, *, mtas: Collection[str] | None = None) -> tuple[Case, ...]:
    """Read a scenario file.

    Args:
        path: of the file.
        mtas: see `parse`.

    Raises:
        CaseSyntaxError: it has a mistake.
        OSError: it cannot be read.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CaseSyntaxError(path, line, "this is not UTF-8") from None
    return parse(text, path, mtas=mtas)


def parse(text: str, path: str | Path = "<text>", *, mtas: Collection[str] | None = None) -> tuple[Case, ...]:
    """Read the text of a scenario file.

    Args:
        text: lines that end in LF.
        path: what error texts call it.
        mtas: all names of MTAs that lines may be meant for; None allows every name.

    Raises:
        CaseSyntaxError: it has a mistake.
    """
    reader = _Reader(Path(path), mtas)
    number = 0
    for number, line_text in enumerate(text.split("\n"), 1):
        try:
            if (line := line_of(number, line_text)) is not None:
                reader.take(line)
        except LineError as error:
            raise CaseSyntaxError(reader.path, number, str(error)) from None
    try:
        return reader.finish()
    except LineError as error:
        raise CaseSyntaxError(reader.path, number, str(error)) from None


@dataclass(slots=True)
class _Draft:
    """The scenario that is being read."""

    name: str
    line: int
    mtas: Selector | None = None
    needs: frozenset[str] | None = None
    filter: CaseFilter | None = None
    steps: list[Step] = field(default_factory=list)


class _Reader:
    def __init__(self, path: Path, mtas: Collection[str] | None) -> None:
        self.path = path
        self._mtas = mtas
        self._cases: list[Case] = []
        self._draft: _Draft | None = None
        self._previous = ""
        self._size = 0
        step = self._in_step
        self._take: dict[str, Callable[[Line], None]] = {
            "case": self._case,
            "on": self._on,
            "needs": self._needs,
            "filter": self._filter,
            "option": self._option,
            "connect": lambda line: self._step(line, _bare(line, Connect())),
            ">": lambda line: self._step(line, Command(_required(byte_text(line.rest), "a command"))),
            "tls": lambda line: self._step(line, StartTls(plain_text(line.rest))),
            "drop": lambda line: self._step(line, _bare(line, Drop())),
            "closed": lambda line: self._step(line, _bare(line, Closed())),
            "|": self._text,
            "<": step(self._reply),
            "=": step(self._decision),
            "arrives": step(self._arrives),
            "from": self._in_block(lambda block, line: replace(block, senders=(*block.senders, _path(line)))),
            "to": self._in_block(
                lambda block, line: replace(block, recipients=(*block.recipients, _path(line)))
            ),
            "has": self._in_block(lambda block, line: replace(block, has=(*block.has, _has(line)))),
            "lacks": self._in_block(lambda block, line: replace(block, lacks=(*block.lacks, _lacks(line)))),
            "received": self._in_block(_received),
        }

    def take(self, line: Line) -> None:
        """Read the next line."""
        if line.keyword != "case" and self._draft is None:
            raise LineError("a scenario begins with: case NAME")
        if line.selector != EVERYWHERE and line.keyword not in _SELECTABLE:
            raise LineError(f"{line.keyword!r} takes no names of MTAs")
        self._check(line.selector)
        self._take[line.keyword](line)
        self._previous = line.keyword

    def finish(self) -> tuple[Case, ...]:
        """The scenarios, when all lines were read."""
        draft = self._draft
        if draft is not None:
            if not draft.steps:
                raise LineError(f"scenario {draft.name!r} has no steps")
            self._cases.append(
                Case(
                    name=draft.name,
                    path=self.path,
                    line=draft.line,
                    steps=tuple(draft.steps),
                    mtas=draft.mtas or EVERYWHERE,
                    needs=draft.needs or frozenset(),
                    filter=draft.filter,
                )
            )
            self._draft = None
        return tuple(self._cases)

    def _case(self, line: Line) -> None:
        name = _required(plain_text(line.rest), "the name of the scenario")
        self.finish()
        if any(case.name == name for case in self._cases):
            raise LineError(f"scenario {name!r} is in this file already")
        self._draft = _Draft(name, line.number)

    def _head(self, keyword: str) -> _Draft:
        draft = self._open()
        if draft.steps:
            raise LineError(f"{keyword!r} belongs above the first step")
        return draft

    def _open(self) -> _Draft:
        assert self._draft is not None  # take() saw to it
        return self._draft

    def _on(self, line: Line) -> None:
        draft = self._head("on")
        if draft.mtas is not None:
            raise LineError("'on' is there twice")
        draft.mtas = selector(line.rest)
        self._check(draft.mtas)

    def _check(self, meant: Selector) -> None:
        # A line for an MTA that does not exist would never be looked at.
        if self._mtas is None:
            return
        for name in sorted(meant.wanted | meant.unwanted):
            if name not in self._mtas:
                raise LineError(f"no MTA is called {name!r}; there are: {', '.join(sorted(self._mtas))}")

    def _needs(self, line: Line) -> None:
        draft = self._head("needs")
        if draft.needs is not None:
            raise LineError("'needs' is there twice")
        words = line.rest.split()
        for word in words:
            if not _TAG.fullmatch(word):
                raise LineError(f"{word!r} is no tag")
        draft.needs = frozenset(_required(words, "a tag"))

    def _filter(self, line: Line) -> None:
        draft = self._head("filter")
        if draft.filter is not None:
            raise LineError("'filter' is there twice")
        if not _TAG.fullmatch(line.rest):
            raise LineError("a filter is named with small letters, digits and dashes")
        draft.filter = CaseFilter(line.rest)

    def _option(self, line: Line) -> None:
        draft = self._open()
        if self._previous not in ("filter", "option") or draft.filter is None:
            raise LineError("an indented line belongs below 'filter'")
        option = Option(line.key, plain_text(line.rest))
        draft.filter = replace(draft.filter, options=(*draft.filter.options, option))

    def _step(self, line: Line, action: Action) -> None:
        draft = self._open()
        if not draft.steps and not isinstance(action, Connect):
            raise LineError("the first step is: connect")
        draft.steps.append(Step(line=line.number, action=action))

    def _in_step(self, change: Callable[[Step, Line], Step]) -> Callable[[Line], None]:
        """What takes a line that says what is expected of the last step."""

        def take(line: Line) -> None:
            steps = self._open().steps
            if not steps:
                raise LineError(f"{line.keyword!r} belongs below a step")
            if isinstance(steps[-1].action, StartTls | Drop | Closed):
                raise LineError("this step has no reply")
            steps[-1] = change(steps[-1], line)

        return take

    def _in_block(self, change: Callable[[Arrives, Line], Arrives]) -> Callable[[Line], None]:
        """What takes a line of an `arrives` block."""

        def take(line: Line) -> None:
            steps = self._open().steps
            if not steps or not steps[-1].arrives:
                raise LineError(f"{line.keyword!r} belongs below 'arrives'")
            *others, block = steps[-1].arrives
            steps[-1] = replace(steps[-1], arrives=(*others, change(block, line)))

        return take

    def _reply(self, step: Step, line: Line) -> Step:
        found = _REPLY.fullmatch(line.rest)
        if found is None or (found[2] == "-") > (found[3] is not None):
            raise LineError("a reply is a code (250, or 2xx), perhaps a blank or a dash, and a text")
        if step.decisions or step.arrives:
            raise LineError("the reply comes before what is decided and what arrives")
        expected = ExpectedReply(found[1], found[2] == "-", None if found[3] is None else pattern(found[3]))
        return replace(step, replies=(*step.replies, Selected(expected, line.selector)))

    def _decision(self, step: Step, line: Line) -> Step:
        try:
            decision = Decision(line.rest)
        except ValueError:
            raise LineError(f"a decision is one of: {', '.join(Decision)}") from None
        if step.arrives:
            raise LineError("the decision comes before what arrives")
        return replace(step, decisions=(*step.decisions, Selected(decision, line.selector)))

    def _arrives(self, step: Step, line: Line) -> Step:
        _bare(line, None)
        if not isinstance(step.action, Content):
            raise LineError("'arrives' belongs below a message")
        block = Arrives(line=line.number, selector=line.selector)
        return replace(step, arrives=(*step.arrives, block))

    def _text(self, line: Line) -> None:
        """A line of the message that is sent, or of the one that must arrive."""
        steps = self._open().steps
        text = TextLine(byte_text(line.rest), 1 if line.times is None else line.times)
        if steps and steps[-1].arrives:
            *others, block = steps[-1].arrives
            block = replace(block, text=(*block.text, Selected(text, line.selector)))
            self._count(text, first=len(block.text) == 1)
            steps[-1] = replace(steps[-1], arrives=(*others, block))
            return
        if line.selector != EVERYWHERE:
            raise LineError("the same message is sent to every MTA")
        step = steps[-1] if steps else None
        if step is not None and isinstance(step.action, Content) and self._previous == "|":
            self._count(text, first=False)
            steps[-1] = replace(step, action=Content((*step.action.lines, text)))
        elif step is not None and isinstance(step.action, Command) and step.action.verb == b"DATA":
            self._count(text, first=True)
            steps.append(Step(line=line.number, action=Content((text,))))
        else:
            raise LineError("a message belongs below DATA or 'arrives'")

    def _count(self, text: TextLine, *, first: bool) -> None:
        size = (len(text.text or b"") + 2) * text.times
        self._size = size + (0 if first else self._size)
        if self._size > MAX_CONTENT:
            raise LineError(f"the message has more than {MAX_CONTENT} bytes")


_SELECTABLE = frozenset(["<", "=", "|", "arrives", "from", "to", "has", "lacks", "received"])


def _bare(line: Line, action: A) -> A:
    if line.rest:
        raise LineError(f"nothing belongs behind {line.keyword!r}")
    return action


def _required(value: S, what: str) -> S:
    if not value:
        raise LineError(f"{what} is missing")
    return value


def _path(line: Line) -> Selected[bytes]:
    return Selected(_required(byte_text(line.rest), "a path"), line.selector)


def _has(line: Line) -> Selected[HasHeader]:
    found = _HEADER.fullmatch(line.rest)
    if found is None:
        raise LineError("a header is NAME: VALUE")
    return Selected(HasHeader(found[1].encode(), pattern(found[2] or "")), line.selector)


def _lacks(line: Line) -> Selected[bytes]:
    return Selected(_required(byte_text(line.rest), "the name of a header"), line.selector)


def _received(block: Arrives, line: Line) -> Arrives:
    _bare(line, None)
    return replace(block, text=(*block.text, Selected(TextLine(None), line.selector)))
