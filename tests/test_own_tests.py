"""Tests on the user's own data: what they score, against references, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, v_measure_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from simcse.config.settings import OwnTest
from simcse.evaluation import ranking
from simcse.evaluation.own import own_task
from simcse.evaluation.protocol import evaluate
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
    rows = [(TEXTS[i], TEXTS[(7 * i + 3) % len(TEXTS)], v) for i, v in enumerate(values)]
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
    _task, found = score({"kind": "pairs", "file": str(path), "name": "duplicates"})
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
    _task, found = score({"kind": "retrieval", "file": str(folder)})
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
    _names, numbers = np.unique(labels, return_inverse=True)
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
