"""Awkward messages, and what is asked of the filters about them.

Each sample is one SMTP transaction.  The same samples go through milterchain and through Postfix's own
`smtpd_milters`; what arrives, and what the filters saw, has to be the same.  Edits are asked for by
`X-red-Edit` headers, which the filter called `red` obeys (see services/editor_filter.py).
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

SENDER = b"<sender@example.test>"
HEAD = (
    b"From: Sender <sender@example.test>\r\nTo: recipient@example.test\r\n"
    b"Subject: %b\r\nDate: Thu, 01 Jan 2026 12:00:00 +0000\r\nMessage-ID: <%b@client.example.test>\r\n"
)
MIB = 1 << 20
FUZZ_PROGRAMS = 60
CHUNK = 65535
"""A body chunk of the milter protocol."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One message with its envelope.

    Attributes:
        name: of the sample; also the local part of its recipients, so that they can be told apart.
        content: as it goes over the wire, before dot-stuffing.
        sender: what follows `MAIL FROM:`.
        recipients: what follows each `RCPT TO:`; by default one that is accepted.
        raw: the content has been stuffed and ended already.
    """

    name: str
    content: bytes
    sender: bytes = SENDER
    recipients: tuple[bytes, ...] = ()
    raw: bool = False

    @property
    def paths(self) -> tuple[bytes, ...]:
        """The recipients, the default filled in."""
        return self.recipients or (b"<%b@example.test>" % self.name.encode(),)


def head(name: str) -> bytes:
    """Ordinary headers."""
    return HEAD % (name.encode(), name.encode())


def edits(*programs: list[object]) -> bytes:
    """Headers that ask the filter `red` for these edits, in this order."""
    return b"".join(b"X-red-Edit: %b\r\n" % json.dumps(program).encode() for program in programs)


def header_samples() -> Iterator[Sample]:
    """Header blocks."""
    body = b"\r\nbody\r\n"
    blocks = {
        "plain": b"",
        "folded": b"X-Folded: one\r\n two\r\n\tthree\r\n   four\r\nX-Next: 1\r\n",
        "folded-at-once": b"X-Folded:\r\n all in the next line\r\nX-Tab:\r\n\tand here\r\n",
        "blank-continuation": b"X-Folded: one\r\n \r\n\t\r\n two\r\nX-Next: 1\r\n",
        "utf8-headers": "X-City: Zürich, 東京\r\n".encode(),
        "latin1-headers": "X-City: Zürich à la carte\r\n".encode("latin-1"),
        "invalid-utf8": b"X-Bytes: \xff\xfe\x80\xc3\r\n",
        "encoded-words": b"X-Word: =?utf-8?B?w7xiZXI=?=\r\n =?iso-8859-1?Q?=FCber?=\r\n",
        "empty-values": b"X-Empty:\r\nX-Space: \r\nX-Spaces:    \r\nX-Tab:\t\r\nX-After: 1\r\n",
        "no-space-after-colon": b"X-Tight:value\r\nX-Tab:\tvalue\r\nX-Wide:      value\r\n",
        "trailing-blanks": b"X-Trail: value  \r\nX-Trail: value\t\r\nX-Trail: value \t \r\n",
        "blank-before-colon": b"X-Blank : value\r\nX-Tab\t: value\r\nX-Many   : value\r\n",
        "colons": b"X-Colons: a:b::c:\r\nX-Colon: :\r\n",
        "odd-names": b"x-lower: 1\r\nX-UPPER: 2\r\nX_!#$%&'*+^`{|}~: 3\r\n1: 4\r\n",
        "long-name": b"X-" + b"n" * 200 + b": value\r\n",
        "long-line-998": b"X-Long: " + b"x" * 990 + b"\r\n",
        "long-line-5000": b"X-Long: " + b"x" * 5000 + b"\r\n",
        "header-50k": b"X-Large: " + b"\r\n ".join(b"%04d " % n + b"y" * 90 for n in range(510)) + b"\r\n",
        "headers-500": b"".join(b"X-Number-%d: %d\r\n" % (n, n) for n in range(500)),
        "duplicates": b"".join(b"X-Same: %d\r\n" % n for n in range(20)),
        "duplicate-standard": b"Subject: second\r\nFrom: other@example.test\r\nTo: third@example.test\r\n",
        "received-chain": b"".join(
            b"Received: from h%d.example.test by h%d.example.test;\r\n\tThu, 01 Jan 2026 12:00:00 +0000\r\n"
            % (n, n + 1)
            for n in range(20)
        ),
        "resent": b"Resent-From: a@example.test\r\nResent-To: b@x.test\r\nResent-Bcc: c@x.test\r\n",
        "dropped-elsewhere": b"Bcc: secret@example.test\r\nContent-Length: 9\r\nReturn-Path: <a@x.test>\r\n",
        "authentication-results": b"Authentication-Results: mx.example.test; spf=pass\r\n" * 3,
        "old-signature": b"DKIM-Signature: v=1; a=rsa-sha256; d=x.test; s=x;\r\n\tbh=AA; h=From; b=BB\r\n",
        "control-characters": b"X-Control: a\x01b\x07c\x1b[0m\x7f\r\n",
        "semicolons": b"Content-Type: text/plain; charset=utf-8;;; x=\r\nMIME-Version: 1.0\r\n",
    }
    for name, block in blocks.items():
        yield Sample(name, head(name) + block + body)
        if name == "received-chain":
            yield Sample("received-first", block + head("received-first") + body)


def structure_samples() -> Iterator[Sample]:
    """Where the headers end, and messages that lack a part."""
    for name, content in {
        "no-body": head("no-body") + b"\r\n",
        "no-separator": head("no-separator"),
        "no-headers": b"\r\nonly a body\r\n",
        "body-at-once": b"this is no header\r\nnor: is this\r\n",
        "missing-separator": head("missing-separator") + b"not a header\r\nmore: text\r\n\r\nend\r\n",
        "missing-separator-blank": head("missing-separator-blank") + b"bad header : : x\r\n=bad\r\ntext\r\n",
        "leading-blank-line": b" starts with a blank\r\n" + head("leading-blank-line") + b"\r\nbody\r\n",
        "no-name": head("no-name") + b": no name\r\n\r\nbody\r\n",
        "one-header": b"Subject: alone\r\n",
        "one-header-and-end": b"Subject: alone\r\n\r\n",
        "empty": b"",
        "one-empty-line": b"\r\n",
        "mailbox-line": b"From sender Thu Jan  1 12:00:00 2026\r\n" + head("mailbox-line") + b"\r\nbody\r\n",
        "quoted-mailbox-line": b">From sender Thu Jan  1 2026\r\n"
        + head("quoted-mailbox-line")
        + b"\r\nbody\r\n",
        "mailbox-line-only": b"From sender Thu Jan  1 12:00:00 2026\r\n",
        "mailbox-line-later": head("mailbox-line-later") + b"From nobody\r\nX-After: 1\r\n\r\nbody\r\n",
        "no-from": b"To: recipient@example.test\r\nSubject: nobody\r\n\r\nbody\r\n",
    }.items():
        yield Sample(name, content)


def body_samples() -> Iterator[Sample]:
    """Bodies."""
    everything = bytes(n for n in range(1, 256) if n not in b"\r\n")
    bodies = {
        "dots": b".\r\n..\r\n...\r\n.x\r\n x.\r\n\r\n.\r\n",
        "only-dots": b".\r\n" * 50,
        "blank-lines": b"\r\n" * 20,
        "trailing-blank-lines": b"text\r\n\r\n\r\n\r\n",
        "trailing-white-space": b"text \r\ntext\t\r\n \t \r\n  \r\n",
        "long-lines": b"".join(b"x" * n + b"\r\n" for n in (998, 999, 1000, 2047, 2048, 2049, 5000, 20000)),
        "long-line-200k": b"x" * 200_000 + b"\r\n",
        "all-bytes": everything + b"\r\n" + everything[::-1] + b"\r\n",
        "nul-in-body": b"before\x00after\r\n\x00\r\n\x00\x00end\r\n",
        "8bit": "Grüße aus Köln\r\n".encode() + "Grüße\r\n".encode("latin-1"),
        "from-in-body": b"From the beginning\r\n>From here\r\nFrom: not a header\r\n",
        "chunk-less-1": _lines(CHUNK - 1),
        "chunk": _lines(CHUNK),
        "chunk-and-1": _lines(CHUNK + 1),
        "chunk-splits-crlf": _lines(CHUNK + 1) + b"next\r\n",
        "two-chunks": _lines(2 * CHUNK),
        "1-mib": _lines(MIB),
        "multipart": _multipart(),
    }
    for name, body in bodies.items():
        yield Sample(name, head(name) + b"\r\n" + body)
    yield Sample("dot-first", b".first: not a header\r\n" + head("dot-first") + b"\r\n.\r\n")
    yield Sample("8bitmime", head("8bitmime") + b"\r\n\xc3\xbc\r\n", sender=SENDER + b" BODY=8BITMIME")
    yield Sample("30-mib", head("30-mib") + b"\r\n" + _lines(30 * MIB))


def line_end_samples() -> Iterator[Sample]:
    """Line ends that SMTP does not have; both sides normalise them."""
    bodies = {
        # No dot after a bare LF: Postfix takes it off, though a sender that counts CRLF as the only line
        # end did not add it; milterchain leaves it.
        "bare-lf": b"one\ntwo\r\n..three\n\nx.\nfour\n\r\n",
        "bare-cr": b"one\rtwo\r\nthree\r\r\nfour\r\n\rfive\r\n",
        "bare-mixed": b"a\n\rb\r\n\r\r\n\n\r\nend\r\n",
    }
    for name, body in bodies.items():
        yield Sample(name, head(name) + b"\r\n" + body + b".\r\n", raw=True)
    yield Sample("bare-cr-header", head("bare-cr-header") + b"X-Bare: a\rb\r\n\r\nbody\r\n.\r\n", raw=True)
    yield Sample(
        "bare-lf-header", head("bare-lf-header") + b"X-Bare: a\nX-Next: b\n\nbody\n\r\n.\r\n", raw=True
    )


def envelope_samples() -> Iterator[Sample]:
    """Senders, recipients and their parameters."""

    def recipients(name: str, *kinds: str) -> tuple[bytes, ...]:
        local = (f"{kind}-{name}" if kind else name for kind in kinds)
        return tuple(b"<%b+%d@example.test>" % (each.encode(), n) for n, each in enumerate(local))

    for name, sender, paths in (
        ("null-sender", b"<>", ()),
        ("case-kept", b"<SenDer@EXAMPLE.test>", (b"<Case-Kept@Example.TEST>",)),
        (
            "quoted-local",
            b'<"a b"@example.test>',
            (b'<"quoted local"@example.test>', b'<"q@r"@example.test>'),
        ),
        ("recipients-20", SENDER, recipients("recipients-20", *[""] * 20)),
        ("same-recipient-twice", SENDER, (b"<same-recipient-twice@example.test>",) * 2),
        ("all-refused", SENDER, recipients("all-refused", *["refused"] * 3)),
        ("no-recipients", SENDER, (b"<refused@example.test>",)),
        ("some-refused", SENDER, recipients("some-refused", "", "refused", "", "refused")),
        ("first-refused", SENDER, recipients("first-refused", "refused", "refused", "")),
        ("some-deferred", SENDER, recipients("some-deferred", "deferred", "", "refused", "")),
        ("mixed-20", SENDER, recipients("mixed-20", *["", "refused", "", "deferred", ""] * 4)),
        ("size-parameter", SENDER + b" SIZE=500", ()),
        (
            "dsn",
            SENDER + b" RET=HDRS ENVID=abc+2Bdef",
            (b"<dsn@example.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Orig+2Binal@example.test",),
        ),
        (
            "dsn-never",
            SENDER + b" RET=FULL",
            (b"<dsn-never@example.test> NOTIFY=NEVER", b"<dsn-other@example.test>"),
        ),
        (
            "smtputf8",
            "<jürgen@example.test> SMTPUTF8 BODY=8BITMIME".encode(),
            ("<empfänger@example.test>".encode(),),
        ),
    ):
        yield Sample(name, head(name) + b"\r\nbody\r\n", sender, paths)


def edit_samples() -> Iterator[Sample]:
    """Edits by the filter `red`: indices, duplicates, body, envelope."""
    same = b"".join(b"X-Same: %d\r\n" % n for n in range(1, 7))
    programs: dict[str, list[list[object]]] = {
        "add": [["add", "X-New", "value"], ["add", "X-New", "folded\n\tvalue"], ["add", "X-Same", "seven"]],
        "add-empty": [["add", "X-New", ""]],
        "insert-0": [["insert", 0, "X-Top", "0"]],
        "insert-1": [["insert", 1, "X-Below", "1"]],
        "insert-several": [["insert", n, f"X-At-{n}", str(n)] for n in (0, 1, 2, 3, 5, 5, 1, 0, 1000)],
        "insert-descending": [["insert", n, f"X-At-{n}", str(n)] for n in range(9, -1, -1)],
        "change-first": [["change", 1, "X-Same", "changed"]],
        "change-0": [["change", 0, "X-Same", "changed"]],
        "change-last": [["change", 6, "x-same", "changed, other spelling"]],
        "change-beyond": [["change", 7, "X-Same", "appended"], ["change", 9, "X-Absent", "appended"]],
        "change-folded": [["change", 2, "X-Same", "one\n two\n\tthree"]],
        "change-subject": [["change", 1, "Subject", "[tagged] other"]],
        "delete-ascending": [["delete", 1, "X-Same"]] * 3,
        "delete-same-index": [["delete", 2, "X-Same"], ["delete", 2, "X-Same"], ["change", 2, "X-Same", "x"]],
        "delete-descending": [["delete", n, "X-Same"] for n in range(6, 0, -1)],
        "delete-all-and-add": [
            *[["delete", n, "X-Same"] for n in range(6, 0, -1)],
            ["change", 1, "X-Same", "again"],
            ["add", "X-Same", "and again"],
        ],
        "delete-missing": [["delete", 9, "X-Same"], ["delete", 1, "X-Absent"]],
        "delete-standard": [["delete", 1, name] for name in ("From", "To", "Subject", "Date", "Message-ID")],
        "change-received": [["change", 1, "Received", "from a by b"], ["delete", 2, "Received"]],
        "8bit-value": [["add", "X-City", "Zürich"], ["change", 1, "X-Same", "Köln"]],
        "long-value": [["add", "X-Long", "y" * 900], ["add", "X-Longer", "\n\t".join(["z" * 70] * 100)]],
        "body": [["body", "replaced\r\n.\r\nlines\r\n"]],
        "body-empty": [["body", ""]],
        "body-no-end": [["body", "no final line end"]],
        "body-lf": [["body", "one\ntwo\nthree"]],
        "body-pieces": [["body", "split in\r", "\nthe line ", "end\r\n", "", "x"]],
        "body-large": [["repeat", "0123456789" * 6 + "\r\n", 3000]],
        "body-repeated": [["repeat", "0123456789\r\n" * 700, 50], ["body", "end\r\n"]],
        "body-and-headers": [["add", "X-New", "1"], ["body", "replaced\r\n"], ["change", 2, "X-Same", "2"]],
        "progress": [["progress"], ["add", "X-New", "after progress"]],
        "sender": [["sender", "<changed@example.test>"]],
        "sender-null": [["sender", "<>"]],
        "recipient": [["recipient", "<added@example.test>"], ["recipient", "<edit-recipient@example.test>"]],
        "remove-and-add": [
            ["remove", "<edit-remove-and-add@example.test>"],
            ["recipient", "<instead@example.test>"],
        ],
        "remove-missing": [
            ["remove", "<absent@example.test>"],
            ["remove", "<EDIT-REMOVE-MISSING@example.test>"],
        ],
    }
    for key, program in programs.items():
        name = f"edit-{key}"
        received = b"Received: from x by y; Thu, 01 Jan 2026 12:00:00 +0000\r\n" * 2
        block = (received if "received" in key else b"") + head(name) + same + edits(*program)
        yield Sample(name, block + b"\r\nbody\r\n")
    headless = edits(["insert", 0, "X-Top", "0"], ["add", "X-End", "1"], ["body", "new body\r\n"])
    yield Sample("edit-no-separator", headless)
    yield Sample("edit-body-at-once", headless + b"not a header\r\nbody\r\n")


def fuzzed_samples(seed: int = 1) -> Iterator[Sample]:
    """Random programs of header edits on messages with many headers of few names."""
    chance = random.Random(seed)
    names = ("X-A", "X-B", "x-a", "X-C", "Received")

    def edit() -> list[object]:
        name, value = chance.choice(names), f"{chance.randrange(1000)}"
        index = chance.randrange(9)
        match chance.randrange(6):
            case 0:
                return ["add", name, value]
            case 1 | 2:
                return ["insert", index, name, value]
            case 3:
                return ["delete", index, name]
            case _:
                return ["change", index, name, value]

    for number in range(FUZZ_PROGRAMS):
        lines = [b"%b: %d\r\n" % (chance.choice(names).encode(), n) for n in range(chance.randrange(12))]
        program = [edit() for _ in range(chance.randrange(1, 12))]
        yield Sample(f"fuzz-{number}", b"".join(lines) + edits(*program) + b"\r\nbody\r\n")


def all_samples() -> list[Sample]:
    """The whole corpus."""
    parts = (
        header_samples,
        structure_samples,
        body_samples,
        line_end_samples,
        envelope_samples,
        edit_samples,
        fuzzed_samples,
    )
    return [sample for part in parts for sample in part()]


def _lines(size: int) -> bytes:
    line = b"The quick brown fox jumps over the lazy dog, and the dog does not mind.\r\n"
    whole = line * (size // len(line))
    rest = size - len(whole)
    if rest < 2:
        whole, rest = whole[: -len(line)], rest + len(line)
    return whole + b"x" * (rest - 2) + b"\r\n"


def _multipart() -> bytes:
    return (
        b"preamble\r\n--b1\r\nContent-Type: multipart/mixed; boundary=b2\r\n\r\n--b2\r\n"
        b"Content-Type: text/plain\r\n\r\nX-Not: a header\r\n\r\n--b2--\r\n--b1\r\n"
        b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n folded\r\n\r\ninner body\r\n"
        b"--b1\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC/w==\r\n--b1--\r\nepilogue\r\n"
    )
