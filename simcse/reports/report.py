"""Runs as one self-contained HTML page: scores, curves, geometry, settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from simcse import __version__
from simcse.evaluation.change import verdict_line
from simcse.evaluation.protocol import PROTOCOL
from simcse.evaluation.table import collapse_lines
from simcse.files import check_outside, filling, may_write
from simcse.reports.plots import SOFTWARE, pictures, run_name
from simcse.reports.runs import RunSet, with_own_names
from simcse.reports.tables import run_rows, what_chose
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
        summary=list(_summary(sets)),
        rows=run_rows(sets),
        score_note="All but the geometry and thresholds ×100; ↓ lower is better. Several seeds: "
        "mean ± standard deviation (95% confidence interval of the mean). One seed shows no "
        f"spread, and its difference from another run may be the seed's. {what_chose(sets)}",
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


def _summary(sets: Sequence[RunSet]) -> Iterator[str]:
    """What was trained on what, and what that changed, for every run set."""
    for runs in sets:
        first = runs.runs[0]
        if first.config is None:
            yield f"{runs.name}: a model that was scored, not trained here."
            continue
        seeds = f", {len(runs.runs)} seeds" if len(runs.runs) > 1 else ""
        text = "; ".join(data.title for data in first.config.sets)
        line = f"{runs.name}: {first.config.encoder.name} trained on {text}{seeds}."
        tests = {task: change for task, change in first.changes.items() if task in first.scores}
        if tests and first.dev and not seeds:
            line += f" {_sentence(verdict_line(tests, first.dev['task']))}"
        yield line


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _settings(sets: Sequence[RunSet]) -> list[list[str]]:
    """A head and a row for every setting that differs between the training runs."""
    trained = [(runs.name, config) for runs in sets if (config := runs.runs[0].config)]
    rows = [["setting", *(name for name, _ in trained)]]
    for key in dict.fromkeys(key for _, config in trained for key in config.settings()):
        values = [str(config.settings().get(key, "unset")) for _, config in trained]
        if key not in ("seed", "seeds", "output") and len(set(values)) > 1:
            rows.append([key, *values])
    return rows
