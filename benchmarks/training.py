"""Training throughput: this project's trainer against sentence-transformers' own.

    python benchmarks/training.py WIKI.txt [--rounds 5] [--steps 12] [--small]

The peer is what a user would run instead: SentenceTransformerTrainer with
MultipleNegativesRankingLoss on (text, text) pairs. Same encoder, sentences, batch size 64, 32
tokens at most, temperature, optimiser, threads and process. In each round every way trains the same
number of steps, one after the other; the first steps of each are not timed. First it is checked
that both sides compute the same loss and gradients on one batch without dropout. Encoders: the
shipped mini-bert and a BERT of 6 layers, 384 wide, with random weights. Writes
results/training.json and results/training.md beside itself.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from measure import Measured, matmul_peak, quiet, write_results
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoTokenizer, BertConfig, BertModel, TrainerCallback

from simcse import encoder
from simcse.config import validate
from simcse.data import load_training_data
from simcse.evaluation.sources import load_dev_task, load_geometry
from simcse.loss import TrainingLoss
from simcse.settings import Config
from simcse.training import DevEvaluator, SimCSETrainer, training_arguments, view_collator

BATCH, LENGTH, TEMPERATURE, WARM = 64, 32, 0.05, 3


def main() -> int:
    """Run the rounds, check, print and write the tables."""
    parser = argparse.ArgumentParser(description="Training throughput against the peer's.")
    parser.add_argument("text", type=Path, help="one sentence a line, also .gz")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--small", action="store_true", help="the mini encoder alone")
    parsed = parser.parse_args()
    quiet()
    steps = parsed.steps + WARM
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sentences = first_lines(parsed.text, 200 * BATCH)
        (work / "text.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
        encoders = {"mini-bert (4 layers, 256 wide)": "mini-bert"}
        if not parsed.small:
            encoders["BERT, 6 layers, 384 wide"] = str(random_bert(work / "bert6"))
        tables = {}
        for title, name in encoders.items():
            check_same(name, sentences[:BATCH], work)
            tables[title] = measure(name, sentences, work, parsed.rounds, steps)
    write_results("training", tables, __doc__, peer="sentence-transformers")
    return 0


def measure(
    name: str, sentences: list[str], work: Path, rounds: int, steps: int
) -> dict[str, Measured]:
    """Sentences a second of every way."""
    ways: dict[str, Callable[[], Clock]] = {
        "sentence-transformers": lambda: peer(name, sentences, work, steps, "float32"),
        "ours, random batches": lambda: ours(name, work, steps, "random", "float32"),
        "ours": lambda: ours(name, work, steps, "length_grouped", "float32"),
        "sentence-transformers, bfloat16": lambda: peer(name, sentences, work, steps, "bfloat16"),
        "ours, bfloat16": lambda: ours(name, work, steps, "length_grouped", "bfloat16"),
    }
    found: dict[str, list[Clock]] = {way: [] for way in ways}
    peaks = []
    for _ in range(rounds):
        peaks.append(matmul_peak())
        for way, run in ways.items():
            found[way].append(run())
    peak = statistics.median(peaks)
    result = {}
    for way, clocks in found.items():
        rates = [BATCH * clock.steps / clock.seconds for clock in clocks]
        shares = [clock.operations / clock.seconds / peak for clock in clocks]
        extra = {
            "CPU ms a sentence": statistics.median(
                1000 * clock.cpu / (BATCH * clock.steps) for clock in clocks
            ),
            "padding": statistics.median(clock.padding for clock in clocks),
        }
        if "bfloat16" not in way:
            extra["share of peak"] = statistics.median(shares)
        result[way] = Measured("sentences/s", rates, extra, higher_is_better=True)
    return result


class Clock(TrainerCallback):
    """Times the steps after the first few, and counts the tokens that are computed."""

    def __init__(self, model: SentenceTransformer) -> None:
        transformer = encoder.transformer_of(model)
        config = transformer.config
        layers, width = config.num_hidden_layers, config.hidden_size
        self.weights = layers * (4 * width**2 + 2 * width * config.intermediate_size)
        self.attention = 2 * layers * width
        self.steps, self.operations, self.tokens, self.places = 0, 0.0, 0, 0
        self.seconds = self.cpu = 0.0
        self.hook = transformer.register_forward_pre_hook(self._count)

    def _count(self, module: Any, inputs: Any) -> None:
        mask = inputs[0]["attention_mask"]
        lengths = mask.sum(dim=1).double()
        self.tokens += int(lengths.sum())
        self.places += mask.numel()
        # Two operations a weight and token, and for each pair of tokens in attention; the backward
        # pass costs twice the forward pass. Padding is not counted.
        once = 2 * (self.weights * lengths.sum() + self.attention * lengths.square().sum())
        self.operations += 3 * float(once)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start after the first few steps, stop at every later one."""
        now, cpu = time.perf_counter(), time.process_time()
        if state.global_step == WARM:
            self.started, self.cpu_started = now, cpu
            self.operations, self.tokens, self.places = 0.0, 0, 0
        elif state.global_step > WARM:
            self.steps = state.global_step - WARM
            self.seconds, self.cpu = now - self.started, cpu - self.cpu_started

    @property
    def padding(self) -> float:
        """Share of the computed tokens that are padding."""
        return 1 - self.tokens / max(self.places, 1)


def config_of(name: str, work: Path, **training: Any) -> Config:
    """A run on the benchmark's sentences."""
    return validate(
        {
            "encoder": {"name": name},
            "data": {"train": str(work / "text.txt"), "cache": str(work), "max_length": LENGTH},
            "objective": {"temperature": TEMPERATURE},
            "training": {"batch_size": BATCH, **training},
            "evaluation": {"every": 1_000_000},
        },
        "benchmark",
        default_output=str(work / "ours"),
    )


def ours(name: str, work: Path, steps: int, batching: str, precision: str) -> Clock:
    """Train with SimCSETrainer."""
    config = config_of(name, work, batching=batching, steps=steps, precision=precision)
    rows, _ = load_training_data(config.data, encoder.load_tokenizer(config.encoder), 0)
    model = encoder.build(config.encoder)
    dev = DevEvaluator(load_dev_task("pairs", None), load_geometry(None, dev_only=True), 64)
    arguments = training_arguments(config, work / "ours")
    arguments.save_strategy = arguments.eval_strategy = "no"
    (work / "ours").mkdir(exist_ok=True)
    loss = TrainingLoss(model, config)
    trainer = SimCSETrainer(config, arguments, model, rows, dev, work / "ours", loss)
    return run(trainer, model)


def peer(name: str, sentences: list[str], work: Path, steps: int, precision: str) -> Clock:
    """Train with SentenceTransformerTrainer, as its documentation shows it for SimCSE."""
    model = encoder.build(config_of(name, work).encoder)
    model.max_seq_length = LENGTH
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work / "peer"),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=3e-5,
        bf16=precision == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"anchor": sentences, "positive": sentences}),
        loss=MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE),
    )
    return run(trainer, model)


def run(trainer: SentenceTransformerTrainer, model: SentenceTransformer) -> Clock:
    """Train to the end."""
    clock = Clock(model)
    trainer.add_callback(clock)
    trainer.train()
    clock.hook.remove()
    return clock


def check_same(name: str, sentences: list[str], work: Path) -> None:
    """One batch without dropout: the same loss and gradients on both sides, to 1e-5."""
    config = config_of(name, work)
    config = config.model_copy(
        update={"encoder": config.encoder.model_copy(update={"dropout": 0.0})}
    )
    mine = encoder.build(config.encoder).train()
    mine.max_seq_length = LENGTH
    theirs = copy.deepcopy(mine)
    ids = mine.tokenizer(sentences, truncation=True, max_length=LENGTH)["input_ids"]
    rows = [{"input_ids": [i], "text_hash": [n], "label": 0} for n, i in enumerate(ids)]
    loss = TrainingLoss(mine, config)([view_collator(config, mine).features(rows, mine.device)])
    peer_loss = MultipleNegativesRankingLoss(theirs, scale=1 / TEMPERATURE)
    columns = [theirs.preprocess(sentences) for _ in range(2)]
    other = peer_loss(columns, None)
    loss.backward()
    other.backward()
    pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
    gaps = [(a.grad - b.grad).abs().max() for a, b in pairs if a.grad is not None]
    gap = max(float(abs(loss - other).detach()), *map(float, gaps))
    print(f"{name}: loss and gradients of one batch without dropout differ by {gap:.1e}")
    if gap > 1e-5:
        raise SystemExit("the two sides do not compute the same")


def random_bert(folder: Path) -> Path:
    """A BERT of MiniLM-L6's size with random weights and the shipped tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(encoder.source_of("mini-bert"))
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def first_lines(path: Path, count: int) -> list[str]:
    """The first distinct lines of a text file."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        lines = dict.fromkeys(line.strip() for line in itertools.islice(file, 2 * count))
    found = [line for line in lines if line][:count]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


if __name__ == "__main__":
    raise SystemExit(main())
