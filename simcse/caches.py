"""Files that can be made again: checked before they are used, made anew where damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simcse.errors import UserError
from simcse.files import replacing


def cache_folder() -> Path:
    """Folder for what can be made again: ``$SIMCSE_CACHE``, else ``simcse`` in the user's cache.

    Raises:
        UserError: The user has no home folder.
    """
    try:
        if chosen := os.environ.get("SIMCSE_CACHE"):
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simcse"
    except RuntimeError as error:
        raise UserError("no home folder to keep caches in; set SIMCSE_CACHE to a folder") from error


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
    try:
        with replacing(seal) as new_seal, replacing(path) as temporary:  # the seal comes last
            facts = make(temporary)
            sealed = {"sha256": _sealed(temporary, facts), "facts": facts}
            new_seal.write_text(json.dumps(sealed), encoding="utf-8")
    except OSError as error:
        error.add_note(f"in the cache folder {path.parent}, which SIMCSE_CACHE or data.cache names")
        raise
    return facts


def _sealed(path: Path, facts: dict[str, Any]) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
