"""Compares a message that arrived with the one that a scenario expects."""

import difflib
import re
from collections.abc import Sequence

from milterchain.mail.headers import HeaderLimits, Split, split_message
from milterchain.testing.cases_model import Arrives, TextLine, select
from milterchain.testing.cases_mta import Arrival

__all__ = ["GENERATED", "differences"]

GENERATED = frozenset([b"received", b"return-path", b"date", b"message-id", b"from", b"to"])
"""Headers that MTAs add to messages without them: left out where the expected text has none of that name."""

_CONTEXT = 3
_SHOWN = 4000
"""Characters of a difference that are shown."""


def differences(expected: Arrives, names: frozenset[str], arrival: Arrival, hostname: str) -> list[str]:
    """What is not as it should be, in words; empty if all is well.

    Args:
        expected: what should have arrived.
        names: those of the MTA, for what is not the same for all.
        arrival: what did arrive.
        hostname: what the MTA calls itself in the Received header that it adds.
    """
    found = []
    senders = select(expected.senders, names)
    if senders and not _same_path(senders[-1], arrival.sender):
        found.append(f"sender {_text(arrival.sender)}, expected {_text(senders[-1])}")
    recipients = select(expected.recipients, names)
    if recipients and not _same_paths(recipients, arrival.recipients):
        ours = ", ".join(map(_text, sorted(recipients)))
        theirs = ", ".join(map(_text, sorted(arrival.recipients)))
        found.append(f"recipients {theirs}; expected {ours}")
    headers = _headers(arrival.content)
    for has in select(expected.has, names):
        values = [value for name, value in headers if name.lower() == has.name.lower()]
        if not any(has.value.matches(value) for value in values):
            others = "; there is " + ", ".join(map(_text, values)) if values else ""
            found.append(f"no header {_text(has.name)}: {has.value}{others}")
    there = {name.lower() for name, _ in headers}
    lacks = select(expected.lacks, names)
    found += [f"there is a header {_text(name)}" for name in lacks if name.lower() in there]
    if text := select(expected.text, names):
        found += _text_differences(text, arrival.content, hostname)
    return found


_LIMITS = HeaderLimits(total=64 << 20, single=64 << 20, count=1 << 20)
"""What arrived is to be compared whatever its size; it was small enough for the MTA."""


def _split(content: bytes) -> Split:
    return split_message(content, _LIMITS)


def _headers(content: bytes) -> list[tuple[bytes, bytes]]:
    return [(header.name, header.value.removeprefix(b" ")) for header in _split(content).headers]


def _text_differences(expected: Sequence[TextLine], content: bytes, hostname: str) -> list[str]:
    lines = []
    for line in expected:
        lines += [_OWN if line.text is None else line.text] * line.times
    block = lines[: lines.index(b"")] if b"" in lines else lines
    named = {line.partition(b":")[0].lower() for line in block} - {_OWN}
    arrived = _comparable(content, hostname, named, own=_OWN in block)
    if lines == arrived:
        return []
    shown = "\n".join(
        difflib.unified_diff(
            [_text(line) for line in lines],
            [_text(line) for line in arrived],
            "expected",
            "arrived",
            n=_CONTEXT,
            lineterm="",
        )
    )
    return ["another message:\n" + shown[:_SHOWN]]


_OWN = b"\0received"
"""Stands for the MTA's own Received header; no line of a message begins so."""


def _comparable(content: bytes, hostname: str, named: set[bytes], *, own: bool) -> list[bytes]:
    """The lines of a message without what an MTA adds to each."""
    headers, _, body = _split(content)
    by_host = re.compile(rb"\bby %b\b" % re.escape(hostname.encode()))
    kept: list[bytes] = []
    found = False
    for header in headers:
        name = header.name.lower()
        if name == b"received" and not found and by_host.search(header.raw):
            found = True
            kept += [_OWN] if own else []
        elif name in named or name not in GENERATED:
            kept += header.raw.removesuffix(b"\r\n").split(b"\r\n")
    if not body:
        return [*kept, b""]
    return [*kept, b"", *body.removesuffix(b"\r\n").split(b"\r\n")]


def _same_path(expected: bytes, actual: bytes) -> bool:
    """Whether the address is the same, and the parameters that are expected are there."""
    address, *parameters = expected.split()
    got, *others = actual.split() or [b""]
    return address == got and {p.upper() for p in parameters} <= {p.upper() for p in others}


def _same_paths(expected: Sequence[bytes], actual: Sequence[bytes]) -> bool:
    left = list(actual)
    for path in expected:
        found = next((other for other in left if _same_path(path, other)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
