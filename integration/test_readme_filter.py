"""The filter that the README shows as a whole program, with its lines for Postfix and for Sendmail."""

import re
import sys
from pathlib import Path

import pytest

from integration.readme import README, blocks, filled
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run, answers, free_port, wait_for
from integration.services.sendmail import Sendmail, start_sendmail
from integration.services.sink import Sink, start_sink
from integration.services.smtp import Client
from integration.services.tls import make_certificates

ADDRESS = "127.0.0.1:7357"
CONTENT = b"From: a@example.com\r\nSubject: hello\r\nX-Last: untouched \r\n\r\nbody\r\n"


@pytest.fixture(scope="module")
def sink(run: Run) -> Sink:
    return start_sink(run)


@pytest.fixture(scope="module")
def address(run: Run) -> str:
    """Of the filter."""
    address = f"127.0.0.1:{free_port()}"
    script = run.place("external") / "external.py"
    script.write_text(filled(blocks("python")[0], {ADDRESS: address}), encoding="utf-8")
    run.spawn("external", (sys.executable, str(script))).wait_ready(lambda: answers(f"inet:{address}"))
    return address


@pytest.fixture(scope="module")
def postfix(run: Run, sink: Sink, address: str) -> Postfix:
    (setting,) = blocks("filter.cf")
    key, _, value = filled(setting, {ADDRESS: address}).partition(" = ")
    return start_postfix(run, "postfix", relay_to=sink.address, settings={key: value})


@pytest.fixture(scope="module")
def sendmail(run: Run, sink: Sink, address: str) -> Sendmail:
    (line,) = re.findall(r"``(INPUT_MAIL_FILTER\(.*?\))``", README.read_text(encoding="utf-8"))
    host, _, port = address.partition(":")
    line = filled(line, {"inet:7357@127.0.0.1": f"inet:{port}@{host}"})
    return start_sendmail(run, make_certificates(run), relay_to=sink.address, milters=[line])


def _send(mta: Postfix | Sendmail, *recipients: bytes) -> None:
    with Client(mta.address) as client:
        assert client.send(b"<a@example.com>", recipients, CONTENT).accepted
        client.quit()


def _held(postfix: Postfix) -> list[Path]:
    return [path for path in (postfix.queue / "hold").rglob("*") if path.is_file()]


def test_mail_of_strangers_is_marked(postfix: Postfix, sink: Sink) -> None:
    _send(postfix, b"<b@example.org>")
    content = sink.content(sink.wait_for_mail_to("b@example.org"))
    marked = CONTENT.replace(b"Subject: hello", b"Subject: [EXTERNAL] hello")
    assert content.partition(b"From: a@")[2] == marked.partition(b"From: a@")[2]


def test_sendmail_uses_it_too(sendmail: Sendmail, sink: Sink) -> None:
    _send(sendmail, b"<sendmail@example.org>")
    content = sink.content(sink.wait_for_mail_to("sendmail@example.org"))
    assert b"\r\nSubject: [EXTERNAL] hello\r\n" in content
    _send(sendmail, b"<spam-trap@xn--zck5b2b.example>", b"<d@example.org>")
    wait_for(sendmail.held, "the message to be held")
    sendmail.wait_until_empty()
    assert not list(sink.to("d@example.org"))


def test_mail_to_the_trap_is_held(postfix: Postfix, sink: Sink) -> None:
    _send(postfix, b"<spam-trap@xn--zck5b2b.example>", b"<c@example.org>")
    wait_for(lambda: _held(postfix), "the message to be held")
    postfix.wait_until_empty()
    assert not list(sink.to("c@example.org"))
