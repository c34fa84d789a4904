"""The figures of a report, each with the numbers it shows."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simcse.evaluation.protocol import Scores
from simcse.evaluation.table import LABELS
from simcse.evaluation.tasks import BAND_EDGES
from simcse.reports.runs import Run, RunSet
from simcse.terminal import visible

# Okabe and Ito's palette, which most colour-blind readers can tell apart; black last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
SOFTWARE = "simcse"  # in every PNG, so that a later report knows it
_LONGEST = 60  # characters of a name
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "simcse",  # the same figure gives the same file
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


@contextmanager
def _drawing() -> Iterator[None]:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A browser has the signs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


@dataclass(frozen=True)
class Picture:
    """A figure, what it shows in words, and its numbers."""

    name: str
    title: str
    caption: str
    figure: Figure
    head: list[str]
    rows: list[list[str]]

    def svg(self) -> str:
        """The figure as an ``<svg>`` element."""
        buffer = io.StringIO()
        with _drawing():
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        text = buffer.getvalue()
        # Several figures share a page: identifiers get the figure's name in front.
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)
        return text[text.index("<svg") :]

    def png(self) -> bytes:
        """The figure as a PNG image, 150 dots an inch."""
        buffer = io.BytesIO()
        with _drawing():
            self.figure.savefig(buffer, format="png", dpi=150, metadata={"Software": SOFTWARE})
        return buffer.getvalue()


def loss_curve(sets: Sequence[RunSet]) -> Picture | None:
    """The training loss."""
    lines = [[_series(run, "loss") for run in runs.runs] for runs in sets]
    caption = "Mean over the steps since the last line of the log."
    return _curves("loss", "Training loss", caption, sets, {"Training loss": lines})


def dev_curves(sets: Sequence[RunSet]) -> Picture | None:
    """The dev score, from the untrained encoder's on; each dev task on axes of its own."""
    panels: dict[str, list[Lines]] = {}
    for number, runs in enumerate(sets):
        for run in runs.runs:
            line = _series(run, "eval_dev_score", 100)
            if not run.dev or not line:
                continue
            task, metric = run.dev["task"], run.dev["metric"]
            untrained = run.changes.get(task, {}).get("scores", {}).get(metric)
            start = {0: 100 * untrained["before"]} if untrained else {}
            title = f"{task}, {LABELS[metric]} ×100"
            panels.setdefault(title, [[] for _ in sets])[number].append({**start, **line})
    caption = "It chooses the checkpoint. Step 0 is the untrained encoder, with its best pooling."
    return _curves("eval_dev_score", "Dev score", caption, sets, panels)


def sizes(sets: Sequence[RunSet]) -> Picture | None:
    """Scores against the bytes of a vector; each task on axes of its own."""
    kinds = [("score", "float32"), ("score", "int8"), ("score", "binary"), ("untrained", "float32")]
    drawn = [(runs, key, kind) for runs in sets for key, kind in kinds]
    panels: dict[str, list[Lines]] = {}
    for number, (runs, key, kind) in enumerate(drawn):
        for run in runs.runs:
            lines: dict[str, dict[int, float]] = {}
            for row in run.retention:
                if row["vectors"] == kind and key in row:
                    title = f"{row['task']}, {LABELS[row['metric']]} ×100"
                    lines.setdefault(title, {})[row["bytes"]] = 100 * row[key]
            for title, line in lines.items():
                panels.setdefault(title, [[] for _ in drawn])[number].append(line)
    caption = (
        "Embeddings cut to fewer numbers, and stored in float32, a byte (int8) or a bit (binary) "
        "each. The untrained encoder, cut likewise, shows what is there without training."
    )
    before = {"score": "", "untrained": ", untrained"}
    named = [RunSet(f"{r.name}{before[key]}, {kind}", r.runs) for r, key, kind in drawn]
    return _curves("sizes", "Score against size", caption, named, panels, "bytes per vector")


Lines = list[dict[int, float]]
"""Of each seed the values by step, or what else is on the x axis."""


def _curves(
    name: str,
    title: str,
    caption: str,
    sets: Sequence[RunSet],
    panels: dict[str, list[Lines]],
    x: str = "step",
) -> Picture | None:
    """Values over the steps: a line for each seed, and the mean of several seeds.

    Args:
        name: Of the file.
        title: Of the section.
        caption: Below the figure.
        sets: In the order of the lines.
        panels: Title of the axes to the lines of each run set.
        x: What the lines go over; other than steps on a logarithmic axis.
    """
    panels = {panel: lines for panel, lines in panels.items() if any(map(any, lines))}
    if not panels:
        return None
    figure, all_axes = _axes(*map(_shown, panels), size=(7 * len(panels), 4))
    rows: list[list[str]] = []
    for axes, (panel, by_set) in zip(all_axes, panels.items(), strict=True):
        for number, (runs, lines) in enumerate(zip(sets, by_set, strict=True)):
            if lines := [line for line in lines if line]:
                rows += [[runs.name, panel, *row] for row in _curve(axes, number, runs.name, lines)]
        axes.set_xlabel(x)
        if x == "step":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        else:
            axes.set_xscale("log", base=2)
        axes.legend()
    head = ["run", "score", x, "mean", "lowest seed", "highest seed"]
    return Picture(name, title, caption, figure, head, rows)


def _curve(axes: Axes, number: int, name: str, lines: Lines) -> Iterator[list[str]]:
    """Draw the lines of a run set; yields step, mean, lowest and highest value as text."""
    colour, marker = _look(number)
    several = len(lines) > 1
    for line in lines:
        alpha, width = (0.25, 1.0) if several else (1.0, 1.5)
        axes.plot(list(line), list(line.values()), color=colour, alpha=alpha, lw=width)
    shared = sorted(set.intersection(*map(set, lines)))
    stacked = np.array([[line[step] for step in shared] for line in lines])  # (seeds, steps)
    axes.plot(
        shared, stacked.mean(axis=0), color=colour, lw=2, marker=marker, ms=4,
        label=f"{_shown(name)} (mean of {len(lines)})" if several else _shown(name),
        markevery=max(1, len(shared) // 12),
    )  # fmt: skip
    for step, column in zip(shared, stacked.T, strict=True):
        yield [str(step), *(f"{v:.4f}" for v in (column.mean(), column.min(), column.max()))]


def plane(sets: Sequence[RunSet]) -> Picture | None:
    """Alignment against uniformity: final models, and their path during training."""
    figure, (final, path) = _axes(
        "final model", "while training (dev); the marker is the last step", size=(9.5, 4.2)
    )
    rows: list[list[str]] = []
    drawn = set()
    for number, runs in enumerate(sets):
        colour, marker = _look(number)
        for run in runs.runs:
            for pooling, scores in run.raw.items():
                point = _point(scores)
                if not point or point in drawn:
                    continue  # every seed and most settings start from the same encoder
                drawn.add(point)
                name = f"untrained ({pooling})"
                rows.append(_point_row(name, scores["geometry"]["source"], point))
                final.scatter(*point, color="#777777", marker="x")
                final.annotate(
                    _shown(name), point, xytext=(4, 4), textcoords="offset points", fontsize=8
                )
            if point := _point(run.scores):
                drawn.add(point)
                source = run.scores["geometry"]["source"]
                rows.append(_point_row(run_name(runs, run), source, point))
                label = _shown(runs.name) if run is runs.runs[0] else None
                final.scatter(*point, color=colour, marker=marker, label=label)
            alignment = _series(run, "eval_alignment")
            uniformity = _series(run, "eval_uniformity")
            way = {
                step: (x, alignment[step]) for step, x in uniformity.items() if step in alignment
            }
            if way:
                path.plot(*zip(*way.values(), strict=True), color=colour, alpha=0.5, lw=1)
                path.scatter(*list(way.values())[-1], color=colour, marker=marker, zorder=3)
            for step, point in way.items():
                rows.append(_point_row(f"{run_name(runs, run)}, step {step}", "dev", point))
    if not rows:
        return None
    sources = {row[1] for row in rows if row[1] != "dev"}
    final.set_title(f"final model ({_shown(', '.join(sorted(sources)))})", fontsize=10)
    for axes in (final, path):
        axes.set_xlabel("uniformity (lower is better)")
        axes.set_ylabel("alignment (lower is better)")
    final.legend()
    return Picture(
        "plane",
        "Alignment and uniformity",
        "Each point is a model; both axes are better when lower. Training spreads sentences over "
        "the sphere (uniformity falls) and pays with distance between paraphrases (alignment "
        "rises).",
        figure,
        ["model", "measured on", "uniformity", "alignment"],
        rows,
    )


def bands(sets: Sequence[RunSet]) -> Picture | None:
    """Cosines of sentence pairs by their grade: a column for each run set, its seeds added up."""
    shown = [(runs, by_grade) for runs in sets if (by_grade := _bands(runs))]
    if not shown:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.5 + 3.4 * len(shown), 5.6), layout="constrained")
        grid = figure.subplots(5, len(shown), squeeze=False, sharex=True, sharey="row")
    filled = np.flatnonzero(sum(band[0] for _, by_grade in shown for band in by_grade.values()))
    centres = (BAND_EDGES[:-1] + BAND_EDGES[1:]) / 2
    rows = []
    for number, (runs, by_grade) in enumerate(shown):
        for axes, band in zip(grid[:, number], ["4-5", "3-4", "2-3", "1-2", "0-1"], strict=True):
            if band in by_grade:
                counts, pairs, mean = by_grade[band]
                axes.bar(centres, counts / counts.sum(), width=0.05, color=_look(number)[0])
                axes.axvline(mean, color="black", lw=1, ls=":")
                rows.append([runs.name, band, str(pairs), f"{mean:.3f}"])
            axes.set_yticks([])
            if number == 0:
                axes.set_ylabel(f"grade {band}", rotation=0, ha="right", va="center")
        grid[0][number].set_title(_shown(runs.name), fontsize=10)
        grid[-1][number].set_xlabel("cosine similarity")
        grid[-1][number].set_xlim(BAND_EDGES[filled[0]], BAND_EDGES[filled[-1] + 1])
    return Picture(
        "bands",
        "Similarity by grade",
        "How the cosines of graded pairs are distributed, as in SimCSE's figure: a good space "
        "moves them apart by grade. The dotted line is the mean.",
        figure,
        ["run", "grade", "pairs", "mean cosine"],
        rows,
    )


def spectrum(sets: Sequence[RunSet]) -> Picture | None:
    """Singular values of the centred embeddings."""
    figure, (axes,) = _axes("Spectrum")
    rows = []
    for number, runs in enumerate(sets):
        if not (geometry := runs.runs[0].scores.get("geometry")):
            continue
        values = np.maximum(geometry["singular_values"], 1e-6)
        axis = np.arange(1, len(values) + 1)
        axes.plot(axis, values, color=_look(number)[0], label=_shown(runs.name))
        rank = f"{geometry['effective_rank']:.1f} of {geometry['dim']}"
        rows.append([runs.name, rank, f"{geometry['mean_cosine']:.3f}", geometry["collapse"]])
    if not rows:
        return None
    axes.set_yscale("log")
    axes.set_xlabel("principal axis")
    axes.set_ylabel("standard deviation")
    axes.legend()
    return Picture(
        "spectrum",
        "Spectrum of the embeddings",
        "Standard deviation along each principal axis of the normalised embeddings (first seed of "
        f"each). {_on_cliffs(sets)}",
        figure,
        ["run", "effective rank", "mean cosine of distinct sentences", "collapse"],
        rows,
    )


def _on_cliffs(sets: Sequence[RunSet]) -> str:
    """What a cliff in a spectrum means: embeddings of few texts cannot reach all axes."""
    geometries = [runs.runs[0].scores.get("geometry", {}) for runs in sets]
    few = [g["sentences"] for g in geometries if g and g.get("sentences", g["dim"] + 1) <= g["dim"]]
    if few:
        return (
            f"{min(few):,} texts span at most {min(few) - 1:,} axes: a cliff there is of the "
            "texts' number. An earlier one means that axes are not used: dimensional collapse."
        )
    return (
        "A cliff well before the last axis means that those beyond it are not used: dimensional "
        "collapse."
    )


def pictures(sets: Sequence[RunSet]) -> list[Picture]:
    """Every figure for which there are numbers."""
    figures = [
        loss_curve(sets),
        dev_curves(sets),
        plane(sets),
        bands(sets),
        spectrum(sets),
        sizes(sets),
    ]
    return [picture for picture in figures if picture is not None]


def run_name(runs: RunSet, run: Run) -> str:
    """A run's name beside those of other sets."""
    return runs.name if len(runs.runs) == 1 else f"{runs.name}/{run.name}"


def _shown(name: str) -> str:
    """A name as a figure can show it: legends omit names that start with _, $ begins a formula."""
    text = visible(name)
    text = (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…").replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def _look(number: int) -> tuple[str, str]:
    """Colour and marker of a run set."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def _axes(*titles: str, size: tuple[float, float] = (7, 4)) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for one, title in zip(axes, titles, strict=True):
        one.set_title(title, fontsize=11 if len(titles) == 1 else 10)
    return figure, axes


def _series(run: Run, key: str, scale: float = 1.0) -> dict[int, float]:
    """Step to what was logged at it."""
    return {entry["step"]: scale * entry[key] for entry in run.log if key in entry}


def _point(scores: Scores) -> tuple[float, float] | None:
    geometry = scores.get("geometry")
    return (geometry["uniformity"], geometry["alignment"]) if geometry else None


def _point_row(name: str, measured_on: str, point: tuple[float, float]) -> list[str]:
    return [name, measured_on, *(f"{value:.3f}" for value in point)]


def _bands(runs: RunSet) -> dict[str, tuple[np.ndarray, int, float]]:
    geometries = [run.scores["geometry"] for run in runs.runs if "geometry" in run.scores]
    bands = {}
    for band in geometries[0]["bands"] if geometries else ():
        cells = [geometry["bands"][band] for geometry in geometries]
        counts = np.sum([cell["counts"] for cell in cells], axis=0)
        bands[band] = counts, cells[0]["pairs"], float(np.mean([cell["mean"] for cell in cells]))
    return bands
