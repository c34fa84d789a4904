"""Loads a model for use: whatever it is, it gets the pooling it was trained with."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util.file_io import is_sentence_transformer_model
from torch import nn

from simcse import encoder
from simcse.errors import UserError, first_line
from simcse.settings import EncoderConfig
from simcse.settings import Pooling as PoolingName

DEFAULT_MODEL = Path("outputs") / "quickstart"
ASSUMED_POOLING: PoolingName = "mean"

# princeton-nlp's checkpoints are plain encoders that do not say how they were pooled. The
# supervised ones keep their projection in the pooler (princeton-nlp/SimCSE, README).
_SIZES = ("bert-base-uncased", "bert-large-uncased", "roberta-base", "roberta-large")
UNSUPERVISED_RELEASES = frozenset(f"princeton-nlp/unsup-simcse-{size}" for size in _SIZES)
SUPERVISED_RELEASES = frozenset(f"princeton-nlp/sup-simcse-{size}" for size in _SIZES)

logger = logging.getLogger("simcse")


def load_model(
    name: str | None = None, pooling: PoolingName | None = None, device: str | None = None
) -> SentenceTransformer:
    """Load a trained model, a released SimCSE checkpoint or a plain encoder.

    Args:
        name: Folder or Hub name; ``None`` means the quickstart's result.
        pooling: For a plain encoder, which does not store its pooling. Without it mean pooling is
            assumed, and said so.
        device: Such as ``cpu`` or ``cuda:0``; ``None`` takes the best at hand.

    Raises:
        UserError: There is no such model, or ``pooling`` contradicts what the model stores.
    """
    if name is None:
        if not (DEFAULT_MODEL / "modules.json").is_file():
            raise UserError(
                f"no model given and no {DEFAULT_MODEL} here; make it with: python train.py"
            )
        name = str(DEFAULT_MODEL)
    if not name:
        raise UserError("the model's name is empty; expected a folder or a Hub name")
    _check_device(device)
    model = _load(name, pooling, device)
    try:
        model.encode_query(["short", "a little longer"], show_progress_bar=False)
    except Exception as error:  # what its files say of its tokenizer shows only when it is used
        raise UserError(f"{name}: cannot be used: {first_line(error)}") from error
    return model


def _load(name: str, pooling: PoolingName | None, device: str | None) -> SentenceTransformer:
    source = encoder.source_of(name)
    try:
        stores_pooling = is_sentence_transformer_model(source)
    except Exception:  # the Hub does not answer; what was downloaded earlier decides
        stores_pooling = is_sentence_transformer_model(source, local_files_only=True)
    if stores_pooling:
        if pooling is not None:
            raise UserError(f"pooling: {name} stores its own pooling; leave pooling out")
        return _load_stored(name, source, device)
    # A local copy counts as the release when its folder has kept the release's name.
    release = f"princeton-nlp/{Path(name).name}"
    if release in SUPERVISED_RELEASES and pooling is None:
        model = _with_trained_pooler(name)
    else:
        if pooling is None and release in UNSUPERVISED_RELEASES:
            pooling = "cls"
        elif pooling is None:
            pooling = ASSUMED_POOLING
            logger.warning("%s does not say how it is pooled; assuming %s pooling", name, pooling)
        model = encoder.build(EncoderConfig(name=name, pooling=pooling))
    return model.to(device) if device is not None else model


def _check_device(device: str | None) -> None:
    """Whether something can be computed there; ``meta`` for one only knows shapes."""
    try:
        if device is not None:
            torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch's ways to say no
        raise UserError(f"device {device}: {first_line(error)}") from error


def _load_stored(name: str, source: str, device: str | None) -> SentenceTransformer:
    try:
        for path in Path(source).rglob("config.json"):
            encoder.check_layers(path.name, json.loads(path.read_text(encoding="utf-8")))
        return SentenceTransformer(source, device=device)
    except Exception as error:  # a damaged folder fails in many ways, deep in the libraries
        raise UserError(f"{name}: cannot be loaded: {first_line(error)}") from error


def _with_trained_pooler(name: str) -> SentenceTransformer:
    """First position, then the dense layer and tanh that the checkpoint keeps as its pooler."""
    plain = encoder.build(EncoderConfig(name=name, pooling="cls"))
    transformer = Transformer(encoder.source_of(name))
    pooler = transformer.model.pooler.dense
    width = transformer.get_embedding_dimension()
    dense = Dense(
        width,
        width,
        activation_function=nn.Tanh(),
        init_weight=pooler.weight.detach(),
        init_bias=pooler.bias.detach(),
    )
    return SentenceTransformer(modules=[plain[0], Pooling(width, "cls"), dense])
