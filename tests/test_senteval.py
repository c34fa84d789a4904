"""The classifier of SentEval, against one layer at a time trained by PyTorch's own parts."""

import copy

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold
from torch import nn

from simcse.evaluation import senteval
from simcse.evaluation.senteval import Examples, Layer, fit

PENALTIES = [1e-5, 1e-2, 3.0]


def examples(count=150, classes=3, noise=1.5, seed=0):
    """Overlapping clouds, one for each label."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(5).normal(size=(classes, 7))
    features = centres[labels] + noise * random.normal(size=(count, 7))
    return Examples(features.astype(np.float32), labels)


def accuracy_of(model, part):
    with torch.no_grad():
        right = model(torch.from_numpy(part.features)).argmax(1).numpy() == part.labels
    return right.sum() / len(right)


def trained_alone(train, dev, penalty, seed):
    """One layer, batch after batch, as SentEval's paper and settings say; and its dev accuracy."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = nn.Linear(train.features.shape[1], len(set(train.labels)))
    if dev is None:
        order = np.random.permutation(len(train.labels))
        cut = int(0.05 * len(order))
        train, dev = train.at(order[cut:]), train.at(order[:cut])
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=penalty)
    best, kept, epochs, failed = -1.0, None, 0, 0
    while epochs <= 200 and failed < 6:
        for _ in range(4):
            order = np.random.permutation(len(train.labels))
            for start in range(0, len(order), 64):
                batch = train.at(order[start : start + 64])
                logits = model(torch.from_numpy(batch.features))
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels)).backward()
                optimizer.step()
        epochs += 4
        accuracy = accuracy_of(model, dev)
        if accuracy > best:
            best, kept = accuracy, copy.deepcopy(model)
        else:
            failed += 1
    return kept, best


def chosen_alone(train, seed, fold_seed):
    means = []
    for penalty in senteval.PENALTIES:
        folds = StratifiedKFold(senteval.FOLDS, shuffle=True, random_state=fold_seed)
        held_out = [
            trained_alone(train.at(rows), train.at(rest), penalty, seed)[1]
            for rows, rest in folds.split(train.features, train.labels)
        ]
        means.append(round(100 * np.mean(held_out), 2))
    penalty = senteval.PENALTIES[int(np.argmax(means))]
    return trained_alone(train, None, penalty, seed)[0]


def assert_same(layer, model):
    expected = torch.cat([model.weight, model.bias[:, None]], dim=1).detach()
    torch.testing.assert_close(layer.weights, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_dev", [True, False])
def test_side_by_side_each_layer_is_what_it_is_alone(with_dev):
    train, dev = examples(), examples(61, seed=1) if with_dev else None
    layers, accuracies = fit(train, dev, PENALTIES, seed=3)
    for layer, accuracy, penalty in zip(layers, accuracies, PENALTIES, strict=True):
        model, expected = trained_alone(train, dev, penalty, seed=3)
        assert_same(layer, model)
        assert accuracy == expected
    assert not torch.allclose(layers[0].weights, layers[2].weights, atol=1e-2)


def test_choice_by_folds_and_by_dev(monkeypatch):
    monkeypatch.setattr(senteval, "FOLDS", 3)
    data = examples(70, classes=2, noise=2.5)
    assert_same(senteval.chosen_in_folds(data, 2, fold_seed=7), chosen_alone(data, 2, 7))
    dev = examples(40, classes=2, noise=2.5, seed=1)
    models = [trained_alone(data, dev, penalty, 2) for penalty in senteval.PENALTIES]
    assert_same(senteval.chosen_on_dev(data, dev, 2), max(models, key=lambda pair: pair[1])[0])


def test_every_fold_is_scored_by_a_layer_that_has_not_seen_it(monkeypatch):
    monkeypatch.setattr(senteval, "FOLDS", 2)
    data = examples(70, classes=2, noise=2.5)
    folds = StratifiedKFold(2, shuffle=True, random_state=1111).split(data.features, data.labels)
    expected = [
        accuracy_of(chosen_alone(data.at(rows), 4, 1111), data.at(test)) for rows, test in folds
    ]
    assert senteval.accuracy_by_fold(data, 4).tolist() == expected
    assert len(set(expected)) == 2


@pytest.mark.parametrize(
    ("hits", "checks"),
    [
        ([9] * 99, 7),  # the first is the best, then six in vain
        ([n + n % 2 * 30 for n in range(1, 99)], 12),  # in vain every other time: six in all
        (range(99), 51),
    ],
)
def test_training_ends_after_six_checks_in_vain_or_204_epochs(hits, checks, monkeypatch):
    steps, hits, adam = [], iter(hits), torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: steps.append(adam(self)))
    monkeypatch.setattr(Layer, "predict", lambda *_: np.arange(100) < next(hits))
    dev = Examples(np.zeros((100, 7), dtype=np.float32), np.ones(100, dtype=np.int64))
    fit(examples(60, classes=2), dev, [1e-5], 1)  # one batch, so one step per epoch
    assert len(steps) == 4 * checks


def test_of_equal_percentages_the_smallest_penalty_is_taken():
    assert senteval._best(np.array([0.70001, 0.70004, 0.70003, 0.69])) == 0
    assert senteval._best(np.array([0.70001, 0.7002, 0.70021, 0.69])) == 1


def test_a_seed_gives_the_same_again_and_touches_no_other_random_numbers():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, second, other = (fit(examples(), None, PENALTIES, seed)[0] for seed in (1, 1, 2))
    assert all(torch.equal(a.weights, b.weights) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0].weights, other[0].weights)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
