"""Ranges of settings, declared with their types and checked whenever settings are made.

This is no schema library, because a model can then be built and imported with torch alone, and every message has one
form: the key, what was expected, and what was found.
"""

import functools
import math
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from ddl.errors import UserError


class ConfigError(UserError):
    """An invalid setting. The message names the file and the key, what was expected and what was found."""


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have, declared with its type. NaN and the infinities are never among them."""

    least: float = -math.inf
    most: float = math.inf
    without: tuple[float, ...] = ()  # ends that are not allowed themselves

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.least <= value <= self.most and value not in self.without

    def __str__(self) -> str:
        if self.most < math.inf:
            opened, closed = ("(" if self.least in self.without else "["), (")" if self.most in self.without else "]")
            return f"a number in {opened}{_shown(self.least)}, {_shown(self.most)}{closed}"
        if self.least == -math.inf:
            return "a finite number"
        if self.least == 1:
            return "a positive integer"
        least = _shown(self.least)
        return f"more than {least}" if self.least in self.without else f"{least} or more"


def _shown(end: float) -> str:
    return str(int(end)) if end == int(end) else str(end)


Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
MOST_SEED = 2**32 - 1
Seed = Annotated[int, Range(0, MOST_SEED)]
Finite = Annotated[float, Range()]
NotNegative = Annotated[float, Range(0)]
AboveZero = Annotated[float, Range(0, without=(0,))]
Momentum = Annotated[float, Range(0, 1, without=(1,))]


class Settings:
    """Base of the dataclasses of this module: a value outside its declared range raises a `ConfigError`."""

    def __post_init__(self) -> None:
        for name, allowed in declared_ranges(type(self)).items():  # type: ignore[arg-type]  # mypy: a class is hashable
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and number not in allowed:
                    raise ConfigError(f"{name}: expected {allowed}, found {number}")


@functools.cache
def declared_ranges(cls: type) -> dict[str, Range]:
    """Setting -> its declared range."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: found for name, hint in hints.items() if (found := _range_in(hint))}


def _range_in(hint: Any) -> Range | None:
    if typing.get_origin(hint) is Annotated:
        return next((each for each in hint.__metadata__ if isinstance(each, Range)), None)
    return next((found for each in typing.get_args(hint) if (found := _range_in(each))), None)
