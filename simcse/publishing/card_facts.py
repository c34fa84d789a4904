"""What a model card says in words: where a model comes from, how it was made, what it cannot do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sentence_transformers import SentenceTransformer

from simcse.config.settings import Config
from simcse.data.readers import EMBEDDED_TEXT
from simcse.encoders.encoder import EMBEDDED_ENCODER
from simcse.evaluation.names import MTEB_STS, STS
from simcse.evaluation.protocol import Scores
from simcse.objectives.terms import SHIPPED
from simcse.publishing.markdown import Markdown
from simcse.reports.plots import Picture
from simcse.reports.records import RunScores
from simcse.reports.runs import SCORES_FILE, Run, RunSet, read_json

ASSETS = Path(__file__).parent.parent / "assets"
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
        return self.runs.best


def base_model(config: Config, environment: dict[str, Any]) -> str:
    """The encoder that training began with, as a phrase that may go on."""
    name = config.encoder.name
    if name == EMBEDDED_ENCODER:
        return "mini-bert, the small encoder that comes with simcse-trainer (CC BY-SA 4.0),"
    if commit := environment["encoder_commit"]:
        return _hub_link(name, f"{name}/tree/{commit}")
    return Path(name).name  # a folder


def training_text(config: Config, environment: dict[str, Any]) -> str:
    """The sources of the text, data sets of the Hub with a link, files without their folders."""
    return Markdown(", ").join(
        _hub_link(entry, f"datasets/{entry.partition(':')[0]}")
        if entry in environment["from_hub"]
        else "the docstrings of Python packages"
        if entry == EMBEDDED_TEXT
        else Path(entry).name
        for entry in config.data.train
    )


def _hub_link(name: str, path: str) -> Markdown:
    return Markdown("[{}]({}/{})").format(name, Markdown(_HUB), Markdown(quote(path)))


def licence(config: Config) -> str | None:
    """Of the weights: as the config says, or of the shipped encoder, whose licence passes on."""
    own = "cc-by-sa-4.0" if config.encoder.name == EMBEDDED_ENCODER else None
    return config.hub.license or own


def languages(config: Config) -> list[str]:
    """Of the training text: as the config says; docstrings are English."""
    own = ["en"] if config.data.train == [EMBEDDED_TEXT] else []
    return config.hub.language or own


def facts(published: Published, environment: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and value of what a stranger needs to judge the training; text, or Markdown of ours."""
    config, text = published.config, environment["text"]
    dev = published.run.dev or {}
    yield "base model", base_model(config, environment).removesuffix(",")
    licence = f", licence: {config.hub.data_license}" if config.hub.data_license else ""
    yield "training text", Markdown("{}{}").format(training_text(config, environment), licence)
    sha256 = Markdown(f"(SHA-256 of the text read: `{text['counts']['sha256']}`)")
    yield "rows", Markdown("{:,} {}").format(text["rows"], sha256)
    steps = f"{dev['steps']:,} of {config.training.batch_size} rows"
    yield "steps", f"{steps}; the weights are those of step {dev['best_step']:,}"
    yield "optimiser", f"AdamW, learning rate {config.training.learning_rate:g}, linear decay"
    minutes = read_json(published.run.folder / SCORES_FILE, RunScores).get("minutes")
    threads = environment["threads"]
    device = f"{environment['device']}, {threads} thread{'s' * (threads != 1)}"
    yield "hardware", device if "cpu" in device.lower() else device.replace("x86_64", "x86-64 CPU")
    known = (
        f"{minutes:.1f} minutes, dev scores included" if minutes else "not known: it was resumed"
    )
    yield "duration", known
    libraries = ", ".join(f"{name} {v}" for name, v in environment["libraries"].items())
    yield "software", f"simcse-trainer {environment['simcse']}, {libraries}"
    if commit := environment["commit"]:
        yield "source", Markdown(f"commit `{commit}`")


def terms(config: Config, environment: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Name, weight, formula and source of each term of the objective."""
    columns = environment["text"]["counts"]["texts"] / max(environment["text"]["counts"]["rows"], 1)
    for name, term in config.objective.terms.items():
        values = {"name": name, "weight": term.weight, **environment["terms"].get(name, {})}
        if shipped := SHIPPED.get(name):
            longer = shipped.formula_with_hard_negatives if columns > 2 else ""
            formula = Markdown(f"`{longer or shipped.formula}`")
            values |= {"formula": formula, "source": Markdown(shipped.source)}
        yield values


def temperature(config: Config) -> str:
    """The settings of τ in words."""
    wanted = config.objective.temperature
    if wanted.schedule == "learnable":
        return f"τ is learned, from {wanted.start:g}"
    if wanted.end is not None:
        return f"τ goes from {wanted.start:g} to {wanted.end:g} ({wanted.schedule})"
    return f"τ = {wanted.start:g}"


def limitations(published: Published) -> Iterator[str]:
    """What a user should know before using the model; a sentence each."""
    config, limit = published.config, published.model.max_seq_length
    trained = f"It was trained on texts of at most {config.data.max_length} tokens"
    beyond = f"; it reads up to {limit}, beyond its training"
    yield f"{trained}{beyond if limit != config.data.max_length else ''}."
    known = ", ".join(languages(config))
    yield (
        f"Language of the training text: {known}; others were not tried."
        if known
        else "The language of the training text is not stated."
    )
    if EMBEDDED_TEXT in config.data.train:
        yield "Docstrings are technical English; it has seen no other text since its pre-training."
    scored = {*published.run.scores, *published.scored_later}
    if not scored & {*STS, *MTEB_STS}:
        yield "It was not scored on the STS tasks, so it cannot be compared with published models."
    if len(published.runs.runs) == 1:
        yield "One seed was run; scores of such models differ between seeds by a point or so."
    yield (
        "A high cosine similarity says that two texts are about the same, not that one follows "
        "from the other; opposites can be similar."
    )
    yield "What it has taken over from the text of its training, bias too, was not examined."


def without_folders(config: Config, environment: dict[str, Any]) -> dict[str, Any]:
    """Every setting that made the model; files without their folders, which tell of a machine."""
    values: dict[str, Any] = config.model_dump(exclude={"output", "seeds", "hub"})
    from_hub = environment["from_hub"]
    values["data"]["train"] = [
        name if name in from_hub else Path(name).name for name in config.data.train
    ]
    del values["data"]["cache"]
    if config.evaluation.data is not None:
        values["evaluation"]["data"] = Path(config.evaluation.data).name
    if not environment["encoder_commit"]:
        values["encoder"]["name"] = Path(config.encoder.name).name
    teacher = config.objective.teacher
    if teacher is not None and teacher not in from_hub:
        values["objective"]["teacher"] = Path(teacher).name
    return values
