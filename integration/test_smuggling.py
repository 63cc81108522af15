"""No message hides in another one: what looks like the end of data to some server, against the real pair.

Each case sends one message whose text holds a would-be end of data, then a whole second transaction. The pair
of milterchain and Postfix must answer once and deliver at most one message, and that one must hold all of the
text. Postfix is tried as it is delivered, and with its own protection turned off: what milterchain hands on
must be safe by itself. The sink behind it ends data where RFC 5321 says so.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from integration.corpus import head
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run
from integration.services.proxy import Proxy, start_proxy
from integration.services.sink import Sink, start_sink
from integration.services.smtp import CLOSED, Client

ENDS = {
    "CRLF": b"\r\n",
    "LF": b"\n",
    "CR": b"\r",
    "CRCRLF": b"\r\r\n",
    "LFCR": b"\n\r",
    "CRNULLF": b"\r\0\n",
    "NULCRLF": b"\0\r\n",
    "CRLFNUL": b"\r\n\0",
    "LFLF": b"\n\n",
    "CRCR": b"\r\r",
    "VT": b"\x0b",
    "FF": b"\x0c",
    "CRFF": b"\r\x0c",
    "NEL": "\x85".encode(),
    "C1NEL": b"\x85",
    "LS": "\u2028".encode(),
    "RS": b"\x1e",
    "CRLF8": b"\x8d\x8a",
}
"""What some server may take for the end of a line, and the real one."""

DOTS = {
    "dot": b".",
    "dots": b"..",
    "dot-blank": b". ",
    "dot-tab": b".\t",
    "dot-NUL": b".\0",
    "NUL-dot": b"\0.",
    "blank-dot": b" .",
    "CR-dot": b"\r.",
    "dot-CR": b".\r",
    "dot8": b"\xae",
}
"""What some server may take for a line with a dot only, and the real one."""

END = b"\r\n.\r\n"

CASES = {
    f"{before}-{dot}-{after}": ENDS[before] + DOTS[dot] + ENDS[after]
    for before, dot, after in itertools.product(ENDS, DOTS, ENDS)
    # A case that contains the real end is two messages by right.
    if END not in ENDS[before] + DOTS[dot] + ENDS[after]
}
TRUSTING = {"smtpd_forbid_bare_newline": "no", "smtpd_forbid_unauth_pipelining": "no"}
"""Settings of Postfix without its own protection."""

SMUGGLED = b"smuggled@example.org"


def second(end: bytes) -> bytes:
    """A transaction, as somebody would smuggle it whose false line end is this."""
    lines = (
        b"MAIL FROM:<thief@example.com>",
        b"RCPT TO:<%b>" % SMUGGLED,
        b"DATA",
        b"Subject: smuggled",
        b"",
        b"I was never sent.",
        b".",
    )
    return end.join((*lines, b""))


@dataclass(frozen=True, slots=True)
class Pair:
    """milterchain, the Postfix behind it and who gets its mail."""

    proxy: Proxy
    postfix: Postfix
    sink: Sink


@pytest.fixture(scope="module", params=["as-delivered", "trusting"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Run() as run:
        sink = start_sink(run)
        postfix = start_postfix(
            run,
            "postfix",
            relay_to=sink.address,
            settings=TRUSTING if request.param == "trusting" else None,
        )
        proxy = start_proxy(run, next_hop=f"smtp:{postfix.address}")
        yield Pair(proxy, postfix, sink)


def check(pair: Pair, sent: dict[str, bytes | None]) -> None:
    """Check what has arrived.

    Args:
        pair: of servers.
        sent: names of cases that were accepted, and what their message must contain; None if nothing may have
            come.
    """
    pair.postfix.wait_until_empty()
    arrived = pair.sink.received()
    assert not [message for message in arrived if SMUGGLED.decode() in "".join(message.recipients)]
    for name, text in sent.items():
        found = [message for message in arrived if message.recipients[0].startswith(f"<{name}@")]
        assert len(found) == (text is not None), name
        if text is not None:
            assert text in pair.sink.content(found[0]), name
    names = {message.recipients[0].partition("@")[0].lstrip("<") for message in arrived}
    assert len(arrived) == len(names)


def begin(client: Client, name: str) -> None:
    """From MAIL to DATA."""
    assert client.command(b"MAIL FROM:<a@example.com> BODY=8BITMIME").code == 250
    assert client.command(f"RCPT TO:<{name}@example.org>".encode()).code == 250
    assert client.command(b"DATA").code == 354


def take_leave(client: Client) -> None:
    """End the session; replies to smuggled commands would stand before those to these."""
    assert client.command(b"VRFY a@example.org").code == 252
    assert client.command(b"QUIT").code == 221
    assert client.read() == CLOSED


@pytest.mark.parametrize("before", ENDS)
def test_no_false_end_of_data_ends_the_data(pair: Pair, before: str) -> None:
    sent: dict[str, bytes | None] = {}
    with Client(pair.proxy.address) as client:
        for name, false_end in CASES.items():
            if not name.startswith(f"{before}-"):
                continue
            line_end = ENDS[name.rpartition("-")[2]]
            if END in false_end + second(line_end):
                # The second message ends with a real end, which has to be left out.
                content = head("smuggle") + b"\r\nfirst" + false_end + second(line_end).removesuffix(b".\r\n")
            else:
                content = head("smuggle") + b"\r\nfirst" + false_end + second(line_end)
            recipient = f"a-{name}@example.org".lower()
            outcome = client.send(
                b"<a@example.com> BODY=8BITMIME",
                [f"<{recipient}>".encode()],
                content.removesuffix(b"\r\n") + END,
                stuffed=True,
            )
            assert outcome.accepted, (name, outcome)
            sent[recipient.partition("@")[0]] = b"I was never sent."
        take_leave(client)
    check(pair, sent)


@pytest.mark.parametrize("case", ["LF-dot-LF", "LF-dot-CRLF", "CR-dot-CR", "CRLF-dot-CR", "CRLF-dot-NULCRLF"])
def test_it_does_not_matter_in_which_pieces_it_comes(pair: Pair, case: str) -> None:
    content = head("pieces") + b"\r\nfirst" + CASES[case] + second(b"\n") + END
    with Client(pair.proxy.address) as client:
        name = f"p-{case}".lower()
        begin(client, name)
        for octet in content:
            client.write(bytes((octet,)))
        assert client.read().code == 250
        take_leave(client)
    check(pair, {name: b"I was never sent."})


@pytest.mark.parametrize("end", ["LF", "CR", "CRCRLF", "CRNULLF", "VT"])
def test_nor_does_the_first_line_of_the_message(pair: Pair, end: str) -> None:
    content = b"." + ENDS[end] + second(b"\r\n").removesuffix(b".\r\n") + b".\r\n"
    with Client(pair.proxy.address) as client:
        name = f"f-{end}".lower()
        begin(client, name)
        client.write(content)
        assert client.read().code == 250
        take_leave(client)
    check(pair, {name: b"I was never sent."})


@pytest.mark.parametrize("case", ["real", *list(CASES)[:: len(CASES) // 12]])
def test_the_data_of_chunks_end_where_they_were_said_to(pair: Pair, case: str) -> None:
    content = head("chunks") + b"\r\nfirst" + CASES.get(case, END) + second(b"\r\n")
    with Client(pair.proxy.address) as client:
        assert client.greeting is not None
        assert b"CHUNKING" in client.greeting.lines
        name = f"b-{case}".lower()
        assert client.command(b"MAIL FROM:<a@example.com> BODY=8BITMIME").code == 250
        assert client.command(f"RCPT TO:<{name}@example.org>".encode()).code == 250
        cut = content.index(b"first") + 8
        client.write(b"BDAT %d\r\n%b" % (cut, content[:cut]))
        assert client.read().code == 250
        client.write(b"BDAT %d LAST\r\n%b" % (len(content) - cut, content[cut:]))
        assert client.read().code == 250
        take_leave(client)
    check(pair, {name: b"I was never sent."})


@pytest.mark.parametrize(
    "command",
    [
        b"BDAT",
        b"BDAT -1",
        b"BDAT +99",
        b"BDAT 0x99",
        b"BDAT 99 LAST LAST",
        b"BDAT 99 FIRST",
        b"BDAT 99,LAST",
        b"BDAT 9999999999999999999999",
        b"BDAT 99999999999999",
        b"BDATA 99",
        b"BDAT 99\0",
        b"BDAT \xb2\xb3",
    ],
)
def test_a_chunk_without_a_size_is_not_read_as_commands(pair: Pair, command: bytes) -> None:
    with Client(pair.proxy.address) as client:
        assert client.command(b"MAIL FROM:<a@example.com>").code == 250
        assert client.command(b"RCPT TO:<chunk@example.org>").code == 250
        client.write(command + b"\r\n" + b"RSET\r\n" + second(b"\r\n"))
        assert client.read().code in {421, 521}
        assert client.read() == CLOSED
    check(pair, {"chunk": None})


@pytest.mark.parametrize("refusal", ["recipient", "no transaction", "size"])
def test_data_that_nobody_asked_for_are_not_read_as_commands(pair: Pair, refusal: str) -> None:
    """Who sends the data without waiting for 354 is cut off, because it may be refused."""
    group = {
        "recipient": b"MAIL FROM:<a@example.com>\r\nRCPT TO:<refused@example.org>\r\nDATA\r\n",
        "no transaction": b"DATA\r\n",
        "size": b"MAIL FROM:<a@example.com> SIZE=99999999999\r\nRCPT TO:<early@example.org>\r\nDATA\r\n",
    }[refusal]
    with Client(pair.proxy.address) as client:
        client.write(group + head("early") + b"\r\n" + second(b"\r\n"))
        while (answer := client.read()) != CLOSED:
            assert answer.code in {250, 452, 503, 550, 552, 554}
    check(pair, {"early": None, "refused": None})


def test_without_milterchain_the_corpus_smuggles(run: Run) -> None:
    """The corpus is worth something: straight to a Postfix that trusts, some of it gets through."""
    sink = start_sink(run)
    postfix = start_postfix(run, "postfix", relay_to=sink.address, settings=TRUSTING)
    with Client(postfix.address) as client:
        begin(client, "control")
        client.write(head("control") + b"\r\nfirst" + CASES["LF-dot-LF"] + second(b"\n"))
        assert client.read().code == 250
        client.quit()
    sink.wait_for_mail_to(SMUGGLED.decode())
