"""One table of what the other benchmarks have measured.

    python benchmarks/summary.py

Reads results/*.json and prints a line for each comparison with sentence-transformers: how many
times as fast or as small (the median over the rounds), the range over the rounds, and for training
in float32 the share of the machine's throughput in matrix products that is reached. Writes
results/summary.md and quotes it in docs/performance.md.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from measure import QUOTING, RESULTS, quote

from simcse.files import write_atomically

MEAN = ("training", "mini-bert (4 layers, 256 wide), mean pooling")
CLS = ("training", "mini-bert (4 layers, 256 wide), cls pooling")
MIXED = ("encoding", "mini-bert, mixed lengths")
PREPARING = ("preparation", "Preparing")
OURS, OURS_BF16, OURS_INT8 = "ours", "ours, bfloat16", "ours, int8"
PEER, PEER_BF16 = "sentence-transformers", "sentence-transformers, bfloat16"
ENCODE = "SentenceTransformer.encode"

# What is compared, results file and beginning of the table's name, ours, the peer.
LINES = [
    ("training, defaults, bfloat16 in hardware", MEAN, OURS_BF16, PEER),
    ("training, defaults, float32 only", MEAN, OURS, PEER),
    ("training, CLS pooling, float32", CLS, OURS, PEER),
    ("training, mean pooling, both in bfloat16", MEAN, OURS_BF16, PEER_BF16),
    ("training, CLS pooling, both in bfloat16", CLS, OURS_BF16, PEER_BF16),
    ("encoding texts of mixed lengths, float32", MIXED, OURS, ENCODE),
    ("the same with `--precision bfloat16`", MIXED, OURS_BF16, ENCODE),
    ("the same as ONNX in int8", MIXED, OURS_INT8, ENCODE),
    ("text to token ids, beside `datasets.map`", PREPARING, OURS, "datasets.map"),
]


def main() -> int:
    """Print and write the table."""
    rows = ["| | times | range | share of peak |", "|---|---|---|---|"]
    for what, (file, table), ours, peer in LINES:
        path = RESULTS / f"{file}.json"
        tables = json.loads(path.read_text(encoding="utf-8"))["tables"] if path.is_file() else {}
        found: dict[str, Any] = next(
            (t for name, t in tables.items() if name.startswith(table)), {}
        )
        if ours not in found or peer not in found:
            continue
        pairs = zip(found[ours]["values"], found[peer]["values"], strict=True)
        ratios = [a / b for a, b in pairs]
        share = found[ours].get("share of peak")
        cells = [
            what,
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            "" if share is None else f"{share:.0%}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    text = "\n".join(rows) + "\n"
    print(text)
    write_atomically(RESULTS / "summary.md", text)
    page = QUOTING.read_text(encoding="utf-8")
    write_atomically(QUOTING, quote(page, "summary", text))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
