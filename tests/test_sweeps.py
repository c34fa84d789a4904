"""Sweeps: every combination of several values is a run, and the dev score chooses."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from simcse import load_config
from simcse.cli.main import main
from simcse.config.overrides import combinations
from simcse.config.reading import load_sweep
from simcse.errors import DivergedError, UserError
from simcse.objectives.terms import resolve
from simcse.reports.runs import load_runs, load_sets
from simcse.training import loop, several
from simcse.training.untrained import scored_alike

NAMES = ["learning_rate=1e-3", "learning_rate=2e-3"]


@pytest.fixture(scope="module")
def config(tiny, text_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(
        f"encoder: {{name: '{tiny}'}}\n"
        f"data: {{train: '{text_file}'}}\n"
        "training: {batch_size: 8, steps: 4, learning_rate: 1e-3, log_every: 1}\n"
        "evaluation: {every: 2, raw_poolings: mean}\n"
    )
    return str(path)


def sweep(config, folder, *words):
    return main(["train", config, f"output={folder}", *words, "--sweep"])


@pytest.fixture(scope="module")
def swept(config, tmp_path_factory):
    """Two learning rates, with two seeds each."""
    folder = tmp_path_factory.mktemp("runs") / "swept"
    assert sweep(config, folder, "training.learning_rate=1e-3,2e-3", "seeds=3,5") == 0
    return folder


def test_combinations_are_the_cartesian_product():
    words = [
        "training.learning_rate=1e-4, 2e-4",
        "seeds=0,1",
        "encoder.name=a/b,c",
        "data.form=nli",
    ]
    found = combinations(words)
    assert list(found) == [
        "learning_rate=1e-4,name=a_b",
        "learning_rate=1e-4,name=c",
        "learning_rate=2e-4,name=a_b",
        "learning_rate=2e-4,name=c",
    ]
    assert found["learning_rate=2e-4,name=c"] == [
        "training.learning_rate=2e-4", "seeds=0,1", "encoder.name=c", "data.form=nli",
    ]  # fmt: skip


def test_commas_within_brackets_and_quotes_belong_to_a_value():
    word = "objective.temperature={start: 0.2, schedule: cosine, end: 0.05},0.05"
    [[first], [second]] = combinations([word]).values()
    assert first == "objective.temperature={start: 0.2, schedule: cosine, end: 0.05}"
    assert second == "objective.temperature=0.05"
    found = combinations(["data.train='a,b.txt',[c.txt, d.txt]"])
    assert list(found.values()) == [["data.train='a,b.txt'"], ["data.train=[c.txt, d.txt]"]]


def test_settings_of_one_name_are_told_apart_by_their_section():
    found = combinations(["objective.dino.momentum=0.9,0.99", "data.revision=a,b"])
    assert "momentum=0.9,revision=a" in found
    found = combinations(["data.revision=a,b", "encoder.revision=c,d"])
    assert "data.revision=a,encoder.revision=c" in found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["training.steps=4"], "--sweep: no setting has several values"),
        (["evaluation.every=1,2"], "--sweep: no setting has several values"),
        (["training.steps=4,"], "argument training.steps: one of the values in '4,' is empty"),
        (["training.steps=4,x"], "arguments: training.steps: should be a valid integer, got 'x'"),
        (["training.learning_rate=1e-4,0.0001"], "1e-4 and learning_rate=0.0001 are the same set"),
        (["training.steps=4,4"], "--sweep: steps=4 is the name of two combinations"),
        (["data.train=a/b,a_b"], "--sweep: train=a_b is the name of two combinations"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(config, tmp_path, capsys, words, expected):
    assert sweep(config, tmp_path / "new", *words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert expected in message
    assert not (tmp_path / "new").exists()


def test_several_values_without_the_option_are_told_of_it(config, capsys):
    assert main(["train", config, "training.learning_rate=1e-4,2e-4"]) == 2
    assert "got '1e-4,2e-4' (to try several values, add --sweep)" in capsys.readouterr().err


def test_each_run_is_what_it_would_be_alone(config, swept, tmp_path):
    alone = tmp_path / "alone"
    assert main(["train", config, f"output={alone}", "training.learning_rate=2e-3", "seed=5"]) == 0
    [expected] = load_runs(alone).runs
    found = load_runs(swept / NAMES[1], ["5"]).best
    assert found.scores == expected.scores
    assert found.log == expected.log
    assert found.raw == expected.raw  # taken over from the first run of the sweep


def test_the_best_setting_is_that_of_the_best_mean_dev_score(swept):
    sets = load_sets(swept)
    assert [runs.name for runs in sets] == NAMES
    means = [np.mean([run.dev["best"] for run in runs.runs]) for runs in sets]
    assert means[0] != means[1]
    best = NAMES[int(np.argmax(means))]
    summary = json.loads((swept / "summary.json").read_text())
    assert summary["planned"] == NAMES and summary["best"] == best
    assert summary["settings"][NAMES[0]]["dev"]["mean"] == pytest.approx(means[0])
    assert load_runs(swept).name == best  # which is what publish and compare take of a sweep
    assert load_runs(swept, ["3"]).runs[0].folder == swept / best / "seed-3"


def test_the_same_command_shows_the_table_again(config, swept, capsys):
    before = {path: path.stat().st_mtime_ns for path in swept.rglob("*") if path.is_file()}
    assert sweep(config, swept, "training.learning_rate=1e-3,2e-3", "seeds=3,5") == 0
    output = capsys.readouterr().out
    assert output.count("is finished:") == 4
    row = next(line for line in output.splitlines() if re.match(r"learning_rate=1e-3 .*±", line))
    assert row.count("±") == 2  # dev and pairs
    assert "best of 2 settings by dev, by the mean of 2 seeds: learning_rate=" in output
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"summary.json"}


@pytest.mark.slow
def test_another_value_is_added_without_repeating_the_others(config, swept, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(swept, folder)
    assert sweep(config, folder, "training.learning_rate=1e-3,4e-3", "seeds=3,5") == 0
    assert capsys.readouterr().out.count("is finished:") == 2
    assert [runs.name for runs in load_sets(folder)] == [*NAMES, "learning_rate=4e-3"]


def test_an_interrupted_sweep_goes_on_where_it_was(config, swept, tmp_path, monkeypatch, capsys):
    original, calls = loop.backpropagate, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 6:  # in the second of the two runs
            raise KeyboardInterrupt
        return original(*args)

    words = ["training.learning_rate=1e-3,2e-3", "seed=3"]
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "backpropagate", interrupted)
        assert sweep(config, folder, *words) == 130
    with pytest.raises(UserError, match=r"learning_rate=2e-3"):
        load_sets(folder)
    assert sweep(config, folder, *words) == 0
    assert "is finished:" in capsys.readouterr().out
    for name in NAMES:
        assert load_runs(folder / name).best.log == load_runs(swept / name, ["3"]).best.log


@pytest.mark.slow
def test_a_run_that_diverges_does_not_end_the_sweep(config, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    original = several.run.train

    def train(config, *arguments):
        if config.training.learning_rate == 2e-3:
            raise DivergedError("step 3: the loss is nan")
        original(config, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(several.run, "train", train)
        assert sweep(config, folder, "training.learning_rate=1e-3,2e-3") == 0
        output = capsys.readouterr().out
        assert "warning: learning_rate=2e-3 has diverged: step 3: the loss is nan" in output
        assert re.search(r"^learning_rate=2e-3 +diverged$", output, flags=re.MULTILINE)
        assert "best of 2 settings by dev: learning_rate=1e-3" in output
        [only] = load_sets(folder)
        assert only.name == "learning_rate=1e-3"
        assert sweep(config, tmp_path / "all", "training.learning_rate=2e-3", "seed=1,2") == 2
        assert "every run of this sweep has diverged" in capsys.readouterr().err
    # With what made it diverge mended, it is a run like the others.
    assert sweep(config, folder, "training.learning_rate=1e-3,2e-3") == 0
    assert len(load_sets(folder)) == 2


def test_a_loss_that_is_no_number_diverges(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "backpropagate", lambda *_: {"info_nce": torch.tensor(float("nan"))})
    with pytest.raises(DivergedError, match="step 1: the loss is nan"):
        several.train(load_config(config, {"output": tmp_path / "run"}), [])


def test_a_folder_holds_one_kind_of_runs(config, swept, tmp_path, capsys):
    for words, expected in (
        (["seeds=3,5"], "holds a sweep, not seeds"),
        (["training.learning_rate=1e-3,2e-3", "training.steps=3", "--sweep"],
         "has learning_rate=1e-3 of another setting (training.steps: 4 -> 3)"),
    ):  # fmt: skip
        assert main(["train", config, f"output={swept}", *words]) == 2
        message = capsys.readouterr().err
        assert expected in message and message.count("\n") == 1
    seeds = swept / NAMES[0]
    assert sweep(config, seeds, "training.steps=2,3") == 2
    assert "holds seeds, not a sweep" in capsys.readouterr().err
    assert sweep(config, seeds / "seed-3", "training.steps=2,3") == 2
    assert "seed-3 holds a single run" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert sweep(config, tmp_path, "training.steps=2,3") == 2
    assert "is not empty and not a folder of a sweep" in capsys.readouterr().err


def test_compare_and_report_read_a_sweep(swept, tmp_path, capsys, one_picture):
    assert main(["compare", *(str(swept / name) for name in NAMES)]) == 0
    output = capsys.readouterr().out
    assert "A = learning_rate=1e-3 (2 seeds), B = learning_rate=2e-3 (2 seeds)" in output
    assert "config  training.learning_rate: 0.001 -> 0.002" in output
    assert main(["report", str(swept), "-o", str(tmp_path / "report")]) == 0
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert all(f"{name} (2 seeds)" in html for name in NAMES)


def test_a_summary_names_no_folder_outside_of_its_own(tmp_path):
    for name in ("../x=1", "a=b/c", "/tmp/x=1", ".."):
        (tmp_path / "summary.json").write_text(json.dumps({"planned": [name]}))
        with pytest.raises(UserError, match=r"summary\.json: damaged"):
            load_sets(tmp_path)


def test_a_linked_run_is_none_of_a_sweep(config, swept, tmp_path, capsys):
    folder = tmp_path / "swept"
    shutil.copytree(swept, folder)
    (folder / NAMES[1]).rename(tmp_path / "private")
    (folder / NAMES[1]).symlink_to(tmp_path / "private")
    expected = f"{re.escape(str(folder / NAMES[1]))}: a link, which no run makes"
    with pytest.raises(UserError, match=expected):
        load_sets(folder)
    assert sweep(config, folder, "training.learning_rate=1e-3,2e-3", "seeds=3,5") == 2
    assert re.search(expected, capsys.readouterr().err)


def test_dry_run_of_a_sweep(config, tmp_path, capsys):
    assert sweep(config, tmp_path / "new", "training.steps=2,3", "--dry-run") == 0
    assert "times 2: steps=2, steps=3" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_a_swept_objective_has_the_defaults_of_each(config):
    configs = load_sweep(config, ["objective.terms=info_nce,clip"])
    temperatures = [resolve(found).objective.temperature for found in configs.values()]
    assert [found.schedule for found in temperatures] == ["fixed", "learnable"]


def test_a_sweep_has_an_end():
    words = [
        f"training.{key}=1,2,3,4,5,6,7,8" for key in ("steps", "log_every", "epochs", "warmup")
    ]
    with pytest.raises(UserError, match=r"--sweep: 4,096 combinations; allowed are 1,000"):
        combinations(words)


def test_what_the_untrained_encoder_is_scored_with_knows_no_learning_rate(config):
    def settings(key="seed", value=0):
        return scored_alike(load_config(config, {key: value}))

    assert settings() == settings("training.steps", 3) == settings("seed", 5)
    assert settings() != settings("data.max_rows", 30)
