"""Checkpoints as files: what counts as damaged, which one is chosen, which ones go."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simcse.training.checkpoints import (
    MANIFEST,
    STATE_FILE,
    damage,
    newest_checkpoint,
    place,
    rotate,
    writing,
)

FILES = {"model.safetensors": b"weights" * 9, "1_Pooling/config.json": b"{}", "empty": b""}


def write(root, step, best=None):
    """A checkpoint with small files; ``best`` is the step that it calls the best so far."""
    root.mkdir(exist_ok=True)
    with writing(root, step) as scratch:
        for name, content in FILES.items():
            path = place(scratch, step) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        state = {"step": step, "best_step": best}
        (place(scratch, step) / STATE_FILE).write_text(json.dumps(state))
    return place(root, step)


def steps(root):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in root.iterdir())


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


def test_a_written_checkpoint_is_whole(root):
    folder = write(root, 3)
    assert damage(folder) is None
    assert [path.name for path in root.iterdir()] == ["checkpoint-3"]
    known = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(known) == {*FILES, STATE_FILE}


def test_an_error_while_writing_leaves_nothing_and_harms_nothing(root):
    write(root, 3)
    with pytest.raises(OSError, match="full"), writing(root, 3) as scratch:
        place(scratch, 3).mkdir(parents=True)
        (place(scratch, 3) / "model.safetensors").write_bytes(b"half")
        raise OSError("full")
    assert steps(root) == [3]
    assert damage(place(root, 3)) is None


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25
)
@given(st.data())
def test_every_flipped_bit_and_every_cut_is_named(root, data):
    folder = write(root, 1)
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    path = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    before = json.loads((folder / MANIFEST).read_text())
    path.write_bytes(content)
    problem = damage(folder)
    if path.name != MANIFEST:
        assert problem.startswith(f"{path.relative_to(folder).as_posix()}: ")
    elif problem is None:  # a space more or less, a name of JSON spelt otherwise
        assert json.loads((folder / MANIFEST).read_text())["files"] == before["files"]
    # The step is written anew, as a run does that had to go back.
    assert damage(write(root, 1)) is None


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda f: (f / MANIFEST).unlink(), "manifest.json: missing, so it was not written to"),
        (lambda f: (f / MANIFEST).write_text("{"), "manifest.json: damaged"),
        (lambda f: (f / MANIFEST).write_text('{"files": {}}'), "manifest.json: damaged"),
        (lambda f: (f / MANIFEST).write_text('{"files": [1]}'), "manifest.json: damaged"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff"), "manifest.json: damaged"),
        (lambda f: (f / "empty").unlink(), "empty: No such file or directory"),
        (lambda f: (f / "empty").write_text("x"), "empty: 1 bytes, 0 were written"),
        (lambda f: os.truncate(f / "model.safetensors", 5), "model.safetensors: 5 bytes, 63 were"),
    ],
)
def test_damage_in_words(root, harm, expected):
    folder = write(root, 2)
    harm(folder)
    assert damage(folder).startswith(expected)


def test_the_newest_whole_one_whose_best_is_whole_is_chosen(root):
    assert newest_checkpoint(root) is None
    for step, best in ((10, 10), (20, 10), (30, 30), (40, 30)):
        write(root, step, best)
    said = []
    assert newest_checkpoint(root, said.append) == place(root, 40)
    assert said == []
    os.truncate(place(root, 30) / "model.safetensors", 1)
    assert newest_checkpoint(root, said.append) == place(root, 20)
    assert [line.partition(": ")[0] for line in said] == [str(place(root, 30))] * 2
    assert "checkpoint-40 needs it" in said[0]
    (place(root, 10) / MANIFEST).write_text("{")
    assert newest_checkpoint(root) is None
    # The run begins anew and makes them again, one after the other; then 40 is good again.
    write(root, 10, 10)
    assert newest_checkpoint(root) == place(root, 20)
    write(root, 30, 30)
    assert newest_checkpoint(root) == place(root, 40)


def test_foreign_names_are_no_checkpoints(root):
    write(root, 5)
    (root / "checkpoint-best").mkdir()
    (root / "eval").mkdir()
    assert newest_checkpoint(root) == place(root, 5)
    rotate(root, 1, None, 5)
    assert (root / "checkpoint-best").is_dir()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25
)
@given(
    keep=st.integers(1, 3),
    scores=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    harmed=st.sets(st.integers(0, 7)),
    killed=st.integers(0, 40),
)
def test_rotation_keeps_the_best_and_the_newest_whole_ones_even_when_killed(
    tmp_path_factory, monkeypatch, keep, scores, harmed, killed
):
    root = tmp_path_factory.mktemp("rotation")
    best, calls = None, []

    def dies(*_, **__):
        calls.append(1)
        if len(calls) == killed:
            raise KeyboardInterrupt

    for number, score in enumerate(scores):
        if best is None or score > scores[best]:
            best = number
        write(root, number, best)
        whole = [n for n in steps_of(root) if damage(place(root, n)) is None]
        with monkeypatch.context() as patch:
            patch.setattr("simcse.files.shutil.rmtree", dies)
            try:
                rotate(root, keep, best, number)
            except KeyboardInterrupt:
                newest = newest_checkpoint(root)
                assert newest == place(root, number)
        left = steps_of(root)
        assert best in left
        assert set(whole[-keep:]) <= set(left)
        assert len(left) <= keep + 1 or len(calls) == killed
        if number in harmed and number != best:
            os.truncate(place(root, number) / "model.safetensors", 0)


def steps_of(root):
    return [n for n in range(8) if place(root, n).exists()]


def test_what_is_newer_waits_for_its_turn(root):
    for step in (10, 20, 30):
        write(root, step)
    os.truncate(place(root, 20) / "model.safetensors", 1)
    write(root, 11, 10)
    rotate(root, 1, 10, 11)
    assert steps(root) == [10, 11, 20, 30]
    write(root, 20, 10)
    rotate(root, 1, 10, 20)
    assert steps(root) == [10, 20, 30]
