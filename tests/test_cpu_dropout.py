"""Dropout on the CPU: the right share, independent elements, and nothing else touched."""

import copy
import math

import pytest
import torch
from conftest import (
    ARCHITECTURES,
    OTHERS,
    SENTENCES,
    loss_of,
    make_encoder,
    make_masked_encoder,
    two_views,
)
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from simcse.config.reading import validate
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.encoders.cpu_dropout import Dropout, dropout, install
from simcse.training.loss import TrainingLoss


class Called(TorchDispatchMode):
    """Names of the operators that reach the kernels."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_drops_the_share_asked_for_and_scales_the_rest(p, dtype):
    torch.manual_seed(0)
    values = torch.ones(400_000, dtype=dtype)
    found = dropout(values, p)
    share = float((found == 0).double().mean())
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 400_000) + 1 / 65_536
    kept = found[found != 0].double()
    assert found.dtype == dtype
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-2, atol=0)
    if dtype != torch.bfloat16:
        assert float(kept.min()) == float(kept.max())
        # What is kept makes up for what is dropped, at the probability after rounding.
        assert float(kept[0]) == pytest.approx(65_536 / (65_536 - round(p * 65_536)), rel=1e-6)


def test_the_four_elements_of_a_number_are_each_right_and_independent():
    torch.manual_seed(1)
    dropped = (dropout(torch.ones(1_000_000), 0.3) == 0).view(-1, 4).double()
    assert torch.allclose(dropped.mean(0), torch.full((4,), 0.3, dtype=torch.float64), atol=0.005)
    correlation = torch.corrcoef(torch.cat([dropped[:-1], dropped[1:]], dim=1).T)  # (8, 8)
    off = correlation - torch.diag(correlation.diagonal())
    assert float(off[:4].abs().max()) < 0.01


def test_extreme_probabilities():
    torch.manual_seed(0)
    assert torch.equal(dropout(torch.ones(1000), 1e-9), torch.ones(1000))
    almost_all = dropout(torch.ones(1000), 1 - 1e-9)
    assert int((almost_all != 0).sum()) <= 1
    assert torch.isfinite(almost_all).all()


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (2, 3, 7)])
def test_any_shape(shape):
    assert dropout(torch.ones(shape), 0.5).shape == shape


def test_also_values_that_are_not_contiguous():
    torch.manual_seed(0)
    values = torch.arange(1.0, 13).view(3, 4).T
    found = dropout(values, 0.5)
    kept = found != 0
    assert torch.equal(found[kept], 2 * values[kept])


def test_the_gradient_has_the_same_elements_dropped():
    torch.manual_seed(0)
    values = torch.randn(50, 7, requires_grad=True)
    found = dropout(values, 0.4)
    found.sum().backward()
    assert torch.allclose(found, values * values.grad)
    assert values.grad.unique().tolist() == [0.0, pytest.approx(1 / 0.6, rel=1e-4)]


@pytest.mark.parametrize("terms", ["info_nce", "dino", [{"info_nce": 1.0}, {"mlm": 0.1}]])
def test_every_pass_of_a_training_step_uses_it(terms, tmp_path):
    folder = make_masked_encoder(tmp_path)
    values = {"encoder": {"name": str(folder)}, "data": {"train": "none"}}
    config = validate({**values, "objective": {"terms": terms}}, "test")
    loss = TrainingLoss(encoder.build(config.encoder).train(), config)
    with Called() as called:
        loss_of(loss, two_views(loss.model))
    passes = 1 if terms == "info_nce" else 2
    # After the embeddings, and in each layer after attention and after the feed-forward network;
    # PyTorch draws for the attention's weights.
    assert called.names.count("random_") == passes * (1 + 2 * 3)
    assert called.names.count("bernoulli_") == passes * 3


def test_each_module_keeps_its_own_probability():
    torch.manual_seed(0)
    shares = [
        float((Dropout(p)(torch.ones(100_000)) == 0).double().mean()) for p in (0.1, 0.3, 0.7)
    ]
    assert shares == pytest.approx([0.1, 0.3, 0.7], abs=0.01)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *OTHERS])
def test_without_dropout_every_architecture_is_as_before(architecture, tmp_path):
    """Padding, no padding, training and not; embeddings, gradients and what is saved."""
    model = encoder.build(EncoderConfig(name=str(make_encoder(tmp_path / "in", architecture))))
    ours = copy.deepcopy(model)
    install(ours)
    for texts in (SENTENCES, SENTENCES[:1]):
        for training in (False, True):
            found = []
            for one in (model, ours):
                tokens = one.tokenizer(texts, padding=True, return_tensors="pt")
                features = {key: tokens[key] for key in ("input_ids", "attention_mask")}
                one.train(training).zero_grad()
                with encoder.dropout(one, 0.0):
                    embeddings = one(dict(features))["sentence_embedding"]
                embeddings.square().sum().backward()
                gradients = [p.grad for p in one.parameters() if p.grad is not None]
                found.append([embeddings, *gradients])
            for expected, other in zip(*found, strict=True):
                torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-6)
    for name, one in (("a", model), ("b", ours)):
        encoder.save(one, tmp_path / name)
    saved = [
        {file.name: file.read_bytes() for file in (tmp_path / name).rglob("*") if file.is_file()}
        for name in ("a", "b")
    ]
    assert saved[0] == saved[1]
    assert encoder.fingerprint(ours) == encoder.fingerprint(model)


def test_the_setting_turns_all_of_it_off(tiny):
    """With no dropout the loss and the gradients of both are the same; with dropout who draws."""
    found = []
    for kernels in (True, False):
        values = {
            "encoder": {"name": str(tiny), "pooling": "cls"},
            "data": {"train": "none"},
            "training": {"cpu_kernels": kernels},
        }
        config = validate(values, "test")
        loss = TrainingLoss(encoder.build(config.encoder).train(), config)
        assert bool(loss.cuts) == kernels
        with Called() as called:
            loss_of(loss, two_views(loss.model))
        assert called.names.count("random_") == (7 if kernels else 0)
        assert called.names.count("bernoulli_") == (3 if kernels else 10)
        loss.dropouts = [0.0, 0.0]
        loss.zero_grad()
        value = loss_of(loss, two_views(loss.model))
        value.backward()
        found.append([value.detach(), *(p.grad for p in loss.model.parameters())])
    for ours, plain in zip(*found, strict=True):
        if plain is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_one_seed_one_result():
    model = encoder.build(EncoderConfig()).train()
    install(model)
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(dict(features))["sentence_embedding"])
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


def test_embeddings_have_pytorchs_distribution():
    """Mean and spread of many draws agree with those of PyTorch's own dropout."""
    model = encoder.build(EncoderConfig()).train()
    features = model.tokenizer(SENTENCES[:1] * 400, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = model(dict(features))["sentence_embedding"].double()
        install(model)
        ours = model(dict(features))["sentence_embedding"].double()
    error = (theirs.var(0) / 400 + ours.var(0) / 400).sqrt()
    deviation = (theirs.mean(0) - ours.mean(0)) / error  # (dim,), standard normal if equal
    assert float(deviation.abs().max()) < 5
    assert float(deviation.square().mean()) == pytest.approx(1, abs=0.5)
    assert float(ours.var(0).sum() / theirs.var(0).sum()) == pytest.approx(1, abs=0.1)


def test_a_module_without_dropout_to_compute_is_pytorchs():
    values = torch.randn(5, 3)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    assert torch.equal(Dropout(1.0)(values), torch.zeros(5, 3))
    torch.manual_seed(0)
    inplace = Dropout(0.5, inplace=True)(values.clone())
    torch.manual_seed(0)
    assert torch.equal(inplace, functional.dropout(values, 0.5))
