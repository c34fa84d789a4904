"""Peak memory of a training step over the batch size, with and without gradient caching.

    python benchmarks/memory.py [--largest 4096] [--rounds 2]

Every measurement is a process of its own: two steps (forward, backward, AdamW) of info_nce on the
shipped mini-bert, texts of 32 random tokens, and the process's largest resident memory. The peer is
sentence-transformers' loss on the same model and ids: MultipleNegativesRankingLoss, or with caching
CachedMultipleNegativesRankingLoss with the same mini-batch of 64. Without caching the batch goes up
to 1,024. Writes results/memory.json and results/memory.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from measure import Measured, write_results

PEER = "sentence-transformers"

STEP = """
import json, resource, sys, time
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss)
from simcse import encoder
from simcse.config import validate
from simcse.loss import TrainingLoss
side, batch, mini = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None
config = validate({"training": {"mini_batch_size": mini}}, "benchmark")
model = encoder.build(config.encoder).train()
if side == "ours":
    loss = TrainingLoss(model, config)
elif mini is None:
    loss = MultipleNegativesRankingLoss(model, scale=20)
else:
    loss = CachedMultipleNegativesRankingLoss(model, scale=20, mini_batch_size=mini)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
seconds = []
for step in range(2):
    ids = torch.randint(5, 8000, (batch, 32))
    mask = torch.ones_like(ids)
    started = time.perf_counter()
    if side == "ours":
        found = loss([{"input_ids": ids.repeat(2, 1), "attention_mask": mask.repeat(2, 1),
                       "identities": torch.arange(batch).repeat(2, 1)}])
    else:
        found = loss([{"input_ids": ids, "attention_mask": mask} for _ in range(2)], None)
    found.backward()
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
        ways = {}
        for mini in (0, 64):
            if batch > 1024 and not mini:
                continue
            found: dict[str, list[dict[str, float]]] = {PEER: [], "ours": []}
            for _ in range(parsed.rounds if batch <= 1024 else 1):
                for side, results in found.items():
                    results.append(step(side, batch, mini))
            for side, results in found.items():
                name = f"{side}, cached" if mini else side
                seconds = {"s a step": min(r["seconds"] for r in results)}
                ways[name] = Measured("MB", [r["peak"] for r in results], seconds)
        tables[f"batch {batch:,}"] = ways
        batch *= 4
    write_results("memory", tables, __doc__, PEER)
    return 0


def step(side: str, batch: int, mini: int) -> dict[str, float]:
    """Peak memory in MB and seconds of the second step, in a process of its own."""
    command = [sys.executable, "-c", STEP, side, str(batch), str(mini)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side} batch {batch} mini-batch {mini or 'none'}: {found['peak']:.0f} MB", flush=True)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
