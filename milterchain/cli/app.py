"""The command line: arguments, exit codes, and what is common to all commands.

Exit codes: 0 fine; 1 a check or trace found a problem; 2 a mistake in usage or configuration, one line each.
"""

import errno
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from milterchain import __version__
from milterchain.cli.output import open_streams, silence
from milterchain.cli.passwords import hash_password
from milterchain.cli.quarantine import quarantine_app
from milterchain.cli.tools import log_milter, milter_check
from milterchain.config import Config, load, parse
from milterchain.errors import ConfigurationError

__all__ = ["EXIT_CONFIGURATION", "EXIT_PROBLEM", "app", "main"]

EXIT_PROBLEM: Final = 1
EXIT_CONFIGURATION: Final = 2
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EIO}

app = typer.Typer(
    name="milterchain",
    help="A chaining SMTP proxy for milters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="The configuration, a TOML file; other options replace its parts.",
    ),
]
Listen = Annotated[
    list[str] | None,
    typer.Option(
        "--listen",
        metavar="ADDR",
        help="Listen here: HOST:PORT or unix:/PATH; may be repeated. [default: 127.0.0.1:2525]",
    ),
]
Milters = Annotated[
    list[str] | None,
    typer.Option(
        "--milter", metavar="ADDR", help="A milter: inet:HOST:PORT or unix:/PATH; repeat for more, in order."
    ),
]
NextHop = Annotated[
    list[str] | None,
    typer.Option(
        "--next-hop",
        metavar="HOP",
        help="Where mail goes: smtp:HOST:PORT, discard: or maildir:/PATH; repeat for more, tried in order."
        " [default: smtp:127.0.0.1:10025]",
    ),
]


def _version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        typer.echo(f"milterchain {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A chaining SMTP proxy for milters."""


def _flags(listen: list[str] | None, milter: list[str] | None, next_hop: list[str] | None) -> dict[str, Any]:
    """What flags say, as the tables that they stand for."""
    document: dict[str, Any] = {}
    if listen:
        document["listen"] = [{"address": address} for address in listen]
    if milter:
        document["milter"] = [
            {
                "address": address,
                "name": address if address not in milter[:index] else f"{address}#{index + 1}",
            }
            for index, address in enumerate(milter)
        ]
    if next_hop:
        document["relay"] = {"next_hop": next_hop}
    return document


def _load(file: Path | None, flags: dict[str, Any]) -> Config:
    """The configuration of the file, in which flags take the place of what they stand for."""
    given = parse(flags, "command line", Path.cwd())
    if file is None:
        return given
    config = load(file)
    changes: dict[str, object] = {key: getattr(given, key) for key in flags if key != "relay"}
    if "relay" in flags:
        changes["relay"] = config.relay.model_copy(update={"next_hop": given.relay.next_hop})
    return config.model_copy(update=changes)


@app.command()
def run(
    config: ConfigFile = None, listen: Listen = None, milter: Milters = None, next_hop: NextHop = None
) -> None:
    """Run until SIGTERM or SIGINT. Without any option: a demonstration with two milters inside."""
    from milterchain.proxy.app import run_proxy  # noqa: PLC0415 - `--help` should not wait
    from milterchain.proxy.embedded import run_embedded  # noqa: PLC0415

    flags = _flags(listen, milter, next_hop)
    if config is None and not flags:
        run_embedded(Path.cwd())
    else:
        run_proxy(_load(config, flags))


@app.command(short_help="Ask every milter and next hop whether it is there.")
def check(config: ConfigFile = None, milter: Milters = None, next_hop: NextHop = None) -> None:
    """Validate the configuration, negotiate with every milter, greet every next hop.

    The exit code is 0 if all is well, 1 if something does not answer, 2 if there is a mistake in the
    configuration or the options.
    """
    from milterchain.cli.check import check as run_check  # noqa: PLC0415

    if not run_check(_load(config, _flags(None, milter, next_hop))):
        raise typer.Exit(EXIT_PROBLEM)


@app.command()
def trace(
    message: Annotated[str, typer.Argument(metavar="MESSAGE.eml", help="The message; - is standard input.")],
    config: ConfigFile = None,
    milter: Milters = None,
    sender: Annotated[
        str | None, typer.Option("--from", metavar="A", help="Sender; default: the address in From.")
    ] = None,
    recipients: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="B", help="A recipient, may be repeated; default: all in To and Cc."),
    ] = None,
    client_addr: Annotated[str, typer.Option(metavar="IP", help="The client's address.")] = "127.0.0.1",
    helo: Annotated[str, typer.Option(metavar="NAME", help="What the client says in HELO.")] = "localhost",
    *,
    listener: Annotated[
        str | None, typer.Option(metavar="NAME", help="The listener it comes to; default: the first.")
    ] = None,
    login: Annotated[str | None, typer.Option(metavar="USER", help="As whom it has logged in.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Send one message through the milters without relaying it. Shows what each of them does.

    The exit code is 0 whatever the verdict, 1 if a milter fails, 2 if there is a mistake in the
    configuration or the options.
    """
    from milterchain.cli.trace import TraceRequest  # noqa: PLC0415
    from milterchain.cli.trace import trace as run_trace  # noqa: PLC0415

    if config is None and not milter:
        raise ConfigurationError(["no milters: give --config or --milter"])
    request = TraceRequest.read(
        message, sender, recipients, client_addr, helo, listener=listener, login=login
    )
    if not run_trace(_load(config, _flags(None, milter, None)), request, json=json):
        raise typer.Exit(EXIT_PROBLEM)


app.add_typer(quarantine_app)
app.command("log-milter")(log_milter)
app.command("milter-check", short_help="Play the mail server for one milter.")(milter_check)
app.command("hash-password")(hash_password)


def main() -> None:
    """The entry point of the script."""
    open_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except ConfigurationError as error:
        for mistake in error.mistakes:
            print(mistake, file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CONFIGURATION)
    except BrokenPipeError:
        silence()
        sys.exit(EXIT_PROBLEM)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        silence()
        print(f"cannot write: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_PROBLEM)
