"""What a run says before it trains: what chooses, what tests, and settings that hardly suit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from simcse.config.settings import Config
from simcse.data.tokens import prompt_ids, special_ends, unknown_warning
from simcse.encoders import encoder, gate
from simcse.evaluation.classification import PairClassificationTask
from simcse.evaluation.documents import too_few
from simcse.evaluation.tasks import PairTask, RetrievalTask, Task
from simcse.training.text import TrainingSet, prompts_of

MANY_CUT = 0.1
"""Share of the texts that are cut above which it is said."""
# Least parameters beside the token embeddings, usual learning rates; sources: docs/training.md.
_SIZES = (
    (200e6, "large encoder", 5e-6, 5e-5),
    (40e6, "base encoder", 1e-5, 1e-4),
    (0, "small encoder", 5e-5, 1e-3),
)
_ADAPTERS = ("encoder with adapters", 1e-5, 1e-3)
_FURTHER = ("sentence-transformers model that is good already", 0.0, 5e-5)
_ORIGINS = {
    "pairs": "that come with the package",
    "python-docs": "of the shipped documents",
    "documents": "from held-out documents of data.train",
}


def what_chooses_and_tests(dev: Task, tests: Sequence[Task], mteb: Sequence[str]) -> Iterator[str]:
    """Which data choose the checkpoint, on which it is tested, and which of them are too few.

    Args:
        dev: What chooses the checkpoint.
        tests: Our tasks, with the geometry.
        mteb: Names of its tasks.
    """
    yield f"chosen   the checkpoint, by {_described(dev)}"
    named = [_described(task) for task in tests if task.name not in (dev.name, "geometry")]
    twice = [f"{dev.name}, which has chosen it" for task in tests if task.name == dev.name]
    yield f"tested   on {'; '.join([*named, *mteb, *twice]) or 'nothing'}"
    for task in (*tests, dev):
        if isinstance(task, RetrievalTask) and not task.facts and (warning := too_few(task)):
            yield f"warning: {warning}"


def _described(task: Task) -> str:
    origin = _ORIGINS.get(task.name.removesuffix("-dev"), "of evaluation.data")
    if "own" in getattr(task, "facts", {}):
        origin = "of your own"
    if isinstance(task, RetrievalTask):
        return f"{task.name} ({len(task.queries):,} queries {origin})"
    if isinstance(task, PairTask | PairClassificationTask):
        return f"{task.name} ({len(task.sentence1):,} pairs {origin})"
    return f"{task.name} ({len(task.texts()):,} texts {origin})"


def _positives_without_text(own: TrainingSet, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Kinds of positives that none of the first passages can give, so that others take the place.

    Args:
        own: Documents; the first text of a row is the title.
        tokenizer: That of the encoder.
    """
    passages = own.rows[:1_000]["input_ids"]
    special = sum(special_ends(tokenizer))
    with_text = {
        "title": any(len(title) > special for title, *_ in passages),
        "spans": any(len(texts) > 2 for texts in passages),
    }
    needed = {"title": "a title", "spans": "two sentences"}
    for kind in own.config.positives:
        if not with_text.get(kind, True):
            yield (
                f"warning: data.positives: {kind} needs {needed[kind]}, which no passage of "
                f"{own.config.title} has; others take its place"
            )


def hints(config: Config, sets: Sequence[TrainingSet], model: SentenceTransformer) -> Iterator[str]:
    """Settings that hardly suit this text and this encoder."""
    for own in sets:
        counts, key = own.counts, "data.train" if len(sets) == 1 else own.config.title
        if warning := unknown_warning(counts.unknown, counts.tokens, key):
            yield warning
        if counts.truncated > MANY_CUT * counts.texts:
            yield (
                f"warning: data.max_length: {counts.truncated / counts.texts:.0%} of the texts "
                f"{f'of {key} ' if len(sets) > 1 else ''}are cut at {own.config.max_length} tokens;"
                f" this encoder takes {model.max_seq_length}"
            )
        if own.config.form == "documents" and len(own.rows):
            yield from _positives_without_text(own, model.tokenizer)
        for prompt in dict.fromkeys(filter(None, prompts_of(own.config, model))):
            if not prompt_ids(prompt, model.tokenizer)[1]:
                yield (
                    f"warning: encoder.prompts: {prompt!r} and the text after it are tokenised "
                    "apart; encoding, which tokenises both together, splits the first word of a "
                    "text in another way"
                )
    widest = encoder.width(model)
    if config.objective.dims and widest not in config.objective.dims:
        yield (
            f"warning: objective.dims: {widest}, the full width and what the model gives unless "
            "told otherwise, is not among them, so whole embeddings are not trained as such"
        )
    # The table of token embeddings has the most rows.
    tables = [p for p in model.parameters() if p.ndim == 2]
    table = max(tables, key=len).numel()
    rest = sum(parameter.numel() for parameter in model.parameters()) - table
    size, least, most = next((name, low, high) for n, name, low, high in _SIZES if rest >= n)
    if gate.stores_modules(encoder.origin_of(config.encoder)):
        size, least, most = _FURTHER
    if config.encoder.has_adapters:
        size, least, most = _ADAPTERS
    rate = config.training.learning_rate
    if not least <= rate <= most:
        yield (
            f"warning: training.learning_rate: {rate:g} is {'low' if rate < least else 'high'} for "
            f"a {size} ({rest / 1e6:.0f} million parameters beside the token embeddings); "
            f"usual are {least:g} to {most:g} (docs/training.md#encoders)"
        )
