"""SentEval's classifier, with the settings of SimCSE's table: one linear layer on embeddings.

It is trained by Adam, with an L2 penalty in the gradient, in batches of 64. After every 4 epochs
the accuracy on dev is measured; training ends when it has failed to rise 6 times in all, or after
204 epochs, and the layer of the best check is kept. The penalty is the one with the best accuracy
on held-out examples. (https://github.com/facebookresearch/SentEval, and ``--mode test`` of
``evaluation.py`` in https://github.com/princeton-nlp/SimCSE.)

Layers that differ in nothing but their penalty are trained side by side, since they see the same
batches: a quarter of the steps, and each layer is what it would be alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch.nn.functional import one_hot

SEED = 1111
FOLDS = 10
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
"""Values of Adam's ``weight_decay`` to choose from."""
BATCH_SIZE = 64
EPOCHS_PER_CHECK, MAX_CHECKS, TENACITY = 4, 51, 5
DEV_SHARE = 0.05
"""Of the examples that a layer is trained on, where there is no dev set."""


@dataclass(frozen=True)
class Examples:
    """Embeddings, float32 ``(examples, dim)``, and labels from 0, int64 ``(examples,)``."""

    features: np.ndarray
    labels: np.ndarray

    def at(self, rows: np.ndarray) -> Examples:
        """The examples of these row numbers."""
        return Examples(self.features[rows], self.labels[rows])


@dataclass(frozen=True)
class Layer:
    """A trained classifier: float32 ``(classes, dim + 1)``, the last column added to the logits."""

    weights: torch.Tensor

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The label of each row, int64 ``(examples,)``."""
        return (_with_ones(features) @ self.weights.T).argmax(dim=1).numpy()


def accuracy_by_fold(examples: Examples, seed: int) -> np.ndarray:
    """Accuracy in [0, 1] on each fold of a layer chosen and trained on the others, ``(FOLDS,)``.

    Args:
        examples: All that there are.
        seed: Of first weights and order; SentEval draws these folds from :data:`SEED` always.
    """
    accuracies = []
    for rows, test in _folds(examples, SEED):
        layer = chosen_in_folds(examples.at(rows), seed, fold_seed=SEED)
        predicted = layer.predict(examples.features[test])
        accuracies.append((predicted == examples.labels[test]).mean())
    return np.array(accuracies)


def chosen_in_folds(train: Examples, seed: int, fold_seed: int) -> Layer:
    """A layer trained on ``train`` whose penalty cross-validation on ``train`` chose."""
    accuracies = [
        fit(train.at(rows), train.at(held_out), PENALTIES, seed)[1]
        for rows, held_out in _folds(train, fold_seed)
    ]
    penalty = PENALTIES[_best(np.mean(accuracies, axis=0))]
    return fit(train, None, [penalty], seed)[0][0]


def chosen_on_dev(train: Examples, dev: Examples, seed: int) -> Layer:
    """A layer trained on ``train``, whose penalty and last epoch ``dev`` chose."""
    layers, accuracies = fit(train, dev, PENALTIES, seed)
    return layers[_best(accuracies)]


def _folds(examples: Examples, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return list(folds.split(examples.features, examples.labels))


def _best(accuracies: np.ndarray) -> int:
    # SentEval compares percentages with two decimals; of equal ones the smallest penalty is taken.
    return int(np.round(100 * accuracies, 2).argmax())


@torch.no_grad()
def fit(
    train: Examples, dev: Examples | None, penalties: Sequence[float], seed: int
) -> tuple[list[Layer], np.ndarray]:
    """Train a layer for each penalty.

    Args:
        train: Labels from 0, of which the highest gives the number of classes.
        dev: Stops the training; ``None`` takes :data:`DEV_SHARE` of ``train`` out for it.
        penalties: See :data:`PENALTIES`.
        seed: Of the first weights, the order of examples and what is taken out.

    Returns:
        The layers, each as it was at its best check, and their accuracies on dev in [0, 1],
        ``(penalties,)``.
    """
    random = np.random.RandomState(seed)  # NumPy's older generator draws SentEval's numbers
    classes = int(train.labels.max()) + 1
    if dev is None:
        shuffled = random.permutation(len(train.labels))
        held_out = int(DEV_SHARE * len(shuffled))
        train, dev = train.at(shuffled[held_out:]), train.at(shuffled[:held_out])
    inputs = _with_ones(train.features)
    targets = one_hot(torch.from_numpy(train.labels), classes).float()
    first = _first_weights(train.features.shape[1], classes, seed)
    weights = first.repeat(len(penalties), 1).requires_grad_()  # (penalties * classes, dim + 1)
    decay = torch.tensor(penalties).repeat_interleave(classes)[:, None]
    optimizer = torch.optim.Adam([weights], fused=True)

    best = [Layer(first)] * len(penalties)
    accuracies = np.full(len(penalties), -1.0)
    failures = np.zeros(len(penalties), dtype=int)
    for _ in range(MAX_CHECKS):
        for _ in range(EPOCHS_PER_CHECK):
            order = torch.from_numpy(random.permutation(len(inputs)))
            for start in range(0, len(order), BATCH_SIZE):
                rows = order[start : start + BATCH_SIZE]
                weights.grad = _gradient(weights, decay, inputs[rows], targets[rows])
                optimizer.step()
        for index, layer in enumerate(weights.chunk(len(penalties))):
            if failures[index] > TENACITY:
                continue  # ended; only others are still trained
            accuracy = (Layer(layer).predict(dev.features) == dev.labels).mean()
            if accuracy > accuracies[index]:
                accuracies[index], best[index] = accuracy, Layer(layer.clone())
            else:
                failures[index] += 1
        if (failures > TENACITY).all():
            break
    return best, accuracies


def _gradient(
    weights: torch.Tensor, decay: torch.Tensor, batch: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Of each layer's mean cross-entropy on the batch, and of half its penalty times ‖weights‖²."""
    logits = (batch @ weights.T).view(len(batch), -1, target.shape[1])
    error = (logits.softmax(dim=2) - target[:, None]) / len(batch)  # (batch, penalties, classes)
    return torch.addcmul(error.flatten(1).T @ batch, decay, weights)


def _first_weights(dim: int, classes: int, seed: int) -> torch.Tensor:
    """Those of ``torch.nn.Linear`` after ``torch.manual_seed``, as of :attr:`Layer.weights`."""
    bound, generator = dim**-0.5, torch.Generator().manual_seed(seed)
    shapes = ((classes, dim), (classes, 1))
    return torch.cat(
        [torch.empty(shape).uniform_(-bound, bound, generator=generator) for shape in shapes], dim=1
    )


def _with_ones(features: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.pad(torch.from_numpy(features), (0, 1), value=1)
