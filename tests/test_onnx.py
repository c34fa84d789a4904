"""ONNX graphs: their embeddings are torch's, through every consumer that is at hand."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, SENTENCES, make_encoder
from sentence_transformers import SentenceTransformer

from simcse import SimCSE
from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.encoders.encoding import encode_by_length
from simcse.encoders.onnx_graph import OnnxGraph
from simcse.errors import UserError
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
    path = tmp_path / "model.onnx"
    assert write_graph(model, path) < 1e-5
    assert b"site-packages" not in path.read_bytes()  # the exporter's traces
    session = onnxruntime.InferenceSession(str(path))
    batch = model.tokenizer(SENTENCES, padding=True, return_tensors="np")
    found, tokens = session.run(None, dict(batch))
    np.testing.assert_allclose(found, model.encode(SENTENCES), atol=1e-5)
    assert tokens.shape == (*batch["input_ids"].shape, 32)
    names = [output.name for output in session.get_outputs()]
    assert names == ["sentence_embedding", "token_embeddings"]


@pytest.fixture(scope="module")
def exported(two_seeds, tmp_path_factory):
    """The folder of a small run with both graphs, and what the command said."""
    folder = tmp_path_factory.mktemp("onnx") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simcse.publishing.export.pictures", lambda runs: [])
        patch.setattr("simcse.publishing.smaller_models._ROUNDS", 1)  # of half a second each
        said: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        command = ["export", str(two_seeds / "seed-0"), str(folder), "--format", "onnx"]
        assert main([*command, "--quantize", "int8"]) == 0
    return folder, "\n".join(said)


def test_the_layout_is_that_of_transformers_js_and_the_model_is_whole(exported, two_seeds):
    folder, said = exported
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    graphs = {"onnx/model.onnx", "onnx/model_quantized.onnx"}
    assert graphs | {"config.json", "tokenizer.json", "tokenizer_config.json"} <= files
    whole = SentenceTransformer(str(folder), device="cpu")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == whole.max_seq_length  # where others cut
    expected = SentenceTransformer(str(two_seeds / "seed-0"), device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(whole.encode(SENTENCES), expected, atol=1e-6)
    sizes = [(folder / name).stat().st_size for name in sorted(graphs)]
    assert sizes[1] < sizes[0] / 3
    rows = [line for line in said.splitlines() if re.match(r"(PyTorch|ONNX), ", line)]
    assert [row.split("  ")[0] for row in rows] == [
        "PyTorch, float32", "ONNX, float32", "ONNX, int8",
    ]  # fmt: skip
    assert all("(100.0%)" in row for row in rows[:2])


@pytest.mark.parametrize("backend", ["onnx", "onnx-int8"])
def test_a_graph_encodes_as_torch_does(exported, text_file, backend):
    folder, _ = exported
    texts = [*text_file.read_text().splitlines(), *SENTENCES, SENTENCES[3] * 9, ""]
    expected = SimCSE(folder, "cpu").encode(texts, return_numpy=True)
    simcse = SimCSE(folder, backend=backend)
    found = simcse.encode(texts, return_numpy=True)
    if backend == "onnx":
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert ((found * expected).sum(axis=1) > 0.98).all()
    [graph] = simcse.model
    assert isinstance(graph, OnnxGraph)
    assert graph.session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_batches_of_a_graph_are_sorted_by_length(exported, text_file, monkeypatch):
    folder, _ = exported
    model = SimCSE(folder, backend="onnx-int8").model
    shapes = []
    original = OnnxGraph.forward

    def forward(self, features, **rest):
        shapes.append(tuple(features["input_ids"].shape))
        return original(self, features, **rest)

    monkeypatch.setattr(OnnxGraph, "forward", forward)
    encode_by_length(model, text_file.read_text().splitlines() * 2 + SENTENCES, 32)
    batches = shapes[-4:]  # 96 and 6 distinct texts, after the probes
    assert [rows for rows, _ in batches] == [32, 32, 32, 6]
    assert [tokens for _, tokens in batches] == sorted((t for _, t in batches), reverse=True)


def test_the_commands_use_a_graph(exported, text_file, tmp_path, capsys):
    folder, _ = exported
    use = ["--model", str(folder), "--backend", "onnx"]
    output = tmp_path / "vectors.npy"
    assert main(["encode", str(text_file), "-o", str(output), *use]) == 0
    expected = SimCSE(folder, "cpu").encode(text_file.read_text().splitlines(), return_numpy=True)
    np.testing.assert_allclose(np.load(output), expected, atol=1e-5)
    capsys.readouterr()
    query = text_file.read_text().splitlines()[5]
    search = ["search", query, "--corpus", str(text_file), "--top-k", "1", "--json"]
    assert main([*search, *use]) == 0
    [match] = json.loads(capsys.readouterr().out)["matches"]
    assert match["text"] == query and match["similarity"] == pytest.approx(1, abs=1e-5)
    scores = []
    for backend in ("torch", "onnx", "onnx-int8"):
        file = tmp_path / f"{backend}.json"
        command = ["evaluate", str(folder), "--tasks", "pairs", "--backend", backend]
        assert main([*command, "-o", str(file)]) == 0
        scores.append(json.loads(file.read_text()))
    spearman = [values["scores"]["pairs"]["cosine_spearman"] for values in scores]
    assert spearman[1] == pytest.approx(spearman[0], abs=1e-4)
    assert len({values["fingerprint"] for values in scores}) == 3


def test_what_a_graph_cannot_is_one_line(exported, two_seeds, tmp_path, capsys):
    folder, _ = exported
    with pytest.raises(UserError, match="precision bfloat16: a graph has its own"):
        SimCSE(folder, backend="onnx", precision="bfloat16")
    with pytest.raises(UserError, match="device cuda: backend onnx runs on the CPU"):
        SimCSE(folder, "cuda", backend="onnx")
    with pytest.raises(UserError, match=r"device cpu, cpu: backend onnx runs on the CPU, once"):
        SimCSE(folder, backend="onnx").encode(SENTENCES, device=["cpu", "cpu"])
    with pytest.raises(UserError, match=r"has no onnx/model.onnx; write it with: simcse export"):
        SimCSE(two_seeds / "seed-0", backend="onnx")
    assert main(["evaluate", str(folder), "--backend", "onnx", "--precision", "auto"]) == 2
    assert "--backend onnx has its own" in capsys.readouterr().err
    command = ["export", str(two_seeds / "seed-0"), str(tmp_path / "out"), "--quantize", "int8"]
    assert main(command) == 2
    assert "--quantize: of --format onnx" in capsys.readouterr().err


def test_a_graph_of_other_weights_is_refused(exported, tmp_path):
    folder, _ = exported
    other = shutil.copytree(folder, tmp_path / "other")
    torch.manual_seed(5)
    model = SentenceTransformer(str(other), device="cpu")
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    encoder.save(model, other)
    with pytest.raises(UserError, match=r"onnx/model.onnx: its embeddings differ from those of"):
        SimCSE(other, backend="onnx")
    (other / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"onnx/model.onnx cannot be used: .*Protobuf"):
        SimCSE(other, backend="onnx")


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = tmp_path / "run"
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "onnx"]) == 2
    assert "pip install 'simcse-trainer[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_example_of_the_docs_runs(exported, tmp_path, monkeypatch):
    folder, _ = exported
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "quickstart-onnx")
    docs = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(import onnxruntime\n.*?)```", docs, re.DOTALL)
    names = {}
    exec(example, names)
    expected = SentenceTransformer(str(folder), device="cpu").encode(
        ["The cat sleeps.", "A cat is asleep."]
    )
    np.testing.assert_allclose(names["embeddings"], expected, atol=1e-5)
