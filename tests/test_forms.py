"""The four forms of training data: what becomes a row, and what is refused with its place."""

import gzip
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import MINI_BERT
from transformers import AutoTokenizer

from simcse.config.settings import DataConfig
from simcse.data.forms import rows_of
from simcse.data.rows import load_training_data, texts_of
from simcse.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MINI_BERT)


@pytest.fixture
def load(tokenizer, tmp_path):
    def load(name, content, **settings):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        config = DataConfig(train=[str(tmp_path / name)], cache=str(tmp_path / "c"), **settings)
        return load_training_data(config, tokenizer, seed=0)

    return load


def texts(tokenizer, dataset):
    return [
        tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in row)
        for row in dataset["input_ids"]
    ]


def test_pairs_and_triplets(load, tokenizer):
    content = 'a,b,n,source\n"one, two",three,four,x\nfive,six,seven,y\n\n'
    triplets, counts = load("t.csv", content, form="pairs", columns=["a", "b", "n"])
    assert texts(tokenizer, triplets) == [("one, two", "three", "four"), ("five", "six", "seven")]
    assert (counts.rows, counts.empty, counts.texts) == (2, 1, 6)
    pairs, _ = load("t.csv", content, form="pairs", columns=["b", "a"])
    assert texts(tokenizer, pairs) == [("three", "one, two"), ("six", "five")]
    with pytest.raises(UserError, match=r"choose columns .*, of a, b, n, source"):
        load("t.csv", content, form="pairs")  # is the source a hard negative?
    named = "anchor,positive,negative_1,negative_2\none,two,three,four\n"
    everything, _ = load("n.csv", named, form="pairs")
    assert len(everything[0]["input_ids"]) == len(everything[0]["text_hash"]) == 4


def test_rows_of_another_width_are_refused_with_their_place(tokenizer, tmp_path):
    (tmp_path / "a.csv").write_text("anchor,positive\none,two\n")
    (tmp_path / "b.csv").write_text("anchor,positive,negative\none,two,three\n")
    config = DataConfig(train=[str(tmp_path / "*.csv")], cache=str(tmp_path / "c"), form="pairs")
    with pytest.raises(UserError, match=r"b.csv:2: 3 columns; the rows before have 2"):
        load_training_data(config, tokenizer, seed=0)


def test_a_repeated_pair_is_one_row_a_repeated_anchor_is_not(load):
    pairs, counts = load("p.tsv", "a\tb\nx\ty\nx\ty\nx\tz\n", form="pairs")
    assert (len(pairs), counts.duplicate) == (2, 1)
    hashes = pairs["text_hash"][:]
    assert hashes[0][0] == hashes[1][0] and hashes[0][1] != hashes[1][1]


@pytest.mark.parametrize(
    ("form", "row", "what"),
    [
        ("pairs", "x,,z", "positive"),
        ("pairs", " ,y,z", "anchor"),
        ("pairs", "x,y,", "hard_negative"),
        ("nli", "x,,entailment", "hypothesis"),
        ("nli", " ,y,0", "premise"),
        ("labelled", "x,", "label"),
        ("labelled", ",1", "text"),
    ],
)
def test_incomplete_rows_are_counted_and_skipped_or_refused(load, tokenizer, form, row, what):
    header, whole = {
        "pairs": ("anchor,positive,negative", "a,b,c\nd,e,f\n"),
        "nli": ("premise,hypothesis,label", "a,b,entailment\na,c,contradiction\n"),
        "labelled": ("text,label", "a,1\nb,1\n"),
    }[form]
    content = f"{header}\n{row}\n{whole}"
    rows, counts = load("p.csv", content, form=form)
    assert texts(tokenizer, rows) == texts(
        tokenizer, load("w.csv", f"{header}\n{whole}", form=form)[0]
    )
    assert (counts.empty, counts.found["incomplete (skipped)"]) == (0, 1)
    assert str(counts).startswith("1 incomplete (skipped), ")
    with pytest.raises(UserError, match=rf"p\.csv:2: empty {what}; data\.incomplete=skip leaves"):
        load("p.csv", content, form=form, incomplete="refuse")


def test_an_empty_row_and_one_without_a_label_are_not_incomplete(load):
    strict = {"incomplete": "refuse"}
    _, counts = load("p.csv", "anchor,positive\na,b\n , \n\n", form="pairs", **strict)
    assert (counts.rows, counts.empty) == (1, 2)
    content = "premise,hypothesis,label\na,b,0\na,c,2\na,d,\n"
    assert load("n.csv", content, form="nli", **strict)[1].found["no label"] == 1


def test_nothing_but_incomplete_rows_is_said(load):
    with pytest.raises(UserError, match=r"no text in .*p\.csv: 2 incomplete \(skipped\), 0 rows"):
        load("p.csv", "anchor,positive\na,\n,b\n", form="pairs")


NLI = [
    ("Two dogs run.", "Animals move.", "entailment"),
    ("Two dogs run.", "Dogs are outside.", "entailment"),
    ("Two dogs run.", "They are brown.", "neutral"),
    ("Two dogs run.", "Nothing moves.", "contradiction"),
    ("Two dogs run.", "Two cats sleep.", "contradiction"),
    ("A man eats.", "Someone eats.", "entailment"),
    ("A man eats.", "He is hungry.", "-"),
]


@pytest.mark.parametrize("spelling", ["words", "numbers", "letters"])
def test_nli_becomes_triplets_by_the_papers_rule(load, tokenizer, spelling, tmp_path):
    names = {
        "words": {},
        "numbers": {"entailment": "0", "neutral": "1", "contradiction": "2", "-": "-1"},
        "letters": {"entailment": "e", "neutral": "N", "contradiction": "C", "-": ""},
    }[spelling]
    rows = [(p, h, names.get(label, label)) for p, h, label in NLI]
    content = "premise\thypothesis\tlabel\n" + "".join("\t".join(r) + "\n" for r in rows)
    triplets, counts = load("n.tsv", content, form="nli")
    found = texts(tokenizer, triplets)
    assert [(anchor, positive) for anchor, positive, _ in found] == [
        ("two dogs run.", "animals move."),
        ("two dogs run.", "dogs are outside."),
    ]
    assert {negative for *_, negative in found} <= {"nothing moves.", "two cats sleep."}
    assert counts.found == {
        "entailment": 3,
        "neutral": 1,
        "contradiction": 2,
        "no label": 1,
        "entailments without a contradiction": 1,
    }
    assert "3 entailment, 1 neutral, 2 contradiction, 1 no label" in str(counts)
    again, _ = load("n.tsv", content + "\n", form="nli", columns=["premise", "hypothesis", "label"])
    assert texts(tokenizer, again) == found  # the same files give the same draw


def test_nli_columns_and_number_labels_of_other_data_sets(load, tmp_path, tokenizer):
    rows = [{"sentence1": p, "sentence2": h, "gold_label": label} for p, h, label in NLI]
    triplets, _ = load("n.jsonl", "".join(json.dumps(r) + "\n" for r in rows), form="nli")
    assert len(triplets) == 2
    label = [{"entailment": 0, "neutral": 1, "contradiction": 2, "-": -1}[r[2]] for r in NLI]
    table = {"premise": [r[0] for r in NLI], "hypothesis": [r[1] for r in NLI], "label": label}
    pa.parquet.write_table(pa.table(table), tmp_path / "n.parquet")
    triplets, _ = load("n.parquet", (tmp_path / "n.parquet").read_bytes(), form="nli")
    assert len(triplets) == 2


def test_an_unknown_label_is_named_with_its_place(load):
    with pytest.raises(UserError, match=r"n\.csv:3: label 'maybe' unknown; allowed are 'entail"):
        load("n.csv", "premise,hypothesis,label\na,b,neutral\na,c,maybe\n", form="nli")
    with pytest.raises(UserError, match=r"n\.csv:2: label 'x{60}' unknown"):
        load("n.csv", f"premise,hypothesis,label\na,b,{'x' * 9999}\n", form="nli")


def test_labelled_text_and_groups_without_a_header(load, tokenizer):
    content = gzip.compress(b"g1\tone\ng1\ttwo\ng2\tthree\n\t\n")
    settings = {"form": "labelled", "names": ["id", "text"], "columns": ["text", "id"]}
    rows, counts = load("g.tsv.gz", content, **settings)
    assert texts(tokenizer, rows) == [("one",), ("two",), ("three",)]
    labels = rows["label"][:]
    assert labels[0] == labels[1] != labels[2]
    assert counts.empty == 1
    usual, _ = load("l.csv", "text,label\none,1\ntwo,1\n", form="labelled")
    assert len(set(usual["label"][:])) == 1
    with pytest.raises(UserError, match=r"g\.tsv:1: 2 fields, data.names has 3"):
        load("g.tsv", "a\tb\n", form="labelled", names=["x", "text", "label"])


@pytest.mark.parametrize(
    ("form", "content", "expected"),
    [
        ("pairs", "a\nx\n", "choose columns .* two columns or more: anchor, positive, hard"),
        ("nli", "a,b,c\nx,y,z\n", "choose columns .* three columns: premise, hypothesis, label"),
        ("labelled", "a,b\nx,y\n", "choose columns .* two columns: text, label, of a, b"),
    ],
)
def test_columns_that_the_names_do_not_tell(load, form, content, expected):
    with pytest.raises(UserError, match=expected):
        load("f.csv", content, form=form)


def test_forms_have_caches_of_their_own(load):
    content = "text,label\none,1\ntwo,1\n"
    assert (
        len(load("f.csv", content, form="pairs", columns=["text", "label"])[0][0]["input_ids"]) == 2
    )
    assert len(load("f.csv", content, form="labelled")[0][0]["input_ids"]) == 1


def test_shipped_documents_are_no_pairs():
    with pytest.raises(UserError, match=r"python-docs are documents; data\.form is pairs"):
        config = DataConfig(form="pairs")
        load_training_data(config, AutoTokenizer.from_pretrained(MINI_BERT), 0)


def test_sentences_can_be_read_again_in_the_order_of_the_rows(load, tmp_path):
    lines = [f"sentence {i % 30}" for i in range(50)] + ["", "last"]
    rows, _ = load("s.txt", "\n".join(lines), max_rows=10)
    config = DataConfig(train=[str(tmp_path / "s.txt")], cache=str(tmp_path / "c"), max_rows=10)
    again = dict(texts_of([config], np.array(rows["text_hash"][:]).ravel()))
    assert len(set(again.values())) == 10
    assert [again[row["text_hash"][0]] for row in rows] == sorted(again.values(), key=lines.index)
    everything, _ = load("s.txt", "\n".join(lines))
    found = texts_of([config, config], np.array(everything["text_hash"][:]).ravel())
    assert [text for _, text in found] == [f"sentence {i}" for i in range(30)] + ["last"]


def test_rows_keep_their_places():
    fields = iter([("f:1", ("a", "b")), ("f:2", ("", ""))])
    counts: Counter[str] = Counter()
    [row] = rows_of(fields, "pairs", counts, "refuse")
    assert (row.place, row.texts, counts["empty"]) == ("f:1", ("a", "b"), 1)


def test_pairs_by_their_names(load):
    reversed_names = "positive,anchor\nthe positive,the anchor\n"
    rows, _ = load("r.csv", reversed_names, form="pairs")
    straight, _ = load("s.csv", "anchor,positive\nthe anchor,the positive\n", form="pairs")
    assert rows[0]["input_ids"] == straight[0]["input_ids"]
    for names in ("id,text", "text,label"):
        with pytest.raises(UserError, match="choose columns"):
            load("n.csv", f"{names}\na,b\n", form="pairs")
    with pytest.raises(UserError, match="choose columns"):  # within a minute
        load("w.csv", ",".join(f"c{i}" for i in range(100_000)) + "\n", form="pairs")
