"""The scenario language: what it says, and that mistakes are told with their line."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterchain.testing.cases import (
    EVERYWHERE,
    MAX_CONTENT,
    Arrives,
    Case,
    CaseFilter,
    CaseSyntaxError,
    Closed,
    Command,
    Connect,
    Content,
    Decision,
    Drop,
    ExpectedReply,
    HasHeader,
    Option,
    Pattern,
    Selected,
    Selector,
    StartTls,
    Step,
    TextLine,
    load,
    parse,
)

SENDMAIL = Selector(frozenset(["sendmail"]))
NOT_POSTFIX = Selector(unwanted=frozenset(["postfix"]))

EXAMPLE = r"""
# a comment
case everything at once
on postfix -milterchain
needs tls auth
filter decide
    at rcpt
    answer 550 5.7.1 no\r\nnever
    silent
connect
< 220
> EHLO client.example.test
<[sendmail] 250-first
<[sendmail] 2xx last*
> STARTTLS
tls client
> MAIL FROM:<b\xfcg@example.test>
> DATA

| Subject: \x41\s
|
|*3 body \\ \*
=[-postfix] reject
= accept
arrives
from <a@example.test>
to[sendmail] <b@example.test>
has X-A: one*\*
has X-Empty:
lacks X-B
received
|[sendmail] Subject: A
|*0
arrives[sendmail]
drop
connect
= tempfail
closed
"""


def test_all_of_it() -> None:
    (case,) = parse(EXAMPLE, "x.case")
    content = Content((TextLine(rb"Subject: A "), TextLine(b""), TextLine(rb"body \ *", 3)))
    arrives = Arrives(
        line=25,
        senders=(Selected(b"<a@example.test>"),),
        recipients=(Selected(b"<b@example.test>", SENDMAIL),),
        has=(
            Selected(HasHeader(b"X-A", Pattern((b"one", b"*")))),
            Selected(HasHeader(b"X-Empty", Pattern((b"",)))),
        ),
        lacks=(Selected(b"X-B"),),
        text=(
            Selected(TextLine(None)),
            Selected(TextLine(b"Subject: A"), SENDMAIL),
            Selected(TextLine(b"", 0)),
        ),
    )
    replies = (
        Selected(ExpectedReply("250", more=True, text=Pattern((b"first",))), SENDMAIL),
        Selected(ExpectedReply("2xx", text=Pattern((b"last", b""))), SENDMAIL),
    )
    assert case == Case(
        name="everything at once",
        path=Path("x.case"),
        line=3,
        mtas=Selector(frozenset(["postfix"]), frozenset(["milterchain"])),
        needs=frozenset(["tls", "auth"]),
        filter=CaseFilter(
            "decide",
            (Option("at", "rcpt"), Option("answer", "550 5.7.1 no\r\nnever"), Option("silent", "")),
        ),
        steps=(
            Step(line=10, action=Connect(), replies=(Selected(ExpectedReply("220")),)),
            Step(line=12, action=Command(b"EHLO client.example.test"), replies=replies),
            Step(line=15, action=Command(b"STARTTLS")),
            Step(line=16, action=StartTls("client")),
            Step(line=17, action=Command(b"MAIL FROM:<b\xfcg@example.test>")),
            Step(line=18, action=Command(b"DATA")),
            Step(
                line=20,
                action=content,
                decisions=(Selected(Decision.REJECT, NOT_POSTFIX), Selected(Decision.ACCEPT)),
                arrives=(arrives, Arrives(line=34, selector=SENDMAIL)),
            ),
            Step(line=35, action=Drop()),
            Step(line=36, action=Connect(), decisions=(Selected(Decision.TEMPFAIL),)),
            Step(line=38, action=Closed()),
        ),
    )
    assert [step.line for step in case.steps] == [10, 12, 15, 16, 17, 18, 20, 35, 36, 38]
    assert (case.path, case.line) == (Path("x.case"), 3)


def test_content_is_what_the_lines_say() -> None:
    content = Content((TextLine(b"Subject: x"), TextLine(b""), TextLine(b"body", 2), TextLine(b"gone", 0)))
    assert b"".join(content.pieces()) == b"Subject: x\r\n\r\nbody\r\nbody\r\n"


def test_several_scenarios() -> None:
    cases = parse("case one\nconnect\ncase two\nconnect\n> NOOP")
    assert [case.name for case in cases] == ["one", "two"]
    assert parse("") == parse("\n# nothing\n") == ()


def test_options_by_key() -> None:
    case_filter = CaseFilter("x", (Option("a", "1"), Option("b", "2"), Option("a", "3")))
    assert case_filter.get("a") == "1"
    assert case_filter.get("c", "none") == "none"
    assert case_filter.all("a") == ("1", "3")


MISTAKES = [
    ("connect", 1, "a scenario begins with: case NAME"),
    ("case", 1, "the name of the scenario is missing"),
    ("case one", 1, "scenario 'one' has no steps"),
    ("case one\ncase two\nconnect", 2, "scenario 'one' has no steps"),
    ("case one\nconnect\ncase one", 3, "scenario 'one' is in this file already"),
    ("case one\nwhat now", 2, "'what' begins no line"),
    ("case one\n  connect", 2, "'connect' begins no line"),
    ("case one\n>NOOP", 2, "'>NOOP' begins no line"),
    ("case one\nconnect\n>\x00", 3, "character '\\x00': write an escape"),
    ("case one\nconnect\n> NOOP\r", 3, "character '\\r': write an escape"),
    ("case one\nconnect ", 2, "blank at the end of the line"),
    ("case one\n> NOOP", 2, "the first step is: connect"),
    ("case one\nconnect now", 2, "nothing belongs behind 'connect'"),
    ("case one\nconnect\n>", 3, "a command is missing"),
    ("case one\nconnect\n> \\q", 3, "\\q is no escape"),
    ("case one\nconnect\n> \\x4", 3, "\\x is no escape"),
    ("case one\nconnect\n> \\", 3, "\\ is no escape"),
    ("case one\nconnect\n< 250 \\", 3, "backslash at the end"),
    ("case one\nconnect\n< 250 \\q", 3, "\\q is no escape"),
    ("case \\xff\nconnect", 1, "this must be UTF-8"),
    ("case one\non", 2, "names of MTAs are missing"),
    ("case one\non Postfix", 2, "'Postfix' is no name of an MTA"),
    ("case one\non a -a", 2, "'a' is both wanted and unwanted"),
    ("case one\non a\non b", 3, "'on' is there twice"),
    ("case one\nconnect\non a", 3, "'on' belongs above the first step"),
    ("case one\nneeds", 2, "a tag is missing"),
    ("case one\nneeds TLS", 2, "'TLS' is no tag"),
    ("case one\nneeds tls\nneeds tls", 3, "'needs' is there twice"),
    ("case one\nfilter", 2, "a filter is named with small letters"),
    ("case one\nfilter a\nfilter b", 3, "'filter' is there twice"),
    ("case one\n    at mail", 2, "an indented line belongs below 'filter'"),
    ("case one\nfilter a\nneeds b\n    at mail", 4, "an indented line belongs below 'filter'"),
    ("case one\nfilter a\n   at mail", 3, "'at' begins no line"),
    ("case[x] one", 1, "'case' takes no names of MTAs"),
    ("case one\nconnect[postfix]", 2, "'connect' takes no names of MTAs"),
    ("case one\nconnect\n<[] 250", 3, "names of MTAs are missing"),
    ("case one\nconnect\n<*2 250", 3, "only | lines can be repeated"),
    ("case one\n< 250", 2, "'<' belongs below a step"),
    ("case one\nconnect\ndrop\n= accept", 4, "this step has no reply"),
    ("case one\nconnect\n< 150", 3, "a reply is a code"),
    ("case one\nconnect\n< 250-", 3, "a reply is a code"),
    ("case one\nconnect\n= accept\n< 250", 4, "the reply comes before what is decided"),
    (
        "case one\nconnect\n= accepted",
        3,
        "a decision is one of: accept, reject, tempfail, discard, quarantine",
    ),
    ("case one\nconnect\narrives", 3, "'arrives' belongs below a message"),
    ("case one\nconnect\n> DATA\n| x\narrives\n= accept", 6, "the decision comes before what arrives"),
    ("case one\nconnect\n> DATA\n| x\narrives now", 5, "nothing belongs behind 'arrives'"),
    ("case one\nconnect\n> DATA\n| x\nto <a@b>", 5, "'to' belongs below 'arrives'"),
    ("case one\nconnect\n> DATA\n| x\narrives\nto", 6, "a path is missing"),
    ("case one\nconnect\n> DATA\n| x\narrives\nhas X", 6, "a header is NAME: VALUE"),
    ("case one\nconnect\n> DATA\n| x\narrives\nhas X Y: z", 6, "a header is NAME: VALUE"),
    ("case one\nconnect\n> DATA\n| x\narrives\nlacks", 6, "the name of a header is missing"),
    ("case one\nconnect\n> DATA\n| x\narrives\nreceived x", 6, "nothing belongs behind 'received'"),
    ("case one\nconnect\n| x", 3, "a message belongs below DATA or 'arrives'"),
    ("case one\n| x", 2, "a message belongs below DATA or 'arrives'"),
    ("case one\nconnect\n> DATA\n| x\n= accept\n| y", 6, "a message belongs below DATA or 'arrives'"),
    ("case one\nconnect\n> DATA\n|[postfix] x", 4, "the same message is sent to every MTA"),
    ("case one\nconnect\n> DATA\n| x\n|*9999999 twelve bytes", 5, f"more than {MAX_CONTENT} bytes"),
    ("case one\nconnect\n> DATA\n| x\narrives\n|*9999999 twelve bytes", 6, f"more than {MAX_CONTENT} bytes"),
]


@pytest.mark.parametrize(("text", "line", "reason"), MISTAKES)
def test_mistakes(text: str, line: int, reason: str) -> None:
    with pytest.raises(CaseSyntaxError, match=re.escape(reason)) as caught:
        parse(text, "bad.case")
    assert (caught.value.path, caught.value.line) == (Path("bad.case"), line)
    assert str(caught.value).startswith(f"bad.case:{line}: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("case one\non sendmial\nconnect", 2),
        ("case one\non -sendmial\nconnect", 2),
        ("case one\nconnect\n<[postfix sendmial] 250", 3),
        ("case one\nconnect\n> DATA\n| x\narrives\n|[-sendmial] x", 6),
    ],
)
def test_an_mta_that_nobody_knows_is_a_mistake(text: str, line: int) -> None:
    reason = r"no MTA is called 'sendmial'; there are: postfix, sendmail$"
    with pytest.raises(CaseSyntaxError, match=reason) as caught:
        parse(text, mtas=["sendmail", "postfix"])
    assert caught.value.line == line
    parse(text.replace("sendmial", "sendmail"), mtas=["sendmail", "postfix"])
    parse(text)


def test_the_size_of_each_message_counts_alone() -> None:
    full = f"|*{MAX_CONTENT // 64} {62 * 'x'}"
    parse(f"case one\nconnect\n> DATA\n{full}\n> DATA\n{full}\narrives\n{full}")
    with pytest.raises(CaseSyntaxError, match="more than"):
        parse(f"case one\nconnect\n> DATA\n{full}\n|")


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "a.case"
    path.write_text("case Größe\nconnect\n> NOOP\n", encoding="utf-8")
    (case,) = load(path)
    assert (case.name, case.path, case.line) == ("Größe", path, 1)
    path.write_text("case one\non postfx\nconnect\n", encoding="utf-8")
    with pytest.raises(CaseSyntaxError, match=r"a\.case:2: no MTA is called 'postfx'"):
        load(path, mtas=["postfix"])


def test_load_what_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.case"
    path.write_bytes(b"case one\nconnect\n> \xff\n")
    with pytest.raises(CaseSyntaxError, match=r"a\.case:3: this is not UTF-8"):
        load(str(path))


def test_load_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none\.case"):
        load(tmp_path / "none.case")


# Values that are written out and read again.

SELECTORS = st.sampled_from([EVERYWHERE, SENDMAIL, NOT_POSTFIX, Selector(frozenset("ab"), frozenset("c"))])
BYTES = st.binary(max_size=8)
PATTERNS = st.lists(BYTES, min_size=1, max_size=3).map(lambda pieces: Pattern(tuple(pieces)))


@st.composite
def expected_replies(draw: st.DrawFn) -> ExpectedReply:
    text = draw(st.none() | PATTERNS.filter(lambda pattern: pattern != Pattern((b"",))))
    return ExpectedReply(
        draw(st.sampled_from(["250", "5xx"])), text is not None and draw(st.booleans()), text
    )


def selected(values: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[Selected[object], ...]]:
    return st.lists(st.builds(Selected, values, SELECTORS), max_size=2).map(tuple)


TEXT_LINES = st.builds(TextLine, BYTES, st.integers(0, 3))
HEADERS = st.builds(HasHeader, st.sampled_from([b"X-A", b"Subject"]), PATTERNS)
ARRIVES = st.builds(
    Arrives,
    line=st.just(0),
    selector=SELECTORS,
    senders=selected(BYTES.filter(bool)),
    recipients=selected(BYTES.filter(bool)),
    has=selected(HEADERS),
    lacks=selected(BYTES.filter(bool)),
    text=selected(TEXT_LINES | st.just(TextLine(None))),
)
REPLIES = {"replies": selected(expected_replies()), "decisions": selected(st.sampled_from(Decision))}
COMMANDS = BYTES.filter(lambda text: text and Command(text).verb != b"DATA").map(Command)
STEPS = st.one_of(
    st.builds(Step, line=st.just(0), action=COMMANDS, **REPLIES).map(lambda step: [step]),
    st.sampled_from([StartTls(), StartTls("client"), Drop(), Closed()]).map(
        lambda action: [Step(line=0, action=action)]
    ),
    st.builds(
        Step,
        line=st.just(0),
        action=st.lists(TEXT_LINES, min_size=1, max_size=3).map(lambda lines: Content(tuple(lines))),
        arrives=st.lists(ARRIVES, max_size=2).map(tuple),
        **REPLIES,
    ).map(lambda step: [Step(line=0, action=Command(b"data")), step]),
)
FILTERS = st.builds(
    CaseFilter,
    st.sampled_from(["decide", "a-1"]),
    st.lists(st.builds(Option, st.sampled_from(["at", "x-y"]), st.text(max_size=5)), max_size=3).map(tuple),
)
CASES = st.builds(
    lambda steps, **values: Case(
        path=Path("x"),
        line=0,
        steps=(Step(line=0, action=Connect()), *(step for group in steps for step in group)),
        **values,
    ),
    steps=st.lists(STEPS, max_size=4),
    name=st.text(min_size=1, max_size=8),
    mtas=SELECTORS,
    needs=st.sampled_from([frozenset[str](), frozenset(["tls"]), frozenset(["tls", "auth"])]),
    filter=st.none() | FILTERS,
)


@given(CASES)
def test_what_is_written_is_read(case: Case) -> None:
    assert parse("\n".join(render(case))) == (case,)


FRAGMENTS = sorted({line for text, _, _ in MISTAKES for line in text.split("\n")} | set(EXAMPLE.split("\n")))


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=10), max_size=12).map("\n".join))
def test_nothing_but_its_own_error(text: str) -> None:
    try:
        cases = parse(text)
    except CaseSyntaxError as error:
        assert 1 <= error.line <= text.count("\n") + 1  # noqa: PT017 - there may be none
    else:
        assert all(case.steps for case in cases)


def render(case: Case) -> Iterator[str]:
    yield f"case {escaped(case.name.encode())}"
    if case.mtas != EVERYWHERE:
        yield f"on {words(case.mtas)}"
    if case.needs:
        yield f"needs {' '.join(case.needs)}"
    if case.filter is not None:
        yield f"filter {case.filter.name}"
        for key, value in case.filter.options:
            yield trimmed(f"    {key} {escaped(value.encode())}")
    for step in case.steps:
        yield from action(step)
        for reply, selector in step.replies:
            text = "" if reply.text is None else ("-" if reply.more else " ") + gaps(reply.text)
            yield f"<{where(selector)} {reply.code}{text}"
        for decision, selector in step.decisions:
            yield f"={where(selector)} {decision}"
        for block in step.arrives:
            yield from arrives(block)


def action(step: Step) -> Iterator[str]:
    match step.action:
        case Connect():
            yield "connect"
        case Command(text):
            yield f"> {escaped(text)}"
        case Content(lines):
            for line in lines:
                yield text_line("", line)
        case StartTls(certificate):
            yield trimmed(f"tls {certificate}")
        case Drop():
            yield "drop"
        case Closed():
            yield "closed"


def arrives(block: Arrives) -> Iterator[str]:
    yield f"arrives{where(block.selector)}"
    for path, selector in block.senders:
        yield f"from{where(selector)} {escaped(path)}"
    for path, selector in block.recipients:
        yield f"to{where(selector)} {escaped(path)}"
    for (name, value), selector in block.has:
        yield trimmed(f"has{where(selector)} {name.decode()}: {gaps(value)}")
    for name, selector in block.lacks:
        yield f"lacks{where(selector)} {escaped(name)}"
    for line, selector in block.text:
        yield f"received{where(selector)}" if line.text is None else text_line(where(selector), line)


def text_line(where: str, line: TextLine) -> str:
    times = "" if line.times == 1 else f"*{line.times}"
    return trimmed(f"|{where}{times} {escaped(line.text or b'')}")


def trimmed(line: str) -> str:
    return line.removesuffix(" ")


def words(selector: Selector) -> str:
    return " ".join([*selector.wanted, *(f"-{name}" for name in selector.unwanted)])


def where(selector: Selector) -> str:
    return "" if selector == EVERYWHERE else f"[{words(selector)}]"


def escaped(data: bytes) -> str:
    return "".join(
        f"\\x{octet:02x}" if octet in b"\\* " or not 32 < octet < 127 else chr(octet) for octet in data
    )


def gaps(pattern: Pattern) -> str:
    return "*".join(map(escaped, pattern.pieces))
