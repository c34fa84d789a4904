"""Precision: what `auto` is, that a run keeps it, and what it does to encoding."""

import json

import numpy as np
import pytest
import torch
from conftest import SENTENCES

from simcse import SimCSE
from simcse.cli.main import main
from simcse.config.reading import load_config, read_config, to_yaml
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder, precision
from simcse.encoders.encoding import encode_by_length
from simcse.errors import UserError
from simcse.training import setup, several
from simcse.training.setup import with_resolved_precision

MIXED = ["a river " * (1 + n % 7) + str(n) for n in range(80)]


@pytest.fixture(scope="module")
def model(tiny):
    return encoder.build(EncoderConfig(name=str(tiny)))


def on_cpu(monkeypatch, *capabilities):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    found = {"avx512_f": True, **dict.fromkeys(capabilities, True)}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", "bf16"])
def test_a_cpu_with_instructions_for_bfloat16_uses_it(monkeypatch, name):
    on_cpu(monkeypatch, name)
    assert precision.native_precision() == "bfloat16"


def test_a_cpu_without_them_stays_in_float32(monkeypatch):
    on_cpu(monkeypatch)
    assert precision.native_precision() == "float32"
    assert precision.resolved("bfloat16") == "bfloat16"  # asked for, so it is done


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bfloat16_stays_in_float32(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    assert precision.native_precision() == ("bfloat16" if native else "float32")


def test_an_apple_gpu_stays_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert precision.native_precision() == "float32"


@pytest.mark.parametrize("folder", ["", "seed-0", "learning_rate=1/seed-0"])
def test_a_folder_keeps_the_precision_that_it_began_with(tmp_path, monkeypatch, folder):
    config = load_config("quickstart", {"output": str(tmp_path)})
    monkeypatch.setattr(setup, "native_precision", lambda: "bfloat16")
    began = with_resolved_precision(config, tmp_path)
    assert (began.training.precision, began.evaluation.precision) == ("bfloat16", "float32")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "config.yaml").write_text(to_yaml(began))
    monkeypatch.setattr(setup, "native_precision", lambda: "float32")
    assert with_resolved_precision(config, tmp_path).training.precision == "bfloat16"
    named = load_config("quickstart", {"training.precision": "float32", "output": str(tmp_path)})
    assert with_resolved_precision(named, tmp_path).training.precision == "float32"


def test_a_run_says_and_stores_its_precision_and_goes_on_elsewhere(
    arguments, run, monkeypatch, capsys
):
    automatic = [word for word in arguments if not word.startswith("training.precision=")]
    automatic += ["training.precision=auto", "evaluation.precision=auto", "training.steps=2"]
    monkeypatch.setattr(setup, "native_precision", lambda: "bfloat16")
    assert main(automatic) == 0
    assert "cpu, bfloat16" in capsys.readouterr().out
    config = read_config(run / "config.yaml")
    assert config.training.precision == config.evaluation.precision == "bfloat16"
    monkeypatch.setattr(setup, "native_precision", lambda: "float32")
    assert main(automatic) == 0
    assert "is finished" in capsys.readouterr().out
    # Dev and final scores are made alike.
    scores = json.loads((run / "scores.json").read_text())
    assert scores["dev"]["best"] == scores["trained"]["pairs"]["cosine_spearman"]


def test_seeds_of_a_folder_have_one_precision(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(several.run, "train", lambda config, *_: trained.append(config))
    monkeypatch.setattr(several, "summary_of", lambda runs: {})
    monkeypatch.setattr(several, "summary_text", lambda runs: "")
    monkeypatch.setattr(several, "load_runs", lambda *_: None)
    config = load_config("quickstart", {"seeds": [0, 1], "output": str(tmp_path / "seeds")})
    monkeypatch.setattr(setup, "native_precision", lambda: "bfloat16")
    first = several.seed_config(with_resolved_precision(several.resolve(config), tmp_path), 0)
    (tmp_path / "seeds" / "seed-0").mkdir(parents=True)
    (tmp_path / "seeds" / "seed-0" / "config.yaml").write_text(to_yaml(first))
    monkeypatch.setattr(setup, "native_precision", lambda: "float32")
    several.train(config, [])
    assert [one.training.precision for one in trained] == ["bfloat16"] * 2


def test_encoding_in_bfloat16_is_close_in_batches_by_length(model, monkeypatch):
    exact = encode_by_length(model, MIXED, 16, normalize=True)
    sizes = []
    forward = encoder.Transformer.forward

    def spy(self, features, **kwargs):
        if torch.is_autocast_enabled("cpu"):
            sizes.append(len(features["input_ids"]))
        return forward(self, features, **kwargs)

    monkeypatch.setattr(encoder.Transformer, "forward", spy)
    rounded = encode_by_length(model, MIXED, 16, normalize=True, precision="bfloat16")
    assert rounded.dtype == np.float32
    assert sizes == [16] * 5
    cosine = (exact * rounded).sum(axis=1) / np.linalg.norm(rounded, axis=1)
    assert (cosine > 0.999).all()
    assert not np.array_equal(exact, rounded)


def test_simcse_in_bfloat16_shares_its_index_with_float32(tiny, tmp_path):
    folder = tmp_path / "model"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), folder)
    rounded, exact = SimCSE(folder, precision="bfloat16"), SimCSE(folder)
    rounded.build_index(SENTENCES)
    rounded.save_index(tmp_path / "index.safetensors")
    exact.load_index(tmp_path / "index.safetensors")
    [(sentence, similarity)] = exact.search(SENTENCES[2], top_k=1)
    assert sentence == SENTENCES[2]
    assert 0.99 < similarity < 1.01
    with pytest.raises(UserError, match="several encode in float32 only"):
        rounded.encode(SENTENCES, device=["cpu", "cpu"])
    with pytest.raises(UserError, match="SimCSE: precision: Input should be 'auto', 'float32'"):
        SimCSE(folder, precision="half")


def test_evaluate_writes_its_precision_down(tiny, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "scores.json"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), folder)
    arguments = ["evaluate", str(folder), "--tasks", "pairs", "-o", str(out)]
    assert main(arguments) == 0
    exact = json.loads(out.read_text())
    assert main([*arguments, "--precision", "bfloat16"]) == 0
    rounded = json.loads(out.read_text())
    assert (exact["precision"], rounded["precision"]) == ("float32", "bfloat16")
    values = [one["scores"]["geometry"]["uniformity"] for one in (exact, rounded)]
    assert 0 < abs(values[0] - values[1]) < 0.02
