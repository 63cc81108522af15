import pytest

from milterchain.milter.answers import Answer, MessageAnswer
from milterchain.milter.flags import Command
from milterchain.milter.messages import (
    Accept,
    Continue,
    Discard,
    Quarantine,
    Reject,
    Reply,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
)
from milterchain.milter.reply_text import ReplyParts

ANSWERS: list[tuple[Reply, bool, ReplyParts | None, bytes | None]] = [
    (Continue(), False, None, None),
    (Skip(), False, None, None),
    (Accept(), True, None, None),
    (Discard(), True, None, None),
    (
        Reject(),
        True,
        ReplyParts(550, "5.7.1", (b"Command rejected",)),
        b"550 5.7.1 Command rejected\r\n",
    ),
    (
        TempFail(),
        True,
        ReplyParts(451, "4.7.1", (b"Service unavailable - try again later",)),
        b"451 4.7.1 Service unavailable - try again later\r\n",
    ),
    (
        Shutdown(),
        True,
        ReplyParts(421, "4.7.0", (b"Server closing connection",)),
        b"421 4.7.0 Server closing connection\r\n",
    ),
    (
        ReplyCode(b"554-5.7.1 100%% spam\r\n554 5.7.1 go away"),
        True,
        ReplyParts(554, "5.7.1", (b"100% spam", b"go away")),
        b"554-5.7.1 100% spam\r\n554 5.7.1 go away\r\n",
    ),
    (ReplyCode(b"450 later"), True, ReplyParts(450, None, (b"later",)), b"450 later\r\n"),
    (ReplyCode(b"hello"), True, None, None),
    # The text is the milter's: what is one line stays one, and has the status that it had.
    (
        ReplyCode(b"550 x\n250 ok\r"),
        True,
        ReplyParts(550, None, (b"x?250 ok?",)),
        b"550 x?250 ok?\r\n",
    ),
    (
        ReplyCode(b"554-5.7.1 a\r\n554-b\r\n554 5.7.2"),
        True,
        ReplyParts(554, "5.7.1", (b"a", b"b", b"")),
        b"554-5.7.1 a\r\n554-b\r\n554 5.7.2\r\n",
    ),
    (ReplyCode(b"554 4.7.1 the wrong class"), True, None, None),
    (ReplyCode(b"554"), True, None, None),
]


@pytest.mark.parametrize(("reply", "stops", "refusal", "smtp"), ANSWERS, ids=lambda value: str(value)[:40])
def test_what_an_answer_means(
    reply: Reply, *, stops: bool, refusal: ReplyParts | None, smtp: bytes | None
) -> None:
    answer = Answer(event=Command.MAIL, reply=reply)
    assert (answer.stops, answer.refusal, answer.smtp) == (stops, refusal, smtp)
    assert str(answer) == str(reply)
    assert answer.asked


@pytest.mark.parametrize("event", [Command.CONNECT, Command.HELO])
def test_there_is_no_message_to_discard_yet(event: Command) -> None:
    assert not Answer(event=event, reply=Discard()).stops
    assert Answer(event=event, reply=Accept()).stops


def test_answers_are_values() -> None:
    one = MessageAnswer(event=Command.BODY, reply=Continue())
    assert one == MessageAnswer(event=Command.BODY, reply=Continue(), asked=True)
    assert one != MessageAnswer(event=Command.BODY, reply=Continue(), quarantine=Quarantine(b"x").text)
    assert one != Answer(event=Command.BODY, reply=Continue())
    assert len({one, MessageAnswer(event=Command.BODY, reply=Continue())}) == 1
