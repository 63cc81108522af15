"""The message: envelope, headers, body, and the edits that milters make to them."""

from milterchain.mail.address import Address
from milterchain.mail.header_list import Field, HeaderList
from milterchain.mail.mailboxes import Mailbox, encode_mailboxes, parse_mailboxes

__all__ = [
    "Address",
    "Field",
    "HeaderList",
    "Mailbox",
    "encode_mailboxes",
    "parse_mailboxes",
]
