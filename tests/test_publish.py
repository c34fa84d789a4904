"""Publishing to a Hub server on the loopback address: what arrives, what is refused, what fails."""

import errno
import hashlib
import os
import tempfile

import httpx2
import numpy as np
import pytest
from conftest import SENTENCES
from hub_server import HANG_UP, LOOP, PAGE, SILENCE, commits, only_hub, tree
from huggingface_hub import ModelCard, constants
from sentence_transformers import SentenceTransformer

from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.training.checkpoint_pushes import CheckpointPushes

NAME = "me/small"
SLOW = pytest.mark.slow
LFS = r"^/lfs/"


@pytest.fixture
def run(two_seeds):
    return two_seeds / "seed-0"


@pytest.fixture
def hub(monkeypatch, one_picture, tmp_path):
    with only_hub(monkeypatch, tmp_path / "hub-cache", lfs_bytes=1 << 16) as hub:
        yield hub


def publish(run, *options, name=NAME):
    return main(["publish", str(run), name, *options])


def contents(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_new_repository_is_private_whole_and_checked(hub, run, capsys):
    before = contents(run)
    assert publish(run) == 0
    assert contents(run) == before
    assert hub.private == {NAME}
    output = capsys.readouterr().out
    assert f"created {NAME}, private" in output
    assert "verified: downloaded into a fresh cache" in output
    files = tree(hub, NAME)
    assert {"README.md", "config.json", "modules.json", "1_Pooling/config.json"} <= set(files)
    assert "figures/loss.png" in files
    assert not {"config.yaml", "log.jsonl", "environment.json", "scores.npz"} & set(files)
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    sent_apart = [path for method, path in hub.log if method == "PUT" and "/lfs/" in path]
    assert len(sent_apart) >= 1  # weights by LFS, the card in the commit
    assert ModelCard(files["README.md"].decode()).data.pipeline_tag == "sentence-similarity"


def test_again_sends_nothing_and_a_change_only_itself(hub, run, capsys):
    assert publish(run, "--message", "first") == 0
    count, puts = commits(hub, NAME), sum(method == "PUT" for method, _ in hub.log)
    assert publish(run) == 0
    assert commits(hub, NAME) == count
    assert sum(method == "PUT" for method, _ in hub.log) == puts
    repository = hub.repos["model", NAME]
    stale = {
        "figures/old.png": (b"x", None),
        "notes.txt": (b"mine", None),
        "data/my.bin": (b"mine", None),
        "adapters/lora.safetensors": (b"mine", None),
        "model-00001-of-00002.safetensors": (b"old weights", None),
        "README.md": (b"", None),
    }
    hub.commit(
        repository, "main", {**repository["commits"][repository["refs"]["main"]], **stale}, ""
    )
    assert publish(run) == 0
    files = tree(hub, NAME)
    assert "figures/old.png" not in files
    assert "model-00001-of-00002.safetensors" not in files
    for mine in ("notes.txt", "data/my.bin", "adapters/lora.safetensors"):
        assert files[mine] == b"mine"
    assert len(files["README.md"]) > 1000
    assert sum(method == "PUT" for method, _ in hub.log) == puts


@SLOW
def test_branch_and_public(hub, run, capsys):
    assert publish(run, "--revision", "v2", "--message", "second try") == 0
    assert "model.safetensors" not in tree(hub, NAME)
    assert "model.safetensors" in tree(hub, NAME, "v2")
    assert publish(run, "--public") == 0
    assert hub.private == set()
    assert publish(run) == 0
    assert "stays so" in capsys.readouterr().out
    assert publish(run, "--public", name="me/open") == 0
    assert hub.private == set()


def test_the_best_seed_by_dev_with_the_scores_of_all(hub, two_seeds):
    assert publish(two_seeds) == 0
    files = tree(hub, NAME)
    assert files["model.safetensors"] in [
        (two_seeds / f"seed-{n}" / "model.safetensors").read_bytes() for n in (0, 1)
    ]
    assert "2 seeds" in files["README.md"].decode()


def test_dry_run_sends_nothing(hub, run, capsys):
    assert publish(run, "--dry-run") == 0
    assert hub.log == []
    output = capsys.readouterr().out
    size = (run / "model.safetensors").stat().st_size
    assert f"{size:,}  model.safetensors" in output
    assert "pipeline_tag: sentence-similarity" in output
    assert "private" in output


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({("POST", "/repos/create"): [500, 503]}, id="create", marks=SLOW),
        pytest.param({("PUT", LFS): [HANG_UP]}, id="weights hang up"),
        pytest.param({("PUT", LFS): [503, 500]}, id="weights 503", marks=SLOW),
        pytest.param({("POST", "/commit/"): [HANG_UP, 500]}, id="commit", marks=SLOW),
        pytest.param({("GET", "/resolve/"): [HANG_UP, 503]}, id="download", marks=SLOW),
        pytest.param({("POST", "/preupload/"): [429]}, id="rate limit", marks=SLOW),
        pytest.param({("POST", "validate-yaml"): [PAGE]}, id="HTML page", marks=SLOW),
    ],
)
def test_what_passes_is_tried_again(hub, run, faults, capsys):
    hub.faults = faults
    assert publish(run) == 0
    assert not any(faults.values())
    assert hub.waited
    assert "verified" in capsys.readouterr().out


@pytest.mark.parametrize(
    "call",
    [("POST", "/repos/create"), pytest.param(("POST", "/commit/"), marks=pytest.mark.slow)],
)
def test_a_hub_that_says_nothing_is_not_waited_for(hub, run, monkeypatch, capsys, call):
    monkeypatch.setattr("simcse.hub.failures.TIMEOUT", httpx2.Timeout(0.5))
    hub.faults = {call: [SILENCE]}
    assert publish(run) == 0
    assert "cannot be reached (ReadTimeout: " in capsys.readouterr().err


def test_interrupted_for_good_and_repeated(hub, run, capsys):
    before = contents(run)
    hub.faults = {("POST", "/commit/"): [500] * 2}
    assert publish(run, "--retries", "1") == 2
    error = capsys.readouterr().err
    assert "trying again in 1 s (2 of 2)" in error
    assert error.splitlines()[-1].startswith("error: push to me/small: the Hub answered 500")
    assert "repeat the command" in error.splitlines()[-1]
    assert contents(run) == before
    puts = sum(method == "PUT" for method, _ in hub.log)
    assert publish(run) == 0
    assert sum(method == "PUT" for method, _ in hub.log) == puts  # the weights were there already


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ({("POST", "/repos/create"): [403]}, "may not do this; log in with `hf auth login`"),
        ({("POST", "/preupload/"): [401]}, "push to me/small: the Hub refused (401)"),
        ({("POST", "/commit/"): [404]}, "push to me/small: the Hub answered 404"),
    ],
)
def test_what_does_not_pass_is_one_line_at_once(hub, run, faults, expected, capsys):
    hub.faults = faults
    assert publish(run) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "trying again" not in error
    assert "Traceback" not in error
    assert hub.waited == []


@pytest.mark.parametrize(
    ("call", "answer", "expected"),
    [
        (("GET", "/api/models"), (200, {}), "look for me/small: the Hub's answer makes no sense"),
        (("POST", "/create"), (200, {}), "create me/small: the Hub's answer makes no sense"),
        (
            ("GET", "/api/models"),
            LOOP,
            "look for me/small: the Hub cannot be reached (TooManyRedirects",
        ),
        (
            ("POST", "/batch"),
            (
                200,
                {"objects": [{"oid": "0" * 64, "size": 1, "error": {"code": 1, "message": "big"}}]},
            ),
            "push to me/small: the Hub's answer makes no sense (ValueError: LFS batch API returned",
        ),
    ],
)
def test_an_odd_answer_is_one_line_at_once(hub, run, call, answer, expected, capsys):
    hub.faults = {call: [answer] * 99}
    assert publish(run) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert hub.waited == []


def test_a_token_that_is_wrong_or_missing(hub, run, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert publish(run) == 2
    assert "the Hub refused (401): the token is not valid" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert publish(run) == 2
    assert "hf auth login" in capsys.readouterr().err
    assert hub.repos == {}


def test_no_hub_at_all(hub, run, monkeypatch, capsys):
    hub.close()
    before = contents(run)
    assert publish(run, "--retries", "2") == 2
    error = capsys.readouterr().err
    assert "the Hub cannot be reached (ConnectError" in error
    assert "(3 attempts); nothing here was changed; repeat the command" in error
    assert hub.waited[-2:] == [1.0, 2.0]
    assert contents(run) == before


def test_offline_is_named(hub, run, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert publish(run) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_what_came_back_different_is_noticed(hub, run, capsys):
    hub.tamper = {"/1_Pooling/config.json": lambda content: content.replace(b"true", b"True")}
    assert publish(run) == 2
    assert "1_Pooling/config.json came back different" in capsys.readouterr().err
    hub.tamper = {"/1_Pooling/config.json": lambda content: content[:-9]}
    assert publish(run, "--retries", "0") == 2
    assert "download me/small: Consistency check failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options"),
    [("small", ()), ("a/b/c", ()), ("me/..", ()), (NAME, ("--revision", "refs/x"))],
)
def test_names_are_checked_before_anything_is_read(name, options, tmp_path, capsys):
    assert publish(tmp_path / "nothing", *options, name=name) == 2
    assert "expected the name of a" in capsys.readouterr().err


def test_only_finished_runs(tmp_path, capsys):
    assert publish(tmp_path) == 2
    assert "is no finished run" in capsys.readouterr().err


@SLOW
def test_a_run_that_pushes_its_checkpoints(hub, arguments, run_folder):
    assert main([*arguments, "hub.push_checkpoints=me/backup"]) == 0
    assert hub.private == {"me/backup"}
    files = tree(hub, "me/backup", "checkpoints")
    assert {"model.safetensors", "modules.json"} <= set(files)
    assert "2_Dense/model.safetensors" not in files  # of training only
    assert "optimizer.pt" not in files
    for path, content in files.items():
        (run_folder.parent / "pulled" / path).parent.mkdir(parents=True, exist_ok=True)
        (run_folder.parent / "pulled" / path).write_bytes(content)
    pulled = SentenceTransformer(str(run_folder.parent / "pulled"), device="cpu")
    assert pulled.encode(SENTENCES).shape == (6, 32)
    assert commits(hub, "me/backup") > 1


@SLOW
def test_checkpoints_go_to_no_public_repository(hub, arguments, run_folder, capsys):
    hub.create("model", "me/shown")
    assert main([*arguments, "hub.push_checkpoints=me/shown"]) == 0
    assert "me/shown is public" in capsys.readouterr().out
    assert "checkpoints" not in hub.repos["model", "me/shown"]["refs"]


def test_training_goes_on_without_a_hub(hub, arguments, run_folder, capsys):
    hub.close()
    assert main([*arguments, "hub.push_checkpoints=me/backup"]) == 0
    assert "not pushed" in capsys.readouterr().out
    other = run_folder.parent / "other"
    assert main([*arguments, f"output={other}"]) == 0
    pushed, plain = (
        SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)
        for folder in (run_folder, other)
    )
    np.testing.assert_array_equal(pushed, plain)


def test_a_checkpoint_that_cannot_be_copied_is_one_line(tiny, tmp_path, monkeypatch, capsys):
    def save(model, folder):
        (folder / "half.bin").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(encoder, "save", save)
    pushes = CheckpointPushes("me/backup")
    pushes.send(encoder.build(EncoderConfig(name=str(tiny))), 5)
    assert pushes.thread is None
    assert "warning: checkpoint of step 5 not pushed: " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_the_hub_does_not_have_is_not_to_be_fetched(hub, tmp_path, capsys):
    words = ["encoder.name=someone/nothing", f"output={tmp_path / 'run'}"]
    assert main(["train", *words]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "encoder.name: someone/nothing is neither a model folder" in line
    assert "prefetch" not in line
    assert any("someone/nothing" in path for _, path in hub.log)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def run_folder(tmp_path):
    return tmp_path / "run"
