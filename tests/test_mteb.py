"""mteb's tasks on local files: the same numbers, and never another model's."""

import json
import shutil

import mteb
import numpy as np
import pytest
import torch
from conftest import SENTENCES
from datasets import Dataset, DatasetDict
from mteb.abstasks.sts import AbsTaskSTS

from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.encoders.encoder import fingerprint
from simcse.encoders.encoding import encode_by_length
from simcse.errors import UserError
from simcse.evaluation.mteb_tasks import (
    _check_commit,
    evaluate_mteb,
    fill_from,
    find_tasks,
)
from simcse.evaluation.protocol import EmbeddingCache, evaluate
from simcse.evaluation.sources import STS_SUBSETS, load_task

pytestmark = pytest.mark.usefixtures("any_size")


@pytest.fixture
def model(tiny):
    return encoder.build(EncoderConfig(name=str(tiny)))


@pytest.fixture
def data(tmp_path):
    """STS13, STS-B and SICK of a few pairs in SentEval's layout; equal pairs among them."""
    random = np.random.default_rng(0)
    words = " ".join(SENTENCES).split()

    def sentence():
        return " ".join(random.choice(words, random.integers(3, 12)))

    def pairs(count):
        for _ in range(count):
            text = sentence()
            other = text if random.random() < 0.3 else sentence()
            yield text, other, round(float(random.uniform(0, 5)), 1)

    root = tmp_path / "senteval"
    for subset in STS_SUBSETS["STS13"]:
        folder = root / "STS" / "STS13-en-test"
        folder.mkdir(parents=True, exist_ok=True)
        rows = list(pairs(30))
        (folder / f"STS.input.{subset}.txt").write_text("".join(f"{a}\t{b}\n" for a, b, _ in rows))
        (folder / f"STS.gs.{subset}.txt").write_text("".join(f"{g}\n" for _, _, g in rows))
    for part in ("train", "dev", "test"):
        folder = root / "STS" / "STSBenchmark"
        folder.mkdir(parents=True, exist_ok=True)
        rows = "".join(f"g\tf\t2012\t1\t{g}\t{a}\t{b}\n" for a, b, g in pairs(30))
        (folder / f"sts-{part}.csv").write_text(rows)
    (root / "SICK").mkdir()
    for part in ("train", "trial", "test_annotated"):
        rows = "".join(f"1\t{a}\t{b}\t{g}\tX\n" for a, b, g in pairs(20))
        (root / "SICK" / f"SICK_{part}.txt").write_text(f"head\n{rows}")
    return root


def score(model, names, data, folder, name="local/model"):
    tasks = find_tasks(names)
    return evaluate_mteb(model, model.encode, name, fingerprint(model), tasks, data, folder, 32)


def test_both_routes_agree_and_say_which_sick(model, data, tmp_path):
    theirs = score(model, ["STS13", "STSBenchmark", "SICK-R"], data, tmp_path / "out")
    ours = evaluate(model.encode, [load_task(n, data) for n in ("STS13", "STSB", "SICK-R")]).scores
    for name, other in (("STS13", "mteb:STS13"), ("STSB", "mteb:STSBenchmark")):
        assert theirs[other]["cosine_spearman"] == pytest.approx(
            ours[name]["cosine_spearman"], abs=1e-6
        )
    assert theirs["mteb:SICK-R"]["source"] == "mteb, 60"  # train, trial and test
    assert ours["SICK-R"]["source"] == "SentEval, 20"
    assert theirs["mteb:SICK-R"]["cosine_spearman"] != ours["SICK-R"]["cosine_spearman"]
    saved = tmp_path / "out" / "local" / "local__model" / fingerprint(model) / "STS13.json"
    result = json.loads(saved.read_text())
    assert result["task_name"] == "STS13"
    assert result["dataset_revision"] == "local files in SentEval's layout"


def test_local_text_keeps_its_spaces_as_mtebs_own_data_do(data):
    path = data / "STS" / "STSBenchmark" / "sts-test.csv"
    path.write_text(path.read_text() + "g\tf\t2012\t1\t3\tTwo  spaces. \tOne space.\n")
    [task] = find_tasks(["STSBenchmark"])
    assert fill_from(data, task)
    assert task.dataset["test"]["sentence1"][-1] == "Two  spaces. "
    assert load_task("STSB", data).sentence1[-1] == "Two spaces."


def test_equal_to_mteb_without_this_project(model, data, tmp_path):
    ours = score(model, ["STS13"], data, tmp_path)["mteb:STS13"]["cosine_spearman"]
    task = mteb.get_task("STS13")
    rows = load_task("STS13", data)
    columns = {"sentence1": rows.sentence1, "sentence2": rows.sentence2, "score": rows.grades}
    task.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
    task.data_loaded = True
    plain = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results[0]
    assert ours == pytest.approx(plain.get_score(), abs=1e-6)


def test_each_distinct_text_is_encoded_once_for_all_tasks(model, data, tmp_path, monkeypatch):
    seen = []
    original = model.encode

    def counting(texts, **arguments):
        seen.extend(texts)
        return original(texts, **arguments)

    monkeypatch.setattr(model, "encode", counting)
    encode = EmbeddingCache(model.encode)
    evaluate(encode, [load_task("STS13", data)])
    tasks = find_tasks(["STS13", "STSBenchmark"])
    evaluate_mteb(model, encode, "local/model", "r", tasks, data, tmp_path, 32)
    assert len(seen) == len(set(seen)) > 100


@pytest.fixture
def published(monkeypatch, data):
    """The published data of STS tasks, without a Hub; counts how often it is loaded."""
    loads = []

    def load_data(self, **_):
        rows = load_task(self.metadata.name, data)
        columns = {"sentence1": rows.sentence1, "sentence2": rows.sentence2, "score": rows.grades}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True
        loads.append(self.metadata.name)

    monkeypatch.setattr(AbsTaskSTS, "load_data", load_data)
    return loads


def test_saved_results_belong_to_the_weights_not_to_the_folder(model, published, tmp_path):
    first = score(model, ["STS13"], None, tmp_path)
    assert score(model, ["STS13"], None, tmp_path) == first
    assert published == ["STS13"]  # the second time nothing was loaded
    [path] = (tmp_path / "results" / "local__model").glob("*/STS13.json")
    assert path.parent.name == fingerprint(model)
    assert json.loads(path.read_text())["dataset_revision"].startswith("7e90230a")
    with torch.no_grad():
        model[0].auto_model.embeddings.word_embeddings.weight.mul_(
            torch.randn(8192, 1, generator=torch.Generator().manual_seed(0))
        )
    other = score(model, ["STS13"], None, tmp_path)
    assert published == ["STS13", "STS13"]
    assert other["mteb:STS13"]["cosine_spearman"] != first["mteb:STS13"]["cosine_spearman"]


def test_a_damaged_result_is_named(model, published, tmp_path):
    score(model, ["STS13"], None, tmp_path)
    [path] = tmp_path.rglob("STS13.json")
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match=r"STS13\.json: damaged; remove it to score the task again"):
        score(model, ["STS13"], None, tmp_path)


def test_fingerprint_knows_weights_pooling_and_length(tiny, model):
    same = encoder.build(EncoderConfig(name=str(tiny)))
    same.encode(["A text."])  # which leaves its length in the tokenizer
    assert fingerprint(same) == fingerprint(model)
    cls = encoder.build(EncoderConfig(name=str(tiny), pooling="cls"))
    assert fingerprint(cls) != fingerprint(model)
    same.max_seq_length = 16
    assert fingerprint(same) != fingerprint(model)
    with torch.no_grad():
        model[0].auto_model.encoder.layer[0].output.dense.bias[0] += 1e-3
    assert fingerprint(model) not in (fingerprint(same), fingerprint(cls))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config.json", '"hidden_act": "gelu"', '"hidden_act": "relu"'),
        ("config.json", '"num_attention_heads": 2', '"num_attention_heads": 4'),
        ("tokenizer.json", '"lowercase": true', '"lowercase": false'),
    ],
)
def test_fingerprint_knows_architecture_and_tokenizer(tiny, model, tmp_path, file, old, new):
    shutil.copytree(tiny, tmp_path / "other")
    text = (tmp_path / "other" / file).read_text()
    assert old in text
    (tmp_path / "other" / file).write_text(text.replace(old, new))
    changed = encoder.build(EncoderConfig(name=str(tmp_path / "other")))
    assert not np.allclose(changed.encode(["A Text."]), model.encode(["A Text."]), atol=1e-4)
    assert fingerprint(changed) != fingerprint(model)
    shutil.copytree(tiny, tmp_path / "moved")
    assert fingerprint(encoder.build(EncoderConfig(name=str(tmp_path / "moved")))) == (
        fingerprint(model)
    )


def test_a_model_with_prompts_is_encoded_by_mteb(model, data, tmp_path):
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return model.encode(texts)

    [task] = find_tasks(["STS13"])
    evaluate_mteb(model, encode, "local/model", "r", [task], data, tmp_path, 32)
    assert set(encoded) == set(load_task("STS13", data).texts())
    encoded.clear()
    model.prompts = {"STS": "query: "}
    evaluate_mteb(model, encode, "local/model", "r", [task], data, tmp_path, 32)
    assert encoded == []


def test_names_of_tasks_and_benchmarks():
    assert [task.metadata.name for task in find_tasks(["STS12", "BIOSSES", "STS12"])] == [
        "STS12",
        "BIOSSES",
    ]
    assert len(find_tasks(["MTEB(eng, v2)"])) > 30
    with pytest.raises(UserError, match=r"task 'STSBenchmrk': unknown \(did you mean STSBenchmark"):
        find_tasks(["STSBenchmrk"])


def test_command_line_mixes_routes(model, data, tmp_path, capsys):
    folder, output = tmp_path / "model", tmp_path / "out" / "scores.json"
    encoder.save(model, folder)
    arguments = ["evaluate", str(folder), "--data", str(data), "-o", str(output)]
    assert main([*arguments, "--tasks", "STS13,mteb:STS13"]) == 0
    text = capsys.readouterr().out
    assert "STS13 (mteb)" in text
    scores = json.loads(output.read_text())["scores"]
    assert list(scores) == ["STS13", "mteb:STS13", "geometry"]
    assert main(arguments) == 0  # with a folder: all STS tasks that it holds
    text = capsys.readouterr().out
    assert "SICK-R (SentEval, 20)" in text
    assert "not in" in text and "STS12, STS14, STS15, STS16" in text
    # mteb's own STSB is a Chinese one; what is meant is the benchmark.
    assert main([*arguments, "--tasks", "mteb:STSB", "--against", "bert-base-unsup/SimCSE"]) == 0
    text = capsys.readouterr().out
    assert "STSBenchmark (mteb)" in text
    [_, row] = [line for line in text.splitlines() if line.startswith("model  ")]
    assert len(row.split()) == 2  # the score of mteb's STSBenchmark stands in its column
    assert main([*arguments, "--tasks", "STS13,nonsense-xyz"]) == 2
    assert "task 'nonsense-xyz': unknown" in capsys.readouterr().err


def test_data_that_cannot_be_loaded_is_one_line(model, tmp_path):
    with pytest.raises(UserError, match="task mteb:BIOSSES: cannot load mteb/biosses-sts at d3fb"):
        score(model, ["BIOSSES"], None, tmp_path)


@pytest.mark.slow
@pytest.mark.shared
def test_real_tasks_by_both_routes(senteval, tmp_path):
    model = encoder.build(EncoderConfig())
    theirs = score(model, ["STSBenchmark"], senteval, tmp_path)["mteb:STSBenchmark"]
    ours = evaluate(lambda t: encode_by_length(model, t, 64), [load_task("STSB", senteval)]).scores
    assert theirs["cosine_spearman"] == pytest.approx(ours["STSB"]["cosine_spearman"], abs=1e-6)


def test_data_of_another_commit_than_mteb_pins_are_refused(tmp_path):
    task = mteb.get_task("STS14")
    for commit in (task.metadata.dataset["revision"], "0" * 40):
        folder = tmp_path / commit
        folder.mkdir()
        Dataset.from_dict({"sentence1": ["a"]}).save_to_disk(tmp_path / "saved")
        [file] = (tmp_path / "saved").glob("*.arrow")
        task.dataset = DatasetDict(
            {"test": Dataset.from_file(str(file.rename(folder / "a.arrow")))}
        )
        if commit == "0" * 40:
            with pytest.raises(UserError, match=f"mteb:STS14: mteb/sts14-sts is here at {commit}"):
                _check_commit(task)
        else:
            _check_commit(task)


def test_a_task_that_cannot_be_had_leaves_no_folder(model, tmp_path, monkeypatch, capsys):
    task = type(mteb.get_task("STS12"))

    def fails(self, **_):
        raise OSError("no answer")

    monkeypatch.setattr(task, "load_data", fails)
    output = tmp_path / "new" / "scores.json"
    encoder.save(model, tmp_path / "model")
    words = ["evaluate", str(tmp_path / "model"), "--tasks", "mteb:STS12", "-o", str(output)]
    assert main(words) == 2
    assert "task mteb:STS12: cannot load" in capsys.readouterr().err
    assert not output.parent.exists()
