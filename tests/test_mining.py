"""``simcse mine``: hard negatives for pairs, and rows that a run can be trained on."""

import json
import re
from itertools import product

import numpy as np
import pytest
import torch
from conftest import make_encoder
from sentence_transformers import CrossEncoder
from sentence_transformers.util import mine_hard_negatives
from test_documents import made_up

from simcse.cli.main import main
from simcse.config.settings import DataConfig, EncoderConfig
from simcse.data.documents import Documents
from simcse.data.rows import load_training_data
from simcse.encoders import encoder
from simcse.encoders.loading import load_model
from simcse.inference.mining import pairs_of

ANIMALS, ACTS = ["cat", "dog", "bird", "horse"], ["sleeps", "eats", "runs", "hides", "waits"]


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), folder)
    return folder


@pytest.fixture
def pairs(tmp_path):
    rows = [f"The {a} {b}.,A {a} {b} here." for a, b in product(ANIMALS, ACTS)]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["anchor,positive", *rows, rows[0]]) + "\n")
    return path


def mined(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_negatives_keep_to_the_rules_and_the_rows_are_read_as_pairs(model, pairs, tmp_path, capsys):
    out = tmp_path / "new" / "mined.jsonl"
    words = ["mine", str(pairs), "data.form=pairs", "-o", str(out), "--model", str(model)]
    assert main([*words, "--negatives", "2", "--margin", "0.001", "--max-score", "0.999"]) == 0
    rows = mined(out)
    said = re.search(r"(\d+) of 20 rows \(([\d.]+)%\) have 2 hard", capsys.readouterr().out)
    assert int(said[1]) == len(rows) > 0 and float(said[2]) == round(5 * len(rows), 1)
    own = pairs_of(DataConfig(train=[str(pairs)], form="pairs"))
    assert len(own) == 20  # the repeated one counts once
    sentence_model = load_model(str(model))
    for row in rows:
        assert list(row) == ["anchor", "positive", "negative_1", "negative_2"]
        assert (row["anchor"], row["positive"]) in own
        anchor, positive, *negatives = sentence_model.encode(
            list(row.values()), normalize_embeddings=True
        )
        highest = min(0.999, anchor @ positive - max(0.001, 0.05 * abs(anchor @ positive)))
        # The closest of all candidates that the rules allow.
        texts = [text for _, text in own if text != row["positive"]]
        scores = sentence_model.encode(texts, normalize_embeddings=True) @ anchor
        expected = np.sort(scores[scores <= highest])[-2:]
        assert sorted(anchor @ negative for negative in negatives) == pytest.approx(
            expected, abs=1e-5
        )
    found, counts = load_training_data(
        DataConfig(train=[str(out)], form="pairs", cache=str(tmp_path / "c")),
        sentence_model.tokenizer,
        0,
    )
    assert counts.rows == len(rows) and len(found[0]["input_ids"]) == 4


def test_with_and_without_faiss_it_is_the_same(model, pairs, tmp_path, monkeypatch):
    words = ["mine", str(pairs), "data.form=pairs", "--model", str(model)]
    words += ["--negatives=2", "--relative-margin=0.001"]
    used = []

    def spy(*args, **settings):
        used.append(settings["use_faiss"])
        return mine_hard_negatives(*args, **settings)

    monkeypatch.setattr("simcse.inference.mining.mine_hard_negatives", spy)
    assert main([*words, "-o", str(tmp_path / "a.jsonl")]) == 0
    monkeypatch.setattr("simcse.inference.mining.importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("simcse.inference.mining._BLOCK", 1)  # a query at a time
    assert main([*words, "-o", str(tmp_path / "b.jsonl")]) == 0
    assert mined(tmp_path / "a.jsonl") == mined(tmp_path / "b.jsonl") and used[1] is False


def test_documents_give_a_title_and_its_text_but_none_that_is_held_out(model, tmp_path, capsys):
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.md").write_text(f"# Title {number}\n\n{made_up(number)}\n")
    words = ["mine", str(folder), "data.held_out=0.4", "-o", str(tmp_path / "m.jsonl")]
    words += ["--relative-margin=0", "--negatives=1", "--range-min=1"]
    assert main([*words, "--model", str(model)]) == 0, capsys.readouterr().err
    rows = mined(tmp_path / "m.jsonl")
    data = DataConfig(train=[str(folder)], form="documents", held_out=0.4)
    trained = {document.title for document in Documents(data).on("train")}
    assert {row["anchor"] for row in rows} <= trained and 0 < len(trained) < 30
    held_out = [d.text for side in ("dev", "test") for d in Documents(data).on(side)]
    assert not any(row["negative_1"][:40] in text for row in rows for text in held_out)


def test_sentences_are_their_own_positives_and_need_a_highest_score(
    model, text_file, tmp_path, capsys
):
    words = ["mine", str(text_file), "-o", str(tmp_path / "m.jsonl"), "--model", str(model)]
    assert main(words) == 2
    assert "--max-score is needed" in capsys.readouterr().err
    assert main([*words, "--max-score=0.99", "--relative-margin=0", "--negatives=1"]) == 0
    rows = mined(tmp_path / "m.jsonl")
    assert rows and all(row["anchor"] == row["positive"] != row["negative_1"] for row in rows)


def test_nli_is_mined_by_its_entailments(tmp_path):
    path = tmp_path / "n.csv"
    path.write_text("premise,hypothesis,label\np,e,entailment\np,c,contradiction\np,n,neutral\n")
    assert pairs_of(DataConfig(train=[str(path)], form="nli")) == [("p", "e")]


def test_a_cross_encoder_scores_the_candidates(model, pairs, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    folder = make_encoder(tmp_path / "cross")
    CrossEncoder(str(folder), num_labels=1).save_pretrained(str(tmp_path / "whole"))

    def predict(self, pairs, **_):  # the longer the better
        return torch.tensor([len(text) / 100 for _, text in pairs])

    monkeypatch.setattr(CrossEncoder, "predict", predict)
    words = ["mine", str(pairs), "data.form=pairs", "--model", str(model), "--negatives=1"]
    words += ["--relative-margin=0", "--cross-encoder", str(tmp_path / "whole")]
    assert main([*words, "-o", str(tmp_path / "m.jsonl")]) == 0, capsys.readouterr().err
    for row in mined(tmp_path / "m.jsonl"):
        assert len(row["negative_1"]) <= len(row["positive"])
    words[-1] = str(folder)  # without its head
    assert main([*words, "-o", str(tmp_path / "n.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "2 missing (classifier.bias, classifier.weight)" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.form=pairs", "-o", "m.csv"], "-o m.csv: expected a name that ends in .jsonl"),
        (["training.steps=3"], "mine: training.steps=3 is no setting of the data"),
        (["data.form=pears"], "arguments: data.form: should be 'sentences', 'pairs'"),
        (["data.form=labelled"], "data.form: labelled has no pairs to mine for"),
        (["data.form=pairs", "--range-min=5", "--range-max=3"], "mine: range_min must be smaller"),
        (["data.form=pairs", "--max-score=-1"], "mine: no row has 3 negatives by these rules"),
        (["data.form=pairs", "data.columns=[a, b]"], "pairs.csv:1: no column 'a'"),
        (["data.form=pairs", "--cross-encoder=/no/such"], "--cross-encoder /no/such is neither"),
        (["data.form=pairs", "--margin=nan"], "argument --margin: nan is no finite number"),
    ],
)
def test_mistakes_are_one_line(words, expected, model, pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["mine", str(pairs), "--model", str(model), "-o", "m.jsonl", *words]
    try:
        assert main(words) == 2
    except SystemExit as error:
        assert error.code == 2
    captured = capsys.readouterr().err
    assert expected in captured and captured.count("\n") == 1
    assert not (tmp_path / "m.jsonl").exists()


def test_a_file_that_is_there_stays(model, pairs, tmp_path, capsys):
    out = tmp_path / "mine.jsonl"
    out.write_text("mine\n")
    words = ["mine", str(pairs), "data.form=pairs", "-o", str(out), "--model", str(model)]
    words += ["--relative-margin=0", "--negatives=1"]
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err and out.read_text() == "mine\n"
    assert main([*words, "--overwrite"]) == 0 and mined(out)


def test_the_text_is_the_input_and_no_setting(model, pairs, text_file, tmp_path, capsys):
    words = ["mine", str(pairs), "data.form=pairs", "--model", str(model)]
    other = f"data.train={text_file}"
    assert main([*words, other, "-o", str(tmp_path / "m.jsonl")]) == 2
    assert f"data.train: the text is INPUT, here {pairs}; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "m.jsonl").exists()
