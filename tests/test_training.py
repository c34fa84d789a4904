"""Whole runs through the command line's ``main``, on an encoder of three narrow layers."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SENTENCES, log, make_encoder, newest_checkpoint
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from simcse.cli.main import main
from simcse.config.reading import load_config
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.files import files_in, locked
from simcse.objectives import InfoNCE
from simcse.sealing import MANIFEST, seal
from simcse.training import loop, setup, several
from simcse.training import text as text_module
from simcse.training.progress import Progress


def weights(run):
    return load_file(run / "model.safetensors")


@pytest.fixture
def interrupted(monkeypatch):
    """Call ``main`` and press Ctrl-C after a step."""
    original = Progress.step

    def interrupted(arguments, step):
        def pressed(self, number):
            original(self, number)
            if number == step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "step", pressed)
            return main(arguments) == 130

    return interrupted


def test_the_bar_ends_before_the_message_of_what_ended_the_run(
    arguments, interrupted, monkeypatch, capsys
):
    class Shown(tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"disable": False})
            bars.append(self)

    bars = []
    monkeypatch.setattr("simcse.training.progress.tqdm", Shown)
    assert interrupted(arguments, 2)
    assert [bar.disable for bar in bars] == [True]  # as tqdm marks what is closed
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: interrupted")


def test_a_run_leaves_a_model_its_config_scores_and_log(arguments, run, capsys):
    poolings = "evaluation.raw_poolings=[cls, mean, avg_first_last]"
    assert main([*arguments, poolings]) == 0
    output = capsys.readouterr().out
    assert "96 rows with text, 0 empty (skipped), 0 duplicate" in output
    assert "untrained (cls)" in output and "trained" in output

    model = SentenceTransformer(str(run))
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    assert model.encode(SENTENCES).shape == (6, 32)
    assert model.max_seq_length == 64

    scores = json.loads((run / "scores.json").read_text())
    assert set(scores["raw"]) == {"cls", "mean", "avg_first_last"}
    assert -1 <= scores["trained"]["pairs"]["cosine_spearman"] <= 1
    assert scores["trained"]["geometry"]["positive_pairs"] == 42
    evaluations = [entry for entry in log(run) if "eval_dev_score" in entry]
    assert [entry["step"] for entry in evaluations] == [4, 8, 12]
    assert all({"eval_alignment", "eval_uniformity"} <= set(entry) for entry in evaluations)
    best = max(evaluations, key=lambda entry: entry["eval_dev_score"])
    assert scores["dev"]["best_step"] == best["step"]
    assert scores["dev"]["best"] == best["eval_dev_score"]
    # The dev task here is the pairs themselves, so the kept model must be the best checkpoint.
    assert scores["trained"]["pairs"]["cosine_spearman"] == pytest.approx(best["eval_dev_score"])

    losses = [entry for entry in log(run) if "loss" in entry]
    assert [entry["step"] for entry in losses] == list(range(1, 13))
    rates = [entry["learning_rate"] for entry in losses]
    assert rates == pytest.approx(
        [1e-3 * (1 - step / 12) for step in range(12)], rel=1e-2, abs=1e-4
    )

    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 42
    assert environment["libraries"]["torch"] == torch.__version__
    assert environment["command"][0] == "train"
    assert not (run / "checkpoints").exists()
    assert not list(run.rglob("*.bin"))  # no pickles


def test_last_step_is_scored_and_saved_too(arguments, run, capsys):
    assert main([*arguments, "training.steps=6"]) == 0
    assert [entry["step"] for entry in log(run) if "eval_dev_score" in entry] == [4, 6]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["4", "6"]


def test_one_pass_a_step_and_the_training_text_is_tokenised_once(
    arguments, text_file, tmp_path, monkeypatch
):
    """Two epochs: a forward pass a step for both views, and not one call of the tokenizer."""
    passes, texts = [], []
    forward, tokenize = encoder.Transformer.forward, PreTrainedTokenizerFast._encode_plus

    def counted_forward(self, features, **kwargs):
        if self.training:
            passes.append(features["attention_mask"])
        return forward(self, features, **kwargs)

    def counted_tokenize(self, text, *args, **kwargs):
        texts.extend([text] if isinstance(text, str) else text)
        return tokenize(self, text, *args, **kwargs)

    monkeypatch.setattr(encoder.Transformer, "forward", counted_forward)
    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", counted_tokenize)
    grouped = ["training.batching=length_grouped", "training.steps=24", f"data.cache={tmp_path}"]
    assert main([*arguments, *grouped]) == 0
    sentences = text_file.read_text().splitlines()
    counts = Counter(texts)
    assert [counts[sentence] for sentence in sentences] == [1] * 96
    _, *views = passes  # the first is the look at whether views differ
    assert [len(mask) for mask in views] == [16] * 24  # two views of 8 sentences
    for epoch, padding in ((views[:12], 0.05), (views[12:], 0.12)):
        tokens = sum(int(mask.sum()) for mask in epoch)
        assert 1 - tokens / sum(mask.numel() for mask in epoch) < padding


def test_every_epoch_has_views_of_its_own(arguments, tmp_path, monkeypatch):
    text = tmp_path / "lengths.txt"
    text.write_text("\n".join("abcdefghijklm"[: n + 6].replace("", " ") for n in range(8)))
    seen = []
    original = loop.backpropagate

    def spy(accelerator, loss, features):
        texts, views = features["input_ids"].tolist()[:8], features["input_ids"][8:]
        seen.append({tuple(sorted(t)): v for t, v in zip(texts, views.tolist(), strict=True)})
        return original(accelerator, loss, features)

    monkeypatch.setattr(loop, "backpropagate", spy)
    settings = ["views=[{}, {shuffle: true}]", f"data.train={text}", "training.steps=3"]
    assert main([*arguments, *settings]) == 0
    first, second, third = seen  # each epoch is one and the same batch
    assert set(first) == set(second) == set(third)
    for one, two in ((first, second), (second, third), (first, third)):
        assert sum(one[text] != two[text] for text in one) >= 7


@pytest.mark.slow
def test_ctrl_c_reaches_the_user_as_one_line(arguments, run):
    settings = ["training.steps=100000", "evaluation.every=2"]
    command = [sys.executable, "train.py", *arguments[1:], *settings]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while newest_checkpoint(run) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted" in message
    assert "Traceback" not in message
    assert newest_checkpoint(run) is not None


def test_training_lowers_the_loss(arguments, run):
    assert main([*arguments, "training.steps=60", "evaluation.every=60"]) == 0
    losses = [entry["loss"] for entry in log(run) if "loss" in entry]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_finished_run_prints_its_scores_and_another_config_is_refused(arguments, run, capsys):
    arguments = [*arguments, "training.steps=2"]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert main(arguments) == 0
    assert f"{run} is finished:" in capsys.readouterr().out
    assert main([*arguments, "training.batch_size=4", "seed=1"]) == 2
    message = capsys.readouterr().err
    assert "seed: 42 -> 1; training.batch_size: 8 -> 4" in message
    assert message.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("step", "batching"),
    [
        pytest.param(2, "random", marks=pytest.mark.slow),
        pytest.param(13, "random", marks=pytest.mark.slow),
        (18, "length_grouped"),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(
    arguments, run, tmp_path, interrupted, capsys, step, batching
):
    # An epoch has 12 steps, so that the resumed checkpoints are none, the end of the first epoch,
    # and one in the middle of the second. Logged losses are averages that span checkpoints.
    settings = [f"training.batching={batching}", "training.steps=20", "training.log_every=3"]
    settings.append("views=[{}, {repeat: 0.3, shuffle: true}]")
    arguments = [*arguments, *settings]
    whole = tmp_path / "whole"
    assert main([*arguments, f"output={whole}"]) == 0
    assert interrupted(arguments, step)
    assert "interrupted" in capsys.readouterr().err
    assert not (run / "scores.json").exists()
    assert main(arguments) == 0
    resumed = capsys.readouterr().out
    assert ("resuming from" in resumed) == (step >= 4)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(run)[name], tensor), name
    timeless = [
        [
            {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
            for entry in log(r)
        ]
        for r in (whole, run)
    ]
    assert timeless[0][:-1] == timeless[1][:-1]
    assert newest_checkpoint(run) is None


@pytest.mark.slow
def test_run_that_died_while_exporting_is_finished_by_the_next(
    arguments, run, tmp_path, monkeypatch
):
    arguments = [*arguments, "training.steps=10"]  # ends within an epoch
    assert main([*arguments, f"output={tmp_path / 'whole'}"]) == 0
    save = encoder.save

    def dies(model, folder):
        if folder.parent == run:
            raise KeyboardInterrupt
        save(model, folder)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "save", dies)
        assert main(arguments) == 130
    assert not (run / "scores.json").exists()
    assert main(arguments) == 0
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(run)[name], tensor), name
    whole, again = (json.loads((r / "scores.json").read_text()) for r in (tmp_path / "whole", run))
    assert again["dev"] == whole["dev"]
    assert again["trained"] == whole["trained"]
    assert [entry["step"] for entry in log(run) if "loss" in entry] == list(range(1, 11))


def test_two_processes_cannot_train_in_one_folder(arguments, run, interrupted, capsys):
    assert interrupted(arguments, 5)
    capsys.readouterr()
    config = (run / "config.yaml").read_text()
    link = run.with_name("link")
    link.symlink_to(run)
    before = listing(run.parent)
    with locked(run):
        # Other settings too: the lock is asked first, before the folder is looked at.
        for more in ([], ["training.batch_size=4"], [f"output={link}"]):
            assert main([*arguments, *more]) == 2
            answer = capsys.readouterr()
            assert answer.err == f"error: output: another process is training in {run}\n"
            assert not answer.out
        assert main([*arguments, "--dry-run"]) == 0
    assert (run / "config.yaml").read_text() == config
    assert listing(run.parent) == before
    assert newest_checkpoint(run) is not None
    assert main(arguments) == 0
    with locked(run):  # as a process that is about to end has it
        assert main(arguments) == 0
    assert f"{run} is finished:" in capsys.readouterr().out


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "name",
    ["scores.json", "scores.npz", "model.safetensors", "tokenizer.json", "1_Pooling/config.json",
     "modules.json", "log.jsonl", "environment.json", "raw_scores.json"],
)  # fmt: skip
def test_a_finished_run_misses_whatever_makes_it(two_seeds, tmp_path, capsys, name):
    run = shutil.copytree(two_seeds / "seed-0", tmp_path / "run")
    arguments = ["train", str(run / "config.yaml"), f"output={run}"]
    assert main(arguments) == 0
    assert f"{run} is finished:" in capsys.readouterr().out
    flip(run / name)
    remedy = "bring that file back, or remove it and manifest.json and run the training command"
    for command in (arguments, ["report", str(run)], ["export", str(run), str(tmp_path / "out")]):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: {run / name}: damaged, its content is not what was")
        assert remedy in message and message.count("\n") == 1
    (run / name).unlink()
    assert main(arguments) == 2
    assert f"{run / name}: No such file or directory; {remedy}" in capsys.readouterr().err


def test_settings_of_a_finished_run_stay_but_those_of_the_hub_may_change(
    two_seeds, tmp_path, capsys
):
    run = shutil.copytree(two_seeds / "seed-0", tmp_path / "moved")
    config = run / "config.yaml"
    arguments = ["train", str(config), f"output={run}"]
    assert main([*arguments, "hub.license=mit"]) == 0
    assert "license: mit\n" in config.read_text()
    config.write_text(config.read_text().replace("license: mit", "license: apache-2.0"))
    (run / "evaluation").mkdir()
    (run / "tensorboard").mkdir()
    assert main(arguments) == 0
    config.write_text(config.read_text().replace("batch_size: 8", "batch_size: 16", 1))
    capsys.readouterr()
    for command in (arguments, ["report", str(run), "-o", str(tmp_path / "report")]):
        assert main(command) == 2
        assert f"{config}: not the settings that this run was made with" in capsys.readouterr().err
    config.unlink()
    assert main(["report", str(run)]) == 2
    assert f"{config}: missing from a finished run" in capsys.readouterr().err


def test_a_run_without_its_seal_is_made_whole_by_its_command(arguments, run, capsys):
    arguments = [*arguments, "training.steps=4"]
    assert main(arguments) == 0
    expected = weights(run)
    (run / "model.safetensors").unlink()
    (run / "manifest.json").unlink()
    assert main(["compare", str(run), str(run.parent)]) == 2
    assert f"{run}: not finished; run its command again" in capsys.readouterr().err
    assert main(arguments) == 0
    assert all(torch.equal(weights(run)[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_edited_scores_of_an_unfinished_run_are_computed_again(arguments, run, capsys):
    arguments = [*arguments, "evaluation.raw_poolings=mean", "training.steps=2"]
    assert main(arguments) == 0
    path, scores = run / "raw_scores.json", json.loads((run / "scores.json").read_text())["raw"]
    text = path.read_text()
    higher = json.loads(text)
    higher["scores"]["mean"]["pairs"]["cosine_spearman"] = 0.999
    other = [*arguments, "evaluation.batch_size=7", f"output={run.parent / 'other'}"]
    assert main(other) == 0
    of_another_setting = (run.parent / "other" / "raw_scores.json").read_text()
    for edited in (json.dumps(higher), text[:-200], of_another_setting):
        (run / "manifest.json").unlink()
        path.write_text(edited)
        capsys.readouterr()
        assert main(arguments) == 0
        assert f"{path}: not what was written there; computed again" in capsys.readouterr().out
        assert json.loads((run / "scores.json").read_text())["raw"] == scores
        assert path.read_text() == text


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoints_are_named_and_an_older_one_is_used(
    arguments, run, interrupted, tmp_path, capsys
):
    arguments = [*arguments, "training.keep_checkpoints=3"]
    assert main([*arguments, f"output={tmp_path / 'whole'}"]) == 0
    assert interrupted(arguments, 11)
    folder = run / "checkpoints"
    flip(folder / "checkpoint-8" / "2_Dense" / "model.safetensors")
    assert interrupted(arguments, 5)
    output = capsys.readouterr().out
    assert (
        f"warning: {folder}/checkpoint-8: 2_Dense/model.safetensors: damaged, its content is not "
        "what was written (SHA-256); passed over\n"
    ) in output
    assert f"resuming from {folder}/checkpoint-4\n" in output
    os.truncate(folder / "checkpoint-4" / "optimizer.pt", 1000)
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert re.search(r"checkpoint-4: optimizer\.pt: 1,000 bytes, [\d,]+ were written; pas", output)
    assert "resuming from" not in output
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(run)[name], tensor), name


def test_resume_notices_another_encoder(arguments, run, tiny, tmp_path, interrupted, capsys):
    own = shutil.copytree(tiny, tmp_path / "own")
    arguments = [*arguments, f"encoder.name={own}"]
    assert interrupted(arguments, 5)
    weights = load_file(own / "model.safetensors")
    save_file({key: value + 1e-4 for key, value in weights.items()}, own / "model.safetensors")
    assert main(arguments) == 2
    assert "encoder: it has changed since" in capsys.readouterr().err
    assert newest_checkpoint(run) is not None


def test_resume_notices_that_it_is_not_known_what_the_run_was_made_from(
    arguments, run, interrupted, capsys
):
    assert interrupted(arguments, 5)
    (run / "environment.json").unlink()
    assert main(arguments) == 2
    assert "environment.json: missing from a run that has checkpoints" in capsys.readouterr().err
    assert newest_checkpoint(run) is not None


def test_a_best_checkpoint_damaged_while_it_trains_is_not_exported(
    arguments, run, monkeypatch, capsys
):
    arguments = [*arguments, "training.steps=4"]
    original = Progress.close

    def close(self):
        original(self)
        for folder in (run / "checkpoints").iterdir():
            flip(folder / "2_Dense" / "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "close", close)
        assert main(arguments) == 2
    assert "2_Dense/model.safetensors: damaged" in capsys.readouterr().err
    assert not (run / "scores.json").exists()
    assert main(arguments) == 0


def test_what_becomes_of_config_and_log_while_it_trains_is_made_good(
    arguments, run, monkeypatch, capsys
):
    original = Progress.step

    def step(self, number):
        original(self, number)
        if number == 6:
            (run / "config.yaml").write_text("training: {learning_rate: 0.5}")
            (run / "log.jsonl").write_text("garbage")

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", step)
        assert main(arguments) == 0
    assert [entry["step"] for entry in log(run) if "loss" in entry] == list(range(1, 13))
    capsys.readouterr()
    assert main(arguments) == 0  # with the settings that it was made with
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_one_line(arguments, run, interrupted, tmp_path, capsys):
    """Sealed as it should be, but of another run or made up."""
    assert interrupted(arguments, 5)
    other = tmp_path / "other"
    assert interrupted([*arguments, "seed=7", f"output={other}"], 5)
    folder = run / "checkpoints" / "checkpoint-4"
    whole = shutil.copytree(folder, tmp_path / "whole")
    state = json.loads((whole / "state.json").read_text())
    capsys.readouterr()

    def refused():
        seal(folder, [name for name in files_in(folder) if name != MANIFEST])
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert re.match(
            rf"error: {folder}"
            r"(: does not fit this run \(| cannot be loaded: |: config\.json: not )",
            message,
        )
        assert message.count("\n") == 1
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)

    shutil.rmtree(folder)
    shutil.copytree(other / "checkpoints" / "checkpoint-4", folder)
    refused()
    made_up = [{"step": 3}, {"step": "x"}, {"best_score": "x"}, {"totals": {"loss": "a"}}]
    for values in [*made_up, {"log": "abc"}, {"best_score": float("nan")}]:
        (folder / "state.json").write_text(json.dumps(state | values))
        refused()
    for content in ({}, [], {"optimizer": {"state": {0: {}}, "param_groups": []}}):
        torch.save(content, folder / "optimizer.pt")
        refused()
    (folder / "random_0.pt").unlink()
    torch.save({}, folder / "random_0.pt")
    refused()
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").write_text("[")
    refused()
    assert main(arguments) == 0


def test_resume_notices_changed_text(arguments, run, tmp_path, interrupted, capsys):
    text = tmp_path / "mine.txt"
    text.write_text("\n".join(f"A line about number {i}." for i in range(40)))
    arguments = [*arguments, f"data.train={text}"]
    assert interrupted(arguments, 5)
    text.write_text("\n".join(f"A line about number {i}." for i in range(1, 41)))
    assert main(arguments) == 2
    assert "data.train: the text has changed since" in capsys.readouterr().err
    path = run / "environment.json"
    found = json.loads(path.read_text())
    for sets in (0, 2):
        path.write_text(json.dumps({**found, "text": found["text"] * sets}))
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert f"environment.json: damaged (text of {sets} data sets, the config has 1)" in message
    assert newest_checkpoint(run) is not None


def test_non_finite_loss_stops_the_run(arguments, run, monkeypatch, capsys):
    # In the second epoch, whose batches are others: an epoch has 12 steps.
    batches, read = [], []
    original, load = loop.backpropagate, text_module.load_training_data

    def spy(accelerator, loss, features):
        batches.append(features["identities"][0].tolist())
        return original(accelerator, loss, features)

    def reads(*args):
        read.append(load(*args))
        return read[0]

    def broken(self, anchor, positive):
        loss = anchor.sum() * 0 + 1
        return loss * float("nan") if len(batches) == 14 else loss

    monkeypatch.setattr(loop, "backpropagate", spy)
    monkeypatch.setattr(text_module, "load_training_data", reads)
    monkeypatch.setattr(InfoNCE, "forward", broken)
    assert main([*arguments, "training.steps=20"]) == 2
    message = capsys.readouterr().err
    found = re.search(
        r"step 14: the loss is nan \(learning rate 0.00035, training rows ([^c]+),", message
    )
    rows = [int(number) for number in found[1].split(", ")]
    assert len(rows) == 8
    hashes = read[0][0]["text_hash"][:]
    assert [hashes[row][0] for row in rows] == batches[-1]
    assert newest_checkpoint(run).name == "checkpoint-12"


def test_a_dev_score_that_is_never_a_number_is_one_line(arguments, run, monkeypatch, capsys):
    original = setup.Dev.scores

    def undefined(self, *args, **kwargs):
        return {**original(self, *args, **kwargs), "dev_score": float("nan")}

    monkeypatch.setattr(setup.Dev, "scores", undefined)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "evaluation.dev: no dev score was a number, so there is no best checkpoint" in message
    assert not (run / "scores.json").exists()


def test_infinite_gradient_stops_the_run(arguments, capsys):
    assert main([*arguments, "objective.terms={info_nce: 1e38}"]) == 2
    message = capsys.readouterr().err
    assert "step 1: the " in message
    assert "(learning rate 0.001, training rows " in message
    assert message.count("\n") == 1


def test_tilde_is_the_home_folder_everywhere(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert main([*arguments, "training.steps=2", "output=~/run"]) == 0
    assert (tmp_path / "home" / "run" / "scores.json").is_file()
    assert not (tmp_path / "home" / "run" / "checkpoints").exists()


def test_dry_run_writes_nothing(arguments, run, capsys):
    assert main([*arguments, "training.report_to=nosuch", "--dry-run"]) == 2
    assert main([*arguments, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "batch_size: 8" in output
    assert "96 rows" in output
    assert "parameters" in output
    assert "minutes on this machine: 12 steps" in output
    assert not run.exists()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.batch_size=97", "training.batch_size: 97 is more than the 96 training rows"),
        ("training.batch_size=97 data.train={twice}", "(96 more repeat them)"),
        ("steps=3", "steps: unknown key (did you mean training.steps?)"),
        ("training..steps=3", "argument 'training..steps=3': expected key=value"),
        (
            "views.5.repeat=0.1",
            "argument views.5.repeat: 5 stands in a list; name an item by its",
        ),
        ("views.0.repeat=2", "views.0.repeat: should be less than 1, got 2"),
        ("data.form=pairs data.columns=a,b", "got 1; a list is written [a, b]"),
        ("objective.dims=8,16 objective.dim_weights=1", "dim_weights: 1 for 2 dims"),
        ("objective.dims=8 objective.dim_weights=1,x", "dim_weights: should be a valid list"),
        ("data.train=/dev/null", "data.train: /dev/null is a pipe or device; expected a file"),
        ("data.train={empty}", "empty.jsonl:1: no columns in it; expected one column"),
        (
            "objective.teacher={tiny} objective.terms=distill_l2",
            "does not say how it is pooled; ",
        ),
        ("data.01.train=x", "argument data.01.train: 01 stands in a list; name an item by its num"),
        ("training.precision=float16", "training.precision: float16 needs a GPU"),
        ("training.report_to=nosuchtracker", "training.report_to: nosuchtracker unknown"),
        ("data.max_length=65", "data.max_length: 65 is more than the 64 tokens that"),
        ("encoder.dropout=0", "encoder.dropout: there is no dropout"),
        ("data.train=missing.txt", "data.train: missing.txt: no such file"),
        ("evaluation.data=/nowhere evaluation.tasks=STS12", "STS.input.MSRpar.txt: No such file"),
        ("encoder.name=/no/such/encoder", "encoder.name: /no/such/encoder is neither"),
    ],
)
def test_mistakes_end_with_one_line_and_no_run_folder(
    arguments, run, tiny, text_file, tmp_path, capsys, setting, expected
):
    if "float16" in setting and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (twice := tmp_path / "twice.txt").write_text(2 * text_file.read_text())
    (empty := tmp_path / "empty.jsonl").write_text("{}\n")
    words = setting.format(twice=twice, empty=empty, tiny=tiny).split()
    assert main([*arguments, *words]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1
    assert not run.exists()


def test_a_finished_run_says_that_its_encoder_or_text_has_changed(
    arguments, run, tiny, text_file, tmp_path, capsys
):
    text = tmp_path / "own.txt"
    text.write_text(text_file.read_text())
    name = shutil.copytree(tiny, tmp_path / "encoder")
    words = [*arguments, "training.steps=2", f"data.train={text}", f"encoder.name={name}"]
    assert main(words) == 0
    scores = (run / "scores.json").read_bytes()
    capsys.readouterr()

    def warnings():
        assert main(words) == 0
        output = capsys.readouterr().out
        assert f"{run} is finished:" in output
        return [line for line in output.splitlines() if line.startswith("warning:")]

    assert not warnings()
    text.write_text(text_file.read_text() + "One more.\n")
    [said] = warnings()
    assert f"data.train: the text has changed since {run} was started (then 96 rows" in said
    make_encoder(name, hidden_size=16)
    said, _ = warnings()
    assert f"encoder: it has changed since {run} was started; these are the results fr" in said
    text.unlink()
    [said] = warnings()
    assert "not compared with its encoder and text as they are now (data.train: " in said
    assert (run / "scores.json").read_bytes() == scores


def test_a_gradient_of_zero_is_said(arguments, tiny, tmp_path, capsys):
    guide = tmp_path / "guide"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), guide)
    words = [*arguments, "training.steps=2", f"objective.guide={guide}"]
    assert main([*words, "objective.guide_margin=2"]) == 0  # masks every negative
    assert "warning: step 1: the gradient is zero, so nothing is learned" in capsys.readouterr().out
    assert main([*words, f"output={tmp_path / 'other'}"]) == 0
    assert "gradient is zero" not in capsys.readouterr().out


def test_output_that_cannot_be_made_is_known_before_the_text_is_read(arguments, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*arguments, f"output={tmp_path / 'file' / 'run'}"]) == 2
    answer = capsys.readouterr()
    assert "output: " in answer.err
    assert "is no folder to write in" in answer.err
    assert not answer.out


@pytest.mark.parametrize("content", ["", "- 1\n", "foo: 1\n", "a: b: c\n"])
def test_damaged_config_of_a_run_folder(arguments, run, capsys, content):
    run.mkdir()
    (run / "config.yaml").write_text(content)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "config.yaml: damaged, or not of a run; choose another folder" in message
    assert (run / "config.yaml").read_text() == content
    assert message.count("\n") == 1


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["thesis.txt", ".bashrc", ".git/HEAD", ".new/mine", "checkpoints/mine", ".simcse-notes"]
)
def test_foreign_folder_is_left_alone(arguments, run, capsys, name):
    (run / name).parent.mkdir(parents=True)
    (run / name).write_text("mine")
    before = files(run.parent)
    assert main(arguments) == 2
    assert "is not empty and not a run folder" in capsys.readouterr().err
    assert files(run.parent) == before


def test_a_config_of_the_users_makes_no_run_folder(arguments, run, capsys):
    """As in a folder of configs: the user's own, or a copy of a run's, beside other files."""
    arguments = [*arguments, "training.steps=2"]
    assert main(arguments) == 0
    whole = (run / "config.yaml").read_text()
    shutil.rmtree(run)
    run.mkdir()
    (run / "config.yaml").write_text(Path(arguments[1]).read_text())
    assert main(arguments) == 2
    assert "config.yaml: damaged, or not of a run; choose another" in capsys.readouterr().err
    (run / "config.yaml").write_text(whole)
    (run / "model.safetensors").write_text("mine")
    assert main(arguments) == 2
    assert "is not empty and not a run folder" in capsys.readouterr().err
    assert (run / "model.safetensors").read_text() == "mine"


def test_what_a_killed_run_left_is_removed_and_nothing_else(
    arguments, run, interrupted, tmp_path, capsys
):
    left = run / ".simcse-new-0a1b_c2d"  # as a process leaves it that was killed at its start
    left.mkdir(parents=True)
    (left / "half").touch()
    assert interrupted(arguments, 5)
    assert not left.exists()
    mine = [".new/a", ".scratch/b", "checkpoints/.scratch/c", "checkpoints/notes.txt"]
    mine += ["checkpoints/checkpoint-best/d", "evaluation/.simcse-new-0a1b_c2d"]
    for name in mine:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    scratch = run / "checkpoints" / ".simcse-new-abcdefgh"
    scratch.mkdir()
    assert main(arguments) == 0
    assert not scratch.exists()
    assert [path.name for path in (run / "checkpoints").glob("checkpoint-*")] == ["checkpoint-best"]
    assert all((run / name).read_text() == "mine" for name in mine)
    assert main(arguments) == 0
    assert all((run / name).read_text() == "mine" for name in mine)


def test_checkpoints_of_somebody_else_are_refused(arguments, run, interrupted, tmp_path, capsys):
    assert interrupted(arguments, 5)
    other = (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(other)
    before = files(other)
    assert main(arguments) == 2
    assert f"{run / 'checkpoints'}: a link or a file" in capsys.readouterr().err
    (run / "checkpoints").unlink()
    mine = run / "checkpoints" / "checkpoint-8"
    mine.mkdir(parents=True)
    (mine / "model.safetensors").write_text("mine")
    assert main(arguments) == 2
    expected = f"{mine}: not a checkpoint of a run (no manifest.json); move it away"
    assert expected in capsys.readouterr().err
    assert (mine / "model.safetensors").read_text() == "mine"
    shutil.rmtree(run / "checkpoints")
    assert main(arguments) == 0
    (run / "checkpoints").symlink_to(other)
    assert main(arguments) == 0  # finished: its scores are printed
    assert files(other) == before


@pytest.mark.slow
def test_a_quota_or_a_broken_disk_leaves_nothing_half_written(
    arguments, run, interrupted, monkeypatch
):
    assert interrupted(arguments, 5)
    fsync = os.fsync

    # While the log, a file of a checkpoint, a file of the model is flushed.
    for number, code in ((2, errno.EDQUOT), (12, errno.EIO), (40, errno.EDQUOT)):
        calls = itertools.count(1)

        def fails(handle, number=number, code=code, calls=calls):
            if next(calls) == number:
                raise OSError(code, os.strerror(code))
            fsync(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(OSError, match=os.strerror(code)):
                several.train(load_config(arguments[1], arguments[2:]), [])
        assert not (run / "manifest.json").exists()
        assert not list(run.parent.rglob(".*"))
        assert newest_checkpoint(run) is not None
    assert main(arguments) == 0


def test_full_disk_is_one_line(arguments, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        assert main([*arguments, f"output={disk / 'run'}"]) == 1
        message = capsys.readouterr().err
        assert "no space left on the disk" in message
        assert (disk / "run" / "config.yaml").is_file()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_dev_scores_of_a_run_in_bfloat16_are_those_of_the_final_model(arguments, run, monkeypatch):
    seen = set()
    forward = encoder.Transformer.forward

    def spy(self, features, **kwargs):
        seen.add((self.training, torch.is_autocast_enabled("cpu")))
        return forward(self, features, **kwargs)

    monkeypatch.setattr(encoder.Transformer, "forward", spy)
    assert main([*arguments, "training.precision=bfloat16"]) == 0
    assert seen == {(True, True), (False, False)}  # trained in it, scored without
    scores = json.loads((run / "scores.json").read_text())
    assert scores["dev"]["best"] == scores["trained"]["pairs"]["cosine_spearman"]


def test_tensorboard_and_bfloat16(arguments, run, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    settings = ["training.report_to=tensorboard", "training.precision=bfloat16"]
    settings += ["training.steps=4", "encoder.projection=none"]
    assert main([*arguments, *settings]) == 0
    assert list((run / "tensorboard").rglob("events.out.*"))
    [file] = (run / "tensorboard").rglob("hparams.yml")
    found = yaml.safe_load(file.read_text())
    assert found.keys() == load_config(str(run / "config.yaml")).settings().keys()
    assert (found["training.steps"], found["objective.temperature.start"]) == (4, 0.05)
    # Mixed precision ends with the training: the scores are those of the float32 model on disk.
    assert main(["evaluate", str(run), "--tasks", "pairs", "-o", str(run / "again.json")]) == 0
    again = json.loads((run / "again.json").read_text())["scores"]
    assert again == json.loads((run / "scores.json").read_text())["trained"]


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param("roberta", marks=pytest.mark.slow),
        pytest.param("distilbert", marks=pytest.mark.slow),
        pytest.param("mpnet", marks=pytest.mark.slow),
        "modernbert",
    ],
)
def test_other_architectures_train(arguments, run, tmp_path, architecture):
    folder = make_encoder(tmp_path / "encoder", architecture)
    settings = [f"encoder.name={folder}", "training.steps=4", "encoder.pooling=cls"]
    assert main([*arguments, *settings]) == 0
    assert SentenceTransformer(str(run)).encode(SENTENCES).shape == (6, 32)


def test_collapse_is_named_while_it_trains(arguments, run, capsys):
    # The first position of an encoder with random weights hardly knows which text it stands before.
    settings = ["training.steps=4", "encoder.pooling=cls", "training.learning_rate=1e-9"]
    assert main([*arguments, *settings]) == 0
    output = capsys.readouterr().out
    assert (
        "warning: complete collapse at step 4: mean cosine of distinct sentences 1.0000" in output
    )
    assert "warning: trained: complete collapse" in output
    entry = next(entry for entry in log(run) if "eval_mean_cosine" in entry)
    assert entry["eval_mean_cosine"] > 0.99 and 1 <= entry["eval_effective_rank"] <= 32


def test_an_output_that_is_a_link_to_nothing_is_refused(arguments, run, capsys):
    run.symlink_to(run.parent / "nowhere")
    assert main(arguments) == 2
    assert f"output: {run} is a link to nothing, or to itself" in capsys.readouterr().err
    assert not (run.parent / "nowhere").exists()
