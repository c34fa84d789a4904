"""Files of the Hugging Face Hub: from the client's cache if they are there, else downloaded.

The libraries get a folder, so none of them asks the Hub on its own.
"""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

from simcse.errors import UserError
from simcse.hub import failures

ATTEMPTS = 3
"""Attempts to reach a repository before a run gives up."""

# What transformers and sentence-transformers load: no other formats, no checkpoints.
_ELSEWHERE = re.compile(r"(onnx|openvino|coreml|checkpoint-\d+)/")
_WEIGHTS = re.compile(r"(adapter_|pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)")
_OTHER_FILES = re.compile(r".+\.(json|txt|py|model|jinja|vocab|codes|bpe|spm|tiktoken)")
# Without one of these a model cannot be loaded, or worse, is another one.
_DECISIVE = re.compile(
    r"modules\.json|config_sentence_transformers\.json|((sentence_\w+|tokenizer)_)?config\.json"
    r"|tokenizer\.json|special_tokens_map\.json|added_tokens\.json|" + _WEIGHTS.pattern
)

Kind = Literal["model", "dataset"]


@cache
def snapshot(
    name: str,
    revision: str | None = None,
    kind: Kind = "model",
    file: str | None = None,
    *,
    refresh: bool = False,
) -> Path:
    """Folder in the client's cache that has the files of a repository.

    Cached files are used without asking the Hub, so a branch stays at the commit it had when it
    was downloaded; every name is looked up once in a process.

    Args:
        name: ``user/name``, or ``name`` alone.
        revision: Branch, tag or commit; ``None`` means ``main``.
        kind: Of the repository. A model's files are those that the libraries load.
        file: The only file that is needed.
        refresh: Ask the Hub for the newest commit; without an answer what is here is used.

    Raises:
        UserError: There is no such repository, revision or file, or not all of it is here and the
            Hub does not answer.
    """
    failures.check_name(name, owner=False)
    folder, missing = _cached(name, revision, kind, file)
    if folder is not None and missing == [] and not refresh:
        return folder
    try:
        return _download(name, revision, kind, file)
    except UserError as error:
        # Another program may have left no list of what there should be, and no files that it does
        # not need.
        lacks = [path for path in missing or [] if _DECISIVE.fullmatch(PurePosixPath(path).name)]
        usable = not lacks if kind == "model" else missing == []
        if folder is None or not usable:
            raise
        if refresh:
            print(f"{name}: what is here is used: {error}", file=sys.stderr, flush=True)
        return folder


def _cached(
    name: str, revision: str | None, kind: Kind, file: str | None
) -> tuple[Path | None, list[str] | None]:
    """The cached folder of a revision, and the files it lacks; ``None`` where either is unknown."""
    try:
        folder = Path(
            snapshot_download(
                name, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=[]
            )
        )
        listed = [file] if file else _needed(name, revision, kind)
    except LocalEntryNotFoundError:
        return None, None
    except CachedRepoTreeNotFoundError:
        return folder, None
    return folder, [path for path in listed if not (folder / path).is_file()]


def _needed(name: str, revision: str | None, kind: Kind) -> list[str]:
    """Files to download, by the list that the client keeps of those of a commit."""
    paths = [entry.path for entry in get_cached_repo_tree(name, repo_type=kind, revision=revision)]
    if needed := paths if kind == "dataset" else model_files(paths):
        return needed
    raise UserError(f"{name}: the Hub lists no {kind} files")


def model_files(paths: Iterable[str]) -> list[str]:
    """The files of a repository that the libraries load; safetensors rather than ``.bin``."""
    chosen = [
        path
        for path in map(PurePosixPath, paths)
        if not _ELSEWHERE.match(str(path))
        and (_OTHER_FILES.fullmatch(path.name) or _WEIGHTS.fullmatch(path.name))
    ]
    safe = {path.parent for path in chosen if path.match("model*.safetensors")}
    return [str(path) for path in chosen if path.suffix != ".bin" or path.parent not in safe]


def _download(name: str, revision: str | None, kind: Kind, file: str | None) -> Path:
    """Fetch missing files of the newest commit, and only then make it the cached one."""
    # First, because the client would try other calls again for long and in silence.
    commit = failures.with_retries(
        lambda: HfApi().repo_info(name, repo_type=kind, revision=revision).sha,
        f"look for {name}",
        ATTEMPTS,
    )

    def fetch(at: str | None, paths: list[str]) -> Path:
        patterns = [*map(glob.escape, paths), "README.md"]  # its card, which is not needed
        fetched = failures.with_retries(
            lambda: snapshot_download(name, repo_type=kind, revision=at, allow_patterns=patterns),
            f"download {name}",
            attempts=1,
        )
        return Path(fetched)

    folder = fetch(commit, [])  # takes the list of files
    needed = failures.with_retries(lambda: _needed(name, commit, kind), f"list {name}", attempts=1)
    if file is not None and file not in needed:
        raise UserError(f"{name} has no file {file}")
    wanted = [file] if file else needed
    if not all((folder / path).is_file() for path in wanted):
        print(f"{name}: downloading from the Hub", file=sys.stderr, flush=True)
    fetch(commit, wanted)
    return fetch(revision, wanted)  # notes down which commit a branch is at
