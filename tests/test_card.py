"""The exported folder: three libraries load it alike, its card is read by the Hub's own parser."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ARCHITECTURES, HOSTILE, SENTENCES, Tags, make_encoder, reseal
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard, parse_eval_result_entries
from markdown_it import MarkdownIt
from sentence_transformers import SentenceTransformer

from simcse import SimCSE
from simcse.cli.main import main
from simcse.config.reading import validate
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder
from simcse.encoders.base_card import of_card
from simcse.encoders.encoder import fingerprint
from simcse.evaluation.mteb_tasks import evaluate_mteb, find_tasks
from simcse.publishing import card as cards

OLD = ["torch==2.13.0", "sentence-transformers==5.1.*", "transformers<5"]
EXAMPLE = ["The cat sleeps.", "A cat is asleep.", "Stocks fell on Friday."]
VARIANTS = {
    "mean": [],
    "cls": ["encoder.pooling=cls", "encoder.projection=always"],
    "avg_first_last": ["encoder.pooling=avg_first_last", "encoder.projection=none"],
    "towers": ["encoder.towers=two", "data.form=pairs", "data.columns=[a, b]"],
}


@pytest.fixture
def export(two_seeds, tmp_path):
    """A copy of one of the seeds, and what exports it."""
    run = tmp_path / "run"
    shutil.copytree(two_seeds / "seed-0", run)

    def export(source=run, name="small"):
        folder = tmp_path / "exported" / name
        shutil.rmtree(folder, ignore_errors=True)
        assert main(["export", str(source), str(folder)]) == 0
        return folder

    export.run = run
    return export


@pytest.fixture(scope="module")
def exported(two_seeds, tmp_path_factory):
    """The exported folder of a seed, all figures drawn; only to be read."""
    folder = tmp_path_factory.mktemp("exported") / "small"
    assert main(["export", str(two_seeds / "seed-0"), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def variants(tiny, text_file, tmp_path_factory):
    """An exported folder of each kind of model that can be trained."""
    root = tmp_path_factory.mktemp("variants")
    lines = text_file.read_text().splitlines()
    pairs = root / "pairs.tsv"
    pairs.write_text("a\tb\n" + "".join(f"{line}\t{line[4:]}\n" for line in lines))
    for name, settings in VARIANTS.items():
        text = pairs if name == "towers" else text_file
        common = [f"encoder.name={tiny}", f"data.train={text}", "training.steps=2"]
        common += ["training.batch_size=8", "evaluation.dev=pairs", "evaluation.tasks=pairs"]
        common += ["evaluation.raw_poolings=[]", f"output={root / 'runs' / name}"]
        assert main(["train", "quickstart", *common, *settings]) == 0
        assert main(["export", str(root / "runs" / name), str(root / name)]) == 0
    return root


def load_elsewhere(python, *folders):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    answer = subprocess.run(
        [python, Path(__file__).parent / "loaders.py", *folders],
        capture_output=True, text=True, env=environment, cwd=folders[0].parent,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return [dict(np.load(folder.with_suffix(".npz"))) for folder in folders]


@pytest.mark.slow
def test_three_libraries_give_equal_embeddings(exported, two_seeds):
    [found] = load_elsewhere(sys.executable, exported)
    ours = SimCSE(exported).encode(EXAMPLE, return_numpy=True, normalize_to_unit=False)
    np.testing.assert_allclose(found["stock"], ours, atol=1e-5)
    np.testing.assert_allclose(found["plain"], ours, atol=1e-5)
    trained = SentenceTransformer(str(two_seeds / "seed-0"), device="cpu").encode(EXAMPLE)
    np.testing.assert_allclose(found["stock"], trained, atol=1e-5)
    assert not list(exported.rglob("*.bin"))
    types = [module["type"] for module in json.loads((exported / "modules.json").read_text())]
    assert types == [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling")]


def expected(folder):
    model = SentenceTransformer(str(folder), device="cpu")
    return (model.encode_document if folder.name == "towers" else model.encode)(EXAMPLE)


@pytest.mark.slow
def test_every_kind_of_model_in_three_libraries(variants):
    folders = [variants / name for name in VARIANTS]
    for folder, found in zip(folders, load_elsewhere(sys.executable, *folders), strict=True):
        np.testing.assert_allclose(found["stock"], expected(folder), atol=1e-5)
        np.testing.assert_allclose(found["plain"], expected(folder), atol=1e-5)


@pytest.fixture(scope="module")
def old_python():
    """A Python with sentence-transformers 5.1, from an environment of the user's own."""
    if not (given := os.environ.get("SIMCSE_OLD_PYTHON")):
        pytest.skip(f"needs SIMCSE_OLD_PYTHON, a Python with {' '.join(OLD)}")
    return given


@pytest.mark.slow
def test_sentence_transformers_5_gives_equal_embeddings(old_python, variants):
    folders = [variants / name for name in VARIANTS]
    for folder, found in zip(folders, load_elsewhere(old_python, *folders), strict=True):
        assert str(found["version"]).startswith("5.1.")
        np.testing.assert_allclose(found["stock"], expected(folder), atol=1e-5)
        np.testing.assert_allclose(found["plain"], expected(folder), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "mean", "avg_first_last"])
def test_sentence_transformers_5_loads_every_architecture(pooling, tmp_path, old_python):
    code = (
        "import sys, numpy as np\n"
        "from sentence_transformers import SentenceTransformer\n"
        "for folder in sys.argv[1:]:\n"
        "    model = SentenceTransformer(folder, device='cpu')\n"
        f"    np.save(folder + '/found.npy', model.encode({SENTENCES!r}))\n"
    )
    models = {}
    for name in ARCHITECTURES:
        if (name, pooling) == ("modernbert", "avg_first_last"):
            continue  # transformers 4 and 5 differ in what its last hidden state is
        source = make_encoder(tmp_path / f"source-{name}", name)
        models[name] = encoder.build(EncoderConfig(name=str(source), pooling=pooling))
        encoder.save(models[name], tmp_path / name)
    folders = [str(tmp_path / name) for name in models]
    subprocess.run([old_python, "-c", code, *folders], check=True, capture_output=True)
    for name, model in models.items():
        found = np.load(tmp_path / name / "found.npy")
        np.testing.assert_allclose(found, model.encode(SENTENCES), atol=1e-5)


def test_card_is_read_by_the_hubs_parser(exported, two_seeds, tiny, text_file):
    card = ModelCard.load(exported / "README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag) == (
        "sentence-transformers",
        "sentence-similarity",
    )
    assert {"sentence-transformers", "simcse"} <= set(data.tags)
    assert (data.license, data.language) == (None, None)  # neither mini-bert nor python-docs
    assert data.base_model is None  # a local folder
    assert "widget" not in data.to_dict()
    [result] = data.eval_results
    scores = json.loads((two_seeds / "seed-0" / "scores.json").read_text())["trained"]
    assert result.metric_value == pytest.approx(scores["pairs"]["cosine_spearman"], abs=1e-6)
    assert result.dataset_name == "pairs"
    for text in ("## Limitations", "gao2021simcse", "exp(s(i,i⁺)/τ)", "One seed", "alignment"):
        assert text in card.text
    figures = re.findall(r"\(figures/(.*?\.png)\)", card.text)
    assert set(figures) == {path.name for path in (exported / "figures").iterdir()}
    assert {"loss.png", "plane.png", "bands.png"} <= set(figures)
    assert f"**{100 * scores['pairs']['cosine_spearman']:.2f}**" in card.text
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1])
    assert settings["training"]["steps"] == 4
    assert settings["encoder"]["name"] == tiny.name
    assert settings["data"]["train"] == [text_file.name]


def test_no_training_text_and_no_folder_of_this_machine(exported, text_file):
    sentences = [line.encode() for line in text_file.read_text().splitlines()]
    for path in exported.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [line for line in sentences if line in content], path.name
            assert b"pytest" not in content, path.name
            assert str(text_file.parent).encode() not in content, path.name


def test_the_section_hub_fills_the_card_and_may_change_later(export, one_picture):
    path = export.run / "config.yaml"
    values = yaml.safe_load(path.read_text())
    words = ["A dog barks.", "A hound makes a noise.", "It rains."]
    values["hub"] |= {"license": "mit", "data_license": "cc0-1.0", "language": ["de"]}
    values["hub"]["widget"] = words
    path.write_text(yaml.safe_dump(values))
    card = ModelCard.load(export() / "README.md")
    assert (card.data.license, card.data.language) == ("mit", ["de"])
    assert card.data.to_dict()["widget"] == [{"source_sentence": words[0], "sentences": words[1:]}]
    assert "licence: cc0-1.0" in card.text
    arguments = ["train", str(path), "hub.license=apache-2.0", f"output={export.run}"]
    assert main(arguments) == 0  # finished: no other setting, so only the section is written anew
    assert yaml.safe_load(path.read_text())["hub"]["license"] == "apache-2.0"


def test_several_seeds_show_mean_and_interval(export, two_seeds, one_picture):
    text = (export(two_seeds) / "README.md").read_text()
    assert "| all 2 seeds |" in text and "(95% interval of the mean)" in text
    summary = json.loads((two_seeds / "summary.json").read_text())["test"]["pairs"]
    found = summary["cosine_spearman"]
    low, high = 100 * found["low"], 100 * found["high"]
    assert (
        f"{100 * found['mean']:.2f} ± {100 * found['std']:.2f} ({low:.2f} to {high:.2f}) |" in text
    )
    best = json.loads((two_seeds / "summary.json").read_text())["dev"]["best_seed"]
    assert f"seed {best}." in text
    assert "One seed" not in text


def test_hub_names_become_metadata(export, one_picture):
    path = export.run / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["encoder"]["name"] = "bert-base-uncased"
    values["data"]["train"] = ["princeton-nlp/datasets-for-simcse:wiki1m_for_simcse.txt"]
    path.write_text(yaml.safe_dump(values))
    path = export.run / "environment.json"
    found = {**json.loads(path.read_text()), "encoder_commit": "a" * 40}
    found["from_hub"] = values["data"]["train"]
    path.write_text(json.dumps(found))
    reseal(export.run)
    card = ModelCard.load(export() / "README.md")
    assert card.data.base_model == "bert-base-uncased"
    assert card.data.datasets == ["princeton-nlp/datasets-for-simcse"]
    assert f"https://huggingface.co/bert-base-uncased/tree/{'a' * 40}" in card.text


def edit(path, change):
    """Rewrite a JSON or YAML file."""
    values = yaml.safe_load(path.read_text())
    change(values)
    dump = json.dumps if path.suffix == ".json" else yaml.safe_dump
    path.write_text(dump(values))


def with_words(run, word):
    """Put a word into every field of a run that is free text, and of what was evaluated later."""

    def config(values):
        values["encoder"] |= {"name": word, "revision": word}
        values["data"] |= {"train": [word, f"/a/{word}"], "split": word, "revision": word}
        values["views"][0]["template"] = f"{word} {{}}"
        values["training"]["report_to"] = [word]
        values["evaluation"]["data"] = word
        values["hub"] |= {"data_license": word, "widget": [word, word]}

    def scores(values):
        values["trained"][word] = {"accuracy": 0.5, "source": word}
        values["trained"]["geometry"] |= {"source": word, "collapse": word}
        values["raw"][word] = values["raw"]["mean"]
        values["dev"]["task"] = word

    def environment(values):
        values |= {"simcse": word, "device": word, "libraries": {word: word}}

    edit(run / "config.yaml", config)
    edit(run / "scores.json", scores)
    edit(run / "environment.json", environment)
    later = {f"mteb:{word}": {"main_score": 0.5, "dataset": f"{word} at {'a' * 40}"}}
    model = fingerprint(SentenceTransformer(str(run), device="cpu"))
    (run / "evaluation").mkdir()
    found = {"model": word, "fingerprint": model, "precision": "float32", "scores": later}
    (run / "evaluation" / "scores.json").write_text(json.dumps(found))


def test_hostile_words_stay_text(export, one_picture, tmp_path):
    # A card whose words are hostile has the tags and the metadata of one whose words are plain.
    plain = shutil.copytree(export.run, tmp_path / "plain")
    with_words(export.run, HOSTILE)
    with_words(plain, "word")
    for run in (export.run, plain):
        reseal(run)
    cards = []
    for run, name in ((plain, "word"), (export.run, HOSTILE.replace("/", "")[:200])):
        text = (export(run, name) / "README.md").read_text(encoding="utf-8")
        _, front, body = text.split("---\n", 2)
        html = MarkdownIt("gfm-like", {"linkify": False}).enable("table").render(body)
        cards.append((ModelCard(text).data.to_dict(), yaml.safe_load(front), Tags(html).found))
        assert not re.search("[\x1b\x07\u202e\u2028]", body)
    (plain_data, plain_front, plain_tags), (data, front, tags) = cards
    assert data.keys() == plain_data.keys()
    assert front.keys() == plain_front.keys()
    assert data["widget"] == [{"source_sentence": HOSTILE, "sentences": [HOSTILE]}]
    assert tags == plain_tags
    assert data.get("license") is None


def test_a_local_path_that_looks_like_a_hub_name_is_no_link(tiny, text_file, tmp_path, monkeypatch,
                                                            one_picture):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, "alice/encoder")
    shutil.copy(text_file, "alice/secret.txt")
    settings = ["encoder.name=alice/encoder", "data.train=[alice/secret.txt]", "training.steps=2"]
    settings += ["training.batch_size=8", "evaluation.dev=pairs", "evaluation.tasks=[]"]
    settings += ["evaluation.raw_poolings=[]", "output=run"]
    assert main(["train", "quickstart", *settings]) == 0
    assert json.loads(Path("run/environment.json").read_text())["from_hub"] == []
    # Where the text is gone, and by its name alone could be a data set.
    edit(Path("run/config.yaml"), lambda values: values["data"].update(train=["alice/secret"]))
    reseal(Path("run"))
    assert main(["export", "run", "out"]) == 0
    card = ModelCard.load("out/README.md")
    assert card.data.datasets is None and card.data.base_model is None
    assert "alice" not in card.content


def test_what_evaluate_found_later_is_in_the_card(export, one_picture):
    assert main(["evaluate", str(export.run), "--tasks", "pairs"]) == 0
    path = export.run / "evaluation" / "scores.json"
    found = json.loads(path.read_text())
    found["scores"]["STS13"] = {**found["scores"]["pairs"], "cosine_spearman": 0.12345}
    path.write_text(json.dumps(found))
    shown = "| STS13 | cosine Spearman |  | **12.35** |"
    assert shown in (export() / "README.md").read_text()
    path.write_text(json.dumps({**found, "fingerprint": "0" * 40}))
    assert shown not in (export() / "README.md").read_text()  # of other weights


def test_mteb_at_pinned_revisions_and_nothing_else(export, one_picture):
    model = SentenceTransformer(str(export.run), device="cpu")
    rows = [(a, b, (3 * i + 5 * j) % 6) for i, a in enumerate(SENTENCES)
            for j, b in enumerate(SENTENCES)]  # fmt: skip
    columns = dict(zip(("sentence1", "sentence2", "score"), zip(*rows, strict=True), strict=True))
    folder = export.run / "evaluation" / "mteb"
    for revision in (fingerprint(model), "f" * 40):  # ours, and those of another model
        tasks = find_tasks(["STS13", "STS14"])
        for task in tasks:
            task.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
            task.data_loaded = True
        evaluate_mteb(
            model, model.encode, "local/run", revision, tasks[:1], None, folder, batch_size=8
        )
    other = folder / "results" / "local__run" / fingerprint(model) / "STS14.json"
    result = json.loads((other.parent / "STS13.json").read_text())
    other.write_text(json.dumps({**result, "task_name": "STS14", "dataset_revision": "local"}))
    exported = export()
    assert [path.name for path in (exported / ".eval_results").iterdir()] == ["STS13.yaml"]
    text = (exported / ".eval_results" / "STS13.yaml").read_text()
    [entry] = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id) == ("mteb/sts13-sts", "STS13")
    assert entry.dataset_revision == result["dataset_revision"]
    main_score = result["scores"]["test"][0]["main_score"]
    assert entry.value == pytest.approx(100 * main_score, abs=1e-4)


def test_nothing_is_overwritten(export, capsys, one_picture):
    folder = export()
    assert main(["export", str(export.run), str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["export", str(folder), str(folder.parent / "again")]) == 2
    assert "is no finished run" in capsys.readouterr().err
    assert not (folder.parent / "again").exists()


def test_the_card_has_untrained_scores_and_what_training_changed(export, one_picture):
    text = (export() / "README.md").read_text()
    columns = "untrained (mean) | **this model** | after - before | 95% interval |"
    assert f"| task | score | {columns}" in text
    change = json.loads((export.run / "scores.json").read_text())["changes"]["pairs"]["scores"]
    assert f" | {100 * change['cosine_spearman']['difference']:+.2f} | " in text


def test_licence_and_base_model_are_those_of_the_encoders_own_card(
    export, one_picture, tiny, text_file, tmp_path
):
    source = shutil.copytree(tiny, tmp_path / "renamed")
    (source / "README.md").write_text("---\nlicense: mit\nbase_model:\n- me/encoder\n---\n# x\n")
    settings = [f"encoder.name={source}", f"data.train={text_file}", "training.steps=2"]
    settings += ["training.batch_size=8", "evaluation.dev=pairs", "evaluation.tasks=pairs"]
    settings += ["evaluation.raw_poolings=[]", f"output={tmp_path / 'mine'}"]
    assert main(["train", "quickstart", *settings]) == 0
    text = (export(tmp_path / "mine") / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.license, card.data.base_model) == ("mit", "me/encoder")
    assert (
        "A sentence encoder made from [me/encoder](https://huggingface.co/me/encoder) with" in text
    )
    assert main(["train", "quickstart", *settings, "hub.base_model=bert-base-uncased"]) == 0
    card = ModelCard.load(export(tmp_path / "mine") / "README.md")
    assert card.data.base_model == "bert-base-uncased"


def test_a_folders_name_is_no_models_name(exported):
    text = (exported / "README.md").read_text()
    assert "A sentence encoder made from an encoder that is not on the Hub with" in text
    assert 'SentenceTransformer("./small")' in text
    assert "(#how" not in text and "pip install simcse" not in text and "pip install ." in text


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: cc-by-sa-4.0\nbase_model: a/b", ("cc-by-sa-4.0", "a/b")),
        ("license: [x, y]\nbase_model: [a/b, c/d]", (None, None)),
        ("license: 'a [b](http://evil)'\nbase_model: ../../x", (None, None)),
        ("license: &a x\nbase_model: *a", (None, None)),
        ("- x", (None, None)),
        ("{", (None, None)),
    ],
)
def test_of_a_card_only_what_can_be_a_licence_and_a_model_is_taken(tmp_path, front, expected):
    assert of_card(tmp_path) == {"license": None, "base_model": None}
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    assert tuple(of_card(tmp_path).values()) == expected


def test_servers_are_told_a_name_that_they_and_a_shell_take(export, one_picture, capsys):
    assert main(["publish", str(export.run), "me/model", "--dry-run"]) == 0
    card = capsys.readouterr().out
    assert "text-embeddings-inference:cpu-1.8 --model-id me/model\n" in card
    assert "vllm serve me/model --runner pooling\n" in card
    assert "Neither was run with this model" in card
    for name, shown in (("model", "model"), ("$(reboot)", "NAME")):
        card = (export(name=name) / "README.md").read_text(encoding="utf-8")
        assert '-v "$PWD:/data"' in card and f"--model-id /data/{shown}\n" in card
        assert f"vllm serve ./{shown} --runner pooling\n" in card
        commands = card.partition("```bash\n")[2].partition("```")[0]
        assert "$(" not in commands


@pytest.mark.parametrize(
    ("settings", "languages"),
    [
        ({}, ["en"]),  # the shipped documents
        ({"data": {"train": "docs"}}, []),  # the default may not be meant
        ({"data": {"train": "docs", "form": "documents", "language": "de"}}, ["de"]),
        ({"data": {"train": "docs"}, "hub": {"language": "fr"}}, ["fr"]),
    ],
)
def test_the_cards_language_is_that_of_the_text_where_it_is_stated(settings, languages):
    assert cards._languages(validate(settings, "test")) == languages
