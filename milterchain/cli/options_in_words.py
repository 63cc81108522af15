"""Options of the milter protocol in words, and read from words."""

from typing import Literal, TypeVar

from milterchain.milter.flags import Action, Command, Protocol
from milterchain.milter.negotiation import Negotiated

__all__ = ["flag_names", "in_words", "read_flags", "why_silent"]


_F = TypeVar("_F", Action, Protocol)


def in_words(actions: Action, protocol: Protocol) -> str:
    """What was agreed on: what the milter may change, what it is not sent, does not answer, and can do."""
    may, bits = flag_names(actions), flag_names(protocol)
    unasked = [bit.removeprefix("no reply ") for bit in bits if bit.startswith("no reply ")]
    unsent = [bit.removeprefix("no ") for bit in bits if bit.startswith("no ") and bit[3:8] != "reply"]
    rest = [bit for bit in bits if not bit.startswith("no ")]
    parts = [f"may {', '.join(may)}" if may else "may change nothing"]
    parts += [
        f"{what}: {', '.join(names)}"
        for what, names in (("not sent", unsent), ("no answer to", unasked), ("knows", rest))
        if names
    ]
    return "; ".join(parts)


def why_silent(agreed: Negotiated, command: Command) -> Literal["not asked", "no answer wanted"]:
    """Why a milter did not answer to a command: it was not sent, or sent as one that has no reply."""
    told = agreed.wants(command) and agreed.knows(command) and not agreed.replies(command)
    return "no answer wanted" if told else "not asked"


def flag_names(flags: Action | Protocol) -> list[str]:
    """The names of the bits that have one."""
    return [str(flag.name).lower().replace("_", " ") for flag in type(flags) if flag in flags]


def read_flags(text: str, kind: type[_F], every: _F) -> _F:
    """Read `all`, `none`, a number (`0x1f`), or names separated by commas (`add headers,quarantine`).

    Args:
        text: what to read; in names a blank, a dash and an underscore are the same.
        kind: which flags.
        every: what `all` stands for.

    Raises:
        ValueError: it is none of these; the text says what is allowed.
    """
    if text in {"all", "none"}:
        return every if text == "all" else kind(0)
    try:
        number = int(text, 0)
    except ValueError:
        pass
    else:
        if not 0 <= number <= 0xFFFFFFFF:
            raise ValueError(f"{text} does not fit into 32 bits")
        return kind(number)
    flags = kind(0)
    for word in text.split(","):
        name = word.strip().upper().replace(" ", "_").replace("-", "_")
        if name not in kind.__members__:
            allowed = ", ".join(flag_names(~kind(0)))
            raise ValueError(
                f"{word.strip()!r} is not one of {allowed}; all, none or a number will do as well"
            )
        flags |= kind[name]
    return flags
