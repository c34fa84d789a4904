"""Everything that a run reads and builds before it trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from simcse import distributed
from simcse.config.settings import Config
from simcse.data.documents import Documents
from simcse.encoders import encoder, gate
from simcse.encoders.language_models import set_attention
from simcse.encoders.mini_batches import on_device
from simcse.errors import naming_memory
from simcse.evaluation.protocol import Scores
from simcse.evaluation.scoring import TaskList, plan_tasks
from simcse.evaluation.sources import load_dev_task, load_geometry
from simcse.objectives.terms import check_dims
from simcse.training.hints import hints, what_chooses_and_tests
from simcse.training.loss import TrainingLoss
from simcse.training.setup import Dev, check_views_differ
from simcse.training.text import TrainingText
from simcse.training.text_embeddings import TextEmbeddings, text_embeddings

_START_ROWS = 4096  # to fit a student's map to its teacher's width


@dataclass(frozen=True)
class Prepared:
    """Everything that is read before weights are trained."""

    text: TrainingText
    model: SentenceTransformer
    tasks: TaskList
    dev: Dev
    loss: TrainingLoss
    helpers: dict[str, str]
    """Tell the embeddings of the teacher and of the guide from any other's."""

    @property
    def scored(self) -> TaskList:
        """What a model is scored on: the tasks, and the dev task where it is not one of them."""
        ours = [*self.tasks.ours]
        if all(task.name != self.dev.task.name for task in ours):
            ours.insert(0, self.dev.task)
        return replace(self.tasks, ours=ours)

    def reported(self, scores: Scores) -> Scores:
        """Without those of a dev task that is no test."""
        tests = {task.name for task in self.tasks.ours}
        return {k: v for k, v in scores.items() if k in tests or k != self.dev.task.name}


def prepare(config: Config) -> Prepared:
    """Read the text, build the model and its loss, and check that they fit; prints what was read.

    Raises:
        UserError: Whatever a run can be refused for before it trains.
    """
    data = Path(config.evaluation.data) if config.evaluation.data else None
    set_seed(config.seed)  # for the projection's first weights
    model = encoder.build(config.encoder)
    check_dims(config, model)
    is_stored = gate.stores_modules(encoder.origin_of(config.encoder))
    raw_poolings = [] if is_stored else config.evaluation.raw_poolings
    set_attention(
        "evaluation.raw_poolings",
        encoder.transformer_of(model),
        config.encoder.attention,
        raw_poolings,
    )
    with distributed.first():
        documents = Documents.of(config)
    text = TrainingText.read(config, model, documents)
    tasks = plan_tasks(config.evaluation.tasks, data).load(documents)
    if tasks.mteb:
        from simcse.evaluation.mteb_tasks import check_at_hand

        with distributed.first():
            check_at_hand(tasks.mteb, data)
    dev = Dev(
        load_dev_task(config.evaluation.dev, data, documents),
        load_geometry(data, dev_only=True),
        config.evaluation.batch_size,
        config.evaluation.precision,
    )
    for line in what_chooses_and_tests(dev.task, tasks.ours, [t.metadata.name for t in tasks.mteb]):
        print(line)
    if any(view.dropout is not None for view in config.views):
        encoder.check_dropout_is_reached(model)
    for number, own in enumerate(config.sets):
        if own.form in ("sentences", "documents"):
            check_views_differ(config, model, on_device(text.sample(number, 8), model.device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    adapted = f" ({trained:,} of them trained)" if config.encoder.has_adapters else ""
    print(
        f"model    {config.encoder.name}, {parameters:,} parameters{adapted}, {model.device}, "
        f"{config.training.precision}"
    )
    for line in hints(config, text.sets, model):
        print(line)
    hashes = text.hashes() if config.objective.helpers else np.empty(0)
    embeddings: dict[str, TextEmbeddings] = {}
    for kind in config.objective.helpers:
        with distributed.first():
            embeddings[kind] = text_embeddings(config, kind, hashes)
        text.look_up(kind, embeddings[kind])
    teacher = embeddings.get("teacher")
    with naming_memory("for what the objective learns", "the sizes in objective.terms"):
        loss = TrainingLoss(model, config, teacher.width if teacher else None)
    if teacher:
        chosen = np.flatnonzero(text.used()[0])[:_START_ROWS].tolist()
        loss.start_from(on_device(text.collate(0, 0, chosen), model.device))
    keys = {kind: found.key for kind, found in embeddings.items()}
    return Prepared(text, model, tasks, dev, loss, keys)
