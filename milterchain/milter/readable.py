r"""The text form of messages for logs: one line of logfmt, the same for the same value in every version.

`reject`; `reply_code code=550 status=5.7.1 text="not today"`; `add_header name=X-Spam value=yes`;
`replace_body bytes=65535`. Bytes are shown as UTF-8 where they are, what cannot be printed as `\xNN`; a
value with blanks, quotes or line ends is quoted, and so is such a name: peers choose those of macros.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import Field, fields
from operator import attrgetter
from typing import Any, ClassVar

__all__ = ["Readable", "logfmt", "quoted"]

_BARE = re.compile(r"[!#-<>-\[\]-~]+")
"""What needs no quotes: printable ASCII but `"`, `=` and the backslash."""
_code = attrgetter("code")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def logfmt(word: str, values: Mapping[str, object]) -> str:
    """One line: a word, then `name=value` for each value in order."""
    return " ".join([word, *(f"{quoted(name)}={_shown(value)}" for name, value in values.items())])


class Readable:
    """Gives a message its text form; the word is the name of its code."""

    __slots__ = ()

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __str__(self) -> str:
        return logfmt(_code(self).name.lower(), self._readable())

    def _readable(self) -> Mapping[str, object]:
        """What stands behind the word."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _shown(value: object) -> str:
    if isinstance(value, enum.Flag):
        return f"{value.value:#x}"
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, tuple):
        return quoted(" ".join(map(_plain, value)))
    if isinstance(value, Mapping):
        return quoted(" ".join(f"{_plain(name)}:{_plain(names)}" for name, names in value.items()))
    return quoted(_plain(value))


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, tuple):
        return ",".join(map(_plain, value))
    if isinstance(value, enum.Enum):
        return value.name.lower()
    return str(value)


def quoted(text: str) -> str:
    """A text as it stands in such a line: in quotes, with escapes, if it needs them."""
    if _BARE.fullmatch(text):
        return text
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else character.encode("unicode_escape").decode()
