"""Embeddings of the training text by a teacher or a guide: computed once, found by text."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from simcse.caches import cache_folder, cached
from simcse.config.settings import Config, ObjectiveConfig
from simcse.data.rows import texts_of
from simcse.data.tokens import in_chunks
from simcse.encoders.encoder import fingerprint, source_of
from simcse.encoders.encoding import encode_by_length
from simcse.encoders.gate import Origin, load_sentence_model, stores_modules
from simcse.errors import UserError

_CHUNK = 4096


class TextEmbeddings:
    """Embeddings of texts, by the hash of a text.

    Args:
        hashes: int64, ``(texts,)``, sorted.
        path: File of float32 embeddings in their order, ``(texts, dim)``.
    """

    def __init__(self, hashes: np.ndarray, path: Path) -> None:
        self.hashes = hashes
        self.vectors = np.load(path, mmap_mode="r")
        self.key = path.stem
        """Tells them from any others."""

    @property
    def width(self) -> int:
        """Of an embedding."""
        return int(self.vectors.shape[1])

    def __call__(self, hashes: np.ndarray) -> np.ndarray:
        """Those of texts, float32, ``(*hashes.shape, dim)``.

        Raises:
            ValueError: A text that has none.
        """
        places = np.searchsorted(self.hashes, hashes)
        if (self.hashes.take(places, mode="clip") != hashes).any():
            raise ValueError("a text has no embedding")
        return np.asarray(self.vectors[places])


def load_helper(
    config: ObjectiveConfig, kind: str, *, refresh: bool = False
) -> SentenceTransformer:
    """The ``teacher`` or ``guide`` that a config names; ``refresh`` as in :func:`.snapshot`.

    Raises:
        UserError: It cannot be loaded.
    """
    name, revision = config.helpers[kind]
    label = f"objective.{kind}: {name}"
    folder = source_of(name, revision, label=label, refresh=refresh)
    origin = Origin(label, folder, f"a {kind} has to do without")
    if not stores_modules(origin):
        raise UserError(f"{label}: does not say how it is pooled; expected a sentence model")
    return load_sentence_model(origin)


def text_embeddings(config: Config, kind: str, hashes: np.ndarray) -> TextEmbeddings:
    """Embeddings of the texts with some hashes by the ``teacher`` or the ``guide``.

    Args:
        config: Names model and text.
        kind: Which of them.
        hashes: From the column ``text_hash`` of :func:`simcse.data.rows.load_training_data`,
            distinct and sorted.

    Raises:
        UserError: It cannot be loaded.
    """
    model, name = load_helper(config.objective, kind), config.objective.helpers[kind][0]
    key = hashlib.sha256(fingerprint(model).encode() + hashes.tobytes()).hexdigest()[:24]
    cache = config.sets[0].cache
    path = (Path(cache) if cache else cache_folder() / "embeddings") / f"{key}.npy"

    def make(temporary: Path) -> dict[str, Any]:
        width = model.get_embedding_dimension()
        print(f"{kind:8} {name}: embedding {len(hashes):,} texts, {width} wide", flush=True)
        memory = open_memmap(temporary, "w+", np.float32, (len(hashes), width))
        done = 0
        texts = texts_of(config.sets, hashes)
        with tqdm(total=len(hashes), unit="text", disable=None) as bar:
            for chunk in in_chunks(texts, _CHUNK, lambda pair: len(pair[1])):
                found, these = zip(*chunk, strict=True)
                memory[np.searchsorted(hashes, found)] = encode_by_length(
                    model, these, config.evaluation.batch_size, show_progress=bar
                )
                done += len(chunk)
        memory.flush()
        del memory
        if done != len(hashes):
            raise UserError(f"data.train: the text has changed while {name} was reading it")
        return {}

    cached(path, make)
    return TextEmbeddings(hashes, path)
