"""What training for several sizes of embeddings (objective.dims) is worth at each size.

    python docs/studies/matryoshka.py STEPS SEEDS [SENTEVAL]

trains the quickstart without a projection for STEPS steps, with each of SEEDS (such as 0,1,2), with
and without `objective.dims=256,128,64,32,16`, below outputs/studies/matryoshka/STEPS, and scores
each model with `simcse evaluate --retention`: on the documents held out, on the shipped pairs, and,
with a folder in SentEval's layout, on STS13 and STS-B. After each run it writes
matryoshka.STEPS.md beside itself. Finished runs are not repeated, so the script can be stopped and
started again.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from simcse.cli.main import main as simcse
from simcse.evaluation.sources import load_task
from simcse.evaluation.statistics import summarize, welch
from simcse.evaluation.table import LABELS

FOLDER = Path("outputs/studies/matryoshka")
SIZES = "256,128,64,32,16"
SETTINGS = {"whole": [], "dims": [f"objective.dims={SIZES}"]}


def main() -> int:
    """Run what is missing, seed by seed, rewriting the table after every run."""
    if len(sys.argv) not in (3, 4):
        print(__doc__, file=sys.stderr)
        return 2
    steps, seeds = sys.argv[1], sys.argv[2].split(",")
    own = ["--own", *(f"graded:{path}" for path in make_graded(*sys.argv[3:]))]
    for seed in seeds:
        for setting, words in SETTINGS.items():
            run = FOLDER / steps / f"{setting}-{seed}"
            common = ["encoder.projection=none", f"training.steps={steps}", f"seed={seed}"]
            common += [f"evaluation.every={steps}", "evaluation.raw_poolings=[]"]
            common += ["evaluation.tasks=pairs", f"output={run}"]
            if status := simcse(["train", "quickstart", *common, *words]):
                return status
            if not (run / "evaluation" / "scores.json").is_file():
                score = ["evaluate", str(run), "--retention", "--tasks", "documents,pairs"]
                if status := simcse([*score, *(own if own[1:] else [])]):
                    return status
            table = Path(__file__).with_name(f"matryoshka.{steps}.md")
            table.write_text(tables(FOLDER / steps, seeds), encoding="utf-8")
    return 0


def make_graded(senteval: str | None = None) -> list[Path]:
    """Write the STS tasks as tests of one's own: scored alone, without STS-B's geometry."""
    paths = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ("STS13", "STSB") if senteval else ():
        task = load_task(name, Path(senteval))
        paths.append(FOLDER / f"{name}.graded.csv")
        with paths[-1].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence1", "sentence2", "score"])
            writer.writerows(zip(task.sentence1, task.sentence2, task.grades, strict=True))
    return paths


def scores(
    folder: Path, setting: str, seeds: list[str], key: str = "score"
) -> dict[tuple[str, str, int, str], list[float]]:
    """Task, metric, dims and vectors to the score of each seed, ×100."""
    found: dict[tuple[str, str, int, str], list[float]] = {}
    for seed in seeds:
        path = folder / f"{setting}-{seed}" / "evaluation" / "scores.json"
        if path.is_file():
            for row in json.loads(path.read_text(encoding="utf-8"))["retention"]:
                where = (row["task"], row["metric"], row["dims"], row["vectors"])
                found.setdefault(where, []).append(100 * row[key])
    return found


def tables(folder: Path, seeds: list[str]) -> str:
    """The table in Markdown: mean ± standard deviation, and the difference with its interval."""
    lines = [
        "| task | dims | vectors | bytes | untrained | trained | kept | trained with dims | kept "
        "| with − without (95% interval) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    whole, dims = scores(folder, "whole", seeds), scores(folder, "dims", seeds)
    untrained = scores(folder, "whole", seeds, "untrained")
    for where, without in sorted(whole.items(), key=lambda item: (item[0][0], -item[0][2])):
        task, metric, size, vectors = where
        share = {"float32": 4, "int8": 1, "binary": 1 / 8}[vectors]
        name = task.removeprefix("graded:").removesuffix(".graded.csv")
        cells = [f"{name}: {LABELS[metric]}", str(size), vectors, f"{size * share:g}"]
        cells.append(f"{untrained[where][0]:.1f}")
        for found in (whole, dims):
            full = found.get((task, metric, 256, "float32"))
            cells += shown(found.get(where, []), full or [])
        both = dims.get(where, [])
        cells.append("")
        if len(without) > 1 and len(both) > 1:
            change = welch(without, both)
            text = f"{change.difference:+.1f} ({change.low:+.1f} to {change.high:+.1f})"
            cells[-1] = text.replace("-", "−")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(values: list[float], full: list[float]) -> list[str]:
    """Mean and standard deviation of the seeds, and the share of the score of whole embeddings."""
    if not values:
        return ["", ""]
    found = summarize(values)
    spread = "" if found.std is None else f" ± {found.std:.1f}"
    return [f"{found.mean:.1f}{spread}", f"{found.mean / summarize(full).mean:.0%}"]


if __name__ == "__main__":
    raise SystemExit(main())
