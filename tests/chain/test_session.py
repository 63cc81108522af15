"""Sessions over real sockets: what each milter hears, and what the client is told."""

import pytest

from milterchain.chain.session import Chain
from milterchain.chain.verdict import Kind
from milterchain.errors import LocalProtocolError
from milterchain.mail.envelope import Envelope, Path
from milterchain.milter.flags import Command, Protocol
from milterchain.milter.messages import (
    Accept,
    Connect,
    Discard,
    Helo,
    Mail,
    Rcpt,
    Reject,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
    Unknown,
)
from milterchain.testing.faults import InTurn

C, H, M, R, T, U = (
    Command.CONNECT,
    Command.HELO,
    Command.MAIL,
    Command.RCPT,
    Command.DATA,
    Command.UNKNOWN,
)
L, N, B, E = Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE
NO = "550 5.7.1 Command rejected"
LATER = "451 4.7.1 Service unavailable - try again later"
BYE = "421 4.7.0 Server closing connection"
FIRST = InTurn


async def test_a_session_with_two_messages(lab):
    milter = await lab.milter()
    session = await lab.greeted()
    for _ in range(2):
        outcome = await lab.send(session)
        assert outcome.verdict.kind is Kind.CONTINUE
        assert b"".join(outcome.message.chunks()) == lab.raw
    await session.close()
    connection = await milter.wait_closed()
    assert connection.codes == "OCHMRTLLLNBEMRTLLLNBEQ"
    assert connection.violations == []
    assert connection.of(Connect)[0].hostname == b"client.test"
    assert connection.of(Helo) == [Helo(b"client.test")]
    assert connection.of(Mail)[0] == Mail(b"<sender@a.test>", (b"SIZE=10",))
    assert connection.of(Rcpt)[0] == Rcpt(b"<r@b.test>")


async def test_no_milters_at_all(lab):
    session = await lab.greeted()
    outcome = await lab.send(session)
    assert outcome.verdict.kind is Kind.CONTINUE
    assert (await session.unknown(b"FOO")).kind is Kind.CONTINUE


# steps, script of m0, script of m1, what the client hears, what m0 hears, what m1 hears
DIALOGUES = {
    "nothing to say": ("C H M R1 T E Q", {}, {}, "c c c c c c", "OCHMRTLLLNBEQ", "OCHMRTLLLNBEQ"),
    # who accepts
    "accept at connect": ("C H M R1 T E Q", {C: Accept()}, {}, "c c c c c c", "OCQ", "OCHMRTLLLNBEQ"),
    "accept at helo": ("C H M R1 T E Q", {}, {H: Accept()}, "c c c c c c", "OCHMRTLLLNBEQ", "OCHQ"),
    "accept at mail is for one message": (
        "C H M R1 T E M R1 T E Q",
        {M: FIRST(Accept(), Skip())},
        {},
        "c c c c c c c c c c",
        "OCHMMRTLLLNBEQ",
        "OCHMRTLLLNBEMRTLLLNBEQ",
    ),
    "accept at rcpt is for the message": (
        "C H M R1 R2 T E M R1 T E Q",
        {R: FIRST(Accept(), Skip())},
        {},
        "c c c c c c c c c c c",
        "OCHMRMRTLLLNBEQ",
        "OCHMRRTLLLNBEMRTLLLNBEQ",
    ),
    "accept at data": ("C H M R1 T E Q", {T: Accept()}, {}, "c c c c c c", "OCHMRTQ", "OCHMRTLLLNBEQ"),
    "accept at end of message": ("C H M R1 T E Q", {E: Accept()}, {}, "c c c c c c", "OCHMRTLLLNBEQ",
                                 "OCHMRTLLLNBEQ"),
    # who refuses
    "reject at connect": ("C H M Q", {}, {C: Reject()}, f"{NO};{NO};{NO}", "OCQ", "OCQ"),
    "tempfail at connect": ("C H U M Q", {C: TempFail()}, {}, f"{LATER};{LATER};{LATER};{LATER}", "OCQ",
                            None),
    "text at connect": ("C M Q", {C: ReplyCode(b"554 5.7.1 no")}, {}, "554 5.7.1 no;554 5.7.1 no", "OCQ",
                        None),
    "shutdown at connect": ("C Q", {C: Shutdown()}, {}, BYE, "OCQ", None),
    "reject at helo": ("C H H M Q", {H: Reject()}, {}, f"c;{NO};{NO};{NO}", "OCHQ", "OCHQ"),
    "discard at connect and helo is ignored": (
        "C H M R1 T E Q", {C: Discard(), H: Discard()}, {}, "c c c c c c", "OCHMRTLLLNBEQ", "OCHMRTLLLNBEQ"),
    "reject at mail": ("C H M M R1 T E Q", {M: FIRST(Reject(), Skip())}, {}, f"c;c;{NO};c;c;c;c",
                       "OCHMMRTLLLNBEQ", "OCHMAMRTLLLNBEQ"),
    "tempfail at mail by the second": ("C H M M R1 T E Q", {}, {M: FIRST(TempFail(), Skip())},
                                       f"c;c;{LATER};c;c;c;c", "OCHMAMRTLLLNBEQ", "OCHMMRTLLLNBEQ"),
    "shutdown at mail": ("C H M Q", {M: Shutdown()}, {}, f"c;c;{BYE}", "OCHMQ", "OCHMAQ"),
    "421 at mail": ("C H M Q", {}, {M: ReplyCode(b"421 4.7.0 x")}, "c;c;421 4.7.0 x", "OCHMAQ", "OCHMQ"),
    "reject at rcpt is for the recipient": (
        "C H M R1 R2 T E Q", {R: FIRST(Reject(), Skip())}, {}, f"c;c;c;{NO};c;c;c",
        "OCHMRRTLLLNBEQ", "OCHMRRAMRTLLLNBEQ"),
    "shutdown at rcpt": ("C H M R1 Q", {R: Shutdown()}, {}, f"c;c;c;{BYE}", "OCHMRAQ", "OCHMRAQ"),
    "reject at data ends the transaction": (
        "C H M R1 T M R1 T E Q", {}, {T: FIRST(Reject(), Skip())}, f"c;c;c;c;{NO};c;c;c;c",
        "OCHMRTAMRTLLLNBEQ", "OCHMRTMRTLLLNBEQ"),
    "reject at the end": ("C H M R1 T E M Q", {E: Reject()}, {}, f"c;c;c;c;c;{NO};c",
                          "OCHMRTLLLNBEMAQ", "OCHMRTAMAQ"),
    "shutdown at the end": ("C H M R1 T E Q", {}, {E: Shutdown()},
                            "c;c;c;c;c;421 4.7.0 Service unavailable", "OCHMRTLLLNBEQ", "OCHMRTLLLNBEQ"),
    # who discards
    "discard at mail": ("C H M R1 T E M Q", {M: Discard()}, {}, "c c d c c d d", "OCHMMQ", "OCHMAMAQ"),
    "discard at rcpt": ("C H M R1 R2 T E M Q", {}, {R: Discard()}, "c c c d c c d c", "OCHMRAMAQ",
                        "OCHMRAMAQ"),
    "discard at data": ("C H M R1 T E M Q", {T: Discard()}, {}, "c c c c d d c", "OCHMRTMAQ", "OCHMRTAMAQ"),
    "discard at the end": ("C H M R1 T E M Q", {E: Discard()}, {}, "c c c c c d c", "OCHMRTLLLNBEMAQ",
                           "OCHMRTAMAQ"),
    "discarded and reset": ("C H M R1 A M R1 T E Q", {R: FIRST(Discard(), Skip())}, {}, "c;c;c;d;;c;c;c;c",
                            "OCHMRAMRTLLLNBEQ", "OCHMRAMRTLLLNBEQ"),
    "discard at an unknown command is ignored": ("C H M U R1 T E Q", {U: Discard()}, {}, "c c c c c c c",
                                                 "OCHMURTLLLNBEQ", "OCHMURTLLLNBEQ"),
    # the first in order decides
    "reject before discard": ("C H M Q", {M: Reject()}, {M: Discard()}, f"c;c;{NO}", "OCHMQ", "OCHMQ"),
    "discard before reject": ("C H M Q", {M: Discard()}, {M: Reject()}, "c;c;d", "OCHMQ", "OCHMQ"),
    # unknown commands
    "unknown": ("C U H U M U R1 U Q", {}, {U: TempFail()}, f"c;{LATER};c;{LATER};c;{LATER};c;{LATER}",
                "OCUHUMURUAQ", "OCUHUMURUAQ"),
    "accept at an unknown command": ("C H M U R1 U T E M R1 Q", {U: Accept()}, {}, "c c c c c c c c c c",
                                     "OCHMUAMRAQ", "OCHMURUTLLLNBEMRAQ"),
    "accept at an unknown command before any message": (
        "C H U U M R1 T E Q", {U: Accept()}, {}, "c c c c c c c c", "OCHUUMRTLLLNBEQ", "OCHUUMRTLLLNBEQ"),
    "unknown after a verdict": ("C H M U R1 T E U Q", {M: Accept()}, {}, "c c c c c c c c", "OCHMUQ",
                                "OCHMURTLLLNBEUQ"),
    # aborts
    "rset": ("C H A M A A M R1 A M R1 T A M R1 T E A Q", {}, {}, "c;c;;c;;;c;c;;c;c;c;;c;c;c;c;",
             "OCHMAMRAMRTAMRTLLLNBEQ", "OCHMAMRAMRTAMRTLLLNBEQ"),
    "helo in a transaction": ("C H M R1 H M R1 T E H Q", {}, {}, "c c c c c c c c c c", "OCHMRAHMRTLLLNBEHQ",
                              "OCHMRAHMRTLLLNBEHQ"),
    "mail in a transaction": ("C H M R1 M Q", {}, {}, "c c c c c", "OCHMRAMAQ", "OCHMRAMAQ"),
    "helo again": ("C H H M Q", {}, {}, "c c c c", "OCHHMAQ", "OCHHMAQ"),
    "lost after rcpt": ("C H M R1 Q Q", {}, {}, "c c c c", "OCHMRAQ", "OCHMRAQ"),
    "lost after connect": ("C Q", {}, {}, "c", "OCQ", "OCQ"),
    "mail without helo": ("C M R1 T E Q", {}, {}, "c c c c c", "OCMRTLLLNBEQ", "OCMRTLLLNBEQ"),
    # skip
    "skip recipients": ("C H M R1 R2 R3 T E M R1 Q", {R: Skip()}, {}, "c c c c c c c c c c",
                        "OCHMRTLLLNBEMRAQ", "OCHMRRRTLLLNBEMRAQ"),
    "skip until something else happens": ("C H M R1 R2 U R3 R4 T E Q", {R: Skip()}, {},
                                          "c c c c c c c c c c", "OCHMRURTLLLNBEQ", "OCHMRRURRTLLLNBEQ"),
    "skip helo": ("C H H M H Q", {H: Skip()}, {}, "c c c c c", "OCHMAHQ", "OCHHMAHQ"),
    "skip mail": ("C H M A M Q", {M: Skip()}, {}, "c;c;c;;c", "OCHMAMAQ", "OCHMAMAQ"),
    "skip the end": ("C H M R1 T E Q", {E: Skip()}, {}, "c c c c c c", "OCHMRTLLLNBEQ", "OCHMRTLLLNBEQ"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIALOGUES)
async def test_dialogue(lab, name):
    steps, first, second, client, *heard = DIALOGUES[name]
    for script in (first, second):
        await lab.milter(script)
    session = await lab.session()
    told = await lab.play(session, steps)
    expected = client.split(";") if ";" in client or client[0].isdigit() else client.split()
    assert [one for one in told if one] == [one for one in expected if one]
    for milter, codes in zip(lab.milters, heard, strict=True):
        if codes is None:
            continue
        connection = await milter.wait_closed()
        assert connection.codes == codes
        assert connection.violations == []


@pytest.mark.parametrize("stage", [C, H, M, R, T, E])
async def test_accept_of_the_only_milter_is_nothing_special(lab, stage):
    await lab.milter({stage: Accept()})
    session = await lab.session()
    assert await lab.play(session, "C H M R1 T E") == ["c"] * 6


DECLINED = {
    "no mail": ([Protocol.NO_MAIL], "OCHRTLLLNBERAQ"),
    "no mail, no rcpt": ([Protocol.NO_MAIL, Protocol.NO_RCPT], "OCHTLLLNBEAQ"),
    "no connect, no helo": ([Protocol.NO_CONNECT, Protocol.NO_HELO], "OMRTLLLNBEMRAQ"),
    "no content": ([Protocol.NO_HEADERS, Protocol.NO_BODY, Protocol.NO_END_OF_HEADERS], "OCHMRTEMRAQ"),
    "no data": ([Protocol.NO_DATA], "OCHMRLLLNBEMRAQ"),
    "no replies": (
        [bit for bit in Protocol if bit.name and bit.name.startswith("NO_REPLY")],
        "OCHMRTLLLNBEMRAQ",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
async def test_what_a_milter_declined(lab, name):
    bits, codes = DECLINED[name]
    milter = await lab.milter(negotiate=lab.wants(*bits))
    session = await lab.session()
    assert set(await lab.play(session, "C H M R1 T E M R1 Q")) == {"c", ""}
    connection = await milter.wait_closed()
    assert connection.codes == codes
    assert connection.violations == []


@pytest.mark.parametrize(
    ("version", "codes"), [(2, "OCHMRLLLNBEQ"), (3, "OCHMURLLLNBEQ"), (4, "OCHMURTLLLNBEQ")]
)
async def test_old_versions(lab, version, codes):
    milter = await lab.milter(negotiate=lab.wants(version=version))
    session = await lab.session()
    assert set(await lab.play(session, "C H M U R1 T E Q")) == {"c", ""}
    connection = await milter.wait_closed()
    assert connection.codes == codes
    assert connection.violations == []


async def test_unknown_lines_are_told_without_nul(lab):
    milter = await lab.milter()
    session = await lab.greeted()
    await session.unknown(b"FOO\0 bar")
    assert milter.connections[0].of(Unknown) == [Unknown(b"FOO bar")]


async def test_content_without_a_transaction_is_never_passed(lab):
    await lab.milter({T: Reject()})
    session = await lab.greeted()
    for wrong in (
        session.data,
        lambda: session.rcpt(Path(b"<r@b.test>")),
        lambda: session.content(lab.message(), Envelope(lab.sender)),
    ):
        with pytest.raises(LocalProtocolError, match="without MAIL"):
            await wrong()
    await lab.play(session, "M R1 T")
    with pytest.raises(LocalProtocolError, match="without MAIL"):
        await session.content(lab.message(), Envelope(lab.sender))


async def test_two_milters_of_one_name(lab):
    milter = await lab.milter()
    with pytest.raises(ValueError, match="same name"):
        Chain([lab.settings(milter), lab.settings(milter)], hostname=b"mx.test")


async def test_refused_recipients_reach_those_who_asked(lab):
    curious = await lab.milter({R: Reject()}, negotiate=lab.wants(Protocol.RCPT_REJECTED))
    other = await lab.milter()
    session = await lab.session()
    assert await lab.play(session, "C H X1 M X1") == ["c", "c", "", "c", ""]
    await curious.wait_for(lambda: curious.connections[0].of(Rcpt))
    assert curious.connections[0].of(Rcpt) == [Rcpt(b"<r1@b.test>")]
    macros = curious.connections[0].macros(R)
    assert macros[b"{rcpt_mailer}"] == b"error"
    assert macros[b"{rcpt_host}"] == b"5.1.1"
    assert macros[b"{rcpt_addr}"] == b"no such user"
    assert macros[b"i"] == b"Q1"
    assert other.connections[0].of(Rcpt) == []
    assert session.macros.get(b"rcpt_mailer") is None


@pytest.mark.parametrize("answer", [Accept(), Discard()])
async def test_the_answer_to_a_refused_recipient_is_of_no_consequence(lab, answer):
    """libmilter forgets the message after such an answer; it is told again."""
    milter = await lab.milter({R: FIRST(answer, Skip())}, negotiate=lab.wants(Protocol.RCPT_REJECTED))
    session = await lab.session()
    assert await lab.play(session, "C H M X1 R2 T E Q") == ["c", "c", "c", "", "c", "c", "c", ""]
    connection = await milter.wait_closed()
    assert connection.codes == ("OCHMRMRTLLLNBEQ" if answer == Accept() else "OCHMRAMRTLLLNBEQ")
    assert connection.of(Rcpt)[-1] == Rcpt(b"<r2@b.test>")
