"""What reaches the terminal: text whose control characters show instead of acting, lines cut short.

Names of files and folders, sentences, headers and the answers of servers may hold anything; an
escape sequence among them could repaint the screen, a line break forge a message.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")
_LONGEST = 800  # characters of an error line
# Control characters, line breaks, what reverses the direction of writing, undecodable bytes.
_ACTING = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


def visible(text: object) -> str:
    """A text on one line, with Python's escapes in place of the characters that would act."""
    return re.sub(_ACTING, _escape, str(text))


def complain(message: str) -> None:
    """Print one line to standard error; of a long one the beginning, which has the place."""
    line = visible(message)
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 200]} … {line[-200:]}"
    with suppress(BrokenPipeError):  # nobody reads it
        print(line, file=sys.stderr)


def silence_libraries() -> Callable[[], None]:
    """Keep the libraries' notices and progress bars out of the output.

    Returns:
        What gives them their voice back.
    """
    from datasets.utils import logging as bars  # here, since errors need no such imports
    from transformers.utils import logging as notices

    verbosity = notices.get_verbosity()
    notices_have_bars = notices.is_progress_bar_enabled()
    had_bars = bars.is_progress_bar_enabled()
    notices.set_verbosity_error()
    notices.disable_progress_bar()
    bars.disable_progress_bar()

    def restore() -> None:
        notices.set_verbosity(verbosity)
        if notices_have_bars:
            notices.enable_progress_bar()
        if had_bars:
            bars.enable_progress_bar()

    return restore


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """As :func:`silence_libraries`, until the block ends."""
    restore = silence_libraries()
    try:
        yield
    finally:
        restore()


def counting(items: Iterable[Item], doing: str, unit: str) -> Iterator[Item]:
    """The items, counted on a terminal where they take longer than a second."""
    from tqdm import tqdm  # here, since errors need no such imports

    yield from tqdm(items, desc=doing, unit=f" {unit}", disable=None, leave=False, delay=1)


class VisibleOutput:
    """A stream on which only line feeds and tabs act, for all that is printed to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text as it can be shown."""
        return self._stream.write(re.sub(rf"(?![\n\t]){_ACTING}", _escape, text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
