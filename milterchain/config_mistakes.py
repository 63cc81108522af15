"""What pydantic found wrong, as lines for people.

`describe` turns a ValidationError into one line for each mistake; it looks at the model to name the keys that
may be written where an unknown one was met, and the values. What the model refuses because it needs a later
version (`later`) is no advice to give.
"""

import difflib
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

__all__ = ["Later", "MistakeAtError", "allowed_values", "describe", "key_path"]

Later: TypeAlias = Mapping[str, tuple[str, frozenset[str]]]
"""What needs a later version: by field, the feature and the values that need it (none: every value but the
default)."""

_KINDS: Final[Mapping[str, str]] = {
    "bool": "true or false",
    "dict": "a table",
    "int": "a whole number",
    "list": "a list",
    "mapping": "a table",
    "model": "a table",
    "string": "a string",
    "tuple": "a list",
}
"""What a value should have been, by the first word of pydantic's error type (`int_type`, `tuple_type`…)."""

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

_SHOWN: Final = 60
"""Characters of a wrong value that are shown."""


class MistakeAtError(ValueError):
    """What a validator raises when the mistake is deeper than the value it was given.

    Attributes:
        location: the steps from that value to the mistake.
    """

    def __init__(self, location: tuple[int | str, ...], text: str) -> None:
        super().__init__(text)
        self.location = location


def key_path(location: Sequence[int | str]) -> str:
    """Write a location as people look for it: `milter[2].default_action`, counted from 1."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step + 1}]"
        else:
            key = step if _BARE_KEY.fullmatch(step) else _short(step)
            path += f".{key}" if path else key
    return path


def describe(error: ValidationError, model: type[BaseModel], where: str) -> tuple[str, ...]:
    """Build the lines, each beginning with `where`."""
    return tuple(_line(details, model, where) for details in error.errors(include_url=False))


def _line(details: ErrorDetails, model: type[BaseModel], where: str) -> str:
    cause = details.get("ctx", {}).get("error")
    deeper = cause.location if isinstance(cause, MistakeAtError) else ()
    # Where the key of a free table is at fault, pydantic adds a step that nobody wrote.
    path = key_path([step for step in (*details["loc"], *deeper) if step != "[key]"])
    text = _text(details, model)
    return f"{where}: {path}: {text}" if path else f"{where}: {text}"


def _text(details: ErrorDetails, model: type[BaseModel]) -> str:
    kind = details["type"]
    value = _short(details["input"])
    context: Mapping[str, Any] = details.get("ctx", {})
    if kind == "missing":
        return "is missing; it has no default"
    if kind == "extra_forbidden":
        return _unknown_key(details["loc"], model)
    if kind == "literal_error":
        *table, field = details["loc"]
        return f"{value} is not one of {', '.join(allowed_values(_model_at(table, model), str(field)))}"
    if kind == "value_error":
        return str(context["error"])
    builder = _TEXTS.get(kind)
    if builder is not None:
        return f"{value} {builder(context)}"
    expected = _KINDS.get(kind.partition("_")[0])
    if expected == "a list":
        expected += f"; write {_list_hint(details['loc'], model)}"
    return f"{value} is not {expected}" if expected else f"{value}: {details['msg']}"


_TEXTS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "greater_than_equal": lambda context: f"is too small; the least is {context['ge']}",
    "less_than_equal": lambda context: f"is too large; the most is {context['le']}",
    "string_too_long": lambda context: f"is too long; {context['max_length']} characters are allowed",
    "string_pattern_mismatch": lambda _: "is not a name; printable ASCII without spaces is allowed",
}


def _list_hint(location: Sequence[int | str], model: type[BaseModel]) -> str:
    # Lists of tables are at the top only.
    field = model.model_fields[str(location[0])]
    if len(location) == 1 and any(_models(field.annotation)):
        return f"[[{location[0]}]] above each table"
    return "it in [brackets]"


def _later(model: type[BaseModel]) -> Later:
    later: Later = getattr(model, "later", {})
    return later


def allowed_values(model: type[BaseModel], field: str) -> list[str]:
    """The values of a field that is a choice, but for those that need a later version."""
    choices = typing.get_args(model.model_fields[field].annotation)
    if field not in _later(model):
        return [*choices]
    _, refused = _later(model)[field]
    default = model.model_fields[field].default
    return [choice for choice in choices if (choice not in refused if refused else choice == default)]


def _allowed_keys(model: type[BaseModel]) -> list[str]:
    later = _later(model)
    return sorted(field for field in model.model_fields if field not in later or later[field][1])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _unknown_key(location: Sequence[int | str], model: type[BaseModel]) -> str:
    key = str(location[-1])
    known = _allowed_keys(_model_at(location[:-1], model))
    meant = list(_elsewhere(key, model)) if len(location) == 1 else []
    meant = meant or difflib.get_close_matches(key, known, n=1)
    if meant:
        return f"there is no such key; did you mean {' or '.join(meant)}?"
    return f"there is no such key; allowed are {', '.join(known)}"


def _elsewhere(key: str, model: type[BaseModel]) -> Iterator[str]:
    """Where in the tables of the top a key is known."""
    for name, field in model.model_fields.items():
        several = typing.get_origin(field.annotation) is tuple
        if any(key in _allowed_keys(table) for table in _models(field.annotation)):
            yield f"{key} in [[{name}]]" if several else f"{name}.{key}"


def _model_at(location: Sequence[int | str], model: type[BaseModel]) -> type[BaseModel]:
    """Follow the keys of a location down to the table that they lead to."""
    for step in location:
        if isinstance(step, str):
            model = next(_models(model.model_fields[step].annotation))
    return model


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)
