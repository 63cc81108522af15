"""What all tables of the configuration have in common: how values are written, and what is a mistake."""

from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationInfo,
    field_validator,
)

from milterchain.config_mistakes import Later, allowed_values
from milterchain.config_types import (
    ListenAddress,
    Network,
    parse_duration,
    parse_listen,
    parse_network,
    parse_size,
)

__all__ = [
    "Count",
    "Duration",
    "FilePath",
    "Listening",
    "Name",
    "Networks",
    "Size",
    "Table",
    "base_directory",
    "not_empty",
]

Item = TypeVar("Item")
Size: TypeAlias = Annotated[int, BeforeValidator(parse_size)]
Duration: TypeAlias = Annotated[float, BeforeValidator(parse_duration)]
Networks: TypeAlias = tuple[Annotated[Network, BeforeValidator(parse_network)], ...]
Count: TypeAlias = Annotated[StrictInt, Field(ge=1)]
Name: TypeAlias = Annotated[StrictStr, Field(pattern=r"^[\x21-\x7e]+$", max_length=100)]


def base_directory(info: ValidationInfo) -> Path:
    """The directory under which relative paths are."""
    base: Path = info.context["base"] if info.context else Path.cwd()
    return base


def _listen(value: object, info: ValidationInfo) -> ListenAddress:
    return value if isinstance(value, ListenAddress) else parse_listen(value, base_directory(info))


Listening: TypeAlias = Annotated[ListenAddress, BeforeValidator(_listen)]


def not_empty(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Refuse an empty list."""
    if not items:
        raise ValueError("is empty; at least one is needed")
    return items


def _file(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r} is not the path of a file")
    return base_directory(info) / value


FilePath: TypeAlias = Annotated[Path, BeforeValidator(_file)]


class Table(BaseModel):
    """What all tables have in common: unknown keys are mistakes, values cannot be changed.

    Attributes:
        later: what needs a later version.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    later: ClassVar[Later] = {}

    @field_validator("*")
    @classmethod
    def _refuse_later(cls, value: object, info: ValidationInfo) -> object:
        name = info.field_name or ""
        if name not in cls.later:
            return value
        feature, values = cls.later[name]
        default = cls.model_fields[name].get_default(call_default_factory=True)
        if value in values if values else value != default:
            shown = f"{value!r}: " if isinstance(value, str | int) else ""
            instead = f"allowed are {', '.join(allowed_values(cls, name))}" if values else "leave it out"
            raise ValueError(f"{shown}{feature} is not supported by this version yet; {instead}")
        return value
