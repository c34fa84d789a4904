"""Training and evaluation from Python: what the commands do, with values instead of files.

``from simcse import load_config, train, evaluate`` gives these. A mistake raises
:class:`~simcse.errors.UserError`, a ``ValueError`` with the line that the command line prints.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from sentence_transformers import SentenceTransformer

from simcse import distributed
from simcse.config.settings import Config, Pooling, Precision, at_commas
from simcse.encoders.loading import load_model
from simcse.errors import UserError
from simcse.evaluation.protocol import Evaluation
from simcse.evaluation.protocol import evaluate as evaluate_tasks
from simcse.evaluation.scoring import is_hub_name, plan_tasks, score_model
from simcse.inference.model import SimCSE
from simcse.reports.runs import Run, load_runs
from simcse.terminal import quiet_libraries
from simcse.training import several
from simcse.typed import typed

_COMMAND = ["python", "simcse.train"]  # what a run's environment.json has for its command


@typed
def train(config: Config) -> Run:
    """Train and score a model, as ``simcse train`` does; resumes or returns what is in the folder.

    It prints what the command prints. Ctrl-C, or the interrupt of a notebook, writes a checkpoint
    first. Under ``torchrun`` all processes call it.

    Args:
        config: From :func:`simcse.config.reading.load_config`.

    Returns:
        The finished run: its ``scores``, ``folder``, and ``model``, which is loaded when asked for.
        With several seeds the one with the best dev score;
        :func:`simcse.reports.runs.load_runs` reads all of them from ``config.output``.

    Raises:
        UserError: Whatever the command line would refuse; what is on disk stays as it was.
    """
    if config.output is None:
        raise UserError("output: name the run folder, or take the config from load_config")
    launched = "LOCAL_RANK" in os.environ and not torch.distributed.is_initialized()
    learning = (torch.inference_mode(False), torch.enable_grad())  # whatever the caller is in
    with (
        learning[0],
        learning[1],
        quiet_libraries(),
        distributed.session() if launched else nullcontext(),
    ):
        several.train(config, _COMMAND)
        return load_runs(Path(config.output)).best


@typed
def evaluate(
    model: str | Path | SimCSE | SentenceTransformer | Callable[[list[str]], np.ndarray],
    tasks: str | Sequence[str | Mapping[str, Any]] | None = None,
    data: str | Path | None = None,
    *,
    batch_size: Annotated[int, Field(gt=0)] = 128,
    pooling: Pooling | None = None,
    device: str | None = None,
    dims: int | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Score a model, as ``simcse evaluate`` does; writes nothing.

    Args:
        model: Run folder, model folder or Hub name; a loaded model; or any function from texts to
            embeddings of shape ``(texts, dim)``.
        tasks: Names as for ``--tasks``, in a list or with commas between them; tests on your own
            data as for ``--own``, such as ``graded:pairs.csv`` or a mapping of its settings.
        data: Folder in SentEval's layout.
        batch_size: Texts a forward pass.
        pooling: For a plain encoder by name only.
        device: For a model by name only, such as ``cpu``.
        dims: For a model by name only: score the first so many numbers of its embeddings.
        trust_remote_code: Let a model by name run code that comes with it.

    Returns:
        The scores, and the value of every single item. ``evaluate(…).value("pairs")`` is a task's
        main score, ``.value("geometry", "uniformity")`` any other.

    Raises:
        UserError: An unknown task, data or a model that is missing, embeddings that are not sound,
            tasks of mteb for a function.
    """
    folder = None if data is None else Path(data)
    if folder is not None and not folder.is_dir():
        raise UserError(f"data {folder}: no such folder")
    with quiet_libraries(), tempfile.TemporaryDirectory() as scratch:
        wanted = plan_tasks(at_commas(tasks) if isinstance(tasks, str) else tasks, folder).load()
        name, hub_name = "model", None
        if isinstance(model, str | Path):
            name = str(model)
            hub_name = name if is_hub_name(name) and (pooling, dims) == (None, None) else None
            consent = trust_remote_code
            model = load_model(name, pooling, device, dims=dims, trust_remote_code=consent)
        elif (pooling, device, dims, trust_remote_code) != (None, None, None, False):
            raise UserError(
                "pooling, device, dims, trust_remote_code: only for a model that is named"
            )
        precision: Precision = "float32"
        if isinstance(model, SimCSE):
            model, precision = model.model, model.precision
        if isinstance(model, SentenceTransformer):
            return score_model(
                model,
                wanted,
                batch_size,
                name=name,
                mteb_folder=Path(scratch),
                hub_name=hub_name,
                precision=precision,
            )
        if isinstance(model, torch.nn.Module):
            kind = type(model).__name__
            raise UserError(f"evaluate: model: {kind} embeds no texts; pass its folder or name")
        if wanted.mteb:
            raise UserError("tasks: those of mteb need a model, not a function that encodes")
        return evaluate_tasks(model, wanted.ours)
