"""An exported ONNX graph in the place of a model's modules, run by onnxruntime on the CPU.

What encodes, searches or scores is given a ``SentenceTransformer`` as ever, so nothing else asks
what computes the embeddings.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from simcse.config.settings import Backend
from simcse.encoders.encoder import SENTENCE_EMBEDDING
from simcse.errors import UserError, first_line

GRAPHS: dict[Backend, str] = {
    "onnx": "onnx/model.onnx",
    "onnx-int8": "onnx/model_quantized.onnx",
}
"""Names that transformers.js and sentence-transformers expect."""
TOLERANCES: dict[Backend, float] = {"torch": 0.0, "onnx": 1e-4, "onnx-int8": 0.3}
"""Largest difference from torch, and of a text alone from the same in a batch, relative to the
largest number: int8 takes the range of its activations from the whole batch."""
_SENTENCES = ["A river of seven stones.", "Yes.", "The server returned an error."]


class OnnxGraph(InputModule):  # type: ignore[misc]
    """Tokenizer and graph; the only module of its model.

    Args:
        path: The graph, as ``simcse export --format onnx`` writes it.
        model: Whose graph it is.
        tolerance: See :data:`TOLERANCES`.
    """

    config_keys = ("graph", "max_seq_length")  # what tells one model's scores from another's

    def __init__(self, path: Path, model: SentenceTransformer, tolerance: float) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.names = [one.name for one in self.session.get_inputs()]
        outputs = {one.name: one.shape for one in self.session.get_outputs()}
        if SENTENCE_EMBEDDING not in outputs:
            raise ValueError(f"its outputs are {', '.join(outputs)}, not {SENTENCE_EMBEDDING}")
        self.width = int(outputs[SENTENCE_EMBEDDING][-1])
        self.graph = hashlib.sha256(path.read_bytes()).hexdigest()
        self.tokenizer = model.tokenizer
        self.max_seq_length = model.max_seq_length
        self.tolerance = tolerance

    def preprocess(
        self, inputs: list[str], prompt: str | None = None, **_: object
    ) -> dict[str, Tensor]:
        """Token ids and whatever else the tokenizer gives, int64 ``(texts, tokens)``."""
        texts = self._prepend_prompt(inputs, prompt) if prompt else inputs
        encoded = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_seq_length,
            return_tensors="pt",
        )
        return dict(encoded)

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        """Add embeddings, float32 ``(texts, dim)``, not normalised."""
        ids = features["input_ids"].numpy()
        inputs = {
            name: features[name].numpy() if name in features else np.zeros_like(ids)
            for name in self.names
        }
        [embeddings] = self.session.run([SENTENCE_EMBEDDING], inputs)
        return {**features, SENTENCE_EMBEDDING: torch.from_numpy(embeddings)}

    def get_embedding_dimension(self) -> int:
        """Width of the embeddings."""
        return self.width

    def save(self, *_: object, **__: object) -> NoReturn:
        """There is nothing to save that the exported folder does not hold.

        Raises:
            UserError: Always.
        """
        raise UserError("a model with an ONNX graph is not saved; copy the exported folder")


def with_graph(
    model: SentenceTransformer, folder: Path, backend: Backend, *, label: str
) -> SentenceTransformer:
    """The same model, computed by its graph.

    Args:
        model: As the folder's own files describe it.
        folder: Holds the graph under its name in :data:`GRAPHS`.
        backend: Which graph.
        label: Starts every error.

    Raises:
        UserError: onnxruntime is not installed, there is no such graph, or it is another model's.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            f"backend {backend}: onnxruntime is not installed; install the extra: "
            "pip install 'simcse-trainer[onnx]'"
        )
    path = folder / GRAPHS[backend]
    if not path.is_file():
        quantize = " --quantize int8" * (backend == "onnx-int8")
        raise UserError(
            f"{label}: has no {GRAPHS[backend]}; write it with: simcse export RUN OUT "
            f"--format onnx{quantize}"
        )
    tolerance = TOLERANCES[backend]
    try:
        graph = OnnxGraph(path, model, tolerance)
        settings: dict[str, Any] = {
            "prompts": model.prompts,
            "default_prompt_name": model.default_prompt_name,
            "similarity_fn_name": model.similarity_fn_name,
            "truncate_dim": model.truncate_dim,
        }
        result = SentenceTransformer(modules=[graph], device="cpu", **settings)
        difference = largest_difference(model, result, _SENTENCES)
    except Exception as error:  # onnxruntime has a class for each of its statuses
        raise UserError(
            f"{label}: {GRAPHS[backend]} cannot be used: {first_line(error)}"
        ) from error
    if not difference <= tolerance:  # so that NaN counts
        raise UserError(
            f"{label}: {GRAPHS[backend]}: its embeddings differ from those of the weights beside "
            f"it by {difference:.2g} of the largest number, more than {tolerance:g}; either it is "
            "another model's, or this model cannot be had in its precision"
        )
    return result


def largest_difference(
    model: SentenceTransformer, other: SentenceTransformer, sentences: list[str]
) -> float:
    """Largest difference of an embedding's value, relative to the largest value."""
    expected = model.encode(sentences, convert_to_numpy=True, show_progress_bar=False)
    found = other.encode(sentences, convert_to_numpy=True, show_progress_bar=False)
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found - expected).max() / np.abs(expected).max())
