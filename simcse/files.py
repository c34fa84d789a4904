"""Who may write where, and writing so that a crash leaves the old content or the new one.

What a killed process leaves behind has a name that only this project gives (:func:`is_ours`);
nothing else is taken for a leftover, and nothing else is removed.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from simcse.errors import UserError

_SCRATCH = ".simcse-new-"
_LOCK = ".simcse-lock"
_NEW = rf"{re.escape(_SCRATCH)}[a-z0-9_]{{8}}"  # tempfile's 8 characters
_OUR_NAMES = re.compile(rf"{_NEW}|({_NEW})?{re.escape(_LOCK)}")


def is_ours(path: Path) -> bool:
    """Whether a file or folder is a lock, or what is being written or was when a process died."""
    return _OUR_NAMES.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left; only for who holds the lock of the folder."""
    for path in [path for path in folder.glob(f"{_SCRATCH}*") if is_ours(path)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def may_write(
    target: Path,
    inputs: Iterable[str | Path | None] = (),
    *,
    ours: Callable[[Path], bool] = lambda _: False,
    overwrite: bool = False,
) -> None:
    """Refuse an output that would destroy something; asked before the work begins.

    Args:
        target: The file to write.
        inputs: Files and folders that the command reads; names that are neither do not count.
        ours: Whether a file that is there was written by the same command, so that it may go.
        overwrite: Replace any other file too, but never an input.

    Raises:
        UserError: The target must not be replaced, or cannot be written.
    """
    check_parent(target)
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise UserError(f"{target}: a link, folder or device; expected the name of a file")
    if not target.exists():
        return
    replaceable = ours(target)
    for source in (Path(name) for name in inputs if name is not None):
        inside = not replaceable and source.resolve() in target.resolve().parents
        if source.exists() and (inside or source.samefile(target)):
            raise UserError(f"{target}: part of what this command reads; choose another name")
    if not (replaceable or overwrite):
        raise UserError(
            f"{target}: is there, and not known to be of this command; choose another name, or "
            "replace it with --overwrite (in Python overwrite=True)"
        )


def check_parent(path: Path, option: str = "") -> None:
    """See that a file or folder can be made at ``path``, with the folders above it.

    Args:
        path: Of the file or folder.
        option: Stands in front of the message.

    Raises:
        UserError: It cannot.
    """
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"{option}{path} cannot be made: {parent} is no folder to write in")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder; entered before anything there is read or written.

    The lock lies beside the folder, which may not be there yet, or in the folder where its parent
    is read-only. It ends with the process that holds it, however that ends.

    Raises:
        UserError: Another process has the lock.
    """
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"output: {folder} is a link to nothing, or to itself")
    try:
        folder = folder.resolve()  # a run may be reached by two names
    except (RuntimeError, OSError) as error:
        raise UserError(f"output: {folder} is a link to itself") from error
    if not folder.exists():
        check_parent(folder, "output: ")
    beside = os.access(folder.parent, os.W_OK) or not folder.exists()
    path = folder.parent / f".{folder.name}{_LOCK}" if beside else folder / _LOCK
    with _lock(path, f"output: another process is training in {folder}"):
        yield


@contextmanager
def _lock(path: Path, busy: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # whose error has the cause; the lock's own has none
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(busy) from error
    except OSError as error:
        raise UserError(f"output: {path} cannot be made: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()  # while it is held: a lock on a file without a name counts for nothing
        lock.release()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_SCRATCH, dir=path.parent)
    os.close(handle)
    with _moved(Path(name), path):
        yield Path(name)


@contextmanager
def replacing_alone(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, for what takes long: what a killed process has left is written over.

    Raises:
        UserError: Another process is writing the file.
    """
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()
    temporary = path.with_name(f"{_SCRATCH}{digest[:8]}")
    with _lock(Path(f"{temporary}{_LOCK}"), f"{path}: another process is writing it"):
        temporary.unlink(missing_ok=True)
        temporary.touch(0o600, exist_ok=False)
        with _moved(temporary, path):
            yield temporary


@contextmanager
def _moved(temporary: Path, path: Path) -> Iterator[None]:
    try:
        yield
        with temporary.open("r+b") as file:  # Windows flushes only what it may write
            os.fsync(file.fileno())
        give_usual_mode(temporary)
        try:
            temporary.replace(path)
        except IsADirectoryError as error:
            raise UserError(f"{path}: is a folder; move it away") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` that is gone, with what is left in it, when the block ends."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def filling(folder: Path, *, keeps_old: bool = False) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` when the block ends without an error.

    Each is flushed and moved whole, so a full disk or a kill leaves no half-written file there.

    Args:
        folder: What is filled.
        keeps_old: A file that is there already gets a name that ends in ``.old``.

    Raises:
        UserError: A folder inside is a link, so what is behind it is somebody else's.
    """
    with scratch_folder(folder) as temporary:
        yield temporary
        names = files_in(temporary)
        for parent in {folder / inner for name in names for inner in Path(name).parents}:
            if parent != folder and parent.is_symlink():
                raise UserError(f"{parent}: is a link; move it away")
        for name in names:
            with (temporary / name).open("r+b") as file:
                os.fsync(file.fileno())
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if keeps_old and (folder / name).exists():
                keep_old(folder / name, temporary / name)
            (temporary / name).replace(folder / name)
        sync_folder(folder)


def check_outside(output: Path, folder: Path, what: str) -> None:
    """Refuse an output folder that is another command's, or lies in it.

    Raises:
        UserError: It is; ``what`` says whose.
    """
    if output.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{output}: is in {what} {folder}; name a folder elsewhere")


def keep_old(path: Path, new: Path) -> None:
    """Give a file another name, unless a new one with the same content takes its place."""
    if path.is_dir() or path.read_bytes() != new.read_bytes():
        old = next(
            name
            for number in itertools.count()
            if not (name := path.with_name(f"{path.name}.old{number or ''}")).exists()
        )
        path.rename(old)
        print(f"warning: {path} was there already; it is {old.name} now", flush=True)


def files_in(folder: Path) -> list[str]:
    """Names of all files in a folder and the folders in it, relative to it, with ``/``."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


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
