"""The whole way with real filters: libmilter script, OpenDKIM, OpenDMARC, rspamd, Postfix, sink."""

import dkim  # type: ignore[import-untyped]
import pytest

from integration.corpus import Sample, all_samples, head
from integration.services.filters import (
    DOMAIN,
    GTUBE,
    SELECTOR,
    Filter,
    SigningKey,
    make_key,
    start_editor,
    start_opendkim,
    start_opendmarc,
    start_rspamd,
)
from integration.services.postfix import start_postfix
from integration.services.process import Run
from integration.services.proxy import Proxy, milter_table, start_proxy
from integration.services.sink import Sink, start_sink
from integration.services.smtp import Client, Outcome

SPAM = {"duplicate-standard"}
"""Samples that rspamd refuses."""

SIGNED = [
    sample
    for sample in all_samples()
    if sample.content.startswith(b"From: Sender")
    and not sample.raw
    and not sample.name.startswith("edit-")
    and sample.name not in SPAM
]
"""Samples that OpenDKIM signs and whose envelope goes through."""


@pytest.fixture(scope="module")
def key(run: Run) -> SigningKey:
    return make_key(run)


@pytest.fixture(scope="module")
def sink(run: Run, nameserver: str) -> Sink:
    del nameserver
    return start_sink(run)


@pytest.fixture(scope="module")
def filters(run: Run, nameserver: str, key: SigningKey) -> list[Filter]:
    return [
        start_editor(run, "red"),
        start_opendkim(run, key),
        start_opendmarc(run),
        start_rspamd(run, nameserver),
    ]


@pytest.fixture(scope="module")
def proxy(run: Run, sink: Sink, filters: list[Filter]) -> Proxy:
    postfix = start_postfix(run, "postfix", relay_to=sink.address)
    tables = [milter_table(each.name, each.address) for each in filters]
    return start_proxy(run, next_hop=f"smtp:{postfix.address}", milters=tables)


def _send(proxy: Proxy, sample: Sample) -> Outcome:
    with Client(proxy.address) as client:
        outcome = client.send(sample.sender, sample.paths, sample.content)
        client.quit()
    return outcome


@pytest.mark.parametrize(
    "sample", [each for each in SIGNED if not each.recipients], ids=lambda each: each.name
)
def test_the_signature_verifies(proxy: Proxy, sink: Sink, key: SigningKey, sample: Sample) -> None:
    assert _send(proxy, sample).accepted
    message = sink.content(sink.wait_for_mail_to(f"{sample.name}@{DOMAIN}"))

    def lookup(name: bytes, timeout: int = 5) -> bytes:
        del timeout
        assert name.rstrip(b".") == f"{SELECTOR}._domainkey.{DOMAIN}".encode()
        return key.record

    assert message.count(b"\r\nDKIM-Signature: v=1; a=rsa-sha256; c=relaxed/simple; d=example.test;") == 1
    assert dkim.DKIM(_own_signature_first(message)).verify(dnsfunc=lookup)


def _own_signature_first(message: bytes) -> bytes:
    """For dkimpy, which verifies the topmost signature: one sample brings an old one, which is below ours."""
    assert message.index(b"d=example.test;") < message.find(b"d=x.test;") or b"d=x.test;" not in message
    return message


def test_each_filter_left_its_mark_in_order(proxy: Proxy, sink: Sink) -> None:
    sample = Sample("marks", head("marks labspammy") + b"\r\nbody\r\n")
    assert _send(proxy, sample).accepted
    message = sink.content(sink.wait_for_mail_to(f"marks@{DOMAIN}"))
    signature, received = (
        message.index(b"\r\nDKIM-Signature:"),
        message.index(b"by mx.example.test (Postfix)"),
    )
    assert received < signature < message.index(b"\r\nFrom: Sender") < message.index(b"\r\nX-red-Seen:")
    assert b"\r\nAuthentication-Results: mx.example.test;" in message
    assert b"\r\nX-Spam" in message
    # OpenDKIM signed what `red` had added.
    assert b"headers=5 body=6" in message


@pytest.mark.parametrize(
    ("name", "content", "code", "text"),
    [
        ("gtube", head("gtube") + b"\r\n" + GTUBE, 554, b"Gtube pattern"),
        ("labbad", head("labbad") + b"\r\nbody\r\n", 554, b"Spam message rejected"),
        (
            "spoofed",
            b"From: someone@evil.test\r\nSubject: x\r\n\r\nbody\r\n",
            550,
            b"rejected by DMARC policy",
        ),
    ],
)
def test_refusals_reach_the_client(
    proxy: Proxy, sink: Sink, name: str, content: bytes, code: int, text: bytes
) -> None:
    outcome = _send(proxy, Sample(name, content))
    assert outcome.end is not None
    assert outcome.end.code == code
    assert text in outcome.end.text
    assert _send(proxy, Sample(f"after-{name}", head("x") + b"\r\nbody\r\n")).accepted
    sink.wait_for_mail_to(f"after-{name}@{DOMAIN}")
    assert next(sink.to(f"{name}@{DOMAIN}"), None) is None
