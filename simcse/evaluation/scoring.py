"""Tasks by their names, ours and mteb's in one list, and a model scored on all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from sentence_transformers import SentenceTransformer

from simcse.config.settings import (
    MTEB,
    TASK_ALIASES,
    OwnTest,
    Precision,
    Role,
    TaskName,
    check_titles,
)
from simcse.data.documents import Documents
from simcse.encoders.encoding import embeds_by_role, encode_by_length
from simcse.encoders.precision import resolved
from simcse.evaluation.names import GROUPS
from simcse.evaluation.own import own_task, own_test
from simcse.evaluation.protocol import EmbeddingCache, Evaluation, evaluate
from simcse.evaluation.retention import retention
from simcse.evaluation.sources import load_geometry, load_task, task_names
from simcse.evaluation.tasks import Task

_OURS = {name.lower(): name for name in (*get_args(TaskName), *TASK_ALIASES, *GROUPS)}


@dataclass(frozen=True)
class TaskList:
    """What a model is scored on."""

    ours: list[Task]
    """The geometry is the last one."""
    mteb: list[Any]
    data: Path | None
    """Folder in SentEval's layout."""
    missing: list[str]
    """Tasks of a group that the folder does not hold."""

    @property
    def own_data(self) -> dict[str, str]:
        """Names of the tests on the user's own data, to the hash of the data."""
        facts = {task.name: getattr(task, "facts", {}) for task in self.ours}
        return {name: values["dataset"] for name, values in facts.items() if "own" in values}


@dataclass(frozen=True)
class TaskPlan:
    """Names of tasks, found but not read yet."""

    ours: list[str]
    own: list[OwnTest]
    mteb: list[Any]
    data: Path | None
    missing: list[str]

    def load(self, documents: Sequence[Documents] = ()) -> TaskList:
        """Read our tasks.

        Args:
            documents: Those of a run; for the task ``documents``.

        Raises:
            UserError: A file is missing or malformed.
        """
        ours = [load_task(name, self.data, documents) for name in self.ours]
        ours += [own_task(test) for test in self.own]
        geometry = load_geometry(self.data, dev_only=False)
        return TaskList([*ours, geometry], self.mteb, self.data, self.missing)


def plan_tasks(
    names: Sequence[str | Mapping[str, Any] | OwnTest] | None, data: Path | None
) -> TaskPlan:
    """Find our tasks, and mteb's, by their names.

    Args:
        names: Our tasks and groups, in any case, and tasks or benchmarks of mteb; ``mteb:`` in
            front of names that both have; tests of the user's own, such as ``graded:pairs.csv`` or
            the settings of an :class:`~simcse.config.settings.OwnTest`. ``None`` takes ``sts``
            where there is data, else ``pairs`` and ``python-docs``.
        data: Folder in SentEval's layout.

    Raises:
        UserError: An unknown task, or a group of which the folder holds none.
    """
    if names is None:
        names = ["sts"] if data else ["pairs", "python-docs"]
    entries = [own_test(name) for name in names]
    check_titles(entries)
    tests = {entry.title: entry for entry in entries if isinstance(entry, OwnTest)}
    words = [entry for entry in entries if isinstance(entry, str)]
    ours_by_name = [_OURS[word.lower()] for word in words if word.lower() in _OURS]
    others = [word.removeprefix(MTEB) for word in words if word.lower() not in _OURS]
    # mteb has a task STSB too, a Chinese one.
    others = ["STSBenchmark" if name in ("STSB", "STS-B") else name for name in others]
    found, missing = task_names(ours_by_name, data)
    theirs: list[Any] = []
    if others:  # it takes seconds to import
        from simcse.evaluation.mteb_tasks import find_tasks

        theirs = find_tasks(others)
    return TaskPlan(found, list(tests.values()), theirs, data, missing)


def score_model(
    model: SentenceTransformer,
    tasks: TaskList,
    batch_size: int,
    *,
    name: str,
    mteb_folder: Path,
    hub_name: str | None = None,
    show_progress: bool = False,
    precision: Precision = "float32",
    sizes: Sequence[int] = (),
) -> Evaluation:
    """Score a model as it encodes; each distinct text is encoded once.

    Args:
        model: The model.
        tasks: From :meth:`TaskPlan.load`.
        batch_size: Texts a forward pass.
        name: What mteb's result files call a model without a Hub name.
        mteb_folder: Where these files go.
        hub_name: As for :func:`simcse.evaluation.mteb_tasks.revision_of`.
        show_progress: Show a bar on standard error.
        precision: Of the forward passes.
        sizes: Of embeddings, for :func:`~simcse.evaluation.retention.retention`.

    Raises:
        UserError: A data set of mteb is not at hand, or the embeddings are not sound.
    """

    def embed(texts: list[str], role: Role | None = None) -> np.ndarray:
        return encode_by_length(
            model,
            texts,
            batch_size,
            show_progress=show_progress,
            role=role,
            precision=precision,
        )

    encode = EmbeddingCache(embed, embed if embeds_by_role(model) else None)
    evaluation = evaluate(encode, tasks.ours)
    evaluation = replace(evaluation, retention=retention(encode, tasks.ours, sizes))
    if not tasks.mteb:
        return evaluation
    from simcse.evaluation.mteb_tasks import evaluate_mteb, revision_of

    revision, precision = revision_of(model, hub_name), resolved(precision)
    scores = evaluate_mteb(
        model,
        encode,
        name if is_hub_name(name) else f"local/{Path(name).absolute().name}",
        revision if precision == "float32" else f"{revision}-{precision}",
        tasks.mteb,
        tasks.data,
        mteb_folder,
        batch_size,
    )
    geometry = evaluation.scores["geometry"]
    ours = {task: values for task, values in evaluation.scores.items() if task != "geometry"}
    return replace(evaluation, scores={**ours, **scores, "geometry": geometry})


def is_hub_name(name: str) -> bool:
    """Whether a model's name is ``organisation/name`` and no folder."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()
