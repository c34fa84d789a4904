"""SentEval's transfer tasks: its files, its splits, and a classifier that learns."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score

from simcse.errors import UserError
from simcse.evaluation import names
from simcse.evaluation.protocol import evaluate
from simcse.evaluation.sources import load_task
from simcse.evaluation.transfer import READERS, STRENGTHS, TransferTask, load_transfer

pytestmark = pytest.mark.usefixtures("any_size")

WORDS = ["film", "plot", "actor", "scene", "music", "story"]


def lines(word, count, seed=0):
    random = np.random.default_rng(seed)
    return [
        f"the {random.choice(WORDS)} is {word}  {'x ' * int(random.integers(4))}{i}"
        for i in range(count)
    ]


def write(path, rows, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join(rows) + "\n").encode(encoding))


def encode(texts):
    """A tiny bag of characters: separates good from bad, and keeps some noise."""
    random = np.random.default_rng(0)
    rows = [[text.count(c) for c in "goodbadxhwi"] for text in texts]
    return np.array(rows, dtype=np.float64) + 0.3 * random.normal(size=(len(texts), 11)) + 0.1


@pytest.fixture
def mr(tmp_path):
    write(tmp_path / "MR" / "rt-polarity.pos", [*lines("good", 30), "caf\xe9 good", ""], "latin-1")
    write(tmp_path / "MR" / "rt-polarity.neg", lines("bad", 31, seed=1))
    return tmp_path


def test_polarity_files_are_sorted_as_senteval_does(mr):
    rows = load_transfer("MR", mr).parts["all"]
    assert len(rows) == 62  # the blank line is no example
    keys = [(len(text.split()), label) for (text,), label in rows]
    assert keys == sorted(keys)
    assert (rows[0][0][0], rows[0][1]) == ("café good", 1)
    assert all("  " not in text for (text,), _ in rows)


def test_one_file_for_both_classes_is_refused(mr):
    shutil.copy(mr / "MR" / "rt-polarity.pos", mr / "MR" / "rt-polarity.neg")
    with pytest.raises(
        UserError, match=r"rt-polarity\.pos and rt-polarity\.neg hold the same text"
    ):
        load_transfer("MR", mr)


@pytest.mark.slow
def test_ten_folds_with_an_inner_choice_of_strength(mr):
    task = load_transfer("MR", mr)
    texts = task.texts()
    features = encode(texts)
    rows = dict(zip(texts, features, strict=True))
    scores = evaluate(lambda wanted: np.stack([rows[t] for t in wanted]), [task]).scores["MR"]
    # The same by hand: SentEval's folds, and for each the strength with the best inner accuracy.
    labels = np.array([label for _, label in task.parts["all"]])
    features = np.stack([rows[t] for t in texts]).astype(np.float32).astype(np.float64)
    right = 0
    for train, test in StratifiedKFold(10, shuffle=True, random_state=1111).split(features, labels):
        inner = StratifiedKFold(5, shuffle=True, random_state=1111)
        accuracy = [
            cross_val_score(
                LogisticRegression(C=c, solver="newton-cholesky", max_iter=1000),
                features[train], labels[train], cv=inner,
            ).mean()
            for c in STRENGTHS
        ]  # fmt: skip
        model = LogisticRegression(C=STRENGTHS[int(np.argmax(accuracy))], max_iter=1000)
        right += (
            model.fit(features[train], labels[train]).predict(features[test]) == labels[test]
        ).sum()
    assert scores == {"accuracy": pytest.approx(right / 62), "examples": 62}
    assert scores["accuracy"] > 0.8


def test_sst2_chooses_on_dev_and_trains_on_train(tmp_path):
    folder = tmp_path / "SST" / "binary"
    for part, count in (("train", 40), ("dev", 12), ("test", 15)):
        rows = [f"{t}\t1" for t in lines("good", count)] + [
            f"{t}\t0" for t in lines("bad", count, 1)
        ]
        write(folder / f"sentiment-{part}", rows)
    task = load_task("SST2", tmp_path)
    assert {part: len(rows) for part, rows in task.parts.items()} == {
        "train": 80,
        "dev": 24,
        "test": 30,
    }
    scores = evaluate(encode, [task]).scores["SST2"]
    assert scores["examples"] == 30 and scores["accuracy"] > 0.8


def test_pair_features_are_difference_and_product(tmp_path):
    # The label is whether both sentences are equal: only a feature of the pair can tell.
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    for part, count in (("train", 60), ("test", 20)):
        pool = lines("good", count) + lines("bad", count)
        rows = [f"1\t1\t2\t{t}\t{t}" for t in pool[:count]]
        rows += [f"0\t1\t2\t{a}\t{b}" for a, b in zip(pool[:count], pool[count:], strict=True)]
        write(tmp_path / "MRPC" / f"msr_paraphrase_{part}.txt", [f"\ufeff{head}", *rows])
    task = load_transfer("MRPC", tmp_path)
    assert len(task.parts["train"]) == 120
    scores = evaluate(encode, [task]).scores["MRPC"]
    assert scores["accuracy"] == 1 and scores["f1"] == 1


def test_trec_has_six_labels_in_latin_1(tmp_path):
    kinds = ["ABBR:abb", "DESC:def", "ENTY:animal", "HUM:ind", "LOC:city", "NUM:date"]
    rows = [
        f"{kind} {'w' * (n + 1)} caf\xe9 {i} ?" for n, kind in enumerate(kinds) for i in range(12)
    ]
    write(tmp_path / "TREC" / "train_5500.label", rows, "latin-1")
    write(tmp_path / "TREC" / "TREC_10.label", rows[::6], "latin-1")
    task = load_transfer("TREC", tmp_path)
    assert {label for _, label in task.parts["train"]} == set(range(6))
    assert (
        evaluate(
            lambda texts: np.array([[t.count("w"), 1.0, t.count("w") ** 2] for t in texts]), [task]
        ).scores["TREC"]["accuracy"]
        == 1
    )


@pytest.mark.parametrize(
    ("name", "file", "bad", "expected"),
    [
        ("TREC", "TREC/train_5500.label", "WHAT:x a ?", r"train_5500\.label:2: not ABBR\|DESC"),
        ("TREC", "TREC/train_5500.label", "no label", r"train_5500\.label:2: not ABBR"),
        ("SST2", "SST/binary/sentiment-train", "text\t3", r"sentiment-train:2: not text, a tab"),
        ("MRPC", "MRPC/msr_paraphrase_train.txt", "1\ta\tb", r"train\.txt:2: not 0 or 1, two ids"),
    ],
)
def test_malformed_lines_are_named(tmp_path, name, file, bad, expected):
    write(tmp_path / file, ["LOC:city Where ?" if name == "TREC" else "text\t1", bad])
    with pytest.raises(UserError, match=expected):
        load_transfer(name, tmp_path)


def test_too_few_examples_and_missing_files(tmp_path):
    write(tmp_path / "CR" / "custrev.pos", lines("good", 30))
    with pytest.raises(UserError, match=r"custrev\.neg: No such file"):
        load_transfer("CR", tmp_path)
    write(tmp_path / "CR" / "custrev.neg", lines("bad", 3))
    with pytest.raises(UserError, match=r"all has \{0: 3, 1: 30\} examples a label"):
        load_transfer("CR", tmp_path)


def test_files_that_are_cut_do_not_bear_the_name(mr, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(UserError, match="MR: 62 scored examples, MR was published with 10,662"):
        load_transfer("MR", mr)


@pytest.mark.shared
def test_real_files_have_the_published_sizes(senteval):
    sizes = {"MR": 10662, "SUBJ": 10000, "TREC": 5952, "MRPC": 5801, "SST2": 70042}
    for name, (folder, _) in READERS.items():
        if (senteval / folder).is_dir():
            task: TransferTask = load_transfer(name, senteval)
            assert sum(len(rows) for rows in task.parts.values()) == sizes.get(name, 0), name
            assert (task.name, task.facts) == (name, {})


def test_other_examples_do_not_bear_the_name(mr, monkeypatch, caplog):
    rows = load_transfer("MR", mr).parts["all"]
    examples = [["all", *texts, label] for texts, label in rows]
    digest = hashlib.sha256(json.dumps(examples).encode()).hexdigest()
    monkeypatch.setitem(names.CONTENTS, "MR", digest)
    assert load_transfer("MR", mr).name == "MR"
    write(mr / "MR" / "rt-polarity.neg", lines("bad", 31, seed=2))
    task = load_transfer("MR", mr)
    assert (task.name, task.facts["own"]) == ("MR (own data)", "labelled")
    assert caplog.messages == ["task MR: not the data that was published; scored as own data"]
    scores = evaluate(encode, [task]).scores["MR (own data)"]
    assert scores["dataset"].startswith("own data, sha256 ")
