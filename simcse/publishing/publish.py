"""Pushes a trained model to the Hugging Face Hub, and checks what arrived.

The token comes from ``HF_TOKEN`` or the client's own login. Every step can be repeated: what the
Hub has is not sent again, and the run folder is only read.
"""

from __future__ import annotations

import filecmp
import re
import tempfile
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi

from simcse.encoders.loading import load_trained
from simcse.errors import UserError
from simcse.evaluation.sources import read_pairs
from simcse.hub.failures import check_name, masked, with_retries
from simcse.publishing.export import CARD_FILE, FIGURES, RESULTS, export

TOLERANCE = 1e-5
"""Largest difference of an embedding's value between what was sent and what came back."""
_SENTENCES = 64
# Of an earlier push, and not of this one: they would be shown or loaded beside what is new.
_MODULES = ("", "[0-9]_*/", "query_*/", "document_*/")
_REPLACED = [f"{FIGURES}/*.png", f"{RESULTS}/*.yaml"]
_REPLACED += [f"{folder}model*.safetensors" for folder in _MODULES]
_REPLACED += [f"{folder}pytorch_model*.bin" for folder in _MODULES]


def publish(
    run: Path,
    name: str,
    *,
    public: bool = False,
    revision: str | None = None,
    message: str | None = None,
    attempts: int = 6,
    trust_remote_code: bool = False,
) -> None:
    """Create or update a repository, then download it into a fresh cache and compare.

    Args:
        run: Run folder, or folder of seeds.
        name: ``user/name``.
        public: Make the repository public; a new one is private without it, one that is there
            keeps what it is.
        revision: Branch; made from ``main`` where there is none of that name.
        message: Of the commit.
        attempts: How often a step is tried while the Hub does not answer.
        trust_remote_code: Let the model run code that comes with it.

    Raises:
        UserError: The run cannot be published, the Hub refuses or does not answer, or what came
            back is not what was sent.
    """
    _check_names(name, revision)
    with tempfile.TemporaryDirectory(prefix="simcse-publish-") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        export(run, name, folder, trust_remote_code=trust_remote_code)
        print(f"{name}: {_size_line(folder)}", flush=True)
        api = HfApi()
        _open_repository(api, name, attempts, public=public)
        if revision is not None:
            with_retries(
                lambda: api.create_branch(name, branch=revision, exist_ok=True),
                f"make branch {revision}",
                attempts,
            )
        commit = with_retries(
            lambda: api.upload_folder(
                repo_id=name,
                folder_path=folder,
                revision=revision,
                commit_message=message or f"Model trained by simcse-trainer from {run.name}",
                delete_patterns=_REPLACED,
            ),
            f"push to {name}",
            attempts,
        )
        print(
            f"pushed to {masked(api.endpoint)}/{name} ({revision or 'main'}, commit {commit.oid})"
        )
        cache = Path(temporary) / "cache"
        arrived = with_retries(
            lambda: api.snapshot_download(name, revision=commit.oid, cache_dir=cache),
            f"download {name}",
            attempts,
        )
        difference = _compare(folder, Path(arrived), trust_remote_code=trust_remote_code)
        print(
            f"verified: downloaded into a fresh cache, every file equal, {_SENTENCES} embeddings "
            f"equal to {difference:.0e}"
        )


def dry_run(
    run: Path,
    name: str,
    *,
    public: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Print the files with their sizes and the card; nothing is sent or kept.

    Raises:
        UserError: The run cannot be published.
    """
    _check_names(name, revision)
    with tempfile.TemporaryDirectory(prefix="simcse-publish-") as temporary:
        folder = Path(temporary)
        export(run, name, folder, trust_remote_code=trust_remote_code)
        for path in _files(folder):
            print(f"{path.stat().st_size:>13,}  {path.relative_to(folder).as_posix()}")
        print(f"{_size_line(folder)}\n\n{CARD_FILE}:\n")
        print((folder / CARD_FILE).read_text(encoding="utf-8"))
        kind = "public" if public else "private, unless it is there and public"
        print(f"dry run: nothing was sent to {name} ({revision or 'main'}; {kind})")


def _check_names(name: str, revision: str | None) -> None:
    check_name(name)
    if revision is not None and not re.fullmatch(r"(?!refs/)\w[\w./-]*", revision):
        raise UserError(f"--revision {revision!r}: expected the name of a branch")


def _open_repository(api: HfApi, name: str, attempts: int, *, public: bool) -> None:
    there = with_retries(lambda: api.repo_exists(name), f"look for {name}", attempts)
    if not there:
        with_retries(
            lambda: api.create_repo(name, private=not public, exist_ok=True),
            f"create {name}",
            attempts,
        )
        print(f"created {name}, {'public' if public else 'private'}")
        return
    info = with_retries(lambda: api.model_info(name), f"look for {name}", attempts)
    if public and info.private:
        with_retries(
            lambda: api.update_repo_settings(name, private=False), f"open {name}", attempts
        )
        print(f"{name} is public now")
    elif not public and not info.private:
        print(f"{name} is there and public, and stays so")


def _compare(sent: Path, arrived: Path, *, trust_remote_code: bool) -> float:
    """Largest difference of an embedding's value.

    Raises:
        UserError: A file is missing or differs, or an embedding does.
    """
    names = [path.relative_to(sent).as_posix() for path in _files(sent)]
    _, different, missing = filecmp.cmpfiles(sent, arrived, names, shallow=False)
    if different or missing:
        raise UserError(
            f"verification: {', '.join([*different, *missing])} came back different or not at all; "
            "repeat the command"
        )
    sentences = [text for a, b, _ in read_pairs() for text in (a, b)][:_SENTENCES]
    before, after = (
        load_trained(folder, trust_remote_code=trust_remote_code, device="cpu").encode(sentences)
        for folder in (sent, arrived)
    )
    difference = float(np.abs(before - after).max())
    if not difference <= TOLERANCE:  # so that NaN counts
        raise UserError(
            f"verification: embeddings of the downloaded model differ by {difference:.2g}, more "
            f"than {TOLERANCE:.0e}"
        )
    return difference


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _size_line(folder: Path) -> str:
    files = _files(folder)
    return f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB"
