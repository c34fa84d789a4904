"""Scores in the two forms that the Hub shows: a card's ``model-index`` and ``.eval_results``."""

from __future__ import annotations

import math
import re
from pathlib import Path

import mteb
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from mteb.results import TaskResult

from simcse.errors import UserError, first_line
from simcse.evaluation.names import MTEB
from simcse.evaluation.protocol import Scores
from simcse.evaluation.table import LABELS, task_label

_SHOWN = ("cosine_spearman", "recall_at_10", "accuracy", "f1", "main_score")
_MTEB_URL = "https://github.com/embeddings-benchmark/mteb"


def model_index(scores: Scores) -> list[EvalResult]:
    """Every score but the geometry, as a fraction, for the metadata of a card.

    Averages over tasks are left out, which are no data set's result, and tests on the user's own
    data, which are no benchmark.
    """
    results = []
    for task, values in scores.items():
        name = task.removeprefix(MTEB)
        if name.startswith("average of ") or "own" in values:
            continue
        dataset, _, revision = str(values.get("dataset", "")).partition(" at ")
        for key in [key for key in _SHOWN if math.isfinite(values.get(key, math.nan))]:
            is_sts = key == "cosine_spearman"
            results.append(
                EvalResult(
                    task_type="sentence-similarity" if is_sts else "feature-extraction",
                    dataset_type=dataset or re.sub(r"\W+", "-", name.lower()),
                    dataset_name=task_label(task, values),
                    dataset_revision=revision if is_commit(revision) else None,
                    # sbert.net's cards call it so; the other keys are names that the Hub knows.
                    metric_type="spearman_cosine" if is_sts else key,
                    metric_name=LABELS[key],
                    metric_value=round(float(values[key]), 6),
                )
            )
    return results


def pinned_results(folder: Path) -> list[TaskResult]:
    """What mteb wrote for one model, where it is of the data that mteb pins and of nothing else.

    Args:
        folder: ``results/<name>/<revision>``, which holds a JSON file for each task.

    Raises:
        UserError: A file is damaged.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        if path.name == "model_meta.json":
            continue
        try:
            result = TaskResult.from_disk(path)
            pinned = mteb.get_task(result.task_name).metadata.revision
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{path}: damaged ({first_line(error)}); remove it") from error
        if result.dataset_revision == pinned and is_commit(pinned):
            results.append(result)
    return results


def eval_results(result: TaskResult) -> str:
    """The text of ``.eval_results/<task>.yaml``; the score ×100, as mteb's leaderboard has it."""
    data = mteb.get_task(result.task_name).metadata.dataset
    entry = EvalResultEntry(
        dataset_id=str(data["path"]),
        task_id=result.task_name,
        value=round(100 * float(result.get_score()), 5),
        dataset_revision=result.dataset_revision,
        date=result.date.date().isoformat() if result.date else None,
        source_url=_MTEB_URL,
        source_name=f"mteb {result.mteb_version}",
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, which cannot move."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None
