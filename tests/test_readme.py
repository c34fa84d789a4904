"""What the README and the pages of docs/ say is true: commands, examples, links, names, figures."""

import re
import shlex

import pytest
from conftest import ROOT

from simcse import SimCSE
from simcse.cli.arguments import parse
from simcse.cli.commands import _configs
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder

PAGES = {path.name: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
README = TEXTS["README.md"]


def blocks(language, text=README):
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fences if name == language]


def commands(text):
    """Program and arguments of every command that a page shows, without variables before it."""
    for block in blocks("bash", text):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words


def test_the_readme_is_short():
    assert len(README.split()) <= 1300


def test_make_targets_exist():
    targets = [words[1] for words in commands(README) if words[0] == "make"]
    makefile = (ROOT / "Makefile").read_text()
    assert {"install", "quickstart", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


ALL_COMMANDS = [words for text in TEXTS.values() for words in commands(text)]


def test_readme_shows_every_command():
    shown = {words[1] for words in commands(README) if words[0] == "simcse"}
    assert shown >= {
        "train", "settings", "encode", "search", "evaluate", "compare", "report", "export",
        "publish",
    }  # fmt: skip


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_commands_are_understood(words, monkeypatch):
    monkeypatch.chdir(ROOT)  # where docs/ is a folder of documents
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if program in ("make", "source", "export") or arguments[:2] == ["-m", "pip"]:
        return
    if program == "python":
        script, *arguments = arguments
        assert (ROOT / script).is_file()
        if "/" in script:
            return
        arguments = [script.removesuffix(".py"), *arguments]
    else:
        assert program == "simcse"
    parsed = parse(arguments)
    if arguments[0] in ("train", "prefetch"):
        assert _configs(parsed)  # raises where a setting is misspelt


def anchors(text):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_of_the_clone(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (PAGES[name].parent / file).resolve() if file else PAGES[name]
        assert path.is_file() and path.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def test_readme_links_every_page():
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(
        re.findall(r"\]\(([^)#]+)\)", README)
    )


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
    documents = tmp_path / "docs"
    documents.mkdir()
    lines = text_file.read_text(encoding="utf-8").splitlines()
    for number in range(0, len(lines), 3):
        (documents / f"{number}.txt").write_text(" ".join(lines[number : number + 3]))
    (tmp_path / "quickstart.yaml").write_text(
        f"encoder: {{name: '{tiny}'}}\n"
        f"data: {{train: '{documents}', held_out: 0.5}}\n"
        "training: {batch_size: 8, steps: 4}\n"
        "evaluation: {dev: documents, tasks: [documents, pairs], raw_poolings: []}\n"
    )
    monkeypatch.setattr("simcse.config.finding.CONFIG_FOLDERS", (tmp_path,))
    monkeypatch.chdir(tmp_path)
    _, example = blocks("python")
    names: dict[str, object] = {}
    exec(example, names)
    run = names["run"]
    assert run.folder == tmp_path / "outputs" / "python"
    assert run.config.training.learning_rate == 1e-4
    assert set(run.scores) == {"documents", "pairs", "geometry"}


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
        assert name == "summary.md" or result.with_suffix(".json").is_file()
