"""Documents as training text: read, split, held out, trained on and tested with."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import log
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse.cli.main import main
from simcse.config.reading import load_config
from simcse.config.settings import Config, DataConfig
from simcse.data.documents import (
    Document,
    Documents,
    _sides,
    embedded_documents,
    passages,
    query_and_rest,
    sentences,
)
from simcse.data.positives import Positives
from simcse.data.rows import _hash64, load_training_data
from simcse.data.text_files import document_files, plain_text
from simcse.encoders import encoder
from simcse.errors import UserError
from simcse.evaluation import ranking
from simcse.evaluation.documents import document_task, too_few
from simcse.evaluation.sources import load_task
from simcse.training.text import view_collator

WORDS = [f"word{i}" for i in range(400)]


def made_up(number, count=8):
    """A document of its own: eight sentences of random words."""
    random = np.random.default_rng(number)
    return " ".join(
        f"{' '.join(random.choice(WORDS, 9)).capitalize()} number {number}." for _ in range(count)
    )


@pytest.fixture
def folder(tmp_path):
    """60 documents: plain text, Markdown in a folder below, and what is no document."""
    root = tmp_path / "docs"
    (root / "below" / ".hidden").mkdir(parents=True)
    for number in range(30):
        (root / f"{number}.txt").write_text(made_up(number))
        text = f"# Title {number}\n\n{made_up(100 + number)}\n\n```\ncode = {number}\n```\n"
        (root / "below" / f"{number}.md").write_text(text)
    (root / "below" / ".hidden" / "x.md").write_text(made_up(999))
    (root / "image.png").write_bytes(b"\x89PNG")
    (root / "empty.txt").write_text(" \n")
    return root


def config_for(path, tmp_path, **more):
    return DataConfig(train=[str(path)], form="documents", cache=str(tmp_path / "cache"), **more)


def titles(documents):
    return sorted(document.text.split()[-1] for document in documents)


def test_a_folder_is_read_with_the_folders_in_it(folder, tmp_path):
    documents = Documents(config_for(folder, tmp_path, held_out=0.0))
    found = list(documents.on("train"))
    assert documents.counts()["documents"] == len(found) == 60
    assert {d.title for d in found} == {"", *(f"Title {i}" for i in range(30))}
    assert not any("code" in d.text or "word" not in d.text for d in found)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_tables_with_and_without_titles(suffix, tmp_path):
    import pandas

    frame = pandas.DataFrame(
        {"id": range(20), "title": [f"T{i}" for i in range(20)], "text": map(made_up, range(20))}
    )
    path = tmp_path / f"docs.{suffix}"
    if suffix == "jsonl":
        path.write_text(frame.to_json(orient="records", lines=True))
    elif suffix == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    found = list(Documents(config_for(path, tmp_path, held_out=0.0)).on("train"))
    assert [(d.title, d.text) for d in found] == [(f"T{i}", made_up(i)) for i in range(20)]
    found = list(Documents(config_for(path, tmp_path, held_out=0.0, columns=["text"])).on("train"))
    assert {d.title for d in found} == {""}


def test_sides_are_a_function_of_content(folder, tmp_path):
    whole = Documents(config_for(folder, tmp_path, held_out=0.5))
    sides = {side: titles(whole.on(side)) for side in ("train", "dev", "test")}
    assert sum(map(len, sides.values())) == 60
    assert all(5 < len(found) < 45 for found in sides.values())
    # Other names and another order: the same documents are held out.
    moved = tmp_path / "moved"
    moved.mkdir()
    for number, path in enumerate(sorted(folder.rglob("[0-9]*.*"), reverse=True)):
        path.rename(moved / f"{number:03}{path.suffix}")
    again = Documents(config_for(moved, tmp_path, held_out=0.5))
    assert {side: titles(again.on(side)) for side in sides} == sides
    # A larger share holds out what a smaller one does, and more.
    small = Documents(config_for(moved, tmp_path, held_out=0.2))
    assert set(titles(small.on("train"))) > set(sides["train"])


def test_near_duplicates_are_on_the_same_side(tmp_path):
    rows = []
    for number in range(40):
        words = made_up(number, 20).split()
        for copy in range(5):  # a word here and there is another one
            words[7 * copy] = f"other{copy}"
            rows.append({"title": f"{number}", "text": " ".join(words)})
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = Documents(config_for(path, tmp_path, held_out=0.5))
    sides = [{d.title for d in documents.on(side)} for side in ("train", "dev", "test")]
    assert sum(map(len, sides)) == 40 and all(sides)  # no document on two sides
    assert documents.near_duplicates == 200


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30, unique=True),
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=20),
    st.floats(0, 0.5),
)
def test_groups_stay_together_and_go_by_their_lowest_hash(keys, pairs, share):
    pairs = [(a % len(keys), b % len(keys)) for a, b in pairs]
    sides, together = _sides(keys, pairs, share)
    groups = [{i} for i in range(len(keys))]  # joined one by one, as a reference
    for a, b in pairs:
        joined = groups[a] | groups[b]
        for i in joined:
            groups[i] = joined
    for number, group in enumerate(groups):
        place = float(np.uint64(min(keys[i] for i in group))) / 2.0**64
        assert sides[number] == (1 if place < share / 2 else 2 if place < share else 0)
    assert together == sum(len(group) > 1 for group in groups)


def test_markdown_is_read_as_its_reader_would():
    text = """---
title: "From the front"
tags: [a, b]
---
# A heading

Some *emphasised* text with `code`, a [link](http://x.y)
over two lines.

- first item
- second <b>item</b>

| a | b |
|---|---|
| cell one | cell two |

<div>html</div>

    indented code
"""
    title, body = plain_text(text)
    assert title == "From the front"
    assert body.split("\n\n") == [
        "A heading", "Some emphasised text with code, a link over two lines.", "first item",
        "second item", "a", "b", "cell one", "cell two",
    ]  # fmt: skip
    assert plain_text("Setext\n===\n\nText.") == ("Setext", "Text.")
    assert plain_text("") == ("", "")


def test_markdown_that_is_none_takes_no_time():
    started = time.monotonic()
    assert plain_text("[" * 1_000_000) == ("", "[" * 1_000_000)
    long = " ".join(["*a*"] * 30_000)
    assert plain_text(f"# *A*\n\n{long}\n\n*b*") == ("A", f"{long}\n\nb")
    assert plain_text(f"---\ntitle:{' ' * 200_000}\n---\ntext") == ("", "text")
    assert time.monotonic() - started < 5  # a minute, were it read


def test_linked_folders_are_said_and_unreadable_ones_refused(
    folder, tokenizer, tmp_path, monkeypatch, capsys
):
    found = document_files(folder)
    assert (len(found[0]), found[1]) == (61, 0)
    (folder / "below" / "back").symlink_to(folder)
    (folder / ".linked").symlink_to(folder)
    assert document_files(folder) == (found[0], 1)
    load_training_data(DataConfig(train=[str(folder)], form="documents"), tokenizer, 0)
    assert "warning: data.train: links to folders are left out (1)" in capsys.readouterr().out
    scandir = os.scandir

    def denied(path):
        if Path(path).name == "below":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert main(["train", f"data.train={folder}", f"output={tmp_path / 'run'}", "--dry-run"]) == 2
    assert capsys.readouterr().err == f"error: {folder / 'below'}: Permission denied\n"


def test_sentences_of_several_languages():
    assert sentences("Dr. Smith came at 5 p.m. on Jan. 3. He left!\n\n---\n\nA list", "en") == [
        "Dr. Smith came at 5 p.m. on Jan. 3.", "He left!", "A list",
    ]  # fmt: skip
    assert sentences("Das ist z.B. so. Am 3. Mai.", "de") == ["Das ist z.B. so.", "Am 3. Mai."]
    assert sentences("你好。今天天气很好！", "zh") == ["你好。", "今天天气很好！"]


def test_passages_are_cut_evenly_and_lose_nothing():
    document = Document("here", "Title", made_up(1, 23))
    parts = list(passages(document, DataConfig(form="documents", passage=10)))
    assert [len(part) - 1 for part in parts] == [8, 8, 7]
    assert {part[0] for part in parts} == {"Title"}
    assert [s for part in parts for s in part[1:]] == sentences(document.text, "en")


def row_of(tokenizer, title, texts):
    ids = tokenizer([title, *texts])["input_ids"]
    return {"input_ids": ids, "text_hash": list(range(len(ids))), "row_hash": 7, "label": 3}


@pytest.fixture
def tokenizer(tiny):
    from simcse.config.settings import EncoderConfig

    return encoder.build(EncoderConfig(name=str(tiny))).tokenizer


def test_kinds_of_positives(tokenizer):
    texts = ["red fox", "blue sea", "green hill", "old tree"]
    row = row_of(tokenizer, "the title", texts)

    def drawn(weights, row=row, length=32):
        positives = Positives.of(weights, length, tokenizer)
        pairs = [positives.draw(row, np.random.default_rng(i)) for i in range(300)]
        return [
            tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in pair)
            for pair in pairs
        ], pairs

    words, pairs = drawn({"dropout": 1})
    assert {pair[0] for pair in words} == set(texts) and all(a == b for a, b in words)
    assert all(a == b for a, b in pairs)
    words, pairs = drawn({"spans": 1})
    everything = " ".join(texts)
    for (a, b), ((_, first), (_, second)) in zip(words, pairs, strict=True):
        assert a in everything and b in everything
        assert not set(a.split()) & set(b.split()) and first != second
    assert len(set(words)) > 25  # of the 30 pairs of runs
    assert sum(everything.index(a) < everything.index(b) for a, b in words) in range(110, 190)
    words, _ = drawn({"title": 1})
    assert {a for a, _ in words} == {"the title"} and len({b for _, b in words}) == 10
    words, _ = drawn({"title": 3, "dropout": 1})
    assert sum(a == "the title" for a, _ in words) in range(190, 260)
    # What a passage does not have is not drawn.
    one = row_of(tokenizer, "", ["only one"])
    assert set(drawn({"spans": 1}, one)[0]) == {("only one", "only one")}
    assert set(drawn({"title": 1, "spans": 1}, one)[0]) == {("only one", "only one")}
    # A run has one start and one end, and no more than max_length tokens.
    for pair in drawn({"spans": 1}, length=5)[1]:
        for ids, _ in pair:
            assert len(ids) <= 5 and ids[0] == row["input_ids"][0][0]
            assert ids[-1] == row["input_ids"][0][-1]
            assert tokenizer.decode(ids).count("[SEP]") == 1


def test_a_batch_is_a_function_of_seed_and_epoch_and_masks_its_own_document(folder, tmp_path, tiny):
    data = config_for(folder, tmp_path, passage=3)
    config = Config(data=data)
    model = encoder.build(config.encoder.model_copy(update={"name": str(tiny)}))
    rows, counts = load_training_data(data, model.tokenizer, 0)
    assert counts.found["documents"] == 60 and "held out for test" in str(counts)
    assert len(rows) == 3 * (
        60 - counts.found["held out for dev"] - counts.found["held out for test"]
    )
    batch = [rows[i] for i in range(12)]
    first = view_collator(config, data, model).features(batch, model.device)
    assert first["identities"].shape == (2, 12) and first["labels"].shape == (12,)
    assert first["labels"].unique().numel() == 4  # three passages of each document
    again = view_collator(config, data, model)
    assert all((again.features(batch, model.device)[k] == v).all() for k, v in first.items())
    again.epoch = 1
    other = again.features(batch, model.device)["identities"]
    assert (other != first["identities"]).float().mean() > 0.5
    # It does not matter what else is in the batch.
    alone = view_collator(config, data, model).features(batch[5:6], model.device)["identities"]
    assert (alone[:, 0] == first["identities"][:, 5]).all()


def test_held_out_text_is_never_trained_on(folder, tmp_path, tiny):
    data = config_for(folder, tmp_path, held_out=0.5)
    model = encoder.build(Config().encoder.model_copy(update={"name": str(tiny)}))
    rows, _ = load_training_data(data, model.tokenizer, 0)
    trained = {h for row in rows["text_hash"] for h in row[1:]}
    for side in ("dev", "test"):
        held = [s for d in Documents(data).on(side) for s in sentences(d.text, "en")]
        assert held and not trained & {_hash64(sentence) for sentence in held}


def test_the_task_is_title_or_first_sentence_against_the_rest(folder, tmp_path):
    data = config_for(folder, tmp_path, held_out=0.5)
    task = document_task([Documents(data)], "test")
    found = dict(zip(task.queries, task.documents, strict=True))
    for document in Documents(data).on("test"):
        first, *rest = sentences(document.text, "en")
        if document.title:
            assert found[document.title] == " ".join([first, *rest])
        else:
            assert found[first] == " ".join(rest)
    assert (task.name, document_task([Documents(data)], "dev").name) == (
        "documents",
        "documents-dev",
    )
    assert not set(document_task([Documents(data)], "dev").queries) & set(task.queries)
    assert query_and_rest(Document("x", "", "One sentence."), "en") is None
    assert "±" in too_few(task) and "raise data.held_out" in too_few(task)


def test_from_a_folder_to_a_scored_model(folder, tmp_path, arguments, run, capsys):
    words = [*arguments, f"data.train={folder}", "data.form=documents", "data.held_out=0.4"]
    words += ["data.positives=[spans, {dropout: 0.5}, {title: 0.5}]", f"data.cache={tmp_path}/c"]
    words += ["evaluation.dev=documents", "evaluation.tasks=documents"]
    assert main(words) == 0, capsys.readouterr().err
    output = capsys.readouterr().out
    assert re.search(r"60 documents, \d+ held out for dev, \d+ held out for test", output)
    assert "positives: spans × 1, dropout × 0.5, title × 0.5" in output
    assert "warning: documents: " in output
    scores = json.loads((run / "scores.json").read_text())
    assert scores["dev"]["task"] == "documents-dev"
    assert 0 <= scores["trained"]["documents"]["recall_at_10"] <= 1
    held_out = document_task([Documents(config_for(folder, tmp_path, held_out=0.4))], "test")
    rows = ranking.bm25_rows(held_out.queries, held_out.documents)
    above = [(row >= row[own]).sum() for own, row in enumerate(rows)]
    assert scores["bm25"]["documents"]["mrr_at_10"] == pytest.approx(
        np.mean([1 / rank if rank <= 10 else 0 for rank in above])
    )
    head = next(line for line in output.splitlines() if line.startswith("task "))
    assert head.split()[2:] == ["BM25", "trained"]  # no untrained encoder, so no difference
    assert [e for e in log(run) if "loss" in e]


@pytest.mark.parametrize(
    ("make", "words", "expected"),
    [
        (lambda d: None, [], "holds no .txt, .md, .markdown; tables"),
        (lambda d: (d / "a.txt").write_bytes(b"\xff\xfe"), [], "a.txt: not UTF-8 text (byte 0)"),
        (lambda d: (d / "a.txt").symlink_to("nowhere"), [], "a.txt: a link to nothing"),
        (lambda d: (d / "a.txt").write_text("a\0b"), [], "a.txt: NUL character"),
        (lambda d: (d / "a.md").write_text("---\ntitle: a\0b\n---\nText."), [], "NUL character"),
        (
            lambda d: [(d / f"{i}.md").write_text(made_up(i)) for i in range(3)],
            ["data.columns=[text]"],
            "is text, which has no columns",
        ),
        (
            lambda d: [(d / f"{i}.txt").write_text(made_up(i) * (i > 0)) for i in range(3)],
            ["data.incomplete=refuse"],
            "0.txt: empty text; data.incomplete=skip leaves it out",
        ),
        (
            lambda d: None,
            ["data.form=sentences", "data.passage=3"],
            "passage has no meaning with form sentences",
        ),
        (lambda d: (d / "a.txt").write_text(" "), [], "data.train: no text in"),
        (
            lambda d: (d / "a.txt").write_text("A line.\nAnother line.\n"),
            [],
            "is one document; for one sentence a line set data.form=sentences",
        ),
        (
            lambda d: [(d / f"{i}.txt").write_text("The same. Words.") for i in range(3)],
            [],
            "have the same words; name different ones",
        ),
        (
            lambda d: [(d / f"{i}.txt").write_text(made_up(i)) for i in range(8)],
            ["data.held_out=0.01", "evaluation.dev=documents", "training.batch_size=2"],
            "data.held_out: 0.01 of the documents leaves none for dev; raise it",
        ),
        (
            lambda d: [(d / f"{i}.txt").write_text(made_up(i)) for i in range(3)],
            ["data.held_out=0", "evaluation.tasks=documents"],
            "documents needs data.held_out above 0",
        ),
        (
            lambda d: None,
            ["data.form=sentences", "evaluation.tasks=documents"],
            "documents needs data.form=documents, got sentences",
        ),
        (lambda d: None, ["data.positives=crops"], "data.positives.crops: should be 'dropout', "),
        (lambda d: None, ["data.positives=[3]"], "data.positives: should be a valid dictionary"),
        (lambda d: None, ["data.language=english please"], "data.language: string should match"),
        (lambda d: None, ["data.columns=[a,b,c]"], "form documents takes one column or two"),
    ],
)
def test_what_cannot_be_read_is_one_line(make, words, expected, tmp_path, arguments, run, capsys):
    root = tmp_path / "d"
    root.mkdir()
    make(root)
    words = [f"data.train={root}", "data.form=documents", f"data.cache={tmp_path}/c", *words]
    assert main([*arguments, *words]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not run.exists()


def test_text_that_changes_while_it_is_read_is_noticed(folder, tmp_path):
    documents = Documents(config_for(folder, tmp_path))
    (folder / "3.txt").write_text(made_up(77))
    with pytest.raises(UserError, match=r"the text has changed while it was read"):
        list(documents.on("train"))


@pytest.mark.slow
def test_the_shipped_documents_are_the_same_for_everybody(tmp_path, monkeypatch, tiny):
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path))
    documents = Documents(embedded_documents())
    assert documents.counts() == {
        "documents": 7577, "held out for dev": 360, "held out for test": 394,
        "near-duplicates": 101,
    }  # fmt: skip
    task = load_task("python-docs", None)
    assert (task.name, len(task.queries)) == ("python-docs", 394)
    trained = DataConfig(max_rows=50, form="sentences")  # as sentences: none that is held out
    model = encoder.build(Config().encoder.model_copy(update={"name": str(tiny)}))
    rows, counts = load_training_data(trained, model.tokenizer, 0)
    held_out = {s for d in documents.held_out("test") for s in sentences(d.text, "en")}
    assert len(rows) == 50 and counts.rows > 20_000
    assert not {h for row in rows["text_hash"] for h in row} & {_hash64(s) for s in held_out}


def test_a_run_is_scored_later_on_what_it_held_out(folder, tmp_path, arguments, run, capsys):
    words = [*arguments, f"data.train={folder}", "data.form=documents", "data.held_out=0.4"]
    words += [f"data.cache={tmp_path}/c", "evaluation.tasks=documents"]
    assert main(words) == 0, capsys.readouterr().err
    trained = json.loads((run / "scores.json").read_text())["trained"]["documents"]
    output = tmp_path / "later.json"
    words = ["evaluate", str(run), "--tasks", "documents", "-o", str(output)]
    assert main(words) == 0, capsys.readouterr().err
    assert json.loads(output.read_text())["scores"]["documents"] == trained
    assert main(["evaluate", "mini-bert", "--tasks", "documents"]) == 2


def test_the_form_is_told_by_what_there_is(folder, text_file):
    def form(train):
        return DataConfig(train=train).form

    assert DataConfig().form == form(["python-docs"]) == "documents"
    assert form([str(folder)]) == form(["notes.md", str(folder)]) == "documents"
    assert form([str(text_file)]) == form(["user/dataset"]) == form(["*.csv"]) == "sentences"
    assert form([str(folder), str(text_file)]) == "sentences"
    assert DataConfig(train=[str(folder)], form="sentences").form == "sentences"
    with pytest.raises(UserError, match=r"documents needs data.form=documents, got sentences; for"):
        load_config("quickstart", [f"data.train={text_file}"])


def test_encoding_counts_and_what_has_no_text_is_counted(tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    for number in range(4):
        (root / f"{number}.txt").write_text(f"Caf\u00e9 {made_up(number)}", encoding="latin-1")
    (root / "empty.md").write_text("```\nonly code\n```\n")
    documents = Documents(config_for(root, tmp_path, encoding="latin-1", held_out=0.0))
    assert documents.counts()["without text (skipped)"] == 1
    assert all(d.text.startswith("Caf\u00e9") for d in documents.on("train"))
    with pytest.raises(UserError, match=r"0\.txt: not UTF-8 text \(byte 3\); set data\.encoding"):
        Documents(config_for(root, tmp_path))


def test_documents_of_a_model_that_is_no_run_are_refused(tiny, capsys):
    assert main(["evaluate", str(tiny), "--tasks", "documents"]) == 2
    assert f"{tiny} is no run folder" in capsys.readouterr().err


def test_positives_that_no_passage_has_are_said(tiny, tmp_path, capsys):
    folder = tmp_path / "docs"
    folder.mkdir()
    words = ["train", "quickstart", f"encoder.name={tiny}", f"data.train={folder}", "--dry-run"]
    words += ["data.held_out=0.4", "training.batch_size=2", "data.positives=[title, spans]"]
    words += ["evaluation.dev=pairs", "evaluation.tasks=pairs", f"output={tmp_path / 'r'}"]
    for number in range(20):
        (folder / f"{number}.txt").write_text(made_up(number).split(".")[0] + ".")
    assert main(words) == 0, capsys.readouterr().err
    output = capsys.readouterr().out
    assert (
        f"warning: data.positives: title needs a title, which no passage of {folder} has" in output
    )
    assert "warning: data.positives: spans needs two sentences, which no passage of" in output
    for number in range(20):
        (folder / f"{number}.md").write_text(f"# Title {number}\n\n{made_up(number + 50)}")
    assert main(words) == 0, capsys.readouterr().err
    assert "data.positives: title" not in capsys.readouterr().out
