"""Downloads all that a config names, so that its run works with the network off."""

from __future__ import annotations

from pathlib import Path

from simcse.config.settings import Config
from simcse.data.documents import Documents
from simcse.data.readers import find_sources
from simcse.encoders import encoder
from simcse.errors import UserError
from simcse.evaluation.scoring import plan_tasks
from simcse.evaluation.sources import load_dev_task
from simcse.training.text_embeddings import load_helper


def prefetch(config: Config) -> None:
    """Fetch the newest encoder, text, teacher and guide, with the same calls that a run makes.

    Raises:
        UserError: Something is neither on this machine nor available on the Hub. What could be
            fetched is kept, so the command can be repeated.
    """
    encoder.source_of(config.encoder.name, config.encoder.revision, refresh=True)
    encoder.build(config.encoder)
    print(f"encoder  {_named(config.encoder.name, config.encoder.revision)}", flush=True)
    for own in config.sets:
        for name in own.train:
            for _ in find_sources(name, own, refresh=True):
                pass
            print(f"text     {_named(name, own.revision)}", flush=True)
    for kind, (name, revision) in config.objective.helpers.items():
        load_helper(config.objective, kind, refresh=True)
        print(f"{kind:8} {_named(name, revision)}")
    data = Path(config.evaluation.data) if config.evaluation.data else None
    try:
        documents = Documents.of(config)
        load_dev_task(config.evaluation.dev, data, documents)
        tasks = plan_tasks(config.evaluation.tasks, data).load(documents)
    except UserError as error:
        raise UserError(f"{error} (evaluation data are yours; all else is here)") from error
    if tasks.mteb:
        from simcse.evaluation.mteb_tasks import check_at_hand

        check_at_hand(tasks.mteb, data)
        print(f"mteb     {', '.join(task.metadata.name for task in tasks.mteb)}")
    print("all that the config needs is on this machine")


def _named(name: str, revision: str | None) -> str:
    return f"{name} at {revision}" if revision else name
