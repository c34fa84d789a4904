"""Time of the STS tasks: this project against mteb's own run, on the same model and text.

    python benchmarks/evaluation.py MODEL SENTEVAL [--rounds 3]

In each round, one after the other in one process: mteb.evaluate with the SentenceTransformer as it
is (its defaults, batches of 32), this project's own route (`simcse evaluate MODEL --data SENTEVAL`)
and its mteb route (`--tasks mteb:STS12,…`). Tasks are those of the seven whose files the folder
holds. Reading the files counts for ours; mteb gets its data loaded. Scores must agree to 1e-6.
Prints a table and writes benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import mteb
from sentence_transformers import SentenceTransformer

from simcse.encoders.encoder import fingerprint
from simcse.encoders.encoding import encode_by_length
from simcse.encoders.loading import load_model
from simcse.environment import environment
from simcse.evaluation.mteb_tasks import evaluate_mteb, fill_from, find_tasks
from simcse.evaluation.names import MTEB, MTEB_STS, STS
from simcse.evaluation.protocol import evaluate
from simcse.evaluation.sources import is_here, load_task
from simcse.files import write_atomically

RESULT = Path(__file__).parent / "results" / "evaluation.json"
OTHER_NAME = {ours: theirs.removeprefix(MTEB) for theirs, ours in MTEB_STS.items()}


def main() -> int:
    """Run the rounds, check the scores, print and write the table."""
    parser = argparse.ArgumentParser(description="Time of the STS tasks against mteb's own run.")
    parser.add_argument("model")
    parser.add_argument("senteval", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("mteb").setLevel(logging.ERROR)
    model = load_model(parsed.model, None, None)
    names = [name for name in STS if is_here(name, parsed.senteval)]
    ways = {"mteb": plain_mteb, "ours": own_route, "ours, through mteb": mteb_route}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(parsed.rounds):
        scores = {}
        for way, run in ways.items():
            elapsed, scores[way] = run(model, names, parsed.senteval)
            seconds[way].append(elapsed)
        for way, found in scores.items():
            for name, score in found.items():
                if abs(score - scores["mteb"][name]) > 1e-6:
                    raise SystemExit(f"{name}: {way} gives {score}, mteb {scores['mteb'][name]}")
    tasks = [load_task(name, parsed.senteval) for name in names]
    texts = [text for task in tasks for text in task.texts()]
    base = statistics.median(seconds["mteb"])
    rows = {
        way: {
            "seconds": times,
            "median": statistics.median(times),
            "ratio": statistics.median(times) / base,
        }
        for way, times in seconds.items()
    }
    print(f"{', '.join(names)}: {len(texts):,} texts, {len(set(texts)):,} distinct")
    print(f"{'':20}  median s  ratio to mteb  all rounds")
    for way, row in rows.items():
        times = " ".join(f"{t:.1f}" for t in seconds[way])
        print(f"{way:20}  {row['median']:8.1f}  {row['ratio']:13.2f}  {times}")
    result = {
        "model": Path(parsed.model).name,
        "tasks": names,
        "texts": len(texts),
        "distinct": len(set(texts)),
        "ways": rows,
        "environment": environment(0, ["benchmarks/evaluation.py"]),
    }
    write_atomically(RESULT, json.dumps(result, indent=2) + "\n")
    return 0


def plain_mteb(
    model: SentenceTransformer, names: list[str], data: Path
) -> tuple[float, dict[str, float]]:
    """Mteb as its documentation shows it."""
    tasks = find_tasks([OTHER_NAME[name] for name in names])
    for task in tasks:
        fill_from(data, task)
    started = time.perf_counter()
    found = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False).task_results
    elapsed = time.perf_counter() - started
    scores = {result.task_name: result.get_score() for result in found}
    return elapsed, {name: scores[OTHER_NAME[name]] for name in names}


def own_route(
    model: SentenceTransformer, names: list[str], data: Path
) -> tuple[float, dict[str, float]]:
    """`simcse evaluate --data`, geometry left out."""
    started = time.perf_counter()
    tasks = [load_task(name, data) for name in names]
    scores = evaluate(lambda texts: encode_by_length(model, texts, 128), tasks).scores
    elapsed = time.perf_counter() - started
    return elapsed, {name: scores[name]["cosine_spearman"] for name in names if name != "SICK-R"}


def mteb_route(
    model: SentenceTransformer, names: list[str], data: Path
) -> tuple[float, dict[str, float]]:
    """`simcse evaluate --tasks mteb:…`."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        tasks = find_tasks([OTHER_NAME[name] for name in names])
        scores = evaluate_mteb(
            model,
            lambda texts: encode_by_length(model, texts, 128),
            "local/model",
            fingerprint(model),
            tasks,
            data,
            Path(folder),
            128,
        )
        elapsed = time.perf_counter() - started
    return elapsed, {name: scores[f"{MTEB}{OTHER_NAME[name]}"]["cosine_spearman"] for name in names}


if __name__ == "__main__":
    raise SystemExit(main())
