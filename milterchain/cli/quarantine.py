"""`milterchain quarantine`: the messages that are held on disk (`[quarantine] action = "hold"`).

They may be looked at, released and deleted while the proxy runs. Lists that are piped have no title: each
line begins with an ID.
"""

import asyncio
import errno
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from milterchain.cli.output import console, print_rows, safe, say
from milterchain.config import Config, load, parse
from milterchain.errors import QuarantineError
from milterchain.proxy.logs import text
from milterchain.proxy.nexthop import LMTPHop
from milterchain.proxy.quarantine import Entry, Quarantine

__all__ = ["quarantine_app"]

_PROBLEM: Final = 1
_MAX_LINE: Final = 2**16
"""Octets of a line that a terminal is shown as one; SMTP allows a thousand."""

quarantine_app = typer.Typer(
    name="quarantine",
    help="List, show, release or delete messages that are held.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c", "--config", metavar="FILE", help="The configuration, which says where messages are held."
    ),
]
IDs = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Which messages.")]
All = Annotated[bool, typer.Option("--all", help="All messages that are held now.")]


def _config(file: Path | None) -> Config:
    return load(file) if file is not None else parse({}, "default", Path.cwd())


def _store(config: Config) -> Quarantine:
    return Quarantine(config.quarantine.directory)


def _complain(error: QuarantineError) -> None:
    print(safe(str(error)), file=sys.stderr)  # noqa: T201


def _chosen(store: Quarantine, ids: list[str] | None, *, everything: bool) -> list[str]:
    """The IDs that a command is about.

    Raises:
        typer.BadParameter: none were given, or some and all.
    """
    if bool(ids) == everything:
        raise typer.BadParameter("give the ID of each message, or --all")
    return store.ids() if everything else list(dict.fromkeys(ids or ()))


def _each(ids: Sequence[str], work: Callable[[str], None]) -> None:
    """Do something with each message; what fails is said, and does not stop the others."""
    failed = False
    for name in ids:
        try:
            work(name)
        except BrokenPipeError:
            raise
        except (QuarantineError, OSError) as error:
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise  # as it would with the others
            _complain(error if isinstance(error, QuarantineError) else QuarantineError(f"{name}: {error}"))
            failed = True
    if failed:
        raise typer.Exit(_PROBLEM)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _recipients(entry: Entry) -> str:
    first, *others = [text(path.bracketed) for path in entry.record.envelope.recipients] or ["nobody"]
    return f"{first} and {len(others)} more" if others else first


def _row(entry: Entry) -> list[str]:
    record = entry.record
    return [
        record.id,
        _moment(record.held_at),
        str(entry.size),
        record.milter,
        text(record.envelope.sender.bracketed),
        _recipients(entry),
        text(record.reason) + (" (release in doubt)" if entry.in_doubt else ""),
    ]


@quarantine_app.command("list")
def list_held(config: ConfigFile = None) -> None:
    """One row for each message, oldest first."""
    store = _store(_config(config))
    rows: list[list[str]] = []
    failed: list[QuarantineError] = []
    for name in _ids(store):
        try:
            rows.append(_row(store.entry(name)))
        except QuarantineError as error:
            # One that is gone by now was released meanwhile.
            if name in _ids(store):
                failed.append(error)
    titles = ("ID", "Held", "Size", "Milter", "Sender", "Recipients", "Reason")
    out = console()
    if rows and out.is_terminal:
        print_rows(out, titles, [[Text(safe(cell)) for cell in row] for row in rows])
    else:
        for row in rows:
            out.print(Text("  ".join(safe(cell) for cell in row)), soft_wrap=True)
    for mistake in failed:
        _complain(mistake)
    if failed:
        raise typer.Exit(_PROBLEM)


def _ids(store: Quarantine) -> list[str]:
    try:
        return store.ids()
    except QuarantineError as error:
        _complain(error)
        raise typer.Exit(_PROBLEM) from None


def _lines(entry: Entry) -> Iterator[str]:
    record = entry.record
    yield f"id: {record.id}"
    yield f"held: {_moment(record.held_at)}"
    yield f"milter: {record.milter}"
    yield f"reason: {text(record.reason)}"
    yield f"client: {record.client}"
    yield f"helo: {text(record.helo)}"
    for keyword, path in (
        ("sender", record.envelope.sender),
        *(("recipient", recipient) for recipient in record.envelope.recipients),
    ):
        yield " ".join([f"{keyword}: {text(path.bracketed)}", *map(text, path.args)])
    yield f"size: {entry.size}"
    if entry.in_doubt:
        yield "release: in doubt"


@quarantine_app.command()
def show(
    ids: IDs = None,
    config: ConfigFile = None,
    *,
    raw: Annotated[bool, typer.Option("--raw", help="The message only, octet by octet.")] = False,
) -> None:
    """The envelope, an empty line, and the message as it would be sent."""
    store = _store(_config(config))

    def show_one(name: str) -> None:
        entry = store.entry(name)
        with store.message(name) as message:
            if not raw:
                sys.stdout.writelines(safe(line) + "\n" for line in (*_lines(entry), ""))
            sys.stdout.flush()
            if raw or not sys.stdout.isatty():
                sys.stdout.buffer.writelines(message.chunks())
            else:
                sys.stdout.writelines(safe(line) + "\n" for line in text_lines(message.chunks()))
            sys.stdout.flush()

    _each(_chosen(store, ids, everything=False), show_one)


def text_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """What a terminal is shown of a message. Lines that are very long are broken."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\r\n")
        yield from map(_shown, lines)
        if len(rest) > _MAX_LINE:
            yield _shown(rest)
            rest = b""
    if rest:
        yield _shown(rest)


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")


@quarantine_app.command()
def release(
    ids: IDs = None,
    config: ConfigFile = None,
    *,
    everything: All = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also those whose last release was cut off, and did not succeed.")
    ] = False,
) -> None:
    """Send messages to the next hop. Each is taken out of the quarantine when it was accepted."""
    from milterchain.proxy.next_hops import build_next_hops  # noqa: PLC0415 - `--help` should not wait
    from milterchain.proxy.release import release as release_one  # noqa: PLC0415

    settings = _config(config)
    store = _store(settings)
    relay = settings.relay.model_copy(update={"on_refused_added_recipient": "log"})
    one_by_one = any(isinstance(hop, LMTPHop) for hop in relay.next_hop)
    partial: list[str] = []

    async def send(name: str) -> None:
        hops = build_next_hops(settings.model_copy(update={"relay": relay}))
        try:
            done = await release_one(store, name, hops, again=again, one_by_one=one_by_one)
        finally:
            await hops.close()
        say(f"{name} released to {done.hop}: {done.reply}")
        for recipient, reply in done.refused:
            partial.append(name)
            _complain(QuarantineError(f"{name}: still held for {recipient}: {reply}"))

    _each(_chosen(store, ids, everything=everything), lambda name: asyncio.run(send(name)))
    if partial:
        raise typer.Exit(_PROBLEM)


@quarantine_app.command()
def delete(ids: IDs = None, config: ConfigFile = None, *, everything: All = False) -> None:
    """Delete messages for good. Nobody is told."""
    store = _store(_config(config))

    def delete_one(name: str) -> None:
        with store.claim(name) as claim:
            claim.remove()
        say(f"{name} deleted")

    _each(_chosen(store, ids, everything=everything), delete_one)
