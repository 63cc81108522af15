"""Every verdict at every stage: the client is told what Postfix tells it, and the session goes on alike."""

from collections.abc import Iterator

import pytest

from integration.compare import Arrival, Side, both_sides
from integration.corpus import head
from integration.services.filters import start_editor
from integration.services.process import Run
from integration.services.smtp import Answer, Client, Outcome

STAGES = ("mail", "rcpt", "data", "header", "eoh", "body", "eom")
VERDICTS = ("reject", "tempfail", "discard", "accept", "reply5", "reply4", "reply421")
CASES = [(stage, verdict) for stage in STAGES for verdict in VERDICTS]
RECIPIENTS = (b"<one@example.test>", b"<two@example.test>")

Shape = tuple[int, tuple[bytes, ...]]


@pytest.fixture(scope="module")
def sides(run: Run, nameserver: str) -> tuple[Side, Side]:
    """The filter that judges stands between two that do not."""
    del nameserver
    return both_sides(run, [start_editor(run, name, unix=True) for name in ("blue", "red", "green")])


@pytest.mark.parametrize(("stage", "verdict"), CASES)
def test_same_as_postfix(sides: tuple[Side, Side], stage: str, verdict: str) -> None:
    proxied, direct = (_talk(side, sender=f"<verdict-red-{stage}-{verdict}@example.test>") for side in sides)
    assert proxied == direct


@pytest.mark.parametrize("verdict", VERDICTS)
def test_same_as_postfix_after_helo(sides: tuple[Side, Side], verdict: str) -> None:
    proxied, direct = (_talk(side, helo=f"verdict-red-helo-{verdict}.example.test") for side in sides)
    assert proxied == direct


def _talk(
    side: Side, *, helo: str = "client.example.test", sender: str = "<sender@example.test>"
) -> tuple[list[Shape], list[Arrival]]:
    """A judged message, then another one in the same session: all replies, and what arrived."""
    before = len(side.sink.received())
    with Client(side.address, helo=b"EHLO " + helo.encode()) as client:
        answers = [client.banner, client.greeting]
        for each in (sender, "<second@example.test>"):
            content = head(each) + b"\r\nbody\r\n"
            answers += _answers(client.send(each.encode(), RECIPIENTS, content))
            answers.append(client.command(b"RSET"))
        answers.append(client.command(b"QUIT"))
    # Postfix delivers its queue in any order.
    arrived = sorted(side.arrived_since(before), key=lambda arrival: arrival.sender)
    return [_shape(answer) for answer in answers if answer is not None], arrived


def _answers(outcome: Outcome) -> Iterator[Answer | None]:
    yield outcome.mail
    yield from outcome.rcpt
    yield outcome.data
    yield outcome.end


def _shape(answer: Answer) -> Shape:
    """The code; for refusals the text as well, the host's own name aside."""
    if answer.code < 400:
        return answer.code, ()
    names = (b"proxy.example.test", b"mx.example.test")
    lines = answer.lines
    for name in names:
        lines = tuple(line.replace(name, b"HOST") for line in lines)
    return answer.code, lines
