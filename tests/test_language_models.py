"""Decoder language models as encoders: attention, pooling, padding, the end of a text, MNTP."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import DECODERS, SENTENCES, make_decoder, make_encoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModelForCausalLM

from simcse import SimCSE
from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.data.tokens import first_ids
from simcse.data.views import ViewCollator
from simcse.encoders import encoder
from simcse.encoders.language_models import sees_later_tokens
from simcse.encoders.mini_batches import mini_batches
from simcse.errors import UserError
from simcse.objectives import MaskedNextToken


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoders")
    return {name: make_decoder(folder / name, name) for name in DECODERS}


@pytest.fixture
def words(text_file, tmp_path):
    """Settings of a run of six steps, but for its encoder."""
    return [
        "train", "quickstart", f"data.train={text_file}", "data.form=sentences",
        "data.max_length=32", "encoder.projection=none", "training.steps=6",
        "training.batch_size=8", "training.precision=float32", "evaluation.dev=pairs",
        "evaluation.tasks=pairs", "evaluation.every=3", "evaluation.raw_poolings=mean",
        f"output={tmp_path / 'run'}",
    ]  # fmt: skip


def built(folder, **settings):
    return encoder.build(EncoderConfig(name=str(folder), **settings))


def alone(model, texts):
    return np.concatenate([model.encode([text]) for text in texts])


RUNS = (("llama", "own"), ("gpt2", "bidirectional"))


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        case if case in RUNS else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(DECODERS, ("own", "bidirectional"))
    ],
)
def test_a_run_makes_an_encoder_that_the_library_loads(
    name, attention, decoders, words, tmp_path, capsys, one_picture
):
    pooling = "last_token" if attention == "own" else "weighted_mean"
    words += [f"encoder.name={decoders[name]}", f"encoder.pooling={pooling}"]
    words += [f"encoder.attention={attention}", "encoder.dropout=0.1"]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text().replace("\\_", "_")
    assert f"{pooling} pooling" in card and "With transformers alone" not in card

    model = SentenceTransformer(str(tmp_path / "out"))
    assert sees_later_tokens(model[0]) == (attention == "bidirectional")
    assert model.tokenizer.pad_token == "</s>" and model.tokenizer.padding_side == "right"
    assert encoder.pooling_of(model) == pooling
    found = model.encode(SENTENCES)
    np.testing.assert_allclose(found, alone(model, SENTENCES), atol=1e-5)
    ours = SimCSE(str(tmp_path / "out")).encode(SENTENCES * 40, return_numpy=True)[:6]
    np.testing.assert_allclose(
        ours, found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-5
    )
    ends = [row[-1] for row in model.tokenizer(SENTENCES)["input_ids"]]
    assert ends.count(1) == (6 if pooling == "last_token" else 0)


@pytest.mark.parametrize("name", DECODERS)
def test_training_embeds_as_encode_does(name, decoders):
    """Padded by our collator and the library's, with an end, also where a text is cut."""
    model = built(decoders[name], pooling="last_token").eval()
    texts = [*SENTENCES, "the cat and the dog " * 20]
    ids, cut = first_ids(texts, model.tokenizer, model.max_seq_length)
    assert cut == 1 and all(row[-1] == 1 for row in ids) and len(ids[-1]) == 64
    rows = [{"input_ids": [row], "text_hash": [i], "label": 0} for i, row in enumerate(ids)]
    collator = ViewCollator(model.tokenizer.pad_token_id, single=True)
    features = collator.features(rows, model.device)
    with torch.no_grad():
        found = model({key: features[key] for key in ("input_ids", "attention_mask")})
    np.testing.assert_allclose(found["sentence_embedding"].numpy(), alone(model, texts), atol=1e-5)


def test_a_stored_model_keeps_its_side_of_padding(decoders, tmp_path):
    transformer = Transformer(str(decoders["llama"]))
    transformer.tokenizer.pad_token = "</s>"
    transformer.tokenizer.padding_side = transformer.tokenizer.init_kwargs["padding_side"] = "left"
    SentenceTransformer(modules=[transformer, Pooling(32, "lasttoken")]).save(str(tmp_path / "m"))
    model = built(tmp_path / "m").eval()
    assert model.tokenizer.padding_side == "left"
    ids = [model.tokenizer(text)["input_ids"] for text in SENTENCES]
    rows = [{"input_ids": [row], "text_hash": [i], "label": 0} for i, row in enumerate(ids)]
    collator = ViewCollator(model.tokenizer.pad_token_id, single=True, padding_side="left")
    features = collator.features(rows, model.device)
    assert features["attention_mask"][:, -1].all() and not features["attention_mask"].all()
    texts = {key: features[key] for key in ("input_ids", "attention_mask")}
    parts = mini_batches(texts, 2, "left")
    assert all(part["attention_mask"].any(dim=0).all() for _, part in parts)  # nothing but padding
    found = torch.empty(6, 32)
    with torch.no_grad():
        for rows_of_part, part in parts:
            found[rows_of_part] = model(dict(part))["sentence_embedding"]
    np.testing.assert_allclose(found.numpy(), alone(model, SENTENCES), atol=1e-5)
    ours = SimCSE(str(tmp_path / "m")).encode(
        SENTENCES * 40, normalize_to_unit=False, return_numpy=True
    )
    np.testing.assert_allclose(ours[:6], found.numpy(), atol=1e-5)


def test_weighted_mean_counts_later_tokens_more(decoders):
    model = built(decoders["gpt2"], pooling="weighted_mean").eval()
    features = model.tokenizer(SENTENCES[:1], return_tensors="pt")
    with torch.no_grad():
        states = model[0](dict(features))["token_embeddings"][0]
    weights = torch.arange(1.0, len(states) + 1)
    expected = sum(w * state for w, state in zip(weights, states, strict=True)) / weights.sum()
    np.testing.assert_allclose(alone(model, SENTENCES[:1])[0], expected.numpy(), atol=1e-5)


def test_a_tokenizer_that_ends_texts_is_left_as_it_is(tiny):
    model = built(tiny, pooling="last_token")
    assert model.tokenizer("a")["input_ids"] == built(tiny).tokenizer("a")["input_ids"]


def test_dropout_is_set_by_whatever_name_it_has(decoders):
    assert built(decoders["llama"], dropout=0.3)[0].config.attention_dropout == 0.3
    config = built(decoders["gpt2"], dropout=0.3)[0].config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.3, 0.3, 0.3)
    assert config.summary_first_dropout == 0.1  # of a head


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_mntp_reads_a_hidden_token_at_the_token_before(architecture, side, decoders):
    """Against the language model itself, which sees the same ids, and a loop over its logits."""
    settings = EncoderConfig(name=str(decoders[architecture]), attention="bidirectional")
    model = encoder.build(settings).eval()
    torch.manual_seed(1)
    term = MaskedNextToken(model, settings, probability=0.5)
    # Learned positions count padding on the left.
    term.hide.tokenizer.padding_side = side = "right" if architecture == "gpt2" else side
    tokens = model.tokenizer(SENTENCES, padding=True, padding_side=side, return_tensors="pt")
    hidden = {}

    def states(features):
        hidden.update(features)
        return model[0](dict(features))["token_embeddings"]

    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    with torch.no_grad():
        [loss] = term.token_losses(states, ids, mask)
    blank = model.tokenizer.convert_tokens_to_ids("_")
    assert (hidden["input_ids"] == blank).sum() > 10
    whole = AutoModelForCausalLM.from_pretrained(decoders[architecture]).eval()
    whole.config.is_causal = False
    with torch.no_grad():
        scores = whole(input_ids=hidden["input_ids"], attention_mask=mask).logits.log_softmax(-1)
    # Hidden tokens that were left or replaced by chance are asked for too: take them from the term.
    torch.manual_seed(1)
    again = MaskedNextToken(model, settings, probability=0.5)
    keep = again.never_hidden(ids, mask)
    _, labels = again.hide.torch_mask_tokens(ids.clone(), special_tokens_mask=keep)
    asked = [(row, i) for row, i in (labels != -100).nonzero().tolist()]
    expected = -sum(float(scores[row, i - 1, ids[row, i]]) for row, i in asked) / len(asked)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert all(mask[row, i] and mask[row, i - 1] for row, i in asked)


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_mntp_alone_trains_and_simcse_goes_on_from_it(name, decoders, words, tmp_path, capsys):
    first = [*words, f"encoder.name={decoders[name]}", "objective.terms=mntp"]
    first += ["encoder.attention=bidirectional", "training.mini_batch_size=4"]
    assert main(first) == 0, capsys.readouterr().err
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] == pytest.approx(np.log(400), rel=0.1)  # knows nothing yet
    assert losses[-1] < losses[0]
    second = [*words[:-1], f"encoder.name={tmp_path / 'run'}", "encoder.pooling=null"]
    second += ["encoder.dropout=0.1", "encoder.attention=bidirectional"]
    assert main([*second, f"output={tmp_path / 'second'}"]) == 0, capsys.readouterr().err
    assert sees_later_tokens(SentenceTransformer(str(tmp_path / "second"))[0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["encoder.pooling=cls"], "the first token, which pooling cls takes, does not see those"),
        (
            ["encoder.pooling=mean", "evaluation.raw_poolings=[cls, mean]"],
            "evaluation.raw_poolings: the first token, which pooling cls takes",
        ),
        (["objective.terms=mntp"], "mntp asks for a token that later ones tell of"),
        (
            [
                "objective.terms=mntp",
                "encoder.attention=bidirectional",
                "encoder.projection=always",
            ],
            "encoder.projection: has no meaning with mntp alone",
        ),
        (
            ["objective.terms={mntp: {mask_token: <none>}}", "encoder.attention=bidirectional"],
            "mask_token '<none>' is no token of its tokenizer",
        ),
        (
            ["encoder.pooling=mean"],
            "set encoder.dropout, such as 0.1 (attention_dropout), or a view's dropout; "
            "encoder.lora; or repeat, shuffle or cutoff of a view",
        ),
    ],
)
def test_what_a_causal_model_cannot_do_is_one_line(settings, expected, decoders, words, capsys):
    assert main([*words, f"encoder.name={decoders['llama']}", *settings]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_attention_that_stays_causal_is_refused(decoders, monkeypatch):
    monkeypatch.setattr("simcse.encoders.language_models.sees_later_tokens", lambda _: False)
    with pytest.raises(UserError, match="stays causal with attention bidirectional"):
        built(decoders["llama"], attention="bidirectional")


def test_encoders_see_the_whole_text_anyway(tmp_path):
    for architecture in ("bert", "modernbert", "distilbert", "t5", "longformer"):
        folder = make_encoder(tmp_path / architecture, architecture)
        assert sees_later_tokens(built(folder)[0]), architecture
