"""Functions that are called from Python: arguments of another type are a mistake in one line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pydantic import ConfigDict, ValidationError, validate_call

from simcse.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


def typed(function: Callable[P, T]) -> Callable[P, T]:
    """Arguments of another type are a :class:`UserError`, as other mistakes are."""
    rules = ConfigDict(arbitrary_types_allowed=True, strict=True)
    checked = validate_call(config=rules)(function)
    signature = inspect.signature(function)
    parameters = signature.parameters
    names = list(parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return checked(*args, **kwargs)
        except ValidationError as error:
            item, *more = error.errors()
            first = item["loc"][0]
            where = str(names[first] if isinstance(first, int) else first)
            inside = len(item["loc"]) > 1
            one_of = item["msg"]
            if more or inside:
                one_of = f"Input should be {parameters[where].annotation}"
            whole = signature.bind(*args, **kwargs).arguments[where] if inside else item["input"]
            name = function.__qualname__.removesuffix(".__init__")
            raise UserError(f"{name}: {where}: {one_of}{_got(item['type'], whole)}") from None

    return call


def _got(problem: str, given: object) -> str:
    """What was given: its type where that is wrong, the word where it is none of those allowed."""
    if problem == "unexpected_keyword_argument":
        return ""
    wrong_word = problem == "literal_error" and isinstance(given, str)
    return f", got {given!r}" if wrong_word else f", got {type(given).__name__}"
