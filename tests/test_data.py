import csv
import gzip
import hashlib
import json
import os
import shlex
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import MINI_BERT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from simcse.config.reading import load_config
from simcse.config.settings import DataConfig
from simcse.data import readers
from simcse.data import rows as data_rows
from simcse.data.readers import Wanted, all_sources, find_sources, read_sentences, source_of
from simcse.data.rows import load_training_data
from simcse.data.tokens import unknown_warning
from simcse.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MINI_BERT)


@pytest.fixture
def load(tokenizer, tmp_path):
    def load(*train, **settings):
        config = DataConfig(
            train=[str(t) for t in train], cache=str(tmp_path / "cache"), **settings
        )
        return load_training_data(config, tokenizer, seed=0)

    return load


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TEXTS = ["A first sentence.", "Zwei süße Sätze, “quoted”.", "日本語 text", 'with "quotes", commas']


def as_file(folder: Path, kind: str) -> Path:
    path = folder / f"texts.{kind}"
    if kind == "txt":
        return write(path, "\n".join(TEXTS))
    if kind == "jsonl":
        return write(path, "".join(json.dumps({"id": 1, "s": t}) + "\n" for t in TEXTS))
    if kind == "parquet":
        pa.parquet.write_table(pa.table({"id": [1] * len(TEXTS), "s": TEXTS}), path)
        return path
    separator = {"csv": ",", "tsv": "\t"}[kind]
    quoted = ['"' + t.replace('"', '""') + '"' for t in TEXTS]
    return write(path, f"id{separator}s\n" + "".join(f"1{separator}{t}\n" for t in quoted))


@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_gives_the_same_text(tmp_path, kind, packed):
    path = as_file(tmp_path, kind)
    if packed and kind == "parquet":
        path = write(tmp_path / "texts.parquet.gz", b"")
        with pytest.raises(UserError, match="all but parquet with"):
            list(read_sentences(path, "s"))
        return
    if packed:
        path = write(tmp_path / f"{path.name}.gz", gzip.compress(path.read_bytes()))
    assert list(read_sentences(path, None if kind == "txt" else "s")) == TEXTS


def test_token_ids_equal_the_tokenizers_own(load, tokenizer, tmp_path):
    long = "word " * 50
    dataset, counts = load(write(tmp_path / "a.txt", "\n".join([*TEXTS, long])), max_length=8)
    expected = tokenizer([*TEXTS, long], truncation=True, max_length=8)["input_ids"]
    assert [ids for [ids] in dataset["input_ids"]] == expected
    assert dataset["length"][:] == [len(ids) for ids in expected]
    assert counts.truncated == sum(len(ids) > 8 for ids in tokenizer([*TEXTS, long])["input_ids"])


def test_counts_and_distinct_rows(load, tmp_path):
    path = write(tmp_path / "a.txt", "one two three\n\n  \t\none two three\r\nfour five six\n")
    dataset, counts = load(path)
    assert (counts.rows, counts.empty, counts.duplicate, counts.truncated) == (3, 2, 1, 0)
    assert len(dataset) == 2
    text = "one two three\none two three\nfour five six\n"
    assert counts.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert "3 rows with text, 2 empty (skipped), 1 duplicate (skipped)" in str(counts)


def test_repeated_rows_are_kept_where_asked_for(load, tmp_path):
    path = write(tmp_path / "a.txt", "one two three\n\none two three\nfour five six\n")
    dataset, counts = load(path, duplicates="keep")
    first, second, third = dataset["input_ids"][:]
    assert first == second != third
    assert (counts.rows, counts.duplicate) == (3, 0)
    assert len(load(path)[0]) == 2  # from the same cache


def test_bom_and_crlf_are_no_text(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfFirst line.\r\nSecond line.\r\n")
    assert list(read_sentences(path)) == ["First line.", "Second line."]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one\rtwo\r\nthree\rfour"),
        ("a.csv", b"id,s\r1,one\r2,two\r3,three\r4,four\r"),
        (
            "a.jsonl",
            b'{"n": 1, "s": "one"}\r{"n": 1, "s": "two"}\r{"n": 1, "s": "three"}\r'
            b'{"n": 1, "s": "four"}',
        ),
    ],
)
def test_carriage_returns_end_lines_and_the_only_text_needs_no_name(tmp_path, name, content):
    assert list(read_sentences(write(tmp_path / name, content))) == ["one", "two", "three", "four"]
    broken = write(tmp_path / "b.txt", b"one\rtwo\r\xff\r")
    with pytest.raises(UserError, match=r"b\.txt:3: not UTF-8"):
        list(read_sentences(broken))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_are_joined_to_one_text(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    frame = pd.DataFrame({"id": ["1", "2"], "title": ["A title.", ""], "text": ["Its text.", "x"]})
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    assert list(read_sentences(path, "title+text")) == ["A title. Its text.", "x"]
    with pytest.raises(UserError, match="no column 'body'; found id, title, text"):
        list(read_sentences(path, "title+body"))
    with pytest.raises(UserError, match=r"choose columns .*, one column, of id, title, text"):
        list(read_sentences(path))


def test_a_plus_in_a_columns_own_name_joins_nothing(tmp_path):
    assert list(read_sentences(write(tmp_path / "a.csv", "a+b,a\n1,2\n"), "a+b")) == ["1"]


def test_signs_that_the_tokenizer_does_not_know_are_counted(load, tmp_path):
    _, counts = load(write(tmp_path / "a.txt", "a\n"))
    assert counts.unknown == 0
    _, counts = load(write(tmp_path / "b.txt", "我们去散步\n"))
    assert counts.unknown == counts.tokens > 0
    assert "100% of the tokens in text.txt are unknown" in unknown_warning(
        counts.unknown, counts.tokens, "text.txt"
    )
    assert unknown_warning(5, 100, "x") is None


def test_glob_and_several_files_in_order(load, tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.txt", f"text of {name}\n")
    dataset, counts = load(tmp_path / "*.txt")
    assert counts.rows == 2
    again, _ = load(tmp_path / "a.txt", tmp_path / "b.txt")
    assert dataset["input_ids"][:] == again["input_ids"][:]


def test_second_load_reads_the_cache_and_a_changed_file_does_not(
    load, tokenizer, tmp_path, monkeypatch
):
    path = write(tmp_path / "a.txt", "one two three\n")
    first, _ = load(path)
    tokenizer(["a text"], truncation=True, max_length=5, padding=True)  # which it remembers

    def unexpected(*_):
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(data_rows, "_tokenize", unexpected)
        again, _ = load(path)
    assert again["input_ids"][:] == first["input_ids"][:]
    write(path, "one two three\nfour\n")
    os.utime(path, ns=(1, 1))
    assert load(path)[1].rows == 2


def test_a_cache_that_lacks_rows_is_made_anew(load, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data_rows, "_CHUNK", 10)
    text = write(tmp_path / "a.txt", "\n".join(f"sentence number {i}" for i in range(25)))
    rows, counts = load(text)
    whole = rows["input_ids"][:]
    [path] = (tmp_path / "cache").glob("*.arrow")
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        first = reader.read_next_batch()
    path.unlink()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
        writer.write_batch(first)
    again, found = load(text)
    assert (again["input_ids"][:], found) == (whole, counts)
    assert f"warning: {path}: not what was written there" in capsys.readouterr().out


def test_failed_load_leaves_no_cache(load, tmp_path):
    with pytest.raises(UserError):
        load(write(tmp_path / "a.txt", b"fine\n\xff\n"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_max_rows_is_a_fixed_draw(load, tmp_path):
    path = write(tmp_path / "a.txt", "\n".join(f"sentence number {i}" for i in range(50)))
    first, _ = load(path, max_rows=10)
    again, _ = load(path, max_rows=10)
    everything, _ = load(path)
    assert len(first) == 10
    assert first["input_ids"][:] == again["input_ids"][:]
    assert all(ids in everything["input_ids"][:] for ids in first["input_ids"])


def packed(content: bytes) -> bytes:
    """A gzip file without the time in its header: the bytes below are part of the tests' names."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "no text in"),
        ("a.txt", b"\n \n", "no text in"),
        ("a.txt", b"fine\ncaf\xe9\n", r"a\.txt:2: not UTF-8 text \(byte 3 of the line\)"),
        ("a.txt", b"fine\nnul\0\n", r"a\.txt:2: NUL character"),
        ("a.txt", b"fine\n" + b"x" * 10_000_000, r"a\.txt:2: more than 1,000,000 characters"),
        ("a.txt.gz", packed(b"fine\n" * 9999)[:-20], "broken gzip file"),
        ("a.txt.gz", b"no gzip", "broken gzip file"),
        ("a.txt.gz", packed(b"fine\n")[:10] + b"\xff" * 40, "broken gzip file"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: not valid JSON"),
        ("a.doc", b"x", "unknown kind of file '.doc'; allowed are .txt"),
        ("a.csv", b"t,s\n1,x\n", r"a\.csv:1: choose columns .* one column, of t, s"),
        ("a.jsonl", b'{"s": "x"}\n[1]\n', r"a\.jsonl:2: expected a JSON object, found list"),
        ("a.jsonl", b'{"s": "x"}\n{"s": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"s": 3}\n', r"a\.jsonl:1: expected text, found int"),
        ("a.jsonl", b'{"s": "\\ud800"}\n', r"a\.jsonl:1: lone surrogate"),
        ("a.jsonl", b'{"s": "a\\u0000"}\n', r"a\.jsonl:1: NUL character"),
        ("a.jsonl", b'{"s": "' + b"\\u0041" * 1_000_001 + b'"}\n', r"a\.jsonl:1: more than 1,0"),
        ("a.jsonl", b'{"s": "x"}\n{"t": "x"}\n', r"a\.jsonl:2: no column 's'; found t"),
        ("a.jsonl", b'"x"\n', r"a\.jsonl:1: expected a JSON object, found str"),
        ("a.jsonl", b'{"s": ' + b"1" * 5000 + b"}\n", r"a\.jsonl:1: not valid JSON"),
        ("a.csv", b's\nfine\n"x\ny\n', r"a\.csv:3: not valid csv in the row that starts here"),
        ("a.csv", b's\nfine\n"x"y\n', r"a\.csv:3: not valid csv in the row that starts here"),
        ("a.csv", b"s,s\nx,y\n", r"a\.csv:1: two columns are called 's'"),
        ("a.csv", b's\n"' + b"x\n" * 500_001 + b'"\n', r"a\.csv:2: not valid csv .* limit"),
        ("a.csv", b"\xff\xfes\0", r"a\.csv:1: not UTF-8 text"),
        ("a.tsv", b"s\tt\nx\n", r"a\.tsv:1: choose columns"),
        (
            "a.csv",
            b"a cat sat on a mat\nx\n",
            r"a\.csv:1: 'a cat sat on a mat' is no name of a column; for a file without a header",
        ),
        ("a.csv.gz", packed(b"s\n" + b"x\n" * 9999)[:-9], "broken gzip file"),
        ("a.jsonl.gz", packed(b"{}\n") + b"tail", "no columns in it|broken gzip file"),
        ("a.csv", b"s\nx,y\n", r"a\.csv:2: 2 fields, the header has 1"),
        ("a.jsonl", b'{"s":' * 9999 + b"1" + b"}" * 9999, r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl", b'{"s":' * 90 + b"1" + b"}" * 90, r"a\.jsonl:1: expected text, found dict"),
        ("a.jsonl", b'{"%s": "x", "s": "x"}' % (b"k" * 99_999), r"a\.jsonl:1: choose .* of k+ …$"),
        ("a.jsonl", b'{"s": "x"}\n{"%s": "x"}' % (b"k" * 99_999), r"a\.jsonl:2: no col.* k+ …$"),
        ("a.csv", b"%s,%s" % ((b"k" * 99_999,) * 2), r"a\.csv:1: two columns are called 'k+'$"),
        ("a.parquet", b"x", r"a\.parquet: not a sound parquet file"),
        ("a.parquet", b"PAR1" + b"x" * 40 + b"PAR1", r"a\.parquet: not a sound parquet file"),
        ("a.TXT.GZ", b"no gzip", "broken gzip file"),
    ],
)
def test_bad_files_are_named_with_their_line(load, tmp_path, name, content, expected):
    with pytest.raises(UserError, match=expected) as error:
        load(write(tmp_path / name, content))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def as_parquet(folder, array, name="s"):
    pa.parquet.write_table(pa.table([array], names=[name]), folder / "a.parquet")
    return folder / "a.parquet"


# Bytes that say they are text: one string of one byte, 0xff.
_INVALID = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pa.py_buffer(b"\xff")]
)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([3]), r"row 1: expected text, found int"),
        (pa.array(["x", "z\0"]), r"row 2: NUL character"),
        (pa.array([["x"]]), r"row 1: expected text, found list"),
        (pa.array([{"x": "y"}]), r"row 1: expected text, found dict"),
        (pa.array([b"x"]), r"row 1: expected text, found bytes"),
        (pa.array([1.5]), r"row 1: expected text, found float"),
        (pa.array(["x" * 1_000_001]), r"row 1: more than 1,000,000 characters"),
        (pa.nulls(3), r"no text in"),
        (_INVALID, r"a\.parquet: not a sound parquet file: 'utf-8' codec"),
    ],
)
def test_parquet_of_another_schema(load, tmp_path, array, expected):
    with pytest.raises(UserError, match=expected) as error:
        load(as_parquet(tmp_path, array))
    assert "\n" not in str(error.value)


def test_parquet_without_the_column_or_with_two_of_it(load, tmp_path):
    path = as_parquet(tmp_path, pa.array(["x"]), "t")
    with pytest.raises(UserError, match=r"a\.parquet: no column 's'; found t"):
        load(path, columns=["s"])
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["s", "s"])
    pa.parquet.write_table(table, path)
    with pytest.raises(UserError, match=r"a\.parquet: two columns are called 's'"):
        load(path, columns=["s"])


def test_a_row_of_several_lines_is_placed_where_it_starts(load, tmp_path):
    content = b's,t\n"one\ntwo",x\n"three\nfour"\n'
    with pytest.raises(UserError, match=r"a\.csv:4: 1 fields, the header has 2"):
        load(write(tmp_path / "a.csv", content), columns=["s"])


def test_missing_column(load, tmp_path):
    with pytest.raises(UserError, match=r"a\.csv:1: no column 'text'; found id, s"):
        load(write(tmp_path / "a.csv", "id,s\n1,x\n"), columns=["text"])


@pytest.mark.parametrize("name", ["missing.txt", "/nowhere/missing.txt", "no/such/folder/x"])
def test_missing_file(load, name):
    with pytest.raises(UserError, match=f"data.train: {name}: no such file"):
        load(name)


def test_folder_and_empty_glob(load, tmp_path):
    with pytest.raises(UserError, match="is a folder; name its files"):
        load(tmp_path, form="sentences")
    with pytest.raises(UserError, match="no file matches"):
        load(tmp_path / "*.jsonl")


@pytest.mark.parametrize("name", ["someone/some-data", "someone/some-data:file.txt"])
def test_hub_out_of_reach_is_one_line(load, name):
    with pytest.raises(UserError, match="could not be had from the Hugging Face Hub") as error:
        load(name)
    assert "\n" not in str(error.value)


_line = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=40
).filter(lambda text: text[0] != "\ufeff")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(_line, min_size=1, max_size=8))
def test_txt_and_jsonl_return_what_was_written(tmp_path, lines):
    txt = write(tmp_path / "a.txt", "\n".join(lines) + "\n")
    assert list(read_sentences(txt)) == lines
    jsonl = write(tmp_path / "a.jsonl", "".join(json.dumps({"s": x}) + "\n" for x in lines))
    assert list(read_sentences(jsonl)) == lines


_any = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(_any, min_size=1, max_size=8))
def test_tables_return_what_was_written(tmp_path, texts):
    for suffix, dialect in (("csv", "excel"), ("tsv", "excel-tab")):
        path = tmp_path / f"a.{suffix}"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, dialect, quoting=csv.QUOTE_ALL).writerows(
                [["s"], *([t] for t in texts)]
            )
        # In csv a line break inside quotes is read as \n, however it was written.
        expected = [t.replace("\r\n", "\n") for t in texts]
        if not any("\r" in t for t in expected):
            assert list(read_sentences(path)) == expected
    assert list(read_sentences(as_parquet(tmp_path, pa.array(texts)))) == texts


_strange = st.text(st.characters(exclude_categories=()), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(_strange, min_size=1, max_size=4))
def test_strange_characters_are_kept_or_refused_with_their_line(tmp_path, texts):
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"s": t}) + "\n" for t in texts))
    unfit = [
        number
        for number, text in enumerate(texts, 1)
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)
    ]
    try:
        found = list(read_sentences(path))
    except UserError as error:
        assert str(error).startswith(f"{path}:{unfit[0]}: ")
    else:
        assert not unfit
        assert found == texts


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(["txt", "csv", "tsv", "jsonl", "parquet", "txt.gz"]), st.data())
def test_a_harmed_file_is_text_or_one_clear_error(tmp_path, kind, draw):
    path = as_file(tmp_path, kind.removesuffix(".gz"))
    content = path.read_bytes()
    if kind.endswith(".gz"):
        path = tmp_path / "texts.txt.gz"
        content = packed(content)
    place = draw.draw(st.integers(0, len(content) - 1))
    if draw.draw(st.booleans()):
        content = content[:place]
    else:
        flipped = content[place] ^ (1 << draw.draw(st.integers(0, 7)))
        content = content[:place] + bytes([flipped]) + content[place + 1 :]
    try:
        found = list(read_sentences(write(path, content), None if "txt" in kind else "s"))
    except UserError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
    else:
        assert all(isinstance(text, str) for text in found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from(["txt", "csv", "tsv", "jsonl", "parquet", "txt.gz"])
)
def test_any_bytes_are_text_or_one_clear_error(tmp_path, content, kind):
    try:
        for text in read_sentences(write(tmp_path / f"a.{kind}", content)):
            assert isinstance(text, str)
    except UserError as error:
        assert "a." in str(error)


@pytest.mark.parametrize(
    ("name", "separator", "setting"),
    [("a.csv", ";", "data.separator=';'"), ("a.csv", "\t", "data.separator='\"\\t\"'"),
     ("a.tsv", ",", "data.separator=','"), ("a.csv", "|", "data.separator='|'")],
)  # fmt: skip
def test_another_separator_is_named_with_its_setting(tmp_path, name, separator, setting):
    path = tmp_path / name
    path.write_text(separator.join(["one", "two"]) + "\n" + separator.join(["x", "y"]) + "\n")
    for config in (
        DataConfig(train=[str(path)]),
        DataConfig(train=[str(path)], form="pairs"),
        DataConfig(train=[str(path)], columns=["one"]),
        DataConfig(train=[str(path)], form="pairs", names=["one", "two"]),
    ):
        with pytest.raises(UserError, match=r"one field, .* seems to separate") as error:
            list(next(find_sources(str(path), config)).read(Wanted.of(config)))
        assert setting in str(error.value) and str(error.value).startswith(f"{path}:")
    command = shlex.split(setting)[0]
    config = load_config("unsup_wiki_mini", [command, "data.form=pairs"]).data
    fields = next(find_sources(str(path), config)).read(Wanted.of(config))
    assert list(fields) == [(f"{path}:2", ("x", "y"))]


def test_a_table_of_one_column_may_hold_any_character(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text; shortened\nx\ny; z\n")
    assert list(read_sentences(path)) == ["x", "y; z"]
    path.write_text("text; shortened\ny; z\n")  # as a table of two columns would look
    with pytest.raises(
        UserError,
        match=r"set --separator ';' \(in Python separator=\), or name the column if .* --column",
    ):
        list(read_sentences(path))
    assert list(read_sentences(path, "text; shortened")) == ["y; z"]


@pytest.mark.parametrize(
    ("name", "settings", "unused"),
    [
        ("a.txt", {"split": "test"}, "split"),
        ("a.csv", {"revision": "v2"}, "revision"),
        ("a.txt", {"names": ["a", "b"], "form": "pairs"}, "names"),
        ("a.jsonl", {"separator": ";"}, "separator"),
        ("a.txt", {"quotes": False}, "quotes"),
        ("a.parquet", {"encoding": "latin-1"}, "encoding"),
        ("a.md", {"form": "documents", "separator": ";"}, "separator"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path, name, settings, unused):
    (tmp_path / name).write_text("text\n")
    path = str(tmp_path / name)
    with pytest.raises(UserError, match=rf"^data\.{unused} has no meaning for {path}$"):
        all_sources(DataConfig(train=[path], **settings))
    (tmp_path / "b.csv").write_text("text\n")
    if unused not in ("split", "revision"):  # of one of several files it has one
        all_sources(DataConfig(train=[path, str(tmp_path / "b.csv")], **settings))


def test_a_revision_and_a_split_are_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("text\nx\n")
    monkeypatch.setattr(readers, "snapshot", lambda *_, **__: tmp_path)
    all_sources(DataConfig(train=["alice/text"], split="train", revision="v2"))
    all_sources(DataConfig(train=["alice/text:a.csv"], revision="v2"))
    with pytest.raises(UserError, match=r"data\.split has no meaning for alice/text:a\.csv"):
        all_sources(DataConfig(train=["alice/text:a.csv"], split="test"))


def test_text_in_another_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("café\n“x”\n".encode("cp1252"))
    config = DataConfig(train=[str(path)], encoding="cp1252")
    source = next(find_sources(str(path), config))
    assert [text for _, (text,) in source.read(Wanted.of(config))] == ["café", "“x”"]
    with pytest.raises(UserError, match=r"a\.txt:1: not UTF-8 .*; --encoding \(in Python "):
        list(read_sentences(path))
    assert list(read_sentences(path, encoding="cp1252")) == ["café", "“x”"]
    with pytest.raises(UserError, match=r"a\.txt:1: not UTF-8 .*; data\.encoding names another"):
        list(source.read(Wanted()))
    path.write_bytes(b"\x81")
    with pytest.raises(UserError, match=r"a\.txt:1: not CP1252 text \(byte 0 of the line\)"):
        list(source.read(Wanted.of(config)))


def test_text_of_the_same_size_and_time_is_tokenised_anew(tmp_path, load):
    path = tmp_path / "a.txt"
    digests = []
    for text in ("one cat\n", "two cat\n"):
        path.write_text(text)
        os.utime(path, ns=(10**18, 10**18))
        digests.append(load(path)[1].sha256)
    assert digests[0] != digests[1]


def test_a_hard_negative_that_the_first_row_lacks_is_not_left_out(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d", "negative": "e"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: 'negative' is not in the first row"):
        list(source_of(path).read(Wanted("pairs")))


@pytest.mark.parametrize(
    ("form", "rows", "expected"),
    [
        ("sentences", [{"text": "a"}, {"text": "b", "title": "c"}], "'title' is not text in the"),
        ("sentences", [{"text": "a", "n": None}, {"text": "b", "n": "c"}], "'n' is not text in"),
        ("documents", [{"text": "a"}, {"text": "b", "title": "c"}], "'title' is not in the first"),
        ("sentences", [{"text": "a"}, {"text": "b", "id": 1}], None),
        ("nli", [{"premise": "a", "hypothesis": "b", "label": 0}] * 2, None),
        (
            "nli",
            [
                {"premise": "a", "hypothesis": "b", "label": 0},
                {"premise": "a", "hypothesis": "b", "label": 0, "id": "x"},
            ],
            None,
        ),
    ],
)
def test_text_that_the_first_row_lacks_is_not_left_out(tmp_path, form, rows, expected):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if expected is None:
        assert len(list(source_of(path).read(Wanted(form)))) == 2
        return
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: {expected}"):
        list(source_of(path).read(Wanted(form)))
    assert len(list(source_of(path).read(Wanted(form, columns=("text",))))) == 2
