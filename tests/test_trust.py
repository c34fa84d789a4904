"""Models, checkpoints and tokens: nothing from elsewhere is run, nothing secret is written."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES, newest_checkpoint, reseal
from transformers import dynamic_module_utils

from simcse import SimCSE
from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.errors import UserError
from simcse.training import resuming
from simcse.training.checkpoints import MANIFEST

TOKEN = "hf_doNotShowThisToAnybody"


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def sprung(tmp_path):
    """What a trap would make; it may not be there at the end."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists()


def encode(model, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES))
    output = tmp_path / "e.npy"
    return main(["encode", str(tmp_path / "a.txt"), "-o", str(output), "--model", str(model)])


def test_a_trap_would_spring(tmp_path):
    # Else the tests below would show nothing.
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "trap.bin")
    torch.load(tmp_path / "trap.bin", weights_only=False)
    assert (tmp_path / "sprung").exists()


def test_pickled_encoder_is_refused(tiny, tmp_path, sprung, arguments, capsys):
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Trap(sprung)}, model / "pytorch_model.bin")
    assert encode(model, tmp_path) == 2
    assert main([*arguments, f"encoder.name={model}"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 2
    assert all("cannot be loaded: Weights only load failed" in line for line in errors)


def test_pickled_layer_of_a_sentence_model_is_refused(tiny, tmp_path, sprung, capsys):
    model = tmp_path / "model"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny), projection="always")), model)
    (model / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": Trap(sprung)}, model / "2_Dense" / "pytorch_model.bin")
    assert encode(model, tmp_path) == 2
    assert "cannot be loaded: Weights only load failed" in capsys.readouterr().err


def add_code(folder, kind, sprung):
    """Make a saved model bring code of its own, which leaves a mark."""
    code = f"from pathlib import Path\nPath({str(sprung)!r}).touch()\n"
    if kind == "module":
        code += "from sentence_transformers.models import Pooling as Own\n"
        modules = json.loads((folder / "modules.json").read_text())
        modules[1]["type"] = "own.Own"
        (folder / "modules.json").write_text(json.dumps(modules))
    else:
        code += "from transformers import BertConfig, BertModel\n"
        code += "class Own(BertConfig):\n    model_type = 'own'\n"
        code += "class Net(BertModel):\n    config_class = Own\n"
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "own.Own", "AutoModel": "own.Net"}
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    (folder / "own.py").write_text(code)
    return folder


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """Code that is run is copied to this test's folder first."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(params=["module", "encoder"])
def stranger(request, two_seeds, tmp_path, own_modules):
    """A run folder from elsewhere that brings code, and says itself that it may be run."""
    run = shutil.copytree(two_seeds / "seed-0", tmp_path / "stranger")
    config = (run / "config.yaml").read_text()
    assert "trust_remote_code: false" in config
    (run / "config.yaml").write_text(config.replace("code: false", "code: true"))
    add_code(run, request.param, tmp_path / "mark")
    reseal(run)
    return run


def loading_commands(run, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("\n".join(SENTENCES))
    return {
        "evaluate": ["evaluate", str(run), "--tasks", "pairs"],
        "encode": ["encode", str(text), "-o", str(tmp_path / "e.npy"), "--model", str(run)],
        "search": ["search", "a cat", "--corpus", str(text), "--model", str(run)],
        "export": ["export", str(run), str(tmp_path / "exported")],
        "onnx": ["export", str(run), str(tmp_path / "graph"), "--format", "onnx"],
        "publish": ["publish", str(run), "me/model", "--dry-run"],
    }


def test_a_run_folder_cannot_consent_to_its_own_code(
    stranger, two_seeds, tmp_path, one_picture, monkeypatch, capsys
):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("simcse.reports.report.pictures", lambda sets: [])  # drawing is slow
    for command in loading_commands(stranger, tmp_path).values():
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{stranger} brings code of its own, which is not run; " in error
        assert "--trust-remote-code" in error
        assert error.count("\n") == 1
    other = str(two_seeds / "seed-1")
    assert main(["compare", str(stranger), other]) == 0
    assert main(["report", str(stranger), other, "-o", str(tmp_path / "report")]) == 0
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "exported").exists()
    with pytest.raises(UserError, match="trust_remote_code=True"):
        SimCSE(stranger)


def test_code_runs_with_consent(stranger, tmp_path, one_picture):
    commands = loading_commands(stranger, tmp_path)
    del commands["onnx"]  # slow, and loads as export does
    for command in commands.values():
        assert main([*command, "--trust-remote-code"]) == 0
    assert (tmp_path / "mark").exists()
    assert SimCSE(stranger, trust_remote_code=True).encode("x").shape == (32,)


def test_code_of_a_teacher_is_not_run(tiny, tmp_path, sprung, arguments, capsys):
    model = tmp_path / "own"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), model)
    add_code(model, "module", sprung)
    words = ["objective.terms=distill_l2", f"objective.teacher={model}"]
    assert main([*arguments, *words, "encoder.trust_remote_code=true"]) == 2
    error = capsys.readouterr().err
    assert f"objective.teacher: {model} brings code of its own, which is not run" in error


def test_an_activation_from_elsewhere_is_not_replaced_in_silence(tiny, tmp_path, capsys):
    model = tmp_path / "model"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny), projection="always")), model)
    config = model / "2_Dense" / "config.json"
    config.write_text(config.read_text().replace("torch.nn.modules.activation.Tanh", "my.Gate"))
    assert encode(model, tmp_path) == 2
    assert "brings code of its own, which is not run" in capsys.readouterr().err


def test_code_of_an_encoder_is_run_only_when_the_config_says_so(
    tiny, tmp_path, arguments, run, own_modules, capsys
):
    mark = tmp_path / "mark"
    model = add_code(shutil.copytree(tiny, tmp_path / "model"), "encoder", mark)
    assert main([*arguments, f"encoder.name={model}"]) == 2
    assert "allow it with encoder.trust_remote_code=true" in capsys.readouterr().err
    assert not mark.exists()
    assert not run.exists()
    trusting = [f"encoder.name={model}", "encoder.trust_remote_code=true", "training.steps=2"]
    assert main([*arguments, *trusting]) == 0
    assert mark.exists()
    assert (run / "scores.json").is_file()


def test_pickle_in_a_checkpoint_is_refused(arguments, run, sprung, monkeypatch, capsys):
    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resuming.checkpoints, "rotate", dies)
        assert main(arguments) == 130
    folder = newest_checkpoint(run)
    for name in ("optimizer.pt", "random_0.pt"):
        # The manifest is made to fit: who can write the one file can write the other.
        before = {path: path.read_bytes() for path in (folder / name, folder / MANIFEST)}
        torch.save({"state": Trap(sprung)}, folder / name)
        manifest = json.loads((folder / MANIFEST).read_text())
        content = (folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"size": len(content), "sha256": digest}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        assert newest_checkpoint(run) == folder
        assert main(arguments) == 2
        assert (
            f"{folder / name}: holds more than tensors and numbers; refused"
            in capsys.readouterr().err
        )
        for path, content in before.items():
            path.write_bytes(content)
    assert main(arguments) == 0


def test_tokens_are_nowhere(arguments, run, tmp_path, monkeypatch, capsys):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, TOKEN)
    pytest.importorskip("tensorboard")
    assert main([*arguments, "training.report_to=tensorboard"]) == 0
    assert main([*arguments, "encoder.name=someone/private", f"output={tmp_path / 'b'}"]) == 2
    assert main([*arguments, "data.train=someone/private", f"output={tmp_path / 'c'}"]) == 2
    assert main([*arguments, "training.batch_size=97", f"output={tmp_path / 'd'}"]) == 2
    assert main([*arguments, f"output={tmp_path / 'e'}", "--dry-run"]) == 0
    assert os.environ["HF_TOKEN"] == TOKEN
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert run / "environment.json" in files
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
