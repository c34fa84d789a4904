"""ONNX graphs: onnxruntime's embeddings are torch's, for batches that were not traced."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, SENTENCES, make_encoder
from sentence_transformers import SentenceTransformer

from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.publishing.onnx_export import write_graph

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

CASES = [
    pytest.param("bert", "mean", "always", marks=pytest.mark.slow),
    pytest.param("bert", "cls", "none", marks=pytest.mark.slow),
    pytest.param("bert", "avg_first_last", "none", marks=pytest.mark.slow),
    pytest.param("roberta", "mean", "none", marks=pytest.mark.slow),
    pytest.param("distilbert", "mean", "none", marks=pytest.mark.slow),
    pytest.param("mpnet", "cls", "none", marks=pytest.mark.slow),
    pytest.param("modernbert", "mean", "none", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("architecture", "pooling", "projection"), CASES)
def test_graph_equals_torch(tmp_path, architecture, pooling, projection):
    source = make_encoder(tmp_path / "source", architecture)
    config = EncoderConfig(name=str(source), pooling=pooling, projection=projection)
    model = encoder.build(config)
    folder = tmp_path / "graph"
    folder.mkdir()
    assert write_graph(model, folder) < 1e-5
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()  # the exporter's traces
    kind = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert kind != "TokenizersBackend"  # which transformers 4 does not know
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    batch = model.tokenizer(SENTENCES, padding=True, return_tensors="np")
    [found] = session.run(None, dict(batch))
    np.testing.assert_allclose(found, model.encode(SENTENCES), atol=1e-5)
    assert [output.name for output in session.get_outputs()] == ["sentence_embedding"]


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = tmp_path / "run"
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "onnx"]) == 2
    assert "pip install 'simcse-trainer[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_example_of_the_docs_runs(two_seeds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = two_seeds / "seed-0"
    assert main(["export", str(run), "quickstart-onnx", "--format", "onnx"]) == 0
    docs = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", docs, re.DOTALL)
    names = {}
    exec(example, names)
    expected = SentenceTransformer(str(run), device="cpu").encode(
        ["The cat sleeps.", "A cat is asleep."]
    )
    np.testing.assert_allclose(names["embeddings"], expected, atol=1e-5)
