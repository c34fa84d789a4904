import json
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import ROOT
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


def test_installed_wheel_trains_outside_the_clone(installed, tiny, text_file, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import simcse_launcher; sys.exit(simcse_launcher.main())"
    )
    settings = [f"encoder.name={tiny}", f"data.train={text_file}", "training.steps=2"]
    settings += ["evaluation.dev=pairs", "evaluation.tasks=pairs", "training.batch_size=8"]
    answer = subprocess.run(
        [sys.executable, "-c", code, "train", "quickstart", *settings],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "outputs" / "quickstart" / "scores.json").is_file()
    environment = json.loads((tmp_path / "outputs" / "quickstart" / "environment.json").read_text())
    assert environment["commit"] is None
