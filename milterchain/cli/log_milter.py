"""`milterchain log-milter`: a filter that accepts everything and writes down what it hears.

One line for each event, and before it one for the macros that are not as they were. Nothing is declined and
nothing is asked for but what the command line says, so that MTAs tell all that they tell by default.
"""

import asyncio
import itertools
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Final, TextIO

from milterchain.cli.options_in_words import in_words
from milterchain.cli.output import silence
from milterchain.errors import ConfigurationError, MilterConnectError
from milterchain.milter.filter import Milter
from milterchain.milter.flags import Family, Protocol, Stage
from milterchain.milter.macros import spelled
from milterchain.milter.messages import Connect, OptNeg
from milterchain.milter.modifier import Modifier
from milterchain.milter.readable import logfmt, quoted
from milterchain.milter.server import Listener, MilterServer
from milterchain.milter.server_options import NegotiationOptions

__all__ = ["EventLog", "LogMilter", "log_milter", "serve"]

_GRACE: Final = 2.0
"""Seconds that open SMTP sessions get to end when the command is told to stop."""

_GONE: Final = object()
"""Stands for the value of a macro that is not defined any more."""


class EventLog:
    """Writes events, as logfmt or as one JSON object each.

    A log that cannot be written any more must not cost mail: nothing is raised then.

    Args:
        out: where to.
        as_json: for machines.
        clock: what time it is.
        lost: called when `out` cannot be written to; nothing is written from then on.

    Attributes:
        failure: why it cannot; None while it can.
    """

    def __init__(
        self,
        out: TextIO,
        *,
        as_json: bool = False,
        clock: Callable[[], datetime] = datetime.now,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self.failure: OSError | None = None
        self._out = out
        self._json = as_json
        self._clock = clock
        self._lost = lost

    def write(self, event: str, session: int | None = None, /, **values: object) -> None:
        """Write one event.

        Args:
            event: which.
            session: the number of the SMTP session, None for what belongs to none.
            values: what it says.
        """
        now = self._clock().isoformat(timespec="milliseconds")
        if self._json:
            shown = {name: _plain(value) for name, value in values.items()}
            line = json.dumps({"time": now, "session": session, "event": event, "values": shown})
        else:
            present = {name: value for name, value in values.items() if value is not _GONE}
            gone = [f"-{quoted(name)}" for name, value in values.items() if value is _GONE]
            number = "" if session is None else f"#{session} "
            line = " ".join([now, f"{number}{logfmt(event, present)}", *gone])
        if self.failure is not None:
            return
        try:
            self._out.write(f"{line}\n")
            self._out.flush()
        except OSError as error:
            self.failure = error
            if self._lost is not None:
                self._lost()


class LogMilter(Milter):
    """Logs one SMTP session.

    Args:
        log: where to.
        number: of the session.
    """

    protocol = Protocol.RCPT_REJECTED | Protocol.LEADING_SPACE

    def __init__(self, log: EventLog, number: int) -> None:
        self.offer: OptNeg | None = None
        self._log = log
        self._number = number
        self._known: dict[bytes, bytes] = {}

    async def new_connection(self) -> None:
        """See `Milter`; a session that follows QUIT_NC has no offer of its own."""
        if self.offer is not None:
            offered = {part.name: getattr(self.offer, part.name) for part in fields(self.offer)}
            del offered["macros"]
            self._log.write("offered", self._number, **offered)
        agreed = self.negotiated
        self._log.write(
            "negotiated",
            self._number,
            version=agreed.version,
            actions=agreed.actions,
            protocol=agreed.protocol,
            max_data=agreed.max_data,
            means=in_words(agreed.actions, agreed.protocol),
        )

    async def connect(self, client: Connect) -> None:
        """See `Milter`."""
        self._event("connect", **{part.name: getattr(client, part.name) for part in fields(client)})

    async def helo(self, name: bytes) -> None:
        """See `Milter`."""
        self._event("helo", name=name)

    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> None:
        """See `Milter`."""
        self._event("mail", address=sender, args=args)

    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> None:
        """See `Milter`."""
        self._event("rcpt", address=recipient, args=args)

    async def data(self) -> None:
        """See `Milter`."""
        self._event("data")

    async def header(self, name: bytes, value: bytes) -> None:
        """See `Milter`."""
        self._event("header", name=name, value=value)

    async def end_of_headers(self) -> None:
        """See `Milter`."""
        self._event("end_of_headers")

    async def body(self, chunk: bytes) -> None:
        """See `Milter`."""
        self._event("body", bytes=len(chunk))

    async def end_of_message(self, modifier: Modifier) -> None:  # noqa: ARG002 - nothing is changed
        """See `Milter`."""
        self._event("end_of_message")

    async def abort(self) -> None:
        """See `Milter`."""
        self._event("abort")

    async def unknown(self, line: bytes) -> None:
        """See `Milter`."""
        self._event("unknown", line=line)

    async def close(self) -> None:
        """See `Milter`."""
        self._log.write("close", self._number)

    def _event(self, event: str, **values: object) -> None:
        known = self.macros.as_dict()
        changed: dict[str, object] = {
            _name(name): value for name, value in known.items() if self._known.get(name) != value
        }
        changed |= {_name(name): _GONE for name in self._known if name not in known}
        if changed:
            self._log.write("macros", self._number, **changed)
        self._known = known
        self._log.write(event, self._number, **{name: value for name, value in values.items() if value != ()})


def _name(macro: bytes) -> str:
    return spelled(macro).decode("utf-8", "backslashreplace")


def _plain(value: object) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, tuple):
        return list(map(_plain, value))
    if isinstance(value, Family):
        return value.name.lower()
    return None if value is _GONE else value


async def serve(
    listen: Sequence[str], log: EventLog, stop: asyncio.Event, macros: Mapping[Stage, Sequence[bytes]]
) -> int:
    """Serve until told to stop.

    Args:
        listen: addresses.
        log: takes the events.
        stop: set when to end.
        macros: what to ask for at which stage.

    Returns:
        How many SMTP sessions there were.

    Raises:
        MilterConnectError: an address cannot be listened on.
        ValueError: it cannot be read.
    """
    numbers = itertools.count(1)
    latest: LogMilter | None = None

    def make() -> LogMilter:
        nonlocal latest
        latest = LogMilter(log, next(numbers))
        return latest

    def see(offer: OptNeg, answer: OptNeg) -> OptNeg:
        assert latest is not None  # the server makes a filter, and then asks what it wants
        latest.offer = offer
        return answer

    negotiation = NegotiationOptions(macros=macros, callback=see)
    server = MilterServer(make, [Listener(address) for address in listen], negotiation=negotiation)
    async with server:
        log.write("listening", addresses=tuple(map(str, server.endpoints)))
        await stop.wait()
        await server.shutdown(_GRACE)
    log.write("stopped", sessions=server.handlers_made)
    return server.handlers_made


def log_milter(
    listen: Sequence[str], macros: Mapping[Stage, Sequence[bytes]], *, as_json: bool = False
) -> int:
    """Serve and log to standard output until SIGTERM or SIGINT, or until that cannot be written to.

    Returns:
        The exit code: 1 if it could not.

    Raises:
        ConfigurationError: an address cannot be listened on.
    """

    async def run() -> OSError | None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        log = EventLog(sys.stdout, as_json=as_json, lost=stop.set)
        await serve(listen, log, stop, macros)
        return log.failure

    try:
        failure = asyncio.run(run())
    except (MilterConnectError, ValueError) as error:
        raise ConfigurationError([f"--listen: {error}"]) from None
    if failure is None:
        return 0
    # What Python still has to write would fail again when it ends, and be told then.
    silence()
    if not isinstance(failure, BrokenPipeError):  # as of `| head`
        print(f"cannot write: {failure.strerror}", file=sys.stderr)  # noqa: T201
    return 1
