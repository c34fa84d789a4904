"""A teacher's embeddings of the training text: computed once, memory-mapped."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.lib.format import open_memmap
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from simcse.caches import cache_folder, cached
from simcse.config.settings import Config, ObjectiveConfig
from simcse.data.rows import TextCounts, texts_of
from simcse.data.tokens import in_chunks
from simcse.encoders.encoder import fingerprint, source_of
from simcse.encoders.encoding import encode_by_length
from simcse.encoders.gate import Origin, load_sentence_model
from simcse.errors import UserError

_CHUNK = 4096


def load_teacher(config: ObjectiveConfig, *, refresh: bool = False) -> SentenceTransformer:
    """The teacher of a config that names one; ``refresh`` as in :func:`.snapshot`.

    Raises:
        UserError: It cannot be loaded.
    """
    name, label = str(config.teacher), f"objective.teacher: {config.teacher}"
    folder = source_of(name, config.teacher_revision, label=label, refresh=refresh)
    return load_sentence_model(Origin(label, folder, "a teacher has to do without"))


def teacher_embeddings(
    config: Config, rows: Dataset, counts: TextCounts, needed: np.ndarray
) -> Path:
    """File of float32 embeddings ``(rows, dim)``, in the order of the rows.

    Rows that the run does not need are zero, and take no room on most file systems.

    Args:
        config: Names teacher and text.
        rows: From :func:`simcse.data.rows.load_training_data`.
        counts: The same; its hash names the text.
        needed: Bool, shape ``(rows,)``.

    Raises:
        UserError: The teacher cannot be loaded.
    """
    teacher = load_teacher(config.objective)
    name = str(config.objective.teacher)
    chosen = np.ascontiguousarray(np.asarray(rows.with_format("numpy")["row_hash"][:]))
    parts = f"{fingerprint(teacher)} {counts.sha256}".encode(), chosen.tobytes(), needed.tobytes()
    key = hashlib.sha256(b"".join(parts)).hexdigest()[:24]
    folder = Path(config.data.cache) if config.data.cache else cache_folder() / "teachers"
    path = folder / f"{key}.npy"

    def make(temporary: Path) -> dict[str, Any]:
        width = teacher.get_embedding_dimension()
        print(f"teacher  {name}: embedding {needed.sum():,} texts, {width} wide", flush=True)
        texts = enumerate(texts_of(config.data, rows))
        wanted = ((row, text) for row, text in texts if needed[row])
        memory = open_memmap(temporary, "w+", np.float32, (len(rows), width))
        done = 0
        with tqdm(total=int(needed.sum()), unit="text", disable=None) as bar:
            for chunk in in_chunks(wanted, _CHUNK, lambda pair: len(pair[1])):
                places, sentences = zip(*chunk, strict=True)
                memory[list(places)] = encode_by_length(
                    teacher, sentences, config.evaluation.batch_size, show_progress=bar
                )
                done += len(chunk)
        memory.flush()
        del memory
        if done != needed.sum():
            raise UserError(f"data.train: the text has changed while {name} was reading it")
        return {}

    cached(path, make)
    return path
