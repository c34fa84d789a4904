import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, MINI_BERT, OTHERS, SENTENCES, make_encoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from transformers import AutoModel, AutoTokenizer

from simcse.cli.main import main
from simcse.config.settings import Config, EncoderConfig, ViewConfig
from simcse.data.views import ViewCollator
from simcse.encoders import encoder
from simcse.errors import UserError
from simcse.training.setup import check_views_differ
from simcse.training.text import view_collator


def reference(folder, pooling: str) -> torch.Tensor:
    """Pooling written out on plain transformers, without sentence-transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        hidden = model.eval()(**inputs, output_hidden_states=True).hidden_states
    if pooling == "cls":
        return hidden[-1][:, 0]
    states = hidden[-1] if pooling == "mean" else (hidden[1] + hidden[-1]) / 2
    mask = inputs["attention_mask"].unsqueeze(-1)
    return (states * mask).sum(1) / mask.sum(1)


ROWS = {"form": "sentences"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pooling", ["cls", "mean", "avg_first_last"])
def test_pooling_equals_plain_transformers(tmp_path, architecture, pooling):
    folder = make_encoder(tmp_path / "encoder", architecture)
    model = encoder.build(EncoderConfig(name=str(folder), pooling=pooling))
    expected = reference(folder, pooling).numpy()
    np.testing.assert_allclose(model.encode(SENTENCES), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("architecture", "projection"),
    [
        case
        if case[0] in ("bert", "modernbert") or case[1] == "train_only"
        else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(ARCHITECTURES, ("none", "train_only", "always"))
    ],
)
def test_saved_model_loads_with_stock_sentence_transformers(tmp_path, architecture, projection):
    folder = make_encoder(tmp_path / "encoder", architecture)
    for pooling in ("cls", "avg_first_last"):
        settings = {"name": str(folder), "pooling": pooling, "projection": projection}
        model = encoder.build(EncoderConfig(**settings)).eval()
        encoder.save(encoder.exported(model), tmp_path / pooling)
        again = SentenceTransformer(str(tmp_path / pooling))
        np.testing.assert_array_equal(again.encode(SENTENCES), model.encode(SENTENCES))
        assert not any("pooler" in name for name, _ in again.named_parameters())
        types = [m["type"] for m in json.loads((tmp_path / pooling / "modules.json").read_text())]
        assert sum("Dense" in t for t in types) == (projection == "always")
        assert all(t.startswith("sentence_transformers.") for t in types)
        assert not list((tmp_path / pooling).rglob("*.bin"))


@pytest.mark.slow
def test_saved_model_loads_where_simcse_cannot_be_imported(tmp_path, tiny):
    model = encoder.build(EncoderConfig(name=str(tiny), projection="train_only"))
    encoder.save(encoder.exported(model), tmp_path / "model")
    code = (
        "import sys; sys.modules['simcse'] = None\n"
        "from sentence_transformers import SentenceTransformer\n"
        f"print(SentenceTransformer({str(tmp_path / 'model')!r}).encode('A sentence.').tolist())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    expected = model.encode("A sentence.").tolist()
    assert json.loads(answer.stdout) == pytest.approx(expected, abs=1e-6)


def test_encode_ignores_a_projection_for_training_only(tiny):
    plain = encoder.build(EncoderConfig(name=str(tiny)))
    projected = encoder.build(EncoderConfig(name=str(tiny), projection="train_only"))
    np.testing.assert_array_equal(plain.encode(SENTENCES), projected.encode(SENTENCES))
    features = projected.preprocess(SENTENCES)
    output = projected(features)
    head = projected[-1].linear
    expected = torch.tanh(head(output["sentence_embedding"]))
    torch.testing.assert_close(output[encoder.training_key(projected)], expected)
    assert encoder.training_key(plain) == "sentence_embedding"


def test_views_differ_in_training_and_agree_in_evaluation(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny)))
    rows = [{"input_ids": [[2, 50, 60, 3]], "text_hash": [1]}]
    rows.append({"input_ids": [[2, 70, 3]], "text_hash": [2]})
    features = ViewCollator(0).features(rows, model.device)
    del features["identities"]
    first, second = model.train()(dict(features))["sentence_embedding"].view(2, 2, -1)
    assert (first != second).any(dim=1).all()
    first, second = model.eval()(dict(features))["sentence_embedding"].view(2, 2, -1)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_padding_and_order_do_not_change_an_embedding(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny)))
    together = model.encode(SENTENCES)
    alone = np.stack([model.encode(sentence) for sentence in SENTENCES])
    backwards = model.encode(SENTENCES[::-1], batch_size=2)[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together, backwards, atol=1e-6)


def check(config, model, rows):
    """Whether the views of some rows differ."""
    check_views_differ(config, model, view_collator(config, config.sets[0], model)(rows))


@pytest.mark.parametrize(
    "architecture",
    [
        name if name in ("bert", "modernbert") else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_dropout_override_and_missing_dropout(tmp_path, architecture):
    folder = str(make_encoder(tmp_path / "encoder", architecture))
    rows = [{"input_ids": [[2, 50, 60, 70, 3]], "text_hash": [1]}]
    without = encoder.build(EncoderConfig(name=folder, dropout=0.0))
    with pytest.raises(UserError, match=r"encoder\.dropout: there is no dropout"):
        check(Config(data=ROWS), without, rows)
    check(Config(data=ROWS), encoder.build(EncoderConfig(name=folder, dropout=0.3)), rows)
    # One view's own rate, in a pass of its own, reaches every dropout of every architecture.
    own = Config(data=ROWS, views=[ViewConfig(), ViewConfig(dropout=0.3)])
    check(own, without, rows)
    with encoder.dropout(without.train(), 0.3):
        probabilities = {m.p for m in without.modules() if isinstance(m, torch.nn.Dropout)}
    assert probabilities <= {0.3}
    with pytest.raises(UserError, match=r"encoder\.dropout: there is no dropout"):
        check(Config(data=ROWS), without, rows)  # and is put back
    # Another way to make views differ needs no dropout.
    shuffled = Config(data=ROWS, views=[ViewConfig(), ViewConfig(shuffle=True)])
    check(shuffled, without, [{**rows[0], "text_hash": [h]} for h in range(8)])


@pytest.mark.parametrize("architecture", OTHERS)
def test_dropout_of_a_view_reaches_modules_that_keep_it_as_a_number(tmp_path, architecture):
    folder = make_encoder(tmp_path / "encoder", architecture)
    model = encoder.build(EncoderConfig(name=str(folder))).train()
    features = dict(model.tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    features.pop("token_type_ids", None)

    def passes():
        return [model(dict(features))["sentence_embedding"] for _ in range(2)]

    first, second = passes()
    assert not torch.allclose(first, second, atol=1e-3)
    with encoder.dropout(model, 0.0):
        first, second = passes()
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
        expected = model.eval()(dict(features))["sentence_embedding"]
        torch.testing.assert_close(first, expected, rtol=0, atol=1e-5)
    before = torch.random.get_rng_state()
    encoder.check_dropout_is_reached(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training


def test_randomness_that_no_rate_reaches_is_refused(tmp_path, arguments, capsys):
    folder = make_encoder(tmp_path / "encoder", "flaubert", layerdrop=0.5, n_layers=8)
    words = [f"encoder.name={folder}", "views=[{dropout: 0.0}, {dropout: 0.2}]"]
    assert main([*arguments, *words]) == 2
    assert "views: dropout of a view cannot be set" in capsys.readouterr().err


def test_weights_are_float32_whatever_they_were_stored_in(tmp_path, tiny):
    AutoModel.from_pretrained(tiny).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    shutil.copytree(tiny, tmp_path / "half", dirs_exist_ok=True, ignore=lambda _, names: [
        name for name in names if not name.startswith("tokenizer")
    ])  # fmt: skip
    model = encoder.build(EncoderConfig(name=str(tmp_path / "half")))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_view_check_leaves_the_random_state_alone(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny)))
    before = torch.random.get_rng_state()
    check(Config(data=ROWS), model, [{"input_ids": [[2, 50, 60, 3]], "text_hash": [1]}])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_length_does_not_limit_the_export(tiny):
    assert encoder.build(EncoderConfig(name=str(tiny))).max_seq_length == 64
    assert encoder.build(EncoderConfig(name="mini-bert")).max_seq_length == 128


def test_lengths_of_the_last_call_are_not_saved_with_the_tokenizer(tiny, tmp_path):
    model = encoder.build(EncoderConfig(name=str(tiny)))
    model.tokenizer(["A text.", "No."], padding=True, truncation=True, max_length=3)
    encoder.save(model, tmp_path / "one")
    rules = json.loads((tmp_path / "one" / "tokenizer.json").read_text())
    assert rules["truncation"] is None and rules["padding"] is None
    encoder.save(encoder.build(EncoderConfig(name=str(tmp_path / "one"))), tmp_path / "two")
    settings = json.loads((tmp_path / "two" / "tokenizer_config.json").read_text())
    # fastembed cuts texts at the smaller of the two.
    assert settings["model_max_length"] == 64 and "max_length" not in settings


def test_damaged_weights_and_empty_folders_are_one_line(tmp_path, tiny):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "empty").mkdir()
    for name in ("damaged", "empty"):
        with pytest.raises(UserError, match=f"{name} cannot be loaded: ") as error:
            encoder.build(EncoderConfig(name=str(tmp_path / name)))
        assert "\n" not in str(error.value)


def test_shipped_encoder_is_found_by_name(monkeypatch):
    assert encoder.source_of("mini-bert") == str(MINI_BERT)
    assert encoder.source_of("mini-distilled") == str(MINI_BERT.with_name("mini-distilled"))
    monkeypatch.setattr(encoder, "snapshot", lambda *asked, refresh: Path("cache", *asked))
    assert encoder.source_of("bert-base-uncased", "main") == "cache/bert-base-uncased/main"
    assert sum(p.numel() for p in encoder.build(EncoderConfig()).parameters()) == 5_289_984


@pytest.mark.parametrize("name", ["no/such-encoder", "/no/such/folder"])
def test_missing_encoder_is_one_line(name):
    with pytest.raises(UserError, match=f"encoder.name: {name} is neither a model folder") as error:
        encoder.build(EncoderConfig(name=name))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def stored(tiny, tmp_path_factory):
    """A sentence-transformers model in which everything differs from the defaults."""
    torch.manual_seed(5)
    transformer = Transformer(str(tiny), max_seq_length=48, do_lower_case=True)
    dense = Dense(32, 16, bias=False, activation_function=torch.nn.GELU())
    model = SentenceTransformer(
        modules=[transformer, Pooling(32, "max"), dense, Normalize()],
        prompts={"query": "find: ", "document": "text: "},
        default_prompt_name="query",
        similarity_fn_name="dot",
        truncate_dim=12,
    )
    folder = tmp_path_factory.mktemp("stored") / "model"
    model.save_pretrained(str(folder))
    return folder


def same_settings(a, b):
    for x, y in zip(a, b, strict=True):
        assert type(x) is type(y)
        assert x.get_config_dict() == y.get_config_dict()
    names = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
    for name in (*names, "max_seq_length"):
        assert getattr(a, name) == getattr(b, name)
    return True


@pytest.mark.parametrize("projection", ["none", "train_only"])
def test_a_sentence_model_is_built_as_it_is(stored, tmp_path, projection):
    theirs = SentenceTransformer(str(stored), device="cpu")
    ours = encoder.build(EncoderConfig(name=str(stored), projection=projection))
    assert theirs.get_embedding_dimension() == ours.get_embedding_dimension() == 12
    assert encoder.width(ours) == 16
    np.testing.assert_allclose(ours.encode(SENTENCES), theirs.encode(SENTENCES), atol=1e-6)
    assert same_settings(encoder.exported(ours), theirs)
    encoder.save(encoder.exported(ours), tmp_path / "again")
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert same_settings(again, theirs)
    for role in ("encode_query", "encode_document", "encode"):
        found = getattr(again, role)(SENTENCES)
        np.testing.assert_allclose(found, getattr(theirs, role)(SENTENCES), atol=1e-6)
    output = ours.train()(dict(ours.tokenizer(SENTENCES, padding=True, return_tensors="pt")))
    assert output[encoder.training_key(ours)].requires_grad


def test_a_sentence_model_is_trained_further_with_all_its_modules(
    stored, arguments, run, tmp_path, one_picture
):
    words = [f"encoder.name={stored}", "training.steps=4", "evaluation.raw_poolings=[cls, mean]"]
    assert main([*arguments, *words, "encoder.dropout=0.2"]) == 0
    before, after = (SentenceTransformer(str(f), device="cpu") for f in (stored, run))
    assert same_settings(after, before)
    weights = after.state_dict()
    changes = {
        name: float((weights[name] - weight).abs().max())
        for name, weight in before.state_dict().items()
        if "pooler" not in name
    }
    assert 0 < changes["2.linear.weight"] < 0.01  # four steps of at most 0.001
    assert max(changes.values()) < 0.01
    assert all(change > 0 for name, change in changes.items() if "attention.output" in name)
    scores = json.loads((run / "scores.json").read_text())
    assert set(scores["raw"]) == {"own"}
    assert main(["export", str(run), str(tmp_path / "exported")]) == 0
    exported = SentenceTransformer(str(tmp_path / "exported"), device="cpu")
    np.testing.assert_array_equal(exported.encode(SENTENCES), after.encode(SENTENCES))
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "max pooling, then the module Dense, then the module Normalize" in card
    assert "With transformers alone" not in card
    assert main([*arguments, *words, "encoder.dropout=0.2"]) == 0  # is finished


def test_a_sentence_model_has_two_towers_of_all_its_modules(stored):
    model = encoder.build(EncoderConfig(name=str(stored), towers="two", projection="train_only"))
    theirs = SentenceTransformer(str(stored), device="cpu")
    expected = theirs.encode_document(SENTENCES)
    np.testing.assert_allclose(model.encode_document(SENTENCES), expected, atol=1e-6)
    assert [type(part) for part in model[0].sub_modules["query"]] == [type(m) for m in theirs]
    assert (model.prompts, model.default_prompt_name) == (theirs.prompts, "query")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling": "mean"}, "encoder.pooling: .* has pooling max of its own"),
        ({"projection": "always"}, "encoder.projection: .* keeps the modules it has; allowed is"),
    ],
)
def test_what_contradicts_a_sentence_model_is_refused(stored, settings, expected):
    with pytest.raises(UserError, match=expected) as error:
        encoder.build(EncoderConfig(name=str(stored), **settings))
    assert "\n" not in str(error.value)


def test_the_pooling_that_a_sentence_model_has_may_be_named(tiny, tmp_path):
    for pooling in ("cls", "avg_first_last"):
        config = EncoderConfig(name=str(tiny), pooling=pooling)
        encoder.save(encoder.build(config), tmp_path / pooling)
        again = EncoderConfig(name=str(tmp_path / pooling), pooling=pooling)
        encoder.build(again)
        assert encoder.pooling_of(encoder.build(again.model_copy(update={"pooling": None}))) == (
            pooling
        )


def test_what_does_not_begin_with_a_transformer_cannot_be_trained(tiny, tmp_path):
    encoder.save(encoder.build(EncoderConfig(name=str(tiny), towers="two")), tmp_path / "towers")
    tokenizer = AutoTokenizer.from_pretrained(tiny).backend_tokenizer
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)])
    static.save_pretrained(str(tmp_path / "static"))
    for name, first in (("towers", "Router"), ("static", "StaticEmbedding")):
        with pytest.raises(UserError, match=f"begins with the module {first}; only"):
            encoder.build(EncoderConfig(name=str(tmp_path / name)))


def test_a_folder_has_no_revision(tiny):
    for name in (str(tiny), encoder.EMBEDDED_ENCODER):
        expected = f"encoder.name: {name}: revision v2 has no meaning for a folder"
        with pytest.raises(UserError, match=re.escape(expected)):
            encoder.build(EncoderConfig(name=name, revision="v2"))
