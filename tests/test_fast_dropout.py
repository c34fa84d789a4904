"""Dropout on the CPU: the right share, independent elements, and nothing else touched."""

import math

import pytest
import torch
from conftest import SENTENCES
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from simcse import encoder
from simcse.fast_dropout import FastDropout, attention, dropout
from simcse.settings import EncoderConfig


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


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_without_dropout_is_pytorchs(kind, scale):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 8, dtype=torch.float64)
    seen = torch.rand(2, 1, 6, 6) < 0.7
    seen[..., 0] = True
    mask = {"none": None, "bool": seen, "added": torch.randn(2, 1, 6, 6, dtype=torch.float64)}[kind]
    found = attention(query, key, value, mask, 0.0, scale)
    expected = functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    assert torch.allclose(found, expected, atol=1e-12)


def test_attention_drops_weights_not_values():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 40, 8)
    weights = (query @ key.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
    found = attention(query, key, torch.eye(40).view(1, 1, 40, 40), None, 0.25, None)
    kept = found != 0
    assert torch.allclose(found[kept], weights[kept] / 0.75, rtol=1e-4)
    assert 0.6 < float(kept.double().mean()) < 0.9


def test_active_it_takes_over_modules_functions_and_attention():
    model = encoder.build(EncoderConfig()).train()
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    for modes, drawn in (((), "bernoulli_"), ((FastDropout(),), "random_")):
        called = Called()
        with called:
            if modes:
                with modes[0]:
                    model(dict(features))
            else:
                model(dict(features))
        other = {"bernoulli_": "random_", "random_": "bernoulli_"}[drawn]
        layers = 4
        # After the embeddings, and in each layer for the attention's weights and two outputs.
        assert called.names.count(drawn) == 1 + 3 * layers
        assert other not in called.names


def test_one_seed_one_result():
    model = encoder.build(EncoderConfig()).train()
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with FastDropout():
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
        with FastDropout():
            ours = model(dict(features))["sentence_embedding"].double()
    error = (theirs.var(0) / 400 + ours.var(0) / 400).sqrt()
    deviation = (theirs.mean(0) - ours.mean(0)) / error  # (dim,), standard normal if equal
    assert float(deviation.abs().max()) < 5
    assert float(deviation.square().mean()) == pytest.approx(1, abs=0.5)
    assert float(ours.var(0).sum() / theirs.var(0).sum()) == pytest.approx(1, abs=0.1)


def test_without_dropout_nothing_changes():
    model = encoder.build(EncoderConfig())
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    values = torch.randn(5, 3)
    for training in (False, True):
        model.train(training)
        with encoder.dropout(model, 0.0):
            plain = model(dict(features))["sentence_embedding"]
            with FastDropout():
                assert torch.equal(model(dict(features))["sentence_embedding"], plain)
    with FastDropout():
        assert torch.equal(functional.dropout(values, 0.5, training=False), values)
        assert torch.equal(functional.dropout(values, 1.0), torch.zeros(5, 3))
        state = torch.get_rng_state()
        inplace = functional.dropout(values.clone(), 0.5, inplace=True)
        torch.set_rng_state(state)
    assert torch.equal(inplace, functional.dropout(values, 0.5))
