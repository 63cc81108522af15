"""How commands write: tables and colours on a terminal, plain lines when piped or with `NO_COLOR`.

What is written for a pipe is never wrapped and has no box characters, so that it can be cut, searched and
compared.
"""

import sys
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["console", "print_table", "safe", "table"]

_PIPE_WIDTH: Final = 10_000
"""Columns of a pipe: enough that no line is wrapped."""


def console(*, error: bool = False) -> Console:
    """Standard output, or standard error."""
    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


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


def safe(text: str) -> str:
    """Text that others wrote, without what a terminal would obey."""
    return "".join(
        character if character.isprintable() or character == "\t" else repr(character)[1:-1]
        for character in text
    )
