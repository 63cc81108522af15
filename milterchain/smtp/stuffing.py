"""The content as it travels.

After DATA (RFC 5321 section 4.5.2): dots doubled, ended by one `CRLF . CRLF`. After BDAT (RFC 3030): as it
is.

Works on chunks in bulk and holds no more than one of them. The content is expected to be normalised: each
line ends in CRLF and no other CR or LF occurs. Should a bare LF get here nevertheless, the dot after it is
doubled too: a next hop that takes a bare LF for a line end must not see an end of data before ours.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

__all__ = ["one_chunk", "stuffed"]

_COALESCE = 64 * 1024
"""Pieces are joined up to this size: a small message is one write, and larger ones are not copied twice."""

# One octet and a look ahead: far faster than a `replace` that finds nothing, as nearly all do.
_DOT_LINE: Final = re.compile(rb"\n(?=\.)")


def stuffed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what to write after the 354: at least one piece; the last one ends with the final dot.

    A content whose last line has no CRLF gets one, as the dot must stand on a line of its own.
    """
    tail = b"\r\n"
    held = b""
    for chunk in chunks:
        if not chunk:
            continue
        piece = chunk.replace(b"\n.", b"\n..") if _DOT_LINE.search(chunk) else chunk
        if chunk[0] == 0x2E and tail[-1] == 0x0A:
            piece = b"." + piece
        tail = (tail + chunk[-2:])[-2:]
        if not held:
            held = piece
        elif len(held) + len(piece) <= _COALESCE:
            held += piece
        else:
            yield held
            held = piece
    yield held + (b".\r\n" if tail == b"\r\n" else b"\r\n.\r\n")


def one_chunk(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield what to write for a content of so many octets: the command, the content; at least one piece.

    Raises:
        ValueError: there are more or fewer octets, and the last piece was not yielded: what follows it would
            be taken for content, or the content for commands.
    """
    held = b"BDAT %d LAST\r\n" % size
    missing = size
    for chunk in chunks:
        missing -= len(chunk)
        if missing < 0:
            break
        if len(held) + len(chunk) <= _COALESCE:
            held += chunk
        else:
            yield held
            held = chunk
    if missing:
        raise ValueError(
            f"a content of {size} octets has {abs(missing)} too {'many' if missing < 0 else 'few'}"
        )
    yield held
