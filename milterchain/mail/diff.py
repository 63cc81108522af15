"""What changed between two messages or envelopes, for people and for JSON.

Bytes become text only here: UTF-8, everything else as backslash escapes. Comparing is bounded: of bodies that
are too large only the sizes are told, and header sections that have too little in common are told as removed
and added. Bodies are compared by line, and the result is cut after `MAX_DIFF_LINES`.
"""

import difflib
import itertools
import operator
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from milterchain.mail.body import Body
from milterchain.mail.envelope import Envelope, Path
from milterchain.mail.headers import Header, Headers
from milterchain.mail.message import Message

__all__ = [
    "BodyDiff",
    "EnvelopeDiff",
    "HeaderChange",
    "MessageDiff",
    "PathText",
    "diff_envelopes",
    "diff_messages",
]

MAX_BODY = 2**18
"""Octets of a body whose lines are compared."""
MAX_COMPARED = 500
"""Headers, or lines, that differ at all and are compared with each other: the time may grow with the cube."""
MAX_DIFF_LINES = 200
"""Lines of a body's diff: what a person reads."""

_T = TypeVar("_T", bound=Hashable)
_Opcode: TypeAlias = tuple[str, int, int, int, int]
_BLOCK = 2**16


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderChange:
    """One header that is not as it was.

    Attributes:
        kind: what happened to it.
        position: among all headers, our own counted, from 0: the new position, or the old one if removed.
        name: its name as it is spelled now.
        before: the whole header without its final line end; None if it is new.
        after: the same, None if it is gone.
    """

    kind: Literal["added", "removed", "changed"]
    position: int
    name: str
    before: str | None
    after: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; as people count, and as the text has it, the first position is 1."""
        return {
            "kind": self.kind,
            "position": self.position + 1,
            "name": self.name,
            "before": self.before,
            "after": self.after,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyDiff:
    """A body that was replaced by a different one.

    Attributes:
        before: octets.
        after: octets.
        lines: a unified diff, without line ends; empty if the bodies are too large to be compared.
        truncated: there is more than `lines` says.
    """

    before: int
    after: int
    lines: tuple[str, ...]
    truncated: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "before": self.before,
            "after": self.after,
            "lines": list(self.lines),
            "truncated": self.truncated,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageDiff:
    """What changed in a message.

    Attributes:
        headers: in the order of the message.
        body: None if it is the same.
    """

    headers: tuple[HeaderChange, ...] = ()
    body: BodyDiff | None = None

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(self.headers) or self.body is not None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "headers": [change.to_json() for change in self.headers],
            "body": self.body.to_json() if self.body else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PathText:
    """A sender or recipient: the address in brackets, and its parameters."""

    address: str
    args: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.address, *self.args))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {"address": self.address, "args": list(self.args)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeDiff:
    """What changed in an envelope.

    Attributes:
        sender: the old and the new one; None if it is the same.
        added: new recipients.
        removed: recipients that are gone.
    """

    sender: tuple[PathText, PathText] | None = None
    added: tuple[PathText, ...] = ()
    removed: tuple[PathText, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(self.sender or self.added or self.removed)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        sender = self.sender and {"before": self.sender[0].to_json(), "after": self.sender[1].to_json()}
        return {
            "sender": sender,
            "added": [path.to_json() for path in self.added],
            "removed": [path.to_json() for path in self.removed],
        }


def diff_messages(before: Message, after: Message) -> MessageDiff:
    """Compare two messages.

    Raises:
        ValueError: a body was closed.
        OSError: a body's file cannot be read.
    """
    return MessageDiff(
        headers=tuple(_diff_headers(before.headers, after.headers)),
        body=_diff_bodies(before.body, after.body),
    )


def diff_envelopes(before: Envelope, after: Envelope) -> EnvelopeDiff:
    """Compare two envelopes; a recipient with other parameters is another recipient."""
    old, new = before.recipients, after.recipients
    return EnvelopeDiff(
        sender=None if before.sender == after.sender else (_path(before.sender), _path(after.sender)),
        added=tuple(_path(path) for path in new if path not in set(old)),
        removed=tuple(_path(path) for path in old if path not in set(new)),
    )


def _path(path: Path) -> PathText:
    return PathText(address=_text(path.bracketed), args=tuple(_text(arg) for arg in path.args))


def _opcodes(before: Sequence[_T], after: Sequence[_T]) -> Iterator[_Opcode]:
    """What to do, block by block, but for blocks that are equal."""
    shorter = min(len(before), len(after))
    start = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    rest = shorter - start
    end = next((i for i in range(rest) if before[-1 - i] != after[-1 - i]), rest)
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    if len(old) > MAX_COMPARED or len(new) > MAX_COMPARED:
        yield "replace", start, len(before) - end, start, len(after) - end
        return
    for tag, *places in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            old_start, old_end, new_start, new_end = (start + place for place in places)
            yield tag, old_start, old_end, new_start, new_end


def _diff_headers(before: Headers, after: Headers) -> Iterator[HeaderChange]:
    for _, old_start, old_end, new_start, new_end in _opcodes(tuple(before), tuple(after)):
        # Within a block a header is what became of the next old one of its name.
        old: dict[bytes, deque[int]] = {}
        for position in range(old_start, old_end):
            old.setdefault(before[position].name.lower(), deque()).append(position)
        for position in range(new_start, new_end):
            header = after[position]
            same = old.get(header.name.lower())
            yield from _change(position, before[same.popleft()] if same else None, header)
        for position in sorted(itertools.chain(*old.values())):
            yield from _change(position, before[position], None)


def _change(position: int, old: Header | None, new: Header | None) -> Iterator[HeaderChange]:
    # The place holder of our own header has no bytes: it is not there for anybody who reads this.
    before = old.raw if old else b""
    after = new.raw if new else b""
    if before != after:
        header = new if after else old
        assert header is not None
        yield HeaderChange(
            kind="changed" if before and after else "added" if after else "removed",
            position=position,
            name=_text(header.name),
            before=_text(before[:-2]) if before else None,
            after=_text(after[:-2]) if after else None,
        )


def _diff_bodies(before: Body, after: Body) -> BodyDiff | None:
    if before is after:
        return None
    sizes = len(before), len(after)
    if sizes[0] == sizes[1] and all(map(operator.eq, before.chunks(_BLOCK), after.chunks(_BLOCK))):
        return None
    if max(sizes) > MAX_BODY:
        return BodyDiff(before=sizes[0], after=sizes[1], lines=(), truncated=True)
    lines = list(itertools.islice(_diff_lines(bytes(before), bytes(after)), MAX_DIFF_LINES + 1))
    return BodyDiff(
        before=sizes[0],
        after=sizes[1],
        lines=tuple(lines[:MAX_DIFF_LINES]),
        truncated=len(lines) > MAX_DIFF_LINES,
    )


def _diff_lines(before: bytes, after: bytes) -> Iterator[str]:
    """Each block that differs under a line that says where, as in a unified diff without context."""
    old, new = before.split(b"\r\n"), after.split(b"\r\n")
    for _, old_start, old_end, new_start, new_end in _opcodes(old, new):
        yield f"@@ -{old_start + 1},{old_end - old_start} +{new_start + 1},{new_end - new_start} @@"
        yield from ("-" + _text(line) for line in old[old_start:old_end])
        yield from ("+" + _text(line) for line in new[new_start:new_end])
