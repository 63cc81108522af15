"""The filter that the README shows as a whole program, behind a real Postfix with the README's setting."""

import sys
from pathlib import Path

import pytest

from integration.readme import blocks
from integration.services.postfix import Postfix, start_postfix
from integration.services.process import Run, answers, free_port, wait_for
from integration.services.sink import Sink, start_sink
from integration.services.smtp import Client

ADDRESS = "127.0.0.1:7357"
CONTENT = b"From: a@example.com\r\nSubject: hello\r\nX-Last: untouched \r\n\r\nbody\r\n"


@pytest.fixture(scope="module")
def sink(run: Run) -> Sink:
    return start_sink(run)


@pytest.fixture(scope="module")
def postfix(run: Run, sink: Sink) -> Postfix:
    place = run.place("external")
    address = f"127.0.0.1:{free_port()}"
    script = place / "external.py"
    script.write_text(blocks("python")[0].replace(ADDRESS, address), encoding="utf-8")
    run.spawn("external", (sys.executable, str(script))).wait_ready(lambda: answers(f"inet:{address}"))
    (setting,) = blocks("filter.cf")
    key, _, value = setting.replace(ADDRESS, address).partition(" = ")
    return start_postfix(run, "postfix", relay_to=sink.address, settings={key: value})


def _send(postfix: Postfix, *recipients: bytes) -> None:
    with Client(postfix.address) as client:
        assert client.send(b"<a@example.com>", recipients, CONTENT).accepted
        client.quit()


def _held(postfix: Postfix) -> list[Path]:
    return [path for path in (postfix.queue / "hold").rglob("*") if path.is_file()]


def test_mail_of_strangers_is_marked(postfix: Postfix, sink: Sink) -> None:
    _send(postfix, b"<b@example.org>")
    content = sink.content(sink.wait_for_mail_to("b@example.org"))
    marked = CONTENT.replace(b"Subject: hello", b"Subject: [EXTERNAL] hello")
    assert content.partition(b"From: a@")[2] == marked.partition(b"From: a@")[2]


def test_mail_to_the_trap_is_held(postfix: Postfix, sink: Sink) -> None:
    _send(postfix, b"<spam-trap@xn--zck5b2b.example>", b"<c@example.org>")
    wait_for(lambda: _held(postfix), "the message to be held")
    postfix.wait_until_empty()
    assert not list(sink.to("c@example.org"))
