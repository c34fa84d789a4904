"""Runs as one self-contained HTML page: scores, curves, geometry, settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from simcse import __version__
from simcse.evaluation.protocol import PROTOCOL
from simcse.evaluation.statistics import summarize
from simcse.evaluation.table import LABELS, cell, collapse_lines, shown_scores, task_label
from simcse.files import check_outside, filling, may_write
from simcse.reports.plots import SOFTWARE, pictures, run_name
from simcse.reports.runs import RunSet, with_own_names
from simcse.terminal import visible

TEMPLATE = Path(__file__).parent.parent / "assets" / "report.html"
PAGE = "report.html"
# These identify our own pages and images; both are near the beginning of the file.
_MARKS = (b'<meta name="generator" content="simcse">', f"Software\0{SOFTWARE}".encode())


def write_report(sets: Sequence[RunSet], folder: Path, *, overwrite: bool = False) -> Path:
    """Write ``report.html`` and one PNG for each figure.

    Args:
        sets: Runs, or settings under several seeds, in the order to show them.
        folder: Created if it does not exist.
        overwrite: Replace files of these names even if no report wrote them.

    Returns:
        The page.

    Raises:
        UserError: Two runs share a name, or a file that no report wrote would be replaced.
    """
    sets = with_own_names(sets)
    figures = pictures(sets)
    inputs = [run.folder for runs in sets for run in runs.runs]
    for run in (run for runs in sets for run in runs.runs if run.config):
        check_outside(folder, run.folder, "the run folder")
    for name in (PAGE, *(f"{picture.name}.png" for picture in figures)):
        may_write(folder / name, inputs, ours=_is_of_a_report, overwrite=overwrite)
    environment = Environment(autoescape=True, trim_blocks=True, finalize=_finalize)
    html = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=" · ".join(runs.name for runs in sets),
        protocol=PROTOCOL,
        warnings=[
            line
            for runs in sets
            for run in runs.runs
            for line in collapse_lines({run_name(runs, run): run.scores})
        ],
        head=["task", "score", *(_heading(runs) for runs in sets)],
        rows=_score_rows(sets),
        score_note="All but the geometry and thresholds ×100. Several seeds: mean ± standard "
        "deviation [95% confidence interval of the mean]. One seed shows no spread, and its "
        "difference from another run may be the seed's. Checkpoints were chosen on the dev task; "
        "no test score chose anything.",
        pictures=figures,
        settings=_settings(sets),
        version=__version__,
    )
    with filling(folder) as scratch:
        for picture in figures:
            (scratch / f"{picture.name}.png").write_bytes(picture.png())
        (scratch / PAGE).write_text(html, encoding="utf-8")
    return folder / PAGE


def _is_of_a_report(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(1000)
    return any(mark in head for mark in _MARKS)


def _finalize(value: object) -> object:
    """Text that a file can hold; jinja escapes it, and leaves the figures as they are."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _heading(runs: RunSet) -> str:
    return runs.name if len(runs.runs) == 1 else f"{runs.name} ({len(runs.runs)} seeds)"


def _score_rows(sets: Sequence[RunSet]) -> list[list[str]]:
    """A row for every test; scores of the same name on different texts have rows of their own."""
    rows: dict[tuple[str, str], list[str]] = {}
    for number, runs in enumerate(sets):
        for task, key in shown_scores(runs.runs[0].scores):
            label = task_label(task, runs.runs[0].scores[task])
            row = rows.setdefault((label, key), [label, LABELS[key], *[""] * len(sets)])
            summary = summarize(runs.values(task, key))
            text = cell(key, summary.mean)
            if summary.std is not None and summary.low is not None and summary.high is not None:
                low, high = cell(key, summary.low), cell(key, summary.high)
                text += f" ± {cell(key, summary.std)} [{low}, {high}]"
            row[2 + number] = text
    return list(rows.values())


def _settings(sets: Sequence[RunSet]) -> list[list[str]]:
    """A head and a row for every setting that differs between the training runs."""
    trained = [(runs.name, config) for runs in sets if (config := runs.runs[0].config)]
    rows = [["setting", *(name for name, _ in trained)]]
    for key in dict.fromkeys(key for _, config in trained for key in config.settings()):
        values = [str(config.settings().get(key, "unset")) for _, config in trained]
        if key not in ("seed", "seeds", "output") and len(set(values)) > 1:
            rows.append([key, *values])
    return rows
