"""Several data sets in one run: what is read, which batches there are, resuming, the card."""

import json
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import log
from safetensors.torch import load_file
from test_documents import made_up

from simcse.cli.main import main
from simcse.config.reading import load_config
from simcse.data import documents
from simcse.encoders import encoder
from simcse.errors import UserError
from simcse.training import loop, several
from simcse.training.progress import Progress
from simcse.training.text import TrainingText


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Documents, triplets, labelled text and sentences, in a config of four sets."""
    root = tmp_path_factory.mktemp("sets")
    (root / "docs").mkdir()
    for number in range(40):
        (root / "docs" / f"{number}.txt").write_text(made_up(number))
    triplets = [f"anchor {i},positive {i},a negative {i}" for i in range(32)]
    (root / "t.csv").write_text("\n".join(["anchor,positive,negative", *triplets]))
    (root / "l.csv").write_text(
        "\n".join(["text,label", *(f"text {i},{i % 5}" for i in range(24))])
    )
    (root / "s.txt").write_text("\n".join(f"Sentence number {i} stands here." for i in range(70)))
    return [
        {"train": str(root / "docs"), "held_out": 0.4, "passage": 4},
        {"train": str(root / "t.csv"), "form": "pairs"},
        {"train": str(root / "l.csv"), "form": "labelled"},
        {"train": str(root / "s.txt")},
    ]


@pytest.fixture
def four(arguments, sets):
    """Arguments of a run over all four."""
    path = Path(arguments[1])
    values = yaml.safe_load(path.read_text())
    values["data"] = [dict(data) for data in sets]
    values["training"]["steps"] = 24
    values["evaluation"] |= {"every": 12, "dev": "documents", "tasks": ["documents"]}
    path.write_text(yaml.safe_dump(values))
    return arguments


@pytest.fixture
def batches(monkeypatch):
    """Columns, texts and labels of every batch that is trained on."""
    found, original = [], loop.backpropagate

    def seen(accelerator, loss, features):
        labels = features.get("labels")
        found.append((features["identities"].tolist(), labels is not None))
        return original(accelerator, loss, features)

    monkeypatch.setattr(loop, "backpropagate", seen)
    return found


def test_each_batch_is_from_one_set_and_the_documents_are_read_once(
    four, run, batches, monkeypatch, capsys
):
    built, original = [], documents.Documents.__init__
    monkeypatch.setattr(
        documents.Documents,
        "__init__",
        lambda self, config: built.append(config.title) or original(self, config),
    )
    assert main(four) == 0, capsys.readouterr().err
    assert len(built) == 1  # for training, dev score and test
    output = capsys.readouterr().out
    config = load_config(four[1])
    model = encoder.build(config.encoder)
    text = TrainingText.read(config, model)
    capsys.readouterr()
    # Columns and labels tell the sets: documents, triplets, pairs of a label, sentences.
    kinds = Counter((len(columns), labels) for columns, labels in batches)
    [of_documents, of_triplets, of_labels, of_sentences] = text.sampler.counts.tolist()
    assert of_triplets == 4 and of_labels == 2 and of_sentences == 8
    epochs = 24 / len(text.sampler)
    assert kinds[3, False] == pytest.approx(of_triplets * epochs, abs=2)
    assert set(kinds) == {(2, True), (3, False), (2, False)}
    triplets = {
        hash_ for columns, _ in batches if len(columns) == 3 for c in columns for hash_ in c
    }
    others = {h for columns, _ in batches if len(columns) == 2 for c in columns for h in c}
    assert not triplets & others and len(triplets) == 3 * 32
    shares = re.search(r"batches  (.*) of (\d+) in an epoch", output)
    total = of_documents + of_triplets + of_labels + of_sentences
    assert int(shares[2]) == total and f"t.csv {of_triplets / total:.1%}" in shares[1]
    assert "a row is anchor, positive, 1 hard negative" in output
    environment = json.loads((run / "environment.json").read_text())
    assert [text["rows"] for text in environment["text"]][1:] == [32, 24, 70]
    assert environment["text"][1]["counts"]["texts"] == 96
    assert len(environment["text"][1]["train"]) == 1


@pytest.mark.slow
def test_a_run_over_several_sets_resumes_bit_for_bit(four, run, batches, monkeypatch):
    assert main(four) == 0
    whole = [*batches]
    expected, entries = load_file(run / "model.safetensors"), log(run)
    batches.clear()
    shutil.rmtree(run)
    original = Progress.step

    def pressed(self, number):
        original(self, number)
        if number == 13:  # within the second epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", pressed)
        assert main(four) == 130
    assert batches == whole[:13]
    batches.clear()
    assert main(four) == 0
    assert batches == whole[12:]
    found = load_file(run / "model.safetensors")
    assert all((found[key] == value).all() for key, value in expected.items())
    assert log(run) == entries


def test_another_text_in_one_set_is_noticed(four, run, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.txt").write_text("\n".join(f"Line {i}." for i in range(40)))
    words = [*four, f"data.3.train={tmp_path}/own.txt"]
    monkeypatch.setattr(loop, "train", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(words) == 130
    (tmp_path / "own.txt").write_text("\n".join(f"Line {i}." for i in range(41)))
    assert main(words) == 2
    assert "data.train: the text has changed since" in (error := capsys.readouterr().err)
    assert "40 rows" in error


def test_weights_say_how_often_a_set_is_drawn(four, capsys):
    words = ["data=[{train: %s, weight: 1}, {train: %s, form: pairs, weight: 3}]"]
    data = [entry["train"] for entry in yaml.safe_load(Path(four[1]).read_text())["data"]]
    words = [words[0] % (data[3], data[1]), "evaluation.dev=pairs", "evaluation.tasks=pairs"]
    config = load_config(four[1], words)
    text = TrainingText.read(config, encoder.build(config.encoder))
    assert text.sampler.counts.tolist() == [3, 9]  # of 8 and 4 batches
    epochs = {0: [], 1: []}
    for _, (number, epoch, _) in zip(range(12), text.sampler.batches_from(0), strict=False):
        epochs[number].append(epoch)
    assert epochs == {0: [0, 0, 0], 1: [0, 0, 0, 0, 1, 1, 1, 1, 2]}
    used = text.used()
    assert [rows.sum() for rows in used] == [6 * 8, 32]  # of two epochs
    assert "s.txt 25.0%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["training.batch_size=40"],
            r"batch_size: 40 is more than the 32 training rows of \S+t",
        ),
        (["data.1.max_length=100"], "data.max_length: 100 is more than the 64 tokens"),
        (["objective.terms=clip"], r"clip does not use the hard negatives of \S+t.csv; name"),
    ],
)
def test_what_does_not_fit_names_its_set(four, words, expected):
    config = load_config(four[1], words)
    with pytest.raises(UserError, match=expected):
        several.train(config, [])


def test_the_card_names_all_sets(two_seeds, tmp_path, one_picture, sets):
    from conftest import reseal

    from simcse.config.reading import to_yaml

    run = tmp_path / "run"
    shutil.copytree(two_seeds / "seed-0", run)
    config = load_config(str(run / "config.yaml"), {"data": sets[1:3]})
    (run / "config.yaml").write_text(to_yaml(config))
    environment = json.loads((run / "environment.json").read_text())
    [text] = environment["text"]
    environment["text"] = [
        {**text, "train": sets[1]["train"].split()},
        {**text, "train": sets[2]["train"].split(), "rows": 1234},
    ]
    (run / "environment.json").write_text(json.dumps(environment))
    reseal(run)
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "on t.csv, l.csv." in card
    assert "- **rows** of t.csv: 96 (SHA-256" in card and "- **rows** of l.csv: 1,234 (" in card
    assert str(Path(sets[1]["train"]).parent) not in card
