"""How commands write: tables and colours on a terminal, plain lines when piped or with `NO_COLOR`.

What is written for a pipe is never wrapped and has no box characters, so that it can be cut, searched and
compared. A pipe that nobody reads any more, as of `| head`, ends a command that only shows something, without
a word; one that does something goes on.
"""

import itertools
import os
import sys
from collections.abc import Sequence
from typing import Final, TextIO, TypeAlias

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["Cell", "console", "open_streams", "print_rows", "print_table", "safe", "say", "silence", "table"]

Cell: TypeAlias = str | Text

_PIPE_WIDTH: Final = 10_000
"""Columns of a pipe: enough that no line is wrapped."""


def console(*, error: bool = False) -> Console:
    """Standard output, or standard error."""
    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, width=_width(stream), highlight=False, markup=False, emoji=False)


def _width(stream: TextIO) -> int | None:
    """Columns; None is what the terminal has."""
    return None if stream.isatty() else _PIPE_WIDTH


def table(out: Console, *columns: str) -> Table:
    """An empty table that suits where it will be written."""
    style = box.SIMPLE_HEAD if out.is_terminal else None
    made = Table(box=style, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=not out.is_terminal)
    return made


def print_table(out: Console, rows: Table) -> None:
    """Print a table; into a pipe without the blanks that fill its last column."""
    if out.is_terminal:
        out.print(rows)
        return
    with out.capture() as lines:
        out.print(rows)
    for line in lines.get().splitlines():
        out.print(line.rstrip(), soft_wrap=True)


def print_rows(out: Console, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table of which only the last column is wrapped, between words.

    On a terminal that is too narrow for this, the last column goes below the others, and what repeats the
    cell before it is left out.
    """
    shown = table(out, *columns)
    for column in shown.columns[:-1]:
        column.no_wrap = True
    for row in rows:
        shown.add_row(*row)
    unlimited = out.options.update(width=_PIPE_WIDTH)
    if out.measure(shown, options=unlimited).minimum <= out.width:
        print_table(out, shown)
        return
    for *cells, last in rows:
        different = [next(group) for text, group in itertools.groupby(cells, str) if text]
        out.print(Text("  ").join(Text.assemble(cell) for cell in different))
        out.print(Padding(last, (0, 0, 0, 4)))


def safe(text: str) -> str:
    """Text that others wrote, without what a terminal would obey."""
    return "".join(
        character if character.isprintable() or character == "\t" else repr(character)[1:-1]
        for character in text
    )


def say(line: str) -> None:
    """Print a line about what was done. That nobody reads it any more is no reason to stop."""
    try:
        print(safe(line), flush=True)  # noqa: T201
    except BrokenPipeError:
        silence()


def silence() -> None:
    """Write standard output to nowhere from now on, also what Python still has of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def open_streams() -> None:
    """Open those standard streams to nowhere that are closed, lest what is opened next takes their places."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
