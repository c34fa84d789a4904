"""Gradient caching: the gradients of one large pass from mini-batches, in less memory."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import MINI_BERT, ROOT, SENTENCES, make_masked_encoder, terms_of

from simcse import distributed
from simcse.config.reading import validate
from simcse.data.views import ViewCollator
from simcse.encoders import encoder
from simcse.encoders.engines import Engine, whole_tensor
from simcse.training.loop import backpropagate
from simcse.training.loss import TrainingLoss
from simcse.training.setup import make_accelerator

MINI_BATCH = 5  # divides neither the batch nor the number of texts
OBJECTIVES = {
    "info_nce": {},
    "hard_negatives": {
        "columns": 3,
        "objective": {"terms": {"info_nce": {"hard_negative_weight": 2.0}}},
    },
    "decoupled": {"objective": {"terms": "decoupled"}, "columns": 3},
    "first_token": {"encoder": {"pooling": "cls"}},
    "nt_xent": {"objective": {"terms": "nt_xent"}},
    "clip": {"objective": {"terms": "clip", "temperature": {"schedule": "learnable"}}},
    "sup_con": {"objective": {"terms": "sup_con"}, "data": {"form": "labelled"}},
    "two_towers": {
        "objective": {"terms": "clip"},
        "columns": 2,
        "data": {"form": "pairs"},
        "encoder": {"towers": "two", "projection": "none"},
    },
    "two_rates": {"views": [{"dropout": 0.05}, {"dropout": 0.15}]},
    "dino": {"objective": {"terms": {"dino": {"prototypes": 16}}}},
    "mlm": {"objective": {"terms": [{"info_nce": 1.0}, {"mlm": 0.1}]}},
    "lora": {
        "encoder": {"lora": {"rank": 4, "dropout": 0.0}},
        "objective": {"terms": [{"info_nce": 1.0}, {"mlm": 0.1}]},
    },
    "distill_start": {"objective": {"terms": ["info_nce", "distill_start"]}},
    "identical": {"columns": 3, "hashes": 9},
    "distill_l2": {"objective": {"terms": "distill_l2"}, "teacher": True},
    "distill_similarity": {"objective": {"terms": "distill_similarity"}, "teacher": True},
    "guide": {"columns": 3, "guide": True},
    "dims": {
        "columns": 3,
        "objective": {
            "terms": {"info_nce": 1.0, "distill_start": 0.5},
            "temperature": {"schedule": "learnable"},
            "dims": [32, 16, 8],
            "dim_weights": [1.0, 0.5, 2.0],
        },
    },
}


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """An encoder with its masked-language-model head."""
    return make_masked_encoder(tmp_path_factory.mktemp("masked"))


def gradients(name, folder, tmp_path, mini_batch_size, dropout, spread="no", training=None):
    """Loss and gradients of one step over 12 sentences; random numbers start from one seed.

    Of several processes each takes its part of the sentences.
    """
    case = OBJECTIVES[name]
    taught = np.random.default_rng(0).normal(size=(99, 8)).astype(np.float32)
    lookups = {name: taught.__getitem__ for name in ("teacher", "guide") if name in case}
    config = validate(
        {
            "encoder": {"name": str(folder), "dropout": dropout, **case.get("encoder", {})},
            "objective": {
                **case.get("objective", {}),
                **dict.fromkeys(lookups, "none"),
            },
            "data": {"train": "none", **case.get("data", {})},
            "views": case.get("views", [{}, {}]),
            "training": {
                "precision": "float32",
                "mini_batch_size": mini_batch_size,
                **(training or {}),
            },
        },
        "test",
    )
    torch.manual_seed(0)
    model = encoder.build(config.encoder).train()
    for key, weight in model.named_parameters():
        if "lora_B" in key:  # adapters that add something
            torch.nn.init.normal_(weight, std=0.1)
    training_loss = TrainingLoss(model, config, 8 if "teacher" in case else None)
    texts = [f"{text} {word}" for text in SENTENCES for word in ("Then", "Now and here")]
    ids = model.tokenizer([*texts, *texts[::-1], *texts[5:], *texts[:5]])["input_ids"]
    columns = case.get("columns", 1)
    labelled = name == "sup_con"
    rows = [
        {
            "input_ids": ids[i : 12 * columns : 12],
            "text_hash": [(i + 12 * column) % case.get("hashes", 99) for column in range(columns)],
            "label": i % 6 if labelled else 0,
        }
        for i in range(12)
    ]
    parts = np.array_split(np.arange(12).reshape(2, 6), distributed.world(), axis=1)
    if not labelled:
        parts = np.array_split(np.arange(12), distributed.world())
    rows = [rows[i] for i in parts[distributed.rank()].ravel()]
    features = ViewCollator(0, paired=labelled, lookups=lookups).features(rows, model.device)
    training_loss.engine = Engine(model, spread)
    torch.manual_seed(1)
    terms = backpropagate(make_accelerator(config, tmp_path), training_loss, features)
    distributed.average_gradients(training_loss.objective.parameters())
    named = training_loss.named_parameters()
    return float(sum(terms.values())), {
        n: whole_tensor(p.grad) for n, p in named if p.grad is not None
    }


# Whose random numbers, terms or encoders differ; those of the others are slow tests.
WITH_DROPOUT = ("lora", "mlm", "dino", "dims", "clip", "two_rates")


@pytest.mark.parametrize(
    "name",
    [n if n in WITH_DROPOUT else pytest.param(n, marks=pytest.mark.slow) for n in OBJECTIVES],
)
def test_gradients_with_dropout_are_those_of_the_kept_graph(name, masked, tmp_path, monkeypatch):
    cached, found = gradients(name, masked, tmp_path, MINI_BATCH, 0.1)

    def keep(accelerator, loss, features):
        terms = terms_of(loss, features)
        torch.stack(list(terms.values())).sum().backward()
        return {name: float(value.detach()) for name, value in terms.items()}

    monkeypatch.setattr("test_caching.backpropagate", keep)
    kept, expected = gradients(name, masked, tmp_path, MINI_BATCH, 0.1)
    # Relative as well: above 8 the numbers of float32 are 1e-6 apart.
    assert cached == pytest.approx(kept, rel=1e-6, abs=1e-6)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("two_rates", MINI_BATCH),
        ("lora", MINI_BATCH),
        ("mlm", None),
        ("dino", None),
        *(
            pytest.param(name, size, marks=pytest.mark.slow)
            for name, size in [
                ("first_token", None),
                ("first_token", MINI_BATCH),
                ("two_rates", None),
                ("two_towers", None),
                ("two_towers", MINI_BATCH),
                ("dino", MINI_BATCH),
                ("mlm", MINI_BATCH),
                ("lora", None),
            ]
        ),
    ],
)
def test_activation_checkpointing_keeps_the_gradients(name, size, masked, tmp_path):
    loss, expected = gradients(name, masked, tmp_path, size, 0.1)
    again = {"activation_checkpointing": True}
    other, found = gradients(name, masked, tmp_path, size, 0.1, training=again)
    assert other == loss
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", [pytest.param("two_rates", marks=pytest.mark.slow), "mlm"])
def test_gradients_are_those_of_finite_differences(name, masked, tmp_path):
    """With dropout, gradient caching and activation checkpointing together, along the gradient."""
    again = {"activation_checkpointing": True}
    _, found = gradients(name, masked, tmp_path, MINI_BATCH, 0.1, training=again)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in found.values()))

    def moved(step):
        def build(config):
            model = original(config)
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if (gradient := found.get(f"model.{key}")) is not None:
                        parameter.add_(gradient, alpha=step / norm)
            return model

        original = encoder.build
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoder, "build", build)
            return gradients(name, masked, tmp_path, MINI_BATCH, 0.1, training=again)[0]

    own = sum(float(g.double().square().sum()) for k, g in found.items() if k[:6] == "model.")
    slope = (moved(1e-3) - moved(-1e-3)) / 2e-3
    assert slope == pytest.approx(own / norm, rel=0.02)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n not in ("mlm", "two_rates", "lora")])
def test_gradients_without_dropout_are_those_of_one_pass(name, masked, tmp_path):
    cached, found = gradients(name, masked, tmp_path, MINI_BATCH, 0.0)
    whole, expected = gradients(name, masked, tmp_path, None, 0.0)
    assert cached == pytest.approx(whole, abs=1e-6)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6, msg=key)


def test_no_forward_pass_is_larger_than_a_mini_batch(masked, tmp_path, monkeypatch):
    sizes, widths = [], []
    original = TrainingLoss.embed

    def spy(self, part):
        sizes.append(len(part.features["input_ids"]))
        widths.append(part.features["input_ids"].shape[1])
        return original(self, part)

    monkeypatch.setattr(TrainingLoss, "embed", spy)
    gradients("info_nce", masked, tmp_path, MINI_BATCH, 0.1)
    assert sizes == [5, 5, 5, 5, 4] * 2  # once for the loss, once for the gradient
    assert widths[:5] == sorted(widths[:5])  # like lengths together, each cut at its own longest
    assert widths[0] < widths[4]


def kept_bytes(folder, tmp_path, monkeypatch, mini_batch_size):
    """Bytes that each forward pass of a step keeps for its gradient."""
    passes = []
    original = TrainingLoss.embed

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            passes[-1] += tensor.nbytes
        return tensor

    def spy(self, *args, **options):
        passes.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoss, "embed", spy)
        gradients("info_nce", folder, tmp_path, mini_batch_size, 0.1)
    return passes


def test_what_is_kept_for_the_gradient_is_of_a_mini_batch(masked, tmp_path, monkeypatch):
    [whole] = kept_bytes(masked, tmp_path, monkeypatch, None)
    passes = kept_bytes(masked, tmp_path, monkeypatch, MINI_BATCH)
    assert passes[:5] == [0] * 5  # the loss is computed from embeddings alone
    assert 0 < max(passes[5:]) < 0.3 * whole  # 5 of 24 texts


MEMORY = """
import resource, sys, torch
from simcse.encoders import encoder
from pathlib import Path
from simcse.config.reading import validate
from simcse.encoders.engines import Engine, whole_tensor
from simcse.training.loop import backpropagate
from simcse.training.setup import make_accelerator
from simcse.training.loss import TrainingLoss
def peak(mini_batch_size):
    config = validate({"encoder": {"name": sys.argv[1]},
                       "training": {"precision": "float32",
                                    "mini_batch_size": mini_batch_size}}, "test")
    model = encoder.build(config.encoder).train()
    loss = TrainingLoss(model, config)
    ids = torch.randint(5, 8000, (2 * 128, 32))
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
                "identities": torch.arange(128).repeat(2, 1)}
    backpropagate(make_accelerator(config, Path()), loss, features)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak(16), peak(None))
"""


@pytest.mark.slow
def test_memory_is_that_of_a_mini_batch():
    """256 texts at once and 16 at a time, in a process of their own; kilobytes."""
    found = subprocess.run(
        [sys.executable, "-c", MEMORY, str(MINI_BERT)],
        check=True, capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    cached, whole = found.stdout.split()
    # A layer keeps about 20 floats per text, token and width for the gradient: 600 MB in all.
    assert int(whole) - int(cached) > 300_000
