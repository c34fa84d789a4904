"""Tasks with labels: pairs that mean the same or do not, and texts of several classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import v_measure_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from simcse.evaluation import geometry
from simcse.evaluation.statistics import average_precision_statistic, f1_by_threshold
from simcse.evaluation.tasks import Lookup, Result, cosines

FOLDS, NEIGHBOURS, SEED = 5, 5, 1111
"""Of the cross-validation, whose folds are the same for every model."""


@dataclass(frozen=True)
class PairClassificationTask:
    """Pairs of texts that mean the same or do not, told apart by a threshold on the cosine."""

    name: str
    sentence1: list[str]
    sentence2: list[str]
    labels: np.ndarray
    """1 where they mean the same, else 0; both occur."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """As of :class:`~simcse.evaluation.tasks.PairTask`."""
    metric: str = "average_precision"

    def texts(self) -> list[str]:
        """Both sides of every pair."""
        return self.sentence1 + self.sentence2

    def score(self, embed: Lookup) -> Result:
        """``average_precision`` and ``best_f1`` in [0, 1], and the threshold of the latter."""
        similarity = cosines(embed, self.sentence1, self.sentence2)
        once = np.ones(len(self.labels), dtype=np.int64)
        thresholds, f1 = f1_by_threshold(similarity, self.labels, once)
        scores: dict[str, Any] = {
            "average_precision": float(average_precision_statistic(similarity, self.labels)(once)),
            "best_f1": float(f1.max()),
            "best_f1_threshold": float(thresholds[f1.argmax()]),
            "pairs": len(self.labels),
            **self.facts,
        }
        return Result(scores, {"similarity": similarity, "label": self.labels})


@dataclass(frozen=True)
class LabelledTask:
    """Texts of several classes: a linear probe, nearest neighbours and clusters.

    Embeddings are normalised. Probe and neighbours predict each text from the other folds of a
    stratified cross-validation with :data:`FOLDS` folds. The probe is scikit-learn's logistic
    regression with its own defaults on standardised features.
    """

    name: str
    sentences: list[str]
    labels: list[str]
    """At least two different ones, each with :data:`FOLDS` texts or more."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """As of :class:`~simcse.evaluation.tasks.PairTask`."""
    metric: str = "accuracy"

    def texts(self) -> list[str]:
        """Every text."""
        return self.sentences

    def score(self, embed: Lookup) -> Result:
        """``accuracy`` of the probe, ``knn_accuracy`` and ``v_measure`` of k-means, in [0, 1]."""
        features = geometry.unit(torch.from_numpy(embed(self.sentences))).numpy()
        names, labels = np.unique(self.labels, return_inverse=True)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        neighbours = KNeighborsClassifier(NEIGHBOURS)
        items = {
            key: (cross_val_predict(model, features, labels, cv=folds) == labels).astype(np.int64)
            for key, model in {"accuracy": probe, "knn_accuracy": neighbours}.items()
        }
        clusters = KMeans(len(names), n_init=10, random_state=SEED).fit_predict(features)
        scores: dict[str, Any] = {key: float(values.mean()) for key, values in items.items()}
        scores |= {
            "v_measure": float(v_measure_score(labels, clusters)),
            "examples": len(labels),
            "labels": len(names),
            **self.facts,
        }
        return Result(scores, items)
