"""Models, checkpoints and tokens: nothing from elsewhere is run, nothing secret is written."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES, newest_checkpoint
from transformers import dynamic_module_utils

from simcse import encoder, training
from simcse.checkpoints import MANIFEST
from simcse.cli import main
from simcse.settings import EncoderConfig

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
    assert all("encoder that can be loaded: Weights only load failed" in line for line in errors)


def test_pickled_layer_of_a_sentence_model_is_refused(tiny, tmp_path, sprung, capsys):
    model = tmp_path / "model"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny), projection="always")), model)
    (model / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": Trap(sprung)}, model / "2_Dense" / "pytorch_model.bin")
    assert encode(model, tmp_path) == 2
    assert "cannot be loaded: Weights only load failed" in capsys.readouterr().err


@pytest.fixture
def own_module(tiny, tmp_path, sprung):
    """A sentence-transformers model with a module of its own."""
    model = tmp_path / "own"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), model)
    code = f"from pathlib import Path\nPath({str(sprung)!r}).touch()\n"
    code += "from sentence_transformers.models import Pooling as Own\n"
    (model / "own.py").write_text(code)
    modules = json.loads((model / "modules.json").read_text())
    modules[1]["type"] = "own.Own"
    (model / "modules.json").write_text(json.dumps(modules))
    return model


def test_code_of_a_model_is_not_run(own_module, tmp_path, arguments, capsys):
    assert encode(own_module, tmp_path) == 2
    assert main(["evaluate", str(own_module), "--tasks", "pairs"]) == 2
    words = ["objective.terms=distill_l2", f"objective.teacher={own_module}"]
    assert main([*arguments, *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 3
    assert all("not part of Sentence Transformers" in line for line in errors)


def test_code_of_an_encoder_is_run_only_when_the_user_says_so(
    tiny, tmp_path, arguments, run, monkeypatch, capsys
):
    modules = tmp_path / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Net"}}
    (model / "config.json").write_text(json.dumps(config))
    code = f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\n"
    code += "from transformers import BertConfig, BertModel\n"
    code += "class Own(BertConfig):\n    model_type = 'own'\n"
    code += "class Net(BertModel):\n    config_class = Own\n"
    (model / "own.py").write_text(code)
    assert main([*arguments, f"encoder.name={model}"]) == 2
    assert "contains custom code" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()
    assert not run.exists()
    trusting = [f"encoder.name={model}", "encoder.trust_remote_code=true", "training.steps=2"]
    assert main([*arguments, *trusting]) == 0
    assert (tmp_path / "sprung").exists()
    assert (run / "scores.json").is_file()


def test_pickle_in_a_checkpoint_is_refused(arguments, run, sprung, monkeypatch, capsys):
    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.checkpoints, "rotate", dies)
        assert main(arguments) == 130
    folder = newest_checkpoint(run)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
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
        assert f"{folder}: holds more than tensors and numbers; refused" in capsys.readouterr().err
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
