"""What a milter is still to hear, in order, one thing at a time.

The line knows nothing of milters: its owner runs the steps. A step that has its verdict at once makes room
for the next; one that waits for a reply holds the line until `settle`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from milterchain.chain.briefing import Briefing, Event
from milterchain.chain.values import rcpt_values
from milterchain.chain.verdict import CONTINUE, Kind, Verdict, deferred
from milterchain.mail.envelope import Path
from milterchain.milter.messages import Abort, Connect, Helo, Mail, Quit, Rcpt

__all__ = ["MAX_LENGTH", "Line", "Outcome", "Step", "Story"]

MAX_LENGTH = 100
"""Steps that wait for a slow milter while the others decide without it."""


class Story:
    """The envelope as it stands, to be told again.

    Attributes:
        mail: the sender.
        recipients: those that nobody refused, each with its number in this message.
        numbers: these numbers.
        values: the macros.
    """

    __slots__ = ("mail", "numbers", "recipients", "values")

    def __init__(
        self, mail: Mail, recipients: Sequence[tuple[int, Path]], values: dict[bytes, bytes]
    ) -> None:
        self.mail = mail
        self.recipients = recipients
        self.numbers = frozenset(number for number, _ in recipients)
        self.values = values

    def briefings(self) -> Iterator[tuple[Briefing, int | None]]:
        """MAIL, and each RCPT with the recipient's number."""
        yield Briefing(self.mail, {**self.values, b"nrcpts": b"0"}), None
        for count, (number, path) in enumerate(self.recipients, 1):
            known = {**self.values, **rcpt_values(path), b"nrcpts": b"%d" % count}
            yield Briefing(Rcpt(path.address, path.args), known), number


class Outcome:
    """How telling a story again goes; its steps share one."""

    __slots__ = ("verdict",)

    def __init__(self) -> None:
        self.verdict = CONTINUE

    def note(self, event: object, verdict: Verdict, milter: str, *, failed: bool) -> None:
        """Note a verdict on a part of the story.

        What was accepted before and is refused now cannot be refused for good: the client has its 250. A
        failure, and the end of the connection, mean the same as ever.
        """
        refused = verdict.kind in {Kind.REJECT, Kind.TEMPFAIL} and not verdict.closes and not failed
        self.verdict = deferred(milter) if refused and isinstance(event, Mail | Rcpt) else verdict


class Step:
    """Something in the line, and the verdict on it once there is one.

    Attributes:
        event: what happened; None is the end of a story.
        packet: the event as it travels.
        macros: their packet, to be sent before it.
        recipient: the number of the recipient that this is about.
        muted: whether nobody cares for the verdict.
        outcome: of the story that this step is a part of.
        started: when it was sent, if somebody measures.
        verdict: None as long as there is none.
    """

    __slots__ = (
        "_tell",
        "event",
        "macros",
        "muted",
        "outcome",
        "packet",
        "recipient",
        "started",
        "verdict",
    )

    def __init__(
        self,
        event: Event | Abort | Quit | Story | None,
        packet: bytes = b"",
        macros: bytes = b"",
        *,
        recipient: int | None = None,
        muted: bool = False,
        outcome: Outcome | None = None,
        verdict: Verdict | None = None,
    ) -> None:
        self.event = event
        self.packet = packet
        self.macros = macros
        self.recipient = recipient
        self.muted = muted
        self.outcome = outcome
        self.started = 0.0
        self.verdict = verdict
        self._tell: Callable[[], None] | None = None

    def tell(self, callback: Callable[[], None]) -> None:
        """Call this when the verdict is there."""
        self._tell = callback

    def resolve(self, verdict: Verdict) -> None:
        """Take the verdict, and tell whoever waits for it."""
        self.verdict = verdict
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()


class Line:
    """Steps, run in order.

    Args:
        run: runs a step; answers its verdict, or None if that comes later by `settle`.

    Attributes:
        steps: what comes after that, and is not run yet.
        waiting: the step whose verdict is due.
    """

    __slots__ = ("_idle", "_run", "steps", "waiting")

    def __init__(self, run: Callable[[Step], Verdict | None]) -> None:
        self.waiting: Step | None = None
        self._run = run
        self.steps: deque[Step] = deque()
        self._idle: asyncio.Future[None] | None = None

    def submit(self, step: Step) -> Step:
        """Run a step, now or when it is its turn, and return it."""
        if self.waiting is None and not self.steps:
            step.verdict = self._run(step)
            if step.verdict is None and self.waiting is None:
                self.go_on()
        else:
            self.steps.append(step)
        return step

    def cut_in(self, steps: Iterable[Step]) -> None:
        """Put steps at the head of the line, to be run when the present one is done with."""
        self.steps.extendleft(reversed(list(steps)))

    def settle(self, verdict: Verdict) -> None:
        """The step that waited has its verdict, if one did; go on."""
        step, self.waiting = self.waiting, None
        if step is not None:
            step.resolve(verdict)
        self.go_on()

    def go_on(self) -> None:
        """Run what can be run."""
        while self.steps and self.waiting is None:
            step = self.steps.popleft()
            verdict = self._run(step)
            if verdict is not None:
                step.resolve(verdict)
        if self.waiting is None and self._idle is not None:
            idle, self._idle = self._idle, None
            idle.set_result(None)

    def forget_message(self) -> None:
        """Drop what belongs to a message that is given up: nobody waits for it any more."""
        if not self.steps:
            return
        steps, self.steps = self.steps, deque()
        for step in steps:
            if isinstance(step.event, Connect | Helo | Abort):
                self.steps.append(step)
            else:
                step.resolve(CONTINUE)

    async def drained(self) -> None:
        """Wait until no verdict is due."""
        while self.waiting is not None:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)
