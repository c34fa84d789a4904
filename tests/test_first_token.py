"""The last layer for the first token only: same embeddings and gradients, fewer operations."""

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, SENTENCES, make_encoder
from sentence_transformers import SentenceTransformer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AlbertConfig, AutoModel

from simcse import encoder
from simcse.config import validate
from simcse.encoding import encode_by_length
from simcse.first_token import cut, find_cuts
from simcse.loss import TrainingLoss
from simcse.settings import EncoderConfig


def names_of(model, modules):
    """Names of modules of the transformer."""
    names = {module: name for name, module in encoder.transformer_of(model).named_modules()}
    return [names[module] for module in modules]


def passed(model, modules, features, key="sentence_embedding", **route):
    """Embeddings, gradients of their squares' sum, and operations of the forward pass."""
    model.zero_grad()
    counter = FlopCounterMode(display=False)
    with cut(modules), counter:
        embeddings = model(dict(features), **route)[key]
    embeddings.square().sum().backward()
    return (
        embeddings.detach(),
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        counter.get_total_flops(),
    )


def assert_same(model, modules, features, **route):
    plain, gradients, operations = passed(model, [], features, **route)
    found, found_gradients, fewer = passed(model, modules, features, **route)
    assert torch.allclose(found, plain, atol=1e-6)
    for name, gradient in gradients.items():
        other = found_gradients.get(name, torch.zeros_like(gradient))
        assert torch.allclose(other, gradient, atol=1e-5), name
    return fewer / operations


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_embeddings_and_gradients_with_fewer_operations(architecture, tmp_path):
    folder = make_encoder(tmp_path, architecture)
    model = encoder.build(EncoderConfig(name=str(folder), pooling="cls"))
    cuts = find_cuts(model, 32)
    assert cuts
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    share = assert_same(model.eval(), cuts, features)
    assert share < 0.9  # a third of the operations is in the last of three layers


def test_of_mini_bert_only_keys_and_values_stay_whole():
    model = encoder.build(EncoderConfig(pooling="cls", projection="train_only"))
    cuts = find_cuts(model, 32)
    assert names_of(model, cuts) == [
        "model.encoder.layer.3.attention.self",
        "model.encoder.layer.3.attention.output.LayerNorm",
    ]
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    share = assert_same(model.eval(), cuts, features)
    # Of a layer's 12 shares (query, key, value, output: 1 each, feed-forward: 8) nine are left out
    # for all tokens but one; attention itself is the small rest.
    tokens = int(features["attention_mask"].numel())
    left_out = 9 * (1 - len(SENTENCES) / tokens) / (4 * 12)
    assert share == pytest.approx(1 - left_out, abs=0.005)


@pytest.mark.parametrize("pooling", ["mean", "avg_first_last"])
def test_nothing_is_cut_where_all_tokens_are_pooled(pooling, tiny):
    model = encoder.build(EncoderConfig(name=str(tiny), pooling=pooling))
    assert find_cuts(model, 32) == []


def test_nothing_is_cut_where_layers_share_weights(tmp_path, tiny):
    folder = make_encoder(tmp_path / "albert")
    config = AlbertConfig(
        vocab_size=8192, embedding_size=16, hidden_size=32, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=48,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    model = encoder.build(EncoderConfig(name=str(folder), pooling="cls"))
    assert find_cuts(model, 32) == []


def test_each_of_two_towers(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny), pooling="cls", towers="two"))
    with torch.no_grad():
        for parameter in model[0].sub_modules["document"].parameters():
            parameter.mul_(1.5)  # towers that have gone their own ways
    cuts = find_cuts(model, 32)
    assert len(cuts) == 4
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    for route in ("query", "document"):
        assert assert_same(model.eval(), cuts, features, task=route) < 0.9


def test_the_model_is_left_as_it_was(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny), pooling="cls")).train()
    state = torch.get_rng_state()
    cuts = find_cuts(model, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    features = dict(model.tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    with pytest.raises(ZeroDivisionError), cut(cuts):
        assert model(dict(features))["token_embeddings"].shape[1] == 1
        raise ZeroDivisionError
    assert model(dict(features))["token_embeddings"].shape[1] == features["input_ids"].shape[1]
    assert not any(module._forward_hooks for module in model.modules())


def training_loss(folder, **objective):
    config = validate(
        {
            "encoder": {"name": str(folder), "pooling": "cls", "dropout": 0.0},
            "objective": objective,
            "data": {"train": "none"},
        },
        "test",
    )
    torch.manual_seed(0)
    model = encoder.build(config.encoder).train()
    return TrainingLoss(model, config)


def test_a_training_step_uses_it_and_keeps_its_gradients(tiny):
    loss = training_loss(tiny)
    assert len(loss.cuts) == 2
    batch = dict(loss.model.tokenizer([*SENTENCES, *SENTENCES[::-1]], padding=True,
                                      return_tensors="pt"))  # fmt: skip
    batch["identities"] = torch.arange(12).view(2, 6)
    found = []
    for cuts in (loss.cuts, []):
        loss.cuts = cuts
        loss.zero_grad()
        counter = FlopCounterMode(display=False)
        with counter:
            value = loss([dict(batch)])
        value.backward()
        gradients = [p.grad.clone() for p in loss.model.parameters() if p.grad is not None]
        found.append((value.detach(), gradients, counter.get_total_flops()))
    (value, gradients, fewer), (expected, expected_gradients, operations) = found
    assert torch.allclose(value, expected, atol=1e-6)
    assert fewer < 0.9 * operations
    assert len(gradients) == len(expected_gradients)
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, expected_gradients, strict=True)
    )


def test_encoding_uses_it_for_many_texts_only(tiny, monkeypatch):
    model = encoder.build(EncoderConfig(name=str(tiny), pooling="cls"))
    texts = [f"{text} {i}" for i in range(10) for text in SENTENCES]
    asked = []

    def noted(model: SentenceTransformer, length: int):
        asked.append(length)
        return find_cuts(model, length)

    monkeypatch.setattr("simcse.encoding.find_cuts", noted)
    found = encode_by_length(model, texts, 4)
    longest = max(len(ids) for ids in model.tokenizer(texts)["input_ids"])
    assert asked == [longest]
    assert np.allclose(found, model.encode(texts), atol=1e-5)
    encode_by_length(model, texts, 32)
    assert asked == [longest]
