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
    """First line of an exception's message; its type's name where it has none, or is a defect."""
    said, name = next(iter(str(error).strip().splitlines()), ""), type(error).__name__
    if not said:
        return name
    return f"{name}: {said}" if isinstance(error, _DEFECTS) else said


@contextmanager
def naming_memory(place: str, *settings: str) -> Iterator[None]:
    """Turn running out of memory into a line that names the settings to lower.

    Raises:
        UserError: Memory did not suffice, on a GPU or here.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)
        if not known:
            raise
        raise UserError(
            f"out of memory {place}; lower {' or '.join(settings)} ({first_line(error)[:200]})"
        ) from error
