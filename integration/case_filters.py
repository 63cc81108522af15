"""The filters that `integration/cases` puts to the test, named and set up by the scenarios.

`decide` is written on `milterchain.mailfilter`; `event`, on `milterchain.milter`, is in `case_events.py`.

Options of `decide`:

    at POINT                when the function runs: connect, helo, mail, data, end-of-headers, end-of-message
    sender ADDRESS          only messages of this sender get changes and the answer; others are accepted
    CHANGE ...              a key of `CHANGES` below, in the order of the file
    report WHAT             add a header `X-WHAT` with what the transaction says; a key of `REPORTS`
    macro NAME              add a header `X-Macro` with `NAME=value`, `NAME` alone if there is none
    answer ANSWER           accept, reject, tempfail, discard, quarantine REASON, or CODE STATUS TEXT with
                            more lines as more options; `accept` if there is none
    validate ADDRESS ANSWER the answer for one recipient
    only-if WHAT VALUE      changes and answer only if this report is this value
    fail                    raise an exception;  on-error POLICY
    sleep SECONDS           before the answer
    body none | SIZE WHAT   no body, or a limit and what then: reject, clear, truncate;  memory SIZE
    headers COUNT WHAT      likewise
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime

from integration.case_events import start_event
from milterchain.mailfilter import (
    ACCEPT,
    DISCARD,
    REJECT,
    TEMPFAIL,
    BodyOptions,
    DecideAt,
    Decision,
    FilterOptions,
    HeaderOptions,
    MailFilter,
    OnError,
    RecipientCheck,
    TooLarge,
    Transaction,
    custom,
    quarantine,
)
from milterchain.testing.cases import CaseFilter, FilterStarter

SIMPLE = {"accept": ACCEPT, "reject": REJECT, "tempfail": TEMPFAIL, "discard": DISCARD}


def decision(lines: tuple[str, ...]) -> Decision:
    """What the lines of an answer ask for."""
    if not lines:
        return ACCEPT
    first, *more = lines
    word, _, rest = first.partition(" ")
    if word in SIMPLE:
        return SIMPLE[word]
    if word == "quarantine":
        return quarantine(rest)
    status, _, text = rest.partition(" ")
    if status == "-":
        return custom(int(word), None, text, *more)
    return custom(int(word), status, text, *more)


def _header(text: str) -> tuple[bytes, bytes]:
    name, _, value = text.encode().partition(b": ")
    return name, value


def _add(trx: Transaction, text: str) -> None:
    trx.headers.add(*_header(text))


def _insert(trx: Transaction, text: str) -> None:
    index, _, header = text.partition(" ")
    trx.headers.insert(int(index), *_header(header))


def _set(trx: Transaction, text: str) -> None:
    trx.headers.set(*_header(text))


def _set_second(trx: Transaction, text: str) -> None:
    name, value = _header(text)
    trx.headers.set(name, value, index=1)


def _set_text(trx: Transaction, text: str) -> None:
    name, _, value = text.partition(": ")
    trx.headers.set_text(name.encode(), value)


def _delete(trx: Transaction, name: str) -> None:
    trx.headers.delete(name.encode())


def _prefix(trx: Transaction, text: str) -> None:
    trx.headers.subject = f"{text} {trx.headers.subject or ''}"


def _before(trx: Transaction, text: str) -> None:
    name, _, header = text.partition(" ")
    for field in trx.headers:
        if field.name.lower() == name.lower().encode():
            field.insert_before(*_header(header))


def _after(trx: Transaction, text: str) -> None:
    name, _, header = text.partition(" ")
    for field in trx.headers:
        if field.name.lower() == name.lower().encode():
            field.insert_after(*_header(header))


def _replace_each(trx: Transaction, text: str) -> None:
    name, value = _header(text)
    for field in trx.headers:
        if field.name.lower() == name.lower():
            field.replace(value)


def _date(trx: Transaction, text: str) -> None:
    trx.headers.set_date(datetime.fromisoformat(text))


def _swap_addresses(trx: Transaction, _: str) -> None:
    sender, recipients = trx.headers.addresses(b"From"), trx.headers.addresses(b"To")
    trx.headers.set_addresses(b"From", recipients)
    trx.headers.set_addresses(b"To", sender)


def _repeat_body(trx: Transaction, text: str) -> None:
    times, _, line = text.partition(" ")
    trx.replace_body(line.encode() + b"\r\n" for _ in range(int(times)))


def _upper_body(trx: Transaction, _: str) -> None:
    trx.replace_body(trx.body.read().upper())


def _add_recipient(trx: Transaction, text: str) -> None:
    trx.add_recipient(*text.split(" "))


def _change_sender(trx: Transaction, text: str) -> None:
    trx.change_sender(*text.split(" "))


CHANGES: Mapping[str, Callable[[Transaction, str], object]] = {
    "add-header": _add,
    "insert-header": _insert,
    "set-header": _set,
    "set-second": _set_second,
    "set-text": _set_text,
    "delete-header": _delete,
    "prefix-subject": _prefix,
    "insert-before": _before,
    "insert-after": _after,
    "replace-each": _replace_each,
    "set-date": _date,
    "swap-addresses": _swap_addresses,
    "keep-order": lambda trx, _: trx.keep_header_order(),
    "change-sender": _change_sender,
    "add-recipient": _add_recipient,
    "delete-recipient": lambda trx, text: trx.delete_recipient(text),
    "replace-body": lambda trx, text: trx.replace_body(text.encode()),
    "repeat-body": _repeat_body,
    "upper-body": _upper_body,
}


def _digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()[:16]}"


REPORTS: Mapping[str, Callable[[Transaction], object]] = {
    "mta-version": lambda trx: trx.mta.version,
    "mta-name": lambda trx: trx.mta.name,
    "mta-daemon": lambda trx: trx.mta.daemon,
    "mta-sendmail": lambda trx: trx.mta.is_sendmail,
    "client-host": lambda trx: trx.connection.host,
    "client-address": lambda trx: trx.connection.address,
    "client-family": lambda trx: trx.connection.family.name,
    "client-port": lambda trx: trx.connection.port > 0,
    "helo": lambda trx: trx.helo.name,
    "tls-version": lambda trx: trx.helo.tls_version,
    "tls-cipher": lambda trx: trx.helo.cipher,
    "tls-bits": lambda trx: trx.helo.cipher_bits,
    "cert-subject": lambda trx: trx.helo.cert_subject,
    "cert-issuer": lambda trx: trx.helo.cert_issuer,
    "sender": lambda trx: trx.sender,
    "sender-args": lambda trx: b" ".join(trx.sender.args).decode(),
    "sender-transport": lambda trx: trx.sender.transport,
    "auth-user": lambda trx: trx.sender.authenticated_user,
    "auth-type": lambda trx: trx.sender.auth_type,
    "auth-author": lambda trx: trx.sender.auth_author,
    "recipients": lambda trx: ", ".join(str(recipient) for recipient in trx.recipients),
    "recipient-args": lambda trx: b" ".join(arg for rcpt in trx.recipients for arg in rcpt.args).decode(),
    "recipient-transport": lambda trx: trx.recipients[0].transport,
    "recipient-domain": lambda trx: (
        f"{trx.recipients[0].ascii_domain!r} {trx.recipients[0].unicode_domain!a}"
    ),
    "queue-id": lambda trx: bool(trx.queue_id),
    "header-count": lambda trx: len(trx.headers),
    "subject": lambda trx: ascii(trx.headers.subject),
    "date": lambda trx: trx.headers.date(),
    "from": lambda trx: ", ".join(map(ascii, trx.headers.addresses(b"From"))),
    "body": lambda trx: _digest(trx.body.read()),
    "message": lambda trx: _digest(trx.message().read()),
    "cut-short": lambda trx: trx.cut_short,
    "has-recipient": lambda trx: trx.has_recipient("user@スパム.example"),
}


def _point(setup: CaseFilter) -> DecideAt:
    return DecideAt[setup.get("at", "end-of-message").upper().replace("-", "_")]


def _body_options(setup: CaseFilter) -> BodyOptions | None:
    text = setup.get("body")
    if text == "none":
        return None
    options = BodyOptions(memory=int(setup.get("memory", "65536")))
    if not text:
        return options
    size, _, what = text.partition(" ")
    return BodyOptions(memory=options.memory, max_size=int(size), too_large=TooLarge(what))


def _header_options(setup: CaseFilter) -> HeaderOptions:
    text = setup.get("headers")
    if not text:
        return HeaderOptions()
    count, _, what = text.partition(" ")
    return HeaderOptions(max_count=int(count), too_large=TooLarge(what))


def _filter_options(setup: CaseFilter) -> FilterOptions:
    refusals = dict(text.split(" ", 1) for text in setup.all("validate"))

    async def validate(check: RecipientCheck) -> Decision:
        answer = refusals.get(str(check.recipient))
        return ACCEPT if answer is None else decision((answer,))

    return FilterOptions(
        decide_at=_point(setup),
        on_error=OnError(setup.get("on-error", "tempfail")),
        body=_body_options(setup),
        headers=_header_options(setup),
        validate_recipient=validate if refusals else None,
    )


def _concerned(setup: CaseFilter, trx: Transaction) -> bool:
    if (sender := setup.get("sender")) and str(trx.sender) != sender:
        return False
    if condition := setup.get("only-if"):
        what, _, value = condition.partition(" ")
        return str(REPORTS[what](trx)) == value
    return True


async def _decide(setup: CaseFilter, trx: Transaction) -> Decision:
    if not _concerned(setup, trx):
        return ACCEPT
    for key, value in setup.options:
        if key in CHANGES:
            CHANGES[key](trx, value)
        elif key == "report":
            trx.headers.add(b"X-" + value.encode(), str(REPORTS[value](trx)).encode())
        elif key == "macro":
            found = trx.macro(value)
            trx.headers.add(b"X-Macro", (value if found is None else f"{value}={found}").encode())
        elif key == "sleep":
            await asyncio.sleep(float(value))
        elif key == "fail":
            raise RuntimeError("this filter was asked to fail")
    return decision(setup.all("answer"))


@asynccontextmanager
async def start_decide(setup: CaseFilter, address: str) -> AsyncIterator[None]:
    """A filter that is one function."""
    async with MailFilter(lambda trx: _decide(setup, trx), [address], options=_filter_options(setup)):
        yield


CASE_FILTERS: Mapping[str, FilterStarter] = {"decide": start_decide, "event": start_event}
