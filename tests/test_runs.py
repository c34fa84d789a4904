"""Several seeds, comparing runs, reports: everything that reads finished runs back."""

import hashlib
import itertools
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from conftest import HOSTILE, ROOT, Tags, reseal
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp, ttest_ind

from simcse.cli.main import main
from simcse.errors import UserError
from simcse.files import locked
from simcse.reports.compare import compare
from simcse.reports.plots import Picture
from simcse.reports.runs import load_runs
from simcse.sealing import MANIFEST, seal
from simcse.training.run import print_scores


@pytest.fixture(scope="module")
def finished(tiny, text_file, tmp_path_factory):
    """Two settings with two seeds each, and the output of the first."""
    root = tmp_path_factory.mktemp("runs")
    config = root / "small.yaml"
    config.write_text(
        f"encoder: {{name: '{tiny}'}}\n"
        f"data: {{train: '{text_file}'}}\n"
        "training: {batch_size: 8, steps: 6, learning_rate: 1e-3, log_every: 1}\n"
        "evaluation: {every: 3, raw_poolings: mean}\n"
    )
    assert main(["train", str(config), f"output={root / 'warm'}", "seeds=3,5"]) == 0
    cold = [f"output={root / 'cold'}", "seeds=3,5", "objective.temperature=0.01"]
    assert main(["train", str(config), *cold]) == 0
    return root


def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_seeds_are_runs_of_their_own_with_a_summary(finished, capsys):
    summary = json.loads((finished / "warm" / "summary.json").read_text())
    scores = []
    for seed in (3, 5):
        folder = finished / "warm" / f"seed-{seed}"
        assert f"seed: {seed}\n" in (folder / "config.yaml").read_text()
        scores.append(json.loads((folder / "scores.json").read_text()))
    values = [found["trained"]["pairs"]["cosine_spearman"] for found in scores]
    assert values[0] != values[1]
    assert scores[0]["raw"] == scores[1]["raw"]
    found = summary["test"]["pairs"]["cosine_spearman"]
    assert summary["seeds"] == [3, 5]
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    assert (found["minimum"], found["maximum"]) == (min(values), max(values))
    dev = [found["dev"]["best"] for found in scores]
    assert summary["dev"]["best_seed"] == (3, 5)[int(np.argmax(dev))]
    assert summary["dev"]["mean"] == pytest.approx(np.mean(dev))


def test_items_give_the_score_back(finished):
    [run] = load_runs(finished / "warm" / "seed-3").runs
    similarity, grade = run.items["pairs.similarity"], run.items["pairs.grade"]
    ranks = [np.argsort(np.argsort(v)) for v in (similarity, grade)]
    assert similarity.shape == grade.shape == (252,)
    assert abs(np.corrcoef(*ranks)[0, 1] - run.scores["pairs"]["cosine_spearman"]) < 0.1


def test_a_third_seed_is_added_without_repeating_the_first_two(finished, tmp_path, capsys):
    root = copy(finished, tmp_path)
    before = (root / "warm" / "seed-3" / "scores.json").stat().st_mtime_ns
    arguments = ["train", str(root / "small.yaml"), f"output={root / 'warm'}"]
    assert main([*arguments, "seeds=[3, 5, 8]"]) == 0
    output = capsys.readouterr().out
    assert output.count("is finished:") == 2
    assert "Checkpoints were chosen on pairs (cosine Spearman): of these scores pairs did" in output
    assert re.search(r"best of 3 seeds by dev: seed [358]; quote its scores as best of 3", output)
    assert (root / "warm" / "seed-3" / "scores.json").stat().st_mtime_ns == before
    assert len(json.loads((root / "warm" / "summary.json").read_text())["seeds"]) == 3
    # The encoder without training knows no seed: it was not scored again.
    raw = [(root / "warm" / f"seed-{s}" / "raw_scores.json").read_text() for s in (3, 8)]
    assert raw[0] == raw[1]


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ("seeds=1,1", "seeds: 1 is given twice"),
        ("seeds=1,x", "seeds.1: should be a valid integer, got 'x'"),
        ("seeds=[-1]", "seeds.0: should be greater than or equal to 0, got -1"),
    ],
)
def test_bad_seeds(finished, capsys, seeds, expected):
    assert main(["train", str(finished / "small.yaml"), seeds]) == 2
    assert expected in capsys.readouterr().err


def test_seeds_do_not_mix_with_a_single_run(finished, capsys):
    output = f"output={finished / 'warm' / 'seed-3'}"
    assert main(["train", str(finished / "small.yaml"), output, "seeds=1,2"]) == 2
    assert "seed-3 holds a single run" in capsys.readouterr().err


def test_a_copied_folder_is_no_seed(finished, tmp_path, capsys):
    root = copy(finished, tmp_path)
    fake = shutil.copytree(root / "warm" / "seed-3", root / "warm" / "seed-4")
    for command in (["report", str(root / "warm"), "-o", str(tmp_path / "report")],
                    ["compare", str(root / "cold"), str(root / "warm")]):  # fmt: skip
        assert main(command) == 2
        message = capsys.readouterr().err
        assert f"{fake}: its config.yaml has seed 3, so it is not the run of seed 4" in message
    config = fake / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 3\n", "\nseed: 4\n"))
    reseal(fake)
    with pytest.raises(UserError, match=f"{fake}: the same weights as seed-3, so it is no seed of"):
        load_runs(root / "warm")


def test_dry_run_of_seeds(finished, tmp_path, capsys):
    output = f"output={tmp_path / 'new'}"
    assert main(["train", str(finished / "small.yaml"), output, "seeds=1,2", "--dry-run"]) == 0
    assert "times 2: seeds 1, 2" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_compare_seeds_is_welchs_test(finished, capsys):
    assert main(["compare", str(finished / "cold"), str(finished / "warm")]) == 0
    output = capsys.readouterr().out
    assert "A = cold (2 seeds), B = warm (2 seeds)" in output
    assert "config  objective.temperature.start: 0.01 -> 0.05" in output
    assert "seed" not in output.split("config  ")[1].splitlines()[0]
    cold, warm = (load_runs(finished / name) for name in ("cold", "warm"))
    a, b = (runs.values("pairs", "cosine_spearman") for runs in (cold, warm))
    row = next(line for line in output.splitlines() if line.startswith("pairs"))
    assert f"{100 * (np.mean(b) - np.mean(a)):+.2f}" in row
    p = ttest_ind(a, b, equal_var=False).pvalue
    assert ("< 0.001" if p < 0.001 else f"{p:.3f}") in row
    assert "seeds to show it" in output and "detectable" in output


def test_one_model_is_compared_with_seeds(finished, capsys):
    one, seeds = finished / "warm" / "seed-3", finished / "cold"
    assert main(["compare", str(one), str(seeds), str(finished / "warm" / "seed-5")]) == 0
    output = capsys.readouterr().out
    assert "A = seed-3 (one model), B = cold (2 seeds), C = seed-5 (one model)" in output
    [base] = load_runs(one).values("pairs", "cosine_spearman")
    values = load_runs(seeds).values("pairs", "cosine_spearman")
    row = next(line for line in output.splitlines() if line.startswith("pairs"))
    assert f"{100 * (np.mean(values) - base):+.2f}" in row
    p = ttest_1samp(values, base).pvalue
    assert ("< 0.001" if p < 0.001 else f"{p:.3f}") in row
    for note in ("paired bootstrap over the test items", "One model against seeds", "Welch"):
        assert note in output


def test_compare_single_models_resamples_pairs(finished, capsys):
    one, two = finished / "cold" / "seed-3", finished / "warm" / "seed-3"
    assert main(["compare", str(one), str(two)]) == 0
    output = capsys.readouterr().out
    assert "paired bootstrap over the test items" in output
    [a], [b] = load_runs(one).runs, load_runs(two).runs
    row = next(line for line in output.splitlines() if line.startswith("pairs"))
    difference = b.scores["pairs"]["cosine_spearman"] - a.scores["pairs"]["cosine_spearman"]
    assert f"{100 * difference:+.2f}" in row
    geometry = next(line for line in output.splitlines() if "alignment" in line)
    assert " to " not in geometry  # no single items, no interval
    assert main(["compare", str(one), str(one)]) == 2
    assert "are the same run" in capsys.readouterr().err


def test_compare_only_some_seeds(finished, capsys):
    a, b = str(finished / "cold"), str(finished / "warm")
    assert main(["compare", a, b, "--seeds", "5"]) == 0
    assert "A = cold (one model)" in capsys.readouterr().out
    for bad, expected in (
        ("5,6", "cold: no seed 6; there are 3, 5"),
        ("5,5", "--seeds '5,5': expected different seeds"),
        ("", "--seeds '': expected different seeds"),
    ):
        assert main(["compare", a, b, "--seeds", bad]) == 2
        assert expected in capsys.readouterr().err
    assert main(["compare", f"{a}/seed-3", b, "--seeds", "5"]) == 2
    assert "a single run, it has no seeds to choose from" in capsys.readouterr().err


def test_compare_refuses_what_cannot_be_compared(finished, tmp_path, capsys):
    root = copy(finished, tmp_path)
    run = root / "warm" / "seed-3"
    trained = json.loads((run / "scores.json").read_text())["trained"]
    trained["pairs"]["pairs"] = 100
    reseal(run, trained=trained)
    pair = [str(root / name / "seed-3") for name in ("cold", "warm")]
    assert main(["compare", *pair]) == 0
    captured = capsys.readouterr()
    assert "left out: pairs: not the same test, pairs 252 and 100" in captured.out
    assert main(["compare", str(root / "cold"), str(root / "warm")]) == 2
    assert "seed-5: pairs: not the same test" in capsys.readouterr().err
    reseal(run, trained={"STS12": {"cosine_spearman": 0.5, "pairs": 3}})
    with pytest.raises(UserError, match="have no test in common"):
        compare([load_runs(root / name / "seed-3") for name in ("cold", "warm")])


def test_one_folder_holds_one_setting(finished, tmp_path, capsys):
    root = copy(finished, tmp_path)
    shutil.copytree(root / "cold" / "seed-3", root / "warm" / "seed-4")
    with pytest.raises(UserError, match=r"not the setting of seed-3 \(objective.temperature"):
        load_runs(root / "warm")
    arguments = ["train", str(root / "small.yaml"), f"output={root / 'cold'}", "seeds=9"]
    assert main(arguments) == 2
    assert "has seed 3 of another setting (objective.temperature" in capsys.readouterr().err
    assert not (root / "cold" / "seed-9").exists()


def test_seeds_that_are_missing_are_missed(finished, tmp_path, capsys):
    root = copy(finished, tmp_path)
    shutil.rmtree(root / "warm" / "seed-5")
    (root / "warm" / "seed-x").mkdir()  # no seed
    (root / "warm" / "seed-7").write_text("nor this")
    with pytest.raises(
        UserError, match=r"seeds not finished: 5; run its command again \(simcse comp"
    ):
        load_runs(root / "warm")
    assert len(load_runs(root / "warm", ["3"]).runs) == 1


def test_damaged_and_unfinished_runs_are_named(finished, tmp_path):
    # Every file in turn: test_training.py::test_a_finished_run_misses_whatever_makes_it.
    root = copy(finished, tmp_path)
    run = root / "warm" / "seed-3"
    with pytest.raises(UserError, match="nothing: no such run"):
        load_runs(root / "nothing")
    with pytest.raises(UserError, match=r"copy: no scores\.json in it"):
        load_runs(root)
    with pytest.raises(UserError, match=r"README\.md: not a run folder and not a scores\.json"):
        load_runs(ROOT / "README.md")
    text = (run / "scores.json").read_text()
    for content in (text[: len(text) // 2], "5", '{"model": 5}'):
        (run / "scores.json").write_text(content)
        with pytest.raises(UserError, match=r"seed-3/scores\.json: [\d,]+ bytes, [\d,]+ were"):
            load_runs(run)
    (run / "scores.json").unlink()
    with pytest.raises(UserError, match=r"seed-3/scores\.json: No such file or directory; bring"):
        load_runs(run)
    (run / "scores.json").write_text(text)
    config = (run / "config.yaml").read_text()
    for content, expected in (
        (config[: config.index("\ntraining:")],
         r"config\.yaml: without training\.batch_size and \d+ more settings"),
        ("a: [", r"config\.yaml:1: not valid YAML"),
    ):  # fmt: skip
        (run / "config.yaml").write_text(content)
        with pytest.raises(UserError, match=expected):
            load_runs(run)
    (run / "config.yaml").write_text(config)
    (run / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(UserError, match=r"seed-3/manifest\.json: damaged"):
        load_runs(run)
    (run / "manifest.json").unlink()
    with pytest.raises(UserError, match="seed-3: not finished; run its command again"):
        load_runs(run)
    with pytest.raises(UserError, match="seeds not finished: 3; run its command again"):
        load_runs(root / "warm")


@pytest.fixture(scope="module")
def evaluated(finished, tmp_path_factory):
    """Folder of the scores of two models, ``warm.json`` and ``cold.json``."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name in ("warm", "cold"):
        words = ["evaluate", str(finished / name / "seed-3"), "--tasks", "pairs"]
        assert main([*words, "-o", str(folder / f"{name}.json")]) == 0
    return folder


def test_scores_beside_the_items_of_another_model_are_noticed(evaluated, finished, tmp_path):
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    [run] = load_runs(tmp_path / "warm.json").runs
    [trained] = load_runs(finished / "warm" / "seed-3").runs
    assert run.scores["pairs"] == trained.scores["pairs"]
    np.testing.assert_allclose(run.items["pairs.similarity"], trained.items["pairs.similarity"])
    shutil.copy(tmp_path / "cold.npz", tmp_path / "warm.npz")
    with pytest.raises(UserError, match=r"warm\.npz: damaged, or of other scores than warm\.json"):
        load_runs(tmp_path / "warm.json")
    (tmp_path / "warm.npz").unlink()
    with pytest.raises(UserError, match=r"warm\.npz: missing; warm\.json beside it needs it"):
        load_runs(tmp_path / "warm.json")
    for content in ("5", "null", '{"trained": null, "raw": {}, "dev": {}}', '{"model": 5}'):
        (tmp_path / "cold.json").write_text(content)
        with pytest.raises(UserError, match=r"cold\.json: damaged"):
            load_runs(tmp_path / "cold.json")


def test_a_summary_of_somebody_else_is_kept(finished, tmp_path, capsys):
    summary = tmp_path / "out" / "summary.json"
    summary.parent.mkdir()
    summary.write_text('{"mine": 1}')
    arguments = ["train", str(finished / "small.yaml"), f"output={tmp_path / 'out'}", "seeds=1"]
    for words in (arguments, [*arguments, "--dry-run"]):
        assert main(words) == 2
        assert "has a summary.json that is not of seeds, or damaged" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "summary.json"]
    with locked(finished / "warm"):
        assert main([*arguments[:2], f"output={finished / 'warm'}", "seeds=3,5"]) == 2
    assert f"another process is training in {finished / 'warm'}" in capsys.readouterr().err


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.roles, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.roles += [attributes["role"]] if "role" in attributes else []
        self.links += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]

    def handle_data(self, data):
        self.text.append(data)


def test_report_is_one_page_with_data_and_pictures(finished, tmp_path, capsys):
    runs = [str(finished / name) for name in ("warm", "cold")]
    assert main(["report", *runs, "-o", str(tmp_path / "report")]) == 0
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    assert page.tags.count("svg") == page.tags.count("details") == page.roles.count("img") == 5
    assert page.links == []  # nothing is loaded from anywhere
    text = " ".join(" ".join(page.text).split())
    warm = load_runs(finished / "warm")
    mean = 100 * np.mean(warm.values("pairs", "cosine_spearman"))
    assert f"{mean:.2f} ±" in text
    assert "objective.temperature.start 0.05 0.01" in text
    [run, _] = warm.runs
    losses = [entry["loss"] for entry in run.log if "loss" in entry]
    assert len(losses) == 6
    pictures = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert pictures == {"loss", "eval_dev_score", "plane", "bands", "spectrum"}
    again = tmp_path / "again"
    assert main(["report", *runs, "-o", str(again)]) == 0
    assert (again / "report.html").read_text(encoding="utf-8") == html
    capsys.readouterr()
    table = tmp_path / "table"
    assert main(["report", *runs, "-o", str(table), "--format", "csv"]) == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.endswith("warm (2 seeds),cold (2 seeds)")
    assert first.startswith("pairs,cosine Spearman,") and f",{mean:.2f} ±" in first
    assert not table.exists()


def test_report_of_an_evaluated_model_and_of_names_that_repeat(
    finished, tmp_path, capsys, one_picture
):
    scores = tmp_path / "scores.json"
    model = str(finished / "warm" / "seed-3")
    assert main(["evaluate", model, "--tasks", "pairs", "-o", str(scores)]) == 0
    runs = [str(scores), str(finished / "warm" / "seed-3"), str(finished / "cold" / "seed-3")]
    assert main(["report", *runs, "-o", str(tmp_path / "report")]) == 0
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "warm/seed-3" in html and "cold/seed-3" in html
    assert main(["report", runs[1], runs[1], "-o", str(tmp_path / "twice")]) == 2
    assert "given twice" in capsys.readouterr().err


def test_scores_do_not_replace_a_runs_own(finished, tmp_path, capsys):
    run = finished / "warm" / "seed-3"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (tmp_path / "link.json").symlink_to(tmp_path / "elsewhere.json")
    for output, expected in (
        (run / "scores.json", "a training run keeps its own scores there"),
        (tmp_path, "expected the name of a file that ends in .json"),
        (tmp_path / "scores.txt", "expected the name of a file that ends in .json"),
        (tmp_path / "link.json", "link.json: a link, folder or device"),
        (finished / "small.yaml" / "scores.json", "small.yaml is no folder to write in"),
        (run / "environment.json", "environment.json: part of what this command reads"),
        (run / "config.json", "config.json: part of what this command reads"),
    ):
        for more in ([], ["--overwrite"]):
            arguments = ["evaluate", str(run), "--tasks", "pairs", "-o", str(output), *more]
            assert main(arguments) == 2
            message = capsys.readouterr().err
            assert expected in message
            assert message.count("\n") == 1
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_scores_replace_older_scores_and_nothing_else(finished, evaluated, tmp_path, capsys):
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    run = finished / "warm" / "seed-3"

    def evaluate(name, *more):
        return main(["evaluate", str(run), "--tasks", "pairs", "-o", str(tmp_path / name), *more])

    assert evaluate("cold.json") == 0
    assert (tmp_path / "cold.npz").read_bytes() == (tmp_path / "warm.npz").read_bytes()
    (tmp_path / "mine.json").write_text("{}")
    (tmp_path / "other.npz").write_bytes(b"mine")
    capsys.readouterr()
    for name, taken in (("mine.json", "mine.json"), ("other.json", "other.npz")):
        before = (tmp_path / taken).read_bytes()
        assert evaluate(name) == 2
        assert f"{taken}: is there, and not known to be of this command" in capsys.readouterr().err
        assert (tmp_path / taken).read_bytes() == before
        assert evaluate(name, "--overwrite") == 0
        assert load_runs(tmp_path / name).runs[0].items.keys() >= {"pairs.similarity"}


def test_a_report_replaces_an_older_report_and_nothing_else(
    finished, tmp_path, monkeypatch, capsys
):
    picture = Picture("loss", "Training loss", "", Figure(), [], [])
    monkeypatch.setattr("simcse.reports.report.pictures", lambda sets: [picture])
    folder = tmp_path / "report"
    words = ["report", str(finished / "warm" / "seed-3"), "-o", str(folder)]
    assert main(words) == 0
    page = (folder / "report.html").read_bytes()
    assert main(words) == 0
    for name in ("loss.png", "report.html"):
        ours = (folder / name).read_bytes()
        (folder / name).write_bytes(b"<title>simcse</title>")
        before = {path: path.read_bytes() for path in folder.iterdir()}
        capsys.readouterr()
        assert main(words) == 2
        expected = f"{folder / name}: is there, and not known to be of this command"
        assert expected in capsys.readouterr().err
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        (folder / name).write_bytes(ours)
    (folder / "report.html").write_bytes(b"mine")
    assert main([*words, "--overwrite"]) == 0
    assert (folder / "report.html").read_bytes() == page


@pytest.mark.slow
def test_hostile_words_stay_text_in_a_report(finished, tmp_path):
    run = tmp_path / HOSTILE.replace("/", "")[:200]
    other = tmp_path / "caf\udce9 $\\x$"  # a name of bytes that are no UTF-8
    for folder, setting in ((run, "warm"), (other, "cold")):
        shutil.copytree(finished / setting / "seed-3", folder)
        scores = json.loads((folder / "scores.json").read_text())
        scores["trained"]["geometry"] |= {"source": HOSTILE, "collapse": HOSTILE}
        scores["trained"][HOSTILE] = {"accuracy": 0.5, "source": HOSTILE}
        scores["raw"] = {HOSTILE: scores["raw"]["mean"]}
        scores["dev"]["task"] = HOSTILE
        (folder / "scores.json").write_text(json.dumps(scores))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["views"][0]["template"] = f"{HOSTILE} {{}}"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for folder in (run, other):
        reseal(folder)
    assert main(["report", str(run), str(other), "-o", str(tmp_path / "report")]) == 0
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    tags = [tag for tag, _ in Tags(html).found]
    assert (tags.count("svg"), tags.count("h1"), tags.count("h2")) == (5, 1, 8)
    assert not {"script", "img", "a"} & set(tags)
    attributes = {name for _, found in Tags(html).found for name, _ in found}
    assert not [name for name in attributes if name.startswith("on")]
    assert not re.search("[\x1b\x07\u202e\u2028]", html)
    assert "<script>alert(1)" in "".join(Tags(html).text)  # it is all there, as text


def damaged(values, place, value):
    """A copy with another value in one place."""
    copied = json.loads(json.dumps(values))
    *outer, last = place
    inner = copied
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return copied


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_any_value_of_another_type_is_one_line_or_can_be_shown(every, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "warm" / "seed-3", run)
    scores = json.loads((run / "scores.json").read_text())
    dev, raw, trained = scores["dev"], scores["raw"]["mean"], scores["trained"]
    bound = ("settings", "items")  # hashes of other files
    places = [(key,) for key in scores if key not in bound] + [("raw", "mean")]
    places += [("dev", key) for key in dev] + [("raw", "mean", key) for key in raw]
    places += [("trained", task, key) for task in trained for key in trained[task]]
    places += [("trained", "geometry", "bands", "0-1", key) for key in ("pairs", "mean", "counts")]
    files = json.loads((run / MANIFEST).read_text())["files"]
    refused = 0
    values = (None, "x", [], {}, [1], {"a": 1}, 1e999, 10**400, -(2**70))
    cases = list(itertools.product(places, values))
    for place, value in cases[::every]:
        (run / "scores.json").write_text(json.dumps(damaged(scores, place, value)))
        seal(run, files)
        try:
            load_runs(run)
        except UserError as error:
            assert re.search(r"scores\.json: damaged \(.+\)", str(error))
            assert "\n" not in str(error)
            refused += 1
        else:
            print_scores(json.loads((run / "scores.json").read_text()))
    assert refused > 100 / every
    (run / "scores.json").write_text(json.dumps(scores))
    seal(run, files)
    first = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    for key in ("step", "loss"):
        (run / "log.jsonl").write_text(json.dumps({**first, key: [1]}))
        seal(run, files)
        with pytest.raises(UserError, match=rf"log\.jsonl: damaged \({key}: "):
            load_runs(run)


@pytest.mark.parametrize(
    ("file", "place", "value", "expected"),
    [
        ("environment.json", ("text",), {}, "environment.json: damaged (text: "),
        (
            "environment.json",
            ("text", 0, "rows"),
            "many",
            "environment.json: damaged (text.0.rows: ",
        ),
        ("environment.json", ("libraries",), [1], "environment.json: damaged (libraries: "),
        ("environment.json", ("from_hub",), "all", "environment.json: damaged (from_hub: "),
        ("environment.json", ("commit",), "`<b>", "environment.json: damaged (commit: "),
        ("scores.json", ("dev", "metric"), "luck", "scores.json: damaged (dev.metric: "),
        ("scores.json", ("dev", "steps"), 1.5, "scores.json: damaged (dev.steps: "),
    ],
)
def test_an_export_of_a_run_with_other_values_is_one_line(
    finished, tmp_path, capsys, file, place, value, expected
):
    run = tmp_path / "run"
    shutil.copytree(finished / "warm" / "seed-3", run)
    values = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps(damaged(values, place, value)))
    seal(run, json.loads((run / MANIFEST).read_text())["files"])
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_json_that_is_nested_too_deeply_is_one_line(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "warm" / "seed-3", run)
    for name in ("log.jsonl", "scores.json"):
        (run / name).write_text('{"a":' * 100_000)
        seal(run, json.loads((run / MANIFEST).read_text())["files"])
        with pytest.raises(UserError, match=f"{name}.*nested too deeply"):
            load_runs(run)
    (tmp_path / "summary.json").write_text('{"planned": "all"}')
    with pytest.raises(UserError, match=r"summary\.json: damaged \(planned: "):
        load_runs(run.rename(tmp_path / "seed-3").parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items | {"pairs.similarity": items["pairs.similarity"] * np.nan},
        lambda items: items | {"pairs.similarity": items["pairs.similarity"][:-1]},
        lambda items: items | {"pairs.grade": items["pairs.grade"].astype("U3")},
        lambda items: items | {"pairs.grade": np.float64(1)},
        lambda items: b"no archive",
        lambda items: b"",
    ],
)
def test_single_items_that_are_none_are_one_line(finished, tmp_path, change, capsys):
    """Hash and seal fit: whoever made them up did so with care."""
    run = tmp_path / "made_up"
    shutil.copytree(finished / "warm" / "seed-3", run)
    with np.load(run / "scores.npz") as file:
        items = change(dict(file))
    if isinstance(items, bytes):
        (run / "scores.npz").write_bytes(items)
    else:
        np.savez(run / "scores.npz", **items)
    reseal(run, items=hashlib.sha256((run / "scores.npz").read_bytes()).hexdigest())
    assert main(["compare", str(run), str(finished / "warm" / "seed-3")]) == 2
    message = capsys.readouterr().err
    assert "scores.npz: holds no values of single items" in message and message.count("\n") == 1


@pytest.mark.slow
def test_single_items_beyond_all_bounds_are_not_unpacked(finished, tmp_path, monkeypatch):
    run = tmp_path / "bomb"
    shutil.copytree(finished / "warm" / "seed-3", run)
    np.savez_compressed(run / "scores.npz", **{"pairs.grade": np.zeros(2**26 + 1)})
    reseal(run, items=hashlib.sha256((run / "scores.npz").read_bytes()).hexdigest())
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(UserError, match=r"scores\.npz: holds no values of single items"):
        load_runs(run)


def test_a_linked_run_is_none_of_several(finished, tmp_path, capsys):
    folder, private = copy(finished, tmp_path) / "warm", tmp_path / "private"
    (folder / "seed-5").rename(private)
    (folder / "seed-5").symlink_to(private)
    link = f"error: {folder / 'seed-5'}: a link, which no run makes"
    for command in (["compare", str(folder), str(finished / "cold")], ["report", str(folder)]):
        assert main(command) == 2
        assert link in capsys.readouterr().err
    again = ["train", str(finished / "small.yaml"), f"output={folder}"]
    assert main([*again, "seeds=3"]) == 2
    assert link in capsys.readouterr().err
    shutil.rmtree(private)  # a link to nothing would become a folder elsewhere
    assert main([*again, "seeds=3,5"]) == 2
    assert link in capsys.readouterr().err
    assert not private.exists()


@pytest.mark.parametrize("name", ["/dev/zero", "../other", "pipe"])
def test_a_seal_names_files_of_its_folder_alone(finished, tmp_path, name, capsys):
    run = tmp_path / "sealed"
    shutil.copytree(finished / "warm" / "seed-3", run)
    os.mkfifo(run / "pipe")
    manifest = json.loads((run / MANIFEST).read_text())
    manifest["files"][name] = {"size": 0, "sha256": "0"}
    (run / MANIFEST).write_text(json.dumps(manifest))
    assert main(["report", str(run), "-o", str(tmp_path / "report")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_seeds_take_no_folder_of_somebody_else(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    for more in ([], ["--dry-run"]):
        assert main(["train", "quickstart", "seeds=0,1", f"output={tmp_path}", *more]) == 2
        assert "is not empty and not a folder of seeds" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_plain_model_is_compared_once_it_is_scored(
    finished, tiny, tmp_path, monkeypatch, capsys, one_picture
):
    monkeypatch.chdir(tmp_path)
    words = ["compare", str(tiny), str(finished / "warm" / "seed-3"), "--format", "csv"]
    assert main(words) == 2
    assert (
        f"is no finished run; for a model's scores: simcse evaluate {tiny}"
        in capsys.readouterr().err
    )
    assert main(["evaluate", str(tiny), "--tasks", "pairs"]) == 0
    capsys.readouterr()
    assert main(words) == 0
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head == f"task,score,{tiny.name},seed-3,seed-3 - {tiny.name},95% interval,p"
    assert row.startswith("pairs,cosine Spearman,")
    assert main(["report", *words[1:3], "-o", "report"]) == 0
