"""The training text of a run: its data sets, and the stream of batches drawn from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from simcse import distributed
from simcse.config.settings import Config, DataConfig
from simcse.data.batching import GroupBatchSampler, Sampler, SetSampler, ViewBatchSampler
from simcse.data.documents import Documents
from simcse.data.positives import Positives
from simcse.data.rows import TextCounts, load_training_data
from simcse.data.views import View, ViewCollator
from simcse.encoders import encoder
from simcse.encoders.mini_batches import Features
from simcse.errors import UserError
from simcse.objectives.terms import SHIPPED, asks_for, find, looks_at_tokens, needs
from simcse.training.text_embeddings import TextEmbeddings


@dataclass(frozen=True)
class TrainingSet:
    """One data set, read."""

    config: DataConfig
    rows: Dataset
    """From :func:`simcse.data.rows.load_training_data`, as are the counts."""
    counts: TextCounts

    @property
    def columns(self) -> int:
        """Texts that a row brings: 1 where each is its own positive."""
        return 2 if self.config.form == "documents" else len(self.rows[0]["input_ids"])

    def values(self, column: str) -> np.ndarray:
        """One value of all rows, or several."""
        return np.asarray(self.rows.with_format("numpy")[column][:])

    def sampler(self, config: Config) -> Sampler:
        """The sampler that fits the form."""
        size, seed = config.training.batch_size, config.seed
        if self.config.form == "labelled":
            return GroupBatchSampler(self.values("label"), size, seed, distributed.world())
        return ViewBatchSampler(self.values("length"), size, config.training.batching, seed)

    def in_words(self) -> str:
        """What was read, and what a row is."""
        lines = [f"text     {self.config.title}: {self.counts}"]
        lines.append(f"{len(self.rows):,} rows for training")
        if self.config.form == "documents":
            kinds = ", ".join(f"{kind} × {w:g}" for kind, w in self.config.positives.items())
            lines.append(f"a row is a passage, its texts a title and sentences; positives: {kinds}")
        elif self.columns > 1:
            count = self.columns - 2
            negatives = f", {count} hard negative{'s' * (count > 1)}" if count else ""
            lines.append(f"a row is anchor, positive{negatives}")
        return "\n         ".join(lines)

    def check(self, config: Config, model: SentenceTransformer) -> None:
        """What only the rows can tell.

        Raises:
            UserError: Fewer rows than a batch, texts longer than the encoder takes, hard negatives
                that no term uses, labels without two examples, templates that leave no room.
        """
        size, limit = config.training.batch_size, model.max_seq_length
        data, rows, name = self.config, len(self.rows), config.encoder.name
        if rows < size:
            repeats = f" ({self.counts.duplicate:,} more repeat them)" * bool(self.counts.duplicate)
            raise UserError(
                f"training.batch_size: {size} is more than the {rows} training rows of "
                f"{data.title}{repeats}"
            )
        if limit is not None and data.max_length > limit:
            raise UserError(
                f"data.max_length: {data.max_length} is more than the {limit} tokens that {name} "
                "allows"
            )
        if self.columns > 2 and not asks_for(config, "hard_negatives"):
            users = [name for name, term in SHIPPED.items() if "hard_negatives" in needs(term)]
            remedy = "" if data.form == "nli" else "name two columns in data.columns, or "
            raise UserError(
                f"objective.terms: {', '.join(config.objective.terms)} does not use the hard "
                f"negatives of {data.title}; {remedy}use {' or '.join(users)}"
            )
        if data.form == "labelled" and len(np.unique(self.values("label"))) == 1:
            raise UserError(
                f"data.train: all rows of {data.title} have one label, so there are no negatives"
            )
        if len(self.sampler(config)) == 0:
            raise UserError(
                f"data.train: the labels of {data.title} with two examples or more make no batch "
                f"of {size}; lower training.batch_size"
            )
        views = view_collator(config, data, model).views
        longest = max(view.longest(data.max_length) for view in views)
        if limit is not None and longest > limit:
            raise UserError(
                f"views: with prompt, template and repeated words, texts of data.max_length "
                f"{data.max_length} have up to {longest} tokens; {name} allows {limit}"
            )
        poolings = [module for module in model.modules() if isinstance(module, Pooling)]
        if any(prompts_of(data, model)) and not all(p.include_prompt for p in poolings):
            raise UserError(
                f"encoder.prompts: {name} leaves prompts out of its pooling, which training cannot "
                'do; train it without: encoder.prompts={query: "", document: ""}'
            )


class TrainingText:
    """The data sets of a run as one stream of batches.

    Args:
        config: The run.
        sets: Its data sets.
        model: The encoder to train.
    """

    def __init__(
        self, config: Config, sets: Sequence[TrainingSet], model: SentenceTransformer
    ) -> None:
        self.sets = sets
        weights = [data.weight for data in config.sets if data.weight is not None]
        samplers = [own.sampler(config) for own in sets]
        self.sampler = SetSampler(samplers, weights or None, config.seed)
        self.collators = [view_collator(config, own.config, model) for own in sets]
        training = config.training
        self.steps = training.steps or math.ceil(training.epochs * len(self.sampler))
        """Of the optimiser, in all."""

    @classmethod
    def read(
        cls, config: Config, model: SentenceTransformer, documents: Sequence[Documents] = ()
    ) -> TrainingText:
        """Read the data sets of a run and print what they are.

        Args:
            config: The run.
            model: The encoder to train.
            documents: Those of :meth:`.Documents.of`, where they have been read already.

        Raises:
            UserError: Text that cannot be read, a weight of hard negatives without any, or as
                :meth:`TrainingSet.check`.
        """
        sets = []
        for data in config.sets:
            known = [found for found in documents if found.config == data][:1]
            with distributed.first():
                rows, counts = load_training_data(data, model.tokenizer, config.seed, *known)
            own = TrainingSet(data, rows, counts)
            print(own.in_words(), flush=True)
            own.check(config, model)
            sets.append(own)
        for name, term in config.objective.terms.items():
            if any(own.columns > 2 for own in sets):
                break
            if getattr(term, "hard_negative_weight", 1) != 1:
                raise UserError(
                    f"objective.terms.{name}.hard_negative_weight has no meaning: the rows of "
                    "data.train have no hard negatives"
                )
            if needs(find(name)).get("hard_negatives") is False:
                raise UserError(
                    f"objective.terms: {name} needs hard negatives; the rows of data.train have "
                    "none"
                )
        text = cls(config, sets, model)
        if len(sets) > 1:
            print(text.shares())
        return text

    def shares(self) -> str:
        """How often each of several sets is drawn, in words."""
        counts = zip(self.sets, self.sampler.counts, strict=True)
        shares = [f"{own.config.title} {count / len(self.sampler):.1%}" for own, count in counts]
        return f"batches  {', '.join(shares)} of {len(self.sampler):,} in an epoch"

    def collate(self, number: int, epoch: int, chosen: Sequence[int]) -> Features:
        """Some rows of a set in one of its epochs, as the features of a forward pass."""
        collator, rows = self.collators[number], self.sets[number].rows
        collator.epoch = epoch
        return collator([rows[i] for i in chosen])

    def own_part(self, number: int, epoch: int, chosen: list[int]) -> tuple[str, Features]:
        """The rows of a batch in words, and this process's part of them as features."""
        words = ", ".join(map(str, chosen))
        if len(self.sets) > 1:
            words += f" of {self.sets[number].config.title}"
        return words, self.collate(number, epoch, distributed.own_part(chosen))

    def sample(self, number: int, count: int) -> Features:
        """The first rows of a set, as in its first epoch."""
        return self.collate(number, 0, range(min(count, len(self.sets[number].rows))))

    def used(self) -> list[np.ndarray]:
        """Which rows of each set the run will see, bool of shape ``(rows,)``."""
        used = [np.zeros(len(own.rows), dtype=bool) for own in self.sets]
        batches = self.sampler.batches_from(0)
        epoch = len(self.sampler)
        for done in range(0, self.steps, epoch):
            for number, _, rows in islice(batches, min(epoch, self.steps - done)):
                used[number][rows] = True
            if all(rows.all() for rows in used):
                break
        return used

    def hashes(self) -> np.ndarray:
        """Of the texts that the run will see, distinct and sorted."""
        used = zip(self.sets, self.used(), strict=True)
        found = [own.values("text_hash")[rows].ravel() for own, rows in used]
        return np.unique(np.concatenate(found))

    def look_up(self, name: str, embeddings: TextEmbeddings) -> None:
        """Give every batch the embeddings of its texts, as a feature of this name."""
        for collator in self.collators:
            collator.lookups[name] = embeddings


def prompts_of(data: DataConfig, model: SentenceTransformer) -> tuple[str, str]:
    """What stands before anchors, and before all other texts of a set."""
    if data.prompts is not None:
        return data.prompts.get("query", ""), data.prompts.get("document", "")
    return encoder.prompt_of(model, "query"), encoder.prompt_of(model, "document")


def view_collator(config: Config, data: DataConfig, model: SentenceTransformer) -> ViewCollator:
    """The collator that lays out a config's views of one of its data sets."""
    first, second = (
        View.of(view, model.tokenizer, prompt)
        for view, prompt in zip(config.views, prompts_of(data, model), strict=True)
    )
    positives = None
    if data.form == "documents":
        positives = Positives.of(data.positives, data.max_length, model.tokenizer)
    return ViewCollator(
        model.tokenizer.pad_token_id,
        (first, second),
        single=not asks_for(config, "positive"),
        paired=data.form == "labelled",
        positives=positives,
        keeps_texts=looks_at_tokens(config) and not (first.is_plain and second.is_plain),
        padding_side=model.tokenizer.padding_side,
        seed=config.seed,
    )
