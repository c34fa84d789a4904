"""The model card, written from a run folder alone: nothing is downloaded, no training text read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined
from sentence_transformers import SentenceTransformer

from simcse import encoder
from simcse.encoder import EMBEDDED_ENCODER
from simcse.evaluation.hub_results import is_commit, model_index
from simcse.evaluation.names import MTEB, STS
from simcse.evaluation.protocol import PROTOCOL, Scores
from simcse.evaluation.statistics import summarize
from simcse.evaluation.table import LABELS, cell, collapse_lines, shown_scores, task_label
from simcse.plots import Picture
from simcse.readers import EMBEDDED_TEXT, hub_repository
from simcse.run import ENVIRONMENT_FILE
from simcse.runs import SCORES_FILE, Run, RunSet, read_json
from simcse.seeds import best_by_dev, summary_cells
from simcse.settings import Config

_ASSETS = Path(__file__).parent / "assets"
_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "simcse"]
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Published:
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

    @property
    def run(self) -> Run:
        """The run whose weights these are: the only one, or the best seed by dev."""
        return best_by_dev(self.runs)


def model_card(published: Published) -> ModelCard:
    """Metadata and text; huggingface_hub has parsed the result."""
    config, model = published.config, published.model
    environment = read_json(published.run.folder / ENVIRONMENT_FILE, "libraries", "text")
    dense = [i for i, m in enumerate(model) if type(m).__name__ == "Dense"]
    template = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,
    ).from_string((_ASSETS / "card.md").read_text(encoding="utf-8"))
    text = template.render(
        card_data=_metadata(published, environment).to_yaml(),
        name=published.name,
        base=_base(config, environment),
        data=_data(config),
        width=encoder.width(model),
        max_length=model.max_seq_length,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        pooling=config.encoder.pooling,
        pooling_words=f"{config.encoder.pooling} pooling"
        + (", then a dense layer with tanh" if config.encoder.projection == "always" else ""),
        dense=f"{dense[0]}_Dense" if dense else None,
        towers=config.encoder.towers == "two",
        score_note=_score_note(published),
        score_table=_markdown(_score_rows(published)),
        warnings=collapse_lines({"this model": published.run.scores}),
        protocol=PROTOCOL,
        mteb_note=_mteb_note(published.scored_later),
        pictures=published.pictures,
        facts=list(_facts(published, environment)),
        terms=list(_terms(config, environment)),
        config=yaml.safe_dump(without_folders(config), sort_keys=False, allow_unicode=True),
        limitations=list(_limitations(published)),
    )
    return ModelCard(text)


def without_folders(config: Config) -> dict[str, Any]:
    """Every setting that made the model; files without their folders, which tell of a machine."""
    values: dict[str, Any] = config.model_dump(exclude={"output", "seeds", "hub"})
    values["data"]["train"] = [_file_or_hub_name(name) for name in config.data.train]
    del values["data"]["cache"]
    for section, key in (("evaluation", "data"), ("encoder", "name"), ("objective", "teacher")):
        if values[section][key] is not None:
            values[section][key] = _without_folder(values[section][key])
    return values


def _metadata(published: Published, environment: dict[str, Any]) -> ModelCardData:
    config = published.config
    datasets = [name for entry in config.data.train if (name := hub_repository(entry))]
    extra: dict[str, Any] = {}
    if config.hub.widget:
        first, *others = config.hub.widget
        extra["widget"] = [{"source_sentence": first, "sentences": others}]
    return ModelCardData(
        language=config.hub.language or None,
        license=config.hub.license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*_TAGS, f"loss:{'+'.join(config.objective.terms)}"],
        base_model=config.encoder.name if environment.get("encoder_commit") else None,
        datasets=datasets or None,
        model_name=published.name.rpartition("/")[2],
        eval_results=model_index({**published.run.scores, **published.scored_later}),
        **extra,
    )


def _base(config: Config, environment: dict[str, Any]) -> str:
    name = config.encoder.name
    if name == EMBEDDED_ENCODER:
        return "mini-bert, the small encoder that comes with simcse-trainer (CC BY-SA 4.0),"
    if commit := environment.get("encoder_commit"):
        return f"[{name}]({_HUB}/{name}/tree/{commit})"
    return _without_folder(name)


def _data(config: Config) -> str:
    return ", ".join(
        f"[{entry}]({_HUB}/datasets/{repository})"
        if (repository := hub_repository(entry))
        else "the docstrings of Python packages"
        if entry == EMBEDDED_TEXT
        else _without_folder(entry)
        for entry in config.data.train
    )


def _file_or_hub_name(entry: str) -> str:
    return entry if hub_repository(entry) else _without_folder(entry)


def _without_folder(name: str) -> str:
    """The last part of a path; a name with at most one slash may be of the Hub and stays."""
    return name if name.count("/") <= 1 and not name.startswith((".", "/")) else Path(name).name


def _score_note(published: Published) -> str:
    runs, dev = published.runs.runs, published.run.dev or {}
    chosen = (
        f"The checkpoint was chosen on {dev['task']}"
        f" ({LABELS[dev['metric']]} {cell(dev['metric'], dev['best'])}); "
        "the scores below chose nothing."
    )
    if len(runs) == 1:
        return (
            f"{chosen} One seed ({published.config.seed}), so there is no interval: what another "
            "seed would give is not known. Spearman, recall and accuracy ×100; ↓ lower is better."
        )
    seeds = ", ".join(str(run.config.seed) for run in runs if run.config)
    return (
        f"{chosen} The weights here are the best by that dev score of {len(runs)} seeds ({seeds}): "
        f"seed {published.run.config.seed if published.run.config else ''}. What a run gives is "
        "the last column: mean ± standard deviation over the seeds [95% interval of the mean]. "
        "Spearman, recall and accuracy ×100; ↓ lower is better."
    )


def _score_rows(published: Published) -> list[list[str]]:
    run, several = published.run, len(published.runs.runs) > 1
    head = ["task", "score", *(f"untrained, {pooling}" for pooling in run.raw), "**this model**"]
    rows = [head + [f"{len(published.runs.runs)} seeds"] * several]
    for task, key in shown_scores({**run.scores, **published.scored_later}):
        values = run.scores.get(task) or published.scored_later[task]
        raw = [scores.get(task, {}).get(key) for scores in run.raw.values()]
        row = [task_label(task, values), LABELS[key]]
        row += ["" if value is None else cell(key, value) for value in raw]
        row.append(f"**{cell(key, values[key])}**")
        if several:
            found = published.runs.values(task, key)
            mean, _, interval = summary_cells(key, summarize(found)) if found else ("", "", "")
            row.append(f"{mean} [{interval}]" if found else "")
        rows.append(row)
    return rows


def _markdown(rows: list[list[str]]) -> str:
    rule = ["---", "---", *["---:"] * (len(rows[0]) - 2)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def _mteb_note(scores: Scores) -> str | None:
    named = {
        task.removeprefix(MTEB): str(values["dataset"])
        for task, values in scores.items()
        if task.startswith(MTEB) and "dataset" in values
    }
    pinned = [f"{k} ({v})" for k, v in named.items() if is_commit(v.rpartition(" ")[2])]
    return f"Unmodified tasks of mteb: {', '.join(pinned)}." if pinned else None


def _facts(published: Published, environment: dict[str, Any]) -> Iterator[tuple[str, str]]:
    config, text = published.config, environment["text"]
    dev = published.run.dev or {}
    yield "base model", _base(config, environment).rstrip(",")
    licence = f", licence: {config.hub.data_license}" if config.hub.data_license else ""
    yield "training text", f"{_data(config)}{licence}"
    yield "rows", f"{text['rows']:,} (SHA-256 of the text read: `{text['counts']['sha256']}`)"
    training = config.training
    yield (
        "steps",
        f"{dev['steps']:,} of {training.batch_size} rows; the checkpoint is step "
        + (f"{dev['best_step']:,}"),
    )
    minutes = read_json(published.run.folder / SCORES_FILE).get("minutes")
    device = f"{environment['device']}, {environment['threads']} threads"
    yield "hardware", device if "cpu" in device.lower() else device.replace("x86_64", "x86-64 CPU")
    yield (
        "duration",
        (f"{minutes:.1f} minutes, dev scores included" if minutes else "not known: it was resumed"),
    )
    libraries = ", ".join(f"{name} {v}" for name, v in environment["libraries"].items())
    yield "software", f"simcse-trainer {environment['simcse']}, {libraries}"
    if commit := environment.get("commit"):
        yield "source", f"commit `{commit}`"


def _terms(config: Config, environment: dict[str, Any]) -> Iterator[dict[str, Any]]:
    known = yaml.safe_load((_ASSETS / "objectives.yaml").read_text(encoding="utf-8"))
    columns = environment["text"]["counts"]["texts"] / max(environment["text"]["counts"]["rows"], 1)
    for name, weight in config.objective.terms.items():
        about = known[name]
        hard = columns > 2 and "with_hard_negatives" in about
        formula = about["with_hard_negatives" if hard else "formula"]
        yield {"name": name, "weight": weight, "formula": formula, "source": about["source"]}


def _limitations(published: Published) -> Iterator[str]:
    config, model = published.config, published.model
    limit = model.max_seq_length
    yield (
        f"It was trained on texts of at most {config.data.max_length} tokens"
        + (
            f"; it reads up to {limit}, beyond its training"
            if limit != config.data.max_length
            else ""
        )
        + "."
    )
    languages = ", ".join(config.hub.language)
    yield (
        f"Language of the training text: {languages}; others were not tried."
        if languages
        else "The language of the training text is not stated."
    )
    if EMBEDDED_TEXT in config.data.train:
        yield "Docstrings are technical English; it has seen no other text since its pre-training."
    if not set(STS) & {task.removeprefix(MTEB) for task in published.run.scores}:
        yield "It was not scored on the STS tasks, so it cannot be compared with published models."
    if len(published.runs.runs) == 1:
        yield "One seed was run; scores of such models differ between seeds by a point or so."
    yield (
        "A high cosine similarity says that two texts are about the same, not that one follows "
        "from the other; opposites can be similar."
    )
    yield "What it has taken over from the text of its training, bias too, was not examined."
