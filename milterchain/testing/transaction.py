"""Tests of a mail filter's function, without sockets.

::

    base = TransactionBuilder().sender("joe@example.org").recipient("ann@example.test")

    async def test_subjects_of_strangers_are_marked():
        result = await base.header("Subject", "Hi").run(decide)
        result.expect(ACCEPT, ChangeHeader(1, b"Subject", b" [EXTERNAL] Hi"))

Header values have the blank that follows the colon, as MTAs send them to a `MailFilter`: `b" Hi"`.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, TypeAlias

from milterchain.mail.body import Body
from milterchain.mail.canonical import canonical
from milterchain.mail.edits import apply_edits, apply_envelope_edits
from milterchain.mail.envelope import Envelope
from milterchain.mail.header_list import HeaderList
from milterchain.mail.message import parse_message
from milterchain.mailfilter.changes import changes_of
from milterchain.mailfilter.decision import Decision
from milterchain.mailfilter.options import DecideAt
from milterchain.mailfilter.parties import Recipient, Sender
from milterchain.mailfilter.session import Decide
from milterchain.mailfilter.session_facts import MTA, Connection, Helo
from milterchain.mailfilter.transaction import Transaction
from milterchain.milter.flags import Command, Family
from milterchain.milter.macros import MacroStore
from milterchain.milter.messages import Modification, Quarantine, ReplaceBody

__all__ = ["AnyModification", "FilterResult", "TransactionBuilder", "diff_modifications"]

AnyModification: TypeAlias = Modification | Quarantine


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


@dataclass(frozen=True, slots=True)
class FilterResult:
    """What a filter's function made of a transaction.

    Attributes:
        decision: what it returned.
        modifications: what the MTA would be told to change, in that order; nothing if the decision refuses
            the message. A new body is one `ReplaceBody`, whatever its size.
        message: the whole message as the MTA would have it then, without its own Received header.
        envelope: sender and recipients as the MTA would have them then.
        transaction: what the function was given, and changed.
    """

    decision: Decision
    modifications: tuple[AnyModification, ...]
    message: bytes
    envelope: Envelope
    transaction: Transaction = field(compare=False)

    def expect(self, decision: Decision, *modifications: AnyModification) -> None:
        """Assert that this was decided and changed, and nothing else.

        Raises:
            AssertionError: something differs; the text is a diff, `-` what was expected, `+` what came.
        """
        lines = list(_diff([str(decision)], [str(self.decision)]))
        lines += diff_modifications(modifications, self.modifications).splitlines()
        if self.decision != decision or self.modifications != modifications:
            raise AssertionError("\n".join(["the filter did something else:", *lines]))


def diff_modifications(expected: Sequence[AnyModification], actual: Sequence[AnyModification]) -> str:
    """The difference for people, a line each: `-` is missing, `+` is too much; empty if there is none."""
    return "\n".join(_diff([*_lines(expected)], [*_lines(actual)]))


def _diff(expected: list[str], actual: list[str]) -> Iterator[str]:
    if expected != actual:
        yield from (line for line in difflib.ndiff(expected, actual) if not line.startswith("?"))


def _lines(modifications: Sequence[AnyModification]) -> Iterator[str]:
    for modification in modifications:
        yield str(modification)
        if isinstance(modification, ReplaceBody):
            for line in modification.chunk.splitlines(keepends=True):
                yield f"    {line!r}"


@dataclass(frozen=True, slots=True)
class TransactionBuilder:
    """Describes a message, a piece with each method; every method returns a new builder.

    What is not said: a Postfix asks, about a client at 192.0.2.1 that uses no TLS and is not logged in; the
    sender is `<>`, and there are no recipients, no headers and no body.
    """

    _mta: MTA = field(default=MTA(version="Postfix 3.7.11", name="mx.example.test", daemon="smtpd"))
    _connection: Connection = field(
        default=Connection(host="client.example.test", family=Family.INET, address="192.0.2.1", port=50000)
    )
    _helo: Helo = field(default=Helo(name="client.example.test"))
    _sender: Sender = field(default=Sender(b"<>"))
    _recipients: tuple[Recipient, ...] = ()
    _headers: tuple[tuple[bytes, bytes], ...] = ()
    _body: bytes = b""
    _queue_id: str = ""
    _macros: tuple[tuple[bytes, bytes], ...] = ()
    _cut_short: bool = False

    def mta(self, *, version: str = "", name: str = "", daemon: str = "") -> Self:
        """Say which mail server asks; `version="8.17.1"` makes it a Sendmail."""
        return replace(self, _mta=MTA(version=version, name=name, daemon=daemon))

    def connection(
        self, host: str, address: str = "", *, port: int = 0, family: Family | None = None
    ) -> Self:
        """Say where the client is; the family follows from the address."""
        kind = family or _family(address)
        return replace(self, _connection=Connection(host=host, family=kind, address=address, port=port))

    def helo(
        self,
        name: str,
        *,
        tls_version: str = "",
        cipher: str = "",
        cipher_bits: int = 0,
        cert_subject: str = "",
        cert_issuer: str = "",
    ) -> Self:
        """Say how the client greets, and what TLS it uses."""
        helo = Helo(
            name=name,
            tls_version=tls_version,
            cipher=cipher,
            cipher_bits=cipher_bits,
            cert_subject=cert_subject,
            cert_issuer=cert_issuer,
        )
        return replace(self, _helo=helo)

    def sender(
        self,
        address: str | bytes,
        *args: str | bytes,
        transport: str = "",
        authenticated_user: str = "",
        auth_type: str = "",
    ) -> Self:
        """Say who sends, with the parameters of MAIL, and who is logged in."""
        sender = Sender(
            _path(address),
            tuple(map(_bytes, args)),
            transport=transport,
            authenticated_user=authenticated_user,
            auth_type=auth_type,
        )
        return replace(self, _sender=sender)

    def recipient(self, address: str | bytes, *args: str | bytes, transport: str = "") -> Self:
        """Add a recipient, with the parameters of RCPT."""
        recipient = Recipient(_path(address), tuple(map(_bytes, args)), transport=transport)
        return replace(self, _recipients=(*self._recipients, recipient))

    def header(self, name: str | bytes, value: str | bytes) -> Self:
        """Add a header; a blank is put before the value, folds in it are LF and what follows."""
        return replace(self, _headers=(*self._headers, (_bytes(name), b" " + _bytes(value))))

    def body(self, content: str | bytes) -> Self:
        """Say what the body is; line ends become CRLF."""
        return replace(self, _body=canonical(_bytes(content)))

    def message(self, content: str | bytes) -> Self:
        """Say what headers and body are, as in a file; line ends become CRLF."""
        message = parse_message(canonical(_bytes(content)))
        return replace(self, _headers=tuple(message.milter_headers()), _body=bytes(message.body))

    def queue_id(self, queue_id: str) -> Self:
        """Say how the MTA calls the message."""
        return replace(self, _queue_id=queue_id)

    def macro(self, name: str, value: str) -> Self:
        """Define a macro for `Transaction.macro`."""
        return replace(self, _macros=(*self._macros, (name.encode(), value.encode())))

    def cut_short(self) -> Self:
        """Say that headers or body are not all there."""
        return replace(self, _cut_short=True)

    def build(self, decide_at: DecideAt = DecideAt.END_OF_MESSAGE) -> Transaction:
        """Make a transaction with what is known at that point."""
        macros = MacroStore()
        macros.define(Command.END_OF_MESSAGE, self._macros)
        return Transaction(
            mta=self._mta,
            connection=self._connection,
            helo=self._helo if decide_at >= DecideAt.HELO else None,
            sender=self._sender if decide_at >= DecideAt.MAIL else None,
            recipients=self._recipients if decide_at >= DecideAt.DATA else None,
            headers=HeaderList(
                self._headers if decide_at >= DecideAt.END_OF_HEADERS else (), leading_space=True
            ),
            body=Body.of(self._body) if decide_at >= DecideAt.END_OF_MESSAGE else None,
            queue_id=self._queue_id,
            cut_short=self._cut_short,
            macros=macros,
        )

    async def run(self, function: Decide, decide_at: DecideAt = DecideAt.END_OF_MESSAGE) -> FilterResult:
        """Call the function.

        Args:
            function: the filter.
            decide_at: what is known when it runs.

        Raises:
            TypeError: it returned no `Decision`.
            Exception: whatever the function raises: no `OnError` here.
        """
        transaction = self.build(decide_at)
        decision = await function(transaction)
        if not isinstance(decision, Decision):
            raise TypeError(f"a filter returns a Decision, not {decision!r}")
        changes = changes_of(transaction, decision)
        modifications: list[AnyModification] = [*changes.edits]
        if changes.reason is not None:
            modifications.append(Quarantine(changes.reason))
        if changes.body is not None:
            modifications.append(ReplaceBody(bytes(changes.body)))
        message, envelope = self._apply(modifications)
        return FilterResult(decision, tuple(modifications), message, envelope, transaction)

    def _apply(self, modifications: Sequence[AnyModification]) -> tuple[bytes, Envelope]:
        edits = [edit for edit in modifications if not isinstance(edit, Quarantine)]
        headers = HeaderList(self._headers, leading_space=True)
        message = parse_message(bytes(headers) + b"\r\n" + self._body)
        rule = self._mta.header_index
        edited = apply_edits(message, edits, header_index=rule, leading_space=True).message
        envelope = Envelope(self._sender.path, tuple(recipient.path for recipient in self._recipients))
        return b"".join(edited.chunks()), apply_envelope_edits(envelope, edits).envelope


def _path(address: str | bytes) -> bytes:
    return b"<%b>" % _bytes(address).removeprefix(b"<").removesuffix(b">")


def _family(address: str) -> Family:
    if not address:
        return Family.UNKNOWN
    if address.startswith("/"):
        return Family.UNIX
    return Family.INET6 if ":" in address else Family.INET
