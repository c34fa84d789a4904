"""Encoding by length in tokens: the same vectors, in the order of the texts."""

import copy
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import CNN, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.encoders.encoding import _PROBE, encode_by_length, token_ids

TRIAL = len(_PROBE) + 1  # passes: each text of the probe alone, and all in one batch


@pytest.fixture(scope="module")
def model(tiny):
    return encoder.build(EncoderConfig(name=str(tiny)))


@given(
    texts=st.lists(st.sampled_from([*SENTENCES, "a", "word " * 90, "日本"]), max_size=12),
    batch_size=st.integers(1, 5),
    normalize=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_same_vectors_as_the_library(model, texts, batch_size, normalize):
    found = encode_by_length(model, texts, batch_size, normalize=normalize)
    if not texts:
        assert found.shape == (0, 32)
        return
    expected = model.encode(texts, normalize_embeddings=normalize)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32


def test_a_single_batch_has_no_bar(model, capsys):
    encode_by_length(model, ["a", "b c"], 4, show_progress=True)
    assert capsys.readouterr().err == ""


def test_of_long_texts_a_beginning_is_tokenised(model, tokenised):
    texts = [" ".join(SENTENCES[start:] * 300) for start in range(4)]
    expected = model.encode(texts)
    np.testing.assert_allclose(encode_by_length(model, texts, 8), expected, atol=1e-5)
    assert len(tokenised) == len(_PROBE) + 4 and max(tokenised) <= 32 * 64


@pytest.fixture
def shapes(model):
    """Attention mask of every forward pass."""
    masks = []
    hook = model[0].register_forward_pre_hook(
        lambda module, inputs: masks.append(inputs[0]["attention_mask"])
    )
    yield masks
    hook.remove()


def test_batches_hold_texts_of_like_length(model, shapes):
    texts = ["x " * n for n in np.random.default_rng(0).permutation(60)[:40] + 1]
    encode_by_length(model, texts, 10)
    batches = shapes[TRIAL:]
    lengths = [mask.sum(dim=1) for mask in batches]
    assert [len(batch) for batch in lengths] == [10] * 4
    assert all(later.max() <= earlier.min() for earlier, later in pairwise(lengths))
    computed = sum(mask.numel() for mask in batches)
    assert computed < 1.25 * sum(int(batch.sum()) for batch in lengths)


def test_a_batch_on_the_cpu_has_a_bounded_number_of_tokens(model, shapes, monkeypatch):
    monkeypatch.setattr("simcse.encoders.encoding._CPU_TOKENS", 100)
    texts = [f"{'x ' * n}{i}" for n in (1, 20, 60) for i in range(12)]
    found = encode_by_length(model, texts, 10)
    sizes = [mask.numel() for mask in shapes[TRIAL:]]
    assert max(sizes) <= 100
    assert max(len(mask) for mask in shapes[TRIAL:]) == 10
    np.testing.assert_allclose(found, model.encode(texts), atol=1e-5)


@pytest.mark.parametrize("role", [None, "query", "document"])
def test_each_text_is_tokenised_once(model, role, monkeypatch):
    texts = [f"text {i}" for i in range(50)]
    counts = Counter()
    tokenize = PreTrainedTokenizerFast._encode_plus

    def counted(self, text, *args, **kwargs):
        counts.update([text] if isinstance(text, str) else text)
        return tokenize(self, text, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", counted)
    encode_by_length(model, [*texts, *texts], 8, role=role)
    assert [counts[text] for text in texts] == [1] * 50


def changed(model, change):
    """A copy of the model that treats texts in a way of its own."""
    other = copy.deepcopy(model)
    change(other)
    return other


@pytest.mark.parametrize(
    ("change", "role"),
    [
        (lambda m: m.prompts.update(query="query: "), "query"),
        (lambda m: vars(m).update(prompts={"a": "b: "}, default_prompt_name="a"), None),
        (lambda m: setattr(m, "truncate_dim", 8), None),
        (lambda m: setattr(m.tokenizer, "padding_side", "left"), None),
        (lambda m: m.half(), None),
        (lambda m: m[0].register_forward_pre_hook(
            lambda module, inputs: inputs[0].__setitem__("input_ids", inputs[0]["input_ids"] * 0)
            if "token_type_ids" in inputs[0] else None), None),
    ],
    ids=["prompt of a role", "default prompt", "truncated", "left", "half", "token types"],
)  # fmt: skip
def test_models_that_do_more_give_the_librarys_vectors(model, change, role):
    texts = [f"{text} {i}" for i in range(4) for text in SENTENCES]
    other = changed(model, change)
    expected = {"query": other.encode_query, None: other.encode}[role](texts, batch_size=4)
    found = encode_by_length(other, texts, 4, role=role)
    limit = 2e-3 if other[0].model.dtype == torch.float16 else 1e-5
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=limit)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_texts_are_encoded_alone_where_padding_changes_them(tiny, model, count):
    torch.manual_seed(0)
    cnn = CNN(32, 16, [1, 3, 5])  # convolves over the padding too
    leaking = SentenceTransformer(modules=[copy.deepcopy(model[0]), cnn, Pooling(48, "mean")])
    texts = [f"{'x ' * (7 * i % 19)}{i}" for i in range(count)]
    alone = np.concatenate([leaking.encode([text]) for text in texts])
    assert np.abs(leaking.encode(texts) - alone).max() > 1e-4
    np.testing.assert_allclose(encode_by_length(leaking, texts, 8), alone, atol=1e-6)


def test_weights_in_half_precision_are_equal_to_their_resolution(model):
    half = changed(model, lambda m: m.half())
    texts = [f"{'x ' * (7 * i % 19)}{i}" for i in range(40)]
    alone = np.concatenate([half.encode([text]) for text in texts])
    limit = np.abs(alone).max() * torch.finfo(torch.float16).eps
    np.testing.assert_allclose(encode_by_length(half, texts, 8), alone, atol=limit)


def test_a_model_that_our_batches_break_is_left_to_the_library_and_it_is_said(
    model, monkeypatch, capsys
):
    def broken(*_):
        raise TypeError("expected two")

    monkeypatch.setattr("simcse.encoders.encoding.token_ids", broken)
    texts = [f"{text} {i}" for i in range(4) for text in SENTENCES]
    expected = model.encode(texts, batch_size=4)
    capsys.readouterr()
    np.testing.assert_allclose(encode_by_length(model, texts, 4), expected, atol=1e-6)
    assert capsys.readouterr().err == (
        "warning: the library encodes this model, in its own batches, which is slower: "
        "TypeError: expected two\n"
    )


def test_models_without_a_fast_tokenizer(tiny):
    words = StaticEmbedding(Tokenizer.from_file(str(tiny / "tokenizer.json")), embedding_dim=8)
    model = SentenceTransformer(modules=[words])
    found = encode_by_length(model, SENTENCES, 2)
    np.testing.assert_allclose(found, model.encode(SENTENCES), atol=1e-6)


def test_ids_have_special_tokens_and_stop_at_the_limit(model):
    ids = token_ids(model, ["a", "word " * 90])
    assert [len(one) for one in ids] == [3, 64]
    assert ids[0].tolist() == model.tokenizer("a")["input_ids"]
