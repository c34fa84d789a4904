"""scripts/start_from_teacher.py: the least squares, and the BERT that is a mean of vectors."""

import numpy as np
import pytest
import torch
from conftest import ROOT, make_decoder
from scipy import sparse
from scipy.stats import spearmanr
from transformers import BertConfig, BertModel

from simcse import SimCSE
from simcse.cli.main import main


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import start_from_teacher

    return start_from_teacher


def test_vectors_are_those_of_ridge_regression(script):
    random = np.random.default_rng(0)
    texts = sparse.random_array((60, 20), density=0.2, rng=random).tocsr()
    prior = random.normal(size=(20, 6))
    targets = texts @ (2 * prior) + 0.1 * random.normal(size=(60, 6))
    found = script.fit(texts, targets, prior)
    unseen = script.fit(texts * 0 + sparse.csr_array(([1.0], ([0], [0])), (60, 20)), targets, prior)
    # Where the gradient of squares and ridge is zero, for one scale of the prior.
    pull = texts.T @ (targets - texts @ found) / script.RIDGE
    scale = np.vdot(prior, found - pull) / np.vdot(prior, prior)
    np.testing.assert_allclose(found - pull, scale * prior, atol=1e-6)
    assert scale == pytest.approx(2, abs=0.2)
    # A token that no text has keeps the direction of its prior.
    cosines = np.sum(unseen[1:] * prior[1:], 1) / np.linalg.norm(unseen[1:], axis=1)
    np.testing.assert_allclose(np.abs(cosines), np.linalg.norm(prior[1:], axis=1), rtol=1e-6)


def test_the_network_gives_the_mean_of_the_vectors(script, monkeypatch):
    monkeypatch.setattr(script, "ADDED", 0.0)
    random = np.random.default_rng(1)
    vectors = random.normal(size=(40, 12))
    vectors *= random.uniform(0.2, 3, size=(40, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[:2] *= 3 / np.linalg.norm(vectors[:2], axis=1, keepdims=True)  # the longest
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=16,
    )  # fmt: skip
    network = BertModel(config, add_pooling_layer=False).eval()
    script.lay_in(network, vectors, np.full(40, 1 / 40))
    ids = torch.from_numpy(random.integers(40, size=(9, 7)))
    with torch.no_grad():
        found = network(ids).last_hidden_state.mean(dim=1).numpy()
    expected = vectors[ids.numpy()].mean(axis=1)
    products, wanted = found @ found.T, expected @ expected.T
    np.testing.assert_allclose(products / products[0, 0], wanted / wanted[0, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("config", "settings", "out", "expected"),
    [
        (
            "distill_wiki_mini",
            ["data.train={text}", "encoder.name={decoder}", "objective.teacher=x"],
            "new",
            "encoder.name: expected a BERT, got a LlamaModel",
        ),
        ("quickstart", [], "new", "objective.teacher: expected one, and one data set"),
        ("distill_wiki_mini", [], "decoder", "{decoder}: is there already; choose another name"),
    ],
)
def test_mistakes_are_one_line(
    script, tmp_path, text_file, capsys, monkeypatch, config, settings, out, expected
):
    decoder = make_decoder(tmp_path / "decoder")
    words = [setting.format(decoder=decoder, text=text_file) for setting in settings]
    monkeypatch.setattr("sys.argv", ["start", config, str(tmp_path / out), *words])
    assert script.main() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {expected.format(decoder=decoder)}"
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_run_starts_from_it(script, tmp_path, text_file, capsys, monkeypatch):
    words = [
        f"data.train={text_file}",
        f"objective.teacher={ROOT / 'simcse/assets/mini-distilled'}",
    ]
    monkeypatch.setattr("sys.argv", ["start", "distill_wiki_mini", str(tmp_path / "out"), *words])
    assert script.main() == 0
    assert "96 texts; squared distance to the teacher's embedding 0." in capsys.readouterr().out
    teacher = SimCSE("mini-distilled", "cpu")
    student = SimCSE(tmp_path / "out", "cpu", pooling="mean")
    texts = text_file.read_text().splitlines()
    similar, wanted = student.similarity(texts, texts), teacher.similarity(texts, texts)
    # 96 texts of few words, so hardly more than those words are learned.
    assert abs(similar.mean() - wanted.mean()) < 0.1
    assert spearmanr(similar.ravel(), wanted.ravel()).statistic > 0.9

    words += [f"encoder.name={tmp_path / 'out'}", "training.steps=2", "training.batch_size=8"]
    words += ["evaluation.data=null", "evaluation.dev=pairs", "evaluation.tasks=pairs"]
    assert main(["train", "distill_wiki_mini", *words, f"output={tmp_path / 'run'}"]) == 0
