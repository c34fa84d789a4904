"""Encoding and searching 10,000, 100,000 and 1,000,000 sentences.

    python benchmarks/million.py MODEL [--text FILE] [--backend torch]
        [--sizes 10000,100000,1000000]

``simcse encode`` embeds the first distinct lines of the text in a process of its own, whose largest
resident memory is measured; without ``--text`` the sentences are a random walk over the words of
the shipped documents. The 1,000 lines that follow are queries, all searched for at once in three
indexes of ``simcse.inference.index``: numpy's and faiss' exact ones and faiss' graph of neighbours
(HNSW), whose recall@10 is measured against the exact result. Times are those of one run. Writes
results/million-MODEL.json and results/million-MODEL.md, with the name of the model's folder.
"""

from __future__ import annotations

import argparse
import itertools
import lzma
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import Measured, quiet, write_results

from simcse.data.documents import Documents, embedded_documents
from simcse.encoders.encoding import encode_by_length
from simcse.encoders.loading import load_model
from simcse.inference import index

QUERIES = 1000
TOP = 10
WAYS = {"numpy": (False, None), "faiss": (True, None), "HNSW": (True, "hnsw")}


def main() -> int:
    """Measure every size, print and write the table."""
    parser = argparse.ArgumentParser(description="Encoding and search at three sizes.")
    parser.add_argument("model", help="run folder, model folder or Hub name")
    parser.add_argument("--text", type=Path, help="one sentence a line, also .xz")
    parser.add_argument("--backend", default="torch", help="as of simcse encode")
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parsed = parser.parse_args()
    quiet()
    rows, name = {}, Path(parsed.model).name
    for size in map(int, parsed.sizes.split(",")):
        lines = list(itertools.islice(distinct(parsed.text), size + QUERIES))
        if len(lines) < size + QUERIES:
            raise SystemExit(f"{parsed.text}: has {len(lines):,} sentences, too few")
        row = measure(lines[:size], lines[size:], parsed.model, parsed.backend)
        rows[f"{size:,} sentences"] = row
        title = f"{name}, backend {parsed.backend}, {QUERIES:,} queries"
        write_results(f"million-{name}", {title: rows}, __doc__)
    return 0


def distinct(path: Path | None) -> Iterator[str]:
    """Sentences of a file, or made up; none twice."""
    seen: set[int] = set()
    for line in walk() if path is None else read(path):
        if line and hash(line) not in seen:
            seen.add(hash(line))
            yield line


def read(path: Path) -> Iterator[str]:
    """Lines of a text file."""
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
        yield from map(str.strip, file)


def walk() -> Iterator[str]:
    """5 to 40 words each; every word follows the one before it somewhere in the documents."""
    follows: dict[str, list[str]] = defaultdict(list)
    for document in Documents(embedded_documents()).on("train"):
        for word, following in itertools.pairwise(document.text.split()):
            follows[word].append(following)
    starts, generator = list(follows), np.random.default_rng(0)
    while True:
        words = [starts[generator.integers(len(starts))]]
        for _ in range(generator.integers(4, 40)):
            options = follows.get(words[-1]) or starts
            words.append(options[generator.integers(len(options))])
        yield " ".join(words)


def measure(sentences: list[str], queries: list[str], name: str, backend: str) -> Measured:
    """Encode with the command, search in every index."""
    with tempfile.TemporaryDirectory() as folder:
        text, output = Path(folder) / "text.txt", Path(folder) / "vectors.npy"
        text.write_text("".join(f"{one}\n" for one in sentences), encoding="utf-8")
        command = ["encode", str(text), "-o", str(output), "--model", name, "--backend", backend]
        started = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-m", "simcse", *command])
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            raise SystemExit("simcse encode failed")
        vectors = np.load(output)  # (sentences, dim), normalised
    model = load_model(name, backend=backend)
    query_vectors = encode_by_length(model, queries, 64, normalize=True)
    extra = {"encode, seconds": seconds, "encode, peak GB": usage.ru_maxrss / 1e6}
    found = {}
    for way, (use_faiss, cells) in WAYS.items():
        started = time.perf_counter()
        built = index.build(sentences, list(range(len(sentences))), vectors, use_faiss, cells)
        extra[f"{way}, build, seconds"] = time.perf_counter() - started
        started = time.perf_counter()
        _, found[way] = index.nearest(built, query_vectors, TOP)
        extra[f"{way}, ms a query"] = 1000 * (time.perf_counter() - started) / len(queries)
        del built
    pairs = zip(found["HNSW"], found["faiss"], strict=True)
    extra["HNSW, recall@10"] = float(np.mean([len({*a} & {*b}) / TOP for a, b in pairs]))
    return Measured("texts/s", [len(sentences) / seconds], extra, higher_is_better=True)


if __name__ == "__main__":
    raise SystemExit(main())
