"""What views do to token ids, and how a batch is laid out."""

import numpy as np
import pytest
import torch
from conftest import MINI_BERT
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from simcse.config.settings import ViewConfig
from simcse.data.views import View, ViewCollator, cut_off, repeat_words, special_ends

IDS = [2, 10, 11, 12, 13, 14, 3]


def rows(*texts, labels=None):
    made = [{"input_ids": [text], "text_hash": [hash(tuple(text))]} for text in texts]
    for number, row in enumerate(made):
        row["label"] = 0 if labels is None else labels[number]
    return made


@given(
    st.lists(st.integers(5, 10_000), min_size=1, max_size=30, unique=True),
    st.floats(0.01, 0.9),
    st.integers(0),
)
def test_repetition_doubles_tokens_in_place(ids, rate, seed):
    result = repeat_words(ids, rate, np.random.default_rng(seed))
    assert len(ids) <= len(result) <= len(ids) + max(2, int(rate * len(ids)))
    # Taking out one of each chosen neighbour pair gives the old ids back.
    left, doubled = list(result), len(result) - len(ids)
    for position, token in enumerate(ids):
        assert left[position] == token
        following = left[position + 1 : position + 2]
        if doubled and following == [token] and left[position + 1 :] != ids[position + 1 :]:
            del left[position + 1]
            doubled -= 1
    assert sorted(set(result)) == sorted(set(ids))


def test_repetition_reaches_none_and_the_most():
    sizes = {len(repeat_words(list(range(10)), 0.3, np.random.default_rng(i))) for i in range(200)}
    assert sizes == {10, 11, 12, 13}


@given(st.integers(1, 40), st.floats(0.01, 0.99), st.integers(0))
def test_cutoff_leaves_at_least_one_token(tokens, rate, seed):
    mask = cut_off(tokens, rate, np.random.default_rng(seed))
    assert len(mask) == tokens and set(mask) <= {0, 1} and sum(mask) >= 1


def test_special_tokens_stay_and_a_template_goes_around():
    tokenizer = AutoTokenizer.from_pretrained(MINI_BERT)
    assert special_ends(tokenizer) == (1, 1)
    config = ViewConfig(template='This sentence: "{}" means something.', shuffle=True)
    view = View.of(config, tokenizer)
    text = "the cat sleeps on the mat"
    ids, mask = view.apply(tokenizer(text)["input_ids"], np.random.default_rng(0))
    words = tokenizer.decode(ids)
    assert words.startswith("[CLS]") and words.endswith("[SEP]")
    assert 'this sentence : "' in words and '" means something. [SEP]' in words
    inner = ids[view.start + len(view.before) : len(ids) - view.end - len(view.after)]
    assert sorted(inner) == sorted(tokenizer(text)["input_ids"][1:-1])
    assert inner != tokenizer(text)["input_ids"][1:-1]
    assert mask == [1] * len(ids)


def test_views_compose():
    view = View(repeat=0.5, cutoff=0.5, shuffle=True, before=(7,), after=(8, 9), start=1, end=1)
    ids, mask = view.apply(IDS, np.random.default_rng(1))
    assert ids[:2] == [2, 7] and ids[-3:] == [8, 9, 3]
    assert set(ids[2:-3]) == {10, 11, 12, 13, 14}
    assert mask[:2] == [1, 1] and mask[-3:] == [1, 1, 1] and 0 in mask[2:-3]
    assert not view.is_plain and View(start=1, end=1).is_plain


def test_a_sentence_stands_in_both_columns():
    batch = ViewCollator(9)(rows([1, 2, 3], [4]))
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]] * 2
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]] * 2
    assert batch["identities"].shape == (2, 2)
    assert torch.equal(batch["identities"][0], batch["identities"][1])
    assert {value.dtype for value in batch.values()} == {torch.int64}
    single = ViewCollator(9, single=True)(rows([1, 2, 3], [4]))
    assert single["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]


def test_pairs_and_triplets_bring_their_columns():
    row = {"input_ids": [[1, 2], [3], [4, 5, 6]], "text_hash": [7, 8, 9], "label": 0}
    other = {"input_ids": [[1], [2], [3]], "text_hash": [4, 5, 6], "label": 0}
    batch = ViewCollator(0)([row, other])
    assert batch["input_ids"].tolist() == [
        [1, 2, 0], [1, 0, 0], [3, 0, 0], [2, 0, 0], [4, 5, 6], [3, 0, 0],
    ]  # fmt: skip
    assert batch["identities"].tolist() == [[7, 4], [8, 5], [9, 6]]


def test_labelled_rows_are_anchors_then_positives():
    batch = ViewCollator(0, paired=True)(rows([1], [2], [3], [4], labels=[5, 6, 5, 6]))
    assert batch["input_ids"].tolist() == [[1], [2], [3], [4]]
    assert batch["labels"].tolist() == [5, 6]
    assert batch["identities"].shape == (2, 2)


CHANGED = View(repeat=0.4, cutoff=0.3, shuffle=True, start=1, end=1)
TEXTS = [[2, *range(10, 10 + n), 3] for n in range(5, 13)]


def made(collator, *texts):
    """Ids and mask of each text's two views, without padding at their ends."""
    batch = collator(rows(*texts))
    ids, masks = (batch[f"{key}"] for key in ("input_ids", "attention_mask"))
    ends = [row.index(3) + 1 for row in ids.tolist()]
    rows_of = zip(ids.tolist(), masks.tolist(), ends, strict=True)
    views = [(one[:end], mask[:end]) for one, mask, end in rows_of]
    return list(zip(views[: len(texts)], views[len(texts) :], strict=True))


def test_a_view_is_a_function_of_text_column_seed_and_epoch():
    collator = ViewCollator(0, views=(CHANGED, CHANGED), seed=1)
    whole = made(collator, *TEXTS)
    assert all(first != second for first, second in whole)
    # Neither the others of the batch nor its order matter, so several processes see the same.
    assert made(collator, *TEXTS[:4]) + made(collator, *TEXTS[4:]) == whole
    assert made(collator, *TEXTS[::-1]) == whole[::-1]
    other_seed = made(ViewCollator(0, views=(CHANGED, CHANGED), seed=2), *TEXTS)
    collator.epoch = 1
    for another in (other_seed, made(collator, *TEXTS)):
        assert all(one != two for one, two in zip(another, whole, strict=True))


def test_workers_of_a_data_loader_make_the_views_of_the_epoch():
    data = rows(*TEXTS)
    collator = ViewCollator(0, views=(View(), CHANGED))
    found = []
    for workers in (0, 2):
        loader = DataLoader(data, batch_size=4, collate_fn=collator, num_workers=workers)
        for collator.epoch in (0, 1):
            found.append([batch["input_ids"].tolist() for batch in loader])
    assert found[:2] == found[2:] and found[0] != found[1]


def test_texts_are_kept_as_they_are_beside_their_views():
    collator = ViewCollator(9, views=(CHANGED, CHANGED), keeps_texts=True)
    batch = collator(rows([2, 5, 6, 7, 3], [2, 8, 3]))
    assert batch["text_ids"].tolist() == [[2, 5, 6, 7, 3], [2, 8, 3, 9, 9]] * 2
    assert batch["text_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]] * 2


@pytest.mark.parametrize("rate", [0.15])
def test_cutoff_hides_tokens_from_attention_alone(rate):
    collator = ViewCollator(0, views=(View(), View(cutoff=rate, start=1, end=1)))
    batch = collator(rows(*[[2, *range(10, 30), 3]] * 50))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert torch.equal(ids[:50], ids[50:])
    assert mask[:50].all() and mask[50:, 0].all() and mask[50:, -1].all()
    assert 1 - float(mask[50:, 1:-1].float().mean()) == pytest.approx(rate, abs=0.04)
