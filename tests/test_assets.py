import json
import shutil
import subprocess
import sys
import tomllib
import zipfile

import numpy as np
import pytest
from conftest import ROOT, SENTENCES
from packaging.requirements import Requirement


def test_every_dependency_is_pinned_to_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            [specifier] = requirement.specifier
            assert specifier.operator == "==", line
            pins[requirement.name.lower().replace("_", "-")] = specifier.version
    wanted = project["project"]["dependencies"]
    for group in project["project"]["optional-dependencies"].values():
        wanted = wanted + group
    for requirement in map(Requirement, wanted + project["dependency-groups"]["dev"]):
        assert pins[requirement.name] in requirement.specifier, requirement.name
    assert pins["torch"] == "2.13.0"
    assert project["project"]["name"] == "simcse-trainer"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's content, as an installation would lay it out."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("simcse", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("simcse_launcher.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(target)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    [wheel] = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(target)
    wheel.unlink()
    return target


def test_wheel_holds_the_package_and_nothing_else(installed):
    tops = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"simcse", "simcse_launcher.py"}
    for name in ("simcse", "configs"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                prefix = "simcse/configs" if name == "configs" else "simcse"
                assert (installed / prefix / path.relative_to(ROOT / name)).is_file(), path


# One process for several commands: importing what they need takes longest.
COMMANDS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import simcse_launcher
for words in json.loads(sys.argv[2]):
    status = simcse_launcher.main(words)
    if status != 0:
        sys.exit(f"{words}: {status}")
import simcse
assert simcse.__file__.startswith(sys.argv[1])
"""


def test_installed_wheel_works_outside_the_clone(installed, tiny, text_file, tmp_path):
    settings = [f"encoder.name={tiny}", f"data.train={text_file}", "training.steps=2"]
    settings += ["evaluation.dev=pairs", "evaluation.tasks=pairs", "training.batch_size=8"]
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES) + "\n")
    model = ["--model", "outputs/quickstart"]
    commands = [
        ["train", "quickstart", *settings],
        ["evaluate", "outputs/quickstart", "--tasks", "pairs", "-o", "scores.json"],
        ["encode", "corpus.txt", "-o", "e.npy", *model],
        ["search", SENTENCES[1], "--corpus", "corpus.txt", "--top-k", "2", *model],
    ]
    answer = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(installed), json.dumps(commands)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr
    run = tmp_path / "outputs" / "quickstart"
    trained = json.loads((run / "scores.json").read_text())["trained"]
    assert "best of pairs" in answer.stdout
    assert json.loads((run / "environment.json").read_text())["commit"] is None
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["scores"] == trained
    assert "cosine Spearman" in scores["protocol"]
    embeddings = np.load(tmp_path / "e.npy")
    assert embeddings.shape == (6, 32)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    query, best, second = answer.stdout.splitlines()[-3:]
    assert query == SENTENCES[1]
    assert best == f"  1.0000  {SENTENCES[1]}"
    assert second.startswith("  0.")
