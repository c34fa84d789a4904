"""Encoding throughput: this project's route against SentenceTransformer.encode.

    python benchmarks/encoding.py [TEXT] [--senteval FOLDER] [--model NAME] [--rounds 4]
        [--texts 3000] [--no-onnx]

Same model, texts, batch size 64, threads and process; in each round every way encodes all texts,
one after the other. "mixed lengths" are distinct texts of one to six sentences, the worst case for
nothing but its padding. With a folder in SentEval's layout there are two more: "STS sentences" are
distinct sentences of STS12, STS13 and STS-B; "STS pairs" are the same tasks' sentences as they
stand, repeats and all. Vectors must agree to 1e-5, but for those in bfloat16 and in int8. The ONNX
graphs are made here from the same model; its ρ × 100 on the shipped pairs stands beside theirs. The
share of tokenising is its own time, the best of three, in that of the whole. Writes
results/encoding.json and results/encoding.md.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from measure import Measured, quiet, write_results
from sentence_transformers import SentenceTransformer
from training import add_text, first_lines

from simcse.encoders.encoding import encode_by_length, token_ids
from simcse.encoders.loading import load_model
from simcse.encoders.onnx_graph import GRAPHS, with_graph
from simcse.evaluation.protocol import evaluate
from simcse.evaluation.sources import load_task
from simcse.publishing.onnx_export import write_graph, write_int8

BATCH = 64
PEER = "SentenceTransformer.encode"


def main() -> int:
    """Run the rounds, check the vectors, print and write the tables."""
    parser = argparse.ArgumentParser(description="Encoding throughput against the peer's.")
    add_text(parser)
    parser.add_argument("--senteval", type=Path, help="a folder in SentEval's layout")
    parser.add_argument("--model", action="append", help="may be given several times")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--no-onnx", action="store_true", help="leave the ONNX graphs out")
    parsed = parser.parse_args()
    quiet()
    tables = {}
    for name in parsed.model or ["mini-bert"]:
        model = load_model(name, "mean" if name == "mini-bert" else None, None)
        forms = {} if parsed.no_onnx else graphs(model)
        for title, texts in corpora(parsed.text, parsed.senteval, parsed.texts).items():
            heading = f"{Path(name).name or name}, {title} ({len(texts):,} texts)"
            tables[heading] = measure(model, forms, texts, parsed.rounds)
    write_results("encoding", tables, __doc__, PEER)
    return 0


def corpora(path: Path | None, senteval: Path | None, count: int) -> dict[str, list[str]]:
    """Texts by what they are."""
    generator = np.random.default_rng(0)
    sentences = first_lines(path, 4 * count)
    mixed, place = [], 0
    for size in generator.integers(1, 7, count):
        mixed.append(" ".join(sentences[place : place + size]))
        place += int(size)
    found = {"mixed lengths": [text for text in mixed if text]}
    if senteval is None:
        return found
    tasks = [load_task(name, senteval) for name in ("STS12", "STS13", "STSB")]
    repeated = [text for task in tasks for text in task.texts()]
    chosen = [repeated[i] for i in generator.permutation(len(repeated))]
    distinct = list(dict.fromkeys(chosen))
    return {**found, "STS sentences": distinct[:count], "STS pairs": chosen[: 2 * count]}


def graphs(model: SentenceTransformer) -> dict[str, SentenceTransformer]:
    """The model as an ONNX graph, in float32 and in int8."""
    with tempfile.TemporaryDirectory() as name:
        folder, moved = Path(name), copy.deepcopy(model).to("cpu")
        (folder / "onnx").mkdir()
        write_graph(moved, folder / GRAPHS["onnx"])
        write_int8(folder / GRAPHS["onnx"], folder / GRAPHS["onnx-int8"])
        return {
            "ours, ONNX": with_graph(moved, folder, "onnx", label="ONNX"),
            "ours, int8": with_graph(moved, folder, "onnx-int8", label="int8"),
        }


def spearman(model: SentenceTransformer) -> float:
    """On the shipped graded pairs, ×100."""
    task = load_task("pairs", None)
    found = evaluate(lambda texts: encode_by_length(model, texts, BATCH), [task])
    return 100 * found.value("pairs", "cosine_spearman")


def measure(
    model: SentenceTransformer,
    forms: dict[str, SentenceTransformer],
    texts: list[str],
    rounds: int,
) -> dict[str, Measured]:
    """Texts a second of all ways."""
    ways: dict[str, Callable[[], np.ndarray]] = {
        PEER: lambda: model.encode(texts, batch_size=BATCH, show_progress_bar=False),
        "ours": lambda: encode_by_length(model, texts, BATCH),
        "ours, bfloat16": lambda: encode_by_length(model, texts, BATCH, precision="bfloat16"),
    }
    for way, form in forms.items():
        ways[way] = partial(encode_by_length, form, texts, BATCH)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    model.encode(texts[:BATCH])
    for _ in range(rounds):
        vectors = {}
        for way, encode in ways.items():
            started = time.perf_counter()
            vectors[way] = encode()
            rates[way].append(len(texts) / (time.perf_counter() - started))
        gap = float(np.abs(vectors["ours"] - vectors[PEER]).max())
        if gap > 1e-5:
            raise SystemExit(f"vectors differ by {gap:.1e}")
    tokenising = min(timed(lambda: token_ids(model, list(dict.fromkeys(texts)))) for _ in range(3))
    share = tokenising * statistics.median(rates["ours"]) / len(texts)
    extra = {"ours": {"share of tokenising": share}}
    for way, form in ({PEER: model} | forms).items():
        extra[way] = {"pairs, ρ × 100": spearman(form)}
    return {
        way: Measured("texts/s", found, extra.get(way, {}), higher_is_better=True)
        for way, found in rates.items()
    }


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main())
