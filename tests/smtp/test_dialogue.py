"""The dialogue, without sockets: what is answered, what the handler is asked."""

import logging

import pytest

from milterchain.mail.envelope import Path
from milterchain.mail.message import parse_message
from milterchain.mail.replies import Reply
from milterchain.smtp.dialogue import MAX_COMMAND, Dialogue
from milterchain.smtp.handler import Features
from milterchain.smtp.options import ServerOptions

MAIL = b"MAIL FROM:<a@b>"
RCPT = b"RCPT TO:<c@d>"
REJECT = Reply.of(550, "5.7.1 no")
ALL = Features(dsn=True, smtputf8=True)


@pytest.fixture
def begin(recording_handler):
    """Make a dialogue and say some lines; all replies as text."""

    async def run(*lines, script=None, features=None, minimal=False, **options):
        handler = recording_handler(None, script, features)
        handler.minimal_ehlo = minimal
        dialogue = Dialogue(handler, ServerOptions(hostname=b"mx.example", **options))
        replies = [str(await dialogue.greeting())]
        replies += [str(await dialogue.answer(line)) for line in lines]
        return dialogue, handler, replies

    return run


DIALOGUES = [
    # Each command in turn, with its reply.
    [(b"NOOP", "250 2.0.0 Ok"), (b"NOOP ignored", "250 2.0.0 Ok"), (b"QUIT", "221 2.0.0 Bye")],
    [(b"quit now", "501 5.5.4 Syntax: QUIT")],
    [(b"HELO c", "250 mx.example"), (MAIL, "250 2.1.0 Ok"), (RCPT, "250 2.1.5 Ok")],
    [
        (b"HELO", "501 5.5.4 Syntax: HELO or EHLO hostname"),
        (b"EHLO a b", "501 5.5.4 Error: invalid host name"),
    ],
    [(MAIL, "503 5.5.1 Error: send HELO/EHLO first"), (RCPT, "503 5.5.1 Error: need MAIL command")],
    [(b"HELO c", None), (MAIL + b" SIZE=1", "555 5.5.4 Unsupported option: SIZE")],
    [(b"EHLO c", None), (MAIL, "250 2.1.0 Ok"), (MAIL, "503 5.5.1 Error: nested MAIL command")],
    [(b"EHLO c", None), (b"MAIL TO:<a@b>", "501 5.5.4 Syntax: MAIL FROM:<address>")],
    [(b"EHLO c", None), (b"MAIL FROM:<a@b", "501 5.1.7 Bad sender address syntax")],
    [(b"EHLO c", None), (MAIL, None), (b"RCPT TO:<>", "501 5.1.3 Bad recipient address syntax")],
    [(b"EHLO c", None), (MAIL + b" SIZE=999", "250 2.1.0 Ok")],
    [
        (b"EHLO c", None),
        (MAIL + b" SIZE=1001", "552 5.3.4 Message size exceeds fixed limit"),
        (MAIL, "250 2.1.0 Ok"),
    ],
    [(b"EHLO c", None), (MAIL + b" BODY=8BITMIME", "250 2.1.0 Ok")],
    [(b"EHLO c", None), (MAIL + b" SMTPUTF8", "555 5.5.4 Unsupported option: SMTPUTF8")],
    [(b"EHLO c", None), (MAIL + b" RET=FULL", "555 5.5.4 Unsupported option: RET")],
    [(b"EHLO c", None), (MAIL, None), (RCPT + b" NOTIFY=NEVER", "555 5.5.4 Unsupported option: NOTIFY")],
    [(b"DATA", "503 5.5.1 Error: need RCPT command"), (b"DATA x", "501 5.5.4 Syntax: DATA")],
    [(b"EHLO c", None), (MAIL, None), (b"DATA", "554 5.5.1 Error: no valid recipients")],
    [(b"EHLO c", None), (MAIL, None), (RCPT, None), (b"DATA", "354 End data with <CR><LF>.<CR><LF>")],
    [
        (b"EHLO c", None),
        (MAIL, None),
        (b"RSET", "250 2.0.0 Ok"),
        (RCPT, "503 5.5.1 Error: need MAIL command"),
    ],
    [(b"RSET", "250 2.0.0 Ok"), (b"RSET x", "501 5.5.4 Syntax: RSET")],
    [(b"VRFY", "501 5.5.4 Syntax: VRFY address")],
    [(b"VRFY u", "252 2.0.0 Cannot VRFY user, but will take a message for it")],
    [(b"HELP", "214 2.0.0 HELO EHLO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT")],
    *(
        [(verb, "502 5.5.1 Error: command not implemented")]
        for verb in (b"EXPN x", b"TURN", b"STARTTLS", b"AUTH X")
    ),
    [(b"XCLIENT ADDR=192.0.2.1", "550 5.7.0 Error: insufficient authorization")],
    [(b"XFORWARD ADDR=192.0.2.1", "550 5.7.0 Error: insufficient authorization")],
    [(b"ETRN", "501 5.5.4 Syntax: ETRN domain"), (b"ETRN a b", "501 5.5.4 Syntax: ETRN domain")],
    [(b"ETRN x", "458 4.5.1 Unable to queue messages: there is no queue here")],
    [(b"EHLO c", None), (MAIL, None), (b"ETRN x", "503 5.5.1 Error: MAIL transaction in progress")],
    [(b"EHLO c", None), (MAIL + b" BODY=binarymime", "555 5.5.4 Unsupported option: BODY=BINARYMIME")],
    [(b"GET / HTTP/1.1", "221 2.7.0 Error: this is a mail server")],
    [
        (b"FOO", "500 5.5.2 Error: command not recognized"),
        (b" NOOP", "500 5.5.2 Error: command not recognized"),
    ],
    [(b"", "500 5.5.2 Error: bad syntax"), (b"FOO\x00", "500 5.5.2 Error: bad syntax")],
    [(b"NOOP " + b"x" * (MAX_COMMAND - 5), "250 2.0.0 Ok"), (b"x" * 2049, "500 5.5.2 Error: line too long")],
]


@pytest.mark.parametrize("rows", DIALOGUES)
async def test_dialogue(begin, rows):
    _, _, replies = await begin(*(line for line, _ in rows), message_size=1000)
    assert replies[0] == "220 mx.example ESMTP"
    for reply, (_, expected) in zip(replies[1:], rows, strict=True):
        assert expected in {None, reply}


async def test_what_is_offered(begin):
    first = "250 mx.example / PIPELINING / SIZE 1000 / ENHANCEDSTATUSCODES / 8BITMIME"
    last = " / CHUNKING / LIMITS RCPTMAX=1000"
    base = first + last
    for features, expected in (
        (None, base),
        (Features(dsn=True), first + " / DSN" + last),
        (Features(smtputf8=True), first + " / SMTPUTF8" + last),
        (ALL, first + " / DSN / SMTPUTF8" + last),
        (Features(binarymime=True), first + " / CHUNKING / BINARYMIME / LIMITS RCPTMAX=1000"),
        (Features(recipients=1), first + " / CHUNKING / LIMITS RCPTMAX=1"),
        (Features(recipients=5000), base),
        (Features(size=0), base),
        (Features(size=5000), base),
        (Features(size=500), base.replace("1000", "500", 1)),
    ):
        dialogue, _, replies = await begin(b"EHLO c", features=features, message_size=1000)
        assert replies[1] == expected
        assert dialogue.esmtp


async def test_features_are_asked_at_each_ehlo(begin):
    dialogue, handler, replies = await begin(b"EHLO c", MAIL + b" SMTPUTF8", features=ALL)
    assert replies[2].startswith("250")
    handler.offer = Features(size=10)
    assert "SMTPUTF8" not in str(await dialogue.answer(b"EHLO c"))
    assert (await dialogue.answer(MAIL + b" SMTPUTF8")).code == 555
    assert (await dialogue.answer(MAIL + b" SIZE=11")).code == 552
    assert str(await dialogue.answer(b"HELO c")) == "250 mx.example"
    assert not dialogue.esmtp
    assert (await dialogue.answer(MAIL + b" SIZE=1")).code == 555


async def test_handler_is_told_what_was_typed(begin):
    mail = b"mail from: <J\xc3\xbc@x> size=5 smtputf8 ENVID=Ab"
    rcpt = b'RCPT TO:<"a b"@x> NOTIFY=success,DELAY'
    _, handler, _ = await begin(b"EHLO c", mail, rcpt, b"DATA", b"WHAT  is\tthis ", features=ALL)
    assert handler.calls == [
        ("connect",),
        ("helo", b"c", True),
        (
            "mail",
            Path(b"<J\xc3\xbc@x>", (b"size=5", b"smtputf8", b"ENVID=Ab")),
            {b"SIZE": b"5", b"SMTPUTF8": None, b"ENVID": b"Ab"},
        ),
        ("rcpt", Path(b'<"a b"@x>', (b"NOTIFY=success,DELAY",)), {b"NOTIFY": b"success,DELAY"}),
        ("data",),
        ("unknown", b"WHAT  is\tthis "),
    ]


async def test_smtputf8_counts_for_one_transaction(begin):
    utf8 = "RCPT TO:<ü@x>".encode()
    _, _, replies = await begin(b"EHLO c", MAIL + b" SMTPUTF8", utf8, b"RSET", MAIL, utf8, features=ALL)
    assert [reply[:9] for reply in replies[2:]] == [
        "250 2.1.0",
        "250 2.1.5",
        "250 2.0.0",
        "250 2.1.0",
        "553 5.6.7",
    ]


async def test_refused_mail_opens_no_transaction(begin):
    dialogue, handler, replies = await begin(b"EHLO c", MAIL, RCPT, script={"mail": REJECT})
    assert replies[2:] == ["550 5.7.1 no", "503 5.5.1 Error: need MAIL command"]
    assert not dialogue.in_transaction
    assert "reset" not in handler.names()


async def test_refused_recipients_do_not_count(begin):
    _, _, replies = await begin(b"EHLO c", MAIL, RCPT, b"DATA", script={"rcpt": REJECT}, recipients=1)
    assert replies[3:] == ["550 5.7.1 no", "554 5.5.1 Error: no valid recipients"]


async def test_refused_data_ends_the_transaction(begin):
    dialogue, handler, replies = await begin(b"EHLO c", MAIL, RCPT, b"DATA", script={"data": REJECT})
    assert replies[-1] == "550 5.7.1 no"
    assert handler.names()[-2:] == ["data", "reset"]
    assert not dialogue.in_transaction
    assert not dialogue.awaits_data


async def test_positive_replies_of_the_handler(begin):
    script = {
        "connect": Reply.of(220, "mx.example ESMTP hello"),
        "helo": Reply.of(250, "mx.example at your service"),
        "mail": Reply.of(250, "2.1.0 fine"),
        "rcpt": Reply.of(251, "2.1.5 forwards"),
        "data": Reply.of(354, "go"),
        "unknown": Reply.of(250, "2.0.0 known"),
    }
    _, _, replies = await begin(b"HELO c", MAIL, RCPT, b"FOO", b"DATA", script=script)
    assert replies == [
        "220 mx.example ESMTP hello",
        "250 mx.example at your service",
        "250 2.1.0 fine",
        "251 2.1.5 forwards",
        "250 2.0.0 known",
        "354 go",
    ]
    _, _, replies = await begin(b"HELO c", MAIL, RCPT, b"DATA", script={"data": Reply.of(250, "2.0.0 odd")})
    assert replies[-1].startswith("354 ")


@pytest.mark.parametrize("again", [b"EHLO d", b"HELO d"])
async def test_second_helo_resets_first(begin, again):
    dialogue, handler, _ = await begin(b"EHLO c", MAIL, again)
    assert handler.names() == ["connect", "helo", "mail", "reset", "helo"]
    assert not dialogue.in_transaction


async def test_refused_helo_changes_nothing(begin):
    dialogue, _, replies = await begin(b"EHLO c", MAIL, script={"helo": REJECT})
    assert replies[1:] == ["550 5.7.1 no", "503 5.5.1 Error: send HELO/EHLO first"]
    assert not dialogue.over


async def test_rset_asks_the_handler_only_in_a_transaction(begin):
    _, handler, _ = await begin(b"EHLO c", b"RSET", MAIL, b"RSET", b"RSET")
    assert handler.count("reset") == 1


@pytest.mark.parametrize(
    ("own", "expected"), [(None, "550 5.7.1 Command rejected"), (REJECT, "550 5.7.1 no")]
)
async def test_refused_connection(begin, own, expected):
    script = {"connect": Reply.of(554, "mx.example ESMTP not accepting connections"), "mail": own}
    lines = [MAIL, b"EHLO c", MAIL, RCPT, b"DATA", b"VRFY u", b"NOOP", b"QUIT"]
    dialogue, handler, replies = await begin(*lines, script=script, features=ALL)
    assert replies == [
        "554 mx.example ESMTP not accepting connections",
        "503 5.5.1 Error: send HELO/EHLO first",
        "250 mx.example / ENHANCEDSTATUSCODES",
        expected,
        "503 5.5.1 Error: need MAIL command",
        "503 5.5.1 Error: need RCPT command",
        "550 5.7.1 Command rejected",
        "250 2.0.0 Ok",
        "221 2.0.0 Bye",
    ]
    # What the handler believed to be accepted is taken back.
    assert handler.count("reset") == (0 if own else 1)
    assert dialogue.over


async def test_minimal_ehlo(begin):
    _, _, replies = await begin(b"EHLO c", MAIL + b" SIZE=1", minimal=True, features=ALL)
    assert replies[1] == "250 mx.example / ENHANCEDSTATUSCODES"
    assert replies[2].startswith("555")


async def test_the_handler_may_answer_vrfy(begin):
    _, handler, replies = await begin(b"EHLO c", b"VRFY u", script={"vrfy": Reply.of(451, "4.7.1 Later")})
    assert replies[2] == "451 4.7.1 Later"
    assert ("vrfy", b"u") in handler.calls


CLOSING = Reply.of(421, "4.7.0 Server closing connection")


@pytest.mark.parametrize("stage", ["connect", "helo", "mail", "rcpt", "data", "unknown"])
async def test_closing_reply_ends_the_session(begin, stage):
    lines = [b"EHLO c", MAIL, RCPT, b"DATA"]
    lines = {"connect": [], "helo": lines[:1], "mail": lines[:2], "rcpt": lines[:3]}.get(stage, lines)
    dialogue, _, replies = await begin(
        *lines, *([b"FOO"] if stage == "unknown" else []), script={stage: CLOSING}
    )
    assert replies[-1] == "421 4.7.0 Server closing connection"
    assert dialogue.over


@pytest.mark.parametrize("stage", ["helo", "mail", "rcpt", "data", "unknown"])
async def test_failing_handler(begin, caplog, stage):
    failure = RuntimeError("secret")
    lines = [b"EHLO c", MAIL, RCPT, b"DATA"]
    lines = {"helo": lines[:1], "mail": lines[:2], "rcpt": lines[:3]}.get(stage, lines)
    lines += [b"FOO"] if stage == "unknown" else []
    dialogue, handler, replies = await begin(*lines, script={stage: failure, "reset": failure})
    assert replies[-1] == "451 4.3.0 Error: internal error, try again later"
    assert handler.names()[-2:] == [stage, "reset"]
    assert not dialogue.in_transaction
    assert not dialogue.over
    assert "secret" in caplog.text
    assert (await dialogue.answer(b"NOOP")).positive
    assert all(record.levelno == logging.ERROR for record in caplog.records)


async def test_failing_connect(begin, caplog):
    dialogue, _, replies = await begin(script={"connect": RuntimeError("secret")})
    assert replies == ["421 4.3.0 Error: internal error, closing connection"]
    assert dialogue.over
    assert "secret" in caplog.text


async def to_data(begin, **settings):
    dialogue, handler, _ = await begin(b"EHLO c", MAIL, RCPT, b"DATA", **settings)
    assert dialogue.awaits_data
    return dialogue, handler


async def test_message(begin):
    dialogue, handler = await to_data(begin)
    message = parse_message(b"A: b\r\n\r\nbody\r\n")
    assert str(await dialogue.message(message)) == "250 2.0.0 Taken"
    assert handler.messages == [b"A: b\r\n\r\nbody\r\n"]
    assert handler.names()[-1] == "message"
    assert not dialogue.in_transaction
    assert not dialogue.awaits_data
    assert str(await dialogue.answer(MAIL)) == "250 2.1.0 Ok"


async def test_refused_message(begin):
    dialogue, handler = await to_data(begin, script={"message": REJECT})
    assert await dialogue.message(parse_message(b"")) == REJECT
    assert handler.names()[-1] == "message"
    assert not dialogue.in_transaction
    assert dialogue.budget.errors == 1
    dialogue, _ = await to_data(begin, script={"message": CLOSING})
    await dialogue.message(parse_message(b""))
    assert dialogue.over


async def test_message_beyond_a_limit(begin):
    dialogue, handler = await to_data(begin)
    assert await dialogue.message(REJECT) == REJECT
    assert handler.names()[-1] == "reset"
    assert not dialogue.in_transaction


async def test_failing_message(begin, caplog):
    dialogue, handler = await to_data(begin, script={"message": RuntimeError("secret")})
    assert (await dialogue.message(parse_message(b""))).code == 451
    assert handler.names()[-1] == "reset"
    assert not dialogue.in_transaction
    assert "secret" in caplog.text


async def test_too_many_recipients(begin, monkeypatch):
    monkeypatch.setattr("milterchain.smtp.budget.MAX_OVERSHOOT", 2)
    dialogue, handler, replies = await begin(b"EHLO c", MAIL, *[RCPT] * 6, recipients=2)
    assert replies[3:] == ["250 2.1.5 Ok"] * 2 + ["452 4.5.3 Error: too many recipients"] * 4
    assert handler.count("rcpt") == 2
    assert dialogue.budget.errors == 2


ENOUGH = Reply.of(452, "4.5.3 one at a time")


async def test_too_many_recipients_for_the_next_hop(begin, monkeypatch):
    monkeypatch.setattr("milterchain.smtp.budget.MAX_OVERSHOOT", 2)

    async def one(handler):
        return ENOUGH if handler.count("rcpt") > 1 else None

    dialogue, _, replies = await begin(b"EHLO c", MAIL, *[RCPT] * 3, script={"rcpt": one})
    assert replies[4:] == [str(ENOUGH)] * 2
    assert dialogue.budget.errors == 0
    await dialogue.answer(RCPT)
    assert dialogue.budget.errors == 1


async def test_452_without_a_recipient_is_an_error(begin):
    dialogue, _, _ = await begin(b"EHLO c", MAIL, RCPT, script={"rcpt": ENOUGH})
    assert dialogue.budget.errors == 1


async def test_errors_are_counted(begin):
    dialogue, _, _ = await begin(b"FOO", b"", b"MAIL", b"NOOP", errors=4)
    assert dialogue.budget.errors == 3
    assert not dialogue.exhausted
    await dialogue.answer(b"FOO")
    assert dialogue.exhausted


async def test_a_message_makes_good(begin):
    dialogue, _, _ = await begin(b"FOO", b"NOOP", b"EHLO c", MAIL, RCPT, b"DATA", junk_commands=1)
    assert dialogue.budget.errors == 1
    await dialogue.message(parse_message(b""))
    assert dialogue.budget.errors == 0
    await dialogue.answer(b"NOOP")
    assert dialogue.budget.errors == 0
    await dialogue.answer(b"NOOP")
    assert dialogue.budget.errors == 1


async def test_junk_becomes_errors(begin):
    lines = [b"NOOP", b"RSET", b"VRFY u", b"HELP", b"NOOP", b"VRFY"]
    dialogue, _, replies = await begin(*lines, junk_commands=3)
    assert dialogue.budget.errors == 3
    assert replies[5] == "250 2.0.0 Ok"


async def test_greetings_without_end_become_errors(begin):
    dialogue, _, replies = await begin(*[b"EHLO c", b"HELO c"] * 3, junk_commands=3)
    assert dialogue.budget.errors == 2  # the first of the six is a matter of course
    assert replies[-1] == "250 mx.example"


async def test_limits_that_were_set(begin):
    dialogue, _, replies = await begin(b"EHLO c", recipients=2_000_000, mails=2)
    assert replies[1].endswith(" / CHUNKING / LIMITS MAILMAX=2")
    for _ in range(2):
        assert (await dialogue.answer(MAIL)).code == 250
        await dialogue.answer(b"RSET")
    assert str(await dialogue.answer(MAIL)) == "452 4.5.3 Error: too many messages in this session"
    _, _, replies = await begin(b"EHLO c", recipients=2_000_000)
    assert "LIMITS" not in replies[1]


async def test_no_etrn_for_the_refused(begin):
    _, _, replies = await begin(b"ETRN x", script={"connect": REJECT})
    assert replies[1] == "550 5.7.1 Command rejected"
