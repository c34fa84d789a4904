"""The seal of a folder: a manifest with size and SHA-256 of its files, written after all of them.

Whatever was sealed can be told from what was cut short, lost, exchanged or damaged since.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from simcse.files import sync_folder, write_atomically

MANIFEST = "manifest.json"


def seal(folder: Path, names: Iterable[str]) -> None:
    """Flush files to the disk, then write the manifest that names them."""
    files = {}
    for path in sorted(folder / name for name in names):
        with path.open("r+b") as file:  # Windows flushes only what it may write
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        files[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    for inner in {(folder / name).parent for name in files}:
        sync_folder(inner)
    write_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")
    sync_folder(folder)


def damage(folder: Path, needed: Iterable[str], *, checksums: bool = True) -> str | None:
    """What is wrong with a sealed folder, ``file: reason``; ``None`` where it is whole.

    Args:
        folder: That was sealed, or should have been.
        needed: Files that the manifest has to name.
        checksums: Compare the content; else only names and sizes.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        files: dict[str, dict[str, Any]] = json.loads(text)["files"]
        known = [(name, int(facts["size"]), facts["sha256"]) for name, facts in files.items()]
    except FileNotFoundError:
        return f"{MANIFEST}: missing, so it was not written to the end"
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ):
        return f"{MANIFEST}: damaged"
    outside = any(Path(name).is_absolute() or ".." in Path(name).parts for name in files)
    if outside or "\0" in "".join(files) or not files.keys() >= set(needed):
        return f"{MANIFEST}: damaged"
    for name, size, digest in known:
        try:
            if (folder / name).exists() and not (folder / name).is_file():
                return f"{name}: not a file"
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name}: {found:,} bytes, {size:,} were written"
            if checksums and _sha256(folder / name) != digest:
                return f"{name}: damaged, its content is not what was written (SHA-256)"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
