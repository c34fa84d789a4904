"""The command line: ``simcse train | evaluate | encode | publish …``, see ``simcse --help``.

Thin: parse, call the package, turn errors into one line and an exit status. torch is imported only
once a command has valid arguments.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import NoReturn, TextIO, cast

from simcse.cli import commands
from simcse.cli.arguments import parse
from simcse.errors import (
    HubUnreachableError,
    SaidElsewhereError,
    Terminated,
    UserError,
    first_line,
)
from simcse.terminal import VisibleOutput, complain

EXIT_USER_ERROR = 2
EXIT_DISK = 1
EXIT_SAID_ELSEWHERE = 1  # one of several processes, ended by an error of another
EXIT_INTERRUPTED = 130  # 128 + the signal's number, as shells report it: SIGINT,
EXIT_NO_READER = 141  # SIGPIPE,
EXIT_TERMINATED = 143  # SIGTERM

_DISK = [
    getattr(errno, name)
    for name in ("ENOSPC", "EFBIG", "EDQUOT", "EROFS", "EIO")
    if hasattr(errno, name)  # Windows has no quota
]
# How safetensors, Arrow and torch.save say so; the last one's words depend on where a file ended.
_DISK_WORDS = (
    *map(os.strerror, _DISK),
    "PytorchStreamWriter failed writing",
    "inline_container.cc",
)

# Variables that the libraries read when they are imported; a value they cannot take is a traceback.
_OF_LIBRARIES = re.compile("(ACCELERATE|HF|MPL|PYTORCH|TORCH|TRANSFORMERS)_?")
_TELLING = re.compile(r"(?!(true|false|yes|no|on|off|none|auto)$)[^\d\W]\w*", re.IGNORECASE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; ``None`` takes the process's.

    Returns:
        Exit status: 0, or 2 for a mistake of the user, 1 for a disk that is full or cannot be
        written, 130 after Ctrl-C, 143 after SIGTERM, 141 where nobody reads the output any more.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):  # a shell's >&-, which the libraries do not expect
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A log file fills while training runs; a console without ↓ or × shows another sign.
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    with redirect_stdout(cast(TextIO, VisibleOutput(sys.stdout))):
        status = _run(arguments)
    if status == EXIT_NO_READER:
        sys.stdout = None  # or Python would complain when it flushes it at the end
    return status


def _run(arguments: list[str]) -> int:
    try:
        Path.cwd()
    except FileNotFoundError:
        return _fail("the working folder is gone; change to one that is there", EXIT_USER_ERROR)
    try:
        parsed = parse(arguments)
        command: Callable[[argparse.Namespace], None] = parsed.run
        with _unwinding_when_terminated():
            command(parsed)
    except HubUnreachableError as error:
        return _fail(f"{error}; {commands.how_to_fetch(parsed)}", EXIT_USER_ERROR)
    except UserError as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except SaidElsewhereError:
        return EXIT_SAID_ELSEWHERE
    except BrokenPipeError:  # the reader, such as head, has seen enough
        return EXIT_NO_READER
    except KeyboardInterrupt as error:
        if sys.stderr.isatty():  # where the cursor stands behind ^C, or a progress bar
            print(file=sys.stderr)
        resumes = "; a training run resumes when started again" * (arguments[0] == "train")
        return _fail(
            str(error) or f"interrupted{resumes}",
            EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED,
        )
    except Exception as error:
        where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        if _is_the_disks(error):
            return _fail(
                f"no space left on the disk, or it fails{where} ({first_line(error)}); mend that, "
                "then start again: a training run resumes from its last checkpoint",
                EXIT_DISK,
            )
        if isinstance(error, OSError) and error.filename:
            return _fail(f"{error.filename}: {error.strerror}{where}", EXIT_USER_ERROR)
        if setting := _blamed_setting(error):
            return _fail(f"environment: {setting}: {first_line(error)}", EXIT_USER_ERROR)
        raise
    return 0


@contextmanager
def _unwinding_when_terminated() -> Iterator[None]:
    """SIGTERM raises :class:`~simcse.errors.Terminated`, so that scratch files are removed.

    A second one ends the process at once. While a run trains it has handlers of its own
    (:mod:`simcse.training.interruption`).
    """

    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    ours = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # not ignored, nor another program's
    if not (ours and threading.current_thread() is threading.main_thread()):
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:  # one of several processes ignores it now
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _is_the_disks(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return True
        if any(text in str(error) for text in _DISK_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _blamed_setting(error: Exception) -> str | None:
    """The variable of a library's own that an error speaks of, by its name or by its value."""
    for name, value in os.environ.items():
        telling = re.escape(value) if _TELLING.fullmatch(value) else "(?!)"
        blamed = re.compile(rf"\b({name}|{telling})\b", re.IGNORECASE)
        if _OF_LIBRARIES.match(name) and blamed.search(str(error)):
            return f"{name}={value!r}"
    return None


def _fail(message: str, status: int) -> int:
    complain(f"error: {message}")
    return status
