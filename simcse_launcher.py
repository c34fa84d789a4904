"""Starts the command line from outside the package, to notice when another one hides it."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence

_ADVICE = (
    "PyPI's package 'simcse' is installed in this environment and has the same import name as this "
    "project; one hides the other. Mend it with: pip uninstall simcse, then install this project "
    "again"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see :func:`simcse.cli.main`."""
    namesake = _is_installed("simcse")  # ours is distributed under another name
    try:
        from simcse.cli import main as run
    except ImportError:
        if not namesake:
            raise
        print(f"error: {_ADVICE}", file=sys.stderr)
        return 2
    if namesake:
        print(f"warning: {_ADVICE}", file=sys.stderr)
    return run(argv)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
