"""Every cell of the verdict table, the grammar of reply codes, and what a standing verdict means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.chain.settings import DefaultAction
from milterchain.chain.verdict import (
    CONTINUE,
    Fault,
    Kind,
    Scope,
    Verdict,
    auth_reply,
    banner_reply,
    combine,
    deferred,
    fault_verdict,
    helo_reply,
    mail_reply,
    minimal_ehlo,
    parse_reply_code,
    scope_of,
    unknown_reply,
    verdict_of,
)
from milterchain.mail.replies import Reply
from milterchain.milter.flags import Command
from milterchain.milter.messages import (
    Accept,
    ConnFail,
    Continue,
    Discard,
    Reject,
    ReplyCode,
    Shutdown,
    Skip,
    TempFail,
)

CONNECTION = [Command.CONNECT, Command.HELO]
ENVELOPE = [Command.MAIL, Command.RCPT, Command.DATA]
CONTENT = [Command.HEADER, Command.END_OF_HEADERS, Command.BODY, Command.END_OF_MESSAGE]
MESSAGE = [*ENVELOPE, *CONTENT]
ALL = [*CONNECTION, *MESSAGE, Command.UNKNOWN]

REFUSED = "550 5.7.1 Command rejected"
DEFERRED = "451 4.7.1 Service unavailable - try again later"

CELLS = [
    (Continue(), ALL, Kind.CONTINUE, None),
    (Skip(), ALL, Kind.CONTINUE, None),
    (Accept(), ALL, Kind.ACCEPT, None),
    (Discard(), [*CONNECTION, Command.UNKNOWN], Kind.CONTINUE, None),
    (Discard(), MESSAGE, Kind.DISCARD, None),
    (Reject(), ALL, Kind.REJECT, REFUSED),
    (TempFail(), ALL, Kind.TEMPFAIL, DEFERRED),
    (
        Shutdown(),
        [*CONNECTION, *ENVELOPE, Command.UNKNOWN],
        Kind.SHUTDOWN,
        "421 4.7.0 Server closing connection",
    ),
    (Shutdown(), CONTENT, Kind.SHUTDOWN, "421 4.7.0 Service unavailable"),
    (ReplyCode(b"550 5.7.1 no"), ALL, Kind.REJECT, "550 5.7.1 no"),
    (ReplyCode(b"451-4.7.1 not\r\n451 4.7.1 now"), ALL, Kind.TEMPFAIL, "451 4.7.1 not / 4.7.1 now"),
    (ReplyCode(b"421 4.7.0 bye"), ALL, Kind.TEMPFAIL, "421 4.7.0 bye"),
    (ReplyCode(b"521 5.7.0 bye"), ALL, Kind.REJECT, "521 5.7.0 bye"),
]


@pytest.mark.parametrize(
    ("reply", "event", "kind", "text"),
    [(reply, event, kind, text) for reply, events, kind, text in CELLS for event in events],
)
def test_each_cell(reply, event, kind, text):
    verdict = verdict_of(reply, event, "m")
    assert verdict.kind is kind
    assert (None if verdict.reply is None else str(verdict.reply)) == text
    assert verdict.milter == (None if kind is Kind.CONTINUE else "m")
    assert verdict.quarantine is None
    assert verdict.decides is (kind not in {Kind.CONTINUE, Kind.ACCEPT})


@pytest.mark.parametrize("event", ALL)
def test_what_postfix_calls_an_error_is_a_fault(event):
    assert verdict_of(ConnFail(), event, "m") is Fault.SERVICE
    assert verdict_of(ReplyCode(b"250 fine"), event, "m") is Fault.CONFIGURATION


@pytest.mark.parametrize(
    ("reply", "closes"),
    [
        (Reject(), False),
        (Shutdown(), True),
        (ReplyCode(b"421 x"), True),
        (ReplyCode(b"521 x"), True),
        (ReplyCode(b"422 x"), False),
        (Discard(), False),
    ],
)
def test_what_closes(reply, closes):
    assert verdict_of(reply, Command.MAIL, "m").closes is closes


SCOPES = [
    (Continue(), ALL, Scope.EVENT),
    (Accept(), CONNECTION, Scope.CONNECTION),
    (Accept(), [*MESSAGE, Command.UNKNOWN], Scope.MESSAGE),
    (Discard(), [*CONNECTION, Command.UNKNOWN], Scope.EVENT),
    (Discard(), MESSAGE, Scope.MESSAGE),
    (Shutdown(), ALL, Scope.CONNECTION),
    *(
        (reply, events, scope)
        for reply in (Reject(), TempFail(), ReplyCode(b"550 x"), ReplyCode(b"450 x"), ReplyCode(b"421 x"))
        for events, scope in (
            (CONNECTION, Scope.CONNECTION),
            ([Command.RCPT, Command.UNKNOWN], Scope.EVENT),
            ([Command.MAIL, Command.DATA, *CONTENT], Scope.MESSAGE),
        )
    ),
]


@pytest.mark.parametrize(
    ("reply", "event", "scope"),
    [(reply, event, scope) for reply, events, scope in SCOPES for event in events],
)
def test_each_scope(reply, event, scope):
    assert scope_of(verdict_of(reply, event, "m"), event) is scope


@pytest.mark.parametrize(
    ("payload", "reply"),
    [
        (b"550 5.7.1 no", "550 5.7.1 no"),
        (b"550 ", "550 "),
        (b"550-", "550 "),
        (b"450 later", "450 later"),
        (b"550-one\r\n550 two", "550 one / two"),
        (b"550 one\r\n550-two", "550 one / two"),
        (b"550-one\r\n550-two", "550 one / two"),
        (b"550 one\r\n550 two", "550 one / two"),
        (b"550-5.7.1 one\r\n550 5.7.1 two", "550 5.7.1 one / 5.7.1 two"),
        (b"550 100%% sure 5%", None),
        (b"550 all 100%% sure 5% off", "550 all 100% sure 5 off"),
        (b"550 %%%", "550 %"),
        (b"550 %%%%", "550 %%"),
        (b"550 \xc3\xa4", "550 \u00e4"),
        (b"550 a\nb\rc", "550 a?b?c"),
        (b"", None),
        (b"55", None),
        (b"550", None),
        (b"550no", None),
        (b"250 fine", None),
        (b"350 go", None),
        (b"650 what", None),
        (b"5x0 what", None),
        (b"550 5.7.1 no\r\n", None),
        (b"550-one\r\n551 two", None),
        (b"550-one\r\ntwo", None),
        (b"550-one\r\n550 4.7.1 two", None),
        (b"550 100 reasons", None),
        (b"550 4.7.1 class", None),
        (b"450 5.7.1 class", None),
        (b" 550 no", None),
        (b"550 a\0b", None),
        (b"\r\n".join([b"550-x"] * 127 + [b"550 x"]), "550 " + " / ".join(["x"] * 128)),
        (b"\r\n".join([b"550-x"] * 128 + [b"550 x"]), None),
        (b"550 " + b"x" * 5000, None),
    ],
)
def test_reply_code_grammar(payload, reply):
    parsed = parse_reply_code(payload)
    assert (None if parsed is None else str(parsed)) == reply


@given(
    st.binary(max_size=60) | st.from_regex(rb"\A[45][0-9][0-9][ -].{0,20}(\r\n[45][0-9][0-9][ -].{0,20})?\Z")
)
def test_no_payload_breaks_out_of_its_reply(payload):
    reply = parse_reply_code(payload)
    if reply is not None:
        assert reply.code // 100 in {4, 5}
        assert reply.encode().count(b"\r\n") == len(reply.lines)
        assert reply.encode().count(b"\n") == reply.encode().count(b"\r") == len(reply.lines)


FAULTS = [
    (DefaultAction.ACCEPT, Fault.SERVICE, Kind.CONTINUE, None, None),
    (DefaultAction.ACCEPT, Fault.CONFIGURATION, Kind.CONTINUE, None, None),
    (DefaultAction.QUARANTINE, Fault.SERVICE, Kind.CONTINUE, None, b"default_action"),
    (DefaultAction.QUARANTINE, Fault.CONFIGURATION, Kind.CONTINUE, None, b"default_action"),
    (DefaultAction.REJECT, Fault.SERVICE, Kind.REJECT, "550 5.5.0 Service unavailable", None),
    (
        DefaultAction.REJECT,
        Fault.CONFIGURATION,
        Kind.TEMPFAIL,
        "451 4.3.5 Server configuration problem - try again later",
        None,
    ),
    (DefaultAction.TEMPFAIL, Fault.SERVICE, Kind.TEMPFAIL, DEFERRED, None),
    (
        DefaultAction.TEMPFAIL,
        Fault.CONFIGURATION,
        Kind.TEMPFAIL,
        "451 4.3.5 Server configuration problem - try again later",
        None,
    ),
    (
        DefaultAction.SHUTDOWN,
        Fault.SERVICE,
        Kind.SHUTDOWN,
        "421 4.7.1 Service unavailable - try again later",
        None,
    ),
    (
        DefaultAction.SHUTDOWN,
        Fault.CONFIGURATION,
        Kind.SHUTDOWN,
        "421 4.3.5 Server configuration problem - try again later",
        None,
    ),
]


@pytest.mark.parametrize(("action", "fault", "kind", "text", "held"), FAULTS)
def test_each_default_action(action, fault, kind, text, held):
    verdict = fault_verdict(action, fault, "m")
    assert verdict.kind is kind
    assert (None if verdict.reply is None else str(verdict.reply)) == text
    assert verdict.quarantine == held
    assert verdict.milter == "m"


def test_all_default_actions_have_a_row():
    assert {row[:2] for row in FAULTS} == {(action, fault) for action in DefaultAction for fault in Fault}


def test_deferred_is_the_text_of_tempfail():
    assert str(deferred("m").reply) == DEFERRED
    assert deferred(None).kind is Kind.TEMPFAIL


ACCEPTED = Verdict(kind=Kind.ACCEPT, milter="a")
REJECTED = Verdict(kind=Kind.REJECT, reply=Reply.of(550, "x"), milter="r")
DISCARDED = Verdict(kind=Kind.DISCARD, milter="d")


@pytest.mark.parametrize(
    ("verdicts", "combined"),
    [
        ([], CONTINUE),
        ([CONTINUE, ACCEPTED], CONTINUE),
        ([ACCEPTED, REJECTED], REJECTED),
        ([CONTINUE, REJECTED, DISCARDED], REJECTED),
        ([DISCARDED, REJECTED], DISCARDED),
    ],
)
def test_the_first_that_decides_is_the_chains(verdicts, combined):
    assert combine(verdicts) == combined


def test_combining_asks_no_further_than_it_must():
    def verdicts():
        yield REJECTED
        pytest.fail("asked too far")

    assert combine(verdicts()) is REJECTED


# verdict text -> banner, HELO, MAIL, AUTH, minimal EHLO, unknown command
STANDING = [
    (None, None, None, None, None, False, None),
    (
        "550 5.7.1 Command rejected",
        "554 mx.test ESMTP not accepting connections",
        None,
        "550 5.7.1 Command rejected",
        "550 5.7.1 Command rejected",
        True,
        None,
    ),
    (DEFERRED, None, None, DEFERRED, "454 4.3.0 Try again later", False, DEFERRED),
    (
        "421 4.7.0 bye",
        "421 mx.test Service unavailable - try again later",
        "421 4.7.0 bye",
        "421 4.7.0 bye",
        "421 4.7.0 bye",
        False,
        "421 4.7.0 bye",
    ),
    (
        "521 5.7.0 never",
        "554 mx.test ESMTP not accepting connections",
        "521 5.7.0 never",
        "521 5.7.0 never",
        "521 5.7.0 never",
        True,
        "521 5.7.0 never",
    ),
]


@pytest.mark.parametrize(("text", "banner", "helo", "mail", "auth", "minimal", "unknown"), STANDING)
def test_what_a_standing_verdict_means(text, banner, helo, mail, auth, minimal, unknown):
    reply = None if text is None else Reply.of(int(text[:3]), text[4:])
    verdict = Verdict(kind=Kind.CONTINUE if reply is None else Kind.REJECT, reply=reply)
    said = [banner_reply(verdict, b"mx.test"), helo_reply(verdict), mail_reply(verdict), auth_reply(verdict)]
    assert [None if one is None else str(one) for one in said] == [banner, helo, mail, auth]
    assert minimal_ehlo(verdict) is minimal
    heard = unknown_reply(verdict)
    assert (None if heard is None else str(heard)) == unknown
