"""Memory and time of a training step: all weights of a language model, or adapters on it.

    python benchmarks/lora.py [--layers 16] [--batch 8] [--tokens 32] [--steps 2]

Each way is a process of its own: steps of info_nce (two views of every text, AdamW) on a random
Llama-like model, stored in bfloat16 as published ones are. Memory is the largest resident memory of
the process during the steps, less that before the model was built; seconds are those of the
processor, on one thread, in the fastest of the steps after the first. Linux only. Prints a table
for docs/language_models.md, and puts it there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "language_models.md"
MARK = "<!-- lora -->\n"
WAYS = {
    "all weights": {},
    "all weights, activation checkpointing": {"checkpointing": True},
    "adapters": {"lora": {"rank": 16}},
    "adapters, bfloat16 base": {"lora": {"rank": 16}, "dtype": "bfloat16"},
    "the same, activation checkpointing": {
        "lora": {"rank": 16},
        "dtype": "bfloat16",
        "checkpointing": True,
    },
}

MODEL = """
import sys
from transformers import AutoModel, AutoTokenizer, LlamaConfig
folder, layers, tokenizer = sys.argv[1], int(sys.argv[2]), sys.argv[3]
AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
AutoModel.from_config(LlamaConfig(
    vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers,
    num_attention_heads=16, num_key_value_heads=8)).bfloat16().save_pretrained(folder)
"""

STEPS = """
import json, sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from simcse.config.reading import validate
from simcse.encoders import encoder
from simcse.training.loop import backpropagate
from simcse.training.loss import TrainingLoss
from simcse.training.setup import make_accelerator, make_optimizer
folder, settings = sys.argv[1], json.loads(sys.argv[2])
batch, tokens, steps = map(int, sys.argv[3:])
def resident(key):
    [line] = [line for line in open("/proc/self/status") if line.startswith(key)]
    return int(line.split()[1]) / 1024**2
before = resident("VmRSS")
checkpointing = settings.pop("checkpointing", False)
training = {"precision": "bfloat16", "activation_checkpointing": checkpointing}
settings = {"name": folder, "dropout": 0.1, **settings}
config = validate({"encoder": settings, "training": training}, "benchmark")
model = encoder.build(config.encoder).train()
loss = TrainingLoss(model, config)
accelerator, optimizer = make_accelerator(config, Path()), make_optimizer(config, loss)
seconds = []
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
for step in range(steps + 1):
    ids = torch.randint(5, 8000, (batch, tokens)).repeat(2, 1)
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
                "identities": torch.arange(batch).repeat(2, 1)}
    started = time.process_time()
    backpropagate(accelerator, loss, features)
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.process_time() - started)
weights = [*model.parameters()]
print(json.dumps({"all": sum(w.numel() for w in weights), "memory": resident("VmHWM") - before,
    "trained": sum(w.numel() for w in weights if w.requires_grad), "seconds": min(seconds[1:])}))
"""


def main() -> int:
    """Run every way once, and write the table into the page."""
    parser = argparse.ArgumentParser(description="Memory and time of adapters.")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parsed = parser.parse_args()
    lines = [
        "| | trained parameters | memory of a step (GB) | CPU seconds a step |",
        "|---|---|---|---|",
    ]
    with TemporaryDirectory() as folder:
        tokenizer = ROOT / "simcse" / "assets" / "mini-bert"
        run(MODEL, folder, parsed.layers, tokenizer)
        for name, settings in WAYS.items():
            sizes = (parsed.batch, parsed.tokens, parsed.steps)
            found = json.loads(run(STEPS, folder, json.dumps(settings), *sizes).splitlines()[-1])
            values = (found["trained"] / 1e6, found["memory"], found["seconds"])
            lines.append("| {} | {:.1f} million | {:.1f} | {:.2f} |".format(name, *values))
            print(lines[-1], flush=True)
    command = " ".join(["python benchmarks/lora.py", *sys.argv[1:]])
    about = (
        f"A random Llama-like model of {found['all'] / 1e6 - values[0]:.0f} million parameters "
        f"(1024 wide, {parsed.layers} layers), {parsed.batch} texts of {parsed.tokens} tokens in "
        "two views, mixed precision in bfloat16, on one of two CPU cores (x86-64 with AVX-512 and "
        f"AMX, no GPU); `{command}`, one run:"
    )
    before, _, after = PAGE.read_text(encoding="utf-8").partition(MARK)
    rest = after[after.index("\n## ") :]
    table = "\n".join(lines)
    PAGE.write_text(f"{before}{MARK}\n{about}\n\n{table}\n{rest}", encoding="utf-8")
    return 0


def run(code: str, *arguments: object) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
