"""Typed, frozen, validated configuration of a training run.

A run is described by one YAML file (see ``configs/``) plus ``key=value`` overrides. Every mistake
is reported at once, each with its dotted path; nothing heavier than pydantic and PyYAML is
imported here, so that a typing error is answered at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from simcse.errors import UserError, first_line

# The clone keeps the configs beside the package, a wheel carries them inside it.
CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")

Pooling = Literal["cls", "mean", "avg_first_last"]
TaskName = Literal[
    "pairs", "docstrings",
    "STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "STSB-dev", "SICK-R",
    "MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC",
]  # fmt: skip
DevTaskName = Literal["pairs", "docstrings", "STSB"]
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


def _without_tilde(value: str) -> str:
    return str(Path(value).expanduser()) if value.startswith("~") else value


def _task_list(value: object) -> object:
    value = _list_from_one(value)
    return [TASK_ALIASES.get(str(n), n) for n in value] if isinstance(value, list) else value


def _seed_list(value: object) -> object:
    if isinstance(value, str):  # seeds=0,1,2
        words = [word.strip() for word in value.split(",")]
        return [int(word) if word.isdecimal() else word for word in words]
    return [value] if isinstance(value, int) else value


Seed = Annotated[int, Field(ge=0, lt=2**32)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_without_tilde)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EncoderConfig(_Section):
    """Which pre-trained encoder, and how its token states become one sentence embedding."""

    name: PathText = "mini-bert"
    """Hugging Face name or local folder; ``mini-bert`` is the encoder shipped with the package."""
    revision: str | None = None
    """Branch, tag or commit of a Hub encoder."""
    trust_remote_code: bool = False
    """Let the Hub repository run code of its own on this machine."""
    pooling: Pooling = "mean"
    """``cls`` is the first position of the last layer, ``avg_first_last`` the mean over tokens of
    the average of the first and the last layer."""
    projection: Literal["none", "train_only", "always"] = "none"
    """A dense layer with tanh after pooling: left out, used by the loss only and dropped from the
    exported model (SimCSE's ``mlp_only_train``), or part of the exported model."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Overrides every dropout probability of the encoder; ``null`` keeps its own."""


class DataConfig(_Section):
    """Training text: one sentence a row."""

    train: Annotated[list[PathText], BeforeValidator(_list_from_one)] = Field(
        default=["docstrings"], min_length=1
    )
    """``docstrings`` (sentences of the installed Python packages), files or globs of txt, csv, tsv,
    jsonl or parquet (also .gz), or one Hub data set by name."""
    column: str | None = None
    """Column that holds the text; needed where a table has more than one."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    max_rows: Annotated[int, Field(gt=0)] | None = None
    """Train on this many rows, drawn once with ``seed``; ``null`` takes all."""
    max_length: Annotated[int, Field(ge=3)] = 32
    """Longest training input in tokens, special tokens included; encoding is not bound by it."""
    cache: PathText | None = None
    """Folder of the tokenised text; ``null`` uses the user's cache folder."""


class ObjectiveConfig(_Section):
    """What the two views of a sentence are trained for."""

    name: Literal["info_nce"] = "info_nce"
    temperature: PositiveNumber = 0.05
    """Divides the cosine similarities before the softmax."""


class TrainingConfig(_Section):
    """The optimisation: AdamW with linear decay to zero."""

    batch_size: Annotated[int, Field(ge=1)] = 64
    """Sentences a step; each is contrasted with the other ``batch_size - 1``."""
    batching: Literal["random", "length_grouped"] = "random"
    """``length_grouped`` fills a batch with sentences of like length."""
    epochs: PositiveNumber = 1.0
    steps: Annotated[int, Field(gt=0)] | None = None
    """Optimiser steps; when given it replaces ``epochs``."""
    learning_rate: PositiveNumber = 3e-5
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the steps with linearly rising learning rate."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[Number, Field(ge=0)] = 1.0
    """Gradient norm is clipped to this; 0 turns clipping off."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Mixed precision of the forward pass; weights stay float32."""
    log_every: Annotated[int, Field(gt=0)] = 10
    """Steps between two lines of the log."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """At least this many of the newest checkpoints are kept while training, and the best one."""
    report_to: Annotated[list[str], BeforeValidator(_list_from_one)] = []
    """Trackers of the transformers Trainer, such as ``tensorboard``, ``wandb``, ``trackio``."""


class EvaluationConfig(_Section):
    """What is measured, on what, and when."""

    data: PathText | None = None
    """Folder in SentEval's layout (it holds ``STS/`` and ``SICK/``), for the STS tasks."""
    dev: DevTaskName = "pairs"
    """Chooses the best checkpoint: the embedded pairs, retrieval on the docstrings' dev modules, or
    the dev part of STS-B."""
    every: Annotated[int, Field(gt=0)] = 250
    """Steps between two dev scores, each with a checkpoint."""
    tasks: Annotated[list[TaskName], BeforeValidator(_task_list)] = ["pairs"]
    """Scored before and after training, with the best checkpoint; none of them chooses anything."""
    raw_poolings: Annotated[list[Pooling], BeforeValidator(_list_from_one)] = [
        "cls", "mean", "avg_first_last",
    ]  # fmt: skip
    """Poolings of the untrained encoder to score for comparison; ``[]`` skips it."""
    batch_size: Annotated[int, Field(gt=0)] = 128

    @model_validator(mode="after")
    def _folder_given(self) -> EvaluationConfig:
        sts = [t for t in (*self.tasks, self.dev) if t not in ("pairs", "docstrings")]
        if sts and self.data is None:
            raise ValueError(
                f"{', '.join(dict.fromkeys(sts))} needs data=FOLDER, a folder in SentEval's layout"
            )
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
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

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
    def _seeds_differ(self) -> Config:
        if repeated := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise ValueError(f"seeds: {repeated[0]} is given twice; a seed counts once")
        return self


def config_names() -> list[str]:
    """Names of the configs that come with the project, such as ``quickstart``."""
    return sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")})


def find_config(name_or_path: str) -> Path:
    """Find a config by path, or by the bare name of one that comes with the project.

    Raises:
        UserError: There is no such file; the message lists the names that exist.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    # `configs/quickstart.yaml` works from an installed wheel too, where no such folder exists.
    shipped_form = path.parent in (Path(), Path("configs")) and path.suffix in ("", ".yaml")
    for folder in CONFIG_FOLDERS if shipped_form else ():
        if (shipped := folder / f"{path.stem}.yaml").is_file():
            return shipped
    raise UserError(f"config {name_or_path}: no such file; shipped are {', '.join(config_names())}")


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config, apply ``key=value`` overrides and validate the result.

    Args:
        name_or_path: A YAML file, or the bare name of a shipped config.
        overrides: Items such as ``training.learning_rate=5e-5``; the value is read as YAML, a
            leading ``--`` is ignored.

    Raises:
        UserError: Unreadable YAML, unknown keys (with the nearest valid ones), wrong types or
            values out of range; one line names every problem.
    """
    path = find_config(name_or_path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise UserError(
            f"{_yaml_place(path, error)}: not valid YAML: {_yaml_problem(error)}"
        ) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    return validate(values, where=str(path), default_output=f"outputs/{path.stem}")


def validate(values: Any, where: str, default_output: str | None = None) -> Config:
    """Check plain values against :class:`Config`; ``where`` names them in the error line."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of settings, found {type(values).__name__}")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problems(error))
        raise UserError(f"{where}: {problems}") from error
    if config.output is None and default_output is not None:
        config = config.model_copy(update={"output": default_output})
    return config


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, every field written out, keys in declaration order."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def differences(old: Config, new: Config) -> list[str]:
    """Lines ``key: old -> new`` for every setting in which two configs differ."""
    before, after = old.settings(), new.settings()
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def json_schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors that complete and check YAML."""
    return Config.model_json_schema()


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals or not key:
        raise UserError(
            f"argument {override!r}: expected key=value, such as training.batch_size=128"
        )
    value = _override_value(key, text)
    *sections, leaf = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"argument {key}: {section} is a value, not a section")
        values = inner
    values[leaf] = value


def _override_value(key: str, text: str) -> object:
    """Numbers, true, false, null, quoted text and [lists] as in YAML; other text as it stands.

    So ``*.txt``, ``a: b`` and ``x #1`` keep the meaning they have as names of files.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        if text.lstrip().startswith(("[", "{", "'", '"')):
            problem = _yaml_problem(error)
            raise UserError(f"argument {key}: not valid YAML: {problem}") from error
        return text
    marked = text.lstrip().startswith(("[", "'", '"'))
    return value if marked or value is None or isinstance(value, bool | int | float) else text


def _problems(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            yield f"{place}: unknown key{_nearest(item['loc'])}"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            yield f"{place}: {message}" if place else message
        else:
            yield f"{place}: {_rule(item['msg'])}, got {item['input']!r}"


def _rule(message: str) -> str:
    message = re.sub(r" or instance of \w+$", "", message.replace("Input should", "should"))
    return message[0].lower() + message[1:]


def _nearest(location: tuple[int | str, ...]) -> str:
    section: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    names = list(section.model_fields)
    near = difflib.get_close_matches(str(location[-1]), names, n=2, cutoff=0.5)
    if near:
        return f" (did you mean {' or '.join(near)}?)"
    everywhere = list(Config().settings())
    elsewhere = [key for key in everywhere if key.rpartition(".")[2] == location[-1]]
    return f" (did you mean {elsewhere[0]}?)" if elsewhere else f" (allowed: {', '.join(names)})"


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _yaml_place(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def _yaml_problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or first_line(error)
