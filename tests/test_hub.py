"""Encoders and data sets by Hub name, from a Hub server on the loopback address."""

import gzip
import itertools
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SENTENCES, make_encoder
from hub_server import Hub
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from simcse import SimCSE
from simcse.cli.main import main

ENCODER = "someone/tiny-bert"
TEACHER = "someone/tiny-sentence-model"
PAPER_TEXT = "princeton-nlp/datasets-for-simcse:wiki1m_for_simcse.txt"
PAPER_NLI = "princeton-nlp/datasets-for-simcse:nli_for_simcse.csv"
TOKEN = "hf_doNotShowThisToAnybody"
RELEASE = "princeton-nlp/sup-simcse-bert-base-uncased"


@pytest.fixture(scope="module")
def hub(tmp_path_factory, text_file):
    """Serves an encoder, a sentence model, a released checkpoint, and data sets in three forms."""
    server = Hub(any_revision=True)  # mteb asks for the revisions it pins
    folder = make_encoder(tmp_path_factory.mktemp("hub"))
    files = {path.name: (path.read_bytes(), None) for path in folder.iterdir()}
    for name in (ENCODER, RELEASE):
        server.commit(server.create("model", name), "main", files, "add")
    teacher = tmp_path_factory.mktemp("teacher")
    SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32, "mean")]).save(str(teacher))
    names = (path for path in teacher.rglob("*") if path.is_file())
    files = {path.relative_to(teacher).as_posix(): (path.read_bytes(), None) for path in names}
    server.commit(server.create("model", TEACHER), "main", files, "add")
    text = text_file.read_bytes()
    lines = text.decode().splitlines()
    triplets = "".join(f"{a},{a[4:]},{b}\n" for a, b in itertools.pairwise(lines))
    server.add_dataset(
        "princeton-nlp/datasets-for-simcse",
        {
            "wiki1m_for_simcse.txt": text,
            "nli_for_simcse.csv": f"sent0,sent1,hard_neg\n{triplets}".encode(),
        },
    )
    rows = "".join(json.dumps({"text": line}) + "\n" for line in text.decode().splitlines())
    server.add_dataset("someone/sentences", {"train.jsonl": rows.encode()})
    server.add_dataset("someone/packed", {"part.txt.gz": gzip.compress(text)})
    yield server, folder
    server.close()


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


SAID = {"HF_HUB_OFFLINE": "1"}
DEAD = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody listens there
CLI = ("-c", "import sys, simcse_launcher; sys.exit(simcse_launcher.main())")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "more", "off", "expected", "from_hub"),
    [
        pytest.param(
            "unsup_bert_base", [], SAID, "96 rows with text", [PAPER_TEXT], id="unsupervised"
        ),
        pytest.param("sup_bert_base", [], DEAD, "95 rows with text", [PAPER_NLI], id="supervised"),
        pytest.param(
            "unsup_bert_base",
            [
                "data.train=someone/sentences",
                "data.revision={data}",
                "encoder.revision={encoder}",
                "objective.terms=distill_l2",
                f"objective.teacher={TEACHER}",
                "objective.teacher_revision={teacher}",
            ],
            SAID,
            "96 rows with text",
            ["someone/sentences", TEACHER],
            id="rows and teacher, pinned",
        ),
        pytest.param(
            "unsup_bert_base",
            ["data.train=someone/packed:part.txt.gz"],
            DEAD,
            "96 rows with text",
            ["someone/packed:part.txt.gz"],
            id="file",
        ),
    ],
)
def test_prefetch_then_a_run_with_the_network_off(
    client, hub, tmp_path, config, more, off, expected, from_hub
):
    server, _ = hub
    pins = {
        "encoder": server.repos["model", ENCODER]["refs"]["main"],
        "teacher": server.repos["model", TEACHER]["refs"]["main"],
        "data": server.repos["dataset", "someone/sentences"]["refs"]["main"],
    }
    settings = [*SETTINGS, f"encoder.name={ENCODER}", "training.precision=float32"]
    settings += [setting.format(**pins) for setting in more]
    answer = client(*CLI, "prefetch", config, *settings, HF_TOKEN=TOKEN)
    assert answer.returncode == 0, answer.stderr
    assert "all that the config needs is on this machine" in answer.stdout
    calls = len(server.log)
    settings.append(f"output={tmp_path / 'run'}")
    answer = client("train.py", config, *settings, HF_TOKEN=TOKEN, **off)
    assert answer.returncode == 0, answer.stderr
    assert expected in answer.stdout
    assert (tmp_path / "run" / "scores.json").is_file()
    assert len(server.log) == calls
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert TOKEN not in answer.stdout + answer.stderr
    assert not any(TOKEN.encode() in content for content in written)
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert found["encoder_commit"] == pins["encoder"]
    assert found["from_hub"] == from_hub


@pytest.mark.slow
def test_a_pinned_commit_of_the_text_is_that_commit_or_nothing(client, hub, tmp_path):
    server, _ = hub
    server.add_dataset("someone/moving", {"train.jsonl": b'{"text": "old"}\n' * 9})
    old = server.repos["dataset", "someone/moving"]["refs"]["main"]
    rows = "".join(json.dumps({"text": f"new {i}"}) + "\n" for i in range(40))
    server.add_dataset("someone/moving", {"train.jsonl": rows.encode()})
    new = server.repos["dataset", "someone/moving"]["refs"]["main"]
    assert old != new
    words = ["quickstart", *SETTINGS, "data.train=someone/moving"]
    assert client(*CLI, "prefetch", *words, f"data.revision={new}").returncode == 0
    words.append(f"output={tmp_path / 'run'}")
    answer = client("train.py", *words, f"data.revision={old}", HF_HUB_OFFLINE="1")
    assert answer.returncode == 2
    assert "someone/moving is no file here and could not be had" in answer.stderr
    answer = client("train.py", *words, f"data.revision={new}", HF_HUB_OFFLINE="1")
    assert "40 rows with text" in answer.stdout


def test_what_is_missing_offline_is_named_with_what_fetches_it(tmp_path, capsys):
    words = ["unsup_bert_base", *SETTINGS, "training.precision=float32"]
    words.append(f"output={tmp_path / 'run'}")
    assert main(["train", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: encoder.name: bert-base-uncased is neither a model folder here")
    assert line.endswith(
        f"fetch it when the Hub answers, with: simcse prefetch {shlex.join(words)}"
    )
    words = [*words, "encoder.name=mini-bert"]
    assert main(["train", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: data.train: princeton-nlp/datasets-for-simcse:wiki1m_for_simcse")
    assert "with: simcse prefetch unsup_bert_base" in line
    assert not (tmp_path / "run").exists()


def test_prefetch_names_the_evaluation_data_that_are_not_here(tmp_path, capsys, text_file):
    words = [f"data.train={text_file}", "evaluation.data=nowhere", "evaluation.dev=STSB"]
    words.append("evaluation.tasks=pairs")
    assert main(["prefetch", *words]) == 2
    output = capsys.readouterr()
    assert "encoder  mini-bert" in output.out
    assert "nowhere" in output.err
    assert "evaluation data are yours; all else is here" in output.err


@pytest.mark.slow
def test_released_checkpoint_by_name_and_again_offline(client, hub, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES) + "\n")
    arguments = ["encode", tmp_path / "a.txt", "--model", RELEASE, "--keep-length", "-o"]
    answer = client(*CLI, *arguments, tmp_path / "online.npy")
    assert answer.returncode == 0, answer.stderr
    answer = client(*CLI, *arguments, tmp_path / "offline.npy", HF_HUB_OFFLINE="1")
    assert answer.returncode == 0, answer.stderr
    online, offline = (np.load(tmp_path / f"{name}.npy") for name in ("online", "offline"))
    np.testing.assert_array_equal(online, offline)
    _, folder = hub
    cls = SimCSE(folder, pooling="cls").encode(
        SENTENCES, return_numpy=True, normalize_to_unit=False
    )
    assert online.shape == cls.shape
    assert not np.allclose(online, cls, atol=1e-3)  # the trained pooler comes on top


@pytest.mark.slow
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
        pytest.param(
            "encoder.name=someone/nothing",
            "encoder.name: someone/nothing is neither a model folder",
            marks=pytest.mark.slow,  # tests/test_publish.py asks in one process
        ),
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
