"""Use a model from Python: encode, compare, search."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from simcse.encoding import encode_by_length, encoder_of
from simcse.errors import UserError
from simcse.files import may_write, replacing
from simcse.loading import load_model
from simcse.readers import read_sentences, sound_text
from simcse.settings import Pooling, Role

_INDEX_PARTS = ("embeddings", "sentences", "probe")  # in the order in which they are written
_PROBE = "The index belongs to the model that made it."
_QUERY_BLOCK = 256

Match = tuple[str, float]
"""A sentence of the index and its cosine similarity to the query."""


class SimCSE:
    """Encodes sentences, compares them and searches among them.

    Method names and shapes follow princeton-nlp/SimCSE's ``simcse`` package, so that its users can
    switch (https://github.com/princeton-nlp/SimCSE/blob/main/simcse/tool.py). What differs: the
    approximate ``faiss_fast`` and its ``num_cells`` are left out, ``pooler`` is ``pooling`` and
    rarely needed, inputs are cut at the encoder's own limit instead of 128 tokens.

    Args:
        model_name_or_path: A run folder, any sentence-transformers model, one of princeton-nlp's
            eight released checkpoints, or a plain encoder; folder or Hub name. ``None`` takes the
            quickstart's result.
        device: Such as ``cpu`` or ``cuda``; ``None`` takes the best at hand.
        pooling: Only for a plain encoder, which does not store it.

    Raises:
        UserError: The model does not exist or cannot be loaded.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        device: str | None = None,
        *,
        pooling: Pooling | None = None,
    ) -> None:
        name = None if model_name_or_path is None else str(model_name_or_path)
        self.model = load_model(name, pooling, device)
        self.sentences: list[str] = []
        self._embeddings: np.ndarray | None = None
        self._faiss: Any = None

    def encode(
        self,
        sentence: str | Sequence[str],
        device: str | list[str] | None = None,
        return_numpy: bool = False,
        normalize_to_unit: bool = True,
        keepdim: bool = False,
        batch_size: int = 64,
        max_length: int | None = None,
        show_progress_bar: bool = False,
        role: Role | None = None,
    ) -> np.ndarray | Tensor:
        """Embed one sentence or several.

        Args:
            sentence: One sentence or a sequence of them.
            device: Overrides the model's device; a list encodes on several at once.
            return_numpy: A numpy array instead of a tensor on the CPU.
            normalize_to_unit: Divide each embedding by its length.
            keepdim: Return shape ``(1, dim)`` for a single string as well.
            batch_size: Sentences a forward pass.
            max_length: Cut inputs at this many tokens; ``None`` is the encoder's own limit.
            show_progress_bar: Show one on standard error.
            role: ``query`` or ``document``, for models that embed them apart (two towers, prompts);
                ``None`` is the model's default, with two towers the queries'.

        Returns:
            float32, ``(dim,)`` for a string, else ``(sentences, dim)``.

        Raises:
            UserError: ``max_length`` is beyond what the encoder can take, or an item is not text.
        """
        single = isinstance(sentence, str)
        texts = [sentence] if isinstance(sentence, str) else list(sentence)
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"sentence {position}: expected str, got {type(text).__name__}")
            sound_text(f"sentence {position}", text)
        if texts:
            with self._cut_at(max_length):
                if isinstance(device, list):  # several devices: the library shares the work out
                    embeddings = encoder_of(self.model, role)(
                        texts,
                        batch_size=batch_size,
                        device=device,
                        normalize_embeddings=normalize_to_unit,
                        show_progress_bar=show_progress_bar,
                    )
                else:
                    embeddings = encode_by_length(
                        self.model,
                        texts,
                        batch_size,
                        device=device,
                        normalize=normalize_to_unit,
                        show_progress=show_progress_bar,
                        role=role,
                    )
        else:
            embeddings = np.empty((0, self.model.get_embedding_dimension()))
        embeddings = embeddings.astype(np.float32, copy=False)
        if single and not keepdim:
            embeddings = embeddings[0]
        return embeddings if return_numpy else torch.from_numpy(embeddings)

    def similarity(
        self,
        queries: str | Sequence[str],
        keys: str | Sequence[str] | np.ndarray,
        device: str | list[str] | None = None,
    ) -> float | np.ndarray:
        """Cosine similarities in [-1, 1].

        Args:
            queries: One sentence or several.
            keys: The same, or embeddings of shape ``(dim,)`` or ``(keys, dim)``.
            device: As in :meth:`encode`.

        Returns:
            ``(queries, keys)``; without the first dimension for one query string, and a float for
            one query and one key.
        """
        query = np.asarray(self.encode(queries, device, return_numpy=True, role="query"))
        if not isinstance(keys, np.ndarray):
            keys = np.asarray(self.encode(keys, device, return_numpy=True, role="document"))
        key = np.asarray(keys, dtype=np.float32)
        key = key / np.linalg.norm(key, axis=-1, keepdims=True)
        scores: np.ndarray = np.atleast_2d(query) @ np.atleast_2d(key).T  # (queries, keys)
        if query.ndim == 2:
            return scores
        return float(scores[0, 0]) if key.ndim == 1 else scores[0]

    def build_index(
        self,
        sentences_or_file_path: str | Path | Sequence[str],
        use_faiss: bool | None = None,
        *,
        device: str | list[str] | None = None,
        batch_size: int = 64,
        column: str | None = None,
    ) -> None:
        """Encode sentences for :meth:`search`, replacing an earlier index.

        Args:
            sentences_or_file_path: Sentences, or a file (one a line, or csv, tsv, jsonl,
                parquet).
            use_faiss: ``None`` uses faiss when it is installed. Both ways are exact and give the
                same matches.
            device: As in :meth:`encode`.
            batch_size: As in :meth:`encode`.
            column: Column of a table with more than one.

        Raises:
            UserError: The file is missing or malformed, or faiss is asked for and not installed.
        """
        sentences = _sentences(sentences_or_file_path, column)
        embeddings = self._documents(sentences, device, batch_size)
        self._set_index(sentences, embeddings, use_faiss)

    def add_to_index(
        self,
        sentences_or_file_path: str | Path | Sequence[str],
        device: str | list[str] | None = None,
        batch_size: int = 64,
    ) -> None:
        """Encode more sentences into the index; arguments as in :meth:`build_index`."""
        known = self._indexed()
        sentences = _sentences(sentences_or_file_path)
        added = self._documents(sentences, device, batch_size)
        self.sentences = self.sentences + sentences
        self._embeddings = np.concatenate([known, added])
        if self._faiss is not None:
            self._faiss.add(added)

    @overload
    def search(
        self,
        queries: str,
        device: str | list[str] | None = ...,
        threshold: float = ...,
        top_k: int = ...,
    ) -> list[Match]: ...

    @overload
    def search(
        self,
        queries: list[str],
        device: str | list[str] | None = ...,
        threshold: float = ...,
        top_k: int = ...,
    ) -> list[list[Match]]: ...

    def search(
        self,
        queries: str | list[str],
        device: str | list[str] | None = None,
        threshold: float = 0.6,
        top_k: int = 5,
    ) -> list[Match] | list[list[Match]]:
        """The most similar sentences of the index.

        Args:
            queries: One sentence or several.
            device: As in :meth:`encode`.
            threshold: Lowest cosine similarity to report.
            top_k: Most matches a query.

        Returns:
            ``(sentence, similarity)``, best first; one list for a string, else one a query.

        Raises:
            UserError: There is no index yet.
        """
        embeddings = self._indexed()
        count = min(top_k, len(embeddings))
        query = np.asarray(
            self.encode(queries, device, return_numpy=True, keepdim=True, role="query")
        )
        if count == 0 or len(query) == 0:
            matches: list[list[Match]] = [[] for _ in query]
        else:
            search = self._faiss.search if self._faiss is not None else self._exact_search
            scores, rows = search(query, count)
            matches = [
                [
                    (self.sentences[row], float(score))
                    for score, row in zip(*found, strict=True)
                    if score >= threshold
                ]
                for found in zip(scores, rows, strict=True)
            ]
        return matches[0] if isinstance(queries, str) else matches

    def save_index(self, path: str | Path, overwrite: bool = False) -> None:
        """Save the index as one ``.npz`` file, replacing an older index in one step.

        Args:
            path: Ends in ``.npz``.
            overwrite: Replace a file that is no index, too.

        Raises:
            UserError: There is no index, the name does not end in ``.npz``, or what is there is no
                index.
        """
        embeddings = self._indexed()
        path = index_target(path, overwrite=overwrite)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                embeddings=embeddings,
                sentences=np.frombuffer(json.dumps(self.sentences).encode(), dtype=np.uint8),
                probe=self._probe(),
            )

    def load_index(self, path: str | Path, use_faiss: bool | None = None) -> None:
        """Load an index that this model saved.

        Raises:
            UserError: The file is missing or damaged, or was made by another model.
        """
        path = _index_path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                embeddings, probe = file["embeddings"], file["probe"]
                sentences = json.loads(file["sentences"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a saved index: {error}") from error
        mine = self._probe()
        if probe.shape != mine.shape or not np.allclose(probe, mine, atol=1e-3):
            raise UserError(f"{path}: this index was made by another model")
        self._set_index(sentences, embeddings, use_faiss)

    def _documents(
        self, sentences: list[str], device: str | list[str] | None, batch_size: int
    ) -> np.ndarray:
        return np.asarray(
            self.encode(
                sentences, device, return_numpy=True, batch_size=batch_size, role="document"
            )
        )

    def _probe(self) -> np.ndarray:
        """Embedding of a fixed sentence: tells whether an index belongs to this model."""
        return np.asarray(self.encode(_PROBE, return_numpy=True, role="document"))

    def _set_index(
        self, sentences: list[str], embeddings: np.ndarray, use_faiss: bool | None
    ) -> None:
        installed = importlib.util.find_spec("faiss") is not None
        if use_faiss and not installed:
            raise UserError("use_faiss: faiss is not installed; pip install faiss-cpu")
        self._faiss = None
        if installed if use_faiss is None else use_faiss:
            import faiss

            self._faiss = faiss.IndexFlatIP(embeddings.shape[1])
            self._faiss.add(embeddings)
        self.sentences, self._embeddings = sentences, embeddings

    def _indexed(self) -> np.ndarray:
        if self._embeddings is None:
            raise UserError("there is no index; call build_index or load_index first")
        return self._embeddings

    def _exact_search(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        embeddings = self._indexed()
        scores, rows = [], []
        for start in range(0, len(query), _QUERY_BLOCK):
            similarity = query[start : start + _QUERY_BLOCK] @ embeddings.T
            order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
            rows.append(order)
            scores.append(np.take_along_axis(similarity, order, axis=1))
        return np.concatenate(scores), np.concatenate(rows)

    @contextmanager
    def _cut_at(self, max_length: int | None) -> Iterator[None]:
        limit = self.model.max_seq_length
        if max_length is not None and not 3 <= max_length <= (limit or max_length):
            raise UserError(
                f"max_length: {max_length} is out of range; this encoder allows 3 to {limit}"
            )
        self.model.max_seq_length = max_length or limit
        try:
            yield
        finally:
            self.model.max_seq_length = limit


def _sentences(source: str | Path | Sequence[str], column: str | None = None) -> list[str]:
    if isinstance(source, str | Path):
        return [text for text in read_sentences(Path(source), column) if text.strip()]
    return list(source)


def index_target(path: str | Path, inputs: Sequence[str | None] = (), *, overwrite: bool) -> Path:
    """Where an index may be saved; arguments as :func:`simcse.files.may_write`."""
    path = _index_path(path)
    may_write(path, inputs, ours=_is_index, overwrite=overwrite)
    return path


def _is_index(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.namelist() == [f"{name}.npy" for name in _INDEX_PARTS]
    except (OSError, zipfile.BadZipFile):
        return False


def _index_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"{path}: expected the name of an index, ending in .npz")
    return path
