"""The filter on `milterchain.milter` that `integration/cases` puts to the test, set up by the scenarios.

Options of `event`:

    at EVENT [ARGUMENT]     connect, helo, mail, rcpt, data, header, end-of-headers, body, end-of-message,
                            unknown; with a prefix of the event's argument only for that one
    answer ANSWER           accept, reject, tempfail, discard, skip, shutdown, continue, or CODE STATUS TEXT
                            with more lines as more options
    trace                   at the end of each message add `X-Events`: the events since the last message
    silent                  answer no event before the end of the message
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from milterchain.milter import (
    Accept,
    Action,
    Connect,
    Continue,
    Discard,
    Milter,
    MilterServer,
    Modifier,
    Reject,
    Reply,
    Shutdown,
    Skip,
    TempFail,
    no_reply,
    reply,
)
from milterchain.testing.cases import CaseFilter

EVENT_ANSWERS: Mapping[str, Reply] = {
    "accept": Accept(),
    "reject": Reject(),
    "tempfail": TempFail(),
    "discard": Discard(),
    "skip": Skip(),
    "shutdown": Shutdown(),
    "continue": Continue(),
}


class EventFilter(Milter):
    """Answers one event, and counts all."""

    actions = Action.ADD_HEADERS

    def __init__(self, setup: CaseFilter) -> None:
        self._event, _, self._argument = setup.get("at").partition(" ")
        self._answer = _event_answer(setup.all("answer"))
        self._trace = bool([option for option in setup.options if option.key == "trace"])
        self._events: list[str] = []

    def _on(self, event: str, argument: bytes = b"") -> Reply | None:
        if not self._events or self._events[-1] != event:
            self._events.append(event)
        if event == self._event and argument.startswith(self._argument.encode()):
            return self._answer
        return None

    async def connect(self, client: Connect) -> Reply | None:
        """Answer if asked to; likewise all others."""
        return self._on("connect", client.address)

    async def helo(self, name: bytes) -> Reply | None:
        """See `connect`."""
        return self._on("helo", name)

    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> Reply | None:
        """See `connect`."""
        del args
        return self._on("mail", sender)

    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> Reply | None:
        """See `connect`."""
        del args
        return self._on("rcpt", recipient)

    async def data(self) -> Reply | None:
        """See `connect`."""
        return self._on("data")

    async def header(self, name: bytes, value: bytes) -> Reply | None:
        """See `connect`."""
        del value
        return self._on("header", name)

    async def end_of_headers(self) -> Reply | None:
        """See `connect`."""
        return self._on("end-of-headers")

    async def body(self, chunk: bytes) -> Reply | None:
        """See `connect`."""
        return self._on("body", chunk)

    async def unknown(self, line: bytes) -> Reply | None:
        """See `connect`."""
        return self._on("unknown", line)

    async def abort(self) -> None:
        """Count it."""
        self._on("abort")

    async def end_of_message(self, modifier: Modifier) -> Reply | None:
        """Answer if asked to, and tell what was counted."""
        answer = self._on("end-of-message")
        if self._trace:
            await modifier.add_header(b"X-Events", " ".join(self._events).encode())
            self._events.clear()
        return answer


class SilentFilter(Milter):
    """Answers nothing before the end of the message, and says how often it was called."""

    actions = Action.ADD_HEADERS

    def __init__(self) -> None:
        self._headers = 0
        self._size = 0

    @no_reply
    async def connect(self, client: Connect) -> None:
        """Be silent; likewise all others."""

    @no_reply
    async def helo(self, name: bytes) -> None:
        """See `connect`."""

    @no_reply
    async def mail(self, sender: bytes, args: tuple[bytes, ...]) -> None:
        """Begin to count."""
        del sender, args
        self._headers = self._size = 0

    @no_reply
    async def rcpt(self, recipient: bytes, args: tuple[bytes, ...]) -> None:
        """See `connect`."""

    @no_reply
    async def data(self) -> None:
        """See `connect`."""

    @no_reply
    async def header(self, name: bytes, value: bytes) -> None:
        """Count."""
        del name, value
        self._headers += 1

    @no_reply
    async def end_of_headers(self) -> None:
        """See `connect`."""

    @no_reply
    async def body(self, chunk: bytes) -> None:
        """Count."""
        self._size += len(chunk)

    async def end_of_message(self, modifier: Modifier) -> Reply | None:
        """Tell."""
        await modifier.add_header(b"X-Counted", f"headers={self._headers} body={self._size}".encode())
        return None


def _event_answer(lines: tuple[str, ...]) -> Reply | None:
    if not lines:
        return None
    first, *more = lines
    if first in EVENT_ANSWERS:
        return EVENT_ANSWERS[first]
    code, status, text = first.split(" ", 2)
    return reply(int(code), None if status == "-" else status, text, *more)


@asynccontextmanager
async def start_event(setup: CaseFilter, address: str) -> AsyncIterator[None]:
    """A filter that sees every event."""
    silent = any(option.key == "silent" for option in setup.options)
    async with MilterServer(SilentFilter if silent else lambda: EventFilter(setup), [address]):
        yield
