"""Use a model from Python: encode, compare, search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import torch
from pydantic import SkipValidation
from sentence_transformers.util import (
    community_detection,
    cos_sim,
    paraphrase_mining_embeddings,
)
from torch import Tensor
from tqdm import tqdm

from simcse.config.settings import (
    Backend,
    Encoding,
    Pooling,
    Precision,
    Role,
    Separator,
    Vectors,
)
from simcse.encoders.encoding import encode_by_length, encoder_of
from simcse.encoders.gate import check_embeddings
from simcse.encoders.loading import check_device, load_model
from simcse.encoders.precision import resolved
from simcse.errors import UserError
from simcse.inference import index as indexing
from simcse.inference.quantized import Quantized
from simcse.inference.sentences import ids_of, sentences_of, texts_of
from simcse.terminal import quiet_libraries
from simcse.typed import typed

_PROBE = "The index belongs to the model that made it."

T = TypeVar("T")
# Not by its type: what numpy gives is a number too, and texts may be many.
Unchecked = Annotated[T, SkipValidation]


class _Pair(NamedTuple):
    sentence: str
    similarity: float


class Match(_Pair):
    """A sentence of the index and its cosine similarity to the query: a tuple of two."""

    id: indexing.Id
    """Beside the two: the sentence's id, or the number of its row from 0 on."""


class SimCSE:
    """Encodes sentences, compares them and searches among them.

    Method names, arguments and their order, defaults and shapes are those of princeton-nlp/SimCSE's
    ``simcse`` package, so that its users can switch
    (https://github.com/princeton-nlp/SimCSE/blob/main/simcse/tool.py). What differs:

    - ``model`` is a ``SentenceTransformer``. ``pooler`` is ``pooling``, only by keyword and rarely
      needed; their ``cls_before_pooler`` is ``cls`` here.
    - Texts are cut at the encoder's own limit instead of 128 tokens, and a ``max_length`` beyond it
      is refused. There is no progress bar unless asked for.
    - Files in csv, tsv, jsonl and parquet are tables, ``.gz`` is unpacked, all others hold one
      sentence a line as there. Blank lines are left out, a file without text is refused.
    - ``search`` reports all ``top_k`` unless a threshold is given (0.6 there); each match has an
      ``id`` beside sentence and similarity.
    - ``use_faiss=True`` is refused without faiss instead of ignored; faiss runs on the CPU.

    Args:
        model_name_or_path: A run folder, any sentence-transformers model, one of princeton-nlp's
            eight released checkpoints, or a plain encoder; folder or Hub name. ``None`` takes the
            small English model that comes with the package, ``mini-distilled``.
        device: Such as ``cpu`` or ``cuda``; ``None`` picks the best available.
        num_cells: Clusters of an approximate index (``faiss_fast``).
        num_cells_in_search: Clusters that a search in it looks through.
        pooling: Only for a plain encoder, which does not store it.
        precision: Mixed precision of forward passes; ``auto`` is bfloat16 where the hardware has
            it, which is faster and less exact (docs/performance.md), else float32.
        dims: Use the first so many numbers of each embedding, for models that were trained for that
            (docs/training.md); ``None`` is the model's default, usually all.
        rescore_multiplier: In an index of bits, how many times ``top_k`` candidates are found by
            their bits alone and then compared with the query's own numbers.
        backend: ``onnx`` or ``onnx-int8`` encodes with the graph that ``simcse export --format
            onnx`` has written (docs/publishing.md), on the CPU.
        trust_remote_code: Let the model run code that comes with it, if you trust its author.

    Raises:
        UserError: The model does not exist or cannot be loaded, or has no graph for ``backend``.
    """

    @typed
    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        device: str | torch.device | None = None,
        num_cells: Unchecked[int] = 100,
        num_cells_in_search: Unchecked[int] = 10,
        *,
        pooling: Pooling | None = None,
        precision: Precision = "float32",
        dims: int | None = None,
        rescore_multiplier: Unchecked[int] = 4,
        backend: Backend = "torch",
        trust_remote_code: bool = False,
    ) -> None:
        _check_count("num_cells", num_cells)
        _check_count("num_cells_in_search", num_cells_in_search)
        _check_count("rescore_multiplier", rescore_multiplier)
        name = None if model_name_or_path is None else str(model_name_or_path)
        place, consent = None if device is None else str(device), trust_remote_code
        if backend != "torch" and precision != "float32":
            raise UserError(f"precision {precision}: a graph has its own; leave it out, or backend")
        with quiet_libraries():
            self.model = load_model(
                name, pooling, place, dims=dims, backend=backend, trust_remote_code=consent
            )
        self.backend: Backend = backend
        self.device = str(self.model.device)
        self.precision: Precision = resolved(precision)
        self.num_cells = num_cells
        self.num_cells_in_search = num_cells_in_search
        self.rescore_multiplier = rescore_multiplier
        self.index: indexing.Index | None = None

    @property
    def is_faiss_index(self) -> bool:
        """Whether there is an index and faiss holds it."""
        ours = np.ndarray | Quantized
        return self.index is not None and not isinstance(self.index["index"], ours)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    @typed
    def encode(
        self,
        sentence: Unchecked[str | Iterable[str]],
        device: str | torch.device | list[str] | None = None,
        return_numpy: bool = False,
        normalize_to_unit: bool = True,
        keepdim: bool = False,
        batch_size: Unchecked[int] = 64,
        max_length: Unchecked[int | None] = None,
        show_progress_bar: bool | tqdm = False,
        role: Role | None = None,
    ) -> np.ndarray | Tensor:
        """Embed one sentence or several.

        Args:
            sentence: One sentence, or several as a list, an array or a column of text, a generator.
            device: Instead of ``self.device``; a list encodes on several at once.
            return_numpy: A numpy array instead of a tensor on the CPU.
            normalize_to_unit: Divide each embedding by its length.
            keepdim: Return shape ``(1, dim)`` for a single string as well.
            batch_size: Sentences per forward pass.
            max_length: Cut inputs at this many tokens; ``None`` is the encoder's own limit.
            show_progress_bar: Show one on standard error, or move this one.
            role: ``query`` or ``document``, for models that embed them apart (two towers, prompts);
                ``None`` is the model's default, with two towers the queries'.

        Returns:
            float32, ``(dim,)`` for a string, else ``(sentences, dim)``.

        Raises:
            UserError: An argument is out of its range, ``max_length`` beyond what the encoder can
                take, a device is missing, or an item is not text.
        """
        single = isinstance(sentence, str)
        texts = texts_of(sentence)
        _check_count("batch_size", batch_size)
        device = self.device if device is None else device
        devices = device if isinstance(device, list) else [str(device)]
        _check_devices(devices)
        if self.backend != "torch" and devices != ["cpu"]:
            raise UserError(
                f"device {', '.join(devices)}: backend {self.backend} runs on the CPU, once"
            )
        if len(devices) > 1 and self.precision != "float32":
            raise UserError(f"device: several encode in float32 only, not in {self.precision}")
        with self._cut_at(max_length):
            if len(devices) > 1 and texts:  # the library shares the work out
                embeddings = encoder_of(self.model, role)(
                    texts,
                    batch_size=batch_size,
                    device=devices,
                    normalize_embeddings=normalize_to_unit,
                    show_progress_bar=show_progress_bar is True,
                ).astype(np.float32, copy=False)
            else:
                embeddings = encode_by_length(
                    self.model,
                    texts,
                    batch_size,
                    device=devices[0],
                    normalize=normalize_to_unit,
                    show_progress=show_progress_bar,
                    role=role,
                    precision=self.precision,
                )
        if single and not keepdim:
            embeddings = embeddings[0]
        return embeddings if return_numpy else torch.from_numpy(embeddings)

    @typed
    def similarity(
        self,
        queries: Unchecked[str | Iterable[str]],
        keys: Unchecked[str | Iterable[str] | np.ndarray],
        device: str | torch.device | list[str] | None = None,
    ) -> float | np.ndarray:
        """Cosine similarities in [-1, 1].

        Args:
            queries: One sentence or several.
            keys: The same, or embeddings of shape ``(dim,)`` or ``(keys, dim)``.
            device: As in :meth:`encode`.

        Returns:
            ``(queries, keys)``; without the first dimension for one query string, and a float for
            one query and one key.

        Raises:
            UserError: As in :meth:`encode`, or the embeddings are of another width.
        """
        query = self._array(queries, device, "query")
        if not (isinstance(keys, np.ndarray) and np.issubdtype(keys.dtype, np.number)):
            keys = self._array(keys, device, "document")
        key = np.asarray(keys, dtype=np.float32)
        if key.ndim not in (1, 2) or key.shape[-1] != query.shape[-1]:
            raise UserError(f"keys: expected embeddings {query.shape[-1]} wide, got {key.shape}")
        if not np.isfinite(key).all():
            raise UserError("keys: hold NaN or infinity")
        scores: np.ndarray = cos_sim(query, key).numpy()  # (queries, keys)
        if query.ndim == 2:
            return scores
        return float(scores[0, 0]) if key.ndim == 1 else scores[0]

    @typed
    def build_index(
        self,
        sentences_or_file_path: Unchecked[str | Path | Iterable[str]],
        use_faiss: bool | None = None,
        faiss_fast: bool | Literal["hnsw"] = False,
        device: str | torch.device | list[str] | None = None,
        batch_size: Unchecked[int] = 64,
        *,
        column: str | None = None,
        separator: Separator | None = None,
        encoding: Encoding = "utf-8",
        ids: Unchecked[Iterable[indexing.Id] | None] = None,
        vectors: Vectors = "float32",
    ) -> None:
        """Encode sentences for :meth:`search`, replacing an earlier index.

        Args:
            sentences_or_file_path: Sentences, or the name of a file (a table in csv, tsv, jsonl or
                parquet, else one sentence a line).
            use_faiss: ``None`` uses faiss when it is installed. Both ways are exact and give the
                same matches.
            faiss_fast: With faiss, search only ``num_cells_in_search`` of ``num_cells`` clusters,
                or with ``"hnsw"`` along a graph of neighbours (docs/performance.md): faster, but
                matches may be missed.
            device: As in :meth:`encode`.
            batch_size: As in :meth:`encode`.
            column: Column of a table with more than one.
            separator: Between the fields of a csv or tsv file, where it is another than usual.
            encoding: Character encoding of the file.
            ids: A number or text for each sentence, which matches have; ``None`` numbers the
                sentences, or the rows of the file, from 0 on.
            vectors: What an embedding is stored in: a quarter of the memory with ``int8``, which
                is calibrated on these sentences, a 32nd with ``binary``. Similarities are then
                those to what is stored (docs/training.md); faiss is not used.

        Raises:
            UserError: The file is missing or malformed, faiss is asked for and not installed or
                cannot hold such vectors, or the ids are not as many as the sentences.
        """
        sentences, rows = sentences_of(sentences_or_file_path, column, separator, encoding)
        given = list[indexing.Id](rows) if ids is None else ids_of(ids, len(sentences))
        embeddings = self._array(sentences, device, "document", batch_size)
        cells = self._cells(faiss_fast)
        self.index = indexing.build(sentences, given, embeddings, use_faiss, cells, vectors)

    @typed
    def add_to_index(
        self,
        sentences_or_file_path: Unchecked[str | Path | Iterable[str]],
        device: str | torch.device | list[str] | None = None,
        batch_size: Unchecked[int] = 64,
        *,
        ids: Unchecked[Iterable[indexing.Id] | None] = None,
    ) -> None:
        """Encode more sentences into the index; arguments as in :meth:`build_index`.

        Without ``ids`` the numbers go on after the highest one.
        """
        index = self._built_index()
        sentences, rows = sentences_of(sentences_or_file_path)
        start = max((one for one in index["ids"] if isinstance(one, int)), default=-1) + 1
        following: list[indexing.Id] = [start + row for row in rows]
        given = following if ids is None else ids_of(ids, len(sentences))
        added = self._array(sentences, device, "document", batch_size)
        indexing.add(index, sentences, given, added)

    @overload
    def search(
        self,
        queries: str,
        device: str | torch.device | list[str] | None = ...,
        threshold: float | None = ...,
        top_k: int = ...,
    ) -> list[Match]: ...

    @overload
    def search(
        self,
        queries: list[str],
        device: str | torch.device | list[str] | None = ...,
        threshold: float | None = ...,
        top_k: int = ...,
    ) -> list[list[Match]]: ...

    @typed
    def search(
        self,
        queries: Unchecked[str | list[str]],
        device: str | torch.device | list[str] | None = None,
        threshold: Unchecked[float | None] = None,
        top_k: Unchecked[int] = 5,
    ) -> list[Match] | list[list[Match]]:
        """The most similar sentences of the index.

        Args:
            queries: One sentence or several.
            device: As in :meth:`encode`.
            threshold: Lowest cosine similarity to report; ``None`` reports any.
            top_k: Most matches per query.

        Returns:
            ``(sentence, similarity)`` with an ``id``, best first; one list for a string, else one
            for each query.

        Raises:
            UserError: There is no index yet, or an argument is out of its range.
        """
        index = self._built_index()
        _check_count("top_k", top_k)
        if threshold is not None:
            _check_threshold(threshold)
        lowest = -math.inf if threshold is None else threshold
        count = min(top_k, len(index["sentences"]))
        query = np.atleast_2d(self._array(queries, device, "query"))
        if count == 0 or len(query) == 0:
            matches: list[list[Match]] = [[] for _ in query]
        else:
            scores, rows = indexing.nearest(index, query, count, self.rescore_multiplier)
            matches = [
                [
                    _match(index, int(row), float(score))
                    for score, row in zip(*nearest, strict=True)
                    if row >= 0 and score >= lowest
                ]
                for nearest in zip(scores, rows, strict=True)
            ]
        return matches[0] if isinstance(queries, str) else matches

    @typed
    def save_index(self, path: str | Path, overwrite: bool = False) -> None:
        """Save the index as one ``.safetensors`` file, replacing an older index in one step.

        Args:
            path: Ends in ``.safetensors``.
            overwrite: Replace a file that is no index, too.

        Raises:
            UserError: There is no index, the name does not end in ``.safetensors``, or what is
                there is no index.
        """
        index = self._built_index()
        indexing.check_target(Path(path), overwrite=overwrite)
        indexing.save(index, self._probe(), Path(path))

    @typed
    def load_index(
        self,
        path: str | Path,
        use_faiss: bool | None = None,
        faiss_fast: bool | Literal["hnsw"] = False,
    ) -> None:
        """Load an index that this model saved; arguments as in :meth:`build_index`.

        Raises:
            UserError: The file is missing, damaged or no index, or was made by another model.
        """
        sentences, ids, embeddings, probe = indexing.load(Path(path))
        own = self._probe()
        if probe.shape != own.shape or not np.allclose(probe, own, atol=1e-3):
            raise UserError(f"{path}: this index was made by another model, or for other dims")
        self.index = indexing.build(sentences, ids, embeddings, use_faiss, self._cells(faiss_fast))

    @typed
    def duplicates(
        self,
        sentences_or_file_path: Unchecked[str | Path | Iterable[str]],
        threshold: Unchecked[float] = 0.95,
        *,
        column: str | None = None,
        separator: Separator | None = None,
        encoding: Encoding = "utf-8",
        batch_size: Unchecked[int] = 64,
    ) -> list[list[int]]:
        """Groups of sentences that say nearly the same.

        Args:
            sentences_or_file_path: As in :meth:`build_index`.
            threshold: Lowest cosine similarity to the sentence in the middle of the group.
            column: As in :meth:`build_index`.
            separator: As in :meth:`build_index`.
            encoding: As in :meth:`build_index`.
            batch_size: As in :meth:`encode`.

        Returns:
            The rows of each group, two or more, from 0 on and rising; a row is in one group only.

        Raises:
            UserError: As :meth:`build_index`.
        """
        _check_threshold(threshold)
        sentences, rows = sentences_of(sentences_or_file_path, column, separator, encoding)
        if len(sentences) < 2:
            return []
        embeddings = self._array(sentences, None, "document", batch_size)
        groups = community_detection(embeddings, threshold, min_community_size=2)
        return sorted(sorted(rows[i] for i in group) for group in groups)

    @typed
    def paraphrases(
        self,
        sentences_or_file_path: Unchecked[str | Path | Iterable[str]],
        most: Unchecked[int] = 100,
        *,
        column: str | None = None,
        separator: Separator | None = None,
        encoding: Encoding = "utf-8",
        batch_size: Unchecked[int] = 64,
    ) -> list[tuple[int, int, float]]:
        """The most similar pairs among sentences: their rows and cosine similarity, best first.

        Args:
            sentences_or_file_path: As in :meth:`build_index`.
            most: Pairs.
            column: As in :meth:`build_index`.
            separator: As in :meth:`build_index`.
            encoding: As in :meth:`build_index`.
            batch_size: As in :meth:`encode`.

        Raises:
            UserError: As :meth:`build_index`.
        """
        _check_count("most", most)
        sentences, rows = sentences_of(sentences_or_file_path, column, separator, encoding)
        if len(sentences) < 2:
            return []
        embeddings = torch.from_numpy(self._array(sentences, None, "document", batch_size))
        pairs = paraphrase_mining_embeddings(embeddings, top_k=min(most, 100), max_pairs=most)
        return [(rows[int(i)], rows[int(j)], float(s)) for s, i, j in pairs[:most]]

    def _array(
        self,
        texts: str | Iterable[str],
        device: str | torch.device | list[str] | None,
        role: Role,
        batch_size: int = 64,
    ) -> np.ndarray:
        return np.asarray(
            self.encode(texts, device, return_numpy=True, batch_size=batch_size, role=role)
        )

    def _probe(self) -> np.ndarray:
        """Embedding of a fixed sentence, float32: tells whether an index belongs to this model."""
        probe: np.ndarray = encode_by_length(
            self.model, [_PROBE], 1, normalize=True, role="document"
        )[0]
        return probe

    def _cells(self, faiss_fast: bool | Literal["hnsw"]) -> indexing.Cells | Literal["hnsw"] | None:
        if faiss_fast == "hnsw":
            return "hnsw"
        return indexing.Cells(self.num_cells, self.num_cells_in_search) if faiss_fast else None

    def _built_index(self) -> indexing.Index:
        if self.index is None:
            raise UserError("there is no index; call build_index or load_index first")
        return self.index

    @contextmanager
    def _cut_at(self, max_length: int | None) -> Iterator[None]:
        if max_length is None:
            yield
            return
        limit = self.model.max_seq_length
        whole = isinstance(max_length, Integral) and not isinstance(max_length, bool)
        if not (whole and 3 <= max_length <= (limit or max_length)):
            raise UserError(
                f"max_length: {max_length!r} is out of range; this encoder allows 3 to {limit}"
            )
        try:
            self.model.max_seq_length = max_length
        except AttributeError as error:  # of a bag of words, such as StaticEmbedding
            first = type(self.model[0]).__name__
            raise UserError(f"max_length: {first} cuts no texts; leave it out") from error
        try:
            if any(self.model.prompts.values()):  # whose tokens count too
                check_embeddings(f"max_length: {max_length}", self.model)
            yield
        finally:
            self.model.max_seq_length = limit


def _match(index: indexing.Index, row: int, similarity: float) -> Match:
    match = Match(index["sentences"][row], similarity)
    match.id = index["ids"][row]
    return match


def _check_threshold(value: object) -> None:
    if not isinstance(value, Real) or not -1 <= float(value) <= 1:
        raise UserError(f"threshold: expected a cosine from -1 to 1, got {value!r}")


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name}: expected a whole number from 1 on, got {value!r}")


def _check_devices(devices: list[str]) -> None:
    if not devices:
        raise UserError("device: the list is empty; name one or more")
    for device in devices:
        check_device(device)
