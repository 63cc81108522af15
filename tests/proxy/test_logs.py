import errno
import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from milterchain.proxy.logs import MAX_TEXT, configure, get_logger, text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("mail").setLevel(logging.NOTSET)


def test_json_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    configure("auto", "info", stream)
    get_logger().bind(session="s1").info("message", queue_id="Q1")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["session"], line["queue_id"], line["level"]) == (
        "message",
        "s1",
        "Q1",
        "info",
    )


def test_console_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    configure("auto", "info", stream)
    get_logger().info("message", queue_id="Q1")
    assert "\x1b[" in stream.getvalue()
    assert "Q1" in stream.getvalue()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    configure("console", "info", stream)
    get_logger().info("message", queue_id="Q1")
    assert "\x1b[" not in stream.getvalue()
    assert "queue_id=Q1" in stream.getvalue()


@pytest.mark.parametrize(("level", "lines"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_levels(level: str, lines: int) -> None:
    stream = io.StringIO()
    configure("json", level, stream)
    logger = get_logger()
    logger.debug("a")
    logger.info("b")
    logger.warning("c")
    assert len(stream.getvalue().splitlines()) == lines


def test_the_standard_library_goes_the_same_way_but_aiosmtpd_is_quiet() -> None:
    stream = io.StringIO()
    configure("json", "info", stream)
    logging.getLogger("other").info("hello")
    logging.getLogger("mail.log").info("a command")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["hello"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"a@b", "a@b"),
        ("bücher".encode(), "bücher"),
        (b"\xff", "\\xff"),
        (b"a\r\nb", "a\\r\\nb"),
        (b"\x1b[31m", "\\x1b[31m"),
    ],
)
def test_bytes_are_shown_safely(value: bytes, shown: str) -> None:
    assert text(value) == shown


@pytest.mark.parametrize("style", ["json", "console"])
def test_no_value_can_begin_a_line_or_command_a_terminal(style: Literal["json", "console"]) -> None:
    stream = io.StringIO()
    configure(style, "info", stream)
    hostile = "250 Ok\n2026 [info] forged \x1b[31m \x9b31m \u202e \u2028"
    get_logger().info("message", reply=hostile, recipients=[hostile], error=hostile)
    logging.getLogger("asyncio").error("failed: %s", hostile)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_no_value_is_endless() -> None:
    stream = io.StringIO()
    configure("json", "info", stream)
    get_logger().info("message", reply="x" * 10**6, recipients=["y" * 10**6])
    line = json.loads(stream.getvalue())
    assert line["reply"] == "x" * MAX_TEXT + "..."
    assert line["recipients"] == ["y" * MAX_TEXT + "..."]


def _fail(why: str) -> None:
    raise ValueError(why)


def test_a_traceback_keeps_its_lines() -> None:
    stream = io.StringIO()
    configure("json", "info", stream)
    try:
        _fail("\x1b[31m")
    except ValueError:
        get_logger().exception("failed")
    exception = json.loads(stream.getvalue())["exception"]
    assert exception.splitlines()[-1] == "ValueError: \\x1b[31m"


class Broken(io.StringIO):
    """Nobody reads it any more, or the disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error: OSError | None = error

    def write(self, text: str, /) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "full")])
def test_mail_does_not_depend_on_the_log(error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever logs has answered the client next, or has a message that the next hop took."""
    stream = Broken(error)
    configure("json", "info", stream)
    get_logger().info("message")
    logging.getLogger("asyncio").error("failed")
    assert stream.getvalue() == ""
    stream.error = None
    get_logger().info("there again")
    assert json.loads(stream.getvalue())["event"] == "there again"
    assert capsys.readouterr() == ("", "")
