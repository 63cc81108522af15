"""Which method of a filter an event is for, and what of the event it gets."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from milterchain.milter.filter import Milter
from milterchain.milter.flags import Command
from milterchain.milter.messages import Reply

__all__ = ["METHODS"]

METHODS: Mapping[int, Callable[[Milter, Any], Awaitable[Reply | None]]] = {
    Command.CONNECT: lambda milter, event: milter.connect(event),
    Command.HELO: lambda milter, event: milter.helo(event.text),
    Command.MAIL: lambda milter, event: milter.mail(event.address, event.args),
    Command.RCPT: lambda milter, event: milter.rcpt(event.address, event.args),
    Command.DATA: lambda milter, _: milter.data(),
    Command.HEADER: lambda milter, event: milter.header(event.name, event.value),
    Command.END_OF_HEADERS: lambda milter, _: milter.end_of_headers(),
    Command.BODY: lambda milter, event: milter.body(event.chunk),
    Command.UNKNOWN: lambda milter, event: milter.unknown(event.text),
}
"""All but the end of a message, which comes with a modifier."""
