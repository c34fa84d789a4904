"""The model card, written from a run folder alone: nothing is downloaded, no training text read."""

from __future__ import annotations

from typing import Any, get_args

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling as AnyPooling
from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling
from torch import nn

from simcse.config.settings import Pooling
from simcse.encoders import encoder
from simcse.evaluation.hub_results import is_commit, model_index
from simcse.evaluation.names import MTEB
from simcse.evaluation.protocol import PROTOCOL, Scores
from simcse.evaluation.statistics import summarize
from simcse.evaluation.table import LABELS, cell, collapse_lines, shown_scores, task_label
from simcse.publishing.card_facts import (
    ASSETS,
    Published,
    base_model,
    facts,
    languages,
    licence,
    limitations,
    temperature,
    terms,
    training_text,
    without_folders,
)
from simcse.publishing.markdown import Markdown, fenced
from simcse.reports.records import MadeFrom
from simcse.reports.runs import ENVIRONMENT_FILE, read_json
from simcse.reports.summary import summary_cells

_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "simcse"]
_DENSE = "a dense layer with tanh"
_PAIRS = "; pairs: 252 sentence pairs, written and graded for simcse-trainer"


def model_card(published: Published) -> ModelCard:
    """Metadata and text; huggingface_hub has parsed the result."""
    config, model = published.config, published.model
    environment = read_json(published.run.folder / ENVIRONMENT_FILE, MadeFrom)
    pooling, later = encoder.pooling_of(model), _after_pooling(model)
    template = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=Markdown.escape,  # whatever is not marked as Markdown of ours
    ).from_string((ASSETS / "card.md").read_text(encoding="utf-8"))
    text = template.render(
        card_data=Markdown(_metadata(published, environment).to_yaml()),
        name=published.name,
        base=base_model(config, environment),
        data=training_text(config, environment),
        width=model.get_embedding_dimension(),
        max_length=model.max_seq_length,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        pooling=pooling,
        pooling_words=", then ".join([f"{pooling} pooling", *later]),
        dense=f"{len(model) - 1}_Dense" if later else None,
        # What the example for transformers alone can say in a few lines.
        plain=pooling in get_args(Pooling)
        and later in ([], [_DENSE])
        and (model.default_prompt_name, model.truncate_dim) == (None, None)
        and (not later or isinstance(model[-1], Dense)),
        towers=config.encoder.towers == "two",
        score_note=_score_note(published),
        score_table=_table(_score_rows(published)),
        warnings=collapse_lines({"this model": published.run.scores}),
        protocol=PROTOCOL + (_PAIRS if "pairs" in published.run.scores else ""),
        mteb_note=_mteb_note(published.scored_later),
        pictures=published.pictures,
        facts=list(facts(published, environment)),
        terms=list(terms(config, environment)),
        temperature=temperature(config),
        config=fenced(
            yaml.safe_dump(
                without_folders(config, environment), sort_keys=False, allow_unicode=True
            ),
            "yaml",
        ),
        limitations=list(limitations(published)),
    )
    return ModelCard(text)


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


def _metadata(published: Published, environment: dict[str, Any]) -> ModelCardData:
    config = published.config
    from_hub = [entry for entry in config.data.train if entry in environment["from_hub"]]
    datasets = [entry.partition(":")[0] for entry in from_hub]
    extra: dict[str, Any] = {}
    if config.hub.widget:
        first, *others = config.hub.widget
        extra["widget"] = [{"source_sentence": first, "sentences": others}]
    return ModelCardData(
        language=languages(config) or None,
        license=licence(config),
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*_TAGS, f"loss:{'+'.join(config.objective.terms)}"],
        base_model=config.encoder.name if environment["encoder_commit"] else None,
        datasets=datasets or None,
        model_name=published.name.rpartition("/")[2],
        eval_results=model_index({**published.scored_later, **published.run.scores}),
        **extra,
    )


def _score_note(published: Published) -> str:
    runs, dev = published.runs.runs, published.run.dev or {}
    shown = dev["task"] in published.run.scores
    chosen = (
        f"The checkpoint was chosen on {dev['task']}"
        f" ({LABELS[dev['metric']]} {cell(dev['metric'], dev['best'])}); "
        + (f"of the scores below only {dev['task']} did." if shown else "none of those below did.")
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
        "the mean over the seeds, with its standard deviation and interval. "
        "Spearman, recall and accuracy ×100; ↓ lower is better."
    )


def _score_rows(published: Published) -> list[list[str]]:
    run, several = published.run, len(published.runs.runs) > 1
    head = ["task", "score", *(f"untrained, {pooling}" for pooling in run.raw)]
    head.append(Markdown("**this model**"))
    if several:
        head += [f"mean ± std of {len(published.runs.runs)} seeds", "95% interval of the mean"]
    rows = [head]
    for task, key in shown_scores({**run.scores, **published.scored_later}):
        values = run.scores.get(task) or published.scored_later[task]
        raw = [scores.get(task, {}).get(key) for scores in run.raw.values()]
        row = [task_label(task, values), LABELS[key]]
        row += ["" if value is None else cell(key, value) for value in raw]
        row.append(Markdown("**{}**").format(cell(key, values[key])))
        if several:
            found = published.runs.values(task, key)
            row += summary_cells(key, summarize(found))[::2] if found else ["", ""]
        rows.append(row)
    return rows


def _table(rows: list[list[str]]) -> Markdown:
    rule = "| --- | --- |" + " ---: |" * (len(rows[0]) - 2)
    head, *lines = (Markdown("| {} |").format(Markdown(" | ").join(row)) for row in rows)
    return Markdown("\n").join([head, Markdown(rule), *lines])


def _mteb_note(scores: Scores) -> str | None:
    named = {
        task.removeprefix(MTEB): str(values["dataset"])
        for task, values in scores.items()
        if task.startswith(MTEB) and "dataset" in values
    }
    pinned = [f"{k} ({v})" for k, v in named.items() if is_commit(v.rpartition(" ")[2])]
    return f"Unmodified tasks of mteb: {', '.join(pinned)}." if pinned else None
