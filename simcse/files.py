"""Writing files so that a crash leaves the old content or the new one, never half of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simcse.errors import UserError


def cache_folder() -> Path:
    """Folder for what can be made again: ``$SIMCSE_CACHE``, else ``simcse`` in the user's cache.

    Raises:
        UserError: The user has no home folder.
    """
    if chosen := os.environ.get("SIMCSE_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simcse"
    except RuntimeError as error:
        raise UserError("no home folder to keep caches in; set SIMCSE_CACHE to a folder") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes only what it may write
            os.fsync(file.fileno())
        give_usual_mode(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the block ends without an error.

    Each is flushed and moved whole, so a full disk or a kill leaves no half-written file there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".new"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        temporary.mkdir()
        yield temporary
        for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
            with path.open("r+b") as file:
                os.fsync(file.fileno())
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system has that."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def give_usual_mode(path: Path) -> None:
    """Give a file made for its owner alone (temporary files are) the mode of other new files."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_atomically(path: Path, text: str) -> None:
    """Write text as UTF-8, replacing ``path`` in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
