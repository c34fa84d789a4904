"""Every setting of a training run: its type, its range, its meaning.

One pydantic model a section, frozen and strict; :mod:`simcse.config.reading` reads them from YAML.
Nothing heavier than pydantic is imported here, so that a typing error is answered at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Pooling = Literal["cls", "mean", "avg_first_last", "pooler"]
TaskName = Literal[
    "pairs", "docstrings",
    "STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "STSB-dev", "SICK-R",
    "MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC",
]  # fmt: skip
TermName = Literal[
    "info_nce", "nt_xent", "clip", "decoupled", "sup_con", "dino", "mlm",
    "distill_l2", "distill_similarity",
]  # fmt: skip
Precision = Literal["float32", "bfloat16", "float16"]
Role = Literal["query", "document"]
"""Which side of a search a text is on: models with two encoders or prompts embed them apart."""
DevTaskName = Literal["pairs", "docstrings", "STSB"]
HUB_NAME = r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$"
"""A repository of the Hugging Face Hub: ``user/name``."""
TASK_ALIASES = {"STSBenchmark": "STSB", "STS-B": "STSB", "SICKRelatedness": "SICK-R"}


def _number_from_text(value: object) -> object:
    """Read ``3e-5`` as a number: YAML 1.1 takes it for text because it has no dot."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _list_from_one(value: object) -> object:
    return [value] if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number_from_text), Field(allow_inf_nan=False)]
PositiveNumber = Annotated[Number, Field(gt=0)]
# Beyond these similarities divided by it, or its logarithm, leave what float32 can hold.
Temperature = Annotated[Number, Field(ge=1e-6, le=1e6)]
# What the libraries below can count in 32 bits.
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]


def _path(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"{value!r} has a NUL character")
    try:
        return str(Path(value).expanduser()) if value.startswith("~") else value
    except RuntimeError as error:
        raise ValueError(f"{value!r}: the home folder is not known") from error


def _task_list(value: object) -> object:
    value = _list_from_one(value)
    return [TASK_ALIASES.get(str(n), n) for n in value] if isinstance(value, list) else value


def _seed_list(value: object) -> object:
    if isinstance(value, str):  # seeds=0,1,2
        words = [word.strip() for word in value.split(",")]
        return [int(word) if word.isdecimal() else word for word in words]
    return [value] if isinstance(value, int) else value


def _weighted_terms(value: object) -> object:
    """``info_nce``, ``[info_nce, {mlm: 0.1}]`` and ``{info_nce: 1.0}`` are weights by name."""
    if isinstance(value, str):
        return {value: 1.0}
    if not isinstance(value, list):
        return value
    terms: dict[Any, Any] = {}
    for item in value:
        one = {item: 1.0} if isinstance(item, str) else item
        if not isinstance(one, dict):
            return value  # pydantic says what is expected
        if twice := set(one) & set(terms):
            raise ValueError(f"{twice.pop()} is named twice")
        terms |= one
    return terms


def temperature_from_number(value: object) -> object:
    """The section that ``temperature: 0.05`` is short for."""
    return {"start": value} if isinstance(value, int | float | str) else value


def objective_from_terms(value: object) -> object:
    """The section that ``objective: info_nce`` is short for."""
    return {"terms": value} if isinstance(value, str | list) else value


Seed = Annotated[int, Field(ge=0, lt=2**32)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_path)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


COLUMNS: dict[str, tuple[int, int | None, str]] = {
    "sentences": (1, 1, "one column"),
    "pairs": (2, None, "two columns or more: anchor, positive, hard negatives"),
    "nli": (3, 3, "three columns: premise, hypothesis, label"),
    "labelled": (2, 2, "two columns: text, label"),
}
"""Fewest and most columns of a form, in words."""


class EncoderConfig(_Section):
    """Which pre-trained encoder, and how its token states become one sentence embedding."""

    name: PathText = "mini-bert"
    """Hugging Face name or local folder; ``mini-bert`` is the encoder shipped with the package."""
    revision: str | None = None
    """Branch, tag or commit of a Hub encoder."""
    trust_remote_code: bool = False
    """Let the encoder run code that comes with it on this machine."""
    pooling: Pooling | None = None
    """``cls`` is the first position of the last layer, ``avg_first_last`` the mean over tokens of
    the average of the first and the last layer, ``pooler`` the first position through the
    checkpoint's own dense layer with tanh. ``null`` is what a sentence-transformers model has,
    which also keeps its other modules, prompts and settings, and ``mean`` for other encoders."""
    projection: Literal["none", "train_only", "always"] = "none"
    """A dense layer with tanh after pooling: left out, used by the loss only and dropped from the
    exported model (SimCSE's ``mlp_only_train``), or part of the exported model."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Overrides every dropout probability of the encoder; ``null`` keeps its own."""
    towers: Literal["one", "two"] = "one"
    """``two``: anchors and positives get encoders of their own, starting from the same weights, for
    pairs from two sources; saved as sentence-transformers' Router (``encode_query``,
    ``encode_document``)."""


class DataConfig(_Section):
    """Training text."""

    train: Annotated[list[PathText], BeforeValidator(_list_from_one)] = Field(
        default=["docstrings"], min_length=1
    )
    """``docstrings`` (sentences of the installed Python packages), files or globs of txt, csv, tsv,
    jsonl or parquet (also .gz), or one Hub data set by name."""
    form: Literal["sentences", "pairs", "nli", "labelled"] = "sentences"
    """``sentences``: one text a row, its positive is itself. ``pairs``: anchor, positive, and any
    number of hard negatives. ``nli``: premise, hypothesis, label; becomes triplets. ``labelled``:
    text and label (or group id); rows that share it are positives."""
    columns: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Columns of the form, in its order; needed where the names do not tell."""
    names: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Names of the columns of csv and tsv files that have no header."""
    quotes: bool = True
    """Whether quotes enclose fields of csv and tsv files; ``false`` takes them as they stand."""
    incomplete: Literal["skip", "refuse"] = "skip"
    """Rows of which a text or a label is empty and others are not: counted and left out, or refused
    with their line. Rows of which all is empty are always left out."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows that repeat an earlier one, in all their texts and the label."""
    max_rows: Count | None = None
    """Train on this many rows, drawn once with ``seed``; ``null`` takes all."""
    max_length: Annotated[Count, Field(ge=3)] = 32
    """Longest training input in tokens, special tokens included; encoding is not bound by it."""
    cache: PathText | None = None
    """Folder of the tokenised text; ``null`` uses the user's cache folder."""

    @model_validator(mode="after")
    def _columns_fit(self) -> DataConfig:
        least, most, what = COLUMNS[self.form]
        if self.columns and not least <= len(self.columns) <= (most or len(self.columns)):
            raise ValueError(f"columns: form {self.form} takes {what}, got {len(self.columns)}")
        return self


class ViewConfig(_Section):
    """What is done to the token ids of one view; dropout comes on top. Composable."""

    repeat: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Word repetition: up to this share of the tokens (and at least up to two) is doubled, so that
    views differ in length (ESimCSE, https://arxiv.org/abs/2109.04380; there 0.32)."""
    cutoff: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the tokens that attention does not see (ConSERT's token cutoff,
    https://arxiv.org/abs/2105.11741; there 0.15)."""
    shuffle: bool = False
    """Tokens in random order (ConSERT's token shuffling)."""
    template: str | None = None
    """Words around the text, ``{}`` in its place (after PromptBERT,
    https://arxiv.org/abs/2201.04337)."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Dropout of this view alone (SCD's two rates, https://arxiv.org/abs/2203.07847; there 0.05 and
    0.15); costs a forward pass a view."""

    @model_validator(mode="after")
    def _one_place(self) -> ViewConfig:
        if self.template is not None and self.template.count("{}") != 1:
            raise ValueError(f"template: {self.template!r} needs {{}} once, in the text's place")
        if any("\ud800" <= character <= "\udfff" for character in self.template or ""):
            raise ValueError(f"template: {self.template!r} is not valid Unicode text")
        return self


class TemperatureConfig(_Section):
    """The number that divides cosine similarities: fixed, scheduled, or learned."""

    start: Temperature = 0.05
    schedule: Literal["fixed", "linear", "cosine", "learnable"] = "fixed"
    """``linear`` and ``cosine`` go from ``start`` to ``end`` over the run; ``learnable`` is a
    parameter (its logarithm), kept between ``minimum`` and ``maximum``."""
    end: Temperature | None = None
    minimum: Temperature = 0.01
    maximum: Temperature = 1.0

    @model_validator(mode="after")
    def _complete(self) -> TemperatureConfig:
        scheduled = self.schedule in ("linear", "cosine")
        if scheduled != (self.end is not None):
            raise ValueError(
                f"schedule {self.schedule} needs an end"
                if scheduled
                else f"end has no meaning with schedule {self.schedule}; use linear or cosine"
            )
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        if self.schedule == "learnable" and not self.minimum <= self.start <= self.maximum:
            raise ValueError(
                f"start {self.start} is not between minimum {self.minimum} and maximum "
                f"{self.maximum}"
            )
        return self


class DinoConfig(_Section):
    """Self-distillation (DINO, https://arxiv.org/abs/2104.14294).

    Defaults are DINO's but for the number of prototypes, there 65,536 for images.
    """

    prototypes: Annotated[int, Field(ge=2, le=2**20)] = 1024
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = 0.04
    center_momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.996
    """Of the teacher's weights; rises to 1 along a cosine."""

    @model_validator(mode="after")
    def _teacher_is_sharper(self) -> DinoConfig:
        if self.teacher_temperature > self.student_temperature:
            raise ValueError(
                f"teacher_temperature {self.teacher_temperature} is above student_temperature "
                f"{self.student_temperature}: the teacher must be the sharper one, or all collapses"
            )
        return self


class ObjectiveConfig(_Section):
    """What embeddings are trained for: a weighted sum of terms, usually one."""

    terms: Annotated[
        dict[TermName, Annotated[Number, Field(ge=0)]], BeforeValidator(_weighted_terms)
    ] = Field(default={"info_nce": 1.0}, min_length=1)
    """One name, or a list such as ``[{info_nce: 1.0}, {mlm: 0.1}]``. ``objective: info_nce`` is
    short for ``objective: {terms: info_nce}``, on the command line too."""
    temperature: Annotated[TemperatureConfig, BeforeValidator(temperature_from_number)] = (
        TemperatureConfig()
    )
    """A number, or a section. Where a config with ``clip`` names none it is CLIP's: learnable from
    0.07."""
    hard_negative_weight: PositiveNumber = 1.0
    """How much an anchor's own hard negatives count (SimCSE's α; the logit gains ln α)."""
    mask_identical: bool = True
    """Leave out negatives with the text or the label of the anchor or of its positive; ``sup_con``
    goes by labels alone."""
    mlm_probability: Annotated[Number, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that the term ``mlm`` hides and asks for: in every column of a row, as
    princeton-nlp/SimCSE does, and in the texts as they are, without what ``views`` does to them."""
    dino: DinoConfig = DinoConfig()
    teacher: PathText | None = None
    """For ``distill_l2`` and ``distill_similarity``: any sentence-transformers model."""
    teacher_revision: str | None = None
    """Branch, tag or commit of a Hub teacher."""
    teacher_temperature: Temperature = 0.05
    """Of the teacher's similarities in ``distill_similarity``."""

    @model_validator(mode="before")
    @classmethod
    def _clip_learns(cls, values: Any) -> Any:
        terms = _weighted_terms(values.get("terms")) if isinstance(values, dict) else None
        if isinstance(terms, dict) and "clip" in terms and "temperature" not in values:
            return {**values, "temperature": {"start": 0.07, "schedule": "learnable"}}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ObjectiveConfig:
        if sum(self.terms.values()) == 0:
            raise ValueError("terms: the weights sum to 0")
        distilled = [name for name in self.terms if name.startswith("distill")]
        if bool(distilled) != (self.teacher is not None):
            raise ValueError(
                f"{distilled[0]} needs a teacher"
                if distilled
                else "teacher has no meaning without distill_l2 or distill_similarity"
            )
        return self


class TrainingConfig(_Section):
    """The optimisation: AdamW with linear decay to zero."""

    batch_size: Count = 64
    """Rows a step, each contrasted with the others; with ``data.form=labelled`` half as many
    pairs."""
    mini_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Gradient caching: texts embedded at a time, for batches larger than memory; same gradients,
    about a third more time."""
    activation_checkpointing: bool = False
    """Compute the activations of each layer again in the backward pass instead of keeping them:
    less memory, the same gradients, about a third more time."""
    batching: Literal["random", "length_grouped"] = "length_grouped"
    """``length_grouped`` fills a batch with sentences of similar length (docs/studies/length.md),
    less closely after the first epoch, so that batches do not repeat (docs/performance.md)."""
    epochs: Annotated[PositiveNumber, Field(le=1_000_000)] = 1.0
    steps: Count | None = None
    """Optimiser steps; when given it replaces ``epochs``."""
    learning_rate: PositiveNumber = 3e-5
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the steps with linearly rising learning rate."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[Number, Field(ge=0)] = 1.0
    """Gradient norm is clipped to this; 0 turns clipping off."""
    precision: Precision = "float32"
    """Mixed precision of the forward pass; weights stay float32."""
    cpu_kernels: bool = True
    """On a CPU, draw dropout faster than PyTorch does; and with CLS pooling, on any device, leave
    out of the last layer what only other tokens need (docs/performance.md). ``false`` turns both
    off: the same results but for rounding, with other random numbers for dropout."""
    sharding: Literal["none", "full"] = "none"
    """Of several processes each holds the whole encoder (``none``: DistributedDataParallel), or a
    share of its weights, gradients and optimiser state, for encoders that do not fit (``full``:
    FSDP2)."""
    log_every: Count = 10
    """Steps between two lines of the log."""
    keep_checkpoints: Count = 2
    """At least this many of the newest checkpoints are kept while training, and the best one."""
    report_to: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Trackers of accelerate, such as ``tensorboard``, ``wandb``, ``trackio``, ``mlflow``."""


class EvaluationConfig(_Section):
    """What is measured, on what, and when."""

    data: PathText | None = None
    """Folder in SentEval's layout (it holds ``STS/`` and ``SICK/``), for the STS tasks."""
    dev: DevTaskName = "pairs"
    """Chooses the best checkpoint: the embedded pairs, retrieval on the docstrings' dev modules, or
    the dev part of STS-B."""
    every: Count = 250
    """Steps between two dev scores, each with a checkpoint."""
    tasks: Annotated[list[TaskName], BeforeValidator(_task_list)] = ["pairs"]
    """Scored before and after training, with the best checkpoint; none of them chooses anything."""
    raw_poolings: Annotated[list[Pooling], BeforeValidator(_list_from_one)] = [
        "cls", "mean", "avg_first_last",
    ]  # fmt: skip
    """Poolings of the untrained encoder to score for comparison; ``[]`` skips it. A
    sentence-transformers model is scored once, as it encodes by itself (``own``)."""
    batch_size: Count = 128

    @model_validator(mode="after")
    def _folder_given(self) -> EvaluationConfig:
        sts = [t for t in (*self.tasks, self.dev) if t not in ("pairs", "docstrings")]
        if sts and self.data is None:
            raise ValueError(
                f"{', '.join(dict.fromkeys(sts))} needs data=FOLDER, a folder in SentEval's layout"
            )
        return self


HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$", max_length=64)]


class HubConfig(_Section):
    """What the Hugging Face Hub is told; nothing here changes the model.

    A token is never a setting: it comes from ``HF_TOKEN`` or from ``hf auth login``.
    """

    push_checkpoints: Annotated[str, Field(pattern=HUB_NAME)] | None = None
    """``user/name`` of a private repository whose branch ``checkpoints`` gets the model with every
    checkpoint; training goes on when the Hub does not answer."""
    license: HubId | None = None
    """Licence of the weights, such as ``apache-2.0``, for the model card."""
    data_license: str | None = None
    """Licence of the training text, for the model card."""
    language: Annotated[list[HubId], BeforeValidator(_list_from_one)] = []
    """ISO 639 codes of the text, for the model card."""
    widget: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Sentences of your own for the widget of the model's page: the first is compared with the
    others. Training sentences are never taken."""

    @model_validator(mode="after")
    def _widget_compares(self) -> HubConfig:
        if len(self.widget) == 1:
            raise ValueError("widget: needs two sentences or more, the first is compared with them")
        return self


class Config(_Section):
    """One training run; every field has a default, so an empty file is a valid config."""

    output: PathText | None = None
    """Run folder; ``null`` means ``outputs/<name of the config file>``."""
    seed: Seed = 42
    """Seed of weights that are new, dropout, batches and row sampling."""
    seeds: Annotated[list[Seed], BeforeValidator(_seed_list)] = []
    """Several seeds, such as ``seeds=0,1,2``: a run each in ``<output>/seed-<n>``, and their mean,
    spread and interval in ``<output>/summary.json``; takes the place of ``seed``."""
    encoder: EncoderConfig = EncoderConfig()
    data: DataConfig = DataConfig()
    views: Annotated[list[ViewConfig], Field(min_length=2, max_length=2)] = [
        ViewConfig(), ViewConfig(),
    ]  # fmt: skip
    """The two views of a sentence; for pairs the first is of anchors, the second of all others."""
    objective: Annotated[ObjectiveConfig, BeforeValidator(objective_from_terms)] = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    hub: HubConfig = HubConfig()

    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted key, in declaration order."""
        return dict(_leaves(self.model_dump()))

    @model_validator(mode="after")
    def _negatives_exist(self) -> Config:
        if self.training.batch_size < 2:
            raise ValueError(
                "training.batch_size: 1 leaves no in-batch negatives, so the loss is always 0; "
                "allowed is 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _terms_fit_the_data(self) -> Config:
        form, terms = self.data.form, self.objective.terms
        if self.encoder.towers == "two" and (form != "pairs" or {"mlm", "dino"} & set(terms)):
            raise ValueError("encoder.towers: two needs data.form=pairs, and no term mlm or dino")
        if "sup_con" in terms and form != "labelled":
            raise ValueError(f"objective.terms: sup_con needs data.form=labelled, got {form}")
        if self.objective.teacher is not None and form != "sentences":
            raise ValueError(f"objective.teacher needs data.form=sentences, got {form}")
        if self.objective.teacher is not None and self.data.duplicates == "keep":
            raise ValueError("objective.teacher needs data.duplicates=drop, got keep")
        if form == "labelled" and self.training.batch_size % 2:
            raise ValueError("training.batch_size must be even with data.form=labelled")
        if form == "labelled" and self.training.batch_size < 4:
            raise ValueError(
                "training.batch_size: 2 rows are one labelled pair, which leaves no in-batch "
                "negatives; allowed is 4 or more"
            )
        if "distill_similarity" in terms and self.training.batch_size < 3:
            raise ValueError(
                "training.batch_size: distill_similarity ranks the others of a batch; allowed is 3 "
                "or more"
            )
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Config:
        if repeated := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise ValueError(f"seeds: {repeated[0]} is given twice; a seed counts once")
        return self


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
