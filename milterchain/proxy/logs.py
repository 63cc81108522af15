"""What is logged, and how: structlog, one line for each event.

`console` is for people, `json` for machines; `auto` is the first on a terminal and the second elsewhere.
Colours only on a terminal, and not with `NO_COLOR`. Records of the standard library's logging take the same
way.

Keys: `session` names a connection, `queue_id` a message, `milter` who said it. Bytes are shown by `text`.
"""

import logging
import os
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

__all__ = ["Logger", "configure", "get_logger", "text"]

Logger = FilteringBoundLogger


def text(value: bytes) -> str:
    """Show bytes that a peer sent: UTF-8 where it is printable, escapes where not."""
    shown = value.decode("utf-8", "backslashreplace")
    return shown if shown.isprintable() else shown.encode("unicode_escape").decode("ascii")


def get_logger() -> Logger:
    """The logger to which sessions bind what names them."""
    logger: Logger = structlog.get_logger()
    return logger


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
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=max(least, logging.INFO), handlers=[handler], force=True)
    # aiosmtpd tells every command at INFO and message bodies at DEBUG; sessions are logged by ourselves.
    logging.getLogger("mail").setLevel(logging.WARNING)
