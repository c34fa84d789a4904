"""Objectives as units: found by name, settings of their own, usable in anybody's loop."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
import torch
from conftest import ROOT, log
from safetensors.torch import load_file

from simcse import objectives
from simcse.cli.main import main
from simcse.config.reading import load_config, validate
from simcse.errors import UserError
from simcse.objectives.terms import GIVEN, SHIPPED, asks_for, needs, resolve, settings_model

MARGIN = """
import torch
from torch import nn
from simcse.objectives import Objective

class Margin(Objective):
    formula = "max(0, m - s(i, i*)) <b>"
    source = "Nobody 2026, http://evil"

    def __init__(self, margin: float = 2.0, width: int = 1):
        super().__init__()
        self.margin = margin
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, anchor, positive):
        similarity = torch.cosine_similarity(anchor * self.scale, positive)
        return (self.margin - similarity).clamp(min=0).mean()

class Strange(Objective):
    def forward(self, anchor, weather):
        return anchor.sum()

class Placed(Objective):
    def forward(self, anchor, positive, /):
        return anchor.sum()

class Bare(Objective):
    def __init__(self, margin):
        super().__init__()

    def forward(self, anchor):
        return anchor.sum()

class Other:
    pass
"""


FAILING = """
import torch
from simcse.objectives import Objective

class Plain(Objective):
    def forward(self, anchor, positive):
        return (anchor - positive).square().mean()

class GivesNone(Plain):
    def forward(self, anchor):
        pass

class GivesRows(Plain):
    def forward(self, anchor, positive):
        return anchor.sum(dim=1)

class GivesDetached(Plain):
    def forward(self, anchor):
        return anchor.sum().detach()

class Raises(Plain):
    def forward(self, anchor):
        return anchor @ anchor

class FailsInTorch(Plain):
    def forward(self, anchor):
        return torch.nn.functional.cross_entropy(anchor, "x")

class LogsText(Plain):
    def log_values(self):
        return {"loss": "much"}

class FailsLater(Plain):
    def after_step(self, model, progress):
        return 1 / 0

class FailsToBuild(Plain):
    def __init__(self, size: int = 3):
        raise KeyError("x")

class WantsNegatives(Plain):
    def forward(self, anchor, hard_negatives):
        return anchor.sum()

class NeverInitialised(Plain):
    def __init__(self, size: int = 3):
        self.size = size

class TakesTensors(Plain):
    def __init__(self, start: torch.Tensor = torch.ones(1)):
        super().__init__()

class TakesTuples(Plain):
    def __init__(self, dims: tuple = (1, 2)):
        super().__init__()

class Empty(Objective):
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own in the working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "my_terms.py").write_text(MARGIN)
    (folder / "my_failing.py").write_text(FAILING)
    (folder / "my_broken.py").write_text("import torch\n\n1 / 0\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in ("my_terms", "my_broken", "my_failing"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "objective: contrast",
            "objective.terms: contrast is unknown; allowed are clip, decoupled",
        ),
        ("objective: distill_l2", "objective.terms: distill_l2 needs objective.teacher"),
        (
            "{objective: {teacher: x}, data: {train: t}}",
            "objective.teacher has no meaning without a term such as distill_l2 or distill_sim",
        ),
        ("objective: sup_con", "sup_con needs data.form=labelled, got documents"),
        (
            "objective: {terms: {dino: {prototypes: 2000000000}}}",
            "objective.terms.dino.prototypes: should be less than or equal to 1048576",
        ),
        (
            "objective: {terms: {dino: {teacher_temperature: 0.2}}}",
            "objective.terms.dino: teacher_temperature 0.2 is above student_temperature 0.1",
        ),
        (
            "objective: {terms: {info_nce: {hard_negatives_weight: 2}}}",
            "info_nce.hard_negatives_weight: unknown key (did you mean hard_negative_weight?)",
        ),
        (
            "objective: {terms: {clip: {hard_negative_weight: 2}}}",
            "objective.terms.clip.hard_negative_weight: unknown key (allowed: weight)",
        ),
        (
            "{objective: {terms: distill_similarity, teacher: x}, training: {batch_size: 2}, "
            "data: {train: t}}",
            "training.batch_size: distill_similarity needs 3 or more, got 2",
        ),
        (
            "{encoder: {towers: two}, data: {form: pairs}, objective: dino}",
            "encoder.towers: dino needs one encoder for all texts, got two",
        ),
        ("objective: no_such_module:Term", "no_such_module:Term cannot be imported: ModuleNotF"),
        (
            "objective: ./my_terms.py:Own",
            "name the module as Python imports it, such as my_terms:Own",
        ),
        ("objective: 'a-b:Own'", "name the module as Python imports it, such as a_b:Own"),
        (
            "objective: 'C:\\x\\my_terms.py:Own'",
            "Python imports it, such as my_terms:Own for a ",
        ),
        ("objective: 'my_terms:'", "as Python imports it, such as my_terms:MyObjective"),
        ("objective: my_terms:NoSuch", "my_terms:NoSuch cannot be imported: AttributeError"),
        ("objective: my_broken:Term", "ZeroDivisionError: division by zero ("),
        ("objective: my_terms:Other", "my_terms:Other is not a subclass of simcse.objectives.Obj"),
        ("objective: my_terms:Strange", "my_terms:Strange.forward asks for weather; a batch has"),
        ("objective: my_terms:Placed", "my_terms:Placed.forward has positional-only arguments;"),
        ("objective: my_terms:Bare", "argument margin needs an annotation and a default"),
        (
            "objective: {terms: {'my_terms:Margin': {margin: wide}}}",
            "objective.terms.my_terms:Margin.margin: should be a valid number, got 'wide'",
        ),
    ],
)
def test_terms_that_cannot_be(own, tmp_path, text, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        resolve(load_config(str(path)))
    assert "\n" not in str(caught.value)


def test_the_shipped_terms_and_what_they_need():
    assert set(SHIPPED) == {
        "info_nce", "decoupled", "clip", "nt_xent", "sup_con", "dino", "mlm", "distill_l2",
        "distill_similarity", "distill_start", "mntp",
    }  # fmt: skip
    for name, term in SHIPPED.items():
        assert term.formula and term.source.rpartition(", ")[2].startswith("https://"), name
        assert not set(settings_model(term).model_fields) & set(GIVEN)
    assert needs(SHIPPED["info_nce"]) == {
        "anchor": False, "positive": False, "hard_negatives": True, "mask": True,
    }  # fmt: skip
    assert needs(SHIPPED["mlm"]) == {}


def test_resolving_writes_every_setting_out_and_changes_nothing_twice():
    config = resolve(validate({"objective": [{"dino": 0.5}, "info_nce"]}, "test"))
    assert config.settings()["objective.terms.dino.prototypes"] == 1024
    assert config.settings()["objective.terms.info_nce.hard_negative_weight"] == 1.0
    assert resolve(config) == config
    assert asks_for(config, "texts") and not asks_for(config, "labels")
    clip = resolve(validate({"objective": "clip"}, "test"))
    assert resolve(clip).objective.temperature.schedule == "learnable"


def test_a_term_of_the_users_own_is_trained_resumed_and_named_in_the_card(
    own, arguments, run, capsys
):
    words = [*arguments, "objective.terms={my_terms:Margin: {weight: 2, margin: 2.5}}"]
    assert main([*words, "training.learning_rate=0.01"]) == 0, capsys.readouterr().err
    losses = [entry["loss"] for entry in log(run) if "loss" in entry]
    assert 2 * 1.5 <= losses[0] <= 2 * 3.5
    assert "margin: 2.5" in (run / "config.yaml").read_text()
    assert "width" not in (run / "config.yaml").read_text()  # which the run gives
    assert main([*words, "training.learning_rate=0.01"]) == 0
    assert "is finished" in capsys.readouterr().out
    # Whoever gets the folder has no such module, and needs none.
    (own / "my_terms.py").unlink()
    sys.modules.pop("my_terms")
    assert main(["export", str(run), str(own / "out")]) == 0, capsys.readouterr().err
    card = (own / "out" / "README.md").read_text()
    assert "my\\_terms:Margin: max(0, m - s(i, i\\*)) \\<b\\>" in card


def test_what_a_term_learns_is_in_the_checkpoint(own, arguments, run, monkeypatch):
    seen = []
    original = objectives.weighted_sum.WeightedSum.save

    def spy(self, folder):
        original(self, folder)
        seen.append(load_file(folder / "objective.safetensors"))

    monkeypatch.setattr(objectives.weighted_sum.WeightedSum, "save", spy)
    words = ["objective.terms=my_terms:Margin", "training.learning_rate=0.01"]
    assert main([*arguments, *words, "encoder.projection=none"]) == 0
    [key] = seen[0]
    assert seen[0][key].shape == (32,) and not torch.equal(seen[0][key], seen[-1][key])


def blocks(page, language):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_the_extending_page_runs_as_it_stands(arguments, run, tmp_path, monkeypatch, capsys):
    term, loop = blocks("extending.md", "python")
    (tmp_path / "my_terms.py").write_text(term)
    commands = blocks("extending.md", "bash")[0].splitlines()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for number, command in enumerate(commands):
        words = shlex.split(command)[3:]
        assert main([*arguments, *words, f"output={run}-{number}"]) == 0, capsys.readouterr().err
    [entry, *_] = [e for e in log(tmp_path / f"{run.name}-0") if "loss" in e]
    assert 0 < entry["loss"] < 2.3
    sys.modules.pop("my_terms")
    monkeypatch.chdir(ROOT)
    names = {}
    exec(loop, names)
    anchor, positive = names["anchor"], names["positive"]
    expected = objectives.info_nce(anchor, positive, 0.05)
    torch.testing.assert_close(names["loss"](anchor=anchor, positive=positive), expected)
    torch.testing.assert_close(names["value"], expected)


def test_the_objectives_page_has_every_term_and_setting():
    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    listed = {}
    for row in rows:
        names, _, settings, _ = (cell.strip() for cell in row.split("|")[1:-1])
        listed[names.strip("`")] = re.findall(r"`(\w+)` \(([\d.]+)", settings)
    assert set(listed) == set(SHIPPED)
    for name, found in listed.items():
        fields = settings_model(SHIPPED[name]).model_fields
        expected = {key: field.default for key, field in fields.items() if key != "weight"}
        assert (expected.pop("mask_token", None), "`mask_token`" in text) == (None, True)
        assert {key: float(value) for key, value in found} == expected
    for command in blocks("objectives.md", "bash")[0].splitlines():
        resolve(load_config("quickstart", shlex.split(command)[3:]))


VIEWS = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
TEACHER = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("unit", "arguments", "expected"),
    [
        ("InfoNCE", {}, lambda a, p: objectives.info_nce(a, p, 0.1)),
        ("Decoupled", {}, lambda a, p: objectives.decoupled(a, p, 0.1)),
        ("Clip", {}, lambda a, p: objectives.clip(a, p, 0.1)),
        ("NTXent", {}, lambda a, p: objectives.nt_xent(a, p, 0.1)),
        (
            "SupCon",
            {"labels": LABELS},
            lambda a, p: objectives.sup_con(torch.cat([a, p]), torch.cat([LABELS, LABELS]), 0.1),
        ),
    ],
)
def test_units_are_their_functions(unit, arguments, expected):
    term = getattr(objectives, unit)(temperature=0.1)
    anchor, positive = VIEWS
    torch.testing.assert_close(term(anchor, positive, **arguments), expected(anchor, positive))


def test_distilling_units_are_the_mean_over_views():
    l2, similarity = objectives.DistillL2(), objectives.DistillSimilarity(0.1, 0.2)
    parts = [objectives.distill_l2(view, TEACHER) for view in VIEWS]
    torch.testing.assert_close(l2(VIEWS, TEACHER), sum(parts) / 2)
    parts = [objectives.distill_similarity(view, TEACHER, 0.1, 0.2) for view in VIEWS]
    torch.testing.assert_close(similarity(VIEWS, TEACHER), sum(parts) / 2)


def test_hard_negatives_and_mask_reach_the_function():
    anchor, positive = VIEWS
    hard = torch.randn(1, 6, 8)
    mask = torch.rand(6, 12) < 0.3
    mask[:, :6].fill_diagonal_(False)
    for unit, function in (("InfoNCE", "info_nce"), ("Decoupled", "decoupled")):
        term = getattr(objectives, unit)(0.1, hard_negative_weight=3.0)
        expected = getattr(objectives, function)(anchor, positive, 0.1, hard, 3.0, mask)
        torch.testing.assert_close(term(anchor, positive, hard, mask), expected)
    for unit, function in (("Clip", "clip"), ("NTXent", "nt_xent")):
        term = getattr(objectives, unit)(0.1)
        expected = getattr(objectives, function)(anchor, positive, 0.1, mask[:, :6])
        torch.testing.assert_close(term(anchor, positive, mask), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GivesNone", "GivesNone gives NoneType; expected a scalar tensor, the loss"),
        ("GivesRows", "GivesRows gives a tensor (8,); expected a scalar tensor, the loss"),
        (
            "GivesDetached",
            "loss of my_failing:GivesDetached depends on nothing that is trained",
        ),
        ("Raises", "my_failing:Raises has failed: RuntimeError: mat1 and mat2 shapes"),
        ("LogsText", "LogsText has failed: ValueError: could not convert string to float: 'much'"),
        ("FailsLater", "FailsLater has failed: ZeroDivisionError: division by zero ("),
        ("FailsToBuild", "my_failing:FailsToBuild has failed: KeyError: 'x' ("),
        ("WantsNegatives", "objective.terms: my_failing:WantsNegatives needs hard negatives; the"),
        ("NeverInitialised", "my_failing:NeverInitialised.__init__ does not call super()"),
        ("TakesTensors", "my_failing:TakesTensors: Unable to generate pydantic-core schema"),
        ("TakesTuples", "TakesTuples: settings are numbers, text, true, false, null, lists and"),
        ("Empty", "my_failing:Empty defines neither forward nor token_losses"),
    ],
)
def test_what_a_term_of_the_users_own_does_wrong_is_one_line(
    own, arguments, run, capsys, name, expected
):
    assert main([*arguments, f"objective.terms=my_failing:{name}"]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_the_simplest_term_needs_no_constructor(own, arguments, run, capsys):
    assert main([*arguments, "objective.terms=my_failing:Plain"]) == 0, capsys.readouterr().err


def test_a_term_that_fails_in_a_library_is_named_with_its_own_line(own, arguments, run, capsys):
    assert main([*arguments, "objective.terms=my_failing:FailsInTorch"]) == 2
    error = capsys.readouterr().err
    assert "FailsInTorch has failed: " in error and "my_failing.py:" in error
    assert "site-packages" not in error
