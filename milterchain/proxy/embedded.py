"""`milterchain run` without any option: a whole chain to look at, with nothing else needed.

Two example milters inside the process, the usual listener on loopback, and a Maildir in the working
directory. It says so, and how to send a first message.
"""

import shlex
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from milterchain.config import Config, parse
from milterchain.milter.server import MilterServer
from milterchain.proxy.app import App, run, serve
from milterchain.proxy.examples import EXAMPLES
from milterchain.proxy.logs import configure

__all__ = ["MAILDIR", "embedded_config", "run_embedded", "serve_embedded", "welcome"]

MAILDIR: Final = "milterchain-mail"


def embedded_config(directory: Path, sockets: Path) -> Config:
    """The configuration of the demonstration.

    Args:
        directory: where the Maildir is.
        sockets: a directory for the milters' sockets.
    """
    return parse(
        {
            "milter": [{"name": name, "address": f"unix:{sockets / name}"} for name in EXAMPLES],
            "relay": {"next_hop": [f"maildir:{directory / MAILDIR}"]},
        },
        "embedded default",
        directory,
    )


def welcome(host: str, port: int, directory: Path) -> str:
    """What is said at the start."""
    script = (
        f"import smtplib; smtplib.SMTP('{host}', {port}).sendmail('me@example.org', ['you@example.org'],"
        r" 'From: me@example.org\nTo: you@example.org\nSubject: Hello\n\nIt works.')"
    )
    names = " and ".join(EXAMPLES)
    return f"""\
This is the embedded default: two example milters ({names}) inside this process,
listening on {host}:{port}, mail goes to the Maildir {directory / MAILDIR}.
Send a first message, from another terminal:

  {shlex.quote(sys.executable)} -c "{script}"

or: swaks --server {host}:{port} --from me@example.org --to you@example.org
Ctrl-C stops it. A real chain: milterchain run --milter ADDR --next-hop HOP, or -c FILE.
"""


async def serve_embedded(directory: Path, show: Callable[[str], None]) -> None:
    """Run the demonstration until a signal."""

    def ready(app: App) -> None:
        address = app.addresses[0]
        show(welcome(str(address.host), address.port, directory))

    with tempfile.TemporaryDirectory(prefix="milterchain-") as sockets:
        async with AsyncExitStack() as stack:
            for name, factory in EXAMPLES.items():
                await stack.enter_async_context(MilterServer(factory, [f"unix:{sockets}/{name}"]))
            await serve(embedded_config(directory, Path(sockets)), ready)


def run_embedded(directory: Path) -> None:
    """`milterchain run` without any option.

    Raises:
        ConfigurationError: the port is taken.
    """
    configure()
    run(serve_embedded(directory, _show))


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
