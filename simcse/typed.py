"""Functions that are called from Python: arguments of another type are a mistake in one line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pydantic import ConfigDict, ValidationError, validate_call
from pydantic_core import ErrorDetails

from simcse.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


def typed(function: Callable[P, T]) -> Callable[P, T]:
    """Arguments of another type are a :class:`UserError`, as other mistakes are."""
    rules = ConfigDict(arbitrary_types_allowed=True, strict=True)
    checked = validate_call(config=rules)(function)
    parameters = inspect.signature(function).parameters
    names = list(parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return checked(*args, **kwargs)
        except ValidationError as error:
            item, *more = error.errors()
            first = item["loc"][0]
            where = str(names[first] if isinstance(first, int) else first)
            one_of = f"Input should be {parameters[where].annotation}" if more else item["msg"]
            name = function.__qualname__.removesuffix(".__init__")
            raise UserError(f"{name}: {where}: {one_of}{_got(item)}") from None

    return call


def _got(error: ErrorDetails) -> str:
    """What was given: its type where that is wrong, the word where it is none of those allowed."""
    if error["type"] == "unexpected_keyword_argument":
        return ""
    given = error["input"]
    wrong_word = error["type"] == "literal_error" and isinstance(given, str)
    return f", got {given!r}" if wrong_word else f", got {type(given).__name__}"
