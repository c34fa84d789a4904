"""Checkpoints on disk: written whole or not at all, checked before use, rotated with care.

A checkpoint is written into a folder of its own, sealed (:mod:`simcse.sealing`), flushed to the
disk and renamed into place. What has no manifest is no checkpoint of ours, and is never removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from simcse import distributed, sealing
from simcse.errors import UserError
from simcse.files import files_in, remove_leftovers, scratch_folder, sync_folder
from simcse.sealing import MANIFEST, seal

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""
STATE_FILE = "state.json"
_PREFIX = "checkpoint-"


def place(root: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return root / f"{_PREFIX}{step}"


def check_owner(root: Path) -> None:
    """See that a run may write and remove checkpoints in ``root``; it need not be there.

    Raises:
        UserError: It is not the run's own folder, or holds a checkpoint of somebody else.
    """
    if root.is_symlink() or (root.exists() and not root.is_dir()):
        raise UserError(f"{root}: a link or a file, where a run keeps its checkpoints; move it")
    if foreign := [step for step in _steps(root) if not _is_ours(root, step)]:
        raise UserError(
            f"{place(root, foreign[0])}: not a checkpoint of a run (no {MANIFEST}); move it away"
        )


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
    with scratch_folder(root) if distributed.is_first() else nullcontext(root) as own:
        scratch = distributed.from_first(lambda: own)
        yield scratch
        distributed.wait()  # until everyone has written
        if distributed.is_first():
            new, final = place(scratch, step), place(root, step)
            seal(new, files_in(new))
            if final.exists():
                check_owner(root)
                # It was damaged, or it follows one that was: else the run would have started there.
                final.rename(scratch / "replaced")
            new.rename(final)
            sync_folder(root)
    distributed.wait()  # until it is in its place


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
        try:
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            best = state["best_step"]
        except (ValueError, LookupError, TypeError, RecursionError):
            report(f"{folder}: {STATE_FILE}: damaged; passed over")
            continue
        if best and best != step and (problem := damage(place(root, best))):
            report(f"{place(root, best)}: {problem}; {folder.name} needs it, passed over")
            continue
        return folder
    return None


def damage(folder: Path, *, checksums: bool = True) -> str | None:
    """What is wrong with a checkpoint; see :func:`simcse.sealing.damage`."""
    return sealing.damage(folder, [STATE_FILE], checksums=checksums)


def rotate(root: Path, keep: int, best: int | None, newest: int) -> None:
    """Remove old checkpoints; a kill in between leaves each of them whole or gone.

    Args:
        root: Folder of the run's checkpoints.
        keep: How many of the newest whole ones stay.
        best: Step of the best one, which stays too.
        newest: Step of the one just written; what is newer (a run that had to go back to an older
            checkpoint meets such) waits for its turn to be replaced.
    """
    steps = sorted(s for s in _steps(root) if s <= newest and _is_ours(root, s))
    whole = [step for step in steps if damage(place(root, step), checksums=False) is None]
    for step in steps:
        if step not in whole[-keep:] and step != best:
            _remove(root, step)


def remove_all(root: Path) -> None:
    """Remove a run's checkpoints, and the folder unless somebody else's files lie there."""
    if root.is_symlink():
        return
    for step in _steps(root):
        if _is_ours(root, step):
            _remove(root, step)
    remove_leftovers(root)
    with suppress(OSError):  # not empty, or not there
        root.rmdir()


def _steps(root: Path) -> list[int]:
    names = [path.name.removeprefix(_PREFIX) for path in root.glob(f"{_PREFIX}*")]
    return [int(name) for name in names if name.isdecimal()]


def _is_ours(root: Path, step: int) -> bool:
    """Whether a folder is a run's checkpoint, perhaps a damaged one, and no finished run."""
    folder = place(root, step)
    content = any((folder / name).is_file() for name in (STATE_FILE, "model.safetensors"))
    sealed = (folder / MANIFEST).is_file() and not (folder / "scores.json").exists()
    return not folder.is_symlink() and sealed and content


def _remove(root: Path, step: int) -> None:
    """In one step for whoever looks: a kill leaves no half of it."""
    with scratch_folder(root) as scratch:
        place(root, step).rename(place(scratch, step))
