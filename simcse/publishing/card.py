"""The model card, written from a run folder alone: nothing is downloaded, no training text read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling as AnyPooling
from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling
from torch import nn

from simcse.config.settings import EMBEDDED_TEXT, Config
from simcse.encoders import encoder
from simcse.encoders.encoder import EMBEDDED
from simcse.evaluation.hub_results import is_commit, model_index
from simcse.evaluation.names import MTEB, MTEB_STS, STS
from simcse.evaluation.protocol import PROTOCOL, Scores
from simcse.evaluation.table import collapse_lines
from simcse.objectives.terms import SHIPPED
from simcse.reports.markdown import Markdown, fenced
from simcse.reports.plots import Picture
from simcse.reports.records import MadeFrom, RunScores
from simcse.reports.runs import ENVIRONMENT_FILE, SCORES_FILE, Run, RunSet, read_json
from simcse.reports.tables import (
    Column,
    Rows,
    as_markdown,
    column_of,
    references,
    retention_rows,
    score_rows,
    what_chose,
)

ASSETS = Path(__file__).parent.parent / "assets"
_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "simcse"]
_PLAIN_NAME = re.compile(r"(?!-)[\w./-]+", re.ASCII)  # which a shell takes as it is
_DENSE = "a dense layer with tanh"
_PLAIN = ("cls", "mean", "avg_first_last")  # poolings of a line or two
_PAIRS = "; pairs: 252 sentence pairs, written and graded for simcse-trainer"


@dataclass(frozen=True)
class TrainedModel:
    """What a card describes."""

    name: str
    """``user/name``."""
    runs: RunSet
    config: Config
    model: SentenceTransformer
    """Of :attr:`run`, as it is published."""
    scored_later: Scores
    """Of the same weights, by ``simcse evaluate``; empty where there are none."""
    pictures: Sequence[Picture]
    dims: int | None = None
    """What its embeddings were cut to when it was exported, after it was scored."""
    adapter: bool = False
    """Only adapters are published, which name the model they belong to."""

    @property
    def run(self) -> Run:
        """The run whose weights these are: the only one, or the best seed by dev."""
        return self.runs.best

    @property
    def scores(self) -> Scores:
        """Of this model as it was trained; with :attr:`dims` it is published as another."""
        return {**self.scored_later, **self.run.scores}


def model_card(trained: TrainedModel) -> ModelCard:
    """Metadata and text; huggingface_hub has parsed the result."""
    config, model, run = trained.config, trained.model, trained.run
    made_from = read_json(run.folder / ENVIRONMENT_FILE, MadeFrom)
    pooling, later = encoder.pooling_of(model), _after_pooling(model)
    settings = without_folders(config, made_from)
    prompts = {role: prompt for role, prompt in model.prompts.items() if prompt}
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=True,
        finalize=Markdown.escape,  # whatever is not marked as our own Markdown
    )
    environment.filters["file_name"] = lambda name: Path(name).name
    text = environment.from_string((ASSETS / "card.md").read_text(encoding="utf-8")).render(
        card_data=Markdown(_metadata(trained, made_from).to_yaml()),
        name=trained.name,
        # A name without a user is that of a folder, and could be a model's on the Hub.
        load=trained.name if "/" in trained.name else f"./{trained.name}",
        base_model=_base_model(config, made_from),
        config=config,
        run=run,
        runs=trained.runs.runs,
        made_from=made_from,
        embedded=EMBEDDED,
        embedded_text=EMBEDDED_TEXT,
        entries=_entries(config),
        language=_languages(config),
        width=model.get_embedding_dimension(),
        max_length=model.max_seq_length,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        pooling=pooling,
        pooling_words=", then ".join([f"{pooling} pooling", *later]),
        dense=f"{len(model) - 1}_Dense" if later else None,
        # What the example for transformers alone can say in a few lines.
        adapter=trained.adapter,
        plain=pooling in _PLAIN
        and not trained.adapter
        and later in ([], [_DENSE])
        and (prompts, model.default_prompt_name, model.truncate_dim) == ({}, None, None)
        and (not later or isinstance(model[-1], Dense)),
        towers=config.encoder.towers == "two",
        prompts=prompts,
        # Poolings that servers know, and no prompt for them to add.
        served=pooling in ("cls", "mean")
        and not (later or prompts)
        and config.encoder.towers == "one",
        shell_name=trained.name if _PLAIN_NAME.fullmatch(trained.name) else "NAME",
        score_table=as_markdown(_score_rows(trained)),
        whole_width=encoder.width(model),
        cut=trained.dims is not None,
        size_table=as_markdown(retention_rows(run.retention)) if run.retention else "",
        chosen=what_chose([RunSet(trained.name, [run])]),
        warnings=collapse_lines({"this model": run.scores}),
        protocol=PROTOCOL + (_PAIRS if "pairs" in run.scores else ""),
        mteb_data=_mteb_data(trained.scored_later),
        scored_on_sts={*run.scores, *trained.scored_later} & {*STS, *MTEB_STS},
        pictures=trained.pictures,
        minutes=read_json(run.folder / SCORES_FILE, RunScores).get("minutes"),
        terms=list(_terms(config, made_from)),
        settings=fenced(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), "yaml"),
    )
    return ModelCard(text)


def _terms(config: Config, made_from: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Name, weight, formula and source of each term of the objective."""
    hard = any(
        own.form != "documents" and text["counts"]["texts"] > 2 * text["counts"]["rows"]
        for own, text in zip(config.sets, made_from["text"], strict=False)
    )
    for name, term in config.objective.terms.items():
        values = {"name": name, "weight": term.weight, "formula": "", "source": ""}
        values |= made_from["terms"].get(name, {})
        if shipped := SHIPPED.get(name):
            longer = shipped.formula_with_hard_negatives if hard else ""
            formula = Markdown(f"`{longer or shipped.formula}`")
            values |= {"formula": formula, "source": Markdown(shipped.source)}
        yield values


def _after_pooling(model: SentenceTransformer) -> list[str]:
    """What a model does with an embedding after pooling, in words."""
    before = Router | Transformer | AnyPooling | WeightedLayerPooling
    later = [m for m in model.modules() if isinstance(m, Module) and not isinstance(m, before)]
    return [
        _DENSE
        if isinstance(module, Dense) and isinstance(module.activation_function, nn.Tanh)
        else f"the module {type(module).__name__}"
        for module in later
    ]


def _metadata(trained: TrainedModel, made_from: dict[str, Any]) -> ModelCardData:
    config = trained.config
    of_encoder = made_from.get("encoder_card", {})
    from_hub = [entry for entry in _entries(config) if entry in made_from["from_hub"]]
    datasets = [entry.partition(":")[0] for entry in from_hub]
    extra: dict[str, Any] = {}
    if config.hub.widget:
        first, *others = config.hub.widget
        extra["widget"] = [{"source_sentence": first, "sentences": others}]
    return ModelCardData(
        language=_languages(config) or None,
        license=config.hub.license or of_encoder.get("license"),
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*_TAGS, f"loss:{'+'.join(config.objective.terms)}"],
        base_model=_base_model(config, made_from),
        datasets=datasets or None,
        model_name=trained.name.rpartition("/")[2],
        eval_results=None if trained.dims else model_index(trained.scores),
        **extra,
    )


def _score_rows(trained: TrainedModel) -> Rows:
    """This model beside the untrained encoder, BM25 and, where there are several seeds, all."""
    run, widest = trained.run, encoder.width(trained.model)
    name = f"all {widest} dims" if trained.dims else "this model"
    columns = [Column(name, [trained.scores], run.changes)]
    if len(trained.runs.runs) > 1:
        columns.append(replace(column_of(trained.runs), name=f"all {len(trained.runs.runs)} seeds"))
    rows = score_rows(columns, references([(name, run.raw, run.bm25)]))
    place = rows[0].index(name)
    return [
        [Markdown("**{}**").format(text) if i == place else text for i, text in enumerate(row)]
        for row in rows
    ]


def _mteb_data(scores: Scores) -> list[str]:
    """Tasks of mteb with the data set and commit that they were scored on."""
    named = {
        task.removeprefix(MTEB): str(values["dataset"])
        for task, values in scores.items()
        if task.startswith(MTEB) and "dataset" in values
    }
    return [f"{k} ({v})" for k, v in named.items() if is_commit(v.rpartition(" ")[2])]


def _base_model(config: Config, made_from: dict[str, Any]) -> str | None:
    """The encoder's name on the Hub; of one from a folder as the config or its own card says."""
    if made_from["encoder_commit"]:
        return config.encoder.name
    of_card: str | None = made_from.get("encoder_card", {}).get("base_model")
    return config.hub.base_model or of_card


def _languages(config: Config) -> list[str]:
    """Of the training text: as the config says; the shipped documents are English."""
    if config.hub.language or {*_entries(config)} == {EMBEDDED_TEXT}:
        return config.hub.language or ["en"]
    return sorted({data.language for data in config.sets} - {"en"})  # which may not be meant


def _entries(config: Config) -> list[str]:
    """What the training text was read from, of all data sets."""
    return [entry for own in config.sets for entry in own.train]


def without_folders(config: Config, made_from: dict[str, Any]) -> dict[str, Any]:
    """Every setting that made the model; files without their folders, which tell of a machine."""
    values: dict[str, Any] = config.model_dump(exclude={"output", "seeds", "hub"})
    from_hub = made_from["from_hub"]
    for own in values["data"] if isinstance(config.data, list) else [values["data"]]:
        own["train"] = [name if name in from_hub else Path(name).name for name in own["train"]]
        del own["cache"]
    for test in (values["evaluation"]["dev"], *values["evaluation"]["tasks"]):
        if isinstance(test, dict):  # of the user's own
            test["file"] = Path(test["file"]).name
    if config.evaluation.data is not None:
        values["evaluation"]["data"] = Path(config.evaluation.data).name
    if not made_from["encoder_commit"]:
        values["encoder"]["name"] = Path(config.encoder.name).name
    for kind, (name, _) in config.objective.helpers.items():
        if name not in from_hub:
            values["objective"][kind] = Path(name).name
    return values
