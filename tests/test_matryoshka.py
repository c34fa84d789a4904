"""``objective.dims``: the loss of several sizes of embeddings, and models that are used at each."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import SENTENCES, log, loss_of, make_masked_encoder, terms_of
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch.nn import functional

from simcse import SimCSE, evaluate, load_config
from simcse.cli.main import main
from simcse.config.reading import validate
from simcse.config.settings import EncoderConfig
from simcse.data.views import ViewCollator
from simcse.encoders import encoder
from simcse.errors import UserError
from simcse.objectives import Objective, clip, decoupled, distill_similarity, info_nce, nt_xent
from simcse.objectives.terms import resolve
from simcse.objectives.weighted_sum import truncated
from simcse.reports.runs import load_runs
from simcse.training.loss import TrainingLoss

DIMS, WEIGHTS = [32, 16, 8], [1.0, 0.5, 2.0]


def config_of(tiny, objective, form="pairs"):
    values = {"encoder": {"name": str(tiny), "dropout": 0.0}, "data": {"form": form}}
    return validate(
        {**values, "objective": objective, "training": {"precision": "float32"}}, "test"
    )


def batch_of(model, columns):
    """A batch with these columns of texts, all of them distinct."""
    ids = [model.tokenizer(column)["input_ids"] for column in columns]
    size = len(columns[0])
    hashes = np.arange(size * len(columns)).reshape(len(columns), size)
    rows = [
        {"input_ids": [i[row] for i in ids], "text_hash": hashes[:, row].tolist(), "label": 0}
        for row in range(size)
    ]
    return ViewCollator(0).features(rows, model.device)


def columns(count):
    return [[f"{text} {word}" for text in SENTENCES] for word in ("One.", "Two.", "Three.")][:count]


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("count", "weights"), [(2, []), (3, WEIGHTS)])
def test_loss_and_gradients_are_those_of_sentence_transformers(tiny, count, weights):
    objective = {"dims": DIMS, "dim_weights": weights, "temperature": 0.1, "mask_identical": False}
    config = config_of(tiny, objective)
    model = encoder.build(config.encoder).train()
    inner = MultipleNegativesRankingLoss(model, scale=1 / 0.1)
    peer = MatryoshkaLoss(model, inner, DIMS, weights or None)
    expected = peer([model.preprocess(column) for column in columns(count)], None)
    expected.backward()
    of_peer = gradients(model)
    model.zero_grad()
    found = loss_of(TrainingLoss(model, config), batch_of(model, columns(count)))
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert of_peer.keys() == gradients(model).keys()
    for name, gradient in gradients(model).items():
        atol = 1e-5 * float(of_peer[name].abs().max()) + 1e-7
        torch.testing.assert_close(gradient, of_peer[name], rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize(
    ("term", "function"),
    [("info_nce", info_nce), ("decoupled", decoupled), ("nt_xent", nt_xent), ("clip", clip)],
)
def test_each_size_is_the_objective_on_cut_and_normalised_embeddings(tiny, term, function):
    objective = {"terms": term, "dims": DIMS, "dim_weights": WEIGHTS, "temperature": 0.05}
    config = config_of(tiny, objective)
    model = encoder.build(config.encoder).train()
    found = terms_of(TrainingLoss(model, config), batch_of(model, columns(2)))
    anchor, positive = (model.encode(column, convert_to_tensor=True) for column in columns(2))
    assert list(found) == [f"{term}/{size}" for size in DIMS]
    for size, weight in zip(DIMS, WEIGHTS, strict=True):
        cut = [functional.normalize(each[:, :size], dim=1) for each in (anchor, positive)]
        expected = weight * function(*cut, 0.05)
        torch.testing.assert_close(found[f"{term}/{size}"], expected, rtol=1e-4, atol=1e-5)


def test_without_dims_nothing_is_cut_and_the_whole_width_alone_is_the_same(tiny):
    plain, whole = (config_of(tiny, {"dims": dims}) for dims in ([], [32]))
    model = encoder.build(plain.encoder).train()
    features = batch_of(model, columns(3))
    terms = terms_of(TrainingLoss(model, plain), features)
    assert list(terms) == ["info_nce"]
    same = loss_of(TrainingLoss(model, whole), features)
    torch.testing.assert_close(same, terms["info_nce"], rtol=1e-5, atol=1e-6)


def test_one_forward_pass_for_all_sizes(tiny, monkeypatch):
    """Of the start that distill_start compares with, too."""
    objective = {"terms": ["info_nce", "distill_start"], "dims": DIMS}
    config = config_of(tiny, objective)
    model = encoder.build(config.encoder).train()
    loss = TrainingLoss(model, config)
    [start] = loss.objective.named[1][2].start
    calls = []
    for network in (model, start):
        network[0].register_forward_pre_hook(lambda *_: calls.append(1))
    features = batch_of(model, columns(2))
    terms = terms_of(loss, features)
    assert len(calls) == 2
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight.add_(0.3)
    other = batch_of(model, [column[::-1] for column in columns(2)])
    again = terms_of(loss, other)
    assert len(calls) == 4  # another batch is embedded anew
    views = [model.encode(column[::-1], convert_to_tensor=True) for column in columns(2)]
    taught = [start.encode(column[::-1], convert_to_tensor=True) for column in columns(2)]
    for size in DIMS:  # the start's similarities are those of its whole embeddings
        cut = truncated(torch.stack(views), size)
        parts = [distill_similarity(v, t, 0.05, 0.05) for v, t in zip(cut, taught, strict=True)]
        expected = torch.stack(parts).mean()
        torch.testing.assert_close(again[f"distill_start/{size}"], expected, rtol=1e-4, atol=1e-5)
    assert terms.keys() == again.keys()


class WholeWidth(Objective):
    any_width = False

    def forward(self, anchor):
        return anchor.square().mean()


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"terms": "dino"}, "objective.dims: dino has no meaning for a part of an embedding"),
        ({"terms": ["info_nce", "dino"]}, "objective.dims: dino has no meaning for a part"),
        ({"terms": "mlm"}, "objective.dims: mlm looks at no embeddings; leave it out"),
        ({"terms": f"{__name__}:WholeWidth"}, "WholeWidth has no meaning for a part"),
        ({"dims": [16, 16]}, "dims: 16 is given twice"),
        ({"dims": [16, 8], "dim_weights": [1.0]}, "dim_weights: 1 for 2 dims"),
        ({"dims": [], "dim_weights": [1.0]}, "dim_weights: 1 for 0 dims"),
        ({"dims": [1]}, "objective.dims.0: expected a number of at least 2"),
        ({"dims": [16.5]}, "objective.dims.0"),
        ({"dims": [16], "dim_weights": [0.0]}, "objective.dim_weights.0"),
    ],
)
def test_what_has_no_meaning_is_refused(tiny, objective, expected):
    with pytest.raises(UserError) as error:
        resolve(config_of(tiny, {"dims": [16, 8], **objective}))
    assert expected.split(":")[0] in str(error.value)
    assert expected.rpartition(": ")[2].split("expected")[0] in str(error.value)
    assert "\n" not in str(error.value)


def test_distill_l2_with_dims_is_refused(tiny):
    objective = {"terms": "distill_l2", "teacher": "any", "dims": [16]}
    with pytest.raises(UserError, match="distill_l2 has no meaning for a part of an embedding"):
        resolve(config_of(tiny, objective, "sentences"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["encoder.projection=train_only"], "objective.dims: the loss reads a projection for tra"),
        (["objective.dims=[64,16]"], "objective.dims: 64 is too wide; allowed is 2 to 32"),
    ],
)
def test_sizes_have_to_be_those_of_the_exported_embedding(words, expected, arguments, run, capsys):
    words = [*arguments, "encoder.projection=none", "objective.dims=16,8", *words]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1
    assert not run.exists()


def test_a_checkpoint_with_a_projection_for_training_is_refused(arguments, run, tiny, capsys):
    built = encoder.build(EncoderConfig(name=str(tiny), projection="train_only"))
    encoder.save(built, run.with_name("model"))
    words = [f"encoder.name={run.with_name('model')}", "encoder.projection=none"]
    assert main([*arguments, *words, "objective.dims=16"]) == 2
    assert "the loss reads a projection for training only" in capsys.readouterr().err


def test_sizes_are_words_lists_and_numbers():
    for given in ("256,128", [256, 128]):
        assert load_config("quickstart", {"encoder.projection": "none", "objective.dims": given}
                           ).objective.dims == [256, 128]  # fmt: skip
    words = ["encoder.projection=none", "objective.dims=64"]
    assert load_config("quickstart", words).objective.dims == [64]


@pytest.fixture(scope="module")
def trained(text_file, tmp_path_factory):
    """A finished run for the sizes 16 and 8 of a masked encoder 32 wide, and what it printed."""
    root = tmp_path_factory.mktemp("dims")
    words = ["train", "quickstart", f"encoder.name={make_masked_encoder(root / 'encoder')}"]
    words += ["encoder.projection=none", f"data.train={text_file}", "data.form=sentences"]
    words += ["objective.terms=[{info_nce: 1.0}, {mlm: 0.1}]", "objective.dims=16,8"]
    words += ["training.steps=6", "training.batch_size=8", "training.log_every=1"]
    lines = text_file.read_text().splitlines()[:40]
    pairs = zip(lines[::2], lines[1::2], range(20), strict=True)
    rows = ["a,b,grade", *(f"{a},{b},{grade}" for a, b, grade in pairs)]
    (root / "dev.csv").write_text("\n".join(rows) + "\n")
    words += ["training.mini_batch_size=3", "evaluation.tasks=pairs"]
    words += [f"evaluation.dev=graded:{root / 'dev.csv'}"]
    words += ["evaluation.every=3", f"output={root / 'run'}"]
    assert main(words) == 0
    return root / "run"


def test_a_run_logs_each_size_and_the_tokens_once(trained):
    first, *_ = (entry for entry in log(trained) if "loss" in entry)
    assert {"info_nce/16", "info_nce/8", "mlm"} <= first.keys()
    parts = [first[name] for name in ("info_nce/16", "info_nce/8", "mlm")]
    assert first["loss"] == pytest.approx(math.fsum(parts), rel=1e-5)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Folder of two exports of it: ``whole``, and ``small`` with 8 dims."""
    folder = tmp_path_factory.mktemp("exported")
    assert main(["export", str(trained), str(folder / "whole")]) == 0
    assert main(["export", str(trained), str(folder / "small"), "--dims", "8"]) == 0
    return folder


def test_the_exported_model_gives_whole_embeddings_and_can_be_cut(
    trained, exported, tmp_path, capsys
):
    settings = json.loads((exported / "whole" / "config_sentence_transformers.json").read_text())
    assert "truncate_dim" not in settings
    whole = SentenceTransformer(str(exported / "whole"))
    expected = whole.encode(SENTENCES)
    assert expected.shape == (6, 32)
    settings = json.loads((exported / "small" / "config_sentence_transformers.json").read_text())
    assert settings["truncate_dim"] == 8
    small = SentenceTransformer(str(exported / "small"))
    np.testing.assert_allclose(small.encode(SENTENCES), expected[:, :8], atol=1e-6)
    np.testing.assert_allclose(small.encode(SENTENCES, truncate_dim=32), expected, atol=1e-6)
    capsys.readouterr()
    for command in (["export", str(trained), str(tmp_path / "o")],
                    ["publish", str(trained), "me/small", "--dry-run"]):  # fmt: skip
        assert main([*command, "--dims", "33"]) == 2
        assert "dims: 33 is out of range; this model allows 2 to 32" in capsys.readouterr().err
    assert main(["export", str(trained), str(tmp_path / "o"), "--format", "onnx", "--dims=8"]) == 2
    assert "--dims has no meaning with --format onnx" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_card_names_the_sizes_and_whose_scores_they_are(exported):
    card = (exported / "whole" / "README.md").read_text()
    assert "the first 16, 8 numbers of an embedding can be used alone" in card
    assert "It is summed over embeddings cut to 16, 8 numbers and normalised" in card
    assert "| pairs | cosine Spearman | 8 | binary | 1 |" in card
    assert (exported / "whole" / "figures" / "sizes.png").is_file()
    assert "model-index" in card
    card = (exported / "small" / "README.md").read_text()
    assert "| **all 32 dims** |" in card and "this model |" not in card.split("Smaller")[0]
    assert "It gives the first 8 of the 32 numbers that it computes" in card
    assert "model-index" not in card  # those scores are of whole embeddings


def test_scores_of_fewer_dims_have_a_file_of_their_own(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for dims in ([], ["--dims", "8"]):
        assert main(["evaluate", str(run), "--tasks", "pairs", *dims]) == 0
    assert "run, 8 dims" in capsys.readouterr().out
    whole, cut = (
        json.loads((run / "evaluation" / f"{name}.json").read_text())["scores"]
        for name in ("scores", "scores-8")
    )
    assert whole["pairs"] == load_runs(run).best.scores["pairs"] != cut["pairs"]


def test_embeddings_of_fewer_dims_are_cut_before_they_are_normalised(trained, tmp_path):
    whole = SimCSE(trained).encode(SENTENCES, return_numpy=True, normalize_to_unit=False)
    small = SimCSE(trained, dims=8)
    found = small.encode(SENTENCES, return_numpy=True)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    many = [f"{text} {number}" for text in SENTENCES for number in range(20)]  # in batches of ours
    np.testing.assert_allclose(
        small.encode(many, return_numpy=True),
        SentenceTransformer(str(trained), truncate_dim=8).encode(many, normalize_embeddings=True),
        atol=1e-5,
    )
    (tmp_path / "in.txt").write_text("\n".join(SENTENCES) + "\n")
    words = ["encode", str(tmp_path / "in.txt"), "--model", str(trained), "--dims", "8"]
    assert main([*words, "-o", str(tmp_path / "e.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-5)


@pytest.mark.parametrize("dims", [0, 1, -3, 33, True, "8", 8.0])
def test_dims_that_a_model_does_not_have_are_one_line(trained, dims):
    with pytest.raises(UserError, match="dims: ") as error:
        SimCSE(trained, dims=dims)
    assert "\n" not in str(error.value)


def test_scores_of_fewer_dims_are_those_of_cut_embeddings(trained):
    found = evaluate(trained, "pairs", dims=8)
    whole = SentenceTransformer(str(trained))
    expected = evaluate(lambda texts: whole.encode(texts)[:, :8], "pairs")
    assert found.value("pairs") == pytest.approx(expected.value("pairs"), abs=1e-6)
    assert found.value("geometry", "dim") == 8
    with pytest.raises(UserError, match="only for a model that is named"):
        evaluate(SimCSE(trained), "pairs", dims=8)


def test_an_index_is_of_its_dims(trained, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("\n".join(SENTENCES) + "\n")
    corpus, index = ["--corpus", str(tmp_path / "in.txt")], str(tmp_path / "i.safetensors")
    words = ["search", SENTENCES[2], "--model", str(trained), "--dims", "8"]
    assert main([*words, *corpus, "--save-index", index, "--json"]) == 0
    first = capsys.readouterr().out
    assert json.loads(first)["matches"][0]["text"] == SENTENCES[2]
    assert main([*words, "--index", index, "--json"]) == 0
    assert capsys.readouterr().out == first
    assert main([*words[:-2], "--index", index]) == 2
    assert "made by another model, or for other dims" in capsys.readouterr().err


def test_a_size_that_leaves_the_full_width_out_is_said(trained, arguments, capsys):
    words = [*arguments, "encoder.projection=none", "--dry-run", "objective.dims"]
    assert main([*words[:-1], f"{words[-1]}=16,8"]) == 0
    assert "warning: objective.dims: 32, the full width" in capsys.readouterr().out
    assert main([*words[:-1], f"{words[-1]}=32,8"]) == 0
    assert "warning: objective.dims" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_reports_what_smaller_vectors_keep(trained, tmp_path):
    [run] = load_runs(trained).runs
    assert {row["task"] for row in run.retention} == {"pairs"}  # dev has chosen the checkpoint
    assert [(row["dims"], row["vectors"], row["bytes"]) for row in run.retention[::3]] == [
        (32, "float32", 128), (16, "float32", 64), (8, "float32", 32),
    ]  # fmt: skip
    whole = run.retention[0]
    assert whole["score"] == pytest.approx(run.value("pairs"), abs=1e-6)
    assert whole["untrained"] == pytest.approx(
        run.raw["mean"]["pairs"]["cosine_spearman"], abs=1e-6
    )
    assert run.retention[6]["score"] == pytest.approx(
        evaluate(trained, "pairs", dims=8).value("pairs"), abs=1e-6
    )
    assert main(["report", str(trained), "-o", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Score against size" in page and "run, untrained, float32" in page
    assert (tmp_path / "report" / "sizes.png").is_file()
