"""Tasks of mteb (https://github.com/embeddings-benchmark/mteb), unmodified, through its own API.

The seven STS tasks, any other task, or a whole benchmark by name. Data comes from the Hub at the
revision that mteb pins, or, for the seven, from a folder in SentEval's layout; a score says which.
Results go to disk in mteb's own JSON format, and finished ones are not computed again for the same
model: the folder's name is the model's Hub commit or the hash of its weights, never its path.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import mteb
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetNotFoundError
from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.get_tasks import TASK_LIST
from mteb.models import ModelMeta
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.results import TaskResult
from sentence_transformers import SentenceTransformer

from simcse.config.settings import TaskName
from simcse.encoders.encoder import fingerprint
from simcse.errors import HubUnreachableError, UserError, first_line
from simcse.evaluation.hub_results import is_commit
from simcse.evaluation.names import GROUPS, MTEB, MTEB_STS, nearest, published_as
from simcse.evaluation.protocol import EmbeddingCache, Encode, Scores
from simcse.evaluation.sources import is_here, read_sts, require_grades
from simcse.hub import failures
from simcse.hub.snapshots import snapshot

_COLUMNS = ("sentence1", "sentence2")


class CachedEncoder(SentenceTransformerEncoderWrapper):  # type: ignore[misc]
    """mteb's wrapper of a model, with one cache of embeddings for all STS tasks.

    A model with prompts encodes a text differently for each task; mteb encodes it.
    """

    def __init__(
        self, model: SentenceTransformer, embed: EmbeddingCache, name: str, revision: str
    ) -> None:
        super().__init__(model)
        meta: Any = ModelMeta.from_sentence_transformer_model(model)
        self.mteb_model_meta = meta.model_copy(update={"name": name, "revision": revision})
        self.embed = None if any((model.prompts or {}).values()) else embed

    def encode(self, inputs: Any, *, task_metadata: TaskMetadata, **arguments: Any) -> Any:
        """Embeddings of mteb's batches, shape ``(texts, dim)``."""
        is_text = task_metadata.type == "STS" and "text" in inputs.dataset.column_names
        if self.embed is not None and is_text:
            return self.embed(list(inputs.dataset["text"]))
        return super().encode(inputs, task_metadata=task_metadata, **arguments)


def evaluate_mteb(
    model: SentenceTransformer,
    encode: Encode,
    name: str,
    revision: str,
    tasks: Sequence[AbsTask],
    data: Path | None,
    folder: Path,
    batch_size: int,
) -> Scores:
    """Score a model on mteb tasks.

    Args:
        model: The model.
        encode: Its ``encode``, for texts that several tasks share.
        name: What mteb's result files call it, ``organisation/name``.
        revision: Commit or :func:`~simcse.encoders.encoder.fingerprint`, the key of saved results.
        tasks: From :func:`find_tasks`.
        data: Folder in SentEval's layout; STS tasks that it holds are read from it.
        folder: Where results go: ``results/<name>/<revision>/<task>.json``, those on local files
            under ``local/`` instead of ``results/``.
        batch_size: Texts per forward pass.

    Returns:
        ``mteb:<task>`` to its scores.

    Raises:
        UserError: A data set is unavailable, or a score is not a number.
    """
    logging.getLogger("mteb").setLevel(logging.ERROR)
    scores: Scores = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"mteb\.")  # of its own use of its own API
        encoder = CachedEncoder(model, EmbeddingCache(encode), name, revision)
        filled = [task for task in tasks if fill_from(data, task)]
        if encoder.embed is not None:  # at once, for even batches
            columns = [task.dataset["test"][name] for task in filled for name in _COLUMNS]
            encoder.embed([text for column in columns for text in column])
        for task in tasks:
            local = task in filled
            result = _evaluate(encoder, task, None if local else folder, batch_size)
            if local:
                result.dataset_revision = "local files in SentEval's layout"
                path = folder / "local" / encoder.mteb_model_meta.model_name_as_path() / revision
                path.mkdir(parents=True, exist_ok=True)
                result.to_disk(path / f"{task.metadata.name}.json")
            scores[f"{MTEB}{task.metadata.name}"] = _scores(task, result, local=local)
            task.dataset, task.data_loaded = None, False  # the next may be large
    return scores


def _evaluate(
    encoder: CachedEncoder, task: AbsTask, saved_results: Path | None, batch_size: int
) -> TaskResult:
    is_single = not isinstance(task, AbsTaskAggregate)
    if saved_results and is_single and not _is_done(task, encoder, saved_results):
        _load(task)
    cache = mteb.ResultCache(saved_results) if saved_results else None
    try:
        [result] = mteb.evaluate(
            encoder,
            task,
            cache=cache,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
            show_progress_bar=False,
        ).task_results
    except (OSError, DatasetNotFoundError) as error:  # an aggregate loads its parts itself
        raise UserError(
            f"task {MTEB}{task.metadata.name}: cannot load its data: {first_line(error)}"
        ) from error
    return result


def find_tasks(words: Sequence[str]) -> list[AbsTask]:
    """Mteb tasks by the names of tasks or of benchmarks.

    Raises:
        UserError: mteb has no such name; the closest of ours and mteb's are listed.
    """
    tasks: dict[str, AbsTask] = {}
    for word in words:
        try:
            matches = [mteb.get_task(word)]
        except KeyError:
            try:
                matches = list(mteb.get_benchmark(word).tasks)
            except KeyError:
                known = [*known_names(), *get_args(TaskName), *GROUPS]
                raise UserError(f"task {word!r}: unknown{nearest(word, known)}") from None
        tasks |= {task.metadata.name: task for task in matches}
    return list(tasks.values())


def known_names() -> list[str]:
    """Names of mteb's tasks and benchmarks."""
    names = [name for cls in TASK_LIST if (name := cls.metadata.name)]
    return [*names, *(benchmark.name for benchmark in mteb.get_benchmarks())]


def check_at_hand(tasks: Sequence[AbsTask], data: Path | None) -> None:
    """Load the text of every task once, so that a long run does not end without its scores.

    Raises:
        UserError: A data set is neither here nor to be had from the Hub.
    """
    for task in tasks:
        for part in task.tasks if isinstance(task, AbsTaskAggregate) else [task]:
            if not fill_from(data, part):
                _load(part)
            part.dataset, part.data_loaded = None, False  # the next may be large


def revision_of(model: SentenceTransformer, hub_name: str | None) -> str:
    """The revision that tells a model's saved results from every other model's.

    Args:
        model: The model.
        hub_name: Its Hub name where it was loaded by that and nothing was overridden: then the
            answer is the Hub's commit, as on mteb's leaderboard. Else it is
            :func:`~simcse.encoders.encoder.fingerprint`.
    """
    return snapshot(hub_name).name if hub_name else fingerprint(model)  # …/snapshots/<commit>


def fill_from(data: Path | None, task: AbsTask) -> bool:
    """Give one of the seven STS tasks its text from local files, if they are available.

    The text keeps its spaces, as mteb's own data do.
    """
    name = MTEB_STS.get(f"{MTEB}{task.metadata.name}")
    if data is None or name is None or not is_here(name, data):
        return False
    # All of SICK is mteb's test set; SentEval's is a part of it.
    rows = read_sts("SICK-R (all)" if name == "SICK-R" else name, data)
    require_grades(name, rows)
    if published_as(name, rows, "graded")[1]:
        raise UserError(
            f"{data}: its {name} is not the data that was published; score it without {MTEB}"
        )
    sentence1, sentence2, score = zip(*rows, strict=True)
    columns = dict(zip((*_COLUMNS, "score"), (sentence1, sentence2, score), strict=True))
    task.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
    task.data_loaded = True
    return True


def _load(task: AbsTask) -> None:
    if task.data_loaded:
        return
    try:
        task.load_data()
    except (OSError, ValueError, RuntimeError) as error:
        where = task.metadata.dataset
        raise failures.failure(
            f"task {MTEB}{task.metadata.name}: cannot load {where['path']} at "
            f"{where['revision']}: {first_line(error)}",
            error,
        ) from error
    _check_commit(task)


def _check_commit(task: AbsTask) -> None:
    """Without the Hub, datasets uses the commit that it read last, whatever was requested.

    Raises:
        HubUnreachableError: The task's data are of another commit than mteb pins.
    """
    where = task.metadata.dataset
    unchecked = [task.dataset]
    while unchecked:
        data = unchecked.pop()
        if isinstance(data, dict):  # by split, and before that perhaps by language
            unchecked += data.values()
            continue
        for file in getattr(data, "cache_files", ()):
            commit = Path(file["filename"]).parent.name
            if is_commit(commit) and commit != where["revision"]:
                raise HubUnreachableError(
                    f"task {MTEB}{task.metadata.name}: {where['path']} is here at {commit}, and "
                    f"not at {where['revision']}"
                )


def _is_done(task: AbsTask, encoder: CachedEncoder, folder: Path) -> bool:
    if not folder.is_dir():  # which mteb's cache would make, and perhaps in vain
        return False
    cache = mteb.ResultCache(folder)
    try:
        saved = cache.load_task_result(task.metadata.name, encoder.mteb_model_meta)
    except (ValueError, KeyError) as error:
        path = cache.get_task_result_path(task.metadata.name, encoder.mteb_model_meta)
        raise UserError(f"{path}: damaged; remove it to score the task again") from error
    return saved is not None and not saved.get_missing_evaluations(task)


def _scores(task: AbsTask, result: TaskResult, *, local: bool) -> dict[str, Any]:
    """The project's form of a result."""
    score = float(result.get_score())
    if not local:
        score = round(score, 6)  # as mteb's files have it, so that a saved result is the same
    if not math.isfinite(score):
        raise UserError(
            f"task {MTEB}{task.metadata.name}: the score is {score}: the embeddings are constant"
        )
    source = "mteb"
    if task.metadata.name == "SICK-R":  # SentEval's is a part of it
        published = task.metadata.descriptive_stats["test"]["num_samples"]
        source = f"mteb, {len(task.dataset['test']) if local else int(published):,}"
    metric = str(task.metadata.main_score)
    return {
        metric if metric == "cosine_spearman" else "main_score": score,
        "metric": metric,
        "source": source,
        "dataset": f"{task.metadata.dataset['path']} at {result.dataset_revision}",
        "mteb": result.mteb_version,
    }
