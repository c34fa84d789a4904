"""The ways in: Python, ``python -m simcse``, arguments of the command line, settings in words."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT, SENTENCES
from datasets import Dataset, DatasetDict
from mteb.abstasks.sts import AbsTaskSTS
from transformers.utils import logging as transformers_logging

import simcse
from simcse import SimCSE, evaluate, load_config, train
from simcse.cli.main import main
from simcse.config.describe import settings_text
from simcse.config.reading import differences, json_schema
from simcse.config.settings import Config
from simcse.errors import UserError
from simcse.reports.runs import load_runs

SHORT = {
    "training.batch_size": 8,
    "training.steps": 4,
    "training.learning_rate": 1e-2,
    "evaluation.raw_poolings": ["mean"],
    "evaluation.dev": "pairs",
}
IN_WORDS = ["training.batch_size=8", "training.steps=4", "training.learning_rate=1e-2"]
IN_WORDS += ["evaluation.raw_poolings=mean", "evaluation.dev=pairs"]


@pytest.fixture(scope="module")
def config(tiny, text_file):
    """Of a short run, without its folder."""
    more = {"encoder.name": tiny, "data.train": [str(text_file)]}
    return load_config("quickstart", {**SHORT, **more, "evaluation.tasks": ["pairs"]})


def in_folder(config, folder, **more):
    return config.model_copy(update={"output": str(folder), **more})


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    return train(in_folder(config, tmp_path_factory.mktemp("door") / "run"))


# Python


def test_a_run_from_python_is_that_of_the_command(trained, tiny, text_file, tmp_path):
    words = [f"encoder.name={tiny}", f"data.train={text_file}", "evaluation.tasks=pairs"]
    assert main(["train", "quickstart", *IN_WORDS, *words, f"output={tmp_path / 'run'}"]) == 0
    [command] = load_runs(tmp_path / "run").runs
    assert trained.scores == command.scores
    assert trained.log == command.log
    assert trained.value("pairs") == command.scores["pairs"]["cosine_spearman"]
    assert trained.folder.name == "run" and (trained.folder / "manifest.json").is_file()


def test_the_model_of_a_run_is_loaded_when_asked_for(trained):
    again = load_runs(trained.folder).best
    assert "model" not in vars(again)
    assert isinstance(again.model, SimCSE) and again.model is again.model
    expected = SimCSE(trained.folder).encode(SENTENCES, return_numpy=True)
    np.testing.assert_array_equal(again.model.encode(SENTENCES, return_numpy=True), expected)


def test_training_again_returns_what_is_there(config, trained, capsys):
    before = (trained.folder / "scores.json").stat().st_mtime_ns
    assert train(in_folder(config, trained.folder)).scores == trained.scores
    assert (trained.folder / "scores.json").stat().st_mtime_ns == before
    assert "is finished:" in capsys.readouterr().out


@pytest.mark.slow
def test_of_several_seeds_the_best_by_dev_comes_back(config, tmp_path):
    best = train(in_folder(config, tmp_path / "runs", seeds=[3, 5]))
    runs = load_runs(tmp_path / "runs")
    assert len(runs.runs) == 2
    assert best.dev["best"] == max(run.dev["best"] for run in runs.runs)
    assert best.folder.parent == tmp_path / "runs"


def test_evaluate_gives_the_scores_of_the_command(trained, tmp_path):
    output = tmp_path / "scores.json"
    assert main(["evaluate", str(trained.folder), "--tasks", "pairs", "-o", str(output)]) == 0
    scores = json.loads(output.read_text())["scores"]
    for model in (trained.folder, str(trained.folder), trained.model, trained.model.model):
        found = evaluate(model, "pairs")
        assert json.loads(json.dumps(found.scores)) == scores
    assert found.value("geometry", "uniformity") == scores["geometry"]["uniformity"]
    assert found.value("geometry") == scores["geometry"]["alignment"]
    assert found.items["pairs.similarity"].shape == (252,)
    shown = f"pairs: {found.value('pairs'):.4f}, geometry: {found.value('geometry'):.4f})"
    assert repr(found) == f"Evaluation({shown}"
    assert repr(trained) == f"Run({str(trained.folder)!r}, {shown}"


def test_evaluate_takes_any_function_that_encodes(trained):
    def encode(texts):
        return trained.model.encode(texts, return_numpy=True)

    assert evaluate(encode, ["pairs"]).value("pairs") == pytest.approx(
        trained.value("pairs"), abs=1e-4
    )
    random = np.random.default_rng(0)
    chance = evaluate(lambda texts: random.normal(size=(len(texts), 16)), ["pairs"])
    assert abs(chance.value("pairs")) < 0.25
    with pytest.raises(UserError, match=r"encode returned shape \(\d+,\)"):
        evaluate(lambda texts: np.zeros(len(texts)), ["pairs"])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda run: evaluate(run.folder, ["STS1"]), "task 'STS1': unknown"),
        (lambda run: evaluate(run.folder, ["sts"]), "needs a folder in SentEval's layout"),
        (lambda run: evaluate(run.folder, data="/nowhere"), "data /nowhere: no such folder"),
        (lambda run: evaluate("/no/model", "pairs"), "/no/model is neither a model folder"),
        (lambda run: evaluate(len, ["mteb:STS13"]), "those of mteb need a model"),
        (lambda run: evaluate(run.model, "pairs", device="cpu"), "only for a model that is named"),
        (lambda run: run.value("STS12"), "task 'STS12': not scored; there are pairs, geometry"),
        (lambda run: run.value("pairs", "f1"), "pairs: no score 'f1'; there are cosine_spearman"),
        (lambda run: train(Config()), "output: name the run folder"),
        (lambda run: load_config("nosuch"), "config nosuch: no such file"),
        (lambda run: load_config("quickstart", {"training.stepz": 1}),
         "arguments: training.stepz: unknown key (did you mean steps?)"),
        (lambda run: load_config("quickstart", {"training.steps.x": 1}), "steps is a value, not"),
        (lambda run: load_config("quickstart", "training.steps=x"), "got 'x'"),
    ],
)  # fmt: skip
def test_a_mistake_raises_one_line(trained, call, expected):
    with pytest.raises(ValueError) as error:
        call(trained)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_overrides_as_a_mapping_are_those_of_the_command_line(tmp_path):
    values = {**SHORT, "output": tmp_path, "objective.temperature": 0.1, "data.train": "a,b.txt"}
    values["data.form"] = "documents"
    words = [f"output={tmp_path}", "objective.temperature=0.1", "data.train=a,b.txt"]
    words.append("data.form=documents")
    assert load_config("quickstart", values) == load_config("quickstart", [*IN_WORDS, *words])
    assert load_config() == load_config("quickstart")


def test_python_leaves_the_process_as_it_was(config, trained, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    state = (logging.getLogger().handlers[:], sys.stdout, sys.stderr)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    transformers_logging.enable_progress_bar()
    try:
        found = []
        thread = threading.Thread(
            target=lambda: found.append(train(in_folder(config, tmp_path / "run")))
        )
        thread.start()  # where no signal could be handled
        thread.join()
        assert found[0].scores == trained.scores
        with pytest.raises(UserError):
            evaluate(trained.folder, ["nosuch"])
        assert transformers_logging.get_verbosity() == logging.WARNING
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity(verbosity)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (logging.getLogger().handlers, sys.stdout, sys.stderr) == state


def test_importing_takes_no_library_and_offers_every_public_name():
    code = (
        "import sys, simcse\n"
        "heavy = [n for n in ('torch', 'pydantic', 'numpy', 'transformers') if n in sys.modules]\n"
        "from simcse import load_config\n"
        "print(heavy, 'torch' in sys.modules)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.split() == ["[]", "False"], answer.stderr
    assert set(simcse.__all__) <= set(dir(simcse))
    for name in simcse.__all__:
        assert getattr(simcse, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = simcse.nosuch


def test_python_m_simcse_is_the_command(tmp_path):
    command = [sys.executable, "-m", "simcse"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words, status in ((["--version"], 0), (["train", "nosuch"], 2)):
        answer = subprocess.run(
            [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert answer.returncode == status
        assert simcse.__version__ in answer.stdout or "error: config nosuch" in answer.stderr


# Arguments


@pytest.mark.parametrize(
    "words",
    [
        ["training.batch_size=12", "seed=3"],
        ["--training.batch_size=12", "--seed=3"],
        ["--training.batch_size", "12", "--seed", "3"],
        ["--seed", "3", "training.batch_size=12", "quickstart"],
        ["--dry-run", "quickstart", "--seed", "3", "training.batch_size=12"],
        ["--config", "quickstart", "--training.batch_size", "12", "seed=3"],
    ],
)
def test_settings_in_three_forms_and_any_order(words, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "simcse.training.several.train", lambda config, *_, **__: seen.append(config)
    )
    assert main(["train", *words]) == 0
    [config] = seen
    assert differences(load_config("quickstart"), config) == [
        "seed: 42 -> 3", "training.batch_size: 64 -> 12",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train --learning_rate 1e-4", "--learning_rate (did you mean training.learning_rate="),
        ("train --learning-rate=1e-4", "(did you mean training.learning_rate=VALUE?)"),
        ("train learning_rate=1e-4", "arguments: learning_rate: unknown key (did you mean train"),
        ("train training.batchsize=4", "arguments: training.batchsize: unknown key (did you mean"),
        ("train --training.batch-size 4", "training.batch-size: unknown key (did you mean batch_s"),
        ("train --traning.steps=4", "(did you mean training.steps=VALUE?)"),
        ("train --seed", "argument --seed: expected a value, as in seed=VALUE"),
        ("train --seed --dry-run", "argument --seed: expected a value, as in seed=VALUE"),
        ("train -v", "unrecognized argument: -v (nothing more is printed than always"),
        ("train quickstart --quiet", "--quiet (to see mistakes only, add > /dev/null)"),
        ("evaluate --model x", "--model (the model is named without an option: simcse evaluate"),
        ("encode a.txt -o b.npy --colour red", "--colour (see simcse encode --help)"),
        (
            "train docs.txt",
            "simcse train data.train=docs.txt evaluation.dev=pairs evaluation.tasks=",
        ),
        ("train tests", "to train on this text: simcse train data.train=tests"),
        ("train evaluation.tasks=STS99", "evaluation.tasks.0: unknown task 'STS99' (did you mean"),
        ("nosuch", "invalid choice: 'nosuch'"),
        ("settings lerning_rate", "(did you mean training.learning_rate?)"),
    ],
)
def test_a_mistake_is_told_what_would_work(words, expected, capsys):
    try:
        status = main(words.split())
    except SystemExit as error:  # argparse's
        status = error.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert expected in captured.err


def test_mistakes_of_the_file_and_of_the_arguments_are_told_apart(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {batch_size: many, steps: 3}\n")
    with pytest.raises(UserError) as error:
        load_config(path, ["training.steps=-1", "seed=x"])
    in_file, of_arguments = str(error.value).split("; arguments: ")
    assert in_file.startswith(f"{path}: training.batch_size: ") and "steps" not in in_file
    assert "seed: should be" in of_arguments and "training.steps: should be" in of_arguments
    with pytest.raises(UserError) as error:  # what only both together do
        load_config("quickstart", ["evaluation.tasks=STS12"])
    assert str(error.value).startswith("arguments: evaluation: STS12 needs data=FOLDER")


def test_other_terms_are_a_difference(config):
    other = load_config("quickstart", {"objective.terms": "decoupled"})
    assert differences(load_config("quickstart"), other) == [
        "objective.terms.info_nce.weight: 1.0 -> unset",
        "objective.terms.decoupled.weight: unset -> 1.0",
    ]  # fmt: skip


# Settings in words


def test_every_setting_has_its_meaning_in_the_schema_and_in_words(capsys):
    assert main(["settings"]) == 0
    shown = capsys.readouterr().out
    heads = {line.split("  ")[0]: line for line in shown.splitlines() if line[:1].strip()}
    names = {re.sub(r"(terms|positives|views)\..*", r"\1", key) for key in Config().settings()}
    of_terms = {key for key in heads if key.startswith("objective.terms.")}
    found = {key for key in heads if not re.search(r"\[\]|^evaluation\.dev\.", key)}
    assert found == {"base", "data", "encoder.prompts"} | names | of_terms
    assert heads["objective.terms.dino.momentum"].endswith(
        "(number at least 0 and below 1; default 0.996)"
    )
    assert heads["training.learning_rate"].endswith("(number above 0; default 3e-05)")
    assert heads["encoder.projection"].endswith('(none, train_only, always; default "none")')
    assert heads["training.steps"].endswith("(integer above 0 or null; default null)")
    assert heads["views[].dropout"].endswith(
        "(number at least 0 and below 1 or null; default null)"
    )
    assert "Gradient norm is clipped to this; 0 turns clipping off." in shown


def test_the_schema_has_a_description_of_every_setting_and_no_bound_of_pydantics():
    schema = json_schema()
    assert schema["$defs"]["TrainingConfig"]["properties"]["learning_rate"]["exclusiveMinimum"] == 0
    for section in (schema, *schema["$defs"].values()):
        for name, field in section["properties"].items():
            assert "description" in field or "$ref" in field, name
            assert not {"ge", "gt", "le", "lt"} & set(field), name


def test_a_word_chooses_settings_by_name_and_else_by_meaning():
    lines = settings_text("Learning").splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == ["training.learning_rate"]
    lines = settings_text("evaluation.").splitlines()
    heads = {line.split("  ")[0]: line for line in lines if line[0] != " "}
    assert heads["evaluation.tasks[].kind"].endswith(
        "(graded, pairs, retrieval, labelled; required)"
    )
    assert heads["evaluation.dev.columns"].endswith("(list of text; default [])")
    heads = [line.split()[0] for line in settings_text("gradient caching").splitlines()]
    assert "training.mini_batch_size" in heads


# mteb's tasks while training


@pytest.fixture
def published(monkeypatch):
    """The Hub's data of mteb's STS tasks, which are a few pairs here."""
    loads = []

    def load_data(self, **_):
        pairs = [
            (a, b, float(i + j)) for i, a in enumerate(SENTENCES) for j, b in enumerate(SENTENCES)
        ]
        sentence1, sentence2, score = zip(*pairs, strict=True)
        columns = {"sentence1": sentence1, "sentence2": sentence2, "score": score}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True
        loads.append(self.metadata.name)

    monkeypatch.setattr(AbsTaskSTS, "load_data", load_data)
    return loads


def test_a_run_is_scored_on_tasks_of_mteb(config, published, tmp_path):
    tasks = ["pairs", "mteb:STS13"]
    evaluation = config.evaluation.model_copy(update={"tasks": tasks})
    run = train(in_folder(config, tmp_path / "run", evaluation=evaluation))
    assert list(run.scores) == ["pairs", "mteb:STS13", "geometry"]
    assert list(run.raw["mean"]) == ["pairs", "mteb:STS13", "geometry"]
    assert run.value("mteb:STS13") != run.raw["mean"]["mteb:STS13"]["cosine_spearman"]
    assert evaluate(run.folder, tasks).scores == run.scores
    saved = list((run.folder / "evaluation" / "mteb" / "results").rglob("STS13.json"))
    assert len(saved) == 2  # of the untrained encoder and of the model


def test_tasks_of_mteb_are_checked_before_training(config, tmp_path, monkeypatch, capsys):
    base = ["train", "quickstart", *IN_WORDS, f"encoder.name={config.encoder.name}"]
    base += [f"data.train={config.data.train[0]}", f"output={tmp_path / 'run'}"]
    assert main([*base, "evaluation.tasks=mteb:STS1"]) == 2
    assert "task 'STS1': unknown (did you mean" in capsys.readouterr().err

    def load_data(self, **_):
        raise OSError("offline")

    monkeypatch.setattr(AbsTaskSTS, "load_data", load_data)
    assert main([*base, "evaluation.tasks=pairs,mteb:STS13"]) == 2
    message = capsys.readouterr().err
    assert "task mteb:STS13: cannot load mteb/sts13-sts" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["pairs,mteb:MTEB(eng, v2)", "[pairs, 'mteb:MTEB(eng, v2)']"])
def test_tasks_are_named_with_commas_or_as_a_list(text):
    found = load_config("quickstart", [f"evaluation.tasks={text}"]).evaluation.tasks
    assert found == ["pairs", "mteb:MTEB(eng, v2)"]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: train("quickstart"), "train: config: Input should be"),
        (lambda: evaluate(None), "evaluate: model: "),
        (
            lambda: evaluate("mini-bert", batch_size=0),
            "evaluate: batch_size: Input should be greater",
        ),
        (lambda: evaluate("mini-bert", tasks=5), "evaluate: tasks: "),
        (lambda: evaluate("mini-bert", data=5), "evaluate: data: "),
        (lambda: evaluate("mini-bert", "pairs", pooling="median"), "pooling"),
        (lambda: evaluate(lambda texts: [[1j] for _ in texts], "pairs"), "returned complex128"),
        (lambda: evaluate(lambda texts: [[1], [1, 2]], "pairs"), "encode returned no array"),
    ],
)
def test_arguments_of_another_type_are_named(call, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        call()


def test_a_function_may_give_tensors_that_learn():
    torch.manual_seed(0)
    weight = torch.randn(1, 8, requires_grad=True)

    def encode(texts):
        return (torch.tensor([[float(len(text))] for text in texts]) @ weight).bfloat16() + weight

    assert np.isfinite(evaluate(encode, "pairs").value("pairs"))


def test_it_trains_wherever_it_is_called(config, tmp_path):
    with torch.inference_mode():
        run = train(in_folder(config, tmp_path / "run"))
    assert run.scores


def test_nothing_is_written_into_the_folder_that_is_read(trained, capsys):
    for words in (["export", trained.folder, trained.folder / "out"],
                  ["report", trained.folder, "-o", trained.folder]):  # fmt: skip
        assert main([str(word) for word in words]) == 2
        assert "is in the run folder" in capsys.readouterr().err


def test_a_network_is_no_function_that_encodes():
    with pytest.raises(UserError, match="Linear embeds no texts; pass its folder or name"):
        evaluate(torch.nn.Linear(2, 2), ["pairs"])
