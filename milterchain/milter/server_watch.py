"""How long a method of a filter may take, and what ends it early: its deadline, or the MTA that leaves.

A method runs in the session's own task. To end it is to cancel the task, and to take that back when the
cancellation has come out of the method: what of it was somebody else's then goes on.
"""

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable

from milterchain.errors import CloseConnectionError, MilterClosedError
from milterchain.milter.messages import Reply, TempFail
from milterchain.milter.server_options import ServerOptions
from milterchain.milter.server_streams import Deadline, Reader

__all__ = ["Watch"]

_log = logging.getLogger("milterchain.milter.server")


class _Interruption(enum.Enum):
    """Why a method of the filter was cancelled."""

    OVERDUE = enum.auto()
    LEFT = enum.auto()


class Watch:
    """Watches over the methods that one session calls.

    Args:
        reader: of the session.
        options: the limits.
        due: says whether the MTA waits for a reply.

    Attributes:
        task: the session's.
        deadline: its only timer, which serves for all that it waits for.
        calling: whether a method runs.
        flushing: whether what runs waits for the MTA to read, whatever else it does.
        parting: whether the session ends.
        interruption: why what runs was cancelled, if it was.
    """

    __slots__ = (
        *("_allowed", "_cancelled", "_due", "_options", "_reader"),
        *("calling", "deadline", "flushing", "interruption", "parting", "task"),
    )

    def __init__(self, reader: Reader, options: ServerOptions, due: Callable[[], bool]) -> None:
        self.task: asyncio.Task[None] | None = None
        self.deadline = Deadline(self._expired)
        self.calling = False
        self.flushing = 0
        self.parting = False
        self._reader = reader
        self._options = options
        self._due = due
        self._allowed = options.handler_timeout
        self.interruption: _Interruption | None = None
        self._cancelled = 0
        reader.on_left = self._left
        reader.on_suspended = self._suspended

    async def call(self, method: Awaitable[Reply | None], seconds: float) -> Reply | None:
        """Await a method of the filter; its failures are temporary failures of the message.

        Raises:
            CloseConnectionError: it wants the connection closed.
            MilterClosedError: the MTA left while it ran.
        """
        self._allowed = seconds
        if not self._reader.waking:
            self.deadline.set(seconds)
        self.calling = True
        if self._reader.left:  # before it was called
            asyncio.get_running_loop().call_soon(self._left)
        try:
            return await method
        except BaseException as error:  # noqa: BLE001 - `failed` raises what is not the filter's
            return self.failed(error)
        finally:
            self.over()
            self._allowed = self._options.handler_timeout

    def over(self) -> None:
        """A method has come to its end."""
        self.calling = False
        if self.interruption is not None:
            self._uncancel()

    def failed(self, error: BaseException) -> Reply:
        """What the MTA is told when a method raised.

        Raises:
            BaseException: what ends the session.
        """
        try:
            return self._judged(error)
        finally:
            self.over()

    def _judged(self, error: BaseException) -> Reply:
        if isinstance(error, asyncio.CancelledError):
            if not self._explained(error):
                raise error
        elif isinstance(error, CloseConnectionError):
            if not self.parting:
                raise error
        elif not isinstance(error, Exception):
            raise error
        elif isinstance(error, MilterClosedError) and self._gone():
            _log.debug("the MTA left at the end of a message: %s", error)
        else:
            _log.error("the filter failed", exc_info=error)
        return TempFail()

    def _gone(self) -> bool:
        return self._reader.left or self._reader.writer.transport.is_closing()

    # What ends a method

    def _expired(self) -> None:
        """The deadline has passed: end the filter's method if one runs, else the connection."""
        if self.calling and not self.flushing:
            self._interrupt(_Interruption.OVERDUE)
        else:
            _log.info("connection closed: the MTA took too long")
            self._reader.writer.transport.abort()

    def _suspended(self) -> None:
        """The task did not come to its end, nor to the wait for more events: now there is a deadline."""
        if self.calling and not self.flushing:
            self.deadline.set(self._allowed)

    def _left(self) -> None:
        """The MTA has left: nobody waits for the filter's answer any more."""
        if self.calling and not self.flushing and not self.parting and self._due():
            self._interrupt(_Interruption.LEFT)

    def _interrupt(self, reason: _Interruption) -> None:
        assert self.task is not None
        self.interruption = self.interruption or reason
        self._cancelled += 1
        self.task.cancel()
        self.deadline.set(self._options.close_timeout)  # again, if it takes no notice

    def _explained(self, error: asyncio.CancelledError) -> bool:
        """Note why a method of the filter was cancelled; False if this task was, by somebody else.

        Raises:
            MilterClosedError: the MTA left.
        """
        assert self.task is not None
        reason = self.interruption
        if not self.task.cancelling():
            _log.error("the filter failed: what it waited for was cancelled", exc_info=error)
            return True
        if reason is None or self._uncancel():
            return False
        if reason is _Interruption.LEFT:
            raise MilterClosedError("the MTA left while the filter worked") from None
        _log.error("the filter took more than %s s", self._allowed)
        return True

    def _uncancel(self) -> bool:
        """Take back our own cancellation; whether there are others."""
        assert self.task is not None
        self.interruption = None
        for _ in range(self._cancelled):
            self.task.uncancel()
        self._cancelled = 0
        return self.task.cancelling() > 0
