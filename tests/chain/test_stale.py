"""A recipient that one milter refused must not live on in what another believes."""

import pytest

from milterchain.milter.flags import Command, Protocol
from milterchain.milter.messages import (
    Accept,
    Continue,
    Discard,
    Macros,
    Mail,
    Rcpt,
    Reject,
    ReplyCode,
    Shutdown,
    TempFail,
)
from milterchain.testing.faults import Close, InTurn

R, M, T, E = Command.RCPT, Command.MAIL, Command.DATA, Command.END_OF_MESSAGE
NO = "550 5.7.1 Command rejected"
LATER = "451 4.7.1 Service unavailable - try again later"
REFUSES_R1 = {R: lambda command: Reject() if command == Rcpt(b"<r1@b.test>") else Continue()}


def again(answer, *, last=Continue()):  # noqa: B008 - a frozen value
    """Continue for the first telling (MAIL or two recipients), then another answer."""
    return InTurn(Continue(), answer, last)


async def test_told_again_before_data(lab):
    await lab.milter(REFUSES_R1)
    other = await lab.milter()
    session = await lab.session()
    assert await lab.play(session, "C H M R1 R2 R3 T E") == ["c", "c", "c", NO, "c", "c", "c", "c"]
    connection = other.connections[0]
    assert connection.codes == "OCHMRRRAMRRTLLLNBE"
    assert connection.of(Rcpt)[3:] == [Rcpt(b"<r2@b.test>"), Rcpt(b"<r3@b.test>")]
    assert connection.of(Mail)[0] == connection.of(Mail)[1]
    assert connection.violations == []
    told = [macros for macros in connection.of(Macros) if macros.stage == R]
    assert dict(told[3].values)[b"{rcpt_addr}"] == b"r2@b.test"
    assert dict(told[4].values)[b"{rcpt_addr}"] == b"r3@b.test"
    assert told[1:3] == told[3:5]
    mails = [macros for macros in connection.of(Macros) if macros.stage == M]
    assert mails[0] == mails[1]


async def test_keep_leaves_it(lab):
    await lab.milter(REFUSES_R1)
    other = await lab.milter()
    session = await lab.session({}, {"on_rejected_recipient": "keep"})
    await lab.play(session, "C H M R1 R2 T E")
    assert other.connections[0].codes == "OCHMRRTLLLNBE"


async def test_the_other_way_round(lab):
    other = await lab.milter()
    await lab.milter(REFUSES_R1)
    session = await lab.session()
    await lab.play(session, "C H M R2 R1 T E")
    assert other.connections[0].codes == "OCHMRRAMRTLLLNBE"


async def test_both_refuse_and_nothing_is_stale(lab):
    for _ in range(2):
        await lab.milter(REFUSES_R1)
    session = await lab.session()
    await lab.play(session, "C H M R1 R2 T E")
    assert {milter.connections[0].codes for milter in lab.milters} == {"OCHMRRTLLLNBE"}


async def test_the_next_message_starts_afresh(lab):
    await lab.milter(REFUSES_R1)
    other = await lab.milter()
    session = await lab.session()
    await lab.play(session, "C H M R1 R2 T E M R2 T E")
    assert other.connections[0].codes == "OCHMRRAMRTLLLNBEMRTLLLNBE"


@pytest.mark.parametrize(
    ("bits", "codes"),
    [
        ([Protocol.NO_RCPT], "OCHMTLLLNBE"),
        ([Protocol.NO_MAIL], "OCHRRARTLLLNBE"),
        ([Protocol.NO_DATA], "OCHMRRAMRLLLNBE"),
        ([Protocol.NO_REPLY_RCPT, Protocol.NO_REPLY_MAIL], "OCHMRRAMRTLLLNBE"),
    ],
)
async def test_what_was_declined_is_not_told_again(lab, bits, codes):
    await lab.milter(REFUSES_R1)
    other = await lab.milter(negotiate=lab.wants(*bits))
    session = await lab.session()
    assert (await lab.play(session, "C H M R1 R2 T E"))[-1] == "c"
    connection = other.connections[0]
    assert connection.codes == codes
    assert connection.violations == []


# what the second milter says when it is told again -> what the client hears at DATA, what that milter hears
VERDICTS = {
    "rejects the sender": ({M: again(Reject())}, LATER, "OCHMRRAM"),
    "rejects the sender with a text": ({M: again(ReplyCode(b"550 no"))}, LATER, "OCHMRRAM"),
    "closes at the sender": ({M: again(ReplyCode(b"421 bye"))}, "421 bye", "OCHMRRAM"),
    "accepts at the sender": ({M: again(Accept())}, "c", "OCHMRRAM"),
    "discards at the sender": ({M: again(Discard())}, "d", "OCHMRRAM"),
    "rejects the recipient": (
        {R: InTurn(Continue(), Continue(), Reject(), Continue())},
        LATER,
        "OCHMRRAMR",
    ),
    "defers the recipient": (
        {R: InTurn(Continue(), Continue(), TempFail(), Continue())},
        LATER,
        "OCHMRRAMR",
    ),
    "accepts at the recipient": ({R: InTurn(Continue(), Continue(), Accept())}, "c", "OCHMRRAMR"),
    "discards at the recipient": ({R: InTurn(Continue(), Continue(), Discard())}, "d", "OCHMRRAMR"),
    "rejects at data": ({T: Reject()}, NO, "OCHMRRAMRRT"),
    "shuts down": ({M: again(Shutdown())}, "421 4.7.0 Server closing connection", "OCHMRRAM"),
    "fails": ({M: again(Close())}, "550 5.5.0 Service unavailable", "OCHMRRAM"),
    "fails at the recipient": (
        {R: InTurn(Continue(), Continue(), Close())},
        "550 5.5.0 Service unavailable",
        "OCHMRRAMR",
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
async def test_verdicts_while_telling_again(lab, name):
    script, heard, codes = VERDICTS[name]
    await lab.milter(REFUSES_R1)
    other = await lab.milter(script)
    session = await lab.session({}, {"default_action": "reject"})
    assert (await lab.play(session, "C H M R1 R2 R3 T" if "data" in name else "C H M R1 R2 T"))[-1] == heard
    await other.wait_for(lambda: other.connections[0].codes.startswith(codes.replace("RRAMRRT", "RRRAMRRT")))


async def test_a_failure_while_telling_again_with_default_accept(lab):
    await lab.milter(REFUSES_R1)
    await lab.milter({M: again(Close())})
    session = await lab.session({}, {"default_action": "accept"})
    assert (await lab.play(session, "C H M R1 R2 T E"))[-2:] == ["c", "c"]


async def test_lost_before_telling_again(lab):
    await lab.milter(REFUSES_R1)
    other = await lab.milter({R: InTurn(Continue(), [Continue(), Close()])})
    session = await lab.session({}, {"default_action": "reject"})
    await lab.play(session, "C H M R1 R2")
    await other.wait_closed()
    assert await lab.play(session, "T") == ["550 5.5.0 Service unavailable"]


@pytest.mark.parametrize(
    ("word", "keep", "heard", "codes"),
    [
        (Accept(), False, "c", "OCHMRMRTLLLNBE"),
        (Accept(), True, "c", "OCHMR"),
        (Discard(), False, "c", "OCHMRAMRTLLLNBE"),
        (Discard(), True, "d", "OCHMRA"),
    ],
)
async def test_a_last_word_because_of_a_refused_recipient(lab, word, keep, heard, codes):
    await lab.milter(REFUSES_R1)
    other = await lab.milter({R: InTurn(word, Continue())}, drops_after_verdict=True)
    session = await lab.session({}, {"on_rejected_recipient": "keep" if keep else "replay"})
    assert (await lab.play(session, "C H M R1 R2 T E"))[-1] == heard
    await other.wait_for(lambda: other.connections[0].codes == codes)


async def test_content_tells_again_what_data_could_not(lab):
    """A front end that never says DATA is safe, too."""
    await lab.milter(REFUSES_R1)
    other = await lab.milter()
    refusing = await lab.milter({R: InTurn(Continue(), Continue(), Reject())})
    session = await lab.session()
    assert await lab.play(session, "C H M R1 R2 E") == ["c", "c", "c", NO, "c", LATER]
    await refusing.wait_for(lambda: refusing.connections[0].codes == "OCHMRRAMRA")
    await other.wait_for(lambda: other.connections[0].codes == "OCHMRRAMRA")
