"""A trained model as an ONNX graph, from token ids to sentence embeddings.

Through ``torch.onnx.export`` itself: sentence-transformers' own ONNX back end needs packages whose
pins exclude the versions used here.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn

from simcse.encoders.encoder import SENTENCE_EMBEDDING, routes
from simcse.encoders.loading import load_trained
from simcse.encoders.onnx_graph import GRAPHS, OnnxGraph, largest_difference, with_graph
from simcse.errors import UserError
from simcse.evaluation.sources import read_pairs
from simcse.publishing.export import write_model_folder
from simcse.publishing.smaller_models import Form, retention_table

TOKEN_EMBEDDINGS = "token_embeddings"
"""Second output: pipelines that pool by themselves, as transformers.js's, look for it."""
TOLERANCE = 1e-5
"""Largest difference of an embedding's value from torch's, relative to the largest value."""
_NEEDED = ("onnx", "onnxruntime", "onnxscript")


class _Graph(nn.Module):
    """The whole model as a function of tensors alone."""

    def __init__(self, model: SentenceTransformer, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(dict(zip(self.names, inputs, strict=True)))
        # (batch, dim), (batch, tokens, width)
        return output[SENTENCE_EMBEDDING], output[TOKEN_EMBEDDINGS]


def export_onnx(
    run: Path, name: str, folder: Path, *, quantize: bool, trust_remote_code: bool
) -> None:
    """Write a run's model as it is published, and beside it the graph; say how it compares.

    Args:
        run: Run folder, or a folder of seeds: then the best by dev.
        name: What the card calls the model.
        folder: Exists and is empty.
        quantize: Write a graph in int8, too.
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
    write_model_folder(run, name, folder, trust_remote_code=trust_remote_code)
    model = load_trained(folder, trust_remote_code=trust_remote_code, device="cpu")
    if routes(model) != [None]:
        raise UserError("--format onnx: a model with two towers has no single graph")
    if model.default_prompt_name is not None or model.truncate_dim is not None:
        raise UserError("--format onnx: a graph adds no default prompt and cuts no embeddings")
    unpooled = any(isinstance(m, Pooling) and not m.include_prompt for m in model.modules())
    if unpooled and any((model.prompts or {}).values()):
        raise UserError("--format onnx: a graph cannot leave the tokens of a prompt out of pooling")
    graph = folder / GRAPHS["onnx"]
    graph.parent.mkdir()
    difference = write_graph(model, graph)
    print(f"onnxruntime and torch agree to {difference:.0e}", flush=True)
    if not quantize:
        return
    write_int8(graph, folder / GRAPHS["onnx-int8"])
    forms = [
        Form("PyTorch, float32", model, folder / "model.safetensors"),
        Form("ONNX, float32", with_graph(model, folder, "onnx", label=name), graph),
        Form(
            "ONNX, int8",
            with_graph(model, folder, "onnx-int8", label="--quantize int8"),
            folder / GRAPHS["onnx-int8"],
        ),
    ]
    print(retention_table(forms))


def write_graph(model: SentenceTransformer, path: Path) -> float:
    """Write the graph and compare it with torch.

    Inputs are the tokenizer's (int64, shape ``(batch, tokens)``), outputs ``sentence_embedding``
    (float32, ``(batch, dim)``, not normalised; pooling and a projection that is part of the model
    are inside) and ``token_embeddings`` (``(batch, tokens, width)``), of which it was pooled.

    Returns:
        The largest difference of an embedding's value between onnxruntime and torch.

    Raises:
        UserError: It is more than :data:`TOLERANCE`.
    """
    model.eval()
    sentences = [text for pair in read_pairs()[:16] for text in pair[:2]]
    encoded = model.tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    inputs: dict[str, Tensor] = dict(encoded)
    names = list(inputs)
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's, about its internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            _Graph(model, names),
            tuple(inputs.values()),
            path,
            input_names=names,
            output_names=[SENTENCE_EMBEDDING, TOKEN_EMBEDDINGS],
            dynamic_shapes=(tuple(shape for _ in names),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _forget_traces(path)
    session = SentenceTransformer(modules=[OnnxGraph(path, model, TOLERANCE)], device="cpu")
    # Batches whose sizes and lengths differ from the traced one.
    batches = (sentences[:1], sentences[1:4], sentences, [" ".join(sentences)])
    difference = max(largest_difference(model, session, batch) for batch in batches)
    if not difference <= TOLERANCE:  # so that NaN counts
        raise UserError(
            f"--format onnx: embeddings of the graph differ from torch's by {difference:.2g}, more "
            f"than {TOLERANCE:.0e}; nothing was written"
        )
    return difference


def write_int8(graph: Path, output: Path) -> None:
    """Write the graph with weights in int8, one scale for each column, activations as they come.

    Weights have 7 bits: with 8 the sums overflow on processors without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # the root logger's, on a preparation that changes nothing
    try:
        quantize_dynamic(
            graph, output, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
        )
    finally:
        logging.disable(logging.NOTSET)


def _forget_traces(graph: Path) -> None:
    """Remove the exporter's stack traces: local paths, and a quarter of a small file."""
    import onnx

    loaded = onnx.load(graph)
    for part in (loaded.graph, *loaded.graph.node, *loaded.graph.value_info, *loaded.functions):
        del part.metadata_props[:]
    onnx.save(loaded, graph)
