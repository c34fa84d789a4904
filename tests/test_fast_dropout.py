"""Dropout on the CPU: the right share, independent elements, and nothing else touched."""

import math
from contextlib import nullcontext

import pytest
import torch
from conftest import SENTENCES, loss_of, make_encoder, make_masked_encoder, two_views
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from simcse.config.reading import validate
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.encoders.fast_dropout import FastDropout, attention, dropout
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


def attended(kind, dtype=torch.float64):
    """Queries, keys and values of two texts of six tokens, and a mask."""
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 4, 6, 8, dtype=dtype).mul_(2).requires_grad_()
    seen = torch.rand(2, 1, 6, 6) < 0.7
    seen[..., 0] = True
    mask = {"none": None, "bool": seen, "added": torch.randn(2, 1, 6, 6, dtype=dtype)}[kind]
    return inputs, mask


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_with_next_to_no_dropout_is_pytorchs(kind, scale):
    """Called as models call it, with so little dropout that it rounds to none."""
    inputs, mask = attended(kind)
    expected = functional.scaled_dot_product_attention(*inputs, mask, scale=scale)
    [expected_gradient] = torch.autograd.grad(expected.square().sum(), inputs)
    with FastDropout(), Called() as called:
        found = functional.scaled_dot_product_attention(
            *inputs, attn_mask=mask, dropout_p=1e-9, scale=scale
        )
    assert "random_" in called.names
    [gradient] = torch.autograd.grad(found.square().sum(), inputs)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(gradient, expected_gradient, atol=1e-11)


@pytest.mark.parametrize("kind", ["bool", "added"])
def test_a_token_that_sees_nothing_spoils_no_other(kind):
    """Padding far behind a text does, where attention has a window."""
    inputs, _ = attended("none")
    seen = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    seen[0, :, 4:] = False
    mask = (
        seen if kind == "bool" else torch.zeros(seen.shape).masked_fill(~seen, -math.inf).double()
    )
    expected = functional.scaled_dot_product_attention(*inputs, mask)
    assert torch.isfinite(expected).all()
    real = torch.ones(2, 1, 6, 1)
    real[0, :, 4:] = 0
    found = attention(*inputs, mask, 0.0, None)
    assert torch.allclose(found * real, expected * real, atol=1e-12)
    [gradient] = torch.autograd.grad((found * real).square().sum(), inputs)
    [expected_gradient] = torch.autograd.grad((expected * real).square().sum(), inputs)
    assert torch.allclose(gradient, expected_gradient, atol=1e-11)


def test_windows_and_padding_leave_the_loss_finite(tmp_path):
    folder = make_encoder(tmp_path, "modernbert", local_attention=8)
    model = encoder.build(EncoderConfig(name=str(folder))).train()
    features = model.tokenizer([" ".join(SENTENCES), "yes"], padding=True, return_tensors="pt")
    with FastDropout():
        embeddings = model(dict(features))["sentence_embedding"]
    embeddings.square().sum().backward()
    assert torch.isfinite(embeddings).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("settings", [{"is_causal": True}, {"enable_gqa": True}])
def test_other_attention_is_left_to_pytorch(settings):
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 6, 8), *torch.randn(2, 1, 2, 6, 8)
    if "is_causal" in settings:
        key, value = key.repeat(1, 2, 1, 1), value.repeat(1, 2, 1, 1)
    found = []
    for mode in (nullcontext(), FastDropout()):
        torch.manual_seed(1)
        with mode:
            found.append(
                functional.scaled_dot_product_attention(
                    query, key, value, dropout_p=0.5, **settings
                )
            )
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("mixed", [False, True])
def test_in_bfloat16_the_softmax_is_as_exact_as_pytorchs(mixed):
    inputs, mask = attended("bool", torch.float32)
    exact = functional.scaled_dot_product_attention(*inputs, mask)
    half = [tensor.detach().bfloat16() for tensor in inputs]
    theirs = functional.scaled_dot_product_attention(*half, mask).float()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        ours = attention(*half, mask, 0.0, None)
    assert ours.dtype == torch.bfloat16
    error, allowed = (ours.float() - exact).abs().max(), (theirs - exact).abs().max()
    assert float(error) < 1.5 * float(allowed)
    added = torch.zeros(2, 1, 6, 6).masked_fill(~mask, -math.inf)  # float32 beside bfloat16
    assert torch.equal(attention(*half, added, 0.0, None), ours)


def test_attention_drops_weights_not_values():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 40, 8)
    weights = (query @ key.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
    found = attention(query, key, torch.eye(40).view(1, 1, 40, 40), None, 0.25, None)
    kept = found != 0
    assert torch.allclose(found[kept], weights[kept] / 0.75, rtol=1e-4)
    assert 0.6 < float(kept.double().mean()) < 0.9


@pytest.mark.parametrize("terms", ["info_nce", "dino", [{"info_nce": 1.0}, {"mlm": 0.1}]])
def test_every_pass_of_a_training_step_uses_it(terms, tmp_path):
    folder = make_masked_encoder(tmp_path)
    values = {"encoder": {"name": str(folder)}, "data": {"train": "none"}}
    config = validate({**values, "objective": {"terms": terms}}, "test")
    loss = TrainingLoss(encoder.build(config.encoder).train(), config)
    with Called() as called:
        loss_of(loss, two_views(loss.model))
    passes = 1 if terms == "info_nce" else 2
    assert called.names.count("random_") == passes * (1 + 3 * 3)
    # What is drawn to hide tokens is PyTorch's.
    assert called.names.count("bernoulli_") == 0


def test_each_module_keeps_its_own_probability():
    torch.manual_seed(0)
    with FastDropout():
        shares = [
            float((torch.nn.Dropout(p)(torch.ones(100_000)) == 0).double().mean())
            for p in (0.1, 0.3, 0.7)
        ]
    assert shares == pytest.approx([0.1, 0.3, 0.7], abs=0.01)


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
