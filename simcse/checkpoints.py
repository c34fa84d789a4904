"""Checkpoints on disk: written whole or not at all, checked before use, rotated with care.

A checkpoint is written into a folder of its own, sealed with a manifest (size and SHA-256 of every
file), flushed to the disk and renamed into place. What has no manifest, or not the files that its
manifest names, is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simcse import distributed
from simcse.files import sync_folder, write_atomically

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""
STATE_FILE = "state.json"
MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"
_SCRATCH = ".scratch"  # what lies in it is half-written or half-removed


def place(root: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return root / f"{_PREFIX}{step}"


@contextmanager
def writing(root: Path, step: int) -> Iterator[Path]:
    """A scratch folder for ``checkpoint-<step>``, which takes its place when the block ends well.

    Several processes enter and leave the block together; each may write files of its own.

    Args:
        root: Folder of the run's checkpoints.
        step: Of the checkpoint.

    Yields:
        The folder to write ``checkpoint-<step>`` into.
    """
    scratch = root / _SCRATCH
    if not distributed.is_first():
        distributed.wait()  # until it is empty
        yield scratch
        distributed.wait()  # until everyone has written
        distributed.wait()  # until it is in its place
        return
    _clear(root)
    try:
        distributed.wait()
        yield scratch
        distributed.wait()
        new = place(scratch, step)
        _seal(new)
        if place(root, step).exists():
            # It was damaged, or it follows one that was: else the run would have started there.
            place(root, step).rename(scratch / "replaced")
        new.rename(place(root, step))
        sync_folder(root)
    finally:
        _clear(root)  # after an error too: a full disk needs the room
    distributed.wait()


def newest_checkpoint(root: Path, report: Callable[[str], object] = lambda _: None) -> Path | None:
    """The newest checkpoint that is whole and whose best checkpoint is whole too.

    A run that went on without its best checkpoint could not end as it should; from an older one it
    makes the damaged ones again.

    Args:
        root: Folder of the run's checkpoints.
        report: Called with a line for every damaged checkpoint that is passed over.
    """
    for step in sorted(_steps(root), reverse=True):
        folder = place(root, step)
        if problem := damage(folder):
            report(f"{folder}: {problem}; passed over")
            continue
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        best = state["best_step"]
        if best and best != step and (problem := damage(place(root, best))):
            report(f"{place(root, best)}: {problem}; {folder.name} needs it, passed over")
            continue
        return folder
    return None


def damage(folder: Path, *, checksums: bool = True) -> str | None:
    """What is wrong with a checkpoint, ``file: reason``; ``None`` where it is whole.

    Args:
        folder: Of the checkpoint.
        checksums: Compare the content; else only names and sizes.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        files: dict[str, dict[str, Any]] = json.loads(text)["files"]
        known = [(name, int(facts["size"]), facts["sha256"]) for name, facts in files.items()]
    except FileNotFoundError:
        return f"{MANIFEST}: missing, so it was not written to the end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST}: damaged"
    if STATE_FILE not in files:
        return f"{MANIFEST}: damaged"
    for name, size, digest in known:
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name}: {found:,} bytes, {size:,} were written"
            if checksums and _sha256(folder / name) != digest:
                return f"{name}: damaged, its content is not what was written (SHA-256)"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def rotate(root: Path, keep: int, best: int | None, newest: int) -> None:
    """Remove old checkpoints; a kill in between leaves each of them whole or gone.

    Args:
        root: Folder of the run's checkpoints.
        keep: How many of the newest whole ones stay.
        best: Step of the best one, which stays too.
        newest: Step of the one just written; what is newer (a run that had to go back to an older
            checkpoint meets such) waits for its turn to be replaced.
    """
    steps = sorted(step for step in _steps(root) if step <= newest)
    whole = [step for step in steps if damage(place(root, step), checksums=False) is None]
    for step in steps:
        if step not in whole[-keep:] and step != best:
            scratch = root / _SCRATCH
            scratch.mkdir(exist_ok=True)
            place(root, step).rename(scratch / f"{_PREFIX}{step}")
            _clear(root)


def _steps(root: Path) -> list[int]:
    names = [path.name.removeprefix(_PREFIX) for path in root.glob(f"{_PREFIX}*")]
    return [int(name) for name in names if name.isdecimal()]


def _seal(folder: Path) -> None:
    """Flush every file to the disk, then write the manifest."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("r+b") as file:  # Windows flushes only what it may write
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        files[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    write_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(inner)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clear(root: Path) -> None:
    shutil.rmtree(root / _SCRATCH, ignore_errors=True)
