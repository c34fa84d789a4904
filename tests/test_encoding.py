"""Encoding by length in tokens: the same vectors, in the order of the texts."""

import numpy as np
import pytest
from conftest import SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse import encoder
from simcse.encoding import encode_by_length, token_lengths
from simcse.settings import EncoderConfig


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


def test_batches_hold_texts_of_like_length(model, monkeypatch):
    seen = []
    original = model.encode

    def spy(texts, **arguments):
        seen.append(texts)
        return original(texts, **arguments)

    monkeypatch.setattr(model, "encode", spy)
    texts = ["x " * n for n in np.random.default_rng(0).permutation(60)[:40] + 1]
    encode_by_length(model, texts, 10)
    lengths = [token_lengths(model, batch) for batch in seen]
    assert len(seen) == 4
    assert all(later.max() <= earlier.min() for earlier, later in zip(lengths, lengths[1:]))  # noqa: B905, RUF007
    computed = sum(batch.max() * len(batch) for batch in lengths)
    assert computed < 1.25 * sum(batch.sum() for batch in lengths)


def test_lengths_count_special_tokens_and_stop_at_the_limit(model):
    assert token_lengths(model, ["a", "word " * 90]).tolist() == [3, 64]
