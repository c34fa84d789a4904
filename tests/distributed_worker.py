"""What each of two processes does for ``test_distributed.py``: once, since starting takes longest.

The folder gets ``gradients-<rank>.pt``, ``uneven-<rank>.pt``, ``views-<rank>.pt`` and the runs
``sgd``, ``whole`` and ``stopped``, as far as they are in that share of the work.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from test_caching import MINI_BATCH, OBJECTIVES, gradients
from transformers import DataCollatorForLanguageModeling, set_seed

from simcse import distributed
from simcse.config.reading import validate
from simcse.encoders import encoder
from simcse.errors import Terminated
from simcse.terminal import silence_libraries
from simcse.training import loop, run

CASES = [(name, size) for name in OBJECTIVES if name != "two_rates" for size in (None, MINI_BATCH)]
# For each share: cases and engines of the gradients, kinds of runs.
SHARES = {
    # Every second objective, by turns with and without mini-batches.
    "default": ([case for i, case in enumerate(CASES) if i % 8 in (0, 5)], ["copies"], ["copies"]),
    "slow": (CASES, ["copies", "shards"], ["shards", "adapters"]),
}


def hide_every_fourth(collator, inputs, special_tokens_mask):
    """In place of the random choice of tokens: one that does not depend on their batch."""
    chosen = (inputs % 4 == 0) & ~special_tokens_mask
    return inputs.masked_fill(chosen, 4), inputs.masked_fill(~chosen, -100)


def all_gradients(folder: Path, name: Path, cases: list, spreads: list[str]) -> dict[str, object]:
    """Loss and gradients of each case without dropout, by case, mini-batch and engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataCollatorForLanguageModeling, "torch_mask_tokens", hide_every_fourth)
        folder.mkdir(exist_ok=True)
        return {
            f"{case} {size} {spread}": gradients(case, name, folder, size, 0.0, spread)
            for case, size in cases
            for spread in spreads
        }


def views(config) -> torch.Tensor:
    """Embeddings of a text with the dropout that this process starts training with."""
    model = encoder.build(config.encoder).train()
    set_seed(run._dropout_seed(config.seed))
    with torch.no_grad():
        return model(model.preprocess(["A text."] * 4))["sentence_embedding"]


def uneven_gradients() -> list[torch.Tensor | None]:
    """Means where both, one or none of the processes has a gradient."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), 1.0 + distributed.rank())
    if distributed.rank() == 1:
        parameters[1].grad = torch.full((2,), 3.0)
    distributed.average_gradients(parameters)
    return [parameter.grad for parameter in parameters]


def config_of(path: Path, **changes):
    """The config of a file with other values at its top."""
    return validate({**json.loads(path.read_text()), **changes}, str(path))


def train_with_sgd(path: Path) -> None:
    """A run without dropout, by plain gradient descent."""

    def sgd(config, loss):
        return torch.optim.SGD(loss.parameters(), lr=config.training.learning_rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_optimizer", sgd)
        run.train(config_of(path), [])


def train_with_a_stop(path: Path) -> None:
    """Train, be told to stop on the second process only in the second epoch, and train on."""
    original, calls = loop.backpropagate, []

    def told(*args):
        calls.append(1)
        if len(calls) == 13 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    def late(*args):
        time.sleep(2 * distributed.rank())  # the first process is not to finish the run meanwhile
        load_weights(*args)

    load_weights = loop.load_weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "backpropagate", told)
        try:
            run.train(config_of(path), [])
        except Terminated as error:
            if "after step 13, with a checkpoint" not in str(error):
                raise
        else:
            raise AssertionError("the run was not stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_weights", late)
        run.train(config_of(path), [])


def work(environment: dict[str, str], folder: Path, name: Path, share: str) -> None:
    """All of a share of the work, in a process that a launcher would give this environment."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    cases, spreads, kinds = SHARES[share]
    silence_libraries()
    with distributed.session():
        own = distributed.rank()
        found = all_gradients(folder / f"scratch-{own}", name, cases, spreads)
        torch.save(found, folder / f"gradients-{own}.pt")
        if share == "default":
            torch.save(views(config_of(folder / "whole_copies.json")), folder / f"views-{own}.pt")
            torch.save(uneven_gradients(), folder / f"uneven-{own}.pt")
        else:
            train_with_sgd(folder / "sgd.json")
        for kind in kinds:
            run.train(config_of(folder / f"whole_{kind}.json"), [])
            train_with_a_stop(folder / f"stopped_{kind}.json")
