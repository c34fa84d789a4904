"""Training models further on documents: what gets better, what gets worse, and who can tell.

    python docs/studies/adapt.py SENTEVAL CAPTIONS.tsv MODEL DOCUMENTS.jsonl [SEEDS]

Two models to start from (the shipped encoder and MODEL, a sentence-transformers model that is good
already) are trained for 50 steps on two collections of documents (python-docs and DOCUMENTS) by
the recipes of `RECIPES`. Every run is scored on the documents that it held out, on STS13 and STS-B,
and on retrieval among captions, made from CAPTIONS: a caption has to find the others of its
picture. Runs lie below outputs/studies/adapt; finished ones are not
repeated, so the script can be stopped and started again, and given more seeds (default 0). After
each run it writes adapt.table.md beside itself: the change by training, and how well the label-free
score ranks all models that were trained, beside the labelled ones.
"""

from __future__ import annotations

import csv
import gzip
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from simcse.cli.main import main as simcse
from simcse.evaluation.sources import load_task

FOLDER = Path("outputs/studies/adapt")
TABLE = Path(__file__).with_name("adapt.table.md")
KEEP = "objective.terms={info_nce: 1, distill_start: 1}"
RECIPES = {
    "dropout": ["data.positives=dropout"],
    "spans": ["data.positives=spans"],
    "spans, distill_start": ["data.positives=spans", KEEP],
    "title": ["data.positives=title"],
    "spans, learning rate × 10": ["data.positives=spans"],
    "spans, distill_start, learning rate × 10": ["data.positives=spans", KEEP],
}
ONCE = tuple(RECIPES)[3:]  # with the first seed alone
LABELLED = {"STS13": "sts-2013", "STSB": "sts-benchmark"}
CAPTIONS = "captions"
PICTURES, QUERIES = 600, 300


def main() -> int:
    """Run what is missing, seed by seed, rewriting the table after every run."""
    if len(sys.argv) not in (5, 6):
        print(__doc__, file=sys.stderr)
        return 2
    senteval, captions, model, documents = sys.argv[1:5]
    seeds = [int(seed) for seed in (sys.argv[5] if len(sys.argv) > 5 else "0").split(",")]
    tested = make_captions(Path(captions), FOLDER)
    make_graded(Path(senteval))
    starts = {"mini-bert": "mini-bert", "MiniLM": model}
    tests = [
        f"{{kind: graded, file: {FOLDER / name}.csv, name: {own}}}"
        for name, own in LABELLED.items()
    ]
    tests.append(f"{{kind: retrieval, file: {tested}, name: {CAPTIONS}}}")
    collections = {"python-docs": "python-docs", Path(documents).stem: documents}
    rounds = [(seed, recipe) for seed in seeds for recipe in RECIPES if recipe not in ONCE]
    rounds += [(seeds[0], recipe) for recipe in ONCE]
    for collection, text in collections.items():
        for seed, recipe in rounds:
            for start, name in starts.items():
                rate = 2e-4 if start == "mini-bert" else 2e-5
                own = start == "mini-bert"
                first = seed == seeds[0] and recipe == "dropout"
                arguments = [
                    "train",
                    "quickstart",
                    f"encoder.name={name}",
                    f"encoder.pooling={'mean' if own else 'null'}",
                    f"encoder.projection={'train_only' if own else 'none'}",
                    f"data.train={text}",
                    "data.form=documents",
                    *RECIPES[recipe],
                    f"training.learning_rate={rate * (10 if '×' in recipe else 1)}",
                    f"evaluation.tasks=[documents, {', '.join(tests)}]",
                    "evaluation.precision=auto",
                    "training.steps=50",
                    "evaluation.every=50",
                    *([] if first else ["evaluation.raw_poolings=[]"]),
                    f"seed={seed}",
                    f"output={folder(start, collection, recipe, seed)}",
                ]
                if status := simcse(arguments):
                    return status
                TABLE.write_text(tables(starts, collections, seeds), encoding="utf-8")
    return 0


def folder(start: str, collection: str, recipe: str, seed: int) -> Path:
    """Run folder of one cell and seed."""
    name = recipe.replace(", ", "-").replace(" ", "-").replace("×", "x")
    return FOLDER / start / collection / f"{name}-{seed}"


def make_captions(path: Path, below: Path) -> Path:
    """Write the retrieval test: of each picture the first caption is a query."""
    target = below / CAPTIONS
    if (target / "qrels.tsv").is_file():
        return target
    groups: dict[str, list[str]] = defaultdict(list)
    for picture, caption in read_captions(path):
        groups[picture].append(caption)
    chosen = [name for name in sorted(groups) if len(groups[name]) > 1][:PICTURES]
    target.mkdir(parents=True, exist_ok=True)
    corpus, queries, judged = [], [], ["query-id\tcorpus-id\tscore"]
    for number, name in enumerate(chosen):
        first, *others = groups[name]
        for place, caption in enumerate(others):
            corpus.append(json.dumps({"_id": f"{name}-{place}", "text": caption}))
            if number < QUERIES:
                judged.append(f"{name}\t{name}-{place}\t1")
        if number < QUERIES:
            queries.append(json.dumps({"_id": name, "text": first}))
    for file, lines in (
        ("corpus.jsonl", corpus),
        ("queries.jsonl", queries),
        ("qrels.tsv", judged),
    ):
        (target / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def read_captions(path: Path) -> Iterator[list[str]]:
    """Picture and caption of every line."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def make_graded(senteval: Path) -> None:
    """Write the STS tasks as tests of one's own: scored alone, without STS-B's geometry."""
    for name in LABELLED:
        task = load_task(name, senteval)
        with (FOLDER / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence1", "sentence2", "score"])
            writer.writerows(zip(task.sentence1, task.sentence2, task.grades, strict=True))


def scores(path: Path) -> dict[str, dict[str, float]] | None:
    """Of a finished run, ×100: ``trained``, and of the first runs the pooling of the untrained."""
    if not (path / "scores.json").is_file():
        return None
    found = json.loads((path / "scores.json").read_text(encoding="utf-8"))
    return {
        name: measures(tasks)
        for name, tasks in (("trained", found["trained"]), *found["raw"].items())
    }


def measures(tasks: dict[str, dict[str, float]]) -> dict[str, float]:
    """The label-free score, the mean of two STS tasks, and retrieval among captions."""
    sts = statistics.mean(tasks[name]["cosine_spearman"] for name in LABELLED.values())
    return {
        "documents": 100 * tasks["documents"]["ndcg_at_10"],
        "STS": 100 * sts,
        "captions": 100 * tasks[CAPTIONS]["ndcg_at_10"],
    }


def tables(starts: dict[str, str], collections: dict[str, str], seeds: list[int]) -> str:
    """Both tables in Markdown."""
    lines = [
        "| start | documents | recipe | seeds | documents: nDCG@10 | STS: ρ | captions: nDCG@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    points: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for start in starts:
        for collection in collections:
            before = None
            rows = []
            for recipe in RECIPES:
                runs = [scores(folder(start, collection, recipe, seed)) for seed in seeds]
                done = [run for run in runs if run is not None]
                points[start, collection] += [run["trained"] for run in done]
                if before is None and done:
                    before = next(values for name, values in done[0].items() if name != "trained")
                cells = [change(done, before, name) for name in ("documents", "STS", "captions")]
                rows.append(
                    f"| {start} | {collection} | {recipe} | {len(done)} | {' | '.join(cells)} |"
                )
            if before is not None:
                points[start, collection].append(before)
                cells = [f"{value:.1f}" for value in before.values()]
                rows.insert(0, f"| {start} | {collection} | untrained | | {' | '.join(cells)} |")
            lines += rows
    lines += [
        "",
        "| models | n | documents, STS | documents, captions | STS, captions |",
        "|---|---|---|---|---|",
    ]
    groups = {f"{start}, {collection}": found for (start, collection), found in points.items()}
    for collection in collections:
        both = [point for key, found in points.items() if key[1] == collection for point in found]
        groups[f"both starts, {collection}"] = both
    for name, found in groups.items():
        if len(found) > 3:
            pairs = (("documents", "STS"), ("documents", "captions"), ("STS", "captions"))
            cells = [agreement(found, *pair) for pair in pairs]
            lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def change(
    runs: list[dict[str, dict[str, float]]], before: dict[str, float] | None, measure: str
) -> str:
    """Mean after training, and its difference to before: ± the seeds' standard deviation."""
    if not runs or before is None:
        return ""
    after = [run["trained"][measure] for run in runs]
    difference = statistics.mean(after) - before[measure]
    spread = f" ± {statistics.stdev(after):.1f}" if len(after) > 1 else ""
    return f"{statistics.mean(after):.1f}{spread} ({difference:+.1f})"


def agreement(points: list[dict[str, float]], first: str, second: str) -> str:
    """Rank correlation of two measures over models, with a 95% interval by the bootstrap."""
    values = np.array([[point[first], point[second]] for point in points])
    generator = np.random.default_rng(0)
    if not np.ptp(values, axis=0).all():
        return "one is the same for all"
    drawn = []
    for _ in range(2000):
        sample = values[generator.integers(0, len(values), len(values))]
        if np.ptp(sample, axis=0).all():
            drawn.append(spearmanr(*sample.T).statistic)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{spearmanr(*values.T).statistic:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
