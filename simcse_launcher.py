"""Starts the command line from outside the package, to notice when another one hides it."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence

_ADVICE = (
    "PyPI's package 'simcse' is installed in this environment and has the same import name as this "
    "project; one hides the other. Mend it with: pip uninstall simcse, then install this project "
    "again"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see :func:`simcse.cli.main.main`. For a process that ends with it."""
    try:
        return _start(argv)
    except KeyboardInterrupt:  # while importing, or again while the first one was being answered
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\n" * sys.stderr.isatty() + "error: interrupted", file=sys.stderr)
        return 130
    finally:
        # Nothing is left to do: from here on Ctrl-C ends the process without Python's traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start(argv: Sequence[str] | None) -> int:
    if sys.flags.optimize > 1:  # transformers reads its docstrings while it is imported
        if os.environ.pop("PYTHONOPTIMIZE", None) is None:
            print("error: python -OO has no docstrings, which transformers needs", file=sys.stderr)
            return 2
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")  # a library's warning is no mistake of the user
    namesake = _is_installed("simcse")  # ours is distributed under another name
    try:
        from simcse.cli.main import main as run
    except ImportError:
        if not namesake:
            raise
        print(f"error: {_ADVICE}", file=sys.stderr)
        return 2
    if namesake:
        print(f"warning: {_ADVICE}", file=sys.stderr)
    return run(argv)


def _is_installed(distribution: str) -> bool:
    import importlib.metadata  # here, where Ctrl-C is answered

    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
