"""The message: envelope, headers, body, and the edits that milters make to them.

What is here serves proxies and filters alike. Proxies pass `Message`s on, which are immutable; filters change
a `HeaderList`. The rest are values (`Address`, `Mailbox`, `Envelope`, `Reply`) and plain functions.
"""

from milterchain.mail.address import Address
from milterchain.mail.addresses import DomainSet, same_address, same_domain
from milterchain.mail.body import Body, BodyWriter, SpoolSettings
from milterchain.mail.canonical import Canonicaliser, canonical
from milterchain.mail.edits import HeaderIndex, apply_edits, apply_envelope_edits
from milterchain.mail.envelope import Envelope, Path, bare, bracketed
from milterchain.mail.header_edits import HeaderEdit, header_edits
from milterchain.mail.header_list import Field, HeaderList
from milterchain.mail.header_text import decode_text, encode_text, unfold
from milterchain.mail.headers import Header, HeaderLimits, Headers
from milterchain.mail.line_length import LineLengthLimiter, limit_line_length
from milterchain.mail.mailboxes import Mailbox, encode_mailboxes, parse_mailboxes
from milterchain.mail.message import Message, MessageBuilder, parse_message
from milterchain.mail.replies import Reply, parse_reply

__all__ = [
    "Address",
    "Body",
    "BodyWriter",
    "Canonicaliser",
    "DomainSet",
    "Envelope",
    "Field",
    "Header",
    "HeaderEdit",
    "HeaderIndex",
    "HeaderLimits",
    "HeaderList",
    "Headers",
    "LineLengthLimiter",
    "Mailbox",
    "Message",
    "MessageBuilder",
    "Path",
    "Reply",
    "SpoolSettings",
    "apply_edits",
    "apply_envelope_edits",
    "bare",
    "bracketed",
    "canonical",
    "decode_text",
    "encode_mailboxes",
    "encode_text",
    "header_edits",
    "limit_line_length",
    "parse_mailboxes",
    "parse_message",
    "parse_reply",
    "same_address",
    "same_domain",
    "unfold",
]
