"""A trained model as an ONNX graph, from token ids to sentence embeddings.

Through ``torch.onnx.export`` itself: sentence-transformers' own ONNX back end needs packages whose
pins exclude the versions used here.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from simcse.encoders.encoder import SENTENCE_EMBEDDING
from simcse.encoders.layout import rewrite_tokenizers
from simcse.encoders.loading import load_trained
from simcse.errors import UserError
from simcse.evaluation.sources import read_pairs
from simcse.publishing.export import trained_runs

GRAPH = "model.onnx"
TOLERANCE = 1e-5
"""Largest difference of an embedding's value from torch's, relative to the largest value."""
_NEEDED = ("onnx", "onnxruntime", "onnxscript")


class _Graph(nn.Module):
    """The whole model as a function of tensors alone."""

    def __init__(self, model: SentenceTransformer, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        features = dict(zip(self.names, inputs, strict=True))
        embeddings: Tensor = self.model(features)[SENTENCE_EMBEDDING]  # (batch, dim)
        return embeddings


def export_onnx(run: Path, folder: Path, *, trust_remote_code: bool) -> None:
    """Write a run's model as :func:`write_graph` does.

    Args:
        run: Run folder, or a folder of seeds: then the best by dev.
        folder: Exists and is empty.
        trust_remote_code: Let the model run code that comes with it.

    Raises:
        UserError: The extra is not installed, the model has two towers or does something
            that a graph cannot, or the graph's embeddings are not the model's.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--format onnx: {', '.join(missing)} not installed; install the extra: "
            "pip install 'simcse-trainer[onnx]'"
        )
    runs, config = trained_runs(run)
    if config.encoder.towers == "two":
        raise UserError("--format onnx: a model with two towers has no single graph")
    model = load_trained(runs.best.folder, trust_remote_code=trust_remote_code, device="cpu")
    if model.default_prompt_name is not None or model.truncate_dim is not None:
        raise UserError("--format onnx: a graph adds no default prompt and cuts no embeddings")
    difference = write_graph(model, folder)
    print(f"onnxruntime and torch agree to {difference:.0e}")


def write_graph(model: SentenceTransformer, folder: Path) -> float:
    """Write ``model.onnx`` and the tokenizer's files, and compare the graph with torch.

    Inputs are the tokenizer's (int64, shape ``(batch, tokens)``), the output is
    ``sentence_embedding`` (float32, ``(batch, dim)``, not normalised); pooling and a projection
    that is part of the model are inside.

    Returns:
        The largest difference of an embedding's value between onnxruntime and torch.

    Raises:
        UserError: It is more than :data:`TOLERANCE`.
    """
    model.eval()
    sentences = [text for pair in read_pairs()[:16] for text in pair[:2]]
    inputs = _inputs(model, sentences)
    names = list(inputs)
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's, about its internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            _Graph(model, names),
            tuple(inputs.values()),
            folder / GRAPH,
            input_names=names,
            output_names=[SENTENCE_EMBEDDING],
            dynamic_shapes=(tuple(shape for _ in names),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _forget_traces(folder / GRAPH)
    model.tokenizer.save_pretrained(folder)
    rewrite_tokenizers(folder, token_types="token_type_ids" in names)
    difference = _largest_difference(model, folder / GRAPH, sentences)
    if not difference <= TOLERANCE:  # so that NaN counts
        raise UserError(
            f"--format onnx: embeddings of the graph differ from torch's by {difference:.2g}, more "
            f"than {TOLERANCE:.0e}; nothing was written"
        )
    return difference


def _forget_traces(graph: Path) -> None:
    """Remove the exporter's stack traces: local paths, and a quarter of a small file."""
    import onnx

    loaded = onnx.load(graph)
    for part in (loaded.graph, *loaded.graph.node, *loaded.graph.value_info, *loaded.functions):
        del part.metadata_props[:]
    onnx.save(loaded, graph)


def _inputs(model: SentenceTransformer, sentences: list[str]) -> dict[str, Tensor]:
    encoded = model.tokenizer(
        sentences,
        padding=True,
        truncation=True,
        max_length=model.max_seq_length,
        return_tensors="pt",
    )
    return dict(encoded)


def _largest_difference(model: SentenceTransformer, graph: Path, sentences: list[str]) -> float:
    """Over batches whose sizes and lengths differ from the traced one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (sentences[:1], sentences[1:4], sentences, [" ".join(sentences)]):
        inputs = {name: values.numpy() for name, values in _inputs(model, batch).items()}
        embeddings = session.run([SENTENCE_EMBEDDING], inputs)[0]
        expected = model.encode(batch, convert_to_numpy=True)
        scale = max(1.0, float(np.abs(expected).max()))
        worst = max(worst, float(np.abs(embeddings - expected).max()) / scale)
    return worst
