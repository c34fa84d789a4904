"""Where a training step's time goes, and what each idea brings on its own.

    python benchmarks/parts.py [TEXT] [--steps 15] [--tried]

A step is forward, backward, clipping and AdamW on ready batches: mini-bert, batch 64, two views, 32
tokens at most, mean and CLS pooling. Ways take turns, step by step, on the same batches; each
changes one thing in the step as it is ("PyTorch alone" is training.cpu_kernels=false; the way with
torch.compile has PyTorch's dropout). "Times CPU" is the median over the steps of the way's CPU time
in that of the step as it is; on a machine with other work it is the steadier figure. Then the
profile of the step as it is. Writes results/parts.json and results/parts.md beside itself.

--tried measures instead what was not taken up, and two bounds on what more could be gained: a step
whose attention has no dropout, so that PyTorch's fused kernel does it, and one without any dropout.
With torch.compile it takes minutes longer. Writes results/tried.json and results/tried.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import Measured, quiet, write_results
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from training import BATCH, WARM, Setting, add_text, first_lines, write_lines

from simcse.config.settings import Config, EncoderConfig
from simcse.encoders import encoder
from simcse.encoders.cpu_dropout import Dropout
from simcse.encoders.mini_batches import on_device
from simcse.training.loop import backpropagate
from simcse.training.loss import TrainingLoss
from simcse.training.setup import make_accelerator
from simcse.training.text import TrainingText

AS_IS = "as it is"
SHOWN = 12  # operators of the profile
Batch = dict[str, Tensor]


class Ready(NamedTuple):
    """A batch, and how the trainer would lay it out."""

    batch: Batch
    lay_out: Callable[[], Batch]


class Way:
    """A model with its optimiser, and how its step differs.

    Args:
        config: The run.
        precision: ``float32`` or ``bfloat16``.
        change: Done to the loss, and the model in it, beforehand.
        during: Active during forward and backward pass.
        fused: Whether AdamW is one kernel.
        one_by_one: Whether clipping takes one tensor after the other.
        lays_out: Whether the step lays out its batch first.
    """

    def __init__(
        self,
        config: Config,
        precision: str,
        *,
        change: Callable[[TrainingLoss], None] | None = None,
        during: Callable[[], AbstractContextManager[Any]] = nullcontext,
        fused: bool = True,
        one_by_one: bool = False,
        lays_out: bool = False,
    ) -> None:
        training = config.training.model_copy(update={"precision": precision})
        config = config.model_copy(update={"training": training})
        self.loss = TrainingLoss(encoder.build(config.encoder).train(), config)
        self.accelerator = make_accelerator(config, Path())
        if change is not None:
            change(self.loss)
        self.during = during
        self.foreach = False if one_by_one else None
        self.lays_out = lays_out
        self.optimiser = torch.optim.AdamW(self.loss.parameters(), lr=1e-5, fused=fused)
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def step(self, ready: Ready) -> None:
        """One optimiser step, timed."""
        started, cpu = time.perf_counter(), time.process_time()
        batch = ready.lay_out() if self.lays_out else ready.batch
        with self.during():
            backpropagate(self.accelerator, self.loss, batch)
        torch.nn.utils.clip_grad_norm_(self.loss.parameters(), 1.0, foreach=self.foreach)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.seconds.append(time.perf_counter() - started)
        self.cpu.append(time.process_time() - cpu)


def pytorchs_dropout(loss: TrainingLoss) -> None:
    """Dropout modules as PyTorch has them."""
    for module in loss.modules():
        if type(module) is Dropout:
            module.__class__ = nn.Dropout


def pytorch_alone(loss: TrainingLoss) -> None:
    """What ``training.cpu_kernels=false`` leaves."""
    pytorchs_dropout(loss)
    whole_last_layer(loss)


def attention_without_dropout(loss: TrainingLoss) -> None:
    """Attention by PyTorch's fused kernel, which has no dropout on the CPU."""
    for layer in encoder.transformer_of(loss.model).model.encoder.layer:
        layer.attention.self.dropout.p = 0.0


@contextmanager
def coarse_products() -> Iterator[None]:
    """Products of float32 matrices in bfloat16 where the processor has them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def eager_attention(loss: TrainingLoss) -> None:
    """Attention as transformers writes it out."""
    encoder.transformer_of(loss.model).model.set_attn_implementation("eager")


def compiled(loss: TrainingLoss) -> None:
    """The network through torch.compile, for any batch and length."""
    pytorchs_dropout(loss)
    encoder.transformer_of(loss.model).model.compile(dynamic=True)


def pass_a_view(loss: TrainingLoss) -> None:
    """Views at different rates are embedded apart; so are equal ones here."""
    loss.dropouts = [0.1, 0.1 + 1e-9]


def no_dropout(loss: TrainingLoss) -> None:
    """Both views are equal."""
    loss.dropouts = [0.0, 0.0]


def whole_last_layer(loss: TrainingLoss) -> None:
    """No cut for the first token."""
    loss.cuts = []


def main() -> int:
    """Measure, profile, print and write."""
    parser = argparse.ArgumentParser(description="Where a training step's time goes.")
    add_text(parser)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--tried", action="store_true", help="what was not taken up instead")
    parsed = parser.parse_args()
    quiet()
    tables: dict[str, dict[str, Measured]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_lines(first_lines(parsed.text, 200 * BATCH), work)
        for pooling in ("mean", "cls"):
            setting = Setting(EncoderConfig(pooling=pooling), work, parsed.steps)
            config = setting.config(batching="length_grouped")
            batches = make_batches(config, parsed.steps + WARM)
            for precision in ("float32", "bfloat16"):
                ways = tried(config, precision) if parsed.tried else parts(config, precision)
                tables[f"A step, {pooling} pooling, {precision}"] = compare(ways, batches)
            if pooling == "mean" and not parsed.tried:
                for precision in ("float32", "bfloat16"):
                    title = f"Operators of a step as it is, {pooling} pooling, {precision}"
                    tables[title] = operators(Way(config, precision), batches)
    write_results("tried" if parsed.tried else "parts", tables, __doc__, AS_IS)
    return 0


def make_batches(config: Config, count: int) -> list[Ready]:
    """The first batches of a run."""
    model = encoder.build(config.encoder)
    text = TrainingText.read(config, model)

    def lay_out(*drawn: Any) -> Batch:
        return on_device(text.collate(*drawn), model.device)

    taken = islice(text.sampler.batches_from(0), count)
    return [Ready(lay_out(*drawn), partial(lay_out, *drawn)) for drawn in taken]


def parts(config: Config, precision: str) -> dict[str, Way]:
    """The step as it is, and without each of its parts."""
    way = partial(Way, config, precision)
    ways = {
        AS_IS: way(),
        "PyTorch alone": way(change=pytorch_alone),
        "dropout of PyTorch": way(change=pytorchs_dropout),
        "eager attention": way(change=eager_attention),
        "a pass a view": way(change=pass_a_view),
        "AdamW not fused": way(fused=False),
        "clipping tensor by tensor": way(one_by_one=True),
        "with laying out the batch": way(lays_out=True),
    }
    if config.encoder.pooling == "cls":
        ways["last layer for all tokens"] = way(change=whole_last_layer)
    return ways


def tried(config: Config, precision: str) -> dict[str, Way]:
    """The step as it is, and with what was not taken up."""
    way = partial(Way, config, precision)
    ways = {AS_IS: way(), "torch.compile": way(change=compiled)}
    if precision == "float32":
        ways["products of medium precision"] = way(during=coarse_products)
    ways["bound: fused attention without dropout"] = way(change=attention_without_dropout)
    ways["bound: no dropout"] = way(change=no_dropout)
    return ways


def compare(ways: dict[str, Way], batches: list[Ready]) -> dict[str, Measured]:
    """Milliseconds a step of every way, the first steps left out."""
    for ready in batches:
        for way in ways.values():
            way.step(ready)
    as_is = ways[AS_IS].cpu[WARM:]
    return {
        name: Measured(
            "ms a step",
            [1000 * s for s in way.seconds[WARM:]],
            {
                "CPU ms": 1000 * statistics.median(way.cpu[WARM:]),
                "times CPU": statistics.median(
                    cpu / other for cpu, other in zip(way.cpu[WARM:], as_is, strict=True)
                ),
            },
        )
        for name, way in ways.items()
    }


def operators(way: Way, batches: list[Ready]) -> dict[str, Measured]:
    """Time of each operator, in milliseconds a step, the largest first."""
    for ready in batches[:WARM]:
        way.step(ready)
    measured = batches[WARM : WARM + 6]
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for ready in measured:
            way.step(ready)
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
