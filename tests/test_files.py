"""Who may write where: outputs, locks, what is left behind, the seal of a folder."""

import errno
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from simcse.cli.main import main
from simcse.errors import UserError
from simcse.files import (
    filling,
    is_ours,
    locked,
    may_write,
    remove_leftovers,
    replacing,
    replacing_alone,
    scratch_folder,
    write_atomically,
)
from simcse.sealing import MANIFEST, damage, seal


@pytest.fixture
def folder(tmp_path):
    """``in``, a hard link and a symbolic link to it, a folder ``model`` with a file, ``other``."""
    (tmp_path / "in").write_text("in")
    os.link(tmp_path / "in", tmp_path / "hard")
    (tmp_path / "soft").symlink_to(tmp_path / "in")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config").write_text("model")
    (tmp_path / "other").write_text("other")
    return tmp_path


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("in", "part of what this command reads"),
        ("hard", "part of what this command reads"),
        ("model/config", "part of what this command reads"),
        ("soft", "a link, folder or device"),
        ("dangling", "a link, folder or device"),
        ("model", "a link, folder or device"),
        ("in/new", "in is no folder to write in"),
    ],
)
def test_what_no_option_lets_a_command_replace(folder, target, expected, overwrite):
    inputs = [folder / "in", None, "some/hub-name", folder / "model"]
    with pytest.raises(UserError, match=expected) as error:
        may_write(folder / target, inputs, overwrite=overwrite)
    assert "\n" not in str(error.value)


def test_what_may_be_written(folder):
    inputs = [folder / "in", folder / "model"]
    may_write(folder / "new", inputs)
    may_write(folder / "model" / "new", inputs)
    may_write(folder / "far" / "away" / "new", inputs)
    assert not (folder / "far").exists()
    with pytest.raises(UserError, match="other: is there, and not known to be of this command"):
        may_write(folder / "other", inputs)
    may_write(folder / "other", inputs, overwrite=True)
    may_write(folder / "other", inputs, ours=lambda path: path.read_text() == "other")
    may_write(folder / "model" / "config", inputs, ours=lambda path: True)  # of an earlier call


def test_a_device_is_no_output():
    with pytest.raises(UserError, match="/dev/null: a link, folder or device"):
        may_write(Path("/dev/null"), overwrite=True)


def test_leftovers_are_known_by_names_that_only_we_give(tmp_path):
    names = []
    with (
        replacing(tmp_path / "file") as temporary,
        scratch_folder(tmp_path) as scratch,
        filling(tmp_path) as filled,
    ):
        names += [temporary, scratch, filled]
        assert all(path.parent == tmp_path and is_ours(path) for path in names)
    mine = [".new", ".scratch", ".simcse-notes", ".simcse-new-", ".simcse-new-Thesis00", ".lock"]
    for name in (*mine, names[0].name):
        (tmp_path / name).write_text("mine")
    for path in names[1:]:
        (path / "inside").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", *mine])
    remove_leftovers(tmp_path / "nothing")


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("at_end", [False, True])
def test_an_error_while_writing_leaves_the_old_and_nothing_else(
    tmp_path, monkeypatch, code, at_end
):
    def fails(_=None):
        raise OSError(code, os.strerror(code))

    write_atomically(tmp_path / "a", "old")
    seal(tmp_path, ["a"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    if at_end:
        monkeypatch.setattr(os, "fsync", fails)
    for write in (replacing(tmp_path / "a"), filling(tmp_path), nullcontext(tmp_path)):
        with pytest.raises(OSError, match=os.strerror(code)), write as temporary:
            if temporary == tmp_path:
                seal(tmp_path, ["a"]) if at_end else fails()
            (temporary / "a" if temporary.is_dir() else temporary).write_text("new")
            if not at_end:
                fails()
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_process_has_left_is_written_over(tmp_path):
    target = tmp_path / "big.npy"
    code = (
        "import os, signal, sys, pathlib\n"
        "from simcse.files import replacing_alone\n"
        "with replacing_alone(pathlib.Path(sys.argv[1])) as path:\n"
        "    path.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    mine = {".simcse-new-mine", ".simcse-new-12345678"}  # of the user, and of another command
    for name in mine:
        (tmp_path / name).write_text(name)
    subprocess.run([sys.executable, "-c", code, target], check=False)
    left = {path.name for path in tmp_path.iterdir()} - mine
    assert len(left) == 2
    assert all(is_ours(tmp_path / name) for name in left)
    with replacing_alone(target) as path:
        assert path.read_text() == ""
        path.write_text("whole")
        with pytest.raises(UserError, match=r"big\.npy: another process is writing it"):
            replacing_alone(target).__enter__()
    assert {path.name for path in tmp_path.iterdir()} == {"big.npy", *mine}
    assert target.read_text() == "whole"


def test_a_lock_lies_beside_its_folder_and_leaves_nothing(tmp_path, monkeypatch):
    run = tmp_path / "outputs" / "run"
    with locked(run):
        assert [path.name for path in run.parent.iterdir()] == [".run.simcse-lock"]
        for name in (run, run / ".." / "run"):
            with (
                pytest.raises(UserError, match=r"another process is training in .*/run$"),
                locked(name),
            ):
                pass
        with locked(run.with_name("other")):
            pass
    assert not list(run.parent.iterdir())
    with pytest.raises(KeyError), locked(run):
        raise KeyError
    assert not list(run.parent.iterdir())
    # A folder that is mounted, say, into a root that is not to be written.
    run.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != run.parent and access(path, mode))
    with locked(run):
        assert [is_ours(path) for path in run.iterdir()] == [True]
        with pytest.raises(UserError, match="another process is training"), locked(run):
            pass
    assert not list(run.iterdir())


def test_where_no_lock_can_be_made_the_cause_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=rf"output: .*/\.{'x' * 250}\.simcse-lock cannot be made: "),
        locked(tmp_path / ("x" * 250)),
    ):
        pass


def test_a_seal_is_of_the_files_it_names(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("a", "inner/b", "mine"):
        (tmp_path / name).write_text(name)
    seal(tmp_path, ["inner/b", "a"])
    (tmp_path / "mine").write_text("changed")
    assert damage(tmp_path, ["a"]) is None
    assert damage(tmp_path, ["a", "mine"]) == f"{MANIFEST}: damaged"
    (tmp_path / "inner" / "b").write_text("inner/c")
    assert damage(tmp_path, [], checksums=False) is None
    assert damage(tmp_path, []).startswith("inner/b: damaged")


def test_a_killed_export_is_no_obstacle(two_seeds, tmp_path, one_picture, capsys):
    """What it leaves lies beside its target, and in a target that is the folder around that."""
    left = tmp_path / "models" / ".simcse-new-0a1b_c2d"
    (left / "folder").mkdir(parents=True)
    run = str(two_seeds / "seed-0")
    assert main(["export", run, str(tmp_path / "models")]) == 0
    assert (tmp_path / "models" / "modules.json").is_file()
    assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    shutil.rmtree(tmp_path / "models")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".mine").touch()
    capsys.readouterr()
    assert main(["export", run, str(tmp_path / "models")]) == 2
    assert "models: is there already; name a folder that is new or empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".mine"]


def test_a_users_file_in_an_unfinished_run_is_kept(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_text("the user's")
    for number in range(3):  # the same again changes nothing, as after a kill
        with filling(run, keeps_old=True) as scratch:
            (scratch / "model.safetensors").write_text("ours")
        assert (run / "model.safetensors").read_text() == "ours"
        assert (run / "model.safetensors.old").read_text() == "the user's"
        assert len(list(run.iterdir())) == 2, number
    assert "is model.safetensors.old now" in capsys.readouterr().out


def test_nothing_is_written_behind_a_link(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "1_Pooling").symlink_to(tmp_path / "mine")
    with (
        pytest.raises(UserError, match="1_Pooling: is a link; move it away"),
        filling(tmp_path / "run") as scratch,
    ):
        (scratch / "1_Pooling").mkdir()
        (scratch / "1_Pooling" / "config.json").write_text("{}")
    assert not list((tmp_path / "mine").iterdir())


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "scores.json").mkdir()
    with pytest.raises(UserError, match=r"scores\.json: is a folder; move it away"):
        write_atomically(tmp_path / "scores.json", "{}")
