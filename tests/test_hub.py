"""Encoders and data sets by Hub name, from a Hub server on the loopback address."""

import gzip
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SENTENCES, make_encoder

from simcse import SimCSE

SERVER = ROOT.parent / "shared" / "tools" / "hub_server.py"
ENCODER = "someone/tiny-bert"
TOKEN = "hf_doNotShowThisToAnybody"
RELEASE = "princeton-nlp/sup-simcse-bert-base-uncased"

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def hub(tmp_path_factory, text_file):
    """Serves an encoder, a released checkpoint, the paper's text file and a plain data set."""
    if not SERVER.is_file():
        pytest.skip("needs ../shared/tools/hub_server.py")
    spec = importlib.util.spec_from_file_location("hub_server", SERVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.Hub(any_revision=True)  # mteb asks for the revisions it pins
    folder = make_encoder(tmp_path_factory.mktemp("hub"))
    files = {path.name: (path.read_bytes(), None) for path in folder.iterdir()}
    for name in (ENCODER, RELEASE):
        server.commit(server.create("model", name), "main", files, "add")
    text = text_file.read_bytes()
    server.add_dataset("princeton-nlp/datasets-for-simcse", {"wiki1m_for_simcse.txt": text})
    rows = "".join(json.dumps({"text": line}) + "\n" for line in text.decode().splitlines())
    server.add_dataset("someone/sentences", {"train.jsonl": rows.encode()})
    server.add_dataset("someone/packed", {"part.txt.gz": gzip.compress(text)})
    yield server, folder
    server.server.shutdown()


@pytest.fixture
def client(hub, tmp_path):
    """Run Python where the Hub is the server; huggingface_hub reads its address at import."""
    server, _ = hub
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {
        "HF_ENDPOINT": server.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "SIMCSE_CACHE": str(tmp_path / "cache"),
    }

    def client(*command, **more):
        return subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT, capture_output=True, text=True, env=environment | more,
        )  # fmt: skip

    return client


SETTINGS = [
    "training.steps=2",
    "training.batch_size=8",
    "evaluation.data=null",
    "evaluation.dev=pairs",
    "evaluation.tasks=pairs",
    "evaluation.raw_poolings=[]",
]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="paper"),
        pytest.param("someone/sentences", id="rows", marks=pytest.mark.slow),
        pytest.param("someone/packed:part.txt.gz", id="file", marks=pytest.mark.slow),
    ],
)
def test_a_run_with_hub_names(client, tmp_path, text):
    settings = [*SETTINGS, f"encoder.name={ENCODER}", "training.precision=float32"]
    settings += [f"data.train={text}"] if text else []
    command = ["train.py", "unsup_bert_base", *settings, f"output={tmp_path / 'run'}"]
    answer = client(*command, HF_TOKEN=TOKEN)
    assert answer.returncode == 0, answer.stderr
    assert "96 rows with text, 0 empty" in answer.stdout
    assert (tmp_path / "run" / "scores.json").is_file()
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert TOKEN not in answer.stdout + answer.stderr
    assert not any(TOKEN.encode() in content for content in written)


def test_released_checkpoint_by_name_and_again_offline(client, hub, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES) + "\n")
    encode = ("-c", "import sys, simcse_launcher; sys.exit(simcse_launcher.main())")
    arguments = ["encode", tmp_path / "a.txt", "--model", RELEASE, "--keep-length", "-o"]
    answer = client(*encode, *arguments, tmp_path / "online.npy")
    assert answer.returncode == 0, answer.stderr
    answer = client(*encode, *arguments, tmp_path / "offline.npy", HF_HUB_OFFLINE="1")
    assert answer.returncode == 0, answer.stderr
    online, offline = (np.load(tmp_path / f"{name}.npy") for name in ("online", "offline"))
    np.testing.assert_array_equal(online, offline)
    _, folder = hub
    cls = SimCSE(folder, pooling="cls").encode(
        SENTENCES, return_numpy=True, normalize_to_unit=False
    )
    assert online.shape == cls.shape
    assert not np.allclose(online, cls, atol=1e-3)  # the trained pooler comes on top


def test_mteb_tasks_and_a_model_by_name(client, hub, tmp_path):
    server, _ = hub
    rows = [
        {"sentence1": a, "sentence2": b, "score": (3 * i + 5 * j) % 6}
        for i, a in enumerate(SENTENCES)
        for j, b in enumerate(SENTENCES)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    server.add_dataset("mteb/sts13-sts", {"test.jsonl": text.encode()})
    output = tmp_path / "out" / "scores.json"
    command = ["evaluate.py", ENCODER, "--tasks", "mteb:STS13", "-o", output]
    answer = client(*command)
    assert answer.returncode == 0, answer.stderr
    scores = json.loads(output.read_text())["scores"]
    assert scores["mteb:STS13"]["dataset"].startswith("mteb/sts13-sts at 7e90230a92c1")
    folder = tmp_path / "out" / "mteb" / "results" / "someone__tiny-bert"
    [revision] = folder.iterdir()
    assert revision.name == server.repos["model", ENCODER]["refs"]["main"]
    assert {p.name for p in revision.iterdir()} >= {"STS13.json"}
    meta = json.loads((revision / "model_meta.json").read_text())
    assert (meta["name"], meta["revision"]) == (ENCODER, revision.name)
    again = client(*command, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert json.loads(output.read_text())["scores"] == scores


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("encoder.name=someone/nothing", "encoder.name: someone/nothing is neither a model folder"),
        pytest.param(
            "data.train=someone/nothing",
            "data.train: someone/nothing is no file here",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "data.train=someone/packed:no.txt",
            "data.train: someone/packed:no.txt is no file here",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(client, tmp_path, setting, expected):
    settings = [*SETTINGS, "encoder.name=mini-bert", "training.precision=float32", setting]
    command = ["train.py", "unsup_bert_base", *settings, f"output={tmp_path / 'run'}"]
    answer = client(*command, HF_TOKEN=TOKEN)
    assert answer.returncode == 2
    assert expected in answer.stderr
    assert TOKEN not in answer.stdout + answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
