"""SentEval's transfer tasks: a linear classifier on frozen embeddings.

Files, splits and classifier are SentEval's (https://github.com/facebookresearch/SentEval), sorting
before the folds included, so the accuracies stand beside those of SimCSE's table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from simcse.errors import UserError
from simcse.evaluation.lines import parse_lines, read_lines, spaced
from simcse.evaluation.names import check_size, published_as
from simcse.evaluation.senteval import (
    FOLDS,
    SEED,
    Examples,
    accuracy_by_fold,
    chosen_in_folds,
    chosen_on_dev,
)
from simcse.evaluation.tasks import Lookup, Result

Example = tuple[tuple[str, ...], int]
"""One or two sentences, and the label."""


@dataclass(frozen=True)
class TransferTask:
    """Classification of sentences, or of sentence pairs, by a linear model on their embeddings.

    ``parts`` is ``{"all"}`` (10 folds), ``{"train", "test"}``, or ``{"train", "dev", "test"}``.
    """

    name: str
    parts: dict[str, list[Example]]
    facts: Mapping[str, str] = field(default_factory=dict)
    """As of :class:`~simcse.evaluation.tasks.PairTask`."""
    metric: str = "accuracy"
    seed: int = SEED

    def texts(self) -> list[str]:
        """Every sentence of every part."""
        return [text for part in self.parts.values() for texts, _ in part for text in texts]

    def score(self, embed: Lookup) -> Result:
        """``accuracy`` in [0, 1], for sentence pairs also ``f1``, and the number of test items."""
        parts = {part: _examples(rows, embed) for part, rows in self.parts.items()}
        if "all" in parts:
            accuracy = float(accuracy_by_fold(parts["all"], self.seed).mean())
            examples = len(parts["all"].labels)
            return Result({"accuracy": accuracy, "examples": examples, **self.facts})
        train, test = parts["train"], parts["test"]
        layer = (
            chosen_on_dev(train, parts["dev"], self.seed)
            if "dev" in parts
            else chosen_in_folds(train, self.seed, fold_seed=self.seed)
        )
        predicted = layer.predict(test.features)
        scores: dict[str, Any] = {
            "accuracy": float((predicted == test.labels).mean()),
            "examples": len(predicted),
        }
        if len(self.parts["test"][0][0]) == 2:
            scores["f1"] = float(f1_score(test.labels, predicted))
        return Result({**scores, **self.facts})


def load_transfer(name: str, data: Path) -> TransferTask:
    """Read a transfer task; ``name`` is a key of :data:`READERS`.

    Raises:
        UserError: A file is missing or malformed, holds too few examples of a label, or more or
            fewer examples than were published.
    """
    folder, read = READERS[name]
    parts = read(data / folder)
    for part, rows in parts.items():
        counts = Counter(label for _, label in rows)
        if len(counts) < 2 or (part != "dev" and part != "test" and min(counts.values()) < FOLDS):
            raise UserError(
                f"{data / folder}: {part} has {dict(sorted(counts.items()))} examples a label; "
                f"expected two labels or more, with at least {FOLDS} examples each"
            )
        check_size(name if part == "all" else f"{name} {part}", len(rows), data / folder)
    examples = [(part, *texts, label) for part, rows in parts.items() for texts, label in rows]
    title, facts = published_as(name, examples, "labelled")
    return TransferTask(title, parts, facts)


def _examples(rows: list[Example], embed: Lookup) -> Examples:
    labels = np.array([label for _, label in rows])
    sides = [embed(list(side)) for side in zip(*(texts for texts, _ in rows), strict=True)]
    if len(sides) == 1:
        return Examples(sides[0], labels)
    first, second = sides  # SentEval's features of a pair
    return Examples(np.concatenate([np.abs(first - second), first * second], axis=1), labels)


def _polarity(positive: str, negative: str) -> Callable[[Path], dict[str, list[Example]]]:
    def read(folder: Path) -> dict[str, list[Example]]:
        rows: list[Example] = []
        for name, label in ((positive, 1), (negative, 0)):
            rows += [((spaced(line),), label) for line in _texts(folder / name)]
        if {texts for texts, label in rows if label} == {
            texts for texts, label in rows if not label
        }:
            raise UserError(f"{folder}: {positive} and {negative} hold the same texts")
        return {"all": _sorted(rows)}

    return read


def _texts(path: Path) -> list[str]:
    return [line for line in read_lines(path, "latin-1") if line.strip()]


def _sst2(folder: Path) -> dict[str, list[Example]]:
    def parse(line: str) -> Example:
        text, label = line.strip().split("\t")[:2]
        return (spaced(text),), {"0": 0, "1": 1}[label]

    return {
        part: _sorted(
            list(parse_lines(folder / f"sentiment-{part}", parse, "text, a tab, and 0 or 1"))
        )
        for part in ("train", "dev", "test")
    }


_QUESTIONS = {"ABBR": 0, "DESC": 1, "ENTY": 2, "HUM": 3, "LOC": 4, "NUM": 5}


def _trec(folder: Path) -> dict[str, list[Example]]:
    def parse(line: str) -> Example:
        label, rest = line.strip().split(":", 1)
        return (spaced(rest.split(" ", 1)[1]),), _QUESTIONS[label]

    expected = f"{'|'.join(_QUESTIONS)}:kind and a question"
    return {
        part: _sorted(list(parse_lines(folder / name, parse, expected, encoding="latin-1")))
        for part, name in (("train", "train_5500.label"), ("test", "TREC_10.label"))
    }


def _mrpc(folder: Path) -> dict[str, list[Example]]:
    def parse(line: str) -> Example:  # quality, id, id, sentence, sentence
        fields = line.strip().split("\t")
        return (spaced(fields[3]), spaced(fields[4])), {"0": 0, "1": 1}[fields[0]]

    expected = "0 or 1, two ids and two sentences between tabs"
    return {
        part: _sorted(
            list(parse_lines(folder / f"msr_paraphrase_{part}.txt", parse, expected, header=True))
        )
        for part in ("train", "test")
    }


def _sorted(rows: list[Example]) -> list[Example]:
    # As SentEval does before it draws its folds: by words, then label, ties as in the file.
    return sorted(rows, key=lambda row: (*(len(text.split()) for text in row[0]), row[1]))


READERS: dict[str, tuple[str, Callable[[Path], dict[str, list[Example]]]]] = {
    "MR": ("MR", _polarity("rt-polarity.pos", "rt-polarity.neg")),
    "CR": ("CR", _polarity("custrev.pos", "custrev.neg")),
    "SUBJ": ("SUBJ", _polarity("subj.objective", "subj.subjective")),
    "MPQA": ("MPQA", _polarity("mpqa.pos", "mpqa.neg")),
    "SST2": ("SST/binary", _sst2),
    "TREC": ("TREC", _trec),
    "MRPC": ("MRPC", _mrpc),
}
"""Task to its folder and reader."""
