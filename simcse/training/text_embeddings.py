"""A teacher's embeddings of the training text: computed once, memory-mapped, found by text."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from sentence_transformers import SentenceTransformer

from simcse.caches import cache_folder, cached
from simcse.config.settings import Config, ObjectiveConfig
from simcse.data.rows import texts_of
from simcse.data.tokens import in_chunks
from simcse.encoders.encoder import fingerprint, source_of
from simcse.encoders.encoding import encode_by_length
from simcse.encoders.gate import Origin, load_sentence_model
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
        """Those of texts, float32, ``(*hashes.shape, dim)``."""
        return np.asarray(self.vectors[np.searchsorted(self.hashes, hashes)])


def load_teacher(config: ObjectiveConfig, *, refresh: bool = False) -> SentenceTransformer:
    """The teacher of a config that names one; ``refresh`` as in :func:`.snapshot`.

    Raises:
        UserError: It cannot be loaded.
    """
    name, label = str(config.teacher), f"objective.teacher: {config.teacher}"
    folder = source_of(name, config.teacher_revision, label=label, refresh=refresh)
    return load_sentence_model(Origin(label, folder, "a teacher has to do without"))


def teacher_embeddings(config: Config, hashes: np.ndarray) -> TextEmbeddings:
    """The teacher's embeddings of the texts with some hashes.

    Args:
        config: Names teacher and text.
        hashes: From the column ``text_hash`` of :func:`simcse.data.rows.load_training_data`,
            distinct and sorted.

    Raises:
        UserError: The teacher cannot be loaded.
    """
    teacher, name = load_teacher(config.objective), str(config.objective.teacher)
    key = hashlib.sha256(fingerprint(teacher).encode() + hashes.tobytes()).hexdigest()[:24]
    cache = config.sets[0].cache
    path = (Path(cache) if cache else cache_folder() / "embeddings") / f"{key}.npy"

    def make(temporary: Path) -> dict[str, Any]:
        width = teacher.get_embedding_dimension()
        print(f"teacher  {name}: embedding {len(hashes):,} texts, {width} wide", flush=True)
        memory = open_memmap(temporary, "w+", np.float32, (len(hashes), width))
        done = 0
        for chunk in in_chunks(texts_of(config.sets, hashes), _CHUNK, lambda pair: len(pair[1])):
            found, texts = zip(*chunk, strict=True)
            places = np.searchsorted(hashes, found)
            memory[places] = encode_by_length(teacher, texts, config.evaluation.batch_size)
            done += len(chunk)
        memory.flush()
        del memory
        if done != len(hashes):
            raise UserError(f"data.train: the text has changed while {name} was reading it")
        return {}

    cached(path, make)
    return TextEmbeddings(hashes, path)
