"""What the README tells people to type is understood, and its file tree is true."""

import re
import shlex

import pytest
from conftest import ROOT

from simcse import SimCSE
from simcse.cli.arguments import parse
from simcse.config.reading import load_config, load_sweep
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder

README = (ROOT / "README.md").read_text(encoding="utf-8")
PUBLISHING = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")


def blocks(language, text=README):
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fences if name == language]


def commands():
    for block in [*blocks("bash"), *blocks("bash", PUBLISHING)]:
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def test_make_targets_exist():
    targets = [words[1] for words in commands() if words[0] == "make"]
    makefile = (ROOT / "Makefile").read_text()
    assert {"quickstart", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


@pytest.mark.parametrize(
    "words", [words for words in commands() if words[0].startswith(".venv")], ids=" ".join
)
def test_command_lines_parse(words):
    program, *arguments = words
    if program == ".venv/bin/python":
        script, *arguments = arguments
        assert (ROOT / script).is_file()
        arguments = [script.removesuffix(".py"), *arguments]
    else:
        assert program == ".venv/bin/simcse"
    parsed = parse(arguments)
    if arguments[0] == "train":
        name, *settings = parsed.words
        load_sweep(name, settings) if parsed.sweep else load_config(
            name, settings
        )  # raises where a setting is misspelt


def test_python_example_runs(tiny, tmp_path, monkeypatch):
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), tmp_path / "outputs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    example, _ = blocks("python")
    names: dict[str, object] = {}
    exec(example, names)
    assert isinstance(names["simcse"], SimCSE)
    assert names["simcse"].search("He plays the violin.", threshold=0.99)[0][0] == (
        "He plays the violin."
    )


def test_python_example_trains(tiny, text_file, tmp_path, monkeypatch):
    """As it stands, but with a smaller config in the place of the quickstart."""
    (tmp_path / "quickstart.yaml").write_text(
        f"encoder: {{name: '{tiny}'}}\n"
        f"data: {{train: '{text_file}'}}\n"
        "training: {batch_size: 8, steps: 4}\n"
        "evaluation: {raw_poolings: []}\n"
    )
    monkeypatch.setattr("simcse.config.reading.CONFIG_FOLDERS", (tmp_path,))
    monkeypatch.chdir(tmp_path)
    _, example = blocks("python")
    names: dict[str, object] = {}
    exec(example, names)
    run = names["run"]
    assert run.folder == tmp_path / "outputs" / "python"
    assert run.config.training.learning_rate == 1e-4


def test_the_architecture_page_names_every_file():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text[text.index("## Rooms") : text.index("## Decisions")]
    named, room = set(), ""
    for line in table.splitlines():
        if line.startswith("|") and line.count("|") == 4 and ".py`" in line:
            first, files, _ = (cell.strip() for cell in line.strip("|").split(" | "))
            room = first.strip("`") or room
            names = set(re.findall(r"`(\w+\.py)`", files))
            in_room = all((ROOT / "simcse" / room / name).exists() for name in names)
            named |= {f"{room}/{name}" if in_room else name for name in names}
    package = ROOT / "simcse"
    there = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    there = {name for name in there if not name.endswith("__init__.py")}
    assert named == there | {"train.py", "evaluate.py", "simcse_launcher.py"}


def test_reliability_names_tests_that_exist():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 40
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
    rows = [line for line in text.splitlines() if line.startswith("| ") and "case |" not in line]
    assert all("::test_" in row or row.endswith("| as above |") for row in rows)


def test_quoted_benchmarks_are_the_results():
    """docs/performance.md holds each table of benchmarks/results as it was written."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- ([\w.]+) -->\n\n(.*?)\n<!-- end -->", page, flags=re.DOTALL)
    quoted = dict(blocks)
    assert len(quoted) == len(blocks) == page.count("<!-- end -->")
    for name, text in quoted.items():
        result = ROOT / "benchmarks" / "results" / name
        assert text == result.read_text(encoding="utf-8"), name
        assert result.with_suffix(".json").is_file()
