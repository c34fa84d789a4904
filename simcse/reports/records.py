"""What the JSON files of a run hold: the structure that readers may rely on.

A file may be truncated, edited or from an untrusted source. What is checked here is what tables,
figures, cards and comparisons use; other keys are allowed.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from simcse.config.settings import HUB_LICENSE, HUB_MODEL
from simcse.evaluation.table import LABELS
from simcse.evaluation.tasks import BAND_EDGES


def parse(text: str, record: type[BaseModel]) -> Any:
    """The plain values of a JSON text, validated as a ``record``.

    Raises:
        ValueError: They are not; in one line.
    """
    try:
        values = json.loads(text)
        record.model_validate(values)
    except ValidationError as error:
        problems = [(".".join(map(str, item["loc"])), item) for item in error.errors()]
        missing = [key for key, item in problems if item["type"] == "missing"]
        key, first = problems[0]
        problem = f"no {', '.join(missing)}" if missing else f"{key}: {first['msg']}"
        raise ValueError(problem.removeprefix(": ")) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return values


def _countable(value: float) -> float:
    if abs(value) > 1e12:  # NaN is not, and may be a score
        raise ValueError("beyond all bounds")
    return value


Number = Annotated[float, AfterValidator(_countable)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}(-dirty)?$")]


class Record(BaseModel):
    """A JSON object."""

    model_config = ConfigDict(extra="allow", strict=True)


class Band(Record):
    """Pairs within one grade band: their cosines in the bins of ``BAND_EDGES``."""

    pairs: Count
    mean: Number
    counts: Annotated[
        list[Count], Field(min_length=len(BAND_EDGES) - 1, max_length=len(BAND_EDGES) - 1)
    ]


class Geometry(Record):
    """Scores of :class:`~simcse.evaluation.tasks.GeometryTask`."""

    alignment: Number
    uniformity: Number
    mean_cosine: Number
    effective_rank: Number
    dim: Annotated[Count, Field(ge=1)]
    sentences: Annotated[Count, Field(ge=2)] | None = None
    collapse: str
    source: str
    singular_values: Annotated[list[Number], Field(min_length=1)]
    bands: dict[Literal["0-1", "1-2", "2-3", "3-4", "4-5"], Band]


def _scores(tasks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for task, values in tasks.items():
        for key in LABELS:
            number = values.get(key, 0)
            if not isinstance(number, int | float):
                raise ValueError(f"{key} of {task} is no number")
            _countable(number)
        for key in ("source", "dataset"):
            if not isinstance(values.get(key, ""), str):
                raise ValueError(f"{key} of {task} is no text")
    if "geometry" in tasks:
        Geometry.model_validate(tasks["geometry"])
    return tasks


TaskScores = Annotated[dict[str, dict[str, Any]], AfterValidator(_scores)]


Metric = Literal["cosine_spearman", "recall_at_10", "ndcg_at_10", "average_precision", "accuracy"]
"""What may stand for a task."""


class Dev(Record):
    """The score that chose the checkpoint."""

    task: str
    metric: Metric
    best: Number
    best_step: Count
    steps: Count


class Change(Record):
    """One score before and after training, and its difference with interval."""

    before: Number
    after: Number
    difference: Number
    low: Number
    high: Number
    p: Number


class TaskChanges(Record):
    """See :data:`simcse.evaluation.change.Changes`."""

    metric: Metric
    pooling: str
    items: Count
    scores: dict[str, Change]

    @model_validator(mode="after")
    def _has_its_metric(self) -> Self:
        if self.metric not in self.scores:
            raise ValueError(f"no {self.metric}")
        return self


class Size(Record):
    """An entry of :data:`simcse.evaluation.protocol.Retention`."""

    task: str
    metric: Metric
    dims: Count
    vectors: Literal["float32", "int8", "binary"]
    bytes: Annotated[Count, Field(ge=1)]
    score: Number
    untrained: Number = 0.0


class RunScores(Record):
    """``scores.json`` of a training run."""

    raw: dict[str, TaskScores]
    trained: TaskScores
    bm25: TaskScores = {}
    """Of retrieval tasks."""
    changes: dict[str, TaskChanges] = {}
    retention: list[Size] = []
    dev: Dev
    minutes: Number | None = None


class RawScores(Record):
    """``raw_scores.json``: the untrained encoder by pooling, and a hash that tells of whom."""

    made_from: str
    scores: dict[str, TaskScores]


class EvaluatedScores(Record):
    """``scores.json`` of ``simcse evaluate``."""

    model: str
    fingerprint: str
    precision: str
    scores: TaskScores
    retention: list[Size] = []


class LogLine(Record):
    """A line of ``log.jsonl``."""

    step: Count
    loss: Number = 0.0
    eval_dev_score: Number = 0.0
    eval_alignment: Number = 0.0
    eval_uniformity: Number = 0.0


SettingName = Annotated[str, Field(pattern=r"^[\w.]+=[\w.+,=-]*$", max_length=200)]
"""What :func:`simcse.config.overrides.combinations` calls a run of a sweep: never a path."""


class Plan(Record):
    """``summary.json`` of a folder with several runs."""

    planned: list[Count | SettingName]
    """The seeds, or the settings of a sweep."""
    diverged: list[SettingName] = []
    """Settings of a sweep that training could not finish."""


class TextCount(Record):
    """See :class:`~simcse.data.rows.TextCounts`."""

    rows: Count
    texts: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Text(Record):
    """What was read, and how many rows of it are trained on."""

    train: list[str]
    """Entries of its ``data.train``."""
    rows: Count
    counts: TextCount


class Start(Record):
    """Hashes of what training began with."""

    encoder: str


class Description(Record):
    """What an objective of the user's own says of itself."""

    formula: str
    source: str


class EncoderCard(Record):
    """See :func:`simcse.encoders.base_card.of_card`."""

    license: Annotated[str, Field(pattern=HUB_LICENSE)] | None = None
    base_model: Annotated[str, Field(pattern=HUB_MODEL)] | None = None


class MadeFrom(Record):
    """``environment.json``: what a run was made from."""

    simcse: str
    libraries: dict[str, str]
    device: str
    threads: Count
    processes: Count
    start: Start
    text: list[Text]
    """Of each data set."""
    commit: Commit | None
    encoder_commit: Commit | None
    encoder_card: EncoderCard = EncoderCard()
    terms: dict[str, Description]
    """Terms of the objective that are classes of the user's own."""
    from_hub: list[str]
    """Entries of ``data.train``, teacher and guide that came from the Hub."""
