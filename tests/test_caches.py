"""Files that can be made again are used only as they were written."""

import errno
import os

import pytest

from simcse.caches import cache_folder, cached
from simcse.cli.main import main
from simcse.errors import UserError

CONTENT = bytes(range(256)) * 20


@pytest.fixture
def load(tmp_path):
    """Reads the cached file and counts how often it was made."""
    made = []

    def make(path):
        made.append(path)
        path.write_bytes(CONTENT)
        return {"rows": 3, "names": {"b": 1, "a": 2}}

    def load():
        facts = cached(tmp_path / "c" / "file", make)
        assert facts == {"rows": 3, "names": {"b": 1, "a": 2}}
        assert (tmp_path / "c" / "file").read_bytes() == CONTENT
        return len(made)

    return load


def test_a_whole_file_is_made_once(load, tmp_path, capsys):
    assert load() == load() == 1
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"file", "file.seal"}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("file", lambda content: b""),
        ("file", lambda content: content[:-1]),
        ("file", lambda content: content + b"x"),
        ("file", lambda content: content[:99] + bytes([content[99] ^ 1]) + content[100:]),
        ("file", None),
        ("file.seal", lambda content: b""),
        ("file.seal", lambda content: content[:-1]),
        ("file.seal", lambda content: b"\xff"),
        ("file.seal", lambda content: b"[1]"),
        ("file.seal", lambda content: b"{}"),
        ("file.seal", lambda content: b"[" * 100_000),
        ("file.seal", lambda content: content.replace(b'"rows": 3', b'"rows": 4')),
    ],
)
def test_a_damaged_one_is_made_anew_with_a_warning(load, tmp_path, capsys, name, harm):
    load()
    path = tmp_path / "c" / name
    if harm is None:
        path.unlink()
    else:
        path.write_bytes(harm(path.read_bytes()))
    assert load() == 2
    expected = f"warning: {tmp_path / 'c' / 'file'}: not what was written there; made anew\n"
    assert capsys.readouterr().out == expected
    assert load() == 2


def test_one_that_a_killed_process_left_without_its_seal_is_made_anew(load, tmp_path, capsys):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").write_bytes(b"old")
    assert load() == 1
    assert capsys.readouterr().out == ""


def test_the_folder_may_be_named_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SIMCSE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


def test_one_that_cannot_be_made_leaves_nothing(tmp_path):
    def fails(path):
        path.write_bytes(b"half")
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        cached(tmp_path / "file", fails)
    assert not list(tmp_path.iterdir())


def test_no_room_for_it_is_one_line(load, tmp_path, monkeypatch):
    (tmp_path / "c").write_text("a file")
    with pytest.raises(UserError, match=rf"cache: {tmp_path}/c is no folder to write in; name one"):
        load()
    (tmp_path / "c").unlink()
    for name in ("file", "file.seal"):
        (tmp_path / "c" / name).mkdir(parents=True)
        with pytest.raises(UserError, match=f"c/{name} is a folder, expected a file; remove it"):
            load()
        (tmp_path / "c" / name).rmdir()
    assert load() == 1
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert load() == 1  # what is there can be read
    (tmp_path / "c" / "file").unlink()
    with pytest.raises(UserError, match="c is no folder to write in"):
        load()


def test_a_run_makes_its_damaged_caches_anew(arguments, tmp_path, capsys):
    folder = tmp_path / "cache"
    arguments += [f"data.cache={folder}", "--dry-run"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "warning" not in first
    [path] = folder.glob("*.arrow")
    path.write_bytes(b"garbage")
    assert main(arguments) == 0
    found = capsys.readouterr().out
    assert f"warning: {path}: not what was written there; made anew\n" in found
    line = next(line for line in first.splitlines() if line.startswith("text "))
    assert line in found
    assert main([*arguments[:-2], f"data.cache={path}", "--dry-run"]) == 2
    assert "is no folder to write in; name one with" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO"])
def test_a_full_disk_names_the_cache_folder(arguments, tmp_path, monkeypatch, capsys, name):
    code = getattr(errno, name)

    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("simcse.data.rows._tokenize", full)
    folder = tmp_path / "full"
    assert main([*arguments, f"data.cache={folder}"]) == 1
    message = capsys.readouterr().err
    assert f"in the cache folder {folder}, which SIMCSE_CACHE or data.cache names" in message
    assert message.count("\n") == 1 and not list(folder.iterdir())
