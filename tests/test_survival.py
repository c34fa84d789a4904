"""Runs that are killed, stopped, or short of disk and memory, and end as if nothing had been.

Killed runs are processes of their own. `make soak` runs the long one.
"""

import json
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROCESSES, log, newest_checkpoint

from simcse import files, sealing
from simcse.cli.main import main
from simcse.errors import UserError, naming_memory
from simcse.training import checkpoints, loop, resuming, run, setup, text
from simcse.training.interruption import StopSignals

CLOCKS = ("minutes", "runtime", "per_second")


def timeless(value):
    """JSON values without what clocks say; lines of the log that are nothing else are left out."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(c in k for c in CLOCKS)}
    if isinstance(value, list):
        kept = [timeless(item) for item in value]
        return [i for i in kept if not isinstance(i, dict) or set(i) - {"step", "epoch"}]
    return value


def contents(folder: Path) -> dict[str, object]:
    """What a finished run left: model, scores, log, last and best checkpoint, without clocks."""
    scores = json.loads((folder / "scores.json").read_text())
    found: dict[str, object] = {"scores": timeless(scores), "log": timeless(log(folder))}
    for name in ("model.safetensors", "1_Pooling/config.json", "modules.json", "raw_scores.json"):
        found[name] = (folder / name).read_bytes()
    for step in {scores["dev"]["steps"], scores["dev"]["best_step"]}:
        checkpoint = checkpoints.place(folder / checkpoints.CHECKPOINTS, step)
        assert checkpoints.damage(checkpoint) is None
        for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
            name = f"{checkpoint.name}/{path.relative_to(checkpoint)}"
            if path.suffix in (".pt", ".pth"):
                found[name] = plain(torch.load(path, weights_only=True))
            elif path.name == checkpoints.STATE_FILE:
                found[name] = timeless(json.loads(path.read_text()))
            elif path.name != checkpoints.MANIFEST:
                found[name] = path.read_bytes()
    return found


def plain(value):
    """Tensors and arrays as bytes, to be compared with ==."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def left(folder: Path) -> list[str]:
    """What lies among the checkpoints."""
    return sorted(path.name for path in folder.glob("checkpoints/*"))


def assert_same_end(one: Path, other: Path):
    expected, found = contents(one), contents(other)
    assert found.keys() == expected.keys()
    different = [name for name in expected if found[name] != expected[name]]
    assert not different


def in_a_process(arguments, environment, output, moments, largest_file):
    """``simcse`` with its finished run's checkpoints kept, and what happens at set moments."""
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    run.remove_all = lambda _: None
    for moment in moments:
        _act_at(*moment)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    raise SystemExit(main(arguments))


_MODULES = (checkpoints, files, loop, resuming, run, sealing, text)


def _act_at(path, number, action=signal.SIGKILL):
    """Before the n-th call of a function send this process a signal, or fill a disk."""
    calls = []
    module, *inner, name = path.split(".")
    owner = {m.__name__.rpartition(".")[2]: m for m in _MODULES}[module]
    for part in inner:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            _fill(action) if isinstance(action, Path) else os.kill(os.getpid(), action)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)


def _fill(disk):
    with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


@pytest.fixture
def output(tmp_path):
    """What the processes of :func:`start` have printed."""
    (tmp_path / "output.txt").touch()
    return tmp_path / "output.txt"


@pytest.fixture
def start(output):
    """Start ``simcse`` in a process, and wait for its end."""
    processes = []

    def start(arguments, *moments, largest_file=None, wait=True):
        environment = {k: os.environ[k] for k in ("SIMCSE_CACHE", "HF_HUB_OFFLINE")}
        parts = (arguments, environment, output, moments, largest_file)
        process = PROCESSES.Process(target=in_a_process, args=parts)
        process.start()
        processes.append(process)
        if wait:
            process.join()
        return process

    yield start
    for process in processes:
        process.kill()


STEP = "loop.backpropagate"


@pytest.fixture
def arguments(arguments):
    """A run of 20 steps with a checkpoint every 4, and a log that does not keep step with them."""
    return [*arguments, "training.steps=20", "training.log_every=3", "training.keep_checkpoints=1"]


@pytest.fixture
def whole(arguments, tmp_path_factory, start):
    """The same run without interruption, made once."""
    folder = tmp_path_factory.getbasetemp() / "whole"
    if not folder.exists():
        assert start([*arguments, f"output={folder}"]).exitcode == 0
    return folder


# Where a checkpoint may be cut off: while its files are written, flushed, sealed, renamed, while
# older ones go, and what follows the last one until the run is sealed; each before the n-th call
# in a process.
DEATHS = [
    ("resuming.torch.save", 2),
    ("checkpoints.seal", 1),
    ("sealing.os.fsync", 12),
    ("sealing.write_atomically", 1),
    ("checkpoints.Path.rename", 1),
    ("checkpoints.rotate", 1),
    ("checkpoints._remove", 1),
    ("files.shutil.rmtree", 2),
    ("checkpoints.rotate", 2),
    ("run.filling", 1),
    ("run.save_scores", 1),
    ("run.seal", 1),
    ("run.remove_all", 1),
]
SOME = [("sealing.os.fsync", 12), ("checkpoints.rotate", 1), ("run.filling", 1)]


@pytest.mark.parametrize("deaths", [SOME, pytest.param(DEATHS, marks=pytest.mark.slow)])
def test_a_run_killed_in_every_stage_of_a_checkpoint_ends_the_same(
    deaths, arguments, tmp_path, whole, start
):
    for moment in deaths:
        assert start(arguments, moment).exitcode == -signal.SIGKILL, moment
    assert start(arguments).exitcode == 0
    assert_same_end(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_the_same(arguments, tmp_path, whole, start):
    moments = random.Random(0)
    kills = 0
    while kills < 3:
        process = start(arguments, wait=False)
        process.join(moments.uniform(0.2, 1.4))
        if process.exitcode is not None:
            break  # finished before its time
        process.kill()
        process.join()
        kills += 1
    assert start(arguments).exitcode == 0
    assert_same_end(whole, tmp_path / "run")


def test_ctrl_c_and_sigterm_write_a_checkpoint_and_the_run_ends_the_same(
    arguments, tmp_path, whole, start, output
):
    # Steps 5 and 11 are neither logged nor scored, so averages of the log span the interruption.
    folder = tmp_path / "run"
    assert start(arguments, (STEP, 5, signal.SIGTERM)).exitcode == 143
    assert newest_checkpoint(folder).name == "checkpoint-5"
    message = output.read_text()
    assert "stopping after this step, with a checkpoint; once more stops at once\n" in message
    assert message.endswith(
        "error: interrupted after step 5, with a checkpoint; the same command resumes\n"
    )
    folder = folder.rename(tmp_path / "moved")
    arguments = [*arguments, f"output={folder}"]
    assert start(arguments, (STEP, 6, signal.SIGINT)).exitcode == 130
    assert newest_checkpoint(folder).name == "checkpoint-11"
    assert "Traceback" not in output.read_text()
    assert start(arguments).exitcode == 0
    assert_same_end(whole, folder)


def test_a_second_signal_stops_at_once(arguments, tmp_path, start, output):
    twice = [(STEP, 6, signal.SIGTERM), ("checkpoints.seal", 2, signal.SIGTERM)]
    assert start(arguments, *twice).exitcode == 143
    assert left(tmp_path / "run") == ["checkpoint-4"]
    message = output.read_text()
    assert message.endswith("error: interrupted; a training run resumes when started again\n")


def test_signals_outside_training_act_at_once(arguments, tmp_path, start):
    for sent, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        assert start(arguments, ("run.newest_checkpoint", 1, sent)).exitcode == status
        assert left(tmp_path / "run") == []


def test_handlers_are_given_back_and_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Python's own, which a shell that runs the tests in the background has taken away.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupt = signal.getsignal(signal.SIGINT)
        with StopSignals():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is not interrupt
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, earlier)
    found = []
    thread = threading.Thread(target=lambda: found.append(StopSignals().__enter__()._before))
    thread.start()
    thread.join()
    assert found == [{}]  # only the main thread may set handlers


@pytest.mark.slow
def test_of_two_processes_started_at_once_one_trains(arguments, tmp_path, start, output):
    """Their settings differ: the folder holds the config of the one whose model it holds."""
    folder = tmp_path / "run"
    steps = (20, 21)
    processes = [start([*arguments, f"training.steps={n}"], wait=False) for n in steps]
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert sorted(codes) == [0, 2], output.read_text()
    [line] = [line for line in output.read_text().splitlines() if line.startswith("error: ")]
    assert line == f"error: output: another process is training in {folder}"
    trained = steps[codes.index(0)]
    assert f"steps: {trained}\n" in (folder / "config.yaml").read_text()
    assert json.loads((folder / "scores.json").read_text())["dev"]["steps"] == trained
    assert not list(tmp_path.rglob(".*"))


@pytest.fixture
def disk(tmp_path):
    """A disk of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# What is written when the disk is full, and the checkpoint that is left then.
FULL = {
    "cache": ("text.load_training_data", 1, None),
    "checkpoint": ("checkpoints.writing", 2, "checkpoint-4"),
    "optimiser": ("resuming.torch.save", 4, "checkpoint-4"),
    "state": ("resuming.asdict", 2, "checkpoint-4"),
    "log": (STEP, 6, "checkpoint-4"),
    "export": ("run.filling", 1, "checkpoint-20"),
    "scores": ("run.save_scores", 1, "checkpoint-20"),
    "seal": ("run.seal", 1, "checkpoint-20"),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", FULL)
def test_full_disk_keeps_the_last_checkpoint_and_the_run_resumes(
    arguments, disk, start, output, stage
):
    folder = disk / "run"
    arguments += [f"output={folder}", "training.log_every=1", f"data.cache={disk / 'cache'}"]
    function, number, left = FULL[stage]
    assert start(arguments, (function, number, disk)).exitcode == 1
    message = output.read_text().splitlines()[-1]
    assert message.startswith("error: no space left on the disk")
    assert "Traceback" not in output.read_text()
    newest = newest_checkpoint(folder)
    assert (newest.name if newest else None) == left
    assert not list(disk.rglob(".*"))
    assert left or list((disk / "cache").iterdir()) == []
    assert not (folder / sealing.MANIFEST).exists()
    (disk / "filler").unlink()
    assert start(arguments).exitcode == 0
    assert left is None or f"resuming from {newest}\n" in output.read_text()


def test_a_file_that_may_not_grow_is_one_line(arguments, tmp_path, whole, start, output):
    # Where no small disk can be made: the system refuses files beyond a size.
    assert start(arguments, largest_file=2_000_000).exitcode == 1  # the optimiser's file is larger
    assert output.read_text().splitlines()[-1].startswith("error: no space left on the disk")
    assert left(tmp_path / "run") == []
    assert start(arguments).exitcode == 0
    assert_same_end(whole, tmp_path / "run")


def resident_megabytes(process):
    """Memory of a process that is in its RAM; ``None`` once it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else None


def last_step(folder: Path) -> int:
    """Step of the last whole line of a log that is being written."""
    try:
        lines = (folder / "log.jsonl").read_text().split("\n")[:-1]
    except OSError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


@pytest.mark.soak
def test_soak(arguments, tmp_path, start, output):
    """2,000 steps with a checkpoint every 50: once in peace, once with 20 kills at random steps.

    Every second kill waits for the next checkpoint and falls into its writing.
    """
    steps, kills = 2000, 20
    arguments = [*arguments, f"training.steps={steps}", "evaluation.every=50"]
    arguments += ["training.keep_checkpoints=2", "training.learning_rate=1e-4"]
    print(f"\nsoak: {steps:,} steps, a checkpoint every 50, batches of 8, one thread")

    memory = []  # (step, megabytes)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    started = time.monotonic()
    process = start([*arguments, f"output={whole}"], wait=False)
    while process.exitcode is None:
        if (megabytes := resident_megabytes(process)) is not None:
            memory.append((last_step(whole), megabytes))
        process.join(0.25)
    assert process.exitcode == 0
    print(f"uninterrupted: {time.monotonic() - started:.0f} s")
    if memory:  # where there is a /proc
        quarters = [
            statistics.median(m for step, m in memory if low < step <= low + steps // 4)
            for low in range(0, steps, steps // 4)
        ]
        words = ", ".join(f"{megabytes:.0f} MB" for megabytes in quarters)
        print(f"resident memory, median of each quarter: {words}")
        assert quarters[-1] < 1.03 * quarters[1]

    moments = random.Random(2026)
    targets = sorted(moments.randrange(steps - 50) for _ in range(kills))
    halves = 0
    started = time.monotonic()

    def half_written() -> bool:
        return any(map(files.is_ours, (folder / "checkpoints").glob(".*")))

    for number, target in enumerate(targets):
        process = start(arguments, wait=False)
        while process.exitcode is None and last_step(folder) < target:
            process.join(0.02)
        if number % 2:  # the next checkpoint, while it is written
            while process.exitcode is None and not half_written():
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
        else:
            process.join(moments.uniform(0, 0.3))
        assert process.exitcode is None, "finished before it could be killed"
        process.kill()
        process.join()
        half = half_written()
        halves += half
        newest = newest_checkpoint(folder)
        print(
            f"killed at step {last_step(folder):>5,}, newest checkpoint "
            f"{newest.name if newest else 'none'}{', another half-written' if half else ''}"
        )
    assert start(arguments).exitcode == 0
    assert_same_end(whole, folder)
    compared = contents(whole)
    print(
        f"{kills} kills, {halves} while a checkpoint was written; {time.monotonic() - started:.0f} "
        f"s; equal bit for bit: {len(compared)} files ({len(compared['log']):,} lines of log)"
    )
    assert "Traceback" not in output.read_text()


HUGE = 10**15  # bytes; no machine has them


def real_want(_):
    torch.empty(HUGE, dtype=torch.uint8)


def gpu_want(_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("want", [real_want, gpu_want])
def test_out_of_memory_names_the_settings(arguments, run, monkeypatch, capsys, want):
    original = loop.backpropagate
    calls = []

    def hungry(*args):
        calls.append(1)
        if len(calls) == 6:
            want(args)
        return original(*args)

    monkeypatch.setattr(loop, "backpropagate", hungry)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith(
        "error: out of memory while training; lower training.mini_batch_size (gradient caching) or "
        "training.batch_size or data.max_length ("
    )
    assert message.count("\n") == 1
    assert newest_checkpoint(run).name == "checkpoint-4"


def test_out_of_memory_while_scoring_names_its_own_setting(arguments, monkeypatch, capsys):
    monkeypatch.setattr(setup, "evaluate", lambda *_: np.empty(HUGE, dtype=np.uint8))
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "error: out of memory while scoring; lower evaluation.batch_size (" in message


def test_other_errors_are_not_called_want_of_memory():
    with pytest.raises(RuntimeError, match="shapes"), naming_memory("here", "x"):
        raise RuntimeError("shapes differ")
    expected = pytest.raises(UserError, match="out of memory here; lower x or y")
    with expected, naming_memory("here", "x", "y"):
        raise MemoryError
