"""The index of sentences that ``SimCSE.search`` looks in, in memory and as a file.

The file is safetensors: it can hold no code and nothing compressed, and its header is compared with
the file's length before anything is read. Each sentence ends with NUL, which no text may contain;
the ids are a list in JSON.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from simcse.errors import UserError, first_line
from simcse.files import may_write, replacing

_TENSORS = {"embeddings": "F32", "ids": "U8", "probe": "F32", "sentences": "U8"}
_UNIT_TOLERANCE = 1e-2  # a bfloat16 model normalises to three digits
_QUERY_BLOCK = 256
_NEIGHBOURS, _CANDIDATES = 32, 128  # of a sentence in the graph; looked at by a search in it


Id = int | str


class Index(TypedDict):
    """Sentences and their embeddings, under the keys that princeton-nlp's package gives them."""

    sentences: list[str]
    index: Any
    """Normalised embeddings, float32 ``(sentences, dim)``, or a faiss index that holds them."""
    ids: list[Id]
    """Of each sentence: the user's, or the number of its row."""


class Cells(NamedTuple):
    """How an approximate index is divided."""

    number: int
    searched: int


def build(
    sentences: list[str],
    ids: list[Id],
    embeddings: np.ndarray,
    use_faiss: bool | None,
    cells: Cells | Literal["hnsw"] | None,
) -> Index:
    """Make an index.

    Args:
        sentences: The index takes the list over.
        ids: One for each; likewise.
        embeddings: Normalised, float32 ``(sentences, dim)``.
        use_faiss: ``None`` uses faiss when it is installed.
        cells: With faiss, makes the search approximate; ``hnsw`` by a graph of neighbours
            (Malkov and Yashunin, 2018) instead of cells.

    Raises:
        UserError: faiss is asked for and not installed.
    """
    installed = importlib.util.find_spec("faiss") is not None
    if use_faiss and not installed:
        raise UserError("use_faiss: faiss is not installed; pip install faiss-cpu")
    if not (installed if use_faiss is None else use_faiss):
        return {"sentences": sentences, "index": embeddings, "ids": ids}
    import faiss

    count, width = embeddings.shape
    index: Any = faiss.IndexFlatIP(width)
    if cells == "hnsw":
        index = faiss.IndexHNSWFlat(width, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = _CANDIDATES
    elif cells is not None and count:  # without a sentence there is nothing to divide
        number = min(cells.number, count)
        index = faiss.IndexIVFFlat(index, width, number, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = cells.searched
        index.train(embeddings)
    index.add(embeddings)
    return {"sentences": sentences, "index": index, "ids": ids}


def add(index: Index, sentences: list[str], ids: list[Id], embeddings: np.ndarray) -> None:
    """Append sentences, in place."""
    if isinstance(index["index"], np.ndarray):
        index["index"] = np.concatenate([index["index"], embeddings])
    else:
        index["index"].add(embeddings)
    index["sentences"] += sentences
    index["ids"] += ids


def nearest(index: Index, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and rows of the nearest sentences, best first, each ``(queries, count)``.

    The row is -1 where an approximate index returns fewer.
    """
    embeddings = index["index"]
    if not isinstance(embeddings, np.ndarray):
        scores, rows = embeddings.search(queries, count)
        return scores, rows
    blocks = []
    for start in range(0, len(queries), _QUERY_BLOCK):
        similarity = queries[start : start + _QUERY_BLOCK] @ embeddings.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        blocks.append((np.take_along_axis(similarity, order, axis=1), order))
    scores, rows = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return scores, rows


def save(index: Index, probe: np.ndarray, path: Path) -> None:
    """Write a file, replacing an older one in one step.

    Args:
        index: Exact or approximate; how it searches is not stored.
        probe: Tells the model, float32 ``(dim,)``.
        path: See :func:`check_target`.
    """
    embeddings = index["index"]
    if not isinstance(embeddings, np.ndarray):
        embeddings = embeddings.reconstruct_n(0, embeddings.ntotal)
    text = "".join(f"{sentence}\0" for sentence in index["sentences"])
    as_bytes = (np.frombuffer(t.encode(), np.uint8) for t in (json.dumps(index["ids"]), text))
    ids, sentences = as_bytes
    tensors = (embeddings, ids, probe, sentences)
    with replacing(path) as temporary:
        save_file(dict(zip(_TENSORS, tensors, strict=True)), temporary)


def check_target(path: Path, inputs: Iterable[str | None] = (), *, overwrite: bool = False) -> None:
    """See that an index may be saved, before the work begins; as :func:`simcse.files.may_write`.

    Raises:
        UserError: The name does not end in ``.safetensors``, or what is there is no index.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: expected the name of an index, ending in .safetensors")
    may_write(path, inputs, ours=_is_index, overwrite=overwrite)


def _kinds(file: Any, names: Iterable[str]) -> dict[str, str]:
    """Types of tensors."""
    return {name: file.get_slice(name).get_dtype() for name in names}


def _is_index(path: Path) -> bool:
    try:
        with safe_open(path, "numpy") as file:
            return _kinds(file, file.keys()) == _TENSORS
    except (OSError, SafetensorError):
        return False


def load(path: Path) -> tuple[list[str], list[Id], np.ndarray, np.ndarray]:
    """Sentences, ids, embeddings and probe of a file, whoever wrote it.

    Raises:
        UserError: It is missing, damaged or no index.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path}: not a saved index: no such file")
        with safe_open(path, "numpy") as file:
            kinds = _kinds(file, _TENSORS)
            if kinds != _TENSORS:
                raise UserError(f"{path}: not a saved index: expected {_TENSORS}, found {kinds}")
            embeddings, found, probe, sentences = map(file.get_tensor, _TENSORS)
        text = sentences.tobytes().decode()
        ids = json.loads(found.tobytes())
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a saved index: {first_line(error)}") from error
    expected = (text.count("\0"), *probe.shape)  # counted first: splitting takes memory
    if probe.ndim != 1 or embeddings.shape != expected or (text and text[-1] != "\0"):
        raise UserError(
            f"{path}: damaged: {embeddings.shape} embeddings, expected {expected} by its sentences"
        )
    if not (abs(np.einsum("ij,ij->i", embeddings, embeddings) - 1) <= _UNIT_TOLERANCE).all():
        raise UserError(f"{path}: damaged: an embedding is not of length 1")
    if not isinstance(ids, list) or not all(isinstance(one, Id) for one in ids):
        raise UserError(f"{path}: damaged: its ids are no list of numbers and texts")
    if len(ids) != len(embeddings):
        raise UserError(f"{path}: damaged: {len(ids)} ids of {len(embeddings)} sentences")
    return text.split("\0")[:-1], ids, embeddings, probe
