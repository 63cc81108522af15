"""From the bytes of a header's value to text, and back (RFC 5322 2.2.3, RFC 2047).

Values are what stands after the colon, with a bare LF at each fold, as milters see them. Reading takes
anything and never raises: what is wrongly encoded, or in a character set that nobody knows, comes out as well
as it can. Writing makes ASCII only, in lines of at most 78 octets where words allow, and folds at blanks that
belong to the text, so that reading it again gives exactly the same text.
"""

import binascii
import re
from encodings.aliases import aliases

__all__ = [
    "decode_text",
    "encode_text",
    "encode_words",
    "fold",
    "is_header_name",
    "normalize_value",
    "unfold",
]

MAX_LINE = 78
"""Octets of a line that we write (RFC 5322 2.1.1: should)."""
LINE_LIMIT = 998
"""Octets of a line that anybody may write (RFC 5322 2.1.1: must)."""
MAX_WORD = 75
"""Octets of an encoded word (RFC 2047 section 2)."""

_NAME = re.compile(rb"[!-9;-~]+")
_WORD = re.compile(rb"=\?([!-)+->@-~]{1,64})(?:\*[!->@-~]{0,64})?\?([BbQq])\?([^?\n]*)\?=")
_PLAIN = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PIECE = re.compile(rb" *[^ ]+")
# RFC 2047 section 5 (3): these may stand for themselves in any place where an encoded word may.
_Q_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_PREFIX = b"=?utf-8?%b?"
_SUFFIX = b"?="

_NO_CHARSETS = {"base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec"}
_UNLISTED = {"cp720", "cp737", "cp874", "koi8_t", "koi8_u"}
# Looking up any other name searches the disk and is remembered for ever, and senders choose the names.
_CHARSETS = {*aliases, *aliases.values(), *_UNLISTED} - {
    name for alias, codec in aliases.items() if codec in _NO_CHARSETS for name in (alias, codec)
}


def is_header_name(name: bytes) -> bool:
    """Whether these bytes may be a header's name: printable ASCII without the colon (RFC 5322 2.2)."""
    return _NAME.fullmatch(name) is not None


def normalize_value(value: bytes) -> bytes:
    """The value as an MTA would take it from a milter: a bare LF at each fold, and a blank after it.

    Whatever follows a line end continues the header (Postfix, cleanup_out_header); a bare CR is a blank.
    """
    value = value.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    if b"\n" not in value:
        return value
    first, *others = value.split(b"\n")
    return b"\n".join([first, *(line if line[:1] in {b" ", b"\t"} else b"\t" + line for line in others)])


def unfold(value: bytes) -> bytes:
    """The value on one line, without the blanks around it; nothing is decoded."""
    return value.replace(b"\n", b"").strip(b" \t")


def decode_text(value: bytes) -> str:
    """The text that a value means: unfolded, encoded words decoded, other octets read as UTF-8 or Latin-1."""
    data = unfold(value)
    if b"=?" not in data:
        return _decode_octets(data)
    parts: list[str] = []
    pending = b""
    charset = b""
    end = 0
    for match in _WORD.finditer(data):
        gap = data[end : match.start()]
        # Blanks between encoded words are not part of the text, and characters may be cut between them.
        joined = end > 0 and not gap.strip(b" \t")
        if not (joined and match[1].lower() == charset):
            parts.append(_decode_charset(pending, charset))
            pending = b""
            if not joined:
                parts.append(_decode_octets(gap))
        charset = match[1].lower()
        pending += _decode_payload(match[2], match[3])
        end = match.end()
    parts += [_decode_charset(pending, charset), _decode_octets(data[end:])]
    # UTF-7 and UTF-16 can smuggle in halves of surrogate pairs, which no other encoding can write.
    return "".join(parts).encode("utf-8", "replace").decode("utf-8")


def _decode_payload(encoding: bytes, payload: bytes) -> bytes:
    if encoding in {b"q", b"Q"}:
        return binascii.a2b_qp(payload, header=True)
    try:
        return binascii.a2b_base64(payload + b"==")
    except binascii.Error:
        return payload


def _decode_charset(data: bytes, charset: bytes) -> str:
    name = charset.decode("ascii").replace("-", "_")
    try:
        return data.decode(name, "replace") if name in _CHARSETS else _decode_octets(data)
    except LookupError:  # Python lists what other systems have
        return _decode_octets(data)


def _decode_octets(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def encode_text(text: str, *, indent: int = 0) -> bytes:
    """The value for a text: plain if it can be, else as encoded words in UTF-8.

    Args:
        text: line ends around it are left out; those in it and other control characters become blanks.
        indent: octets that stand before the value on its first line.
    """
    text = _CONTROL.sub(" ", text.strip("\r\n"))
    if not text:
        return b""
    longest = max(map(len, text.split(" ")))
    if _PLAIN.fullmatch(text) and "=?" not in text and indent + longest < LINE_LIMIT:
        return fold(_PIECE.findall(text.encode("ascii")), indent=indent)
    return fold(encode_words(text, indent=indent), indent=indent)


def fold(pieces: list[bytes], *, indent: int) -> bytes:
    """Put pieces on lines that are not too long; those that may begin a line begin with a blank."""
    lines = [b""]
    room = MAX_LINE - indent
    for piece in pieces:
        if lines[-1] and len(piece) > room and piece[:1] == b" ":
            lines.append(b"")
            room = MAX_LINE
        lines[-1] += piece
        room -= len(piece)
    return b"\n".join(lines)


def encode_words(text: str, *, indent: int = 0) -> list[bytes]:
    """Encoded words for a text, all but the first with a blank before them; no character is cut in two.

    Args:
        text: anything; half surrogate pairs become question marks.
        indent: octets that stand before the first word on its line.
    """
    encoded = [char.encode("utf-8", "replace") for char in text]
    total = sum(map(len, encoded))
    quoted = [b"".join(map(_quote, char)) for char in encoded]
    plain = sum(map(len, quoted)) <= total * 4 / 3
    prefix = _PREFIX % (b"q" if plain else b"b")
    overhead = len(prefix) + len(_SUFFIX)
    room = max(min(MAX_WORD, MAX_LINE - indent) - overhead, 12)
    words: list[bytes] = []
    word: list[bytes] = []
    size = 0
    for octets, quotation in zip(encoded, quoted, strict=True):
        added = len(quotation) if plain else len(octets)
        if word and _encoded_size(size + added, plain=plain) > room:
            words.append(_encoded_word(prefix, word, plain=plain))
            word, size, room = [], 0, MAX_WORD - overhead
        word.append(quotation if plain else octets)
        size += added
    words.append(_encoded_word(prefix, word, plain=plain))
    return words[:1] + [b" " + word for word in words[1:]]


def _encoded_size(size: int, *, plain: bool) -> int:
    return size if plain else (size + 2) // 3 * 4


def _encoded_word(prefix: bytes, parts: list[bytes], *, plain: bool) -> bytes:
    data = b"".join(parts)
    return prefix + (data if plain else binascii.b2a_base64(data, newline=False)) + _SUFFIX


def _quote(octet: int) -> bytes:
    if octet in _Q_SAFE:
        return bytes((octet,))
    return b"_" if octet == 0x20 else b"=%02X" % octet
