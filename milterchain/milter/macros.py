"""Macros: which an MTA sends at which stage, and how long a filter remembers them.

Names have two spellings: one letter may stand bare, anything may stand in braces. Inside, the canonical name
has no braces (`b"i"`, `b"client_addr"`).
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias

from milterchain.milter.commands import Macros
from milterchain.milter.flags import Command, Stage

__all__ = [
    "CLEARING",
    "DEFAULT_MACROS",
    "STAGES",
    "MacroNames",
    "MacroStore",
    "MacroTable",
    "canonical",
    "spelled",
]

MacroNames: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Pairs of the spelling that travels and the canonical name."""

STAGES: Mapping[int, Stage] = MappingProxyType(
    {
        Command.CONNECT: Stage.CONNECT,
        Command.HELO: Stage.HELO,
        Command.MAIL: Stage.MAIL,
        Command.RCPT: Stage.RCPT,
        Command.DATA: Stage.DATA,
        Command.END_OF_HEADERS: Stage.END_OF_HEADERS,
        Command.END_OF_MESSAGE: Stage.END_OF_MESSAGE,
    }
)
"""The commands that macros are sent for. libmilter discards those for headers, body and unknown commands."""

DEFAULT_MACROS: Mapping[Stage, tuple[bytes, ...]] = MappingProxyType(
    {
        Stage.CONNECT: (
            *(b"j", b"v", b"_", b"daemon_name", b"daemon_addr", b"daemon_port", b"if_name", b"if_addr"),
            *(b"client_addr", b"client_name", b"client_ptr", b"client_port", b"client_resolve"),
        ),
        Stage.HELO: (b"tls_version", b"cipher", b"cipher_bits", b"cert_subject", b"cert_issuer"),
        Stage.MAIL: (
            *(b"i", b"r", b"auth_type", b"auth_authen", b"auth_ssf", b"auth_author"),
            *(b"mail_mailer", b"mail_host", b"mail_addr"),
        ),
        Stage.RCPT: (b"i", b"rcpt_mailer", b"rcpt_host", b"rcpt_addr"),
        Stage.DATA: (b"i",),
        Stage.END_OF_HEADERS: (b"i",),
        Stage.END_OF_MESSAGE: (b"i", b"msg_id"),
    }
)
"""What is sent unasked: all that Postfix and Sendmail send by default, and who the client is."""

_PLANS = 256
"""How many lists of macros are kept ready: one for each filter and stage in practice, but filters choose."""


def canonical(name: bytes) -> bytes:
    """The name without braces."""
    return name[1:-1] if name[:1] == b"{" and name[-1:] == b"}" else name


def spelled(name: bytes) -> bytes:
    """The name as it travels unasked: one letter bare, longer ones in braces."""
    name = canonical(name)
    return name if len(name) == 1 else b"{" + name + b"}"


@lru_cache(_PLANS)
def _plan(stage: Stage, requested: tuple[bytes, ...], extra: tuple[bytes, ...]) -> MacroNames:
    """Each name once."""
    names = requested or (*map(spelled, DEFAULT_MACROS[stage]), *map(spelled, extra))
    plan: dict[bytes, bytes] = {}
    for name in names:
        plan.setdefault(canonical(name), name)
    return tuple((name, key) for key, name in plan.items())


class MacroTable:
    """The MTA's side: which macros go out at a stage.

    Args:
        extra: for each stage, names that are sent besides the default ones.
    """

    __slots__ = ("_extra",)

    def __init__(self, extra: Mapping[Stage, Iterable[bytes]] = MappingProxyType({})) -> None:
        self._extra = {stage: tuple(names) for stage, names in extra.items()}

    def macros_for(
        self, stage: Stage, values: Mapping[bytes, bytes], requested: tuple[bytes, ...] | None = None
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Names and values for one stage.

        Args:
            stage: which.
            values: all that is known, by canonical name.
            requested: what the filter asked for at this stage (SMFIF_SETSYMLIST): it replaces the default
                and extra names, and its spelling is kept. An empty list is none at all, as in Postfix:
                purepythonmilter sends one for every stage and means nothing by it.

        Returns:
            What is defined; a value may be empty.
        """
        return tuple([(name, values[key]) for name, key in self.names(stage, requested) if key in values])

    def names(self, stage: Stage, requested: tuple[bytes, ...] | None = None) -> MacroNames:
        """The names alone, defined or not: as a rule the same tuple for all who are told the same."""
        return _plan(stage, requested or (), self._extra.get(stage, ()))


_LOOKUP = (
    Command.END_OF_MESSAGE,
    Command.END_OF_HEADERS,
    Command.DATA,
    Command.RCPT,
    Command.MAIL,
    Command.HELO,
    Command.CONNECT,
)
"""The stages in the order in which libmilter searches them (smfi_getsymval)."""

_CLEARED: Mapping[int, frozenset[int]] = MappingProxyType(
    {
        Command.OPTNEG: frozenset(_LOOKUP),
        Command.QUIT_NEW_CONNECTION: frozenset(_LOOKUP),
        Command.CONNECT: frozenset(_LOOKUP[:6]),
        Command.HELO: frozenset(_LOOKUP[:5]),
        Command.MAIL: frozenset(_LOOKUP[:4]),
        Command.RCPT: frozenset(_LOOKUP[:3]),
    }
)
"""What a command makes libmilter forget: the macros of all later stages (mi_clr_macros)."""

CLEARING = frozenset(_CLEARED)
"""The commands that `MacroStore.command` must hear of; others change nothing there."""

_SEARCHED = frozenset(_LOOKUP)


class MacroStore:
    """The filter's side: the macros that are in force, with libmilter's lifetimes."""

    __slots__ = ("_stages", "_unread")

    def __init__(self) -> None:
        self._stages: dict[int, Mapping[bytes, bytes]] = {}
        self._unread: dict[int, bytes] = {}

    def define(self, stage: int, values: Iterable[tuple[bytes, bytes]]) -> None:
        """Take macros; they replace what the same stage (a command code) had.

        Stages that libmilter does not know are forgotten at once, as libmilter does.
        """
        if stage in _SEARCHED:
            self._unread.pop(stage, None)
            self._stages[stage] = {canonical(name): value for name, value in values}

    def take(self, payload: bytes) -> None:
        """Take a macro packet as it came: `define` with what `Macros.decode` finds in it.

        Raises:
            LocalProtocolError: there are no macros in it.
        """
        if payload[-1:] != b"\0" or payload.count(0, 1) % 2 or len(payload) == 1:
            macros = Macros.decode(payload)
            self.define(macros.stage, macros.values)
        elif payload[0] in _SEARCHED:
            self._unread[payload[0]] = payload

    def command(self, command: int) -> None:
        """Note that a command came: some make the macros of later stages void."""
        void = _CLEARED.get(command)
        if void is not None:
            for stage in void.intersection(self._unread):
                del self._unread[stage]
            for stage in void.intersection(self._stages):
                del self._stages[stage]

    def _read(self) -> Mapping[int, Mapping[bytes, bytes]]:
        """What is in force by canonical name, worked out when somebody asks: most filters do not."""
        while self._unread:
            stage, payload = self._unread.popitem()
            strings = payload[1:-1].split(b"\0")
            self._stages[stage] = dict(zip(map(canonical, strings[::2]), strings[1::2], strict=True))
        return self._stages

    def get(self, name: bytes, default: bytes | None = None) -> bytes | None:
        """The value of a macro; `x` and `{x}` are the same name."""
        key = canonical(name)
        stages = self._read()
        for stage in _LOOKUP:
            values = stages.get(stage)
            if values is not None and key in values:
                return values[key]
        return default

    @property
    def sendmail(self) -> bool:
        """Whether the MTA is known to be Sendmail: by its version ("8.17.1"), or by a macro of its own.

        Its defaults at CONNECT have `{if_name}` and not `v`; Postfix has `v` and no `{if_name}`.
        """
        version = self.get(b"v")
        return version[:1].isdigit() if version else self.get(b"if_name") is not None

    def as_dict(self) -> dict[bytes, bytes]:
        """All macros in force, by canonical name."""
        merged: dict[bytes, bytes] = {}
        for stage in reversed(_LOOKUP):
            merged |= self._read().get(stage, {})
        return merged
