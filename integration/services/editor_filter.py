"""A libmilter filter (through Debian's python3-milter) that does what each message asks of it.

Run by Debian's /usr/bin/python3: `editor_filter.py NAME SOCKET [--leading-space] [--sleep-mail SECONDS]`.
The name of this file matters: a script called milter.py would shadow the extension module.

- A header `X-NAME-Edit: [OP, ARGUMENT...]` (JSON, one per edit) becomes an edit at the end of the message.
- A sender `verdict-NAME-STAGE-WHAT@...` or a HELO name `verdict-NAME-helo-WHAT...` gets that verdict at
  that stage.
- Every message gets `X-NAME-Seen` with a digest of exactly what this filter was told about it.
"""

# The methods are libmilter's callbacks, and there are no types for the Milter module.
# ruff: noqa: D102
# mypy: ignore-errors

import argparse
import hashlib
import json
import re
import sys
import time

import Milter

REPLIES = {
    "tempfail": Milter.TEMPFAIL,
    "reject": Milter.REJECT,
    "discard": Milter.DISCARD,
    "accept": Milter.ACCEPT,
}

TIME = re.compile(rb"\bt=\d+;")
SIGNATURE = re.compile(rb"\bb=[A-Za-z0-9+/=\s]*")

parser = argparse.ArgumentParser()
parser.add_argument("name")
parser.add_argument("socket")
parser.add_argument("--leading-space", action="store_true")
parser.add_argument("--sleep-mail", type=float, default=0)
options = parser.parse_args()


def asked(label):
    """The stage and the verdict that a label asks this filter for."""
    parts = label.split("-")
    return tuple(parts[2:]) if parts[:2] == ["verdict", options.name] else ("", "")


class Editor(Milter.Base):
    """One SMTP session."""

    def __init__(self):
        self.id = Milter.uniqueID()
        self.begin("", ())

    def begin(self, sender, parameters):
        self.verdict = asked(sender.strip("<>").partition("@")[0])
        self.edits = []
        self.recipients = []
        self.envelope = [[sender, *parameters]]
        self.digest = hashlib.sha256()
        self.header_count = self.body_size = 0

    def judge(self, stage):
        if self.verdict[0] != stage:
            return Milter.CONTINUE
        what = self.verdict[1]
        if what == "reply5":
            self.setreply("550", "5.7.9", "not this one", "second line, 100%%")
            return Milter.REJECT
        if what == "reply4":
            self.setreply("450", "4.7.9", "not now")
            return Milter.TEMPFAIL
        if what == "reply421":
            self.setreply("421", "4.7.9", "go away")
            return Milter.TEMPFAIL
        return REPLIES[what]

    def connect(self, _hostname, _family, _address):
        return Milter.CONTINUE

    def hello(self, name):
        self.verdict = asked(name.partition(".")[0])
        return self.judge("helo")

    def envfrom(self, sender, *parameters):
        if options.sleep_mail:
            time.sleep(options.sleep_mail)
        self.begin(sender, parameters)
        return self.judge("mail")

    def envrcpt(self, recipient, *parameters):
        self.envelope.append([recipient, *parameters])
        return self.judge("rcpt")

    def data(self):
        return self.judge("data")

    @Milter.decode("bytes")
    def header(self, name, value):
        self.header_count += 1
        if name.lower() == "dkim-signature":
            # Two ways of one message are not signed in the same second.
            value = SIGNATURE.sub(b"", TIME.sub(b"", value))
        self.digest.update(b"%b\0%b\0" % (name.encode("utf-8", "surrogateescape"), value))
        if name.lower() == f"x-{options.name}-edit":
            self.edits.append(json.loads(value))
        return self.judge("header")

    def eoh(self):
        self.digest.update(b"end of headers")
        return self.judge("eoh")

    def body(self, chunk):
        self.digest.update(chunk)
        self.body_size += len(chunk)
        return self.judge("body")

    def eom(self):
        seen = f"headers={self.header_count} body={self.body_size} sha256={self.digest.hexdigest()}"
        envelope = hashlib.sha256(json.dumps(self.envelope).encode()).hexdigest()
        for name, *arguments in self.edits:
            self.edit(name, *arguments)
        self.addheader(f"X-{options.name}-Seen", f"{seen}\n\tenvelope={envelope}")
        return self.judge("eom")

    def edit(self, name, *arguments):
        do = {
            "add": self.addheader,
            "insert": lambda index, header, value: self.addheader(header, value, index),
            "change": lambda index, header, value: self.chgheader(header, index, value),
            "delete": lambda index, header: self.chgheader(header, index, None),
            "body": lambda *chunks: [self.replacebody(chunk.encode("latin-1")) for chunk in chunks],
            "repeat": lambda chunk, times: [self.replacebody(chunk.encode("latin-1")) for _ in range(times)],
            "sender": self.chgfrom,
            "recipient": self.addrcpt,
            "remove": self.delrcpt,
            "progress": self.progress,
        }
        do[name](*arguments)

    def abort(self):
        return Milter.CONTINUE

    def close(self):
        return Milter.CONTINUE


if __name__ == "__main__":
    Milter.factory = Milter.header_leading_space(Editor) if options.leading_space else Editor
    Milter.set_flags(
        Milter.ADDHDRS
        | Milter.CHGHDRS
        | Milter.CHGBODY
        | Milter.ADDRCPT
        | Milter.ADDRCPT_PAR
        | Milter.DELRCPT
        | Milter.CHGFROM
    )
    Milter.runmilter(options.name, options.socket, 0)
    sys.exit(0)
