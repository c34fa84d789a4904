"""The index of sentences that ``SimCSE.search`` looks in, in memory and as a file.

The file is safetensors: it can hold no code and nothing compressed, and its header is compared with
the file's length before anything is read. Each sentence ends with NUL, which no text may contain;
the ids are a list in JSON. What an embedding is stored in is told by the types of the tensors.
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

from simcse.config.settings import Vectors
from simcse.encoders.vectors import Quantizer, are_ranges, width_of
from simcse.errors import UserError, first_line
from simcse.files import may_write, replacing
from simcse.inference.quantized import Quantized

_TENSORS = {"embeddings": "F32", "ids": "U8", "probe": "F32", "sentences": "U8"}
_RANGES = {"ranges": "F32"}
_LAYOUTS: dict[Vectors, dict[str, str]] = {
    "float32": _TENSORS,
    "int8": {**_TENSORS, **_RANGES, "embeddings": "I8"},
    "uint8": {**_TENSORS, **_RANGES, "embeddings": "U8"},
    "binary": {**_TENSORS, "embeddings": "I8"},
    "ubinary": {**_TENSORS, "embeddings": "U8"},
}
_UNIT_TOLERANCE = 1e-2  # a bfloat16 model normalises to three digits
_QUERY_BLOCK = 256
_NEIGHBOURS, _CANDIDATES = 32, 128  # of a sentence in the graph; looked at by a search in it


Id = int | str


class Index(TypedDict):
    """Sentences and their embeddings, under the keys that princeton-nlp's package gives them."""

    sentences: list[str]
    index: Any
    """Normalised embeddings, float32 ``(sentences, dim)``, or what holds them: a faiss index or
    :class:`~simcse.inference.quantized.Quantized`."""
    ids: list[Id]
    """Of each sentence: the user's, or the number of its row."""


class Cells(NamedTuple):
    """How an approximate index is divided."""

    number: int
    searched: int


def build(
    sentences: list[str],
    ids: list[Id],
    embeddings: np.ndarray | Quantized,
    use_faiss: bool | None,
    cells: Cells | Literal["hnsw"] | None,
    vectors: Vectors = "float32",
) -> Index:
    """Make an index.

    Args:
        sentences: The index takes the list over.
        ids: One for each; likewise.
        embeddings: Normalised, float32 ``(sentences, dim)``; or what :func:`load` gives.
        use_faiss: ``None`` uses faiss when it is installed.
        cells: With faiss, makes the search approximate; ``hnsw`` by a graph of neighbours
            (Malkov and Yashunin, 2018) instead of cells.
        vectors: What float32 embeddings are to be stored in.

    Raises:
        UserError: faiss is asked for and not installed, or does not hold such vectors.
    """
    if isinstance(embeddings, np.ndarray) and vectors != "float32":
        quantizer = Quantizer(vectors)
        embeddings = Quantized(quantizer, embeddings.shape[1], quantizer(embeddings))
    if isinstance(embeddings, Quantized):
        if use_faiss or cells:
            raise UserError("vectors: faiss is used with float32 only")
        return {"sentences": sentences, "index": embeddings, "ids": ids}
    installed = importlib.util.find_spec("faiss") is not None
    if cells == "hnsw" and not (installed if use_faiss is None else use_faiss):
        raise UserError("faiss_fast: hnsw needs faiss (pip install faiss-cpu, use_faiss=True)")
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


def nearest(
    index: Index, queries: np.ndarray, count: int, rescore_multiplier: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and rows of the nearest sentences, best first, each ``(queries, count)``.

    The row is -1 where an approximate index returns fewer.

    Args:
        index: From :func:`build`.
        queries: Normalised, float32 ``(queries, dim)``, one or more.
        count: At most the number of sentences.
        rescore_multiplier: Of packed bits, how many times ``count`` are compared by numbers.
    """
    embeddings = index["index"]
    if isinstance(embeddings, Quantized) and embeddings.packed:
        most = count * rescore_multiplier
        found = [embeddings.search_bits(query, count, most) for query in queries]
        scores, rows = (np.stack(parts) for parts in zip(*found, strict=True))
        return scores, rows
    if not isinstance(embeddings, np.ndarray | Quantized):
        scores, rows = embeddings.search(queries, count)
        return scores, rows
    blocks = []
    for start in range(0, len(queries), _QUERY_BLOCK):
        block = queries[start : start + _QUERY_BLOCK]
        if isinstance(embeddings, Quantized):
            similarity = embeddings.similarities(block)
        else:
            similarity = block @ embeddings.T
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
    embeddings, ranges = index["index"], None  # type: Any, np.ndarray | None
    if isinstance(embeddings, Quantized):
        embeddings, ranges = embeddings.stored, embeddings.quantizer.ranges
    elif not isinstance(embeddings, np.ndarray):
        embeddings = embeddings.reconstruct_n(0, embeddings.ntotal)
    text = "".join(f"{sentence}\0" for sentence in index["sentences"])
    as_bytes = (np.frombuffer(t.encode(), np.uint8) for t in (json.dumps(index["ids"]), text))
    ids, sentences = as_bytes
    tensors = dict(zip(_TENSORS, (embeddings, ids, probe, sentences), strict=True))
    with replacing(path) as temporary:
        save_file(tensors if ranges is None else {**tensors, "ranges": ranges}, temporary)


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
            return _kinds(file, file.keys()) in _LAYOUTS.values()
    except (OSError, SafetensorError):
        return False


def load(path: Path) -> tuple[list[str], list[Id], np.ndarray | Quantized, np.ndarray]:
    """Sentences, ids, embeddings and probe of a file, whoever wrote it.

    Raises:
        UserError: It is missing, damaged or no index.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("no such file")
        with safe_open(path, "numpy") as file:
            kinds = _kinds(file, [*_TENSORS, *(_RANGES.keys() & set(file.keys()))])
            kind = next((kind for kind, layout in _LAYOUTS.items() if layout == kinds), None)
            if kind is None:
                raise ValueError(f"expected {_TENSORS}, found {kinds}")
            embeddings, found, probe, sentences = map(file.get_tensor, _TENSORS)
            ranges = file.get_tensor("ranges") if "ranges" in kinds else None
        text = sentences.tobytes().decode()
        ids = json.loads(found.tobytes())
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a saved index: {first_line(error)}") from error
    # Counted first: splitting takes memory.
    expected = (text.count("\0"), *(width_of(kind, dim) for dim in probe.shape))
    if probe.ndim != 1 or embeddings.shape != expected or (text and text[-1] != "\0"):
        raise UserError(
            f"{path}: damaged: {embeddings.shape} embeddings, expected {expected} by its sentences"
        )
    if not isinstance(ids, list) or not all(isinstance(one, Id) for one in ids):
        raise UserError(f"{path}: damaged: its ids are no list of numbers and texts")
    if len(ids) != len(embeddings):
        raise UserError(f"{path}: damaged: {len(ids)} ids of {len(embeddings)} sentences")
    if kind != "float32":
        if ranges is not None and not are_ranges(ranges, len(probe)):
            raise UserError(f"{path}: damaged: its ranges are not those of its embeddings")
        embeddings = Quantized(Quantizer(kind, ranges), len(probe), embeddings)
    elif not (abs(np.einsum("ij,ij->i", embeddings, embeddings) - 1) <= _UNIT_TOLERANCE).all():
        raise UserError(f"{path}: damaged: an embedding is not of length 1")
    return text.split("\0")[:-1], ids, embeddings, probe
