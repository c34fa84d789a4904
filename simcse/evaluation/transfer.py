"""SentEval's transfer tasks: a linear classifier on frozen embeddings.

Files and splits are SentEval's (https://github.com/facebookresearch/SentEval), sorting before the
folds included. The classifier is scikit-learn's logistic regression with its strength chosen by
cross-validation, so the accuracies are comparable with each other, not with numbers from SentEval's
own classifier, which is trained by gradient descent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import f1_score
from sklearn.model_selection import BaseCrossValidator, PredefinedSplit, StratifiedKFold

from simcse.errors import UserError
from simcse.evaluation.lines import parse_lines, read_lines, spaced
from simcse.evaluation.names import check_size, published_as
from simcse.evaluation.tasks import Lookup, Result

SEED = 1111
"""SentEval's seed of all folds."""
OUTER_FOLDS, INNER_FOLDS = 10, 5
STRENGTHS = tuple(10.0**power for power in range(-3, 5))
"""Values of C to choose from; wide, because the length of embeddings differs between models."""

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

    def texts(self) -> list[str]:
        """Every sentence of every part."""
        return [text for part in self.parts.values() for texts, _ in part for text in texts]

    def score(self, embed: Lookup) -> Result:
        """``accuracy`` in [0, 1], for sentence pairs also ``f1``, and the number of test items."""
        features = {part: _features(rows, embed) for part, rows in self.parts.items()}
        labels = {part: np.array([label for _, label in rows]) for part, rows in self.parts.items()}
        if "all" in features:
            right = _fold_hits(features["all"], labels["all"])
            accuracy = float(right.mean())
            return Result({"accuracy": accuracy, "examples": len(right), **self.facts})
        model = _fit(features, labels)
        predicted = model.predict(features["test"])
        scores: dict[str, Any] = {
            "accuracy": float((predicted == labels["test"]).mean()),
            "examples": len(predicted),
        }
        if len(self.parts["test"][0][0]) == 2:
            scores["f1"] = float(f1_score(labels["test"], predicted))
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
        if len(counts) < 2 or (part != "dev" and part != "test" and min(counts.values()) < 10):
            raise UserError(
                f"{data / folder}: {part} has {dict(sorted(counts.items()))} examples a label; "
                "expected two labels or more, with at least 10 examples each"
            )
        check_size(name if part == "all" else f"{name} {part}", len(rows), data / folder)
    examples = [(part, *texts, label) for part, rows in parts.items() for texts, label in rows]
    title, facts = published_as(name, examples, "labelled")
    return TransferTask(title, parts, facts)


def _features(rows: list[Example], embed: Lookup) -> np.ndarray:
    sides = [embed(list(side)) for side in zip(*(texts for texts, _ in rows), strict=True)]
    if len(sides) == 1:
        return sides[0].astype(np.float64)
    first, second = sides  # SentEval's features of a pair
    return np.concatenate([np.abs(first - second), first * second], axis=1).astype(np.float64)


def _fold_hits(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    folds = StratifiedKFold(OUTER_FOLDS, shuffle=True, random_state=SEED)
    hits = np.zeros(len(labels), dtype=bool)
    for train, test in folds.split(features, labels):
        model = _choose(features[train], labels[train], _inner_folds())
        hits[test] = model.predict(features[test]) == labels[test]
    return hits


def _fit(features: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> Any:
    if "dev" not in features:
        return _choose(features["train"], labels["train"], _inner_folds())
    fold = np.repeat([-1, 0], [len(labels["train"]), len(labels["dev"])])  # -1: never held out
    chosen = _choose(
        np.concatenate([features["train"], features["dev"]]),
        np.concatenate([labels["train"], labels["dev"]]),
        PredefinedSplit(fold),
    )
    model = LogisticRegression(C=float(np.ravel(chosen.C_)[0]), solver="newton-cholesky")
    return model.fit(features["train"], labels["train"])  # SentEval leaves dev out of the fit


def _choose(features: np.ndarray, labels: np.ndarray, folds: BaseCrossValidator) -> Any:
    # Newton's Hessian has (classes x dim)² entries: fast for two classes, too large for TREC's six.
    solver = "newton-cholesky" if len(np.unique(labels)) == 2 else "lbfgs"
    model = LogisticRegressionCV(
        Cs=STRENGTHS,
        cv=folds,
        solver=solver,
        l1_ratios=(0,),
        scoring="accuracy",
        max_iter=1000,
        use_legacy_attributes=False,
    )
    return model.fit(features, labels)


def _inner_folds() -> StratifiedKFold:
    return StratifiedKFold(INNER_FOLDS, shuffle=True, random_state=SEED)


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
