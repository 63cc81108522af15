"""Write a filter as one async function: it is given a message, may change it, and returns what becomes of it.

::

    async def decide(trx: Transaction) -> Decision:
        if trx.has_recipient("spam-trap@スパム.example"):
            return quarantine("train as spam")
        if not trx.sender.authenticated_user:
            trx.headers.subject = f"[EXTERNAL] {trx.headers.subject or ''}"
        return ACCEPT

    options = FilterOptions(decide_at=DecideAt.END_OF_HEADERS)
    async with MailFilter(decide, ["inet:127.0.0.1:10003"], options=options):
        await stop.wait()

The function gets a `Transaction`, changes it as it likes, and returns a `Decision`; `FilterOptions` say when
it runs. `milterchain.testing.TransactionBuilder` calls it without any socket.
"""

from milterchain.mailfilter.decision import ACCEPT, DISCARD, REJECT, TEMPFAIL, Decision, custom, quarantine
from milterchain.mailfilter.filter import MailFilter
from milterchain.mailfilter.options import (
    BodyOptions,
    DecideAt,
    FilterOptions,
    HeaderOptions,
    OnError,
    TooLarge,
)
from milterchain.mailfilter.parties import Recipient, Sender
from milterchain.mailfilter.session import Decide
from milterchain.mailfilter.session_facts import MTA, Connection, Helo
from milterchain.mailfilter.transaction import Transaction
from milterchain.mailfilter.validation import RecipientCheck, Validator

__all__ = [
    "ACCEPT",
    "DISCARD",
    "MTA",
    "REJECT",
    "TEMPFAIL",
    "BodyOptions",
    "Connection",
    "Decide",
    "DecideAt",
    "Decision",
    "FilterOptions",
    "HeaderOptions",
    "Helo",
    "MailFilter",
    "OnError",
    "Recipient",
    "RecipientCheck",
    "Sender",
    "TooLarge",
    "Transaction",
    "Validator",
    "custom",
    "quarantine",
]
