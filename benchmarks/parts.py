"""Where a training step's time goes, and what each idea brings on its own.

    python benchmarks/parts.py WIKI.txt [--steps 15] [--compile]

A step is forward, backward, clipping and AdamW on ready batches: mini-bert, batch 64, two views, 32
tokens at most, mean and CLS pooling. Ways take turns, step by step, on the same batches; each
changes one thing in the step as it is (eager attention and torch.compile also have dropout as
PyTorch does it). Then the profile of the step as it is. --compile adds torch.compile, which takes
minutes. Writes results/parts.json and results/parts.md beside itself.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import Measured, quiet, write_results
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from training import BATCH, Setting, first_lines, write_lines

from simcse import encoder
from simcse.data import load_training_data
from simcse.loss import TrainingLoss
from simcse.settings import Config, EncoderConfig
from simcse.training import batch_sampler, view_collator

AS_IS = "as it is"
SHOWN = 12  # operators of the profile
Batch = dict[str, Tensor]


class Way:
    """A model with its optimiser, and how its step differs."""

    def __init__(
        self,
        config: Config,
        *,
        precision: str = "float32",
        pytorch_dropout: bool = False,
        whole_last_layer: bool = False,
        attention: str | None = None,
        fused: bool = True,
        two_passes: bool = False,
        compiled: bool = False,
    ) -> None:
        model = encoder.build(config.encoder).train()
        self.loss = TrainingLoss(model, config)
        self.precision = precision
        self.pytorch_dropout = pytorch_dropout
        if whole_last_layer:
            self.loss.cuts = []
        network = encoder.transformer_of(model).model
        if attention is not None:
            network.set_attn_implementation(attention)
        if compiled:
            network.compile(dynamic=True)
        if two_passes:  # two views at different rates are embedded apart; so are equal ones here
            self.loss.dropouts = [0.1, 0.1 + 1e-9]
        self.optimiser = torch.optim.AdamW(self.loss.parameters(), lr=1e-5, fused=fused)
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def step(self, batch: Batch) -> None:
        """One optimiser step, timed."""
        started, cpu = time.perf_counter(), time.process_time()
        with self._dropout(), torch.autocast("cpu", enabled=self.precision == "bfloat16"):
            loss: Any = self.loss([dict(batch)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.loss.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.seconds.append(time.perf_counter() - started)
        self.cpu.append(time.process_time() - cpu)

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        with (
            patch("simcse.loss.FastDropout", nullcontext) if self.pytorch_dropout else nullcontext()
        ):
            yield


def main() -> int:
    """Measure, profile, print and write."""
    parser = argparse.ArgumentParser(description="Where a training step's time goes.")
    parser.add_argument("text", type=Path, help="one sentence a line, also .gz")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    parsed = parser.parse_args()
    quiet()
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_lines(first_lines(parsed.text, 200 * BATCH), work)
        for pooling in ("mean", "cls"):
            setting = Setting(EncoderConfig(pooling=pooling), work, parsed.steps)
            config = setting.config(batching="length_grouped")
            batches = make_batches(config, parsed.steps + 3)
            for precision in ("float32", "bfloat16"):
                title = f"A step, {pooling} pooling, {precision}"
                tables[title] = compare(config, precision, batches, compiled=parsed.compile)
            if pooling == "mean":
                for precision in ("float32", "bfloat16"):
                    title = f"Operators of a step as it is, {pooling} pooling, {precision}"
                    tables[title] = operators(Way(config, precision=precision), batches)
    write_results("parts", tables, __doc__, AS_IS)
    return 0


def make_batches(config: Config, count: int) -> list[Batch]:
    """The first batches of a run."""
    model = encoder.build(config.encoder)
    rows, _ = load_training_data(config.data, model.tokenizer, 0)
    columns = rows.select_columns(["input_ids", "text_hash", "label"])
    collator = view_collator(config, model)
    return [
        collator.features([columns[i] for i in chosen], model.device)
        for chosen in islice(batch_sampler(config, rows), count)
    ]


def compare(
    config: Config, precision: str, batches: list[Batch], *, compiled: bool
) -> dict[str, Measured]:
    """Milliseconds a step of every way, the first three steps left out."""
    make: dict[str, Callable[[], Way]] = {
        AS_IS: partial(Way, config, precision=precision),
        "dropout and attention of PyTorch": partial(
            Way, config, precision=precision, pytorch_dropout=True
        ),
        "the same, eager attention": partial(
            Way, config, precision=precision, pytorch_dropout=True, attention="eager"
        ),
        "a pass a view": partial(Way, config, precision=precision, two_passes=True),
        "AdamW not fused": partial(Way, config, precision=precision, fused=False),
    }
    if config.encoder.pooling == "cls":
        make["last layer for all tokens"] = partial(
            Way, config, precision=precision, whole_last_layer=True
        )
    if compiled:
        make["torch.compile"] = partial(
            Way, config, precision=precision, pytorch_dropout=True, compiled=True
        )
    ways = {name: build() for name, build in make.items()}
    for batch in batches:
        for way in ways.values():
            way.step(batch)
    return {
        name: Measured(
            "ms a step",
            [1000 * s for s in way.seconds[3:]],
            {"CPU ms": sorted(1000 * s for s in way.cpu[3:])[len(batches[3:]) // 2]},
        )
        for name, way in ways.items()
    }


def operators(way: Way, batches: list[Batch]) -> dict[str, Measured]:
    """Time of each operator, in milliseconds a step, the largest first."""
    for batch in batches[:3]:
        way.step(batch)
    measured = batches[3:9]
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for batch in measured:
            way.step(batch)
    times = {e.key: e.self_cpu_time_total / 1000 / len(measured) for e in found.key_averages()}
    total = sum(times.values())
    largest = sorted(times.items(), key=lambda item: -item[1])[:SHOWN]
    rest = total - sum(time for _, time in largest)
    rows = {"all": total, **dict(largest), "others": rest}
    return {
        name.removeprefix("aten::"): Measured("ms a step", [time], {"share": time / total})
        for name, time in rows.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
