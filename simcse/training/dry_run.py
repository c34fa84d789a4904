"""What a run would do, and how long it would take."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from simcse import distributed
from simcse.config.reading import to_yaml
from simcse.config.settings import Config
from simcse.encoders.mini_batches import on_device
from simcse.errors import UserError
from simcse.objectives.terms import resolve
from simcse.training import loop
from simcse.training.preparing import Prepared, prepare
from simcse.training.run_folder import is_finished
from simcse.training.setup import make_accelerator


def print_plan(config: Config) -> None:
    """Print what a run would do: config, data, parameters and an estimate of its time.

    Raises:
        UserError: Whatever :func:`train` would refuse before it trains; several processes.
    """
    if distributed.world() > 1:
        raise UserError("--dry-run: measures one process; start it without a launcher")
    config, run = resolve(config), Path(str(config.output))
    finished = is_finished(run, config)
    make_accelerator(config, run)  # for what it refuses
    print(to_yaml(config))
    prepared = prepare(config)
    steps = prepared.text.steps
    step, dev = step_seconds(config, prepared), _dev_seconds(prepared)
    evaluations = -(-steps // config.evaluation.every)
    minutes = (steps * step + evaluations * dev) / 60
    print(
        f"time     about {minutes:.1f} minutes on this machine: {steps:,} steps of "
        f"{step:.3f} s, {evaluations} dev scores of {dev:.1f} s; "
        "the final scores come on top"
    )
    if finished:
        print(f"{run} holds this run, finished")
    print("dry run: nothing was written but caches")


def step_seconds(
    config: Config, prepared: Prepared, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of forward and backward pass, the median of a few real batches."""
    model, text = prepared.model, prepared.text
    accelerator = make_accelerator(config, Path(str(config.output)))
    loss = prepared.loss.to(model.device)
    model.train()
    seconds = []
    for drawn in islice(text.sampler.batches_from(0), min(6, text.steps)):
        started = clock()
        features = on_device(text.collate(*drawn), model.device)
        loop.backpropagate(accelerator, loss, features)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        seconds.append(clock() - started)
    return sorted(seconds)[len(seconds) // 2]


def _dev_seconds(prepared: Prepared) -> float:
    started = time.perf_counter()
    prepared.dev.scores(prepared.model)
    return time.perf_counter() - started
