"""What is logged, and how: structlog, one line for each event.

`console` is for people, `json` for machines; `auto` is the first on a terminal and the second elsewhere.
Colours only on a terminal, and not with `NO_COLOR`. Records of the standard library's logging take the same
way.

At `info` there is one line for each message, and one for each refusal before that; sessions as such are told
of at `debug` only, so that health probes say nothing. Failures are warnings.

Keys: `session` names a connection, `queue_id` a message, `milter` who said it; `client` is an address without
its port. Bytes are shown by `text`.
Whatever is logged, no value can begin a line, move a cursor or fill a disk: what is not printable is escaped,
and what is too long is cut.

A line that cannot be written, as its reader is gone or the disk is full, is lost, and nothing else: whoever
logs may hold a message that the next hop has taken, and the client has to hear of that.
"""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from milterchain.chain.observer import Observation, Snapshot
from milterchain.chain.verdict import Verdict
from milterchain.errors import MilterError, MilterRestingError
from milterchain.milter.flags import Command
from milterchain.milter.messages import Modification

__all__ = ["MAX_TEXT", "ChainLog", "Logger", "configure", "get_logger", "text"]

Logger = FilteringBoundLogger

_LOGGED_EDITS: Final = 20
"""Edits of an observed milter that are named; their number is always there."""
MAX_TEXT: Final = 1000
"""Characters of one value: a reply may have 128 lines of 4096 octets, written by anybody."""


def text(value: bytes) -> str:
    """Show bytes that a peer sent: UTF-8 where it is printable, escapes where not."""
    return _printable(value.decode("utf-8", "backslashreplace"))


def _printable(value: str) -> str:
    return value if value.isprintable() else value.encode("unicode_escape").decode("ascii")


def _harmless(value: object) -> object:
    if isinstance(value, str):
        return _printable(value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}...")
    if isinstance(value, list):
        return [_harmless(each) for each in value]
    return value


def _sanitise(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make all values harmless, but for tracebacks, which are ours: they keep their lines."""
    for key, value in event.items():
        if key == "exception":
            event[key] = "\n".join(_printable(line) for line in str(value).split("\n"))
        elif isinstance(value, str | list):
            event[key] = _harmless(value)
    return event


def get_logger() -> Logger:
    """A logger as `configure` has set it up so far."""
    # Bound once, as otherwise each binding asks structlog's configuration again.
    logger: Logger = structlog.get_logger().bind()
    return logger


class _Lossy:
    """A stream that takes whatever it is given."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: str) -> int:
        with suppress(OSError):
            self._stream.write(line)
        return len(line)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def configure(
    style: Literal["auto", "console", "json"] = "auto", level: str = "info", stream: TextIO | None = None
) -> None:
    """Set up logging for the process.

    Args:
        style: as in `[log] format`.
        level: the least level that is written, as in `[log] level`.
        stream: where lines go; standard error by default.
    """
    stream = stream or sys.stderr
    least = logging.getLevelNamesMapping()[level.upper()]
    terminal = stream.isatty()
    renderer: Processor
    if style == "json" or (style == "auto" and not terminal):
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=terminal and not os.environ.get("NO_COLOR"))
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _sanitise,
    ]
    lossy = _Lossy(stream)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", lossy)),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(lossy)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=max(least, logging.INFO), handlers=[handler], force=True)
    # aiosmtpd tells every command at INFO and message bodies at DEBUG; sessions are logged by ourselves.
    logging.getLogger("mail").setLevel(logging.WARNING)


class ChainLog:
    """A chain's observer that logs for one session.

    Args:
        log: bound to the session, and to the message while there is one.
    """

    def __init__(self, log: Logger) -> None:
        self.log = log
        # Asked once: there are a dozen events in each message.
        self._all = log.is_enabled_for(logging.DEBUG)

    def on_event(self, milter: str, event: Command, verdict: Verdict, seconds: float) -> None:
        """Each answer, for debugging."""
        if not self._all:
            return
        self.log.debug(
            "milter answered",
            milter=milter,
            stage=event.name.lower(),
            verdict=verdict.kind.name.lower(),
            milliseconds=round(seconds * 1000, 3),
        )

    def on_fault(self, milter: str, event: Command, error: MilterError, verdict: Verdict) -> None:
        """A failure; its cause is here and nowhere else, as clients hear a general text."""
        # That a milter is left alone is told once, not for each session.
        tell = self.log.debug if isinstance(error, MilterRestingError) else self.log.warning
        tell(
            "milter failed",
            milter=milter,
            stage=event.name.lower(),
            error=str(error),
            instead=str(verdict.reply or verdict.kind.name.lower()),
        )

    def on_edits(
        self,
        milter: str,
        before: Snapshot,  # noqa: ARG002
        after: Snapshot,  # noqa: ARG002
        edits: Sequence[Modification],
        warnings: Sequence[str],
    ) -> None:
        """What was changed, in numbers; and what could not be done."""
        self.log.debug("message changed", milter=milter, edits=len(edits))
        for warning in warnings:
            self.log.warning("modification dropped", milter=milter, reason=warning)

    def on_observed(self, milter: str, observation: Observation) -> None:
        """What a milter would have done."""
        verdict = observation.verdict
        details = {} if observation.quarantine is None else {"quarantine": text(observation.quarantine)}
        self.log.info(
            "observed",
            milter=milter,
            stage=observation.event.name.lower(),
            verdict=verdict.kind.name.lower(),
            reply=str(verdict.reply) if verdict.reply else None,
            edits=[str(edit) for edit in observation.edits[:_LOGGED_EDITS]],
            edit_count=len(observation.edits),
            **details,
        )
