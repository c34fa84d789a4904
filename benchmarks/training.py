"""Training throughput: this project's trainer against sentence-transformers' own.

    python benchmarks/training.py [TEXT] [--rounds 3] [--steps 12] [--small]

The peer is what a user would run instead: SentenceTransformerTrainer with
MultipleNegativesRankingLoss on (text, text) pairs. Same encoder, pooling, sentences, batch size 64,
32 tokens at most, temperature, optimiser, clipping, threads and process; the peer tokenises in its
steps, ours has done so before. In each round every way trains the same number of steps, one after
the other; the first steps of each are not timed. Since few batches are timed, and those of ours are
of one length each, their tokens a second are divided by the mean tokens of all sentences; each
round has its own seed. First it is checked that both sides compute the same loss and gradients on
one batch without dropout. Encoders: the shipped mini-bert and a BERT of 6 layers, 384 wide, with
random weights; mean pooling and the paper's CLS. Writes results/training.json and
results/training.md beside itself.
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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    PrinterCallback,
    TrainerCallback,
)

from simcse.config.reading import validate
from simcse.config.settings import Config, EncoderConfig
from simcse.data.documents import Documents, embedded_documents, sentences
from simcse.encoders import encoder
from simcse.encoders.encoding import token_ids
from simcse.training import loop, resuming
from simcse.training.interruption import StopSignals
from simcse.training.loss import TrainingLoss
from simcse.training.progress import Progress
from simcse.training.setup import DEV_SCORE, make_accelerator
from simcse.training.text import TrainingText, view_collator

BATCH, TEMPERATURE, WARM = 64, 0.05, 3
PEER = "sentence-transformers"
NO_SCORES = {DEV_SCORE: 0.0}


@dataclass(frozen=True)
class Setting:
    """What both sides train, on the sentences of ``folder / "text.txt"``."""

    encoder: EncoderConfig
    folder: Path
    steps: int
    batch: int = BATCH
    length: int = 32

    def sentences(self) -> list[str]:
        """The training text."""
        return (self.folder / "text.txt").read_text(encoding="utf-8").splitlines()

    def mean_tokens(self) -> float:
        """Tokens of a sentence, cut at ``length``, in the mean."""
        ids = token_ids(encoder.build(self.encoder), self.sentences())
        return statistics.mean(min(len(one), self.length) for one in ids)

    def config(self, seed: int = 0, **training: Any) -> Config:
        """Our run on it."""
        return validate(
            {
                "seed": seed,
                "encoder": self.encoder.model_dump(),
                "data": {
                    "train": str(self.folder / "text.txt"),
                    "cache": str(self.folder),
                    "max_length": self.length,
                },
                "objective": {"temperature": TEMPERATURE},
                "training": {"batch_size": self.batch, **training},
                "evaluation": {"every": 1_000_000},
                "output": str(self.folder / "ours"),
            },
            "benchmark",
        )


def main() -> int:
    """Run the rounds, check, print and write the tables."""
    parser = argparse.ArgumentParser(description="Training throughput against the peer's.")
    add_text(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--small", action="store_true", help="the mini encoder alone")
    parsed = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_lines(first_lines(parsed.text, 200 * BATCH), work)
        encoders = {"mini-bert (4 layers, 256 wide)": "mini-bert"}
        if not parsed.small:
            encoders["BERT, 6 layers, 384 wide"] = str(random_bert(work / "bert6"))
        tables = {}
        for title, name in encoders.items():
            for pooling in ("mean", "cls"):
                chosen = EncoderConfig(name=name, pooling=pooling)
                setting = Setting(chosen, work, parsed.steps + WARM)
                check_same(setting)
                tables[f"{title}, {pooling} pooling"] = measure(setting, parsed.rounds)
    write_results("training", tables, __doc__, PEER)
    return 0


def measure(setting: Setting, rounds: int) -> dict[str, Measured]:
    """Sentences a second of every way."""
    ways: dict[str, Callable[[int], Clock]] = {}
    for end, precision in (("", "float32"), (", bfloat16", "bfloat16")):
        ways[PEER + end] = partial(peer, setting, precision)
        ways["ours, random batches" + end] = partial(ours, setting, "random", precision)
        ways["ours" + end] = partial(ours, setting, "length_grouped", precision)
    found: dict[str, list[Clock]] = {way: [] for way in ways}
    peaks = []
    for seed in range(rounds):
        peaks.append(matmul_peak())
        for way, train in ways.items():
            found[way].append(train(seed))
    peak = statistics.median(peaks)
    mean = setting.mean_tokens()
    result = {}
    for way, clocks in found.items():
        extra = {
            "CPU ms a sentence": statistics.median(
                1000 * clock.cpu / clock.sentences(mean) for clock in clocks
            ),
            "padding": statistics.median(clock.padding for clock in clocks),
        }
        if "bfloat16" not in way:
            reached = statistics.median(clock.operations / clock.seconds for clock in clocks)
            extra["share of peak"] = reached / peak
        rates = [clock.sentences(mean) / clock.seconds for clock in clocks]
        result[way] = Measured("sentences/s", rates, extra, higher_is_better=True)
    return result


class Clock:
    """Times the steps after the first few, and counts the tokens that are computed."""

    def __init__(self, model: SentenceTransformer, *, cut: bool) -> None:
        transformer = encoder.transformer_of(model)
        config = transformer.config
        layers, width = config.num_hidden_layers, config.hidden_size
        after_attention = width**2 + 2 * width * config.intermediate_size
        self.weights = layers * (3 * width**2 + after_attention)
        self.left_out = after_attention if cut else 0  # for all tokens but one, in the last layer
        self.attention = 2 * layers * width
        self.masks: list[Tensor] = []
        self.seconds = self.cpu = 0.0
        self.hook = transformer.register_forward_pre_hook(self._count)

    def _count(self, module: Any, inputs: Any) -> None:
        self.masks.append(inputs[0]["attention_mask"])

    def step(self, number: int, last: int) -> None:
        """Start after the first few steps, stop at the last."""
        if number not in (WARM, last):
            return
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        now, cpu = time.perf_counter(), time.process_time()
        if number == WARM:
            self.started, self.cpu_started = now, cpu
            self.masks.clear()
        else:
            self.seconds, self.cpu = now - self.started, cpu - self.cpu_started

    @property
    def tokens(self) -> int:
        """Computed, but for padding."""
        return sum(int(mask.sum()) for mask in self.masks)

    @property
    def operations(self) -> float:
        """Two a weight and token, and for each pair of tokens in attention.

        The backward pass costs twice the forward pass. Padding is not counted.
        """
        total = 0.0
        for mask in self.masks:
            lengths = mask.sum(dim=1).double().cpu()
            products = self.weights * lengths.sum() - self.left_out * (lengths - 1).sum()
            total += 6 * float(products + self.attention * lengths.square().sum())
        return total

    def sentences(self, mean_tokens: float) -> float:
        """The timed work in sentences of mean length, each seen in two views."""
        return self.tokens / (2 * mean_tokens)

    @property
    def padding(self) -> float:
        """Share of the computed tokens that are padding."""
        return 1 - self.tokens / sum(mask.numel() for mask in self.masks)


def ours(setting: Setting, batching: str, precision: str, seed: int) -> Clock:
    """Train with this project's loop; scoring and saving are left out, as for the peer."""
    config = setting.config(seed, batching=batching, steps=setting.steps, precision=precision)
    output = setting.folder / "ours"
    output.mkdir(exist_ok=True)
    model = encoder.build(config.encoder)
    text = TrainingText.read(config, model)
    loss = TrainingLoss(model, config)
    clock = Clock(loss.model, cut=bool(loss.cuts))

    def step(progress: Progress, number: int) -> None:
        clock.step(number, setting.steps)

    with (
        patch.object(Progress, "step", step),
        patch.object(Progress, "dev"),
        patch.object(resuming.State, "save"),
        patch.object(loop, "load_weights"),
        patch.object(loop.checkpoints, "damage", return_value=None),
        StopSignals() as signals,
    ):
        loop.train(config, output, loss, text, lambda model: NO_SCORES, signals, None)
    clock.hook.remove()
    return clock


def peer(setting: Setting, precision: str, seed: int) -> Clock:
    """Train with SentenceTransformerTrainer, as its documentation shows it for SimCSE."""
    model = encoder.build(setting.encoder)
    model.max_seq_length = setting.length
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(setting.folder / "peer"),
        per_device_train_batch_size=setting.batch,
        max_steps=setting.steps,
        learning_rate=3e-5,
        seed=seed,
        bf16=precision == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    sentences = setting.sentences()
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"anchor": sentences, "positive": sentences}),
        loss=MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE),
    )
    clock = Clock(model, cut=False)
    trainer.add_callback(Steps(clock))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    clock.hook.remove()
    return clock


class Steps(TrainerCallback):
    """Tells a clock of the peer's steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done."""
        self.clock.step(state.global_step, state.max_steps)


def check_same(setting: Setting) -> None:
    """One batch without dropout: the same loss and gradients on both sides, to 1e-5."""
    chosen = setting.encoder.model_copy(update={"dropout": 0.0})
    config = replace(setting, encoder=chosen).config(precision="float32")
    sentences = setting.sentences()[: setting.batch]
    mine = encoder.build(config.encoder).train()
    mine.max_seq_length = setting.length
    theirs = copy.deepcopy(mine)
    ids = mine.tokenizer(sentences, truncation=True, max_length=setting.length)["input_ids"]
    rows = [{"input_ids": [i], "text_hash": [n], "label": 0} for n, i in enumerate(ids)]
    loss = TrainingLoss(mine, config)
    features = view_collator(config, config.sets[0], mine).features(rows, mine.device)
    terms = loop.backpropagate(make_accelerator(config, setting.folder), loss, features)
    peer_loss = MultipleNegativesRankingLoss(theirs, scale=1 / TEMPERATURE)
    columns = [theirs.preprocess(sentences) for _ in range(2)]
    other = peer_loss(columns, None)
    other.backward()
    gradients = [
        torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in m])
        for m in (list(mine.parameters()), list(theirs.parameters()))
    ]
    largest = float(gradients[1].abs().max())
    gap = max(
        abs(float(sum(terms.values())) - float(other.detach())),
        float((gradients[0] - gradients[1]).abs().max()) / largest,
    )
    about = f"{chosen.name}, {chosen.pooling} pooling, one batch without dropout"
    print(f"{about}: loss and gradients differ by {gap:.1e}")
    if gap > 1e-5:
        raise SystemExit("the two sides do not compute the same")


def random_bert(folder: Path, layers: int = 6, width: int = 384, positions: int = 512) -> Path:
    """A BERT with random weights and the shipped tokenizer; as given, of MiniLM-L6's size."""
    tokenizer = AutoTokenizer.from_pretrained(encoder.source_of("mini-bert"))
    tokenizer.model_max_length = positions
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32 if width < 768 else width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=positions,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_lines(lines: list[str], folder: Path) -> None:
    """The training text of a :class:`Setting`."""
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def add_text(parser: argparse.ArgumentParser) -> None:
    """The text that a benchmark is about."""
    parser.add_argument(
        "text",
        type=Path,
        nargs="?",
        help="one sentence a line, also .gz; default: the documents that come with the package",
    )


def first_lines(path: Path | None, count: int) -> list[str]:
    """The first distinct lines of a text file, or of the shipped documents, in random order."""
    if path is None:
        documents = Documents(embedded_documents()).on("train")
        lines = dict.fromkeys(s for document in documents for s in sentences(document.text, "en"))
    else:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            lines = dict.fromkeys(line.strip() for line in itertools.islice(file, 2 * count))
    found = [line for line in lines if line][:count]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


if __name__ == "__main__":
    raise SystemExit(main())
