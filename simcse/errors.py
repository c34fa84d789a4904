"""The one exception for mistakes a user can mend, and the short form of others' exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# What tells of a defect, here or in a library, rather than of a file or setting: `'keys'` or `not
# subscriptable` alone would read like somebody's mistake.
_DEFECTS = (TypeError, AttributeError, LookupError, NameError, AssertionError)

# How GPUs, their libraries and the CPU's allocator say so, in a RuntimeError.
_NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


class UserError(ValueError):
    """A mistake in a config, a file or an argument.

    The message is one line: what is wrong, where (file:line or config key), what is allowed.
    The command line prints it without a traceback and exits with status 2; from Python it is an
    ordinary ``ValueError``.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, as ``KeyboardInterrupt`` is Ctrl-C."""


class HubUnreachableError(UserError):
    """Not on this machine, and the Hub does not answer or may not be asked (``HF_HUB_OFFLINE``).

    The command line adds the command that fetches it.
    """


class DivergedError(UserError):
    """Training came to a loss, gradient or dev score that is not a number; all processes know."""


class SaidElsewhereError(RuntimeError):
    """Ends one of several processes when another one prints what went wrong."""


def first_line(error: BaseException) -> str:
    """First line of an exception's message; its type's name where it has none, or is a defect.

    A line that ends in a colon says of what, the next one what is wrong.
    """
    lines, name = [line.strip() for line in str(error).strip().splitlines()], type(error).__name__
    if not lines:
        return name
    said = " ".join(lines[: 1 + lines[0].endswith(":")])
    return f"{name}: {said}" if is_defect(error) else said


def is_defect(error: BaseException) -> bool:
    """Whether the type of an exception tells of a defect, here or in a library."""
    return isinstance(error, _DEFECTS)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on a GPU or here."""
    known = isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    return known or isinstance(error, MemoryError)


@contextmanager
def naming_memory(place: str, *settings: str) -> Iterator[None]:
    """Turn running out of memory into a line that names the settings to lower.

    Raises:
        UserError: Memory did not suffice, on a GPU or here.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory {place}; lower {' or '.join(settings)} ({first_line(error)[:200]})"
        ) from error
