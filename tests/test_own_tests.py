"""Tests on the user's own data: what they score, against references, and what is refused."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import pytrec_eval
from conftest import ROOT, log, make_encoder
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, v_measure_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

import simcse
from simcse.cli.main import main
from simcse.config.reading import load_config
from simcse.config.settings import OwnTest
from simcse.errors import UserError
from simcse.evaluation import ranking
from simcse.evaluation.change import changes, verdict_line, worse_lines
from simcse.evaluation.own import own_task, own_test
from simcse.evaluation.protocol import Evaluation, evaluate
from simcse.evaluation.statistics import average_precision_statistic, best_f1_statistic

RANDOM = np.random.default_rng(0)
SUBJECTS = ["cat", "dog", "girl", "teacher", "river", "engine"]
OBJECTS = ["a small house", "the old road", "new music", "some bread", "a long novel"]
TEXTS = [f"The {subject} sees {thing}." for subject in SUBJECTS for thing in OBJECTS]
VECTORS = {text: RANDOM.normal(size=6) for text in TEXTS}


def encode(texts):
    return np.stack([VECTORS[text] for text in texts])


def cosine(left, right):
    a, b = VECTORS[left], VECTORS[right]
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def score(test):
    task = own_task(OwnTest.model_validate(test))
    return task, evaluate(encode, [task])


def table(path, frame):
    """A table in the format that its name says."""
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text(frame.to_json(orient="records", lines=True))
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def pairs(values, columns=("text1", "text2", "label")):
    size = len(TEXTS)
    rows = [(TEXTS[i % size], TEXTS[(7 * i + 3) % size], v) for i, v in enumerate(values)]
    return pandas.DataFrame(rows, columns=list(columns))


def beir(folder, qrels, queries=None, corpus=None):
    """A folder in BEIR's layout; qrels are (query, document, score) by position in TEXTS."""
    folder.mkdir(parents=True)
    queries, corpus = queries or TEXTS[:8], corpus or TEXTS
    for name, prefix, texts in (("queries", "q", queries), ("corpus", "d", corpus)):
        lines = [json.dumps({"_id": f"{prefix}{i}", "text": t}) for i, t in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    lines = [f"q{query}\td{document}\t{grade}" for query, document, grade in qrels]
    (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


QRELS = [(0, 3, 2), (0, 17, 1), (1, 1, 1), (2, 9, 3), (2, 4, 1), (2, 22, 2), (3, 0, 0), (4, 4, 1)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_graded_pairs_are_spearman_on_any_scale(suffix, tmp_path):
    grades = RANDOM.normal(scale=40, size=20).round(2)
    frame = pairs(grades, ("sentence1", "sentence2", "score"))
    path = table(tmp_path / f"own.{suffix}", frame)
    task, found = score({"kind": "graded", "file": str(path)})
    cosines = [cosine(a, b) for a, b, _ in frame.itertuples(index=False)]
    assert task.name == f"graded:own.{suffix}"
    assert found.value(task.name) == pytest.approx(spearmanr(cosines, grades).statistic)
    np.testing.assert_allclose(found.items[f"{task.name}.grade"], grades)


@pytest.mark.parametrize("spelling", [("1", "0"), ("true", "False"), (1.0, 0.0), (True, False)])
def test_labelled_pairs_are_average_precision_and_best_f1(spelling, tmp_path):
    labels = RANDOM.integers(2, size=24)
    frame = pairs([spelling[1 - label] for label in labels])
    path = table(tmp_path / "own.jsonl", frame)
    _, found = score({"kind": "pairs", "file": str(path), "name": "duplicates"})
    cosines = np.array([cosine(a, b) for a, b, _ in frame.itertuples(index=False)])
    scores = found.scores["duplicates"]
    assert found.value("duplicates") == scores["average_precision"]
    assert scores["average_precision"] == pytest.approx(average_precision_score(labels, cosines))
    by_threshold = {c: f1_score(labels, cosines >= c) for c in cosines}
    assert scores["best_f1"] == pytest.approx(max(by_threshold.values()))
    assert f1_score(labels, cosines >= scores["best_f1_threshold"] - 1e-6) == pytest.approx(
        scores["best_f1"]
    )


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-2, 2), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30
    )
)
def test_statistics_of_a_resample_are_those_of_the_repeated_pairs(rows):
    similarity, label, counts = (np.array(column) for column in zip(*rows, strict=True))
    similarity, label = similarity / 2, label.astype(np.int64)
    repeated = np.repeat(similarity, counts), np.repeat(label, counts)
    found = average_precision_statistic(similarity, label)(counts)
    if repeated[1].sum() == 0:
        assert math.isnan(found)
        return
    assert found == pytest.approx(average_precision_score(repeated[1], repeated[0]))
    best = max(f1_score(repeated[1], repeated[0] >= c) for c in repeated[0])
    assert best_f1_statistic(similarity, label)(counts) == pytest.approx(best)


def test_retrieval_agrees_with_trec_eval(tmp_path):
    folder = beir(tmp_path / "search", QRELS)
    _, found = score({"kind": "retrieval", "file": str(folder)})
    qrels: dict[str, dict[str, int]] = {}
    for query, document, grade in QRELS:
        if query != 3:  # nothing is relevant to it
            qrels.setdefault(f"q{query}", {})[f"d{document}"] = grade
    run = {
        q: {f"d{i}": cosine(TEXTS[int(q[1:])], text) for i, text in enumerate(TEXTS)} for q in qrels
    }
    measures = {"ndcg_cut_10", "recall_10", "recall_100"}
    expected = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    first = {q: dict(sorted(r.items(), key=lambda item: -item[1])[:10]) for q, r in run.items()}
    reciprocal = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(first)
    mean = {m: np.mean([values[m] for values in expected.values()]) for m in expected["q0"]}
    scores = found.scores["retrieval:search"]
    assert found.value("retrieval:search") == scores["ndcg_at_10"]
    assert scores["ndcg_at_10"] == pytest.approx(mean["ndcg_cut_10"])
    assert scores["recall_at_10"] == pytest.approx(mean["recall_10"])
    assert scores["recall_at_100"] == pytest.approx(mean["recall_100"])
    assert scores["mrr_at_10"] == pytest.approx(
        np.mean([values["recip_rank"] for values in reciprocal.values()])
    )
    assert (scores["queries"], scores["documents"]) == (len(qrels), len(TEXTS))


@settings(deadline=None)
@given(st.data())
def test_ranks_count_what_stands_above(data):
    row = np.array(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=12)), dtype=float)
    places = data.draw(st.sets(st.integers(0, len(row) - 1), min_size=1))
    judged = {place: data.draw(st.integers(1, 3)) for place in places}
    [ranks] = ranking.relevant_ranks([row.copy()], [judged])
    # The worst order that equal scores allow: what is less relevant stands first.
    order = sorted(range(len(row)), key=lambda i: (-row[i], judged.get(i, 0)))
    grades = {rank: judged.get(document, 0) for rank, document in enumerate(order, 1)}
    assert sorted(ranks) == [rank for rank, grade in grades.items() if grade]
    assert all(grades[rank] == judged[place] for rank, place in zip(ranks, judged, strict=True))


def test_rows_of_cosines_do_not_depend_on_their_blocks(monkeypatch):
    queries, documents = (RANDOM.normal(size=(n, 5)).astype(np.float32) for n in (7, 23))
    whole = np.stack(list(ranking.cosine_rows(queries, documents)))
    for name, size in (("_SCORES", 50), ("_DOCUMENTS", 4), ("_QUERIES", 3)):
        monkeypatch.setattr(ranking, name, size)
    np.testing.assert_allclose(np.stack(list(ranking.cosine_rows(queries, documents))), whole)
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(documents, axis=1)
    np.testing.assert_allclose(whole, queries @ documents.T / norms, atol=1e-6)


def test_bm25_is_lucenes_formula():
    documents = ["The cat, the dog.", "A cat", "Nothing of the kind", "über Äpfel"]
    words = [["the", "cat", "the", "dog"], ["a", "cat"], ["nothing", "of", "the", "kind"]]
    words.append(["über", "äpfel"])
    mean = np.mean([len(document) for document in words])

    def bm25(query, document):
        total = 0.0
        for word in query:
            holders = sum(word in other for other in words)
            idf = math.log(1 + (len(words) - holders + 0.5) / (holders + 0.5))
            count = document.count(word)
            total += idf * count / (count + 1.5 * (0.25 + 0.75 * len(document) / mean))
        return total

    queries = [["the", "cat"], ["äpfel"], ["unheard"], []]
    found = list(ranking.bm25_rows(["THE cat?", "ÄPFEL", "unheard", "…"], documents))
    expected = [[bm25(query, document) for document in words] for query in queries]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    [nothing] = ranking.bm25_rows(["word"], ["…", "!"])
    assert nothing.tolist() == [0, 0]


def test_labels_are_probed_in_folds_that_stay(tmp_path):
    labels = [text.split()[1] for text in TEXTS]
    frame = pandas.DataFrame({"text": TEXTS, "label": labels})
    path = table(tmp_path / "own.csv", frame)
    task, found = score({"kind": "labelled", "file": str(path)})
    unit = encode(TEXTS) / np.linalg.norm(encode(TEXTS), axis=1)[:, None]
    _, numbers = np.unique(labels, return_inverse=True)
    probe, neighbours = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
    folds = StratifiedKFold(5, shuffle=True, random_state=1111)
    for train, test in folds.split(unit, numbers):
        scaler = StandardScaler().fit(unit[train])
        model = LogisticRegression(max_iter=1000)
        model.fit(scaler.transform(unit[train]), numbers[train])
        probe[test] = model.predict(scaler.transform(unit[test])) == numbers[test]
        for i in test:
            nearest = train[np.argsort(-(unit[train] @ unit[i]))[:5]]
            neighbours[i] = np.bincount(numbers[nearest]).argmax() == numbers[i]
    scores = found.scores["labelled:own.csv"]
    assert found.value("labelled:own.csv") == scores["accuracy"]
    assert scores["accuracy"] == pytest.approx(probe.mean())
    assert scores["knn_accuracy"] == pytest.approx(neighbours.mean())
    assert found.items["labelled:own.csv.accuracy"].tolist() == probe.astype(int).tolist()
    assert (scores["examples"], scores["labels"]) == (30, 6)
    # Classes that lie apart are found without an error.
    apart = {t: np.eye(6)[n] + VECTORS[t] / 100 for t, n in zip(TEXTS, numbers, strict=True)}
    scores = evaluate(lambda texts: np.stack([apart[t] for t in texts]), [task]).scores
    assert scores["labelled:own.csv"]["accuracy"] == 1
    assert scores["labelled:own.csv"]["knn_accuracy"] == 1
    assert scores["labelled:own.csv"]["v_measure"] == pytest.approx(v_measure_score(labels, labels))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a test of each kind."""
    folder = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(5)
    grades = random.integers(0, 100, size=40)
    table(folder / "graded.csv", pairs(grades, ("sentence1", "sentence2", "score")))
    table(folder / "same.tsv", pairs(random.integers(2, size=40)))
    labels = [text.split()[1] for text in TEXTS]
    table(folder / "labels.jsonl", pandas.DataFrame({"text": TEXTS, "label": labels}))
    beir(folder / "search", QRELS)
    return folder


@pytest.fixture(scope="module")
def words(files, tiny, text_file):
    """Settings of a short run that is chosen by one test and scored on three others."""
    tasks = [
        "pairs",
        f"pairs:{files / 'same.tsv'}",
        {"kind": "retrieval", "file": str(files / "search"), "name": "my search"},
        f"labelled:{files / 'labels.jsonl'}",
    ]
    return [
        "train", "quickstart", f"encoder.name={tiny}", f"data.train={text_file}",
        "training.batch_size=8", "training.steps=4", "evaluation.every=2",
        "evaluation.raw_poolings=[mean, cls]", f"evaluation.dev=graded:{files / 'graded.csv'}",
        f"evaluation.tasks={json.dumps(tasks)}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main([*words, f"output={run}"]) == 0
    return run


def items(run, file):
    with np.load(run / file) as found:
        return dict(found)


def test_a_run_is_chosen_by_one_test_and_scored_on_others(finished, words, capsys):
    scores = json.loads((finished / "scores.json").read_text())
    assert (scores["dev"]["task"], scores["dev"]["metric"]) == (
        "graded:graded.csv",
        "cosine_spearman",
    )
    dev = [entry["eval_dev_score"] for entry in log(finished) if "eval_dev_score" in entry]
    assert scores["dev"]["best"] == max(dev) and len(dev) == 2
    names = ["pairs", "pairs:same.tsv", "my search", "labelled:labels.jsonl", "geometry"]
    assert sorted(scores["trained"]) == sorted(names)
    assert all(sorted(raw) == sorted(names) for raw in scores["raw"].values())
    assert list(scores["bm25"]) == ["my search"]
    assert main([*words, f"output={finished}"]) == 0  # shows the table again
    output = capsys.readouterr().out
    head = next(line for line in output.splitlines() if line.startswith("task "))
    assert re.split(r"\s{2,}", head) == [
        "task", "score", "untrained (mean)", "untrained (cls)", "BM25", "trained", "after - before",
        "95% interval",
    ]  # fmt: skip
    last = output.splitlines()[-1]
    assert last.startswith("compared with the best untrained column of each task: ")
    assert all(name in last for name in names[:-1]) and "graded:graded.csv" not in last


def test_the_interval_is_that_of_the_paired_bootstrap(finished):
    scores = json.loads((finished / "scores.json").read_text())
    after = items(finished, "scores.npz")
    before = items(finished, "raw_scores.npz")
    for task, key in (("my search", "ndcg_at_10"), ("labelled:labels.jsonl", "accuracy")):
        change = scores["changes"][task]
        best = max(scores["raw"], key=lambda pooling: scores["raw"][pooling][task][key])
        assert (change["metric"], change["pooling"]) == (key, best)
        gains = after[f"{task}.{key}"] - before[f"{best}/{task}.{key}"]
        assert change["items"] == len(gains)
        random = np.random.default_rng(0)
        means = [gains[random.integers(len(gains), size=len(gains))].mean() for _ in range(5000)]
        found = change["scores"][key]
        assert found["before"] == scores["raw"][best][task][key]
        assert found["after"] == scores["trained"][task][key]
        assert found["difference"] == pytest.approx(gains.mean())
        expected = np.quantile(means, [0.025, 0.975])
        assert (found["low"], found["high"]) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(
    "damage", ["another value", pytest.param("missing", marks=pytest.mark.slow)]
)
def test_single_items_of_the_untrained_encoder_are_bound_to_their_run(
    finished, words, tmp_path, capsys, damage
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = (run / "scores.json").read_text()
    (run / "manifest.json").unlink()
    if damage == "missing":
        (run / "raw_scores.npz").unlink()
    else:
        found = items(run, "raw_scores.npz")
        found["mean/my search.ndcg_at_10"] += 0.1
        np.savez_compressed(run / "raw_scores.npz", **found)
    assert main([*words, f"output={run}"]) == 0
    assert "raw_scores.json: not what was written there; computed again" in capsys.readouterr().out
    after = (run / "scores.json").read_text()
    without_clock = [re.sub(r'"minutes": .*', "", text) for text in (before, after)]
    assert without_clock[0] == without_clock[1]


def test_a_finished_run_misses_the_untrained_encoders_items(finished, words, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "raw_scores.npz").unlink()
    assert main([*words, f"output={run}"]) == 2
    assert f"{run / 'raw_scores.npz'}: No such file" in capsys.readouterr().err


def test_a_test_that_changes_between_start_and_resume_is_refused(
    finished, files, words, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "manifest.json").unlink()
    path = files / "graded.csv"
    text = path.read_text()
    try:
        path.write_text(text.replace("cat", "dog"))
        assert main([*words, f"output={run}"]) == 2
    finally:
        path.write_text(text)
    error = capsys.readouterr().err
    assert "evaluation: graded:graded.csv: it has changed since" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_run_that_made_things_worse_says_so_first(words, tmp_path, capsys):
    """The shipped encoder knows its pairs; a learning rate far too high makes it forget them."""
    wrong = ["encoder.name=mini-bert", "training.learning_rate=0.003", "training.steps=8"]
    wrong += ["evaluation.dev=pairs", "evaluation.tasks=pairs", "evaluation.every=8"]
    wrong += ["evaluation.raw_poolings=mean", f"output={tmp_path / 'run'}"]
    assert main([*words, *wrong]) == 0
    output = capsys.readouterr().out
    results = output[output.rindex("scoring the trained model") :].splitlines()[1:]
    change = json.loads((tmp_path / "run" / "scores.json").read_text())["changes"]["pairs"]
    values = change["scores"]["cosine_spearman"]
    assert values["high"] < 0
    assert results[0].startswith(
        "warning: training made pairs (dev) worse: cosine Spearman "
        f"{100 * values['before']:.2f} -> {100 * values['after']:.2f}, 95% interval of the "
        "difference -"
    )
    assert results[-2] == (
        "compared with the best untrained column of each task: worse: pairs (cosine Spearman)"
    )


def test_what_changed_in_words():
    right = np.arange(40) % 4 > 0  # 75%
    before = {"cls": {"a": {"accuracy": 0.5, "examples": 40}}}
    before["mean"] = {name: {"accuracy": 0.75, "examples": 40} for name in "abcd"}
    before["cls"] |= {name: {"accuracy": 0.25, "examples": 40} for name in "bcd"}
    after = {"a": np.ones(40), "b": np.zeros(40), "c": np.roll(right, 1), "d": right}
    kept = {f"{name}.accuracy": right.astype(float) for name in "abcd"}
    result = Evaluation(
        {name: {"accuracy": values.mean(), "examples": 40} for name, values in after.items()},
        {f"{name}.accuracy": values.astype(float) for name, values in after.items()},
    )
    poor = {name: np.zeros(40) for name in kept}
    found = changes(before, {"cls": poor, "mean": kept}, result, dict.fromkeys("abcd", "accuracy"))
    assert {change["pooling"] for change in found.values()} == {"mean"}
    assert verdict_line(found, dev="b").partition(": ")[2] == (
        "better: a (accuracy); worse: b (accuracy); not to be told with so few items: "
        "c (accuracy of 40); unchanged: d (accuracy)"
    )
    assert ": better, but it chose the checkpoint: a (" in verdict_line(found, dev="a")
    [line] = worse_lines(found, dev="b")
    assert line.startswith("warning: training made b (dev) worse: accuracy 75.00 -> 0.00, 95%")
    assert changes({}, {}, result, {"a": "accuracy"}) == {}


def test_command_line_and_python_score_own_tests_alike(finished, files, tmp_path, capsys):
    settings = {"kind": "graded", "file": str(files / "graded.csv"), "name": "graded"}
    short = [f"pairs:{files / 'same.tsv'}", f"retrieval:{files / 'search'}"]
    output = tmp_path / "scores.json"
    words = ["evaluate", str(finished), "-o", str(output)]
    assert main([*words, "--own", *short, json.dumps(settings)]) == 0
    said = json.loads(output.read_text())["scores"]
    assert list(said) == ["pairs:same.tsv", "retrieval:search", "graded", "geometry"]
    found = simcse.evaluate(finished, tasks=[*short, settings])
    assert found.scores == said
    trained = json.loads((finished / "scores.json").read_text())["trained"]
    assert said["retrieval:search"] == trained["my search"]
    assert main([*words, "--tasks", "pairs", "--own", short[0]]) == 0
    assert list(json.loads(output.read_text())["scores"]) == ["pairs", "pairs:same.tsv", "geometry"]


def test_queries_and_documents_are_embedded_by_their_roles(tmp_path):
    model = SentenceTransformer(str(make_encoder(tmp_path / "encoder")), device="cpu")
    model.prompts = {"query": "search for: ", "document": "text: "}
    folder = beir(tmp_path / "search", QRELS)
    found = simcse.evaluate(model, [f"retrieval:{folder}"])
    queries, documents = model.encode_query(TEXTS[:8]), model.encode_document(TEXTS)
    similarity = model.similarity(queries, documents).numpy()
    grades = np.zeros_like(similarity)
    for query, document, grade in QRELS:
        grades[query, document] = grade
    order = np.argsort(-similarity, axis=1)[:, :10]
    discount = 1 / np.log2(np.arange(2, 12))
    gain = (np.take_along_axis(grades, order, axis=1) * discount).sum(axis=1)
    best = (-np.sort(-grades, axis=1)[:, :10] * discount).sum(axis=1)
    asked = best > 0
    assert found.value("retrieval:search") == pytest.approx((gain[asked] / best[asked]).mean())
    plain = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    assert simcse.evaluate(plain, [f"retrieval:{folder}"]).scores != found.scores


def test_own_tests_are_in_the_card_by_their_names_and_in_no_metadata(
    finished, files, tmp_path, one_picture, capsys
):
    assert main(["export", str(finished), str(tmp_path / "out")]) == 0, capsys.readouterr().err
    text = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert [result.dataset_name for result in card.data.eval_results] == ["pairs"]
    for name in ("pairs:same.tsv", "my search", "labelled:labels.jsonl", "nDCG", "kNN accuracy"):
        assert name in text
    assert "chosen on graded:graded.csv" in text.replace("\\", "")
    assert str(files) not in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dev=graded:"], "evaluation.dev.file: string should have at least 1 character"),
        (["dev={kind: graded, file: x, colums: [a]}"], "evaluation.dev.colums: unknown key (did"),
        (["tasks={kind: grade, file: x}"], "evaluation.tasks.0.kind: should be 'graded', 'pairs'"),
        (["tasks=[{kind: graded, file: x, name: STS-B}]"], "STS-B is the name of another test"),
        (["tasks=[{kind: graded, file: x, name: 'mteb:y'}]"], "is the name of another test"),
        (["tasks=graded:a/x.csv,graded:b/x.csv"], "two tests are called 'graded:x.csv'"),
        (["dev=graded:a/x.csv", "tasks=graded:b/x.csv"], "two tests are called 'graded:x.csv'"),
        (["tasks={kind: retrieval, file: x, columns: a}"], "columns: a retrieval test has those"),
        (["tasks={kind: labelled, file: x, columns: [a, b, c]}"], "labelled takes two columns"),
        (["tasks=graded:no.csv"], "no.csv: no such file"),
    ],
)
def test_settings_that_cannot_be_are_one_line(words, expected, arguments, run, capsys):
    assert main([*arguments, *(f"evaluation.{word}" for word in words)]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not run.exists()


def test_a_name_of_mteb_is_refused(tmp_path):
    path = table(tmp_path / "own.csv", pairs(range(6)))
    with pytest.raises(UserError, match="name: stsbenchmark is the name of another test"):
        own_test({"kind": "graded", "file": str(path), "name": "stsbenchmark"})
    with pytest.raises(UserError, match="name: ArguAna is the name of a task of mteb"):
        score({"kind": "graded", "file": str(path), "name": "ArguAna"})


PAIR = "sentence1,sentence2,label\n"


@pytest.mark.parametrize(
    ("kind", "text", "more", "expected"),
    [
        ("graded", "", {}, "own.csv: empty"),
        ("graded", PAIR, {}, "own.csv: empty"),
        ("graded", "a,b\nx,y\n", {}, "own.csv:1: choose columns (the test's columns), three"),
        ("graded", "a,b,c\nx,y,1\n", {"columns": ["a", "b", "d"]}, "own.csv:1: no column 'd'"),
        ("graded", PAIR + "x,y,1\nx,z,high\n", {}, "own.csv:3: a grade is a number, got 'high'"),
        ("graded", PAIR + "x,y,1\nx,z,nan\n", {}, "own.csv:3: a grade is a number, got 'nan'"),
        ("graded", PAIR + "x,y,1\nx,z,1.0\n", {}, "own.csv: all pairs have the grade 1; there"),
        ("graded", PAIR + "x,y,1\n,z,2\n", {}, "own.csv:3: field 1 of the row is empty"),
        ("graded", PAIR + "x,y,1\nx,z\n", {}, "own.csv:3: 2 fields, the header has 3"),
        ("graded", "a;b;c\nx;y;1\n", {}, "set the test's separator=';', or name the column if"),
        ("pairs", PAIR + "x,y,1\nx,z,2\n", {}, "own.csv:3: a label is 0 or 1, true or false, got"),
        ("pairs", PAIR + "x,y,1\nx,z,true\n", {}, "own.csv: all pairs have the label 1; there"),
        ("labelled", "text,label\nx,a\ny,a\n", {}, "own.csv: all texts have the label 'a'; expect"),
        ("labelled", "text,label\nx,a\ny,b\n", {}, "own.csv: too few texts with the label 'a' (1)"),
        ("labelled", "text,label\nx,a\nz,\n", {}, "own.csv:3: field 2 of the row is empty"),
    ],
)
def test_tables_that_cannot_be_scored_are_one_line(kind, text, more, expected, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        score({"kind": kind, "file": str(path), **more})
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_tables_of_another_make_are_read_as_their_settings_say(tmp_path):
    path = tmp_path / "own.csv"
    rows = [(TEXTS[i], TEXTS[i + 1], i) for i in range(6)]
    path.write_text("".join(f"{i};{g};{a};{b}\n" for i, (a, b, g) in enumerate(rows)), "latin-1")
    test = {"kind": "graded", "file": str(path), "names": ["id", "grade", "a", "b"]}
    test |= {"columns": ["a", "b", "grade"], "separator": ";", "encoding": "latin-1"}
    task, _ = score(test)
    assert list(zip(task.sentence1, task.sentence2, task.grades, strict=True)) == rows


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: shutil.rmtree(f), "search: no such folder; retrieval takes a folder in BEIR's"),
        (lambda f: (f / "corpus.jsonl").unlink(), "corpus.jsonl: no such file; retrieval takes a"),
        (lambda f: (f / "qrels.tsv").unlink(), "qrels/test.tsv: no such file; retrieval takes a"),
        (lambda f: (f / "corpus.jsonl").write_text(""), "corpus.jsonl: empty"),
        (
            lambda f: (f / "corpus.jsonl").write_text('{"_id": "a", "text": ""}\n'),
            "corpus.jsonl:1: text is empty",
        ),
        (
            lambda f: (f / "queries.jsonl").write_text('{"_id": 1, "text": "x"}\n' * 2),
            "queries.jsonl:2: _id '1' is there twice",
        ),
        (
            lambda f: (f / "queries.jsonl").write_text('{"id": 1, "text": "x"}\n'),
            "queries.jsonl:1: choose columns (the test's columns), _id and text, with or without",
        ),
        (lambda f: add(f, "q0\tdX\t1"), "qrels.tsv:10: corpus-id 'dX' is not in corpus.jsonl"),
        (lambda f: add(f, "qX\td0\t1"), "qrels.tsv:10: query-id 'qX' is not in queries.jsonl"),
        (lambda f: add(f, "q0\td0\tx"), "qrels.tsv:10: a score is a whole number, got 'x'"),
        (
            lambda f: (f / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t0\n"),
            "qrels.tsv: no query has a document with a score above 0",
        ),
        (
            lambda f: (f / "qrels.tsv").write_text("q0\td0\t0\n"),
            "qrels.tsv:1: no column 'query-id'; found q0, d0, 0",
        ),
    ],
)
def test_folders_that_cannot_be_searched_are_one_line(change, expected, tmp_path):
    folder = beir(tmp_path / "search", QRELS)
    change(folder)
    with pytest.raises(UserError) as error:
        score({"kind": "retrieval", "file": str(folder)})
    assert expected in str(error.value) and "\n" not in str(error.value)


def add(folder, line):
    with (folder / "qrels.tsv").open("a") as file:
        file.write(f"{line}\n")


def test_titles_belong_to_documents_and_qrels_may_lie_in_a_folder(tmp_path):
    folder = beir(tmp_path / "search", [(0, 1, 1)])
    lines = [{"_id": i, "title": f"T{i}", "text": text} for i, text in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (folder / "qrels").mkdir()
    (folder / "qrels.tsv").unlink()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\t7\t3\nq2\t9\t-1\n")
    task = own_task(OwnTest(kind="retrieval", file=str(folder)))
    assert task.documents[7] == f"T7 {TEXTS[7]}"
    assert (task.queries, task.judgements) == ([TEXTS[2]], [{7: 3}])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("graded", "--own graded: expected KIND:PATH, with one of the kinds graded, pairs,"),
        ("{kind: graded", "--own {kind: graded: not valid YAML: "),
        ("{kind: graded}", "tasks: file: field required"),
        ("labelled:no.csv", "no.csv: no such file"),
    ],
)
def test_words_of_the_command_line_that_are_no_test(word, expected, tiny, capsys):
    assert main(["evaluate", str(tiny), "--own", word]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_an_own_test_is_the_same_short_and_written_out():
    short = load_config("quickstart", ["evaluation.tasks=pairs,graded:x/y.csv"])
    long = load_config(
        "quickstart", {"evaluation.tasks": ["pairs", {"kind": "graded", "file": "x/y.csv"}]}
    )
    assert short == long
    assert short.evaluation.tasks[1].title == "graded:y.csv"
    assert own_test("graded:x/y.csv") == short.evaluation.tasks[1]
    assert own_test("pairs") == "pairs"


def blocks(language):
    text = (ROOT / "docs" / "own_tests.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_what_the_page_tells_people_to_type_runs(files, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, own in (("duplicates.tsv", "same.tsv"), ("topics.jsonl", "labels.jsonl")):
        shutil.copy(files / own, name)
    shutil.copy(files / "graded.csv", "graded.csv")
    shutil.copytree(files / "search", "search")
    shutil.copy(text_file, "texts.txt")
    frame = pairs(range(9), ("left", "right", "points"))
    frame.assign(id=range(9)).to_csv("other.csv", sep=";", index=False)
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 3
    for line in commands:
        program, *words = shlex.split(line)
        assert (program, main(words)) == ("simcse", 0), capsys.readouterr().err
    [example] = blocks("python")
    names: dict[str, object] = {}
    exec(example, names)
    assert -1 <= names["found"].value("graded:graded.csv") <= 1
    [config] = blocks("yaml")
    Path("own.yaml").write_text(config)
    evaluation = load_config("own.yaml").evaluation
    first, second = evaluation.tasks
    assert (evaluation.dev.title, first) == ("graded:graded.csv", "pairs")
    assert own_task(second).name == "points"


def test_the_dev_score_of_two_towers_is_that_of_the_exported_model(tiny, files, tmp_path, capsys):
    """Queries and documents go through their own tower while training as they do afterwards."""
    table(tmp_path / "train.csv", pandas.DataFrame({"a": TEXTS, "b": TEXTS[::-1]}))
    words = ["train", "quickstart", f"encoder.name={tiny}", f"data.train={tmp_path / 'train.csv'}"]
    words += ["data.form=pairs", "encoder.towers=two", "training.learning_rate=1e-2"]
    words += ["training.batch_size=8", "training.steps=2", "evaluation.raw_poolings=[]"]
    words += [f"evaluation.{key}=retrieval:{files / 'search'}" for key in ("dev", "tasks")]
    assert main([*words, f"output={tmp_path / 'run'}"]) == 0, capsys.readouterr().err
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    found = scores["trained"]["retrieval:search"]["ndcg_at_10"]
    assert scores["dev"]["best"] == pytest.approx(found, abs=1e-9)
    model = SentenceTransformer(str(tmp_path / "run"), device="cpu")
    alike = simcse.evaluate(lambda texts: model.encode(texts), [f"retrieval:{files / 'search'}"])
    assert alike.value("retrieval:search") != pytest.approx(found)


def test_two_files_of_judgements_are_one_too_many(tmp_path):
    folder = beir(tmp_path / "search", QRELS)
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td1\t1\n")
    with pytest.raises(UserError, match=r"has both qrels\.tsv and qrels/test\.tsv; remove one"):
        own_task(own_test(f"retrieval:{folder}"))
