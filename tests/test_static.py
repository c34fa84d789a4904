"""``export --format static``: every token's row is what the model makes of it, weighted by rank."""

import json

import numpy as np
import pytest
import torch
from conftest import SENTENCES, make_encoder
from sentence_transformers import SentenceTransformer

from simcse import SimCSE
from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.publishing.static_export import distilled


@pytest.fixture(scope="module")
def exported(two_seeds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("static") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simcse.publishing.smaller_models._ROUNDS", 1)  # of half a second each
        assert main(["export", str(two_seeds / "seed-0"), str(folder), "--format", "static"]) == 0
    return folder


def test_the_table_is_the_models_vectors_turned_and_weighted(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny))).to("cpu").eval()
    static = distilled(model)
    table = static[0].embedding.weight.detach().numpy()
    size = len(model.tokenizer)
    assert table.shape == (size, 32)
    words = ["river", "the", "stone", "of"]
    rows = [model.tokenizer.convert_tokens_to_ids(word) for word in words]
    assert None not in rows
    every = torch.arange(size)[:, None]
    around = model.tokenizer("a")["input_ids"]
    ids = torch.cat([torch.full((size, 1), around[0]), every, torch.full((size, 1), around[-1])], 1)
    with torch.no_grad():  # the reference: all at once, and a rotation keeps distances
        output = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    vectors = output["sentence_embedding"].numpy()
    special = set(model.tokenizer.all_special_ids)
    ranks = 1 + np.cumsum([token not in special for token in range(size)])
    counted = [token for token in range(size) if token not in special]
    share = 1 / ranks / (1 / ranks)[counted].sum()
    unweighted = table / (1e-4 / (1e-4 + share))[:, None]
    assert unweighted[counted].mean() == pytest.approx(0, abs=1e-3)
    distances = np.linalg.norm(vectors[rows][:, None] - vectors[rows], axis=-1)
    found = np.linalg.norm(unweighted[rows][:, None] - unweighted[rows], axis=-1)
    np.testing.assert_allclose(found, distances, rtol=1e-3, atol=1e-4)
    sentence = "the river of stone"  # the mean of its tokens, without special ones
    np.testing.assert_allclose(
        static.encode([sentence])[0],
        table[model.tokenizer(sentence, add_special_tokens=False)["input_ids"]].mean(axis=0),
        rtol=1e-4,
        atol=1e-7,
    )


def test_it_loads_elsewhere_encodes_and_searches(exported, text_file, tmp_path, capsys):
    [kind] = [entry["type"] for entry in json.loads((exported / "modules.json").read_text())]
    assert kind == "sentence_transformers.models.StaticEmbedding"  # which version 5 knows too
    expected = SentenceTransformer(str(exported), device="cpu").encode(SENTENCES)
    found = SimCSE(exported).encode(SENTENCES, return_numpy=True, normalize_to_unit=False)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    output = tmp_path / "vectors.parquet"
    model = ["--model", str(exported)]
    assert main(["encode", str(text_file), "-o", str(output), *model]) == 0
    query = text_file.read_text().splitlines()[7]
    capsys.readouterr()
    assert main(["search", query, "--corpus", str(text_file), "--top-k", "1", *model]) == 0
    assert query in capsys.readouterr().out.splitlines()[1]
    assert (
        main(["evaluate", str(exported), "--tasks", "pairs", "-o", str(tmp_path / "s.json")]) == 0
    )


def test_two_towers_are_refused(tmp_path, text_file, capsys, monkeypatch):
    monkeypatch.setattr("simcse.publishing.export.pictures", lambda runs: [])
    run = tmp_path / "run"
    pairs = tmp_path / "pairs.tsv"
    lines = text_file.read_text().splitlines()
    pairs.write_text("a\tb\n" + "".join(f"{line}\t{line[4:]}\n" for line in lines))
    settings = [f"encoder.name={make_encoder(tmp_path / 'in')}", "encoder.towers=two"]
    settings += [f"data.train={pairs}", "data.form=pairs", "training.steps=1"]
    settings += ["training.batch_size=8", "evaluation.dev=pairs", "evaluation.tasks=pairs"]
    settings += ["evaluation.raw_poolings=[]", f"output={run}"]
    assert main(["train", "quickstart", *settings]) == 0
    for form in ("static", "onnx"):
        capsys.readouterr()
        assert main(["export", str(run), str(tmp_path / form), "--format", form]) == 2
        assert f"--format {form}: a model with two towers has no" in capsys.readouterr().err
        assert not (tmp_path / form).exists()
