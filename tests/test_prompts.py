"""Prompts before queries and documents: in training, while encoding, in what is saved."""

import json

import numpy as np
import pytest
import torch
from conftest import MINI_BERT, SENTENCES
from sentence_transformers import SentenceTransformer
from test_documents import made_up
from test_own_tests import QRELS, beir
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from simcse.cli.main import main
from simcse.config.reading import load_config
from simcse.data.tokens import prompt_ids
from simcse.encoders import encoder, encoding
from simcse.encoders.encoding import encode_by_length
from simcse.errors import UserError
from simcse.training.text import TrainingText

PROMPTS = {"query": "query: ", "document": "The passage says: "}


@pytest.fixture
def pairs(arguments, tmp_path):
    """Settings of a run on questions and answers."""
    rows = [f"what is number {i},number {i} is {7 * i} steps away" for i in range(24)]
    (tmp_path / "pairs.csv").write_text("\n".join(["anchor,positive", *rows]))
    return [*arguments[1:], f"data.train={tmp_path / 'pairs.csv'}", "data.form=pairs"]


def read(words):
    config = load_config(words[0], [*words[1:], f"encoder.prompts={json.dumps(PROMPTS)}"])
    model = encoder.build(config.encoder)
    return model, TrainingText.read(config, model)


def test_training_sees_what_encoding_sees(pairs):
    model, text = read([*pairs, "encoder.projection=none"])
    features = text.sample(0, 4)
    model.eval()
    with torch.no_grad():
        found = model(dict(features))["sentence_embedding"]
    rows = list(range(4))
    anchors = model.encode_query([f"what is number {i}" for i in rows])
    others = model.encode_document([f"number {i} is {7 * i} steps away" for i in rows])
    np.testing.assert_allclose(found[:4], anchors, atol=1e-6)
    np.testing.assert_allclose(found[4:], others, atol=1e-6)
    plain = model.encode([f"what is number {i}" for i in rows])
    assert np.abs(anchors - plain).max() > 1e-2


def test_a_text_is_the_same_whatever_its_prompt(arguments):
    model, text = read(arguments[1:])
    features = text.sample(0, 6)
    first, second = features["identities"]
    assert first.equal(second)  # so a sentence is no negative of itself
    tokens = features["input_ids"].split(6)
    start = [model.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in
             PROMPTS.values()]  # fmt: skip
    for ids, own in zip(tokens, start, strict=True):
        assert (ids[:, 1 : 1 + len(own)] == torch.tensor(own)).all()
    inner = [
        [row[1 + len(own) :][row[1 + len(own) :] > 0].tolist() for row in ids]
        for ids, own in zip(tokens, start, strict=True)
    ]
    assert inner[0] == inner[1]


def test_a_set_has_prompts_of_its_own(pairs):
    model, text = read([*pairs, "data.prompts={document: 'answer: '}"])
    ids = text.sample(0, 3)["input_ids"]
    words = [model.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    assert words[0] == "what is number 0"
    assert words[3].startswith("answer : number 0")


def test_spans_of_documents_begin_with_the_prompt(arguments, tmp_path):
    (tmp_path / "docs").mkdir()
    for number in range(40):
        (tmp_path / "docs" / f"{number}.txt").write_text(made_up(number))
    words = [*arguments[1:], f"data.train={tmp_path / 'docs'}", "training.batch_size=4"]
    model, text = read(words)
    first, second = text.sample(0, 8)["input_ids"].chunk(2)
    for ids, prompt in ((first, "query :"), (second, "the passage says :")):
        decoded = [model.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        assert all(words.startswith(prompt) for words in decoded)


def test_prompts_are_saved_resumed_and_scored(pairs, run, tmp_path, capsys):
    prompts = f"encoder.prompts={json.dumps(PROMPTS)}"
    search = beir(tmp_path / "search", QRELS)
    words = ["train", *pairs, prompts, "training.steps=4", "evaluation.raw_poolings=mean"]
    words.append(f"evaluation.tasks=retrieval:{search}")
    assert main(words) == 0
    model = SentenceTransformer(str(run), device="cpu")
    assert model.prompts == PROMPTS
    own = json.loads((run / "scores.json").read_text())["raw"]["mean"]["retrieval:search"]
    assert main([*words, "encoder.prompts={}", f"output={tmp_path / 'plain'}"]) == 0
    plain = json.loads((tmp_path / "plain" / "scores.json").read_text())["raw"]["mean"]
    assert own["ndcg_at_10"] != plain["retrieval:search"]["ndcg_at_10"]
    assert main(["export", str(run), str(tmp_path / "exported")]) == 0
    assert SentenceTransformer(str(tmp_path / "exported"), device="cpu").prompts == PROMPTS
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "encode_query" in card and "With transformers alone" not in card


def test_prompted_texts_are_sorted_by_length_too(tiny, monkeypatch):
    model = SentenceTransformer(str(tiny), device="cpu", prompts=PROMPTS)
    texts = [f"{text} {i}" for i in range(4) for text in SENTENCES]
    expected = model.encode_document(texts, batch_size=1)
    sizes = []
    original = encoding._in_batches
    monkeypatch.setattr(
        encoding,
        "_in_batches",
        lambda *given, **named: sizes.append(len(given[1])) or original(*given, **named),
    )
    found = encode_by_length(model, texts, 4, role="document")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sizes == [len(texts)]


def byte_level():
    """A tokenizer that takes a space to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["query: river river Yes 3 of 7"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_whether_prompt_and_text_may_be_tokenised_apart():
    ids, same = prompt_ids("query: ", AutoTokenizer.from_pretrained(MINI_BERT))
    assert same and len(ids) > 1
    tokenizer = byte_level()
    assert not prompt_ids("query: ", tokenizer)[1]
    ids, same = prompt_ids("query:\n", tokenizer)
    assert same and ids == tokenizer("query:\n")["input_ids"]
    assert prompt_ids("", tokenizer) == ([], True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("encoder.prompts={passage: a}", "encoder.prompts"),
        ("encoder.prompts={query: 3}", "encoder.prompts.query"),
        (f"encoder.prompts={{query: '{'word ' * 90}'}}", "encoder.prompts: different texts get"),
        (f"data.prompts={{query: '{'word ' * 40}'}}", "views: with prompt, template"),
    ],
)
def test_prompts_that_cannot_be_are_refused(arguments, setting, message, capsys):
    assert main([*arguments, setting]) == 2
    assert message in capsys.readouterr().err


def test_prompts_that_are_not_pooled_are_refused(pairs):
    config = load_config(pairs[0], [*pairs[1:], f"encoder.prompts={json.dumps(PROMPTS)}"])
    model = encoder.build(config.encoder)
    model[1].include_prompt = False
    with pytest.raises(UserError, match="leaves prompts out of its pooling"):
        TrainingText.read(config, model)
