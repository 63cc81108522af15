"""The message: envelope, headers, body, and the edits that milters make to them."""

from milterchain.mail.address import Address
from milterchain.mail.edits import HeaderIndex
from milterchain.mail.header_edits import HeaderEdit, header_edits
from milterchain.mail.header_list import Field, HeaderList
from milterchain.mail.mailboxes import Mailbox, encode_mailboxes, parse_mailboxes

__all__ = [
    "Address",
    "Field",
    "HeaderEdit",
    "HeaderIndex",
    "HeaderList",
    "Mailbox",
    "encode_mailboxes",
    "header_edits",
    "parse_mailboxes",
]
