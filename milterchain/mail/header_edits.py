"""From what headers were and what they shall be to the fewest modifications that make it so.

`header_edits` is the other direction of `edits.apply_edits`. A header whose value changed is changed in its
place, and what else differs is deleted, inserted or added. Changes and deletions come first, from the last
header to the first, so that no index depends on what was done before.

Sendmail differs from Postfix in more than how it counts. It puts an added header before the first one of its
name, so a second one is inserted at the end. For insertion it counts in a list of its own, with headers in it
that no filter sees: it does as told only above the first header and below the last one, and elsewhere errs
towards the top. With `keep_order` the headers around an insertion in the middle are therefore deleted and
inserted anew, at an end, where their order is certain. (All but a first Date, From or Message-Id, which stand
where Sendmail would have put its own.)
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from milterchain.mail.edits import HeaderIndex
from milterchain.milter.messages import AddHeader, ChangeHeader, InsertHeader

__all__ = ["HeaderEdit", "header_edits"]

HeaderEdit: TypeAlias = AddHeader | InsertHeader | ChangeHeader

MAX_COST = 256
"""Modifications up to which the fewest are looked for: the time grows with the square."""
TOP = 1
"""Where a milter inserts above the client's headers: below the Received header that the MTA puts on top."""
END = 2**31 - 1
"""A position beyond all headers: the largest that C programs hold in a signed number."""

OWN = b"received"
"""The header that each MTA has, whether milters see one or not."""
GENERATED = frozenset({b"date", b"from", b"message-id"})
"""Headers that Sendmail makes if there are none, unless they are added; inserted ones it does not notice."""

_Row: TypeAlias = tuple[bytes, bytes]
_Pairs: TypeAlias = list[tuple[int, int]]


class _Rows(NamedTuple):
    """The headers before and after."""

    before: Sequence[_Row]
    after: Sequence[_Row]

    def same(self, old: int, new: int) -> bool:
        return self.before[old] == self.after[new]

    def can_become(self, old: int, new: int) -> bool:
        """Whether one can be made from the other in its place: an empty value would delete it."""
        name, value = self.after[new]
        return value != b"" and self.before[old][0].lower() == name.lower()


def header_edits(
    before: Iterable[_Row],
    after: Iterable[_Row],
    *,
    header_index: HeaderIndex = "postfix",
    keep_order: bool = False,
) -> list[HeaderEdit]:
    """The modifications that make one list of headers another.

    Beyond `MAX_COST` modifications they are still right, but perhaps not the fewest.

    Args:
        before: name and value of each header as the MTA gave them.
        after: what they shall be; values are in the same form, with or without the blank after the colon.
        header_index: whose way of counting and of adding the MTA has.
        keep_order: whether the order must be right on Sendmail. With `postfix` it always is.

    Raises:
        LocalProtocolError: a name or value has a NUL.
    """
    rows = _Rows(list(before), list(after))
    if rows.before == rows.after:
        return []
    pairs = _align(rows)
    sendmail = header_index == "sendmail"
    if sendmail and keep_order:
        pairs = _in_one_run(rows, pairs)
    fresh = _first_of_their_name(rows) if sendmail else range(len(rows.after))
    edits: list[HeaderEdit] = list(_changes(rows, pairs))
    for new, position in _insertions(pairs, stable=sendmail):
        row = rows.after[new]
        added = sendmail and new in fresh and row[0].lower() in GENERATED
        edits.append(AddHeader(*row) if added else InsertHeader(position, *row))
    for new in range(pairs[-1][1] + 1 if pairs else 0, len(rows.after)):
        row = rows.after[new]
        edits.append(AddHeader(*row) if new in fresh else InsertHeader(END, *row))
    return edits


def _first_of_their_name(rows: _Rows) -> Container[int]:
    """Those afterwards that are the first of a name that was not there before."""
    there = {name.lower() for name, _ in rows.before} | {OWN}
    first: dict[bytes, int] = {}
    for new, (name, _) in enumerate(rows.after):
        first.setdefault(name.lower(), new)
    return {new for name, new in first.items() if name not in there}


def _changes(rows: _Rows, pairs: _Pairs) -> Iterator[ChangeHeader]:
    """What becomes of the headers that are there, from the last to the first."""
    seen: Counter[bytes] = Counter()
    ordinals = []
    for name, _ in rows.before:
        seen[name.lower()] += 1
        ordinals.append(seen[name.lower()])
    becomes = dict(pairs)
    for old in range(len(rows.before) - 1, -1, -1):
        new = becomes.get(old)
        if new is None:
            yield ChangeHeader(ordinals[old], rows.before[old][0], b"")
        elif not rows.same(old, new):
            yield ChangeHeader(ordinals[old], *rows.after[new])


def _insertions(pairs: _Pairs, *, stable: bool) -> Iterator[tuple[int, int]]:
    """What is new above the last header that is kept, and its position, from the last to the first.

    Headers that were deleted count for the position if they are `stable`.
    """
    for kept in range(len(pairs) - 1, -1, -1):
        old, new = pairs[kept - 1] if kept else (-1, -1)
        for between in range(pairs[kept][1] - 1, new, -1):
            yield between, TOP + (old + 1 if stable else kept)


def _align(rows: _Rows) -> _Pairs:
    """Which header becomes which; the others are deleted or inserted."""
    before, after = rows
    shorter = min(len(before), len(after))
    start = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    rest = shorter - start
    end = next((i for i in range(rest) if before[-1 - i] != after[-1 - i]), rest)
    middle = _Rows(before[start : len(before) - end], after[start : len(after) - end])
    pairs = _fewest(middle)
    if pairs is None:
        pairs = _quickly(middle)
    return [
        *((i, i) for i in range(start)),
        *((start + old, start + new) for old, new in pairs),
        *((len(before) - i, len(after) - i) for i in range(end, 0, -1)),
    ]


def _fewest(rows: _Rows) -> _Pairs | None:
    """The alignment of least cost, None beyond MAX_COST (Ukkonen 1985).

    A diagonal is the difference of the two indices. For each cost and diagonal the furthest point is kept;
    it is never worse than an earlier one, because leaving out a header on both sides costs nothing more.
    """
    old_size, new_size = len(rows.before), len(rows.after)
    history: list[dict[int, int]] = []
    reached = {0: _slide(rows, 0, 0)}
    while reached.get(new_size - old_size) != old_size:
        history.append(reached)
        cost = len(history)
        if cost > MAX_COST:
            return None
        reached = {}
        for diagonal in range(max(-cost, -old_size), min(cost, new_size) + 1):
            old = max((place for place, _ in _steps(rows, history[-1], diagonal)), default=-1)
            if old >= 0:
                reached[diagonal] = _slide(rows, old, diagonal)
    return _trace(rows, [*history, reached])


def _steps(rows: _Rows, reached: dict[int, int], diagonal: int) -> Iterator[tuple[int, int]]:
    """Where one more modification leads to on a diagonal, and from which one."""
    old_size, new_size = len(rows.before), len(rows.after)
    old = reached.get(diagonal)
    if (
        old is not None
        and old < old_size
        and old + diagonal < new_size
        and rows.can_become(old, old + diagonal)
    ):
        yield old + 1, diagonal
    old = reached.get(diagonal - 1)
    if old is not None and old + diagonal <= new_size:
        yield old, diagonal - 1
    old = reached.get(diagonal + 1)
    if old is not None and old < old_size:
        yield old + 1, diagonal + 1


def _slide(rows: _Rows, old: int, diagonal: int) -> int:
    """Pass over what stays the same."""
    old_size, new_size = len(rows.before), len(rows.after)
    while old < old_size and old + diagonal < new_size and rows.same(old, old + diagonal):
        old += 1
    return old


def _trace(rows: _Rows, history: list[dict[int, int]]) -> _Pairs:
    """The way back from the end."""
    pairs = []
    old = len(rows.before)
    diagonal = len(rows.after) - old
    for reached in reversed(history[:-1]):
        entry, origin = max(_steps(rows, reached, diagonal))
        pairs += [(i, i + diagonal) for i in range(old - 1, entry - 1, -1)]
        if origin == diagonal:
            pairs.append((entry - 1, entry - 1 + diagonal))
        old, diagonal = reached[origin], origin
    pairs += [(i, i) for i in range(old - 1, -1, -1)]
    return pairs[::-1]


def _quickly(rows: _Rows) -> _Pairs:
    """An alignment in one pass: keep what comes again, change what does not and has the same name."""
    places: dict[_Row, list[int]] = defaultdict(list)
    for old, row in enumerate(rows.before):
        places[row].append(old)
    left = Counter(rows.after)
    pairs = []
    old = 0
    for new, row in enumerate(rows.after):
        left[row] -= 1
        found = places.get(row, [])
        next_same = bisect_left(found, old)
        if next_same < len(found):
            old = found[next_same]
        elif old == len(rows.before) or left[rows.before[old]] or not rows.can_become(old, new):
            continue
        pairs.append((old, new))
        old += 1
    return pairs


def _in_one_run(rows: _Rows, pairs: _Pairs) -> _Pairs:
    """The headers that stay if nothing may be inserted between two that do; the cheapest such choice."""
    runs: list[_Pairs] = []
    for pair in pairs:
        if runs and runs[-1][-1][1] + 1 == pair[1]:
            runs[-1].append(pair)
        else:
            runs.append([pair])
    # To make one anew takes two modifications: two more than leaving it, one more than changing it.
    return max(runs, key=lambda run: sum(1 + rows.same(*pair) for pair in run), default=[])
