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

from simcse.evaluation.table import LABELS
from simcse.evaluation.tasks import BAND_EDGES
from simcse.reports.runs import Run, RunSet
from simcse.terminal import visible

# Okabe and Ito's palette, told apart by most colour-blind readers, black last.
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


def curve(
    sets: Sequence[RunSet], key: str, title: str, caption: str, scale: float
) -> Picture | None:
    """A logged value over the steps: a line a seed, and their mean where there are several."""
    figure, axes = _axes(title)
    rows = []
    for number, runs in enumerate(sets):
        series = [_series(run, key) for run in runs.runs]
        series = [(steps, values * scale) for steps, values in series if len(steps)]
        if not series:
            continue
        colour, alone = COLOURS[number % len(COLOURS)], len(series) == 1
        for steps, values in series:
            axes.plot(
                steps, values, color=colour, alpha=1 if alone else 0.25, lw=1.5 if alone else 1
            )
        shared = sorted(set.intersection(*({int(step) for step in steps} for steps, _ in series)))
        stacked = np.array([[dict(zip(*s, strict=True))[step] for step in shared] for s in series])
        name = _shown(runs.name)
        label = name if alone else f"{name} (mean of {len(series)})"
        axes.plot(
            shared, stacked.mean(axis=0), color=colour, lw=2, label=label,
            marker=MARKERS[number % len(MARKERS)], markevery=max(1, len(shared) // 12), ms=4,
        )  # fmt: skip
        rows += [
            [
                runs.name,
                str(step),
                f"{column.mean():.4f}",
                f"{column.min():.4f}",
                f"{column.max():.4f}",
            ]
            for step, column in zip(shared, stacked.T, strict=True)
        ]
    if not rows:
        return None
    axes.set_xlabel("step")
    axes.legend()
    return Picture(
        key, title, caption, figure, ["run", "step", "mean", "lowest seed", "highest seed"], rows
    )


def plane(sets: Sequence[RunSet]) -> Picture | None:
    """Alignment against uniformity: where models end, and the way there."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        final, path = figure.subplots(1, 2)
    rows = []
    drawn = set()
    for number, runs in enumerate(sets):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        for run in runs.runs:
            points = {f"raw {name}": scores.get("geometry") for name, scores in run.raw.items()}
            points[""] = run.scores.get("geometry")
            for name, geometry in points.items():
                if not geometry:
                    continue
                x, y = geometry["uniformity"], geometry["alignment"]
                if name and (x, y) in drawn:
                    continue  # every seed and most settings start from the same encoder
                drawn.add((x, y))
                rows.append(
                    [name or run_name(runs, run), geometry["source"], f"{x:.3f}", f"{y:.3f}"]
                )
                if name:
                    final.scatter(x, y, color="#777777", marker="x")
                    final.annotate(
                        _shown(name), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8
                    )
                else:
                    first = run is runs.runs[0]
                    final.scatter(
                        x,
                        y,
                        color=colour,
                        marker=marker,
                        label=_shown(runs.name) if first else None,
                    )
            steps, xs = _series(run, "eval_uniformity")
            _, ys = _series(run, "eval_alignment")
            if len(steps):
                path.plot(xs, ys, color=colour, alpha=0.5, lw=1)
                path.scatter(xs[-1], ys[-1], color=colour, marker=marker, zorder=3)
                rows += [
                    [f"{run_name(runs, run)}, step {int(step)}", "dev", f"{x:.3f}", f"{y:.3f}"]
                    for step, x, y in zip(steps, xs, ys, strict=True)
                ]
    if not rows:
        return None
    sources = {row[1] for row in rows if row[1] != "dev"}
    final.set_title(f"final model ({_shown(', '.join(sorted(sources)))})", fontsize=10)
    path.set_title("while training (dev); the marker is the last step", fontsize=10)
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
    """Cosines of sentence pairs by their grade, one column a run set, seeds added up."""
    shown = [(runs, _bands(runs)) for runs in sets]
    shown = [(runs, found) for runs, found in shown if found]
    if not shown:
        return None
    names = ["4-5", "3-4", "2-3", "1-2", "0-1"]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.5 + 3.4 * len(shown), 5.6), layout="constrained")
        grid = figure.subplots(5, len(shown), squeeze=False, sharex=True, sharey="row")
    filled = np.flatnonzero(sum(counts for _, found in shown for counts, _, _ in found.values()))
    centres = (BAND_EDGES[:-1] + BAND_EDGES[1:]) / 2
    rows = []
    for column, (runs, found) in enumerate(shown):
        for row, band in enumerate(names):
            axes = grid[row][column]
            if band in found:
                counts, pairs, mean = found[band]
                axes.bar(centres, counts / counts.sum(), width=0.05, color=COLOURS[column % 7])
                axes.axvline(mean, color="black", lw=1, ls=":")
                rows.append([runs.name, band, str(pairs), f"{mean:.3f}"])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(f"grade {band}", rotation=0, ha="right", va="center")
        grid[0][column].set_title(_shown(runs.name), fontsize=10)
        grid[-1][column].set_xlabel("cosine similarity")
        grid[-1][column].set_xlim(BAND_EDGES[filled[0]], BAND_EDGES[filled[-1] + 1])
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
    figure, axes = _axes("Spectrum")
    rows = []
    for number, runs in enumerate(sets):
        geometry = runs.runs[0].scores.get("geometry")
        if not geometry:
            continue
        values = np.maximum(geometry["singular_values"], 1e-6)
        axes.plot(
            np.arange(1, len(values) + 1),
            values,
            color=COLOURS[number % 7],
            label=_shown(runs.name),
        )
        rows.append(
            [
                runs.name,
                f"{geometry['effective_rank']:.1f} of {geometry['dim']}",
                f"{geometry['mean_cosine']:.3f}",
                geometry["collapse"],
            ]
        )
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
        "each). A cliff means that the axes beyond it are not used: dimensional collapse.",
        figure,
        ["run", "effective rank", "mean cosine of distinct sentences", "collapse"],
        rows,
    )


def pictures(sets: Sequence[RunSet]) -> list[Picture]:
    """Every figure for which there are numbers."""
    metrics = {run.dev["metric"] for runs in sets for run in runs.runs if run.dev}
    tasks = {run.dev["task"] for runs in sets for run in runs.runs if run.dev}
    dev = f"{' / '.join(sorted(tasks))}, {' / '.join(LABELS[m] for m in sorted(metrics))} ×100"
    found = [
        curve(
            sets, "loss", "Training loss", "Mean over the steps since the last line of the log.", 1
        ),
        curve(sets, "eval_dev_score", "Dev score", f"It chooses the checkpoint: {dev}.", 100),
        plane(sets),
        bands(sets),
        spectrum(sets),
    ]
    return [picture for picture in found if picture is not None]


def run_name(runs: RunSet, run: Run) -> str:
    """A run's name beside those of other sets."""
    return runs.name if len(runs.runs) == 1 else f"{runs.name}/{run.name}"


def _shown(name: str) -> str:
    """A name as a figure takes it: a legend leaves out what starts with _, $ begins a formula."""
    text = visible(name)
    text = (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…").replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def _axes(title: str) -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    return figure, axes


def _series(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    entries = [entry for entry in run.log if key in entry]
    return (
        np.array([entry["step"] for entry in entries]),
        np.array([entry[key] for entry in entries], dtype=np.float64),
    )


def _bands(runs: RunSet) -> dict[str, tuple[np.ndarray, int, float]]:
    geometries = [run.scores["geometry"] for run in runs.runs if "geometry" in run.scores]
    found = {}
    for band in geometries[0]["bands"] if geometries else ():
        cells = [geometry["bands"][band] for geometry in geometries]
        counts = np.sum([cell["counts"] for cell in cells], axis=0)
        found[band] = counts, cells[0]["pairs"], float(np.mean([cell["mean"] for cell in cells]))
    return found
