"""Low-rank adapters: what is trained, what checkpoints hold, merged and alone."""

import builtins
import json

import numpy as np
import pytest
import torch
from conftest import DECODERS, SENTENCES, make_decoder, make_encoder, newest_checkpoint
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from simcse import SimCSE
from simcse.cli.main import main
from simcse.config.reading import validate
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder, lora
from simcse.encoders.first_token import cut, find_cuts
from simcse.errors import UserError
from simcse.files import files_in
from simcse.sealing import seal
from simcse.training.progress import Progress

RANK = "encoder.lora.rank=4"


def interrupted(arguments, step, monkeypatch):
    """Call ``main`` and press Ctrl-C after a step."""
    original = Progress.step

    def pressed(self, number):
        original(self, number)
        if number == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", pressed)
        return main(arguments) == 130


def test_exported_adapters_name_a_model_of_the_hub_in_place_of_a_folder(
    arguments, run, tmp_path, one_picture
):
    words = [RANK, "training.steps=2", "hub.base_model=me/base"]
    assert main([*arguments, *words]) == 0
    assert main(["export", str(run), str(tmp_path / "out"), "--adapter"]) == 0
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "me/base"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("targets", [[], ["query", "value"]])
def test_adapters_alone_are_trained_in_float32(tiny, dtype, targets):
    settings = {"lora": {"rank": 4, "targets": targets}, "dtype": dtype}
    model = encoder.build(EncoderConfig(name=str(tiny), **settings))
    named = dict(model.named_parameters())
    learned = {name for name, weight in named.items() if weight.requires_grad}
    assert learned == {name for name in named if ".lora_" in name}
    assert {named[name].dtype for name in learned} == {torch.float32}
    assert {named[name].dtype for name in named.keys() - learned} == {getattr(torch, dtype)}
    # Three layers: each with query, key, value, two dense layers and that of the attention.
    assert len(learned) == 2 * 3 * (len(targets) or 6)


def test_merging_adds_what_the_adapters_add(tiny):
    """Against the closed form: alpha / rank times B A, added to the weights."""
    config = EncoderConfig(name=str(tiny), lora={"rank": 4, "alpha": 6, "targets": ["query"]})
    model = encoder.build(config)
    layer = model[0].model.encoder.layer[0].attention.self.query
    torch.nn.init.normal_(layer.lora_B.default.weight)
    own = layer.base_layer.weight.detach().clone()
    expected = own + 6 / 4 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    before = model.encode(SENTENCES)
    lora.merge(model[0].model)
    merged = model[0].model.encoder.layer[0].attention.self.query
    torch.testing.assert_close(merged.weight, expected)
    np.testing.assert_allclose(model.encode(SENTENCES), before, atol=1e-5)
    plain = encoder.build(EncoderConfig(name=str(tiny)))
    assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "distilbert"])
def test_what_is_left_out_before_adapters_add_anything_stays_right(architecture, tmp_path):
    """Of a pass that pools the first token: found while one matrix of each adapter is zero."""
    folder = make_encoder(tmp_path / architecture, architecture)
    config = EncoderConfig(name=str(folder), pooling="cls", dropout=0.0, lora={"rank": 4})
    model = encoder.build(config).double()  # rounding of other matrix products stays far away
    cuts = find_cuts(model.eval())
    assert cuts
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in learned:
        torch.nn.init.normal_(weight, std=0.3)
    features = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    features = {key: features[key] for key in ("input_ids", "attention_mask")}

    def results():
        found = model(dict(features))["sentence_embedding"]
        return found, *torch.autograd.grad(found.square().sum(), learned, materialize_grads=True)

    whole = results()
    with cut(cuts):
        for shorter, expected in zip(results(), whole, strict=True):
            torch.testing.assert_close(shorter, expected, rtol=1e-10, atol=1e-10)


def test_a_checkpoint_holds_adapters_projection_and_objective(arguments, run, monkeypatch):
    arguments += [RANK, "objective.temperature.schedule=learnable"]
    assert interrupted(arguments, 5, monkeypatch)
    checkpoint = newest_checkpoint(run)
    assert files_in(checkpoint) == [
        "manifest.json", "objective.safetensors", "optimizer.pt", "random_0.pt", "state.json",
        "trained.safetensors",
    ]  # fmt: skip
    names = load_file(checkpoint / "trained.safetensors")
    projection = {name for name in names if ".lora_" not in name}
    assert projection == {"2.linear.weight", "2.linear.bias"}
    assert len(names) == 2 + 2 * 3 * 6


def test_a_checkpoint_without_an_adapter_is_refused(arguments, run, monkeypatch, capsys):
    arguments += [RANK]
    assert interrupted(arguments, 5, monkeypatch)
    for checkpoint in (run / "checkpoints").iterdir():
        weights = load_file(checkpoint / "trained.safetensors")
        weights.pop(next(name for name in weights if "lora_B" in name))
        save_file(weights, checkpoint / "trained.safetensors")
        seal(checkpoint, [name for name in files_in(checkpoint) if name != "manifest.json"])
    capsys.readouterr()
    assert main(arguments) == 2
    assert "it holds other weights than those that are trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    "step",
    [pytest.param(3, marks=pytest.mark.slow), 5, pytest.param(11, marks=pytest.mark.slow)],
)
def test_a_resumed_run_equals_the_uninterrupted_one(
    step, arguments, run, tmp_path, monkeypatch, capsys
):
    arguments += [RANK]
    assert main([*arguments, f"output={tmp_path / 'whole'}"]) == 0
    assert interrupted(arguments, step, monkeypatch)
    assert main(arguments) == 0
    assert "of them trained)" in capsys.readouterr().out
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        whole, resumed = (load_file(folder / name) for folder in (tmp_path / "whole", run))
        assert all(torch.equal(resumed[key], whole[key]) for key in whole), name


@pytest.mark.parametrize(
    "name",
    [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in DECODERS],
)
def test_merged_and_adapters_alone_embed_alike(name, arguments, run, tmp_path, capsys, one_picture):
    """Through the library, which needs no peft for the merged model."""
    decoder = make_decoder(tmp_path / name, name)
    words = [f"encoder.name={decoder}", "encoder.pooling=last_token", RANK]
    words += ["training.steps=4", "training.learning_rate=1e-2", "encoder.projection=always"]
    assert main([*arguments, *words]) == 0, capsys.readouterr().err
    merged = SentenceTransformer(str(run))
    assert not any("lora" in key for key in merged.state_dict())
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--adapter"]) == 0
    assert (out / "README.md").is_file() and not (out / "model.safetensors").exists()
    settings = json.loads((out / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == (str(decoder), None)
    alone = SentenceTransformer(str(out))
    assert any("lora" in key for key in alone.state_dict())
    expected, start = merged.encode(SENTENCES), SentenceTransformer(str(decoder))
    np.testing.assert_allclose(alone.encode(SENTENCES), expected, atol=1e-5)
    np.testing.assert_allclose(
        SimCSE(str(out)).encode(SENTENCES, return_numpy=True, normalize_to_unit=False),
        expected, atol=1e-5,
    )  # fmt: skip
    weight = next(key for key in merged.state_dict() if "attn" in key and "norm" not in key)
    assert not torch.equal(merged.state_dict()[weight], start.state_dict()[weight])


def test_training_goes_on_from_adapters_that_become_part_of_the_model(
    arguments, run, tmp_path, capsys, one_picture
):
    words = [RANK, "encoder.projection=none", "training.steps=4", "training.learning_rate=1e-2"]
    assert main([*arguments, *words]) == 0
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--adapter"]) == 0
    assert "holds low-rank adapters alone" in (out / "README.md").read_text()
    model = encoder.build(EncoderConfig(name=str(out)))
    assert all(weight.requires_grad for weight in model.parameters())
    expected = SentenceTransformer(str(run)).encode(SENTENCES)
    np.testing.assert_allclose(model.encode(SENTENCES), expected, atol=1e-5)
    with pytest.raises(UserError, match="is adapters already; name a merged model"):
        encoder.build(EncoderConfig(name=str(out), lora={"rank": 2}))


def test_publishing_sends_the_merged_model(arguments, run, capsys, one_picture):
    assert main([*arguments, RANK, "training.steps=4"]) == 0
    capsys.readouterr()
    assert main(["publish", str(run), "me/model", "--dry-run"]) == 0
    files = capsys.readouterr().out.split("README.md:")[0]
    assert "model.safetensors" in files and "adapter" not in files


@pytest.mark.slow
def test_a_base_in_bfloat16_is_trained_resumed_and_exported(
    arguments, run, tmp_path, monkeypatch, capsys
):
    decoder = make_decoder(tmp_path / "llama")
    arguments += [f"encoder.name={decoder}", "encoder.projection=none", RANK]
    arguments += ["encoder.dtype=bfloat16", "encoder.attention=bidirectional"]
    arguments += ["objective.terms=[{info_nce: 1.0}, {mntp: 0.1}]"]
    assert main([*arguments, f"output={tmp_path / 'whole'}"]) == 0, capsys.readouterr().err
    assert interrupted(arguments, 6, monkeypatch)
    assert main(arguments) == 0
    whole, resumed = (load_file(f / "model.safetensors") for f in (tmp_path / "whole", run))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert {weight.dtype for weight in whole.values()} == {torch.bfloat16}
    assert main(["export", str(run), str(tmp_path / "out"), "--adapter"]) == 2
    assert "adapters cannot tell their model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lora": {"alpha": 8}}, "alpha has no meaning without rank"),
        ({"dtype": "bfloat16"}, "dtype: bfloat16 is for weights that are not trained"),
        (
            {"dtype": "bfloat16", "lora": {"rank": 4}, "projection": "always"},
            "projection: needs encoder.dtype=float32",
        ),
        ({"lora": {"rank": 4}, "towers": "two"}, "lora: needs one encoder for all texts"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, expected):
    with pytest.raises(UserError, match=expected):
        validate({"encoder": settings, "data": {"form": "pairs", "train": "x.csv"}}, "test")


def test_layers_that_are_not_there_are_named(tiny):
    config = EncoderConfig(name=str(tiny), lora={"rank": 4, "targets": ["q_proj"]})
    expected = r"encoder\.lora\.targets: no layer is called 'q_proj'; linear layers are dense, k"
    with pytest.raises(UserError, match=expected):
        encoder.build(config)
    some = EncoderConfig(name=str(tiny), lora={"rank": 4, "targets": ["query", "q_proj"]})
    with pytest.raises(UserError, match=expected):  # peft takes it if one of them is there
        encoder.build(some)


def test_a_missing_package_is_named(tiny, monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name == "peft":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'simcse-trainer\[lora\]'"):
        encoder.build(EncoderConfig(name=str(tiny), lora={"rank": 4}))


def test_dropout_of_adapters_makes_views(arguments, capsys, tmp_path):
    """They add nothing before the first step, so the views are equal there."""
    decoder = make_decoder(tmp_path / "qwen3", "qwen3")
    arguments += [f"encoder.name={decoder}", "encoder.pooling=mean", RANK, "training.steps=4"]
    assert main(arguments) == 0, capsys.readouterr().err
    assert main([*arguments, "encoder.lora.dropout=0", f"output={tmp_path / 'other'}"]) == 2
    assert "; encoder.lora.dropout; or repeat" in capsys.readouterr().err


def test_adapters_are_asked_for_in_export_only_where_there_are_some(two_seeds, tmp_path, capsys):
    assert main(["export", str(two_seeds), str(tmp_path / "out"), "--adapter"]) == 2
    assert "was trained without encoder.lora" in capsys.readouterr().err
    words = ["export", str(two_seeds), str(tmp_path / "out"), "--adapter", "--format", "onnx"]
    assert main(words) == 2
    assert "--adapter has no meaning with --format onnx" in capsys.readouterr().err
