"""The folder that is published: the model, its card, the figures, results that the Hub shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simcse.config.settings import Config
from simcse.encoders import encoder, lora
from simcse.encoders.loading import load_trained, truncate
from simcse.encoders.settings_files import ADAPTER
from simcse.errors import UserError
from simcse.evaluation.hub_results import eval_results, pinned_results
from simcse.evaluation.protocol import Scores
from simcse.files import check_parent, is_ours, remove_leftovers, scratch_folder
from simcse.publishing.card import TrainedModel, model_card
from simcse.reports.plots import pictures
from simcse.reports.records import EvaluatedScores
from simcse.reports.runs import (
    EVALUATION_FOLDER,
    SCORES_FILE,
    RunSet,
    is_plain_model,
    load_runs,
    read_json,
)

CARD_FILE = "README.md"
FIGURES = "figures"
RESULTS = ".eval_results"


def write_model_folder(
    run: Path,
    name: str,
    folder: Path,
    *,
    trust_remote_code: bool,
    adapter: bool = False,
    dims: int | None = None,
) -> None:
    """Write the folder: the model, its card and figures, and nothing else.

    Args:
        run: Run folder, or a folder of seeds: then the best by dev, with the scores of all.
        name: What the card calls the model, ``user/name``.
        folder: Empty or missing.
        trust_remote_code: Let the model run code that comes with it.
        adapter: Of the model only the adapters, which name the model that they belong to.
        dims: Let the model give the first so many numbers of its embeddings.

    Raises:
        UserError: The run is unfinished or damaged, is not a training run, has no adapters that
            stand for its model, or its embeddings are not as wide.
    """
    runs, config = trained_runs(run)
    best = runs.best
    if adapter and not config.encoder.has_adapters:
        raise UserError(f"--adapter: {run} was trained without encoder.lora")
    if adapter and config.encoder.attention != "own":
        raise UserError(
            f"--adapter: {run} has encoder.attention={config.encoder.attention}, which adapters "
            "cannot tell their model; export without --adapter"
        )
    model = load_trained(best.folder, trust_remote_code=trust_remote_code, device="cpu")
    truncate(model, dims)
    fingerprint = encoder.fingerprint(model)
    figures = pictures([RunSet(name.rpartition("/")[2], runs.runs)])
    later = _scored_later(best.folder, fingerprint)
    card = model_card(TrainedModel(name, runs, config, model, later, figures, dims, adapter))
    if adapter:
        shutil.copytree(best.folder / lora.FOLDER, folder, dirs_exist_ok=True)
        if config.hub.base_model and encoder.hub_commit(config.encoder) is None:
            _name_base(folder / ADAPTER, config.hub.base_model)
    else:
        encoder.save(model, folder)
    for picture in figures:
        (folder / FIGURES).mkdir(exist_ok=True)
        (folder / FIGURES / f"{picture.name}.png").write_bytes(picture.png())
    for path in (best.folder / EVALUATION_FOLDER).glob(f"mteb/results/*/{fingerprint}"):
        for result in pinned_results(path):
            (folder / RESULTS).mkdir(exist_ok=True)
            file = folder / RESULTS / f"{result.task_name}.yaml"
            file.write_text(eval_results(result), encoding="utf-8")
    card.save(folder / CARD_FILE)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder next to ``folder`` that replaces it when the block ends without an error.

    Raises:
        UserError: ``folder`` exists and is not empty.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or not all(map(is_ours, folder.iterdir()))):
        raise UserError(f"{folder}: is there already; name a folder that is new or empty")
    check_parent(folder)
    with scratch_folder(folder.parent) as outer:
        inner = outer / "folder"
        inner.mkdir()
        yield inner
        if folder.exists():
            remove_leftovers(folder)
            folder.rmdir()
        inner.rename(folder)


def trained_runs(run: Path) -> tuple[RunSet, Config]:
    """A run, or all seeds of a folder, and the config of the best of them, which is named.

    Raises:
        UserError: The run is unfinished or damaged, or is not a training run.
    """
    if is_plain_model(run):
        raise UserError(f"{run}: is no finished run but a model; name the folder of a run")
    runs = load_runs(run)
    if runs.best.config is None:
        raise UserError(f"{run}: holds scores of a model, not a training run")
    if runs.best.folder.resolve() != run.resolve():
        print(f"of the runs in {run} {runs.best.folder.name} is the best by dev")
    return runs, runs.best.config


def _name_base(path: Path, name: str) -> None:
    """Let adapters name a model of the Hub where they name a folder of this machine."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = name
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _scored_later(run: Path, fingerprint: str) -> Scores:
    """Scores of exactly these weights by ``simcse evaluate``."""
    path = run / EVALUATION_FOLDER / SCORES_FILE
    if not path.is_file():
        return {}
    evaluated = read_json(path, EvaluatedScores)
    if evaluated["fingerprint"] != fingerprint:
        return {}
    scores: Scores = evaluated["scores"]
    return scores
