"""Writing files so that a crash leaves the old content or the new one, never half of it.

What can be made again is checked before it is used, and made again where it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simcse.errors import UserError


def cache_folder() -> Path:
    """Folder for what can be made again: ``$SIMCSE_CACHE``, else ``simcse`` in the user's cache."""
    if chosen := os.environ.get("SIMCSE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simcse"


def cached(path: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Facts about a file that is made once: those that ``make`` gave when it wrote it.

    A seal beside the file holds them and a SHA-256. A file that is not what was written is made
    anew, with a warning. To read it for that takes a second a gigabyte; sizes or row counts would
    be had at once, but do not show a flipped bit, which would make another model.

    Args:
        path: Where the file is or will be.
        make: Writes the file to the path that it is given; its facts are plain JSON.

    Raises:
        UserError: No file can be written there.
    """
    seal = path.with_name(f"{path.name}.seal")
    if seal.is_file():
        try:
            known = json.loads(seal.read_text(encoding="utf-8"))
            facts: dict[str, Any] = known["facts"]
            if known["sha256"] == _sealed(path, facts):
                return facts
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            pass  # of a seal that is damaged too
        print(f"warning: {path}: not what was written there; made anew", flush=True)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(
            f"cache: {folder} is no folder to write in; name one with SIMCSE_CACHE or data.cache"
        )
    if occupied := [place for place in (path, seal) if place.is_dir()]:
        raise UserError(f"cache: {occupied[0]} is a folder, expected a file; remove it")
    with replacing(seal) as new_seal, replacing(path) as temporary:  # the seal comes last
        facts = make(temporary)
        sealed = {"sha256": _sealed(temporary, facts), "facts": facts}
        new_seal.write_text(json.dumps(sealed), encoding="utf-8")
    return facts


def _sealed(path: Path, facts: dict[str, Any]) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


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
