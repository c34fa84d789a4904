import hashlib
import json
import os
import re

import numpy as np
import pytest
import torch
from conftest import MINI_BERT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sentence_transformers import SentenceTransformer

from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.errors import UserError
from simcse.evaluation import names
from simcse.evaluation.hub_results import model_index
from simcse.evaluation.mteb_tasks import fill_from, find_tasks
from simcse.evaluation.names import MTEB_STS, SIZES, STS, TRANSFER
from simcse.evaluation.protocol import EmbeddingCache, evaluate
from simcse.evaluation.scoring import plan_tasks
from simcse.evaluation.sources import (
    STS_SUBSETS,
    load_dev_task,
    load_geometry,
    load_task,
    read_pairs,
    read_sts,
    task_names,
)
from simcse.evaluation.table import collapse_lines
from simcse.evaluation.tasks import GeometryTask, PairTask, RetrievalTask, similarity_bands
from simcse.reports.tables import Column, as_text, score_rows
from simcse.training.setup import evaluate_model

pytestmark = pytest.mark.usefixtures("any_size")

VECTORS = {
    "east": [1.0, 0.0],
    "north": [0.0, 2.0],
    "north-east": [3.0, 3.0],
    "west": [-1.0, 0.0],
}


def encode(texts):
    return np.array([VECTORS[text] for text in texts])


def test_pairs_are_scored_by_spearman_of_the_cosine():
    task = PairTask("t", ["east"] * 4, list(VECTORS), np.array([5.0, 1.0, 2.0, 0.0]))
    cosine = [1, 0, np.sqrt(0.5), -1]
    expected = np.corrcoef(rankdata(cosine), rankdata(task.grades))[0, 1]
    scores = evaluate(encode, [task]).scores["t"]
    assert scores["cosine_spearman"] == pytest.approx(expected)
    assert scores["pairs"] == 4


def retrieval(queries, documents):
    """Each query with the document in the same position."""
    return RetrievalTask("r", queries, documents, [{i: 1} for i in range(len(queries))])


def test_retrieval_counts_ranks_and_ties():
    documents = [f"d{i}" for i in range(12)]
    vectors = {d: np.eye(13)[i] for i, d in enumerate(documents)}
    vectors["q0"] = np.eye(13)[0]  # rank 1
    vectors["q1"] = np.eye(13)[12]  # equally far from all: ties count against, rank 12
    task = retrieval(["q0", "q1", *documents[2:]], documents)
    scores = evaluate(lambda texts: np.stack([vectors[t] for t in texts]), [task]).scores["r"]
    assert scores["recall_at_10"] == pytest.approx(11 / 12)
    assert scores["recall_at_100"] == 1
    assert scores["ndcg_at_10"] == pytest.approx(11 / 12)
    assert scores["mrr_at_10"] == pytest.approx(11 / 12)


def test_geometry_uses_pairs_above_four_and_distinct_sentences():
    grades = np.array([5.0, 4.0, 4.5])
    task = GeometryTask("here", ["east", "east", "north"], ["north", "west", "west"], grades)
    scores = evaluate(encode, [task]).scores["geometry"]
    assert scores["alignment"] == pytest.approx(
        2.0
    )  # east-north and north-west; 4.0 is not above 4
    assert (scores["positive_pairs"], scores["sentences"]) == (2, 3)
    expected = np.log(np.mean(np.exp([-4, -8, -4])))
    assert scores["uniformity"] == pytest.approx(expected)


def test_each_distinct_text_is_encoded_once():
    seen = []

    def counting(texts):
        seen.extend(texts)
        return encode(texts)

    task = PairTask("t", ["east", "east"], ["north", "west"], np.array([0.0, 1.0]))
    evaluate(counting, [task, retrieval(["east"], ["north"])])
    assert sorted(seen) == ["east", "north", "west"]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (np.zeros((2, 3)), "2 of 2 embeddings are zero vectors"),
        (np.array([[1, np.nan], [1, 1]]), "1 of 2 embeddings hold NaN"),
        (np.array([[1, np.inf], [1, 1]]), "1 of 2 embeddings hold NaN or infinity"),
        (np.ones((3, 2)), r"shape \(3, 2\) for 2 texts"),
        (np.ones(2), r"shape \(2,\) for 2 texts"),
        (np.ones((2, 2)), "t: all similarities are equal"),
    ],
)
def test_broken_embeddings_are_named(result, expected):
    task = PairTask("t", ["a", "b"], ["b", "a"], np.array([0.0, 1.0]))
    with pytest.raises(UserError, match=expected):
        evaluate(lambda _: result, [task])


def sts_folder(root, task="STS13"):
    folder = root / "STS" / f"{task}-en-test"
    folder.mkdir(parents=True)
    for number, subset in enumerate(STS_SUBSETS[task]):
        (folder / f"STS.input.{subset}.txt").write_text(f"a{number}\tb{number}\nc\td\n")
        (folder / f"STS.gs.{subset}.txt").write_text(f"{number}.5\n\n")  # the second is unscored
    return folder


def test_subsets_are_concatenated_and_unscored_pairs_skipped(tmp_path):
    sts_folder(tmp_path)
    task = load_task("STS13", tmp_path)
    assert task.sentence1 == ["a0", "a1", "a2"]
    assert task.sentence2 == ["b0", "b1", "b2"]
    assert task.grades.tolist() == [0.5, 1.5, 2.5]


def test_sentences_are_spaced_as_senteval_does(tmp_path):
    """Its loaders split at whitespace (``str.split``), its batchers join with single spaces."""
    folder = sts_folder(tmp_path)
    wide = " two  spaces,\u00a0no-break,\u3000wide\x0b\x85and \u2028more "
    (folder / "STS.input.OnWN.txt").write_text(f"{wide}\tplain\nx\ty\n", newline="\n")
    expected = "two spaces, no-break, wide and more"
    task = load_task("STS13", tmp_path)
    assert (task.sentence1[1], task.sentence2[1]) == (expected, "plain")
    stsb, sick = tmp_path / "STS" / "STSBenchmark", tmp_path / "SICK"
    stsb.mkdir()
    sick.mkdir()
    rows = "".join(f"g\tf\t2012\t1\t{grade}\t{wide}\tplain\n" for grade in (1, 4.5))
    (stsb / "sts-dev.csv").write_text(rows)
    rows = "".join(f"1\tplain\t{wide}\t{grade}\tX\n" for grade in (1, 4.5))
    (sick / "SICK_test_annotated.txt").write_text(f"head\n{rows}")
    assert load_task("STSB-dev", tmp_path).sentence1 == [expected] * 2
    assert load_task("SICK-R", tmp_path).sentence2 == [expected] * 2
    assert load_geometry(tmp_path, dev_only=True).sentence1 == [expected] * 2


@pytest.mark.shared
def test_spaces_of_sts12(senteval):
    pairs = [(first, second) for first, second, _ in read_sts("STS12", senteval)]
    task = load_task("STS12", senteval)
    ours = list(zip(task.sentence1, task.sentence2, strict=True))
    assert sum(a != b for a, b in zip(pairs, ours, strict=True)) == 114
    assert [[text.split() for text in pair] for pair in pairs] == [
        [text.split(" ") for text in pair] for pair in ours
    ]


def test_missing_subset_and_line_counts(tmp_path):
    folder = sts_folder(tmp_path)
    grades = folder / "STS.gs.OnWN.txt"
    grades.write_text("1\n2\n3\n")
    with pytest.raises(
        UserError, match=r"STS\.input\.OnWN\.txt: 2 lines, but STS\.gs\.OnWN\.txt has 3"
    ):
        load_task("STS13", tmp_path)
    grades.unlink()
    with pytest.raises(UserError, match=r"STS\.gs\.OnWN\.txt: No such file"):
        load_task("STS13", tmp_path)


@pytest.mark.parametrize(("pair", "grade"), [("no tab", "1")])
def test_malformed_pair(tmp_path, pair, grade):
    folder = sts_folder(tmp_path)
    (folder / "STS.input.OnWN.txt").write_text(f"{pair}\n")
    (folder / "STS.gs.OnWN.txt").write_text(f"{grade}\n")
    with pytest.raises(UserError, match=r"OnWN\.txt:1: expected two sentences with a tab"):
        load_task("STS13", tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_in_a_test_set_are_read_or_named(tmp_path, content, place):
    folder = tmp_path / "STS" / "STSBenchmark"
    folder.mkdir(parents=True, exist_ok=True)
    line = b"a\tb\tc\td\t%d\tOne.\tTwo.\n"
    whole = line % 1 + line % 4
    (folder / "sts-test.csv").write_bytes(whole[:place] + content + whole[place:])
    try:
        task = load_task("STSB", tmp_path)
    except UserError as error:
        assert "sts-test.csv" in str(error) or "no scored pairs" in str(error)
        assert "\n" not in str(error)
    else:
        assert len(task.sentence1) == len(task.grades) >= 2


def test_nul_character_in_a_test_set(tmp_path):
    folder = sts_folder(tmp_path)
    (folder / "STS.input.OnWN.txt").write_bytes(b"a\tb\nc\0\td\n")
    with pytest.raises(UserError, match=r"OnWN\.txt:2: NUL character"):
        load_task("STS13", tmp_path)


def test_a_pipe_among_the_files_is_refused_and_not_waited_for(tmp_path):
    folder = sts_folder(tmp_path)
    (folder / "STS.gs.OnWN.txt").unlink()
    os.mkfifo(folder / "STS.gs.OnWN.txt")
    with pytest.raises(UserError, match=r"STS\.gs\.OnWN\.txt: a folder, pipe or device"):
        load_task("STS13", tmp_path)


def test_stsb_and_sick_layouts(tmp_path):
    stsb, sick = tmp_path / "STS" / "STSBenchmark", tmp_path / "SICK"
    stsb.mkdir(parents=True)
    sick.mkdir()
    line = 'genre\tfile\t2012\t7\t{}\tA "quoted" one.\tAnother.\textra\n'
    for part, score in (("train", 1), ("dev", 4.2), ("test", 3)):
        (stsb / f"sts-{part}.csv").write_text(line.format(score) + line.format(0))
    (sick / "SICK_test_annotated.txt").write_text(
        "pair_ID\tsentence_A\tsentence_B\trel\n1\tx\ty\t4.5\n2\tx\tz\t2\n"
    )
    for alias in ("STSB", "STSBenchmark"):
        task = load_task(alias, tmp_path)
        assert (task.name, task.sentence1, task.grades.tolist()) == (
            "STSB",
            ['A "quoted" one.'] * 2,
            [3, 0],
        )
    assert load_task("SICK-R", tmp_path).grades.tolist() == [4.5, 2]
    assert load_dev_task("STSB", tmp_path).grades.tolist() == [4.2, 0]
    assert load_geometry(tmp_path, dev_only=True).source == "STS-B dev"
    assert load_geometry(tmp_path, dev_only=False).grades.tolist() == [1, 0, 4.2, 0, 3, 0]
    (stsb / "sts-test.csv").write_text(line.format(3) * 2)
    with pytest.raises(UserError, match="task STSB: no scored pairs in its files, or all of one"):
        load_task("STSB", tmp_path)
    (stsb / "sts-dev.csv").write_text(line.format(3))
    with pytest.raises(UserError, match="no pair graded above 4, so no alignment"):
        load_geometry(tmp_path, dev_only=True)
    (stsb / "sts-dev.csv").write_text("too\tfew\n")
    with pytest.raises(UserError, match=r"sts-dev\.csv:1: not a sentence pair"):
        load_task("STSB-dev", tmp_path)


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_benchmarks_name_is_for_all_of_its_data_and_no_other(tmp_path, monkeypatch, extra):
    """Files that are cut, or go on, at the end of a row are sound files of another test."""
    monkeypatch.undo()
    folder = tmp_path / "STS" / "STS13-en-test"
    folder.mkdir(parents=True)

    def write(subset, rows):
        (folder / f"STS.input.{subset}.txt").write_text("a\tb\n" * rows)
        (folder / f"STS.gs.{subset}.txt").write_text("1\n" + "2\n" * (rows - 1))

    for subset, rows in (("FNWN", 189), ("OnWN", 561), ("headlines", 750)):
        write(subset, rows)
    assert len(load_task("STS13", tmp_path).grades) == 1500
    write("OnWN", 561 + extra)
    expected = (
        rf"STS\.gs\.OnWN\.txt: {561 + extra} scored examples, STS13 OnWN was published with 561"
    )
    with pytest.raises(UserError, match=expected):
        load_task("STS13", tmp_path)
    with pytest.raises(UserError, match=expected):
        fill_from(tmp_path, find_tasks(["STS13"])[0])
    stsb, sick = tmp_path / "STS" / "STSBenchmark", tmp_path / "SICK"
    stsb.mkdir()
    sick.mkdir()
    (stsb / "sts-dev.csv").write_text("g\tf\t2012\t7\t4.5\ta\tb\n" * (1500 + extra))
    with pytest.raises(UserError, match=r"sts-dev\.csv: 1,\d\d\d scored .*STS-B dev .* 1,500"):
        load_dev_task("STSB", tmp_path)
    with pytest.raises(UserError, match=r"sts-dev\.csv: 1,\d\d\d scored .*STS-B dev .* 1,500"):
        load_geometry(tmp_path, dev_only=True)
    rows = "1\tx\ty\t4.5\n" * (4927 + extra)
    (sick / "SICK_test_annotated.txt").write_text(f"head\n{rows}")
    with pytest.raises(UserError, match=r"annotated\.txt: 4,92\d scored .* published with 4,927"):
        load_task("SICK-R", tmp_path)


def test_other_pairs_do_not_bear_the_name(tmp_path, monkeypatch, caplog):
    folder = sts_folder(tmp_path)
    rows = [["a0", "b0", 0.5], ["a1", "b1", 1.5], ["a2", "b2", 2.5]]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    monkeypatch.setitem(names.CONTENTS, "STS13", digest)
    (folder / "STS.input.OnWN.txt").write_text("  a1 \tb1\nx\ty\n")  # words are what counts
    assert load_task("STS13", tmp_path).name == "STS13"
    assert fill_from(tmp_path, find_tasks(["STS13"])[0])
    (folder / "STS.gs.OnWN.txt").write_text("1.4\n\n")
    task = load_task("STS13", tmp_path)
    assert caplog.messages == ["task STS13: not the data that was published; scored as own data"]
    random = np.random.default_rng(0)
    evaluation = evaluate(lambda texts: random.normal(size=(len(texts), 4)), [task])
    [(name, scores)] = evaluation.scores.items()
    assert (name, scores["own"]) == ("STS13 (own data)", "graded")
    assert scores["dataset"].startswith("own data, sha256 ")
    assert model_index(evaluation.scores) == []
    with pytest.raises(UserError, match="its STS13 is not the data that was published; score it"):
        fill_from(tmp_path, find_tasks(["STS13"])[0])


def test_other_pairs_are_no_geometry_of_sts_b(tmp_path, monkeypatch):
    folder = tmp_path / "STS" / "STSBenchmark"
    folder.mkdir(parents=True)
    (folder / "sts-dev.csv").write_text("g\tf\t2012\t7\t4.5\ta\tb\n")
    assert load_geometry(tmp_path, dev_only=True).source == "STS-B dev"
    monkeypatch.setitem(names.CONTENTS, "STS-B dev", "another")
    monkeypatch.setitem(names.CONTENTS, "STSB-dev", "another")
    assert load_geometry(tmp_path, dev_only=True).source == "STS-B dev (own data)"
    (folder / "sts-dev.csv").write_text("g\tf\t2012\t7\t4.5\ta\tb\ng\tf\t2012\t7\t1\ta\tc\n")
    assert load_dev_task("STSB", tmp_path).name == "STSB-dev (own data)"


@pytest.mark.shared
def test_the_published_data_are_known(senteval, caplog):
    for name in ("STS12", "STS13", "STSB"):
        assert load_task(name, senteval).name == name
    assert load_dev_task("STSB", senteval).name == "STSB-dev"
    for dev_only in (True, False):
        assert "own" not in load_geometry(senteval, dev_only=dev_only).source
    assert not caplog.messages


def test_sizes_add_up_to_the_published_ones():
    """Totals of the tasks' papers, and SentEval's own ``ndev`` and ``ntest``."""
    totals = {}
    for part, size in SIZES.items():
        totals[part.split()[0]] = totals.get(part.split()[0], 0) + size
    assert totals == {
        "STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186, "STS-B": 8628,
        "SICK": 9927, "MR": 10662, "CR": 3775, "SUBJ": 10000, "MPQA": 10606, "SST2": 70042,
        "TREC": 5952, "MRPC": 5801,
    }  # fmt: skip
    parts = {f"{task} {subset}" for task, subsets in STS_SUBSETS.items() for subset in subsets}
    assert parts == {part for part in SIZES if part[:5] in STS_SUBSETS}


def test_unknown_task_and_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"task 'STS99': unknown \(did you mean .*STS1"):
        load_task("STS99", None)
    with pytest.raises(
        UserError, match=r"task STS12: needs a folder .* mteb:STS12 comes from the Hub"
    ):
        load_task("STS12", None)
    with pytest.raises(UserError, match=r"task sts: none of STS12, STS13, .* is in"):
        task_names(["sts"], tmp_path)
    with pytest.raises(UserError, match="task transfer: needs a folder"):
        task_names(["transfer"], None)


def test_groups_are_what_the_folder_holds(tmp_path):
    sts_folder(tmp_path)
    (tmp_path / "SICK").mkdir()  # without the test file
    names, missing = task_names(["sts", "STSBenchmark", "STS13"], tmp_path)
    assert names == ["STS13", "STSB"]  # a task by its own name is not left out: loading it says why
    assert missing == ["STS12", "STS14", "STS15", "STS16", "STSB", "SICK-R"]


def test_a_grade_is_a_finite_number(tmp_path):
    folder = sts_folder(tmp_path)
    for bad in ("nan", "9", "-1", "high"):
        (folder / "STS.gs.OnWN.txt").write_text(f"{bad}\n1\n")
        expected = rf"STS\.gs\.OnWN\.txt:1: a grade is a number from 0 to 5, got '{bad}'"
        with pytest.raises(UserError, match=expected):
            load_task("STS13", tmp_path)


def test_pairs_of_equal_texts_are_tied():
    # Dot products of a vector with itself differ from 1 in the last bit, here and there.
    random = np.random.default_rng(0)
    texts = [str(i) for i in range(50)]
    vectors = dict(zip(texts, random.normal(size=(50, 7)), strict=True))
    task = PairTask("t", [*texts, "0"], [*texts, "1"], np.array([*range(50), 0.0]))
    items = evaluate(lambda wanted: np.stack([vectors[t] for t in wanted]), [task]).items
    assert set(items["t.similarity"][:50]) == {1.0}
    assert items["t.grade"].tolist() == task.grades.tolist()


def test_similarities_are_cosines_and_items_are_kept():
    task = PairTask("t", ["east"] * 4, list(VECTORS), np.array([5.0, 1.0, 2.0, 0.0]))
    items = evaluate(encode, [task, retrieval(["east"], ["north"])]).items
    np.testing.assert_allclose(items["t.similarity"], [1, 0, np.sqrt(0.5), -1], atol=1e-7)
    assert items["r.recall_at_10"].tolist() == items["r.mrr_at_10"].tolist() == [1]


def test_bands_hold_the_pairs_of_a_grade():
    bands = similarity_bands(np.array([-1.0, 0.02, 0.3, 0.9, 1.0]), np.array([0, 0.9, 1, 4, 5]))
    assert {name: band["pairs"] for name, band in bands.items()} == {"0-1": 2, "1-2": 1, "4-5": 2}
    assert bands["0-1"]["mean"] == pytest.approx(-0.49)
    assert bands["4-5"]["std"] == pytest.approx(0.05)
    assert bands["0-1"]["counts"][0] == 1 and bands["0-1"]["counts"][20] == 1
    assert bands["4-5"]["counts"][-1] == 1  # 1.0 is inside the last bin


def test_collapse_is_named_in_the_scores():
    spread = {"a": [1.0, 0], "b": [0, 1.0], "c": [-1, 0.2]}
    grades = np.array([5.0])
    task = GeometryTask("here", ["a"], ["b"], grades)
    for offset, expected in ((0, "dimensional"), (1000, "complete")):
        scores = evaluate(
            lambda texts, offset=offset: np.array([spread[t] for t in texts]) + offset, [task]
        ).scores
        assert scores["geometry"]["collapse"] == expected
        assert collapse_lines({"model": scores})[0].startswith(f"warning: model: {expected}")


def test_embedded_pairs_are_balanced_and_distinct():
    rows = read_pairs()
    grades = [score for _, _, score in rows]
    assert {g: grades.count(g) for g in sorted(set(grades))} == {float(g): 42 for g in range(6)}
    assert len({s for a, b, _ in rows for s in (a, b)}) == 2 * len(rows)


def test_grade_of_embedded_pairs_is_not_given_away_by_words_or_length():
    rows = read_pairs()
    overlap, length = [], []
    for a, b, _ in rows:
        left, right = set(a.lower().split()), set(b.lower().split())
        overlap.append(len(left & right) / len(left | right))
        length.append(-abs(len(a.split()) - len(b.split())))
    grades = rankdata([score for _, _, score in rows])
    assert np.corrcoef(rankdata(overlap), grades)[0, 1] < 0.45
    assert abs(np.corrcoef(rankdata(length), grades)[0, 1]) < 0.15


def test_table_prints_percent_and_geometry():
    scores = {
        "STS12": {"cosine_spearman": 0.4781},
        "geometry": {"alignment": 0.19, "uniformity": -1.69, "source": "STS-B"},
    }
    columns = [Column(name, [scores]) for name in ("raw", "trained")]
    table = as_text(score_rows(columns))
    rows = [line.split() for line in table.splitlines()]
    assert rows[2] == ["STS12", "cosine", "Spearman", "47.81", "47.81"]
    assert rows[-1] == ["geometry", "(STS-B)", "uniformity", "↓", "-1.690", "-1.690"]


def test_averages_of_seven_name_their_sick():
    spearman = {name: {"cosine_spearman": 0.1 * i} for i, name in enumerate(STS)}
    spearman["SICK-R"]["source"] = "SentEval, 4,927"
    theirs = {name: {"cosine_spearman": 0.5} for name in MTEB_STS}
    theirs["mteb:SICK-R"]["source"] = "mteb, 9,927"
    accuracy = {name: {"accuracy": 0.8} for name in TRANSFER}
    table = as_text(score_rows([Column("m", [{**spearman, **theirs, **accuracy}])]))
    assert "average of 7 (SICK-R (SentEval, 4,927))  cosine Spearman  30.00" in table
    assert "average of 7 (SICK-R (mteb, 9,927))      cosine Spearman  50.00" in table
    assert re.search(r"average of 7 \(transfer\) +accuracy +80.00", table)
    del spearman["STS14"]
    assert "average" not in as_text(score_rows([Column("m", [spearman])]))


@pytest.mark.slow
def test_shipped_model_scores_as_its_card_says():
    # Its other figures need SentEval's files: `simcse evaluate mini-distilled --data SENTEVAL`.
    card = (MINI_BERT.with_name("mini-distilled") / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| mini-distilled"))
    plan = plan_tasks(["pairs", "python-docs"], None).load()
    model = SentenceTransformer(str(MINI_BERT.with_name("mini-distilled")), device="cpu")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    scores = evaluate_model(model, plan.ours, 128).scores
    found = (scores["pairs"]["cosine_spearman"], scores["python-docs"]["ndcg_at_10"])
    assert [float(cell) for cell in row.split("|")[-3:-1]] == [
        pytest.approx(100 * value, abs=0.06) for value in found
    ]


@pytest.mark.slow
@pytest.mark.shared
def test_shipped_encoder_scores_as_its_card_says(senteval):
    # The card's figures come from another harness (sentence-transformers' own trainer and scipy).
    card = {"mean": (63.9, 0.19, -1.69), "cls": (45.5, 0.02, -0.11)}
    task = load_task("STSB-dev", senteval)
    geometry = load_geometry(senteval, dev_only=True)
    for pooling, (stsb_dev, alignment, uniformity) in card.items():
        model: SentenceTransformer = encoder.build(EncoderConfig(pooling=pooling))
        scores = evaluate_model(model, [task, geometry], 128).scores
        assert 100 * scores["STSB-dev"]["cosine_spearman"] == pytest.approx(stsb_dev, abs=0.05)
        assert scores["geometry"]["positive_pairs"] == 208
        assert scores["geometry"]["alignment"] == pytest.approx(alignment, abs=0.03)
        assert scores["geometry"]["uniformity"] == pytest.approx(uniformity, abs=0.1)
    assert len(load_task("STS13", senteval).grades) == 1500


def test_a_cache_gives_each_text_to_the_model_once():
    calls = []

    def encode(texts):
        calls.append(texts)
        return np.array([[len(text), 1.0] for text in texts])

    embed = EmbeddingCache(encode)
    assert embed(["bb", "a", "bb"]).tolist() == [[2, 1], [1, 1], [2, 1]]
    assert embed(["ccc", "a"]).tolist() == [[3, 1], [1, 1]]
    assert embed(["a"]).dtype == np.float32
    assert calls == [["bb", "a"], ["ccc"]]
    with pytest.raises(UserError, match="1 of 1 embeddings are zero vectors"):
        EmbeddingCache(lambda texts: np.zeros((1, 2)))(["a"])
