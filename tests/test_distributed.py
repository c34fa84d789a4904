"""Two processes (gloo, on the CPU) against one."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import distributed_worker as worker
import psutil
import pytest
import torch
from conftest import PROCESSES, ROOT, make_masked_encoder, newest_checkpoint
from conftest import log as log_of
from safetensors.torch import load_file

from simcse.cli.main import main

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
SHARES = ["default", pytest.param("slow", marks=pytest.mark.slow)]
RUNS = {"copies": "default", "shards": "slow", "adapters": "slow"}
PLACE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}


def config(folder, name, encoder, text, form, **training):
    """Write a run's config as JSON."""
    path = folder / f"{name}.json"
    values = {
        "encoder": {"name": str(encoder), "projection": "train_only"},
        "data": {"train": str(text), "form": form},
        "training": {
            "batch_size": 8,
            "precision": "float32",
            "log_every": 1,
            "learning_rate": 1e-3,
            **training,
        },
        "evaluation": {"every": 5, "raw_poolings": [], "dev": "pairs", "tasks": ["pairs"]},
        "output": str(folder / name),
    }
    if name.startswith("sgd"):
        values["encoder"]["dropout"] = 0.0
        values["evaluation"]["every"] = 20
    if name.endswith("adapters"):  # shares of weights of two types, beside those of the objective
        values["encoder"] |= {"lora": {"rank": 4}, "dtype": "bfloat16", "projection": "none"}
        values["objective"] = {
            "terms": ["info_nce", "mlm"],
            "temperature": {"schedule": "learnable"},
        }
    path.write_text(json.dumps(values))
    return path


def started(share, tmp_path_factory, text_file):
    """Folder of what two processes have done of a share of the work."""
    folder = tmp_path_factory.mktemp("two")
    encoder = make_masked_encoder(folder / "encoder")
    lines = text_file.read_text().splitlines()
    pairs = folder / "pairs.jsonl"
    rows = zip(lines, lines[7:] + lines[:7], strict=True)
    pairs.write_text("".join(json.dumps({"anchor": a, "positive": b}) + "\n" for a, b in rows))
    for name in ("sgd", "sgd_one"):
        config(folder, name, encoder, pairs, "pairs", steps=20, learning_rate=0.05)
    for kind in RUNS:
        sharding = "none" if kind == "copies" else "full"
        for name in (f"whole_{kind}", f"stopped_{kind}"):
            config(folder, name, encoder, text_file, "sentences", steps=15, sharding=sharding)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    both["SIMCSE_CACHE"] = str(folder / "cache")
    # FSDP does not survive a fork.
    context = PROCESSES if share == "default" else multiprocessing.get_context("spawn")
    processes = []
    for rank in ("0", "1"):
        environment = {**both, "RANK": rank, "LOCAL_RANK": rank}
        process = context.Process(target=worker.work, args=(environment, folder, encoder, share))
        process.start()
        processes.append(process)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory, text_file):
    return started("default", tmp_path_factory, text_file)


@pytest.fixture(scope="module")
def two_slow(tmp_path_factory, text_file):
    return started("slow", tmp_path_factory, text_file)


def folder_of(share, request):
    return request.getfixturevalue("two" if share == "default" else "two_slow")


@pytest.mark.parametrize("share", SHARES)
def test_gradients_of_two_processes_are_those_of_one(share, request, tmp_path):
    folder = folder_of(share, request)
    cases, spreads, _ = worker.SHARES[share]
    expected = worker.all_gradients(tmp_path, folder / "encoder", cases, ["no"])
    found = [torch.load(folder / f"gradients-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len(found[0]) == len(spreads) * len(expected) == len(spreads) * len(cases)
    for name, (own_loss, own) in (item for part in found for item in part.items()):
        case = f"{name.rpartition(' ')[0]} no"
        loss, gradients = expected[case]
        assert own_loss == pytest.approx(loss, abs=1e-6), case
        assert own.keys() == gradients.keys(), case
        for key, gradient in gradients.items():
            place = f"{name}: {key}"
            torch.testing.assert_close(own[key], gradient, rtol=1e-4, atol=1e-6, msg=place)


def test_a_gradient_that_one_process_lacks_counts_as_zero(two):
    for rank in (0, 1):
        both, one, none = torch.load(two / f"uneven-{rank}.pt", weights_only=True)
        assert both.tolist() == [1.5, 1.5]
        assert one.tolist() == [1.5, 1.5]
        assert none is None


@pytest.mark.slow
def test_weights_after_20_steps_of_gradient_descent_are_those_of_one_process(two_slow):
    two = two_slow
    worker.train_with_sgd(two / "sgd_one.json")
    found, expected = (load_file(two / n / "model.safetensors") for n in ("sgd", "sgd_one"))
    start = load_file(two / "encoder" / "model.safetensors")
    moved = 0.0
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)
        if f"bert.{key}" in start:
            moved = max(moved, float((value - start[f"bert.{key}"]).abs().max()))
    assert moved > 1e-3  # it has learned something that could differ
    losses = [
        [entry["loss"] for entry in log_of(two / n) if "loss" in entry] for n in ("sgd", "sgd_one")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_each_process_has_its_own_dropout(two):
    first, second = (torch.load(two / f"views-{rank}.pt") for rank in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)
    torch.testing.assert_close(first, worker.views(worker.config_of(two / "whole_copies.json")))


@pytest.mark.parametrize(
    "kind", ["copies", *(pytest.param(k, marks=pytest.mark.slow) for k in ("shards", "adapters"))]
)
def test_a_run_that_one_process_was_told_to_stop_ends_as_the_whole_one(kind, request):
    """In the second epoch; SIGTERM came to the second process alone."""
    two = folder_of(RUNS[kind], request)
    names = (f"whole_{kind}", f"stopped_{kind}")
    files, again = ({path.name for path in (two / name).iterdir()} for name in names)
    assert files == again
    assert {"model.safetensors", "scores.json", "log.jsonl", "environment.json"} <= files
    assert "checkpoints" not in files
    whole, stopped = (load_file(two / n / "model.safetensors") for n in names)
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    logs = [log_of(two / name) for name in names]
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0] if "loss" in entry] == list(range(1, 16))


def test_another_number_of_processes_is_refused(two, capsys, monkeypatch):
    folder = two / "whole_copies"
    seal = folder / "manifest.json"
    seal.rename(folder / "kept")  # an unfinished run
    try:
        assert main(["train", str(two / "whole_copies.json")]) == 2
    finally:
        (folder / "kept").rename(seal)
    assert "was started with 2 processes, not 1" in capsys.readouterr().err


def test_a_shared_out_model_is_refused_once(monkeypatch, capsys):
    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["train"]) == 2
    assert "accelerate: FSDP is not supported" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(["train"]) == 1
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "LOCAL_RANK without RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; start with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "LOCAL_RANK without MASTER_ADDR, MASTER_PORT"),
        ({**PLACE, "LOCAL_RANK": "first"}, "environment: LOCAL_RANK=first: expected a number"),
        ({**PLACE, "WORLD_SIZE": "many"}, "the processes do not meet at MASTER_ADDR=localhost"),
        ({**PLACE, "MASTER_PORT": "999999"}, "MASTER_PORT=999999 (port must have value from 0"),
    ],
)
def test_an_environment_that_no_launcher_made_is_one_line(
    monkeypatch, capsys, environment, expected
):
    for name, value in {"LOCAL_RANK": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "quickstart"]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


def test_a_number_of_processes_without_a_launcher_is_one_line(arguments, run, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments) == 2
    assert "environment: WORLD_SIZE=2 without LOCAL_RANK; start with" in capsys.readouterr().err
    assert not run.exists()


@pytest.fixture
def launched(arguments):
    """Starts the run of ``arguments`` with more steps in two processes, gives launcher and both."""
    started = []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(*more):
        command = [*LAUNCH, "2", "train.py", *arguments[1:], "training.steps=4000", *more]
        launcher = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(launcher)
        return launcher

    yield start
    for launcher in started:
        launcher.kill()
        launcher.communicate()


def workers(launcher, run, lines=3):
    """The two processes once the log has more lines, the first one first."""
    deadline = time.monotonic() + 120
    log = run / "log.jsonl"
    while not (log.is_file() and log.read_text().count("\n") > lines):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = psutil.Process(launcher.pid).children()
    return sorted(found, key=lambda process: int(process.environ()["RANK"]))


def errors(text):
    """The lines that the command line itself wrote."""
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_other_with_one_line(rank, launched, run):
    launcher = launched("evaluation.every=20")
    workers(launcher, run)[rank].kill()
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    (line,) = errors(stderr)
    assert "another process of this run has ended" in line
    assert "File" not in stderr.split("torch/distributed/elastic")[0]  # no traceback of ours


@pytest.mark.slow
def test_a_stopped_launcher_leaves_a_checkpoint_that_the_same_number_resumes(launched, run):
    launcher = launched("evaluation.every=1000")
    workers(launcher, run)
    launcher.terminate()
    _, stderr = launcher.communicate(timeout=60)
    (line,) = errors(stderr)
    assert "with a checkpoint; the same command resumes" in line
    assert {"random_0.pt", "random_1.pt"} <= {
        path.name for path in newest_checkpoint(run).iterdir()
    }
    again = launched("evaluation.every=1000")
    lines = len(log_of(run))
    workers(again, run, lines + 3)
    again.terminate()
    stdout, _ = again.communicate(timeout=60)
    assert "resuming from" in stdout
    steps = [entry["step"] for entry in log_of(run)]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.batch_size=7", "7 is for all 2 processes together and must be a multiple of 2"),
        ("training.stps=7", "unknown key"),
        ("data.train=/none.txt", "/none.txt"),
    ],
)
def test_a_mistake_is_said_once(setting, message, launched, run):
    launcher = launched(setting)
    _, stderr = launcher.communicate(timeout=60)
    (line,) = errors(stderr)
    assert message in line
    assert launcher.returncode == 1
    assert not run.exists()


ONE_FAILS = """
import sys, torch
from simcse import distributed
from simcse.cli import main
from simcse.training import run
from simcse.errors import UserError
def train(config, command, twin):
    if distributed.rank() == int(sys.argv[1]):
        raise UserError("only here")
    distributed.gather(torch.ones(1))
run.train = train
sys.exit(main.main(["train"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_mistake_that_one_process_alone_meets_ends_both(rank, tmp_path):
    script = tmp_path / "one_fails.py"
    script.write_text(ONE_FAILS)
    ran = subprocess.run(
        [*LAUNCH, "2", str(script), rank], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert errors(ran.stderr) == ["error: only here"]
    assert ran.returncode == 1
