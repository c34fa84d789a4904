"""The first tokens of a text of any length, and chunks bounded by characters."""

import pytest
from conftest import MINI_BERT, SENTENCES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from simcse.config.settings import DataConfig
from simcse.data import tokens
from simcse.data.rows import load_training_data
from simcse.data.tokens import first_ids, in_chunks

CORPUS = [*SENTENCES, "Zwei süße Sätze, “quoted”.", "日本語 ﬁ text", "aaaa aaa aaaaaaa  a"] * 3


def trained(kind):
    """A tokenizer of another family, trained on a few sentences."""
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(" ", "▁")]
            if kind == "whole"
            else [normalizers.NFKC()]
        )
        if kind == "unigram":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


KINDS = ["wordpiece", "byte-level", "unigram", "whole"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    if request.param == "wordpiece":
        return AutoTokenizer.from_pretrained(MINI_BERT)
    return trained(request.param)


def whole(tokenizer, texts, max_length):
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    return ids, sum(len(one) > max_length for one in tokenizer(texts)["input_ids"])


_word = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_words = st.lists(
    _word | st.sampled_from([*" ".join(SENTENCES).split(), "a" * 30, ""]), max_size=12
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(_words, st.sampled_from([" ", "  ", "\t", "\u00a0", " \u0301", ""]), st.integers(1, 60))
def test_first_ids_are_those_of_the_whole_text(tokenizer, words, between, times):
    text = between.join(words * times)
    texts = ["short", text, f"{' ' * 1500}{text}", "x" * 1200]
    assert first_ids(texts, tokenizer, 16) == whole(tokenizer, texts, 16)


def test_of_a_long_text_a_beginning_is_tokenised(tokenizer, tokenised, monkeypatch):
    text = " ".join(SENTENCES * 200)
    found, cut = first_ids([text, "one", text.replace(" ", "-")], tokenizer, 16)
    assert cut == 3 - (len(found[1]) < 16)
    splits = tokenizer.backend_tokenizer.pre_tokenizer is not None
    assert (max(tokenised[:1]) <= 1000) == splits
    assert len(tokenised) == 3
    tokenised.clear()
    monkeypatch.setattr(tokenizer, "truncation_side", "left")
    first_ids([text], tokenizer, 16)
    assert tokenised == [len(text)]


def test_chunks_are_bounded_by_number_and_by_characters(monkeypatch):
    monkeypatch.setattr(tokens, "CHARACTERS", 10)
    texts = ["x" * 4, "x" * 4, "x" * 4, "x" * 50, "", "", "", "", "x"]
    found = list(in_chunks(iter(texts), 4, len))
    assert [len(chunk) for chunk in found] == [3, 1, 4, 1]
    assert [text for chunk in found for text in chunk] == texts


def test_a_corpus_of_long_lines_is_tokenised_in_bounded_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "CHARACTERS", 20_000)
    given = []
    original = tokens._tokenize

    def spy(texts, *rest):
        given.append(sum(map(len, texts)))
        return original(texts, *rest)

    monkeypatch.setattr(tokens, "_tokenize", spy)
    lines = [f"{n}{'wor-' * 2000}" for n in range(20)]  # no space to cut at
    (tmp_path / "a.txt").write_text("\n".join(lines))
    bert = AutoTokenizer.from_pretrained(MINI_BERT)
    config = DataConfig(train=[str(tmp_path / "a.txt")], cache=str(tmp_path / "c"))
    assert load_training_data(config, bert, seed=0)[1].truncated == 20
    assert max(given) <= 20_000 + 8_002
    given.clear()
    lines = [f"{n} {'word ' * 2000}" for n in range(20)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    assert load_training_data(config, bert, seed=0)[1].truncated == 20
    assert sum(given) <= 20 * 1024
