"""The table of scores: one home for terminal, report, card and comparison."""

import csv
import io
import json

import pytest
from matplotlib.figure import Figure

from simcse.reports import plots
from simcse.reports.compare import compare
from simcse.reports.runs import Run, RunSet
from simcse.reports.tables import FORMATS, Column, references, run_rows, score_rows, what_chose


def spearman(value, pairs=252):
    return {"cosine_spearman": value, "pairs": pairs}


def run(name="one", tmp_path=None, *, score=0.5, dev="documents-dev", raw=None, changes=None):
    metric = "cosine_spearman" if dev == "pairs" else "recall_at_10"
    return Run(
        name, tmp_path, {"pairs": spearman(score)}, {}, raw or {},
        {"task": dev, "metric": metric, "best": 0.6}, None,
        [{"step": 10, "eval_dev_score": 0.6, "loss": 1.0}],
        {"documents": {"recall_at_10": 0.7}}, changes or {},
    )  # fmt: skip


CHANGES = {
    task: {
        "metric": metric, "pooling": "mean", "items": 252,
        "scores": {metric: {"before": 0.4, "after": 0.5, "difference": 0.1, "low": 0.05,
                            "high": 0.15, "p": 0.01}},
    }
    for task, metric in (("pairs", "cosine_spearman"), ("documents-dev", "recall_at_10"))
}  # fmt: skip


def test_one_row_for_each_test_and_all_columns():
    raw = {"mean": {"pairs": spearman(0.4)}}
    one, two = run(raw=raw, changes=CHANGES), run("two", score=0.55, raw=raw)
    rows = run_rows([RunSet("one", [one]), RunSet("two", [two, run("three", score=0.45)])])
    assert rows == [
        ["task", "score", "untrained (mean)", "BM25", "one", "after - before", "95% interval",
         "two (2 seeds)"],
        ["pairs", "cosine Spearman", "40.00", "", "50.00", "+10.00", "+5.00 to +15.00",
         "50.00 ± 7.07 (-13.53 to 113.53)"],
    ]  # fmt: skip


def test_a_score_of_another_text_has_a_row_of_its_own():
    rows = score_rows(
        [Column("a", [{"pairs": spearman(0.5)}]), Column("b", [{"pairs": spearman(0.6, 10)}])],
        references([("a", {"mean": {"pairs": spearman(0.4)}}, {})]),
    )
    assert [row[2:] for row in rows[1:]] == [["40.00", "50.00", ""], ["", "", "60.00"]]


def test_encoders_that_differ_have_columns_of_their_own():
    raw = [{"mean": {"pairs": spearman(value)}} for value in (0.4, 0.4, 0.3)]
    columns = references(zip("abc", raw, [{}] * 3, strict=True))
    assert [column.name for column in columns] == ["untrained (mean)", "untrained (mean), c"]


def test_it_is_said_which_score_chose():
    chosen = what_chose([RunSet("one", [run(dev="pairs")])])
    assert chosen == (
        "The checkpoint was chosen on pairs (cosine Spearman): of these scores pairs did, and is "
        "flattered; no other chose anything."
    )
    assert what_chose([RunSet("one", [run(), run()])]) == (
        "Checkpoints were chosen on documents-dev (recall@10); none of these scores chose anything."
    )


def test_formats_hold_the_same_table():
    rows = [["task", "score", "a_b"], ["my|task", "alignment ↓", "0.500"], ["x", "y", ""]]
    assert FORMATS["markdown"](rows).splitlines()[2] == r"| my\|task | alignment ↓ | 0.500 |"
    latex = FORMATS["latex"](rows)
    assert r"task & score & a\_b \\" in latex and r"alignment $\downarrow$ & 0.500 \\" in latex
    found = FORMATS["latex"]([rows[0], ["x-1", "p < 0.05", "-1.50 to -0.10"]])
    assert r"x-1 & p $<$ 0.05 & $-$1.50 to $-$0.10 \\" in found
    assert list(csv.reader(io.StringIO(FORMATS["csv"](rows)))) == rows
    assert json.loads(FORMATS["json"](rows)) == [
        {"task": "my|task", "score": "alignment ↓", "a_b": 0.5},
        {"task": "x", "score": "y", "a_b": None},
    ]


def test_every_run_is_compared_with_the_first():
    sets = [RunSet(n, [run(n, score=s)]) for n, s in (("base", 0.4), ("x", 0.5), ("y", 0.7))]
    found = compare(sets)
    assert found.before == ["A = base (one model), B = x (one model), C = y (one model)"]
    assert found.rows[0][2:5] == ["A", "B", "B - A"] and found.rows[0][7:9] == ["C", "C - A"]
    assert found.rows[1][2:5] == ["40.00", "50.00", "+10.00"]
    assert found.rows[1][7:9] == ["70.00", "+30.00"]
    assert len(set(found.rows[0])) == len(found.rows[0])  # keys of JSON
    assert compare(sets, letters=False).rows[0][3:5] == ["x", "x - base"]


def test_dev_tasks_have_axes_of_their_own_that_begin_with_the_untrained_encoder():
    sets = [RunSet("a", [run(changes=CHANGES)]), RunSet("b", [run(dev="pairs")])]
    picture = plots.dev_curves(sets)
    assert picture.rows == [
        ["a", "documents-dev, recall@10 ×100", "0", "40.0000", "40.0000", "40.0000"],
        ["a", "documents-dev, recall@10 ×100", "10", "60.0000", "60.0000", "60.0000"],
        ["b", "pairs, cosine Spearman ×100", "10", "60.0000", "60.0000", "60.0000"],
    ]
    assert isinstance(picture.figure, Figure) and len(picture.figure.axes) == 2
    for axes in picture.figure.axes:
        assert all(tick == round(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize(("texts", "expected"), [(100, "100 texts span at most 99"), (600, "")])
def test_few_texts_are_no_dimensional_collapse(texts, expected):
    geometry = {
        "singular_values": [1.0] * 256, "effective_rank": 90.0, "dim": 256, "mean_cosine": 0.1,
        "collapse": "none", "sentences": texts,
    }  # fmt: skip
    one = Run("a", None, {"geometry": geometry}, {}, {}, None, None, [])
    caption = plots.spectrum([RunSet("a", [one])]).caption
    assert (expected in caption) and (("A cliff well before" in caption) is (texts == 600))
