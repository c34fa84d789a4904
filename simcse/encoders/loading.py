"""Loads a model for use: whatever it is, it gets the pooling it was trained with."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from simcse.config.settings import Backend, Pooling
from simcse.encoders import encoder
from simcse.encoders.gate import Origin, check_embeddings, load_sentence_model, stores_modules
from simcse.encoders.onnx_graph import with_graph
from simcse.errors import UserError, first_line

ASSUMED_POOLING: Pooling = "mean"
_CONSENT = "allow it with --trust-remote-code (in Python trust_remote_code=True)"

# princeton-nlp's checkpoints are plain encoders that do not say how they were pooled. The
# supervised ones keep their projection in the pooler (princeton-nlp/SimCSE, README).
_SIZES = ("bert-base-uncased", "bert-large-uncased", "roberta-base", "roberta-large")
RELEASES: dict[str, Pooling] = {
    **{f"princeton-nlp/unsup-simcse-{size}": "cls" for size in _SIZES},
    **{f"princeton-nlp/sup-simcse-{size}": "pooler" for size in _SIZES},
}

logger = logging.getLogger("simcse")


def load_model(
    name: str | None = None,
    pooling: Pooling | None = None,
    device: str | None = None,
    *,
    dims: int | None = None,
    backend: Backend = "torch",
    trust_remote_code: bool = False,
) -> SentenceTransformer:
    """Load a trained model, a released SimCSE checkpoint or a plain encoder.

    Args:
        name: Folder or Hub name; ``None`` means the model that comes with the package.
        pooling: For a plain encoder, which does not store its pooling. Without it mean pooling is
            assumed, and said so.
        device: Such as ``cpu`` or ``cuda:0``; ``None`` takes the best at hand.
        dims: As for :func:`truncate`.
        backend: What computes the embeddings; a graph (``onnx``, ``onnx-int8``) runs on the CPU.
        trust_remote_code: Let the model run code that comes with it.

    Raises:
        UserError: There is no such model, it is not sound, it is not as wide as ``dims``,
            ``pooling`` contradicts what it stores, or there is no graph for ``backend``.
    """
    origin = find_model(name, trust_remote_code=trust_remote_code)
    if backend != "torch" and device not in (None, "cpu"):
        raise UserError(f"device {device}: backend {backend} runs on the CPU")
    check_device(device)
    model = _load(origin, pooling)
    truncate(model, dims)
    if backend == "torch":
        return model if device is None else model.to(device)
    graph = with_graph(model.to("cpu"), Path(origin.path), backend, label=origin.label)
    check_embeddings(origin.label, graph)
    return graph


def truncate(model: SentenceTransformer, dims: int | None) -> None:
    """Let a model give the first ``dims`` numbers of its embeddings; ``None`` leaves it as it is.

    Raises:
        UserError: It is not as wide.
    """
    if dims is None:
        return
    widest = encoder.width(model)
    if not 2 <= dims <= widest:
        raise UserError(f"dims: {dims} is out of range; this model allows 2 to {widest}")
    model.truncate_dim = dims


def find_model(name: str | None = None, *, trust_remote_code: bool = False) -> Origin:
    """Where the model of :func:`load_model` lies; nothing of it is read yet.

    Raises:
        UserError: There is no such model.
    """
    if name is None:
        name = encoder.EMBEDDED_MODEL
    if not name:
        raise UserError("the model's name is empty; expected a folder or a Hub name")
    folder = Path(encoder.source_of(name))
    if not (folder / "modules.json").is_file():
        if (folder / "summary.json").is_file():
            raise UserError(f"{name}: holds several runs; name the folder of one of them")
        if (folder / "checkpoints").is_dir():
            raise UserError(f"{name}: a run that is not finished; run its command again")
    return Origin(name, str(folder), _CONSENT, trust_remote_code)


def _load(origin: Origin, pooling: Pooling | None) -> SentenceTransformer:
    name = origin.label
    if stores_modules(origin):
        if pooling is not None:
            raise UserError(f"pooling: {name} stores its own pooling; leave pooling out")
        return load_sentence_model(origin)
    # A local copy counts as the release when its folder has kept the release's name.
    pooling = pooling or RELEASES.get(f"princeton-nlp/{Path(name).name}")
    model = encoder.with_pooling(origin, pooling or ASSUMED_POOLING)
    if pooling is None:
        logger.warning(
            "%s does not say how it is pooled; assuming %s pooling", name, ASSUMED_POOLING
        )
    return model


def check_device(device: str | None) -> None:
    """See that something can be computed there; ``meta`` for one only knows shapes.

    Raises:
        UserError: It cannot.
    """
    try:
        if device is not None:
            torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:  # torch's ways of no
        said = first_line(error).removeprefix("AssertionError: ")
        raise UserError(f"device {device}: {said}") from error


def load_trained(
    folder: Path, *, trust_remote_code: bool, device: str | None = None
) -> SentenceTransformer:
    """The model of a run folder, or of one that was exported.

    Raises:
        UserError: It is damaged or missing.
    """
    if not (folder / "modules.json").is_file():
        raise UserError(f"{folder}: its model is missing")
    origin = Origin(str(folder), str(folder), _CONSENT, trust_remote_code)
    return load_sentence_model(origin, device=device)
