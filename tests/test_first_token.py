"""The last layer for the first token only: same embeddings and gradients, fewer operations."""

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, SENTENCES, loss_of, make_encoder, make_masked_encoder, two_views
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AlbertConfig,
    AutoModel,
    DebertaConfig,
    DebertaV2Config,
    LongformerConfig,
)

from simcse.config.reading import validate
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.encoders.encoding import encode_by_length
from simcse.encoders.first_token import cut, find_cuts
from simcse.training.loss import TrainingLoss


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


@pytest.mark.parametrize(
    "architecture",
    [
        name if name in ("bert", "modernbert") else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_same_embeddings_and_gradients_with_fewer_operations(architecture, tmp_path):
    folder = make_encoder(tmp_path, architecture)
    model = encoder.build(EncoderConfig(name=str(folder), pooling="cls"))
    cuts = find_cuts(model)
    assert cuts
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    share = assert_same(model.eval(), cuts, features)
    assert share < 0.9  # a third of the operations is in the last of three layers


def test_of_mini_bert_only_keys_and_values_stay_whole():
    model = encoder.build(EncoderConfig(pooling="cls", projection="train_only"))
    cuts = find_cuts(model)
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
    assert find_cuts(model) == []


OTHERS = {
    "albert": (AlbertConfig, {"embedding_size": 16}, False),  # layers share their weights
    "deberta": (DebertaConfig, {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, True),
    "deberta-v2": (DebertaV2Config, {"relative_attention": True, "pos_att_type": ["p2c"]}, True),
    "longformer": (LongformerConfig, {"attention_window": 16}, None),  # pads to a multiple of 16
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "deberta-v2" else name
        for name in OTHERS
    ],
)
def test_other_kinds_of_layers(name, tmp_path):
    kind, settings, is_cut = OTHERS[name]
    folder = make_encoder(tmp_path)
    torch.manual_seed(0)
    config = kind(
        vocab_size=8192, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=70, pad_token_id=0, **settings,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(folder)
    model = encoder.build(EncoderConfig(name=str(folder), pooling="cls"))
    cuts = find_cuts(model)
    assert is_cut is None or bool(cuts) == is_cut
    for texts in (SENTENCES, [" ".join(SENTENCES)], ["yes"], [" ".join(SENTENCES), "yes"]):
        features = model.tokenizer(texts, padding=True, return_tensors="pt")
        assert_same(model.eval(), cuts, features)


def test_windows_shorter_than_the_text(tmp_path):
    folder = make_encoder(tmp_path, "modernbert", local_attention=8)
    model = encoder.build(EncoderConfig(name=str(folder), pooling="cls"))
    cuts = find_cuts(model)
    assert cuts
    features = model.tokenizer([" ".join(SENTENCES), "yes"], padding=True, return_tensors="pt")
    assert_same(model.eval(), cuts, features)


def test_nothing_is_cut_where_the_first_token_may_not_be_the_first_pooled(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny), pooling="cls"))
    model[1].include_prompt = False
    assert find_cuts(model) == []
    model[1].include_prompt = True
    assert find_cuts(model)
    model.tokenizer.padding_side = "left"
    assert find_cuts(model) == []
    assert training_loss(tiny).cuts
    assert training_loss(tiny, views=[{"cutoff": 0.2}, {}]).cuts == []


def test_a_branch_that_starts_at_zero_keeps_its_gradient(tiny):
    """Embeddings alone would not tell: what it adds to keys and values is nothing yet."""

    class Added(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear
            self.down, self.up = torch.nn.Linear(32, 4), torch.nn.Linear(4, 32)
            torch.nn.init.zeros_(self.up.weight)
            torch.nn.init.zeros_(self.up.bias)

        def forward(self, states):
            return self.linear(states) + self.up(self.down(states))

    model = encoder.build(EncoderConfig(name=str(tiny), pooling="cls"))
    attention = model[0].model.encoder.layer[-1].attention.self
    attention.key, attention.value = Added(attention.key), Added(attention.value)
    cuts = find_cuts(model)
    assert cuts
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    assert assert_same(model.eval(), cuts, features) < 0.9


def test_a_failure_is_not_hidden_and_leaves_the_model_as_it_was(tiny, monkeypatch):
    model = encoder.build(EncoderConfig(name=str(tiny), pooling="cls")).train()
    model[0].eval()

    def refuse(*_):
        raise AssertionError("not like this")

    monkeypatch.setattr("simcse.encoders.first_token._try", refuse)
    with pytest.raises(AssertionError, match="not like this"):
        find_cuts(model)
    assert model[1].training and not model[0].training


def test_a_model_without_layers_has_nothing_to_cut(tiny):
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    assert (
        find_cuts(SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)])) == []
    )


def test_each_of_two_towers(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny), pooling="cls", towers="two"))
    with torch.no_grad():
        for parameter in model[0].sub_modules["document"].parameters():
            parameter.mul_(1.5)  # towers that have gone their own ways
    cuts = find_cuts(model)
    assert len(cuts) == 4
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    for route in ("query", "document"):
        assert assert_same(model.eval(), cuts, features, task=route) < 0.9


def test_the_model_is_left_as_it_was(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny), pooling="cls")).train()
    state = torch.get_rng_state()
    cuts = find_cuts(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    features = dict(model.tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    with pytest.raises(ZeroDivisionError), cut(cuts):
        assert model(dict(features))["token_embeddings"].shape[1] == 1
        raise ZeroDivisionError
    assert model(dict(features))["token_embeddings"].shape[1] == features["input_ids"].shape[1]
    assert not any(module._forward_hooks for module in model.modules())


def training_loss(folder, **settings):
    config = validate(
        {
            "encoder": {"name": str(folder), "pooling": "cls", "dropout": 0.0},
            "data": {"train": "none"},
            **settings,
        },
        "test",
    )
    torch.manual_seed(0)
    model = encoder.build(config.encoder).train()
    return TrainingLoss(model, config)


def test_a_training_step_uses_it_and_keeps_its_gradients(tiny):
    loss = training_loss(tiny)
    assert len(loss.cuts) == 2
    batch = two_views(loss.model)
    found = []
    for cuts in (loss.cuts, []):
        loss.cuts = cuts
        loss.zero_grad()
        counter = FlopCounterMode(display=False)
        with counter:
            value = loss_of(loss, batch)
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


@pytest.mark.parametrize("name", ["info_nce and mlm", pytest.param("dino", marks=pytest.mark.slow)])
def test_objectives_that_look_at_more_than_embeddings(name, tmp_path):
    folder = make_masked_encoder(tmp_path)
    terms = {"info_nce and mlm": [{"info_nce": 1.0}, {"mlm": 0.5}], "dino": "dino"}[name]
    values = []
    for is_cut in (True, False):
        loss = training_loss(folder, objective={"terms": terms})
        assert loss.cuts
        if not is_cut:
            loss.cuts = []
        torch.manual_seed(5)  # of the hidden tokens
        value = loss_of(loss, two_views(loss.model))
        value.backward()
        values.append((value.detach(), loss.model[0].model.embeddings.word_embeddings.weight.grad))
    assert torch.allclose(values[0][0], values[1][0], atol=1e-5)
    assert torch.allclose(values[0][1], values[1][1], atol=1e-5)


def test_encoding_uses_it_for_many_texts_only(tiny, monkeypatch):
    monkeypatch.setattr("simcse.encoders.encoding._WORTH_CUTTING", 60)
    model = encoder.build(EncoderConfig(name=str(tiny), pooling="cls"))
    texts = [f"{text} {i}" for i in range(10) for text in SENTENCES]
    widths = []
    model[1].register_forward_pre_hook(
        lambda module, inputs: widths.append(inputs[0]["token_embeddings"].shape[1])
    )
    found = encode_by_length(model, texts, 8)
    assert set(widths[-8:]) == {1}
    assert np.allclose(found, model.encode(texts), atol=1e-5)
    widths.clear()
    encode_by_length(model, texts[1:], 8)
    assert min(widths) > 1  # not tried, and the hooks are gone
