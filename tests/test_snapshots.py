"""What a run takes from the Hub: from the cache at once, else downloaded, else one line."""

import json
import sys

import httpx2
import pytest
from conftest import SENTENCES, make_encoder
from hub_server import LOOP, PAGE, RESET, SILENCE, SLOW, only_hub
from huggingface_hub import constants, hf_hub_download
from transformers import dynamic_module_utils

from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.errors import HubUnreachableError, UserError
from simcse.hub.failures import masked, with_retries
from simcse.hub.snapshots import model_files, snapshot

NAME = "someone/tiny"
EVERYTHING = ("GET", "."), ("HEAD", ".")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Of a sentence-transformers model and what else repositories have."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "model"))
    encoder.save(encoder.build(EncoderConfig(name=str(make_encoder(source)))), folder)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): (path.read_bytes(), None) for path in paths}
    return files | {"onnx/model.onnx": (b"x", None), "notes.md": (b"x", None)}


@pytest.fixture
def hub(monkeypatch, tmp_path, files):
    with only_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.commit(hub.create("model", NAME), "main", files, "add")
        yield hub


def fail_always(hub, fault):
    hub.faults = {calls: [fault] * 999 for calls in EVERYTHING}


def encode(tmp_path, model=NAME):
    snapshot.cache_clear()  # as in a process of its own
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES))
    return main(
        ["encode", str(tmp_path / "a.txt"), "-o", str(tmp_path / "a.npy"), "--model", model]
    )


SETTINGS = ["quickstart", "training.steps=2", "training.batch_size=8", "evaluation.dev=pairs"]
SETTINGS += ["evaluation.tasks=pairs", "evaluation.raw_poolings=mean", "training.precision=float32"]


def test_what_is_cached_is_used_without_a_word_to_or_of_the_hub(hub, tmp_path, capsys, text_file):
    words = [*SETTINGS, f"encoder.name={NAME}", "data.train=someone/text:a.txt"]
    words += ["objective.terms=distill_l2", f"objective.teacher={NAME}"]
    hub.add_dataset("someone/text", {"a.txt": text_file.read_bytes()})
    assert main(["prefetch", *words]) == 0
    lines = [f"{name}: downloading from the Hub" for name in (NAME, "someone/text")]
    assert capsys.readouterr().err.splitlines() == lines
    fail_always(hub, RESET)
    hub.log.clear()
    snapshot.cache_clear()
    assert main(["train", *words, f"output={tmp_path / 'run'}"]) == 0
    assert encode(tmp_path) == 0
    scores = tmp_path / "scores.json"
    assert main(["evaluate", NAME, "--tasks", "pairs", "-o", str(scores)]) == 0
    assert hub.log == []
    output = capsys.readouterr()
    assert "error" not in output.err
    assert "Hub" not in output.out + output.err
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["encoder_commit"] == hub.repos["model", NAME]["refs"]["main"]
    assert str(tmp_path) not in (tmp_path / "run" / "config.json").read_text()


@pytest.mark.parametrize("fault", [RESET, 503, "closed", SILENCE])
def test_a_refresh_without_an_answer_leaves_what_is_here(hub, capsys, fault, monkeypatch):
    monkeypatch.setattr("simcse.hub.failures.QUESTION_TIMEOUT", httpx2.Timeout(0.2))
    before = snapshot(NAME)
    fail_always(hub, fault)
    if fault == "closed":
        hub.close()
    assert snapshot(NAME, refresh=True) == before
    assert f"{NAME}: what is here is used: look for {NAME}: the Hub" in capsys.readouterr().err


def test_a_branch_stays_until_it_is_refreshed(hub, files):
    old = snapshot(NAME)
    moved = files | {"tokenizer_config.json": (b'{"model_max_length": 32}', None)}
    new = hub.commit(hub.repos["model", NAME], "main", moved, "another tokenizer")
    snapshot.cache_clear()
    assert snapshot(NAME) == old
    hub.faults = {("GET", "/resolve/"): [500] * 9}
    assert snapshot(NAME, refresh=True) == old  # it could not all be had
    snapshot.cache_clear()
    assert snapshot(NAME) == old
    hub.faults = {}
    assert snapshot(NAME, refresh=True).name == new
    snapshot.cache_clear()
    assert snapshot(NAME).name == new
    assert snapshot(NAME, old.name) == old


def test_part_of_a_model_is_completed_or_refused(hub, tmp_path, capsys):
    hub.faults = {("GET", "safetensors"): [404]}
    assert encode(tmp_path) == 2
    fail_always(hub, 503)
    for name in ("modules.json", "model.safetensors"):  # without the first it is another model
        assert encode(tmp_path) == 2
        hub.faults = {}
        folder = snapshot(NAME)
        assert {path.name for path in folder.iterdir()} >= {"modules.json", "1_Pooling"}
        (folder / name).unlink()
        fail_always(hub, 503)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "the Hub answered 404" in errors[0]
    assert all("503" in line and line.endswith("when the Hub answers") for line in errors[1:])


def test_what_another_program_has_cached_is_used_when_the_hub_is_silent(hub, tmp_path, files):
    for path in files.keys() - {"notes.md", "onnx/model.onnx"}:
        hf_hub_download(NAME, path)  # as transformers does: file by file, without a list
    fail_always(hub, 503)
    assert encode(tmp_path) == 0
    hub.add_dataset("someone/rows", {"a.jsonl": b"{}", "b.jsonl": b"{}"})
    hub.faults = {}
    hf_hub_download("someone/rows", "a.jsonl", repo_type="dataset")
    fail_always(hub, 503)
    assert snapshot("someone/rows", None, "dataset", "a.jsonl").is_dir()
    with pytest.raises(HubUnreachableError):  # nobody knows which rows are not here
        snapshot("someone/rows", None, "dataset")


def test_what_is_downloaded_is_what_the_libraries_load(hub):
    folder = snapshot(NAME)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names >= {"config.json", "model.safetensors", "1_Pooling/config.json", "tokenizer.json"}
    assert not names & {"onnx/model.onnx", "notes.md"}
    two = ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "2_Dense/pytorch_model.bin"]
    assert model_files(two) == ["model.safetensors", "2_Dense/pytorch_model.bin"]
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    others = ["checkpoint-500/model.safetensors", "model.fp16.safetensors", "training_args.bin"]
    assert model_files([*parts, "spiece.model", "custom.py", *others]) == [
        *parts, "spiece.model", "custom.py",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (RESET, "cannot be reached (ReadError: [Errno 104] Connection reset by peer) (3 attempts)"),
        ("closed", "cannot be reached (ConnectError: [Errno 111] Connection refused) (3 attempts)"),
        (SILENCE, "cannot be reached (ReadTimeout: timed out) (3 attempts)"),
        (PAGE, "answered 503: <html>Sorry</html> (3 attempts)"),
        (429, "answered 429: injected failure (3 attempts)"),
        (404, "answered 404: injected failure"),
        (LOOP, "cannot be reached (TooManyRedirects: Exceeded maximum allowed redirects.)"),
        ((200, b"<html>"), "'s answer is not JSON (3 attempts)"),
        ((200, b'{"id": "some'), "'s answer is not JSON (3 attempts)"),
        ((200, {}), "'s answer makes no sense (KeyError: 'id')"),
        ((200, []), "'s answer makes no sense (TypeError: "),
        ((200, {"id": NAME}), "'s answer makes no sense (AssertionError: Repo info"),
    ],
)
def test_a_hub_that_fails_is_one_line(hub, tmp_path, capsys, monkeypatch, fault, expected):
    monkeypatch.setattr("simcse.hub.failures.QUESTION_TIMEOUT", httpx2.Timeout(0.2))
    fail_always(hub, fault)
    if fault == "closed":
        hub.close()
    assert encode(tmp_path) == 2
    *again, line = capsys.readouterr().err.splitlines()
    start = f"error: {NAME} is neither a model folder here nor could it be had from the Hugging"
    assert line.startswith(start)
    assert f"the Hub{expected}" in line.replace("the Hub ", "the Hub")
    assert [f"({n} of 3)" in words for n, words in enumerate(again, 2)] == [True] * len(hub.waited)
    assert sum(hub.waited) <= 3


@pytest.mark.parametrize("fault", [RESET, 503, LOOP, SLOW, (200, {}), (200, b"{")])
@pytest.mark.parametrize("call", [("GET", "/tree/"), ("HEAD", "/resolve/"), ("GET", "/resolve/")])
def test_a_hub_that_fails_midway_is_one_error(hub, fault, call):
    hub.faults = {call: [fault] * 999}
    if fault == SLOW:
        hub.faults = {call: [fault]}
        assert (snapshot(NAME) / "modules.json").is_file()
        return
    with pytest.raises(UserError) as error:
        snapshot(NAME)
    assert "\n" not in str(error.value)


def test_secrets_are_in_no_message(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("//", "//user:s3cret@"))
    hub.faults = {("GET", "."): [SLOW, LOOP] + [500] * 9}
    assert encode(tmp_path) == 2
    monkeypatch.setenv("HF_TOKEN", "hf_forbidden\x07here")  # quoted by the client's HTTP library
    assert encode(tmp_path) == 2
    monkeypatch.setenv("HF_TOKEN", "hf_gehéim")
    assert encode(tmp_path) == 2
    error = capsys.readouterr().err
    assert "the token is not ASCII; log in" in error.splitlines()[-1]
    assert not [secret for secret in ("s3cret", "forbidden", "heim") if secret in error]
    text = "got https://user:s3cret@hub/x\nand hf_gehéim"
    assert masked(text) == "got https://***@hub/x and ***"


@pytest.mark.parametrize("where", ["", "someone/code--"])
def test_code_that_the_user_trusts_may_lie_in_another_repository(
    hub, files, tmp_path, monkeypatch, where
):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = json.loads(files["config.json"][0]) | {"model_type": "own"}
    config["auto_map"] = {"AutoConfig": f"{where}own.Own", "AutoModel": f"{where}own.Net"}
    code = "from transformers import BertConfig, BertModel\n"
    code += "class Own(BertConfig):\n    model_type = 'own'\n"
    code += "class Net(BertModel):\n    config_class = Own\n"
    home = "someone/code" if where else "someone/own"
    for name in ("someone/own", "someone/code"):
        content = {**files, "config.json": (json.dumps(config).encode(), None)}
        content |= {"own.py": (code.encode(), None)} if name == home else {}
        hub.commit(hub.create("model", name), "main", content, "add")
    settings = {"name": "someone/own", "trust_remote_code": True}
    model = encoder.build(EncoderConfig(**settings))
    assert type(encoder.transformer_of(model).model).__name__ == "Net"


def test_an_answer_outside_of_the_client_is_one_line():
    request = httpx2.Request("GET", "https://hub.example/api")

    def call():
        httpx2.Response(404, request=request).raise_for_status()

    with pytest.raises(UserError, match=r"^look for it: the Hub answered 404$"):
        with_retries(call, "look for it", attempts=2)
