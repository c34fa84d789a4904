"""What mteb's leaderboard wants to know of a published model, as Python source for its registry."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, get_args

from mteb.get_tasks import TASK_LIST
from mteb.models import ModelMeta
from mteb.types import Licenses
from sentence_transformers import SentenceTransformer

from simcse.config.settings import EMBEDDED_TEXT, Config
from simcse.encoders.encoder import EMBEDDED_ENCODER, fingerprint
from simcse.encoders.loading import load_trained
from simcse.errors import UserError
from simcse.hub.failures import check_name
from simcse.hub.snapshots import snapshot
from simcse.publishing.export import trained_runs
from simcse.reports.records import MadeFrom
from simcse.reports.runs import ENVIRONMENT_FILE, evaluation_folder, read_json

UNKNOWN = "unknown"
"""Of ``--trained-on``: then mteb does not call the model zero-shot on any task."""


def mteb_meta(
    run: Path, name: str, *, revision: str | None, trained_on: str | None, trust_remote_code: bool
) -> str:
    """A ``ModelMeta`` of the Hub's commit, and how to submit results.

    Args:
        run: Run folder, or folder of seeds.
        name: ``user/name``, to which it was published.
        revision: Branch or commit; ``None`` is ``main``.
        trained_on: Comma-separated names of mteb's tasks and data sets, beside those that the run
            has from the Hub; or :data:`UNKNOWN`.
        trust_remote_code: Let the model run code that comes with it.

    Raises:
        UserError: The Hub has another model under that name, or it is not known what the training
            text or the encoder were made from.
    """
    check_name(name)
    runs, config = trained_runs(run)
    made_from = read_json(runs.best.folder / ENVIRONMENT_FILE, MadeFrom)
    names = _training_data(config, made_from, trained_on)
    commit = snapshot(name, revision, refresh=True)
    own, published = (
        load_trained(folder, trust_remote_code=trust_remote_code, device="cpu")
        for folder in (runs.best.folder, commit)
    )
    if fingerprint(own) != fingerprint(published):
        raise UserError(
            f"{name}: its commit {commit.name} is not the model of {run}; publish that first: "
            f"simcse publish {run} {name}"
        )
    meta = _meta(published, name, commit.name, config, made_from, names)
    missing = [
        key for key in ("release_date", "languages", "license") if getattr(meta, key) is None
    ]
    to_do = f"# to fill in by hand: {', '.join(missing)}\n" * bool(missing)
    tasks = '"mteb:MTEB(eng, v2)"'
    return (
        f"{to_do}model = {meta.to_python()}\n\n"
        "# Add it to mteb/models/model_implementations/ of embeddings-benchmark/mteb. Then, with "
        "the results\n# of the Hub's model (those on local files cannot be submitted):\n"
        f"#   simcse evaluate {name} --tasks {tasks}\n"
        f"#   mteb submit-results --output-folder {evaluation_folder(name) / 'mteb'} "
        f"--models {name} --create-pr"
    )


def _meta(
    model: SentenceTransformer,
    name: str,
    commit: str,
    config: Config,
    made_from: dict[str, Any],
    training_data: set[str] | None,
) -> ModelMeta:
    of_card = made_from.get("encoder_card", {})
    license_ = config.hub.license or of_card.get("license")
    hub_name = config.encoder.name if made_from["encoder_commit"] else None
    parameters = list(model.parameters())
    table = model[0].model.get_input_embeddings().weight.numel()  # mteb's guess takes our width
    values = {
        "name": name,
        "revision": commit,
        "languages": ["eng-Latn"] if config.hub.language == ["en"] else None,
        "n_parameters": sum(one.numel() for one in parameters),
        "n_embedding_parameters": table,
        "memory_usage_mb": round(sum(one.nbytes for one in parameters) / 2**20, 1),
        "license": license_ if license_ in get_args(Licenses) else None,
        "open_weights": True,
        "framework": ["Sentence Transformers", "PyTorch", "safetensors"],
        "reference": f"https://huggingface.co/{name}",
        "use_instructions": any((model.prompts or {}).values()),
        "training_datasets": training_data,
        "adapted_from": hub_name or config.hub.base_model or of_card.get("base_model"),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"mteb\.")  # of its own use of older names
        meta: ModelMeta = ModelMeta.from_sentence_transformer_model(model, fill_missing=None)
    return meta.model_copy(update=values)


def _training_data(
    config: Config, made_from: dict[str, Any], trained_on: str | None
) -> set[str] | None:
    """All that the model has seen, by mteb's names of tasks where it has one; ``None``: unknown.

    A task whose dev part chose the checkpoint has been seen too.

    Raises:
        UserError: Something of unknown origin, and ``trained_on`` does not say what it is.
    """
    entries = {entry for own in config.sets for entry in own.train}
    local = entries - {*made_from["from_hub"], EMBEDDED_TEXT}
    of_card = made_from.get("encoder_card", {}).get("base_model") or config.hub.base_model
    if not (made_from["encoder_commit"] or of_card or config.encoder.name == EMBEDDED_ENCODER):
        local.add(config.encoder.name)
    local |= {name for name, _ in config.objective.helpers.values()}  # what it learned from them
    words = {word.strip() for word in (trained_on or "").split(",")} - {""}
    if local and not words:
        raise UserError(
            f"mteb-meta: {', '.join(sorted(local))}: mteb has to know what it was made from; name "
            f"its tasks or data sets with --trained-on A,B, or say --trained-on {UNKNOWN}"
        )
    if UNKNOWN in words:
        return None
    from_hub = {entry.partition(":")[0] for entry in entries & {*made_from["from_hub"]}}
    tasks = {
        task.metadata.name
        for task in TASK_LIST
        if (task.metadata.dataset or {}).get("path") in from_hub
    }
    chosen_by = {"STSBenchmark"} if config.evaluation.dev == "STSB" else set()
    return from_hub | tasks | words | ({EMBEDDED_TEXT} & entries) | chosen_by
