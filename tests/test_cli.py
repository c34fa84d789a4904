"""The command line, through ``main``; ``test_assets.py`` starts processes."""

import importlib.metadata
import json
import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SENTENCES
from safetensors.numpy import save_file

import simcse_launcher
from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.reports.runs import _file_name


def call(*command, cwd):
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def model_folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), folder)
    return folder


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(SENTENCES) + "\n")
    return path


def test_train_and_evaluate_scripts(tiny, text_file, tmp_path, monkeypatch, capsys):
    """As Python runs them; ``test_assets.py`` starts processes."""

    def script(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(ROOT / name), run_name="__main__")
        finally:  # the process that the launcher ends would not need it any more
            signal.signal(signal.SIGINT, handler)
        assert end.value.code == 0
        return capsys.readouterr().out

    run, output = tmp_path / "run", tmp_path / "scores.json"
    settings = [f"encoder.name={tiny}", f"data.train={text_file}", "training.steps=4"]
    settings += ["training.batch_size=8", "evaluation.dev=pairs", "evaluation.tasks=pairs"]
    said = script("train.py", "quickstart", *settings, f"output={run}")
    assert "best of pairs" in said
    assert (run / "scores.json").is_file()
    said = script("evaluate.py", run, "--tasks", "pairs", "-o", output)
    assert "cosine Spearman" in said
    scores = json.loads(output.read_text())
    assert scores["scores"]["pairs"]["pairs"] == 252
    assert "uniformity" in scores["scores"]["geometry"]
    assert "cosine Spearman" in scores["protocol"]


def test_search_saves_and_uses_an_index(model_folder, corpus, tmp_path, capsys):
    index = str(tmp_path / "index.safetensors")
    shared = ["--model", str(model_folder), "--top-k", "1"]
    assert main(["search", "A dog.", "--corpus", str(corpus), "--save-index", index, *shared]) == 0
    first = capsys.readouterr().out
    assert main(["search", "A dog.", "--index", index, *shared]) == 0
    assert capsys.readouterr().out == first
    assert main(["search", "zebra", "--index", index, *shared, "--threshold", "1"]) == 0
    assert "nothing at or above --threshold 1.0" in capsys.readouterr().out


def test_light_commands_do_not_import_torch(tmp_path):
    code = (
        "import sys\n"
        "import simcse\n"
        "from simcse_launcher import main\n"
        "status = main(['train', 'quickstart', 'training.batch_size=none-such'])\n"
        "print(status, 'torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    answer = call("-c", code, cwd=tmp_path)
    assert answer.stdout.split() == ["2", "False", "False"]
    assert answer.stderr.count("\n") == 1


def test_schema_is_json(capsys):
    assert main(["train", "--schema"]) == 0
    assert "training" in json.loads(capsys.readouterr().out)["properties"]
    for more in ("training.steps=3", "quickstart", "--sweep", "--dry-run"):
        assert main(["train", "--schema", more]) == 2
        assert "error: --schema: the same for every config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "a.yaml", "b.yaml"], "one config at a time, got a.yaml and b.yaml"),
        (["train", "nosuch"], "config nosuch: no such file; shipped are"),
        (["evaluate", "x", "--data", "/nowhere"], "--data /nowhere: no such folder"),
        (["evaluate", "x", "--tasks", "STS1"], "task 'STS1': unknown (did you mean STS1"),
        (["evaluate", "x", "--tasks", "sts"], "task sts: needs a folder in SentEval's layout"),
        (["evaluate", "x", "--against", "bert"], "--against bert: unknown"),
        (["compare", "/no/a", "/no/b"], "/no/a: no such run"),
        (["report", "/no/a"], "/no/a: no such run"),
        (["evaluate", "x", "--tasks", ","], "--tasks: name at least one task"),
        (["evaluate", "x", "-o", ""], "argument output: is empty"),
        (["evaluate", ""], "argument model: is empty"),
        (["report", "x", "-o", ""], "argument output: is empty"),
        (["train", "quickstart", "output="], "argument output: no value"),
        (["train", "quickstart", "data.train= "], "argument data.train: no value"),
        (["evaluate", "/no/model", "--tasks", "pairs"], "/no/model is neither a model folder"),
        (["encode", "missing.txt", "-o", "e.npy"], "missing.txt: no such file"),
        (["encode", "missing.txt", "-o", "e.pt"], "expected a name that ends in .npy or .parquet"),
        (["search", "q", " ", "--corpus", "c.txt"], "search: a query is empty"),
        (["search", "q", "--corpus", "c", "--save-index", "i.npz"], "ending in .safetensors"),
        (["search", "q"], "search needs either --corpus FILE or --index FILE.safetensors"),
    ],
)
def test_mistakes_are_one_line(arguments, expected, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert expected in message
    assert message.count("\n") == 1


def test_output_that_cannot_be_written_is_one_line(model_folder, corpus, capsys):
    arguments = ["encode", str(corpus), "--model", str(model_folder)]
    assert main([*arguments, "-o", f"{corpus}/inside/e.npy"]) == 2
    message = capsys.readouterr().err
    assert f"{corpus} is no folder to write in" in message
    assert message.count("\n") == 1


def test_sentences_are_printed_as_they_can_be_shown(model_folder, tmp_path, capsys):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": "a\x1b[2J\n  1.0000  forged\u202e"}) + "\n")
    assert main(["search", "q\x1b", "--corpus", str(corpus), "--model", str(model_folder)]) == 0
    query, found = capsys.readouterr().out.splitlines()
    assert query == "q\\x1b"
    assert found.endswith("  a\\x1b[2J\\n  1.0000  forged\\u202e")


@pytest.mark.parametrize("command", [["search", "q", "--corpus"], ["encode", "-o", "e.npy"]])
def test_a_column_of_a_text_file_is_refused(command, model_folder, corpus, tmp_path, capsys):
    options = ["--column", "title", "--model", str(model_folder)]
    assert main([*command, str(corpus), *options]) == 2
    assert "corpus.txt: no column 'title'; found text" in capsys.readouterr().err


def test_search_in_an_empty_corpus_is_a_mistake(model_folder, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    corpus = ["--corpus", str(tmp_path / "empty.txt"), "--model", str(model_folder)]
    assert main(["search", "x", *corpus]) == 2
    assert "empty.txt: no text in it" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--colour=red", "--batch-size=0", "--batch-size=many"])
def test_unknown_options_and_values_are_refused(option, capsys):
    with pytest.raises(SystemExit) as error:
        main(["encode", "x", "-o", "y.npy", option])
    assert error.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_encode_leaves_an_old_file_when_it_fails(model_folder, tmp_path, capsys):
    output, broken = tmp_path / "e.npy", tmp_path / "a.txt"
    output.write_bytes(b"old")
    broken.write_bytes(b"fine\n\xff\n")
    words = ["encode", str(broken), "-o", str(output), "--model", str(model_folder)]
    assert main([*words, "--overwrite"]) == 2
    assert "a.txt:2" in capsys.readouterr().err
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "e.npy"]


def test_encode_replaces_no_file_that_it_was_not_told_to(model_folder, tmp_path, capsys):
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"text": SENTENCES}), source)
    os.link(source, tmp_path / "linked.parquet")
    before = source.read_bytes()
    words = ["encode", str(source), "--model", str(model_folder), "-o"]
    for name in (source, tmp_path / "linked.parquet"):
        for more in ([], ["--overwrite"]):
            assert main([*words, str(name), *more]) == 2
            message = capsys.readouterr().err
            assert message.startswith(f"error: {name}: part of what this command reads")
            assert message.count("\n") == 1
            assert name.read_bytes() == before
    output.write_bytes(b"old")
    assert main([*words, str(output)]) == 2
    assert "out.parquet: is there, and not known to be of this command" in capsys.readouterr().err
    assert output.read_bytes() == b"old"
    assert main([*words, str(output), "--overwrite"]) == 0
    assert pq.read_table(output)["text"].to_pylist() == SENTENCES


def test_search_saves_its_index_over_no_other_file(model_folder, corpus, tmp_path, capsys):
    index = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros(3)}, index)
    before = index.read_bytes()
    words = ["search", "A dog.", "--model", str(model_folder), "--save-index", str(index)]
    assert main([*words, "--corpus", str(corpus)]) == 2
    answer = capsys.readouterr()
    assert "model.safetensors: is there, and not known to be of this command" in answer.err
    assert not answer.out
    assert index.read_bytes() == before
    assert main([*words, "--corpus", str(corpus), "--overwrite"]) == 0
    assert main([*words, "--corpus", str(corpus)]) == 0  # an index takes the place of an index
    assert main([*words, "--index", str(index)]) == 2
    assert "model.safetensors: part of what this command reads" in capsys.readouterr().err


def test_namesake_on_pypi_is_named(monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the launcher's last word on Ctrl-C
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4")
    assert simcse_launcher.main(["train", "nosuch"]) == 2
    assert "warning: PyPI's package 'simcse'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "simcse.cli.main", None)  # as if the other package hid ours
    assert simcse_launcher.main(["train"]) == 2
    assert "error: PyPI's package 'simcse'" in capsys.readouterr().err


def test_a_missing_model_is_said_before_any_text_is_read(capsys, monkeypatch):
    def read(*_):
        raise AssertionError("read the text of a task first")

    monkeypatch.setattr("simcse.evaluation.sources.load_task", read)
    assert main(["evaluate", "no/model/here"]) == 2
    assert "no/model/here is neither a model folder here" in capsys.readouterr().err


def test_every_model_has_a_folder_of_its_own_for_its_scores():
    models = ["p/q", "p--q", "p-/q", "p/-q", "-p/q", "../p", "/p", "a:b", "a%3Ab", "..", "a b", "p"]
    names = [_file_name(model) for model in models]
    assert len(set(names)) == len(models) and not {"", ".", ".."} & set(names)
    assert all("/" not in name for name in names)
    assert _file_name("p/q/") == _file_name("./p/q") == "p--q"


def test_search_as_json_has_ids(model_folder, corpus, capsys):
    words = ["search", "A dog.", "x\x9b", "--corpus", str(corpus), "--model", str(model_folder)]
    assert main([*words, "--json", "--top-k", "2"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["query"], second["query"]) == ("A dog.", "x\x9b")
    assert len(first["matches"]) == 2
    match = first["matches"][0]
    assert SENTENCES[match["id"]] == match["text"] and -1 <= match["similarity"] <= 1.001


def test_dedup_shows_groups_and_writes_what_is_left(model_folder, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("\n".join([SENTENCES[0], "", SENTENCES[3], SENTENCES[0]]))
    output = tmp_path / "kept.txt"
    words = ["dedup", str(text), "--model", str(model_folder), "--threshold", "0.9999"]
    assert main([*words, "-o", str(output)]) == 0
    shown = capsys.readouterr().out
    assert f"       0  {SENTENCES[0]}\n       3  {SENTENCES[0]}\n" in shown
    assert "1 groups; 1 of 4 rows repeat another" in shown
    assert output.read_text().splitlines() == [SENTENCES[0], SENTENCES[3]]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [[0, 3]]
    assert main([*words, "-o", str(output)]) == 2
    assert "is there, and not known to be of this command" in capsys.readouterr().err
    assert main([*words, "-o", str(tmp_path / "kept.csv")]) == 2
    assert "kept.csv: expected a name that ends in .txt" in capsys.readouterr().err


def test_a_group_of_nearly_all_texts_is_said_to_be_the_models(model_folder, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("\n".join(f"text {number}" for number in range(12)))
    words = ["dedup", str(text), "--model", str(model_folder), "--threshold"]
    for threshold, said in (("-1", True), ("1", False)):
        assert main([*words, threshold]) == 0
        error = capsys.readouterr().err
        assert ("warning: 12 different texts are one group" in error) == said


def test_ctrl_c_is_answered_on_a_line_of_its_own(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("simcse.cli.commands.settings_text", lambda *_: interrupt(None))
    for terminal, start in ((True, "\n"), (False, "")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=terminal: answer)
        assert main(["settings", "x"]) == 130
        assert capsys.readouterr().err == f"{start}error: interrupted\n"


def test_tables_are_read_as_their_options_say(tiny, tmp_path, capsys):
    table, model = tmp_path / "a.csv", ["--model", str(tiny), "--pooling", "mean"]
    table.write_bytes("name;text\n1;café\n2;crème\n".encode("latin-1"))
    encode = ["encode", str(table), "-o", str(tmp_path / "a.parquet"), "--column", "text", *model]
    assert main(encode) == 2
    assert "set --separator ';' (in Python separator=)" in capsys.readouterr().err
    encode += ["--separator", ";"]
    assert main(encode) == 2
    assert "--encoding (in Python encoding=) names another" in capsys.readouterr().err
    assert main([*encode, "--encoding", "latin-1"]) == 0
    found = pq.read_table(tmp_path / "a.parquet")["text"].to_pylist()
    assert found == ["café", "crème"]
    dedup = ["dedup", str(table), "--column", "name+text", *model, "--json", "--threshold", "1"]
    assert main([*dedup, "--encoding", "latin-1"]) == 2
    assert "set --separator ';' (in Python separator=)" in capsys.readouterr().err
    assert main([*dedup, "--encoding", "latin-1", "--separator", ";"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    table.write_text("name\ttext\n1\tcafé\n")
    search = ["search", "café", "--corpus", str(table), "--column", "text", *model]
    assert main([*search, "--separator", "\\t"]) == 0
    assert "1.0000  café" in capsys.readouterr().out
    for arguments, expected in (
        ([*search, "--separator", ";;"], "';;' is not one character that separates fields"),
        ([*search, "--encoding", "utf-16"], "invalid choice: 'utf-16'"),
        (
            ["search", "x", "--index", "i.safetensors", "--separator", ";", *model],
            "of a --corpus; an --index has been made",
        ),
    ):
        with suppress(SystemExit):
            assert main(arguments) == 2
        answer = capsys.readouterr().err
        assert expected in answer and answer.count("\n") == 1
    (tmp_path / "a.txt").write_text("x\n")
    arguments = ["encode", str(tmp_path / "a.txt"), "-o", str(tmp_path / "a.npy"), *model]
    assert main([*arguments, "--separator", ";"]) == 2
    expected = f"--separator (in Python separator=) has no meaning for {tmp_path / 'a.txt'}"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("evaluate x --batch-size ten", "argument --batch-size: 'ten' is no whole number"),
        ("encode x -o y.npy --dims 1.5", "argument --dims: '1.5' is no whole number"),
        ("mine x -o y --margin wide", "argument --margin: wide is no finite number"),
    ],
)
def test_what_is_no_number_is_one_line(arguments, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    assert capsys.readouterr().err == f"error: {expected}\n"
