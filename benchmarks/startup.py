"""Start-up and preparation: seconds before the first step.

    python benchmarks/startup.py [TEXT] [--rounds 5] [--sentences 50000]

CPU seconds of whole commands (help, a wrong setting, an import) beside importing
sentence-transformers, and sentences a second (by the clock) from a text file to token ids on disk:
ours (read, check, hash, tokenise, write, drop repeats) beside datasets' map with the same tokenizer
in batches, which checks nothing. Interleaved. Writes results/startup.* and results/preparation.*
(json, md).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from datasets import load_dataset
from measure import Measured, quiet, write_results
from training import add_text, first_lines

from simcse.config.settings import DataConfig, EncoderConfig
from simcse.data.rows import load_training_data
from simcse.encoders import encoder

COMMANDS = {
    "import sentence_transformers": ["-c", "import sentence_transformers"],
    "import simcse": ["-c", "import simcse"],
    "simcse --help": ["train.py", "--help"],
    "a setting that is not there": ["train.py", "quickstart", "training.sped=1"],
}
MAP = "datasets.map"


def main() -> int:
    """Run the rounds, print and write the tables."""
    parser = argparse.ArgumentParser(description="Start-up and preparation.")
    add_text(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=50_000)
    parsed = parser.parse_args()
    quiet()
    cpu: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(parsed.rounds):
        for name, command in COMMANDS.items():
            cpu[name].append(cpu_seconds(command))
    write_results(
        "startup", {"CPU seconds of a command": {n: Measured("s", v) for n, v in cpu.items()}},
        __doc__, "import sentence_transformers",
    )  # fmt: skip
    sentences = first_lines(parsed.text, parsed.sentences)
    rates: dict[str, list[float]] = {MAP: [], "ours": []}
    for _ in range(parsed.rounds):
        rates[MAP].append(len(sentences) / prepare(sentences, peer=True))
        rates["ours"].append(len(sentences) / prepare(sentences, peer=False))
    found = {n: Measured("sentences/s", v, higher_is_better=True) for n, v in rates.items()}
    title = f"Preparing {len(sentences):,} sentences"
    write_results("preparation", {title: found}, __doc__, MAP)
    return 0


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a Python command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def prepare(sentences: list[str], *, peer: bool) -> float:
    """Seconds to token ids on disk, from a text file, in a fresh folder."""
    tokenizer = encoder.build(EncoderConfig()).tokenizer
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
        started = time.perf_counter()
        if peer:
            data = load_dataset(
                "text", data_files=str(path), split="train", cache_dir=f"{folder}/cache"
            )
            data.map(
                lambda rows: tokenizer(rows["text"], truncation=True, max_length=32), batched=True
            )
        else:
            config = DataConfig(train=[str(path)], cache=f"{folder}/cache")
            load_training_data(config, tokenizer, seed=0)
        return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main())
