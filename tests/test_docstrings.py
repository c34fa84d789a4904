import hashlib
import os
from pathlib import Path

import pytest

from simcse.data import docstrings

SOURCE = '''
"""Tools for reading tables.

This module reads tables from files. It never writes them.
"""

def read(path):
    """Read a table from the named file.

    The file may be compressed with :mod:`gzip`, see `the docs <https://x.y>`_ for details.
    A header line is expected, e.g. the names of the columns::

        name,age   This literal block is not a sentence at all.

    >>> read("This doctest is not a sentence either.")

    Parameters
    ----------
    path : str
        The **path** of the file to read from.

    Args:
        path (str, optional): The name of the table to be read.

    Returns:
        A table with one row for every line.
    """

class Empty: pass
'''


def test_prose_without_code_markup_and_titles(tmp_path):
    (tmp_path / "tables.py").write_text(SOURCE)
    module, function = docstrings.harvest({"tables": tmp_path / "tables.py"})
    # The other two sentences have four words, one fewer than MIN_WORDS.
    assert module.sentences == ("This module reads tables from files.",)
    assert function.sentences == (
        "Read a table from the named file.",
        "The file may be compressed with gzip, see the docs for details.",
        "The path of the file to read from.",
        "The name of the table to be read.",
        "A table with one row for every line.",
    )


def test_broken_files_are_passed_over(tmp_path):
    (tmp_path / "a.py").write_text("def broken(:")
    (tmp_path / "b.py").write_bytes(b"\xff\xfe\x00")
    assert (
        list(docstrings.harvest({"a": tmp_path / "a.py", "b": tmp_path / "b.py", "c": tmp_path}))
        == []
    )


def test_modules_of_a_distribution_are_capped_by_hash_of_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings, "MODULES_PER_DISTRIBUTION", 3)
    files = {}
    for name in "abcdefgh":
        files[name] = tmp_path / f"{name}.py"
        files[name].write_text(f'"""A sentence about the module {name} here."""')
    chosen = sorted(sorted(files, key=lambda n: hashlib.sha256(n.encode()).digest())[:3])
    assert [d.module for d in docstrings.harvest(files)] == chosen


def test_split_sizes():
    names = [f"package.module{i}" for i in range(4000)]
    splits = [docstrings.split_of(name) for name in names]
    assert splits.count("test") / 4000 == pytest.approx(0.10, abs=0.02)
    assert splits.count("dev") / 4000 == pytest.approx(0.05, abs=0.02)
    assert docstrings.split_of("package.module1") == splits[1]


def test_this_environment_has_tens_of_thousands_of_sentences():
    sentences = docstrings.training_sentences()
    assert len(sentences) > 30_000
    assert len(set(sentences)) == len(sentences)
    assert all(5 <= len(s.split()) <= 60 for s in sentences)
    assert docstrings.fingerprint(sentences) == docstrings.fingerprint(
        docstrings.training_sentences()
    )
    held_out = set()
    for split in ("dev", "test"):
        queries, documents = docstrings.retrieval_pairs(split)
        assert len(queries) == len(documents) > 300
        assert len(set(queries)) == len(queries)
        assert len(set(documents)) == len(documents)
        held_out |= set(queries)
    assert not held_out & set(sentences)


def test_only_required_distributions_count():
    names = {name for name, _, _ in docstrings._distributions()}
    assert {"python", "torch", "transformers", "sentence-transformers"} <= names
    assert not {"pytest", "mypy", "ruff", "tensorboard", docstrings.DISTRIBUTION} & names


def test_a_damaged_harvest_is_made_anew(tmp_path, monkeypatch, capsys):
    (tmp_path / "tables.py").write_text(SOURCE)
    found = [("tables", "1.0", {"tables": tmp_path / "tables.py"})]
    monkeypatch.setattr(docstrings, "_distributions", lambda: iter(found))
    whole = docstrings._load.__wrapped__(tmp_path)
    assert [docstring.module for docstring in whole] == ["tables", "tables"]
    [path] = tmp_path.glob("docstrings-*.jsonl")
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert docstrings._load.__wrapped__(tmp_path) == whole
    assert "not what was written there; made anew" in capsys.readouterr().out


def test_cache_folder_is_where_the_environment_says():
    folder = os.environ["SIMCSE_CACHE"]
    docstrings.load()
    assert list(Path(folder).glob("docstrings-*.jsonl"))
