"""Embeddings of a file of any size: read, embedded and written in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.lib import format as npy

from simcse.data.tokens import in_chunks
from simcse.errors import UserError
from simcse.files import replacing_alone

CHUNK = 20_000  # texts in memory at a time; enough for length-grouped batches


Chunks = Iterable[tuple[list[str], np.ndarray]]
"""Texts and their embeddings, of one type, ``(texts, width)``."""


class Recent:
    """Embeds texts, but those that are among the latest :data:`CHUNK` distinct ones only once.

    Args:
        encode: As for :func:`encode_to_file`.
    """

    def __init__(self, encode: Callable[[list[str]], np.ndarray]) -> None:
        self._encode = encode
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Embeddings in the order of the texts, as ``encode`` gives them."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if new:
            # Copies, since a row that is kept would keep all of its chunk.
            self._kept.update(zip(new, map(np.array, self._encode(new)), strict=True))
        rows = [self._kept[text] for text in texts]
        for text in dict.fromkeys(texts):
            self._kept[text] = self._kept.pop(text)  # the latest come last
        self._kept = dict(islice(self._kept.items(), max(len(self._kept) - CHUNK, 0), None))
        return np.stack(rows)


def encode_to_file(
    texts: Iterable[str], encode: Callable[[list[str]], np.ndarray], output: Path, source: str
) -> tuple[int, int]:
    """Embed texts into a file that appears whole or not at all.

    Args:
        texts: Any number; at most :data:`CHUNK` of them are held in memory.
        encode: Gives embeddings ``(texts, width)``: float32, or what is to be stored of them.
        output: Ends in one of :data:`FORMATS`; an old file is replaced when all is done.
        source: Where the texts come from, for errors.

    Returns:
        Rows and width.

    Raises:
        UserError: There is no text, the name ends otherwise, or another process writes the file.
    """
    check_name(output)
    with replacing_alone(output) as temporary:
        chunks = ((chunk, encode(chunk)) for chunk in in_chunks(texts, CHUNK, len))
        rows, width = FORMATS[output.suffix](temporary, chunks)
        if rows == 0:
            raise UserError(f"{source}: no text in it")
    return rows, width


def check_name(output: Path) -> None:
    """See that there is a format for a file of this name.

    Raises:
        UserError: There is none.
    """
    if output.suffix not in FORMATS:
        raise UserError(f"-o {output}: expected a name that ends in {' or '.join(FORMATS)}")


def _write_npy(path: Path, chunks: Chunks) -> tuple[int, int]:
    """An array ``(texts, width)`` as numpy saves it; row i is text i."""
    rows = width = 0
    kind = np.dtype(np.float32)

    def write_header() -> None:
        file.seek(0)
        header = {"descr": kind.str, "fortran_order": False, "shape": (rows, width)}
        npy.write_array_header_1_0(file, header)

    with path.open("wb") as file:
        for _, embeddings in chunks:
            if not rows:
                kind, width = embeddings.dtype.newbyteorder("<"), embeddings.shape[1]
                write_header()
            file.write(np.ascontiguousarray(embeddings, dtype=kind).tobytes())
            rows += len(embeddings)
        write_header()  # with the number of rows, for which numpy has left room
    return rows, width


def _write_parquet(path: Path, chunks: Chunks) -> tuple[int, int]:
    """Columns ``text`` and ``embedding`` (a list of numbers of one type, all of one length)."""
    rows = width = 0
    with ExitStack() as stack:
        for texts, embeddings in chunks:
            width = embeddings.shape[1]
            flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(flat, width)
            table = pa.table({"text": texts, "embedding": vectors})
            if not rows:
                writer = stack.enter_context(pa.parquet.ParquetWriter(path, table.schema))
            writer.write_table(table)
            rows += len(texts)
    return rows, width


FORMATS = {".npy": _write_npy, ".parquet": _write_parquet}
