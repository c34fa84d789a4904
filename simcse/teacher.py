"""A teacher's embeddings of the training text: computed once, memory-mapped."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.lib.format import open_memmap
from sentence_transformers import SentenceTransformer

from simcse.config import Config
from simcse.data import TextCounts, texts_of
from simcse.encoder import fingerprint
from simcse.encoding import encode_by_length
from simcse.errors import UserError, first_line
from simcse.files import cache_folder, replacing

_CHUNK = 4096


def teacher_embeddings(config: Config, rows: Dataset, counts: TextCounts) -> Path:
    """File of float32 embeddings ``(rows, dim)``, in the order of the rows.

    Args:
        config: Names teacher and text.
        rows: From :func:`simcse.data.load_training_data`.
        counts: The same; its hash names the text.

    Raises:
        UserError: The teacher cannot be loaded.
    """
    name = str(config.objective.teacher)
    try:
        teacher = SentenceTransformer(name)
    except Exception as error:  # every kind of network, lookup and format error
        raise UserError(
            f"objective.teacher: {name} is no sentence-transformers model that can be loaded: "
            f"{first_line(error)}"
        ) from error
    chosen = np.ascontiguousarray(np.asarray(rows.with_format("numpy")["row_hash"]))
    key = hashlib.sha256(
        f"{fingerprint(teacher)} {counts.sha256}".encode() + chosen.tobytes()
    ).hexdigest()[:24]
    folder = Path(config.data.cache) if config.data.cache else cache_folder() / "teachers"
    path = folder / f"{key}.npy"
    if path.is_file():
        return path
    width = teacher.get_embedding_dimension()
    print(f"teacher  {name}: embedding {len(rows):,} texts, {width} wide", flush=True)
    texts = texts_of(config.data, rows)
    with replacing(path) as temporary:
        memory = open_memmap(temporary, "w+", np.float32, (len(rows), width))
        start = 0
        while chunk := list(islice(texts, _CHUNK)):
            batch_size = config.evaluation.batch_size
            memory[start : start + len(chunk)] = encode_by_length(teacher, chunk, batch_size)
            start += len(chunk)
        memory.flush()
        del memory
        if start != len(rows):
            raise UserError(f"data.train: the text has changed while {name} was reading it")
    return path
