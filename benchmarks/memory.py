"""Peak memory of a training step over the batch size, with and without gradient caching.

    python benchmarks/memory.py [--largest 4096] [--rounds 2]

Every measurement is a process of its own: two steps (forward, backward, AdamW) of info_nce on the
shipped mini-bert, texts of 32 random tokens, at last of 128; the process's largest resident memory
and the time of the second step. The peer is sentence-transformers' loss on the same model and ids:
MultipleNegativesRankingLoss, or with caching CachedMultipleNegativesRankingLoss with the same
mini-batch of 64. Without caching the batch goes up to 1,024, and both sides are also measured with
an allocator that keeps freed memory (KEEPING).
Writes results/memory.json and results/memory.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import Measured, write_results

PEER = "sentence-transformers"
MINI_BATCH, LENGTH = 64, 32
LONG = 128  # as many tokens as mini-bert takes
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""For glibc: nothing that is freed goes back to the system before the process ends."""

STEP = """
import json, resource, sys, time
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss)
from pathlib import Path
from simcse.encoders import encoder
from simcse.training.loop import backpropagate
from simcse.training.setup import make_accelerator
from simcse.config.reading import validate
from simcse.training.loss import TrainingLoss
side, batch, mini, length = sys.argv[1], *map(int, sys.argv[2:])
mini = mini or None
config = validate({"training": {"mini_batch_size": mini}}, "benchmark")
model = encoder.build(config.encoder).train()
if side == "ours":
    loss = TrainingLoss(model, config)
    accelerator = make_accelerator(config, Path())
elif mini is None:
    loss = MultipleNegativesRankingLoss(model, scale=20)
else:
    loss = CachedMultipleNegativesRankingLoss(model, scale=20, mini_batch_size=mini)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
seconds = []
for step in range(2):
    ids = torch.randint(5, 8000, (batch, length))
    mask = torch.ones_like(ids)
    started = time.perf_counter()
    if side == "ours":
        backpropagate(accelerator, loss, {
            "input_ids": ids.repeat(2, 1), "attention_mask": mask.repeat(2, 1),
            "identities": torch.arange(batch).repeat(2, 1)})
    else:
        loss([{"input_ids": ids, "attention_mask": mask} for _ in range(2)], None).backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.perf_counter() - started)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"peak": peak, "seconds": seconds[-1]}))
"""


def main() -> int:
    """Run every batch size in turn, both sides alternately."""
    parser = argparse.ArgumentParser(description="Peak memory over the batch size.")
    parser.add_argument("--largest", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    parsed = parser.parse_args()
    tables = {}
    batch = 64
    while batch <= parsed.largest:
        minis = (0, MINI_BATCH) if batch <= 1024 else (MINI_BATCH,)
        rounds = parsed.rounds if batch <= 1024 else 1
        tables[f"batch {batch:,}"] = measure(batch, LENGTH, minis, rounds)
        batch *= 4
    tables[f"batch 64, {LONG} tokens"] = measure(64, LONG, (0,), parsed.rounds)
    write_results("memory", tables, __doc__, PEER)
    return 0


def measure(batch: int, length: int, minis: Sequence[int], rounds: int) -> dict[str, Measured]:
    """Every way at one size, both sides alternately."""
    ways = {}
    for mini in minis:
        for keeping in (False, True) if not mini else (False,):
            found: dict[str, list[dict[str, float]]] = {PEER: [], "ours": []}
            for _ in range(rounds):
                for side, results in found.items():
                    results.append(step(side, batch, mini, length, keeping=keeping))
            for side, results in found.items():
                name = f"{side}, cached" if mini else side
                name += ", memory kept" if keeping else ""
                seconds = {"s a step": min(r["seconds"] for r in results)}
                ways[name] = Measured("MB", [r["peak"] for r in results], seconds)
    return ways


def step(side: str, batch: int, mini: int, length: int, *, keeping: bool) -> dict[str, float]:
    """Peak memory in MB and seconds of a step, in a process of its own."""
    numbers = [str(number) for number in (batch, mini, length)]
    done = subprocess.run(
        [sys.executable, "-c", STEP, side, *numbers],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **(KEEPING if keeping else {})},
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    way = f"{side}, batch {batch}, mini-batch {mini or 'none'}{', memory kept' if keeping else ''}"
    print(f"{way}: {found['peak']:.0f} MB, {found['seconds']:.2f} s", flush=True)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
