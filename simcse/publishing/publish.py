"""Pushes a trained model to the Hugging Face Hub, and checks what arrived.

The token comes from ``HF_TOKEN`` or the client's own login. Every step can be repeated: what the
Hub has is not sent again, and the run folder is only read.
"""

from __future__ import annotations

import filecmp
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi

from simcse.encoders.loading import load_trained
from simcse.errors import UserError
from simcse.evaluation.sources import read_pairs
from simcse.files import files_in
from simcse.hub.failures import Result, check_name, masked, with_retries
from simcse.publishing.export import CARD_FILE, FIGURES, RESULTS, write_model_folder

TOLERANCE = 1e-5
"""Largest difference of an embedding's value between what was sent and what came back."""
_SENTENCES = 64
# Files of an earlier push are deleted if this push lacks them; otherwise they would be shown or
# loaded along with the new ones.
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
    dims: int | None = None,
    trust_remote_code: bool = False,
    dry_run: bool = False,
) -> None:
    """Create or update a repository, then download it into a fresh cache and compare.

    Args:
        run: Run folder, or folder of seeds.
        name: ``user/name``.
        public: Make the repository public; without it a new one is private, and an
            existing one keeps its visibility.
        revision: Branch; created from ``main`` if it does not exist.
        message: Of the commit.
        attempts: Attempts for each step while the Hub does not answer.
        dims: Let the model give the first so many numbers of its embeddings.
        trust_remote_code: Let the model run the code that comes with it.
        dry_run: Print the files with their sizes and the card instead; nothing is sent or kept.

    Raises:
        UserError: The run cannot be published, the Hub refuses or does not answer, or what was
            downloaded differs from what was sent.
    """
    _check_names(name, revision)
    with tempfile.TemporaryDirectory(prefix="simcse-publish-") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        write_model_folder(run, name, folder, trust_remote_code=trust_remote_code, dims=dims)
        sizes = {file: (folder / file).stat().st_size for file in files_in(folder)}
        total = f"{len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB"
        if dry_run:
            for file, size in sizes.items():
                print(f"{size:>13,}  {file}")
            print(f"{total}\n\n{CARD_FILE}:\n")
            print((folder / CARD_FILE).read_text(encoding="utf-8"))
            kind = "public" if public else "private, unless it is there and public"
            print(f"dry run: nothing was sent to {name} ({revision or 'main'}; {kind})")
            return
        print(f"{name}: {total}", flush=True)
        message = message or f"Model trained by simcse-trainer from {run.name}"
        commit = _push(folder, name, attempts, public=public, revision=revision, message=message)
        arrived = with_retries(
            lambda: HfApi().snapshot_download(
                name, revision=commit, cache_dir=Path(temporary) / "cache"
            ),
            f"download {name}",
            attempts,
        )
        difference = _compare(
            folder, Path(arrived), list(sizes), trust_remote_code=trust_remote_code
        )
        print(
            f"verified: downloaded into a fresh cache, every file equal, {_SENTENCES} embeddings "
            f"equal to {difference:.0e}"
        )


def _check_names(name: str, revision: str | None) -> None:
    check_name(name)
    if revision is not None and not re.fullmatch(r"(?!refs/)\w[\w./-]*", revision):
        raise UserError(f"--revision {revision!r}: expected the name of a branch")


def _push(
    folder: Path, name: str, attempts: int, *, public: bool, revision: str | None, message: str
) -> str:
    """Upload the folder, creating the repository if necessary, and return the commit."""
    api = HfApi()

    def step(what: str, call: Callable[[], Result]) -> Result:
        return with_retries(call, what, attempts)

    if not step(f"look for {name}", lambda: api.repo_exists(name)):
        step(f"create {name}", lambda: api.create_repo(name, private=not public, exist_ok=True))
        print(f"created {name}, {'public' if public else 'private'}")
    elif not step(f"look for {name}", lambda: api.model_info(name)).private:
        if not public:
            print(f"{name} is there and public, and stays so")
    elif public:
        step(f"open {name}", lambda: api.update_repo_settings(name, private=False))
        print(f"{name} is public now")
    if revision is not None:
        step(
            f"make branch {revision}",
            lambda: api.create_branch(name, branch=revision, exist_ok=True),
        )
    commit = step(
        f"push to {name}",
        lambda: api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            delete_patterns=_REPLACED,
        ),
    )
    print(f"pushed to {masked(api.endpoint)}/{name} ({revision or 'main'}, commit {commit.oid})")
    return str(commit.oid)


def _compare(sent: Path, arrived: Path, names: list[str], *, trust_remote_code: bool) -> float:
    """Largest difference of an embedding's value.

    Raises:
        UserError: A file is missing or differs, or an embedding does.
    """
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
